"""A candidate in the search: its Engine while it races, what was measured of it, and why it lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from headrace.errors import HeadraceError
from headrace.planner.cost import RUNS_MIN, Cost, Stopwatch
from headrace.planner.offers import BATCHES, Offer, offer_of
from headrace.planner.predict import alone, highest_rate, simulate
from headrace.planner.rehearsal import Rehearsal
from headrace.planner.report import Question, Row

if TYPE_CHECKING:
    from headrace.engine import Engine
    from headrace.parity import Parity
    from headrace.planner.space import Candidate

# Rates for the report's plot, as shares of the highest.
_CURVE = (0.05, 0.2, 0.4, 0.6, 0.75, 0.9, 1.0)


class Entry:
    """A candidate in the search.

    Attributes:
        engine: Only while it races.
        watch: Has timed it; None before, and of one that cannot run.
        parity: How far its answers are off; None where they are not right.
        offer: What it would do for the question; None if it cannot meet the SLO.
        counts: Requests per Batch that were timed.
        largest: Requests per Batch that it did not fail with.
        rehearsal: What a Batcher under a load showed; None where nobody looked.
        crowding: Times as long as alone that Batches take beside others on the same machine; None where nobody looked.
        alone_s: A request, at the second run.
        why: Why it lost; empty while it races.
        beaten_by: Who it lost to, where that is why.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.start_over()

    def start_over(self) -> None:
        """Races anew, as if it had never been looked at."""
        self.engine: Engine | None = None
        self.watch: Stopwatch | None = None
        self.parity: Parity | None = None
        self.offer: Offer | None = None
        self.counts: tuple[int, ...] = ()
        self.largest = BATCHES[-1]
        self.rehearsal: Rehearsal | None = None
        self.crowding: float | None = None
        self.alone_s: float | None = None
        self.why = ""
        self.beaten_by: Entry | None = None

    @property
    def cost(self) -> Cost | None:
        """What was measured; None if nothing was."""
        if self.watch is None or self.watch.measured_s == 0:
            return None
        rehearsal = self.rehearsal or Rehearsal()
        cost = replace(self.watch.cost(), wake_s=rehearsal.wake_s, outside_s=rehearsal.outside_s)
        return cost.scaled((self.crowding or 1.0) * rehearsal.slowness)

    @property
    def limits(self) -> tuple[int, ...]:
        """Batch limits that the measured sizes say something about."""
        return tuple(count for count in BATCHES if count <= max(self.counts))

    def offered(self, question: Question, times: float = 1.0, *, final: bool = False) -> Offer | None:
        """What it would do if it took `times` as long as was measured."""
        cost = cast(Cost, self.cost).scaled(times)
        return offer_of(question, self.candidate, cost, self.limits, final=final)

    def spend(self, counts: Sequence[int], seconds: float, stop: Callable[[], bool], least: int = RUNS_MIN) -> None:
        """Times Batches of these sizes; where one fails, for want of memory say, smaller ones from then on."""
        sizes = [count for count in counts if count <= self.largest]
        while True:
            try:
                cast(Stopwatch, self.watch).spend(sizes, seconds, stop, least)
            except HeadraceError as error:
                if len(sizes) == 1:
                    self.fail(error)
                    return
                del sizes[-1]
                self.largest = sizes[-1]
            else:
                self.counts = tuple(sizes)
                return

    def lose(self, why: str, to: Entry | None = None) -> None:
        """Leaves the race; its memory is given back.

        Args:
            why: The reason, for people.
            to: Who is better, where that is the reason.
        """
        self.why, self.beaten_by = why, to
        if self.watch is not None:
            self.watch.let_go()
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def fail(self, error: HeadraceError) -> None:
        """Leaves the race as one that cannot do it: no figure of it counts."""
        self.lose(f"cannot run: {str(error).splitlines()[0]}")
        self.watch = self.parity = self.offer = self.alone_s = None

    def row(self, question: Question, *, chosen: bool) -> Row:
        """What the report says of it."""
        cost, offer, parity = self.cost, self.offer, self.parity
        row = Row(self.candidate, "chosen" if chosen else "lost", self.why)
        if parity is not None:
            row = replace(row, error=parity.error, error_output=parity.output)
        if cost is None:
            return replace(row, alone_s=self.alone_s)
        row = replace(
            row, fixed_s=cost.fixed_s, per_request_s=cost.per_request_s, batches=cost.runs, alone_s=alone(cost)
        )
        if offer is None:
            return row
        limit = offer.prediction.max_batch
        slo_s = question.slo_s
        highest = highest_rate(cost, limit, slo_s)
        points = [simulate(cost, limit, 1, share * highest, slo_s) for share in _CURVE if highest > 0]
        curve = tuple((point.rate_rps, point.p50_s, point.p99_s) for point in points)
        return replace(row, prediction=offer.prediction, cores=offer.cores, rate_max_rps=highest, curve=curve)
