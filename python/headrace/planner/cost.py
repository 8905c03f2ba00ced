"""What Batches cost on one candidate, measured: a + b * work, how far each size is off that line, and the noise."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace import _core
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.backend import Executable, Request
    from headrace.engine import Engine

# A rehearsal has so many requests, if that takes neither less nor more than these seconds, ...
_REHEARSAL_REQUESTS = 100
_REHEARSAL_S_MIN = 1.0
_REHEARSAL_S_MAX = 3.0
# ... and is sent by one thread of this process, which must not become what is measured.
_REHEARSAL_RPS_MAX = 1000.0
# Beyond that, something else was measured.
_SLOWNESS = (0.7, 2.0)
# A Batch is timed so often at least, whatever it takes.
_RUNS_MIN = 3


@dataclass(frozen=True)
class Cost:
    """Seconds of a Batch: (``fixed_s`` + ``per_request_s`` * sizes) * ``factors[n]`` * a random one of ``ratios``.

    Attributes:
        fixed_s: Seconds per Batch.
        per_request_s: Seconds per Request of mean work.
        factors: Requests per Batch -> how far such Batches are off the line; measured sizes only.
        ratios: What single Batches took over that.
        sizes: Work of each sample over their mean; empty if all are the same.
        runs: How many Batches were timed.
    """

    fixed_s: float
    per_request_s: float
    factors: Mapping[int, float]
    ratios: tuple[float, ...]
    sizes: tuple[float, ...] = ()
    runs: int = 0

    def seconds(self, count: int) -> float:
        """Of a Batch of `count` Requests of mean work."""
        return (self.fixed_s + count * self.per_request_s) * self.factor(count)

    def factor(self, count: int) -> float:
        """How far Batches of `count` are off the line; between measured sizes, between theirs."""
        known = sorted(self.factors)
        if not known:
            return 1.0
        return float(np.interp(count, known, [self.factors[size] for size in known]))

    def scaled(self, times: float) -> Cost:
        """The same, taking `times` as long."""
        return Cost(self.fixed_s * times, self.per_request_s * times, self.factors, self.ratios, self.sizes, self.runs)


class Stopwatch:
    """Times Batches of one Engine, whose Requests are drawn from the samples.

    Args:
        engine: Runs them.
        samples: Requests, as many kinds as there are.
        seed: Of the draws.
    """

    def __init__(self, engine: Engine, samples: Sequence[Request], seed: int = 0) -> None:
        self._executable: Executable | None = engine.executable
        self._samples = [engine.check(sample) for sample in samples]
        works = np.array([max(1, engine.work(sample)) for sample in self._samples], dtype=float)
        self._mean_work = float(works.mean())
        self._sizes = works / self._mean_work
        self._rng = np.random.default_rng(seed)
        self._runs: dict[int, list[tuple[float, float]]] = {}  # Requests per Batch -> (sizes together, seconds)

    @property
    def measured_s(self) -> float:
        """Seconds in which Batches ran."""
        return sum(seconds for runs in self._runs.values() for _, seconds in runs)

    def warm_up(self) -> float:
        """One untimed Batch of one Request: buffers are made, pages are touched. Returns its seconds all the same."""
        return self._timed(self._samples[:1])

    def run(self, count: int) -> float:
        """Times one Batch of `count` Requests; seconds."""
        drawn = self._rng.integers(0, len(self._samples), count)
        seconds = self._timed([self._samples[index] for index in drawn])
        self._runs.setdefault(count, []).append((float(self._sizes[drawn].sum()), seconds))
        return seconds

    def spend(self, counts: Sequence[int], seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Times Batches of all these sizes in random order for so long, each at least a few times.

        Args:
            counts: Requests per Batch.
            seconds: How long, all together. Sizes get equal shares of the time, so that large ones run less often.
            stop: Asked between Batches; True ends it early.
        """
        left = {count: seconds / len(counts) for count in counts}
        runs = dict.fromkeys(counts, 0)
        while True:
            due = [count for count in counts if left[count] > 0 or runs[count] < _RUNS_MIN]
            if not due:
                return
            for count in self._rng.permutation(due):
                left[int(count)] -= self.run(int(count))
                runs[int(count)] += 1
                if stop():
                    return

    def let_go(self) -> None:
        """Gives up the Engine and the Requests: nothing more is timed, and the figures stay."""
        self._executable, self._samples = None, []

    def _timed(self, batch: Sequence[Request]) -> float:
        assert self._executable is not None, "got a Batch to time after let_go()"
        start = time.perf_counter()
        self._executable.run_batch(batch)
        return time.perf_counter() - start

    def cost(self) -> Cost:
        """What was measured so far; at least one Batch must have run."""
        medians = {count: statistics.median(s for _, s in runs) for count, runs in self._runs.items()}
        alike = bool(np.all(self._sizes == 1))
        if alike:
            points = [(float(count), seconds) for count, seconds in sorted(medians.items())]
        else:
            # Single runs, but for those that something else disturbed.
            points = [
                (size, seconds)
                for count, runs in sorted(self._runs.items())
                for size, seconds in runs
                if seconds < 3 * medians[count]
            ]
        fixed_s, per_request_s = _core.fit_cost(points)
        predicted = {count: [fixed_s + per_request_s * size for size, _ in runs] for count, runs in self._runs.items()}
        relative = {
            count: [seconds / one for (_, seconds), one in zip(runs, predicted[count], strict=True)]
            for count, runs in self._runs.items()
        }
        factors = {count: statistics.median(found) for count, found in relative.items()}
        ratios = tuple(one / factors[count] for count, found in relative.items() for one in found)
        sizes = () if alike else tuple(float(size) for size in self._sizes)
        return Cost(fixed_s, per_request_s, factors, ratios, sizes, len(ratios))


