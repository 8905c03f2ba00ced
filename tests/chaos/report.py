"""What a campaign saw, and which of its promises held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.observe.ledger import Books, read, totals

from .load import Tally
from .model import NAME


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
        self, ledger: Path, *tallies: Tally, failures: bool = False, unheard: Sequence[str] = ("broken",)
    ) -> Books:
        """Checks the ledger against itself and against what the clients got.

        Args:
            ledger: The folder.
            tallies: Of every client there was.
            failures: Whether versions on trial were to fail: each such request has run twice.
            unheard: How a request may have ended for a client whose answer was made and then lost.
        """
        books = totals(read(ledger))[NAME]
        ok = sum(tally.outcomes["ok"] for tally in tallies)
        lost = sum(tally.outcomes[outcome] for tally in tallies for outcome in unheard)
        for name, count in vars(books).items():
            self.facts[f"ledger {name}"] = count
        self.promises["the ledger balances"] = books.balanced and books.queued == 0
        if failures:
            self.promises["the ledger knows of every answer"] = ok <= books.ok
        else:
            self.promises["the ledger knows of every answer"] = ok <= books.ok <= ok + lost
            self.promises["the ledger has no failure"] = books.failed == 0
        return books
