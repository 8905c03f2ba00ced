"""The search: little time for all candidates, more for those that may still win, most for the last few.

1. Each way to compile (backend, precision, ...) on one thread: does it compile, are its answers right? A few Batches.
2. More threads, where even perfect scaling of what was measured on one could beat the best so far.
3. Halving: all Batch sizes for those whose cost, less what the measurement may be off, could still beat the best.

A candidate that is dropped says by which bound. None is dropped because it was not looked at, unless the time was up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from headrace.errors import BackendUnavailable, HeadraceError, ParityError
from headrace.parity import DEFAULT_TOLERANCE, Parity, compare
from headrace.planner.cost import Cost, Stopwatch, rehearse, slowdown
from headrace.planner.offers import BATCHES, Offer, mark_frontier, offer_of, too_slow, worse
from headrace.planner.predict import highest_rate, simulate
from headrace.planner.report import Question, Row
from headrace.planner.requests import representative
from headrace.planner.space import Candidate

if TYPE_CHECKING:
    from headrace.backend import Request, Result
    from headrace.engine import Engine
    from headrace.model import Model

# fp32 differs from the reference by the order of its sums.
_TOLERANCE_FP32 = 1e-3
# Threads may share caches so well that two are a little more than twice as fast as one.
_SCALING_SLACK = 1.1
# Without an SLO, larger Batches than take so long are not looked at.
_BATCH_S_MAX = 0.5
# The reference backend is slow: it gets this share of the budget.
_REFERENCE_SHARE = 0.15
_SCREEN_SIZES = (1, 8)
_SCREEN_S = 0.1
# How far a cost may be off after the first look, as a share of it.
_SCREEN_OFF = 0.3
# (seconds per candidate, how far its cost may be off afterwards, how many go on)
_ROUNDS = ((0.4, 0.15, 4), (1.0, 0.08, 2), (1.6, 0.04, 2))
# In turns, so that a machine that changes its speed changes it for all.
_TURNS = 3
# Times too slow at the second run of a request, with which nothing more is tried.
_HOPELESS = 4.0
# Of the highest rate, where none was asked for.
_REHEARSED_LOAD = 0.7
# Rates for the report's plot, as shares of the highest.
_CURVE = (0.05, 0.2, 0.4, 0.6, 0.75, 0.9, 1.0)


class Entry:
    """A candidate in the search."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.engine: Engine | None = None
        self.watch: Stopwatch | None = None
        self.parity: Parity | None = None
        self.offer: Offer | None = None
        self.counts: tuple[int, ...] = ()
        self.largest = BATCHES[-1]  # Requests per Batch that it did not fail with
        # Times as long as alone and many in a row: beside others on the same machine, and at the rate.
        self.crowding = 1.0
        self.slowness = 1.0
        self.alone_s: float | None = None  # a request, at the second run
        self.why = ""

    @property
    def cost(self) -> Cost | None:
        """What was measured; None if nothing was."""
        if self.watch is None or self.watch.measured_s == 0:
            return None
        return self.watch.cost().scaled(self.crowding * self.slowness)

    def lose(self, why: str) -> None:
        """Leaves the race; its memory is given back."""
        self.why = why
        if self.watch is not None:
            self.watch.let_go()
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def fail(self, error: HeadraceError) -> None:
        """Leaves the race as one that cannot do it: no figure of it counts."""
        self.lose(f"cannot run: {str(error).splitlines()[0]}")
        self.watch = self.parity = self.offer = self.alone_s = None