def slowdown(engine: Engine, others: Sequence[Engine], request: Request, seconds: float = 0.3) -> float:
    """How many times as long single Requests take an Engine while others run beside it; 1 at least.

    Args:
        engine: The one that is timed.
        others: Called all the time from threads of their own.
        request: What all of them run.
        seconds: How long it is timed alone, and how long beside the others.

    Raises:
        HeadraceError: One of them failed.
    """
    alone_s = _median_call(engine, request, seconds)
    stopped = threading.Event()
    failures: list[HeadraceError] = []

    def call_until_stopped(other: Engine) -> None:
        try:
            while not stopped.is_set():
                other.run_batch([request])
        except HeadraceError as error:
            failures.append(error)

    threads = [threading.Thread(target=call_until_stopped, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    try:
        beside_s = _median_call(engine, request, seconds)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return max(1.0, beside_s / alone_s)


def rehearse(engine: Engine, cost: Cost, samples: Sequence[Request], max_batch: int, rate_rps: float) -> float:
    """How many times as long Batches take in a Batcher under a load as they were measured to.

    Args:
        engine: Runs the Batches.
        cost: What was measured of it.
        samples: Requests, taken in turn.
        max_batch: Requests per Batch at most.
        rate_rps: Requests per second, at random times; beyond what this process can send, as many as it can.
    """
    from headrace.batcher import Batcher

    rate_rps = min(rate_rps, _REHEARSAL_RPS_MAX)
    lasts_s = min(_REHEARSAL_S_MAX, max(_REHEARSAL_S_MIN, _REHEARSAL_REQUESTS / rate_rps))
    gaps_s = np.random.default_rng(0).exponential(1 / rate_rps, max(2, round(lasts_s * rate_rps)))
    futures = []
    with Batcher(engine, max_batch=max_batch, max_queue=len(gaps_s)) as batcher:
        start = time.perf_counter()
        for index, due_s in enumerate(np.cumsum(gaps_s)):
            time.sleep(max(0.0, start + due_s - time.perf_counter()))
            futures.append(batcher.submit(samples[index % len(samples)]))
        for future in futures:
            future.result()
        stats = batcher.stats()
    noise = statistics.fmean(cost.ratios)
    expected_s = sum(count * cost.seconds(size) * noise for size, count in enumerate(stats["batch_sizes"]) if count)
    return float(np.clip(sum(stats["batch_seconds"]) / expected_s, *_SLOWNESS))


def _median_call(engine: Engine, request: Request, seconds: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _RUNS_MIN:
        start = time.perf_counter()
        engine.run_batch([request])
        times.append(time.perf_counter() - start)
    return statistics.median(times)
