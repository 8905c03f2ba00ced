"""What the replicas of a deployment counted, those that are gone included, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from headrace.observe.ledger import Books
from headrace.serving.load import UNBOUNDED, Room
from headrace.serving.retiring import VERSIONS_MAX
from headrace.serving.standings import Standing
from headrace.serving.statistics import merged

# Of each model so many replicas that are gone are told apart; earlier ones are one sum.
GONE_MAX = 64
# A replica without a last word is gone when it was silent for so long: Serve has ended it long before.
SILENT_S_MAX = 600.0
# What a replica without a last word had not answered counts as lost when it was silent for so long, which is twenty
# reports; until it reports again, should it have been stopped only.
LOST_S = 10.0
# What that sum is called, in place of a replica.
EARLIER = "earlier"


@dataclass(frozen=True)
class ReplicaLedger:
    """What one replica counted until now.

    Attributes:
        model: The model it serves.
        replica: Serve's id of the replica.
        pid: Its process.
        stats: Its Batcher's ledger, with the Requests ``rejected`` before they got there.
        load: What it told the autoscaling policy.
        statistics: The protocol's statistics of each version, closed ones included.
        standing: How far it has followed its model's assignment.
        final: True once it has drained: these are its last words.
        group: Which of its model's groups of replicas it is of; "" where there is one.
        room: How many requests it can have at a time.
    """

    model: str
    replica: str
    pid: int
    stats: dict[str, Any]
    load: dict[str, float]
    final: bool
    statistics: tuple[dict[str, Any], ...] = ()
    standing: Standing | None = None
    group: str = ""
    room: Room = UNBOUNDED


class ReplicaLedgers:
    """The latest ledger of each replica of each model.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # Model -> replica -> what it counted, and when it said so; oldest replica first.
        self._known: dict[str, dict[str, tuple[ReplicaLedger, float]]] = {}

    def note(self, ledger: ReplicaLedger) -> None:
        """Keeps a replica's ledger in place of its last one; nothing comes after the final one."""
        replicas = self._known.setdefault(ledger.model, {})
        known = replicas.get(ledger.replica)
        if known is not None and known[0].final:
            return
        replicas[ledger.replica] = ledger, self._clock()
        if known is None and len(replicas) > GONE_MAX:
            self._fold(replicas)

    def of(self, model: str) -> list[ReplicaLedger]:
        """Those of one model, oldest replica first; what is not told apart any more is one, which is final."""
        return [ledger for ledger, _ in self._known.get(model, {}).values()]

    def books(self, model: str) -> Books:
        """The books of one model: what a replica that is gone had not answered is lost."""
        silent_since = self._clock() - LOST_S
        total = Books()
        for ledger, heard in self._known.get(model, {}).values():
            books = Books.of_stats(ledger.stats)
            total += books.closed() if ledger.final or heard < silent_since else books
        return total

    @property
    def models(self) -> tuple[str, ...]:
        """The models that any replica has reported of."""
        return tuple(self._known)

    def _fold(self, replicas: dict[str, tuple[ReplicaLedger, float]]) -> None:
        silent_since = self._clock() - SILENT_S_MAX
        gone = [name for name, (ledger, heard) in replicas.items() if ledger.final or heard < silent_since]
        earlier = [name for name in gone if name == EARLIER] + [name for name in gone if name != EARLIER][:-GONE_MAX]
        if earlier in ([], [EARLIER]):
            return
        ledgers = [replicas.pop(name)[0] for name in earlier]
        stats: Counter[str] = Counter()
        for ledger in ledgers:
            stats.update(ledger.stats)
        statistics = tuple(merged(entry for ledger in ledgers for entry in ledger.statistics))[-VERSIONS_MAX:]
        total = replace(
            ledgers[0],
            replica=EARLIER, pid=0, stats=dict(stats), load={}, final=True, statistics=statistics, standing=None,
            group="",
        )  # fmt: skip
        later = dict(replicas)
        replicas.clear()
        replicas.update({EARLIER: (total, self._clock())} | later)
