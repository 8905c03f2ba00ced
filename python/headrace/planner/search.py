"""The search: little time for all candidates, more for those that may still win, most for the last few.

1. Each way to compile (backend, precision, ...) on one thread: does it compile, are its answers right? A few Batches.
2. More threads, where even perfect scaling of what was measured on one could beat the best so far.
3. Halving: all Batch sizes for those whose cost, less what the measurement may be off, could still beat the best.
4. A rehearsal of the best, and replicas of it side by side. Where these show that another of the last ones is better,
   the same of that one; where it is one that had lost, that races again.

A candidate that is dropped says by which bound. None is dropped because it was not looked at, unless the time was up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from headrace.errors import HeadraceError, ParityError
from headrace.planner.answers import Answers
from headrace.planner.cost import RUNS_MIN, Cost, Stopwatch
from headrace.planner.entry import Entry
from headrace.planner.offers import BATCHES, Offer, mark_frontier, offer_of, too_slow, worse
from headrace.planner.rehearsal import rehearse, slowdown
from headrace.planner.report import Question, Row
from headrace.planner.space import Candidate, lowers

if TYPE_CHECKING:
    from headrace.backend import Request
    from headrace.engine import Engine
    from headrace.model import Model

# Threads may share caches so well that two are a little more than twice as fast as one.
_SCALING_SLACK = 1.1
# Without an SLO, larger Batches than take so long are not looked at.
_BATCH_S_MAX = 0.5
# The reference backend is slow: it gets this share of the budget.
_REFERENCE_SHARE = 0.15
_SCREEN_SIZES = (1, 8)
_SCREEN_S = 0.1
# How far a cost may be off after the first look, as a share of it, and after a single Batch of each size.
_SCREEN_OFF = 0.3
_ONCE_OFF = 0.5
# (seconds per candidate, how far its cost may be off afterwards, how many go on)
_ROUNDS = ((0.4, 0.15, 4), (0.6, 0.1, 2), (1.2, 0.05, 2))
# In turns, so that a machine that changes its speed changes it for all.
_TURNS = 3
# Times too slow at the second run of a request, with which nothing more is tried.
_HOPELESS = 4.0
# Of the highest rate, where none was asked for.
_REHEARSED_LOAD = 0.7


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

    Attributes:
        entries: The candidates.
        answers: What they must answer, and to which Requests.
    """

    def __init__(
        self,
        model: Model,
        candidates: Sequence[Candidate],
        question: Question,
        budget_s: float,
        samples: Sequence[Request] | None = None,
        dims: Mapping[str, int] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self.model = model
        self.question = question
        self.entries = [Entry(candidate) for candidate in candidates]
        self._candidates = frozenset(candidates)
        self.answers = Answers(model, samples, dims, question.tolerance, _REFERENCE_SHARE * budget_s)
        self._budget_s = budget_s
        self._start = time.perf_counter()
        self._progress = progress or (lambda words, share: None)
        # In rehearsals, side by side, and of those that started over.
        self._measured_s = 0.0
        # Had lost to one that turned out to be worse than it, and have raced again.
        self._overtook: set[Entry] = set()

    def run(self) -> tuple[Row, ...]:
        """Searches; every candidate comes back, best first.

        Raises:
            BackendUnavailable: No candidate compiles.
            ParityError: There is nothing to measure with.
        """
        try:
            self._screen(self.entries)
            self._race()
            while losers := self._to_revive():
                self._screen(losers)
                self._race()
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
        """Seconds in which Batches ran to be timed, rehearsals included."""
        return self._measured_s + sum(entry.watch.measured_s for entry in self.entries if entry.watch is not None)

    @property
    def _spent(self) -> bool:
        return self.wall_s >= self._budget_s

    def _say(self, words: str) -> None:
        self._progress(words, min(1.0, self.wall_s / self._budget_s))

    @property
    def _racing(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.why and entry.watch is not None]

    def _screen(self, entries: Sequence[Entry]) -> None:
        """A first look at each, at those with the fewest threads first."""
        first: dict[Candidate, Entry] = {}
        for entry in entries:
            if self._spent and first:
                entry.lose(f"not measured: the budget of {self._budget_s:g} s was spent")
                continue
            candidate = entry.candidate
            one = first.get(candidate.variant)
            if one is not None and (why := self._bound(entry, one)):
                entry.lose(why, one.beaten_by if one.why else self._best())
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
        offer = offer_of(self.question, entry.candidate, one.cost.scaled(times), one.limits)
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
            if entry.candidate.lowered and not lowers(engine) and entry.candidate.plain in self._candidates:
                entry.lose("the same as in fp32: none of its ops runs otherwise")
                return False
            if not self.answers.requests:
                self._say("computing what is right")
            self.answers.prepare(engine, entry.candidate)
            watch = Stopwatch(engine, self.answers.requests)
            watch.warm_up()
            entry.alone_s = watch.warm_up()
            if self._is_hopeless(entry):
                return False
            parity = self.answers.compare(engine)
        except ParityError as error:
            if not self.answers.requests:
                raise
            entry.lose(f"parity failed: {error}")
            return False
        except HeadraceError as error:
            entry.fail(error)
            return False
        if why := self.answers.refusal(entry.candidate, parity):
            entry.lose(why)
            return False
        entry.watch, entry.parity = watch, parity
        return True

    def _is_hopeless(self, entry: Entry) -> bool:
        """Has one lose that takes so long for a request that it need not be checked, which would take as long again."""
        slo_s, alone_s, best = self.question.slo_s, cast(float, entry.alone_s), self._best()
        if slo_s is not None and alone_s > _HOPELESS * slo_s:
            entry.lose(f"too slow: a request takes {1e3 * alone_s:.3g} ms, the SLO is {1e3 * slo_s:g} ms")
        elif best is not None and alone_s > _HOPELESS * self.question.cores * cast(Cost, best.cost).seconds(1):
            times = alone_s / cast(Cost, best.cost).seconds(1)
            entry.lose(f"slower: a request takes {times:.0f} times as long as with {best.candidate}", best)
        return bool(entry.why)

    def _screen_time(self, entry: Entry) -> None:
        watch = cast(Stopwatch, entry.watch)
        try:
            alone_s = min(watch.run(1) for _ in range(2))
            counts = [count for count in _SCREEN_SIZES if count == 1 or alone_s * count / 2 <= self._batch_s_max]
        except HeadraceError as error:
            entry.fail(error)
            return
        entry.spend(counts, 0.0, lambda: self._spent, 1)
        if not entry.why and not self._is_far_behind(entry):
            entry.spend(counts, _SCREEN_S, lambda: self._spent)
        if not entry.why:
            entry.offer = entry.offered(self.question)

    def _is_far_behind(self, entry: Entry) -> bool:
        """Has one lose that one Batch of each size shows to be so much worse than the best that more would be waste."""
        best = self._best()
        if best is None:
            return False
        hope = entry.offered(self.question, 1 - _ONCE_OFF)
        safe = best.offered(self.question, 1 + _SCREEN_OFF)
        if safe is None or (hope is not None and hope.key < safe.key):
            return False
        entry.offer = entry.offered(self.question)
        entry.lose(self._worse(entry, best, _ONCE_OFF), best)
        return True

    @property
    def _batch_s_max(self) -> float:
        return _BATCH_S_MAX if self.question.slo_s is None else self.question.slo_s

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
                entry.spend(entry.counts, spend_s / _TURNS, lambda: self._spent, RUNS_MIN // _TURNS)
        for entry in self._racing:
            entry.offer = entry.offered(self.question)
        self._drop(off, most)

    def _drop(self, off: float, most: int) -> None:
        """Lets go of those that would not win were they faster by `off` and all others slower, and keeps `most`."""
        safe: dict[Entry, tuple[float, ...]] = {}
        for entry in self._racing:
            slower = entry.offered(self.question, 1 + off)
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
            hope = entry.offered(self.question, 1 - off)
            if hope is None:
                entry.lose(self._too_slow(entry))
            elif best in safe and hope.key >= safe[best]:
                entry.lose(self._worse(entry, best, off), best)
            else:
                ranked.append((hope.key if entry.offer is None else entry.offer.key, entry))
        for _, entry in sorted(ranked, key=lambda item: item[0])[most:]:
            entry.lose(self._worse(entry, best, 0.0), best)

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

    def _race(self) -> None:
        """From a first look at all to a rehearsal of the last, and of the best as many as it would be."""
        self._drop(_SCREEN_OFF, len(self.entries))
        for spend_s, off, most in _ROUNDS:
            self._round(spend_s, off, most)
        self._say("simulating")
        for entry in self._racing:
            entry.offer = entry.offered(self.question, final=True)
        while (best := self._best()) is not None and (self._rehearse(best) or self._crowd(best)):
            pass  # another may be the best now

    def _rehearse(self, entry: Entry) -> bool:
        """Lets a real Batcher run the load for a moment, and counts in what shows only there.

        Returns:
            Whether it was rehearsed now: it is once.
        """
        if entry.rehearsal is not None or self._spent:
            return False
        found = cast(Offer, entry.offer).prediction
        share = 1.0 if self.question.rate_rps is not None else _REHEARSED_LOAD
        self._say(f"{entry.candidate}: rehearsing")
        rate_rps = share * found.rate_rps / found.replicas
        engine, cost, start = cast("Engine", entry.engine), cast(Cost, entry.cost), time.perf_counter()
        try:
            entry.rehearsal = rehearse(engine, cost, self.answers.requests, found.max_batch, rate_rps)
        except HeadraceError as error:
            entry.fail(error)
            return True
        finally:
            self._measured_s += time.perf_counter() - start
        entry.offer = entry.offered(self.question, final=True)
        return True

    def _to_revive(self) -> list[Entry]:
        """Those that lost to one that is worse than they are after all: they start over."""
        if self._spent:
            return []
        best = self._best()
        losers = [entry for entry in self.entries if entry.beaten_by is not None]
        if best is None:
            revived = [entry for entry in losers if cast(Entry, entry.beaten_by).offer is None]
        else:
            revived = [entry for entry in losers if self._overtakes(entry, best)]
            self._overtook.update(revived)
        for entry in revived:
            self._measured_s += entry.watch.measured_s if entry.watch is not None else 0.0
            entry.start_over()
        return revived

    def _overtakes(self, entry: Entry, best: Entry) -> bool:
        """Whether one that lost may be better than what the best turned out to be beside others of its kind; once."""
        times = best.crowding or 1.0
        if times <= 1 or entry in self._overtook:
            return False
        if entry.offer is not None:
            # Its replicas would be in each other's way as well.
            hope = entry.offered(self.question, times if entry.offer.prediction.replicas > 1 else 1.0)
            return hope is not None and hope.key < cast(Offer, best.offer).key
        alike = (one for one in self.entries if one.candidate.variant == entry.candidate.variant)
        one = next((one for one in alike if one.cost is not None), None)
        return entry.cost is None and one is not None and not self._bound(entry, one)

    def _rows(self) -> tuple[Row, ...]:
        best = self._best()
        for entry in self._racing:
            if entry is not best:
                entry.lose(self._too_slow(entry) if best is None else self._worse(entry, best, 0.0))
        return mark_frontier([entry.row(self.question, chosen=entry is best) for entry in self.entries])

    def _crowd(self, entry: Entry) -> bool:
        """Measures how much slower an Engine is beside others on the same machine, and counts that in.

        Returns:
            Whether it was measured now: it is once.
        """
        offer, candidate = cast(Offer, entry.offer), entry.candidate
        beside = min(offer.prediction.replicas, self.question.cores // candidate.threads)
        if entry.crowding is not None or beside < 2 or candidate.on_gpu or self._spent:
            return False
        self._say(f"{candidate}: {beside} replicas side by side")
        others = []
        entry.crowding = 1.0
        try:
            others = [candidate.compile(self.model) for _ in range(beside - 1)]
            start = time.perf_counter()
            entry.crowding = slowdown(cast("Engine", entry.engine), others, self.answers.requests[0])
            self._measured_s += time.perf_counter() - start
        except HeadraceError:
            return True  # no memory, say: what was measured alone has to do
        finally:
            for other in others:
                other.close()
        entry.offer = entry.offered(self.question, final=True)
        return True