class Search:
    """One search for one Model.

    Args:
        model: What to run.
        candidates: Which ways to try, in the order to try them.
        question: What is asked.
        budget_s: Seconds it may take.
        samples: Requests of the real traffic; None to make some.
        dims: Lengths of symbolic dims of those that are made.
        progress: Told what happens (words, and the share of the budget that is spent).
    """

    def __init__(
        self,
        model: Model,
        candidates: Sequence[Candidate],
        question: Question,
        budget_s: float,
        samples: Sequence[Request] | None = None,
        dims: dict[str, int] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self.model = model
        self.question = question
        self.entries = [Entry(candidate) for candidate in candidates]
        self.samples_from = ""
        self.reference = ""
        self._given = samples
        self._dims = dims
        self.dims: dict[str, int] | None = None
        self._budget_s = budget_s
        self._start = time.perf_counter()
        self._progress = progress or (lambda words, share: None)
        self._requests: list[Request] = []
        self._expected: list[Result] = []

    def run(self) -> tuple[Row, ...]:
        """Searches; every candidate comes back, best first.

        Raises:
            BackendUnavailable: No candidate compiles.
            ParityError: There is nothing to measure with.
        """
        try:
            self._screen()
            self._drop(_SCREEN_OFF, len(self.entries))
            for spend_s, off, most in _ROUNDS:
                self._round(spend_s, off, most)
            return self._rows()
        finally:
            for entry in self.entries:
                if entry.engine is not None:
                    entry.engine.close()

    @property
    def wall_s(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._start

    @property
    def measured_s(self) -> float:
        """Seconds in which Batches ran to be timed."""
        return sum(entry.watch.measured_s for entry in self.entries if entry.watch is not None)

    @property
    def _spent(self) -> bool:
        return self.wall_s >= self._budget_s

    def _say(self, words: str) -> None:
        self._progress(words, min(1.0, self.wall_s / self._budget_s))

    @property
    def _racing(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.why and entry.watch is not None]

    def _screen(self) -> None:
        first: dict[Candidate, Entry] = {}
        for entry in self.entries:
            if self._spent and first:
                entry.lose(f"not measured: the budget of {self._budget_s:g} s was spent")
                continue
            candidate = entry.candidate
            one = first.get(candidate.variant)
            if one is not None and (why := self._bound(entry, one)):
                entry.lose(why)
                continue
            self._say(f"{candidate}: compiling")
            if not self._open(entry):
                # Whatever is wrong with one thread count is wrong with all.
                first.setdefault(candidate.variant, entry)
                continue
            first.setdefault(candidate.variant, entry)
            self._say(f"{candidate}: a first look")
            self._screen_time(entry)

    def _bound(self, entry: Entry, one: Entry) -> str:
        """Why more threads need not be tried, going by what was measured with the fewest; empty if they must."""
        if one.parity is None or one.cost is None:
            return one.why and f"as on one thread: {one.why}"
        best = self._best()
        if best is None or best.offer is None:
            return ""
        threads = entry.candidate.threads
        times = one.candidate.threads / threads / _SCALING_SLACK * (1 - _SCREEN_OFF / 2)
        offer = offer_of(self.question, entry.candidate, one.cost.scaled(times), self._limits(one))
        if offer is not None and offer.key < best.offer.key:
            return ""
        even = f"dropped: even if {threads} threads were {threads} times as fast as one"
        if offer is None:
            return f"{even}, it would be too slow"
        if self.question.rate_rps is None:
            return f"{even}, a request would cost {offer.key[0] / best.offer.key[0]:.2f} times that of {best.candidate}"
        if offer.cores > best.offer.cores:
            return f"{even}, it would take {offer.cores:g} cores, where {best.offer.cores:g} do"
        return f"{even}, it would save no core and not be in time more often than {best.candidate}"

    def _open(self, entry: Entry) -> bool:
        """Compiles a candidate and checks its answers. False if it lost by that."""
        try:
            engine = entry.engine = entry.candidate.compile(self.model)
            if not self._requests:
                made = representative(engine, self._given, self._dims)
                self._requests, self.samples_from, self.dims = made
                self._expected = self._reference_results(engine, entry.candidate)
            watch = Stopwatch(engine, self._requests)
            watch.warm_up()
            entry.alone_s = watch.warm_up()
            if why := self._hopeless(entry.alone_s):
                entry.lose(why)
                return False
            parity = compare(engine.run_batch(self._requests), self._expected)
        except ParityError as error:
            if not self._requests:
                raise
            entry.lose(f"parity failed: {error}")
            return False
        except HeadraceError as error:
            entry.fail(error)
            return False
        tolerance = self.question.tolerance
        if tolerance is None:
            tolerance = DEFAULT_TOLERANCE if entry.candidate.lowered else _TOLERANCE_FP32
        if not parity.error <= tolerance:
            entry.parity = None
            entry.lose(
                f"parity failed: error {parity.error:.2g} in output {parity.output!r} against {self.reference}, "
                f"tolerance {tolerance:g}"
            )
            return False
        entry.watch, entry.parity = watch, parity
        return True

    def _hopeless(self, alone_s: float) -> str:
        """Why one that takes so long for a request need not even be checked, which would take as long again."""
        slo_s = self.question.slo_s
        if slo_s is not None and alone_s > _HOPELESS * slo_s:
            return f"too slow: a request takes {1e3 * alone_s:.3g} ms, the SLO is {1e3 * slo_s:g} ms"
        best = self._best()
        if best is None or best.watch is None or best.offer is None:
            return ""
        times = alone_s / cast(Cost, best.cost).seconds(1)
        if times > _HOPELESS * self.question.cores:
            return f"slower: a request takes {times:.0f} times as long as with {best.candidate}"
        return ""

    def _reference_results(self, engine: Engine, candidate: Candidate) -> list[Result]:
        """The right answers: the reference backend's, or, where that is too slow or lacks an op, the first engine's."""
        self._say("computing what is right")
        deadline = time.monotonic() + _REFERENCE_SHARE * self._budget_s
        try:
            with self.model.compile(backend="reference") as reference:
                executable = cast(Any, reference.executable).inner
                found = [executable.run_until(reference.check(one), deadline) for one in self._requests]
            self.reference = "the reference backend"
            return found
        except HeadraceError as error:
            if candidate.lowered:
                raise BackendUnavailable(
                    f"model {self.model.name!r}: the reference backend cannot say what is right ({error}), and no "
                    "candidate in fp32 can: expected one to compare the others with"
                ) from error
            reason = str(error).splitlines()[0][:120]
            self.reference = f"{candidate.backend} in fp32 (the reference backend: {reason})"
            return engine.run_batch(self._requests)

    def _screen_time(self, entry: Entry) -> None:
        watch = cast(Stopwatch, entry.watch)
        try:
            alone_s = min(watch.run(1) for _ in range(2))
            counts = [count for count in _SCREEN_SIZES if count == 1 or alone_s * count / 2 <= self._batch_s_max]
        except HeadraceError as error:
            entry.fail(error)
            return
        self._spend(entry, counts, _SCREEN_S)
        if not entry.why:
            self._judge(entry)

    def _spend(self, entry: Entry, counts: Sequence[int], seconds: float) -> None:
        """Times Batches of these sizes; where one fails, for want of memory say, smaller ones from then on."""
        sizes = [count for count in counts if count <= entry.largest]
        while True:
            try:
                cast(Stopwatch, entry.watch).spend(sizes, seconds, lambda: self._spent)
            except HeadraceError as error:
                if len(sizes) == 1:
                    entry.fail(error)
                    return
                del sizes[-1]
                entry.largest = sizes[-1]
            else:
                entry.counts = tuple(sizes)
                return

    @property
    def _batch_s_max(self) -> float:
        return _BATCH_S_MAX if self.question.slo_s is None else self.question.slo_s

    def _judge(self, entry: Entry) -> None:
        entry.offer = self._offer(entry)

    def _limits(self, entry: Entry) -> tuple[int, ...]:
        """Batch limits that the measured sizes say something about."""
        return tuple(count for count in BATCHES if count <= max(entry.counts))

    def _offer(self, entry: Entry, times: float = 1.0, *, final: bool = False) -> Offer | None:
        """What it would do if it took `times` as long as was measured."""
        cost = cast(Cost, entry.cost).scaled(times)
        return offer_of(self.question, entry.candidate, cost, self._limits(entry), final=final)

    def _best(self) -> Entry | None:
        able = [entry for entry in self._racing if entry.offer is not None]
        return min(able, key=lambda entry: cast(Offer, entry.offer).key, default=None)

    def _round(self, spend_s: float, off: float, most: int) -> None:
        """Measures what may still win, then lets the others go."""
        racing = self._racing
        if len(racing) == 1 and spend_s != _ROUNDS[-1][0]:
            return  # nobody to compare it with; the last round gives it what it needs
        for entry in racing:
            cost = cast(Cost, entry.cost)
            entry.counts = tuple(n for n in BATCHES if n == 1 or cost.seconds(n) <= self._batch_s_max)
        for turn in range(_TURNS):
            for entry in self._racing:
                if self._spent:
                    break
                self._say(f"{entry.candidate}: measuring Batches, turn {turn + 1} of {_TURNS}")
                self._spend(entry, entry.counts, spend_s / _TURNS)
        for entry in self._racing:
            self._judge(entry)
        self._drop(off, most)

    def _drop(self, off: float, most: int) -> None:
        """Lets go of those that would not win were they faster by `off` and all others slower, and keeps `most`."""
        safe: dict[Entry, tuple[float, ...]] = {}
        for entry in self._racing:
            slower = self._offer(entry, 1 + off)
            if slower is not None:
                safe[entry] = slower.key
        best = min(safe, key=lambda entry: safe[entry], default=self._best())
        if best is None:
            self._keep_nearest(most)
            return
        ranked: list[tuple[tuple[float, ...], Entry]] = [((-math.inf,), best)]
        for entry in self._racing:
            if entry is best:
                continue
            hope = self._offer(entry, 1 - off)
            if hope is None:
                entry.lose(self._too_slow(entry))
            elif best in safe and hope.key >= safe[best]:
                entry.lose(self._worse(entry, best, off))
            else:
                ranked.append((hope.key if entry.offer is None else entry.offer.key, entry))
        for _, entry in sorted(ranked, key=lambda item: item[0])[most:]:
            entry.lose(self._worse(entry, best, 0.0))

    def _keep_nearest(self, most: int) -> None:
        """Where nothing meets the SLO: those that come nearest stay, for the figures."""
        racing = sorted(self._racing, key=lambda entry: cast(Cost, entry.cost).seconds(1))
        for entry in racing[most:]:
            entry.lose(self._too_slow(entry))

    def _too_slow(self, entry: Entry) -> str:
        return too_slow(self.question, cast(Cost, entry.cost))

    def _worse(self, entry: Entry, best: Entry, off: float) -> str:
        if entry.offer is None or best.offer is None:
            return self._too_slow(entry)
        return worse(self.question, entry.candidate, entry.offer, best.candidate, best.offer, off)

    def _rows(self) -> tuple[Row, ...]:
        self._say("simulating")
        for entry in self._racing:
            entry.offer = self._offer(entry, final=True)
        for entry in self._racing:
            self._rehearse(entry)
        best = self._best()
        if best is not None and best.offer is not None and best.offer.prediction.replicas > 1:
            self._crowd(best)
        for entry in self._racing:
            if entry is not best:
                entry.lose(self._too_slow(entry) if best is None else self._worse(entry, best, 0.0))
        rows = [self._row(entry, entry is best) for entry in self.entries]
        return mark_frontier(rows)

    def _rehearse(self, entry: Entry) -> None:
        """Lets a real Batcher run the load for a moment: Batches after a pause take longer than many in a row."""
        if entry.offer is None or self._spent:
            return
        found = entry.offer.prediction
        share = 1.0 if self.question.rate_rps is not None else _REHEARSED_LOAD
        self._say(f"{entry.candidate}: rehearsing")
        rate_rps = share * found.rate_rps / found.replicas
        engine, cost = cast(Any, entry.engine), cast(Cost, entry.cost)
        try:
            entry.slowness = rehearse(engine, cost, self._requests, found.max_batch, rate_rps)
        except HeadraceError as error:
            entry.fail(error)
            return
        entry.offer = self._offer(entry, final=True)

    def _crowd(self, entry: Entry) -> None:
        """Measures how much slower an Engine is beside others on the same machine, and counts that in."""
        offer, candidate = cast(Offer, entry.offer), entry.candidate
        beside = min(offer.prediction.replicas, self.question.cores // candidate.threads)
        if beside < 2 or candidate.on_gpu or self._spent:
            return
        self._say(f"{candidate}: {beside} replicas side by side")
        others = []
        try:
            others = [candidate.compile(self.model) for _ in range(beside - 1)]
            entry.crowding = slowdown(cast(Any, entry.engine), others, self._requests[0])
        except HeadraceError:
            return  # no memory, say: what was measured alone has to do
        finally:
            for other in others:
                other.close()
        if entry.crowding > 1:
            beside_others = self._offer(entry, final=True)
            entry.offer = beside_others or entry.offer

    def _row(self, entry: Entry, chosen: bool) -> Row:
        cost, offer, parity = entry.cost, entry.offer, entry.parity
        row = Row(entry.candidate, "chosen" if chosen else "lost", entry.why)
        if parity is not None:
            row = replace(row, error=parity.error, error_output=parity.output)
        if cost is None:
            return replace(row, alone_s=entry.alone_s)
        slo_s = self.question.slo_s
        row = replace(
            row, fixed_s=cost.fixed_s, per_request_s=cost.per_request_s, batches=cost.runs,
            alone_s=simulate(cost, 1, 1, 1e-3 / cost.seconds(1), slo_s).p99_s,
        )  # fmt: skip
        if offer is None:
            return row
        limit = offer.prediction.max_batch
        highest = highest_rate(cost, limit, slo_s)
        points = [simulate(cost, limit, 1, share * highest, slo_s) for share in _CURVE if highest > 0]
        curve = tuple((point.rate_rps, point.p50_s, point.p99_s) for point in points)
        return replace(row, prediction=offer.prediction, cores=offer.cores, rate_max_rps=highest, curve=curve)
