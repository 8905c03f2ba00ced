"""What a campaign saw, and which of its promises held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.observe.ledger import Books, Entry, read

from .load import Tally
from .model import NAME

if TYPE_CHECKING:
    from .swap import Change


@dataclass
class Report:
    """What a campaign saw.

    Attributes:
        facts: Numbers, by what they are.
        promises: What must hold at any length, and whether it did.
        bars: What is only measured well on a quiet machine over a longer time, and whether it held.
    """

    facts: dict[str, float | int | str] = field(default_factory=dict)
    promises: dict[str, bool] = field(default_factory=dict)
    bars: dict[str, bool] = field(default_factory=dict)

    def add(self, who: str, tally: Tally) -> None:
        """Notes how some clients' requests ended."""
        for outcome, count in sorted(tally.outcomes.items()):
            self.facts[f"{who} {outcome}"] = count
        for index, note in enumerate(tally.notes):
            self.facts[f"{who} note {index}"] = note
        self.promises[f"{who}: every answer is bit for bit the right one"] = tally.outcomes["wrong"] == 0
        self.promises[f"{who}: no 5xx but 503"] = tally.outcomes["failed"] == 0

    def balance(
        self,
        ledger: Path,
        *tallies: Tally,
        changes: Mapping[int, Change] | None = None,
        unheard: Sequence[str] = ("broken",),
    ) -> Books:
        """Checks the ledger against itself and against what the clients got.

        Args:
            ledger: The folder.
            tallies: Of every client there was.
            changes: The versions that were brought in beside the first.
            unheard: How a request may have ended for a client whose answer was made and then lost.
        """
        changes, outcomes = changes or {}, sum((tally.outcomes for tally in tallies), Counter[str]())
        entries = [entry for entry in read(ledger) if entry.owner.model == NAME]
        # What earlier files were folded into is of all versions together: only the sum of everything counts it.
        told = [entry for entry in entries if entry.owner.version]
        change = {entry.owner.version: changes.get(int(entry.owner.version)) for entry in told}
        books, missing = _sum(entries), sum(outcomes[outcome] for outcome in unheard)
        # A shadow's requests are copies: those of the others are the clients' own. What a canary does not answer with a
        # result, another version computes again.
        own = _sum(one for one in told if (its := change[one.owner.version]) is None or its.mode != "shadow")
        once = _sum(one for one in told if (its := change[one.owner.version]) is None or its.mode == "replace")
        sound = _sum(one for one in told if (its := change[one.owner.version]) is None or not its.broken)
        self.facts |= {f"ledger {name}": count for name, count in vars(books).items()}
        self.promises["the ledger balances"] = all(one.books.balanced and one.books.queued == 0 for one in entries)
        self.promises["the ledger knows of every answer"] = outcomes["ok"] <= books.ok
        self.promises["it has no answer that no client could get"] = own.ok <= outcomes["ok"] + missing
        for end in ("refused", "expired"):
            all_known = outcomes[end] <= vars(books)[end] and vars(once)[end] <= outcomes[end] + missing
            self.promises[f"it has as many {end} as the clients"] = all_known
        self.promises["it has nothing cancelled that a client waited for"] = own.cancelled <= missing
        self.promises["it has no failure but of what is broken"] = sound.failed == 0
        return books


def lost_of(ledger: Path) -> Counter[int]:
    """What each process has lost, by its id."""
    lost = Counter[int]()
    for entry in read(ledger):
        lost[entry.owner.pid] += entry.books.lost
    return lost


def _sum(entries: Iterable[Entry]) -> Books:
    return sum((entry.books for entry in entries), Books())
