"""What Batches cost on one candidate, measured: a + b * work, how far each size is off that line, and its noise."""

from __future__ import annotations

import bisect
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headrace import _core

if TYPE_CHECKING:
    from headrace.backend import Executable, Request
    from headrace.engine import Engine

# A Batch is timed so often at least, whatever it takes.
RUNS_MIN = 3
# What single Batches of a size took is kept as so many numbers at most.
_RATIOS_MAX = 256


@dataclass(frozen=True)
class Cost:
    """Seconds of a Batch of n: (``fixed_s`` + ``per_request_s`` * sizes) * ``factors[n]`` * a random one of its ratios.

    Attributes:
        fixed_s: Seconds per Batch.
        per_request_s: Seconds per Request of mean work.
        factors: Requests per Batch -> how far such Batches are off the line; measured sizes only.
        ratios: Requests per Batch -> what single ones of them took over that. What disturbs a machine for a moment
            doubles the time of a short Batch and is nothing to a long one.
        sizes: Work of each sample over their mean; empty if all are the same.
        runs: How many Batches were timed.
        wake_s: What a Batch takes longer that an idle Engine runs; see `headrace.planner.rehearsal`.
        outside_s: Of a request's latency, what is spent neither in the queue nor in a Batch.
    """

    fixed_s: float
    per_request_s: float
    factors: Mapping[int, float]
    ratios: Mapping[int, tuple[float, ...]]
    sizes: tuple[float, ...] = ()
    runs: int = 0
    wake_s: float = 0.0
    outside_s: float = 0.0

    def seconds(self, count: int) -> float:
        """Of a Batch of `count` Requests of mean work, one of many in a row."""
        return (self.fixed_s + count * self.per_request_s) * self.factor(count)

    def factor(self, count: int) -> float:
        """How far Batches of `count` are off the line; between measured sizes, between theirs."""
        known = sorted(self.factors)
        if not known:
            return 1.0
        return float(np.interp(count, known, [self.factors[size] for size in known]))

    def ratios_of(self, count: int) -> tuple[float, ...]:
        """The ratios of Batches of `count`: those of the nearest size that was measured."""
        known = sorted(self.ratios)
        if not known:
            return ()
        after = min(bisect.bisect_left(known, count), len(known) - 1)
        before = max(0, after - 1)
        return self.ratios[known[before if count - known[before] <= known[after] - count else after]]

    def noise(self, count: int) -> float:
        """The mean of those: how many times as long as `seconds` such Batches take on average."""
        return statistics.fmean(self.ratios_of(count) or (1.0,))

    def up_to(self, most: int) -> tuple[list[float], list[tuple[float, ...]]]:
        """`factor` and `ratios_of` of 0 to `most` Requests, at once."""
        known = sorted(self.factors) or [1]
        factors = np.interp(np.arange(most + 1), known, [self.factors.get(size, 1.0) for size in known])
        return factors.tolist(), [self.ratios_of(count) for count in range(most + 1)]

    def scaled(self, times: float) -> Cost:
        """The same, Batches taking `times` as long."""
        return replace(
            self, fixed_s=self.fixed_s * times, per_request_s=self.per_request_s * times, wake_s=self.wake_s * times
        )


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

    def spend(
        self, counts: Sequence[int], seconds: float, stop: Callable[[], bool] = lambda: False, least: int = RUNS_MIN
    ) -> None:
        """Times Batches of all these sizes in random order for so long.

        Args:
            counts: Requests per Batch.
            seconds: How long, all together. Sizes get equal shares of the time, so that large ones run less often.
            stop: Asked between Batches; True ends it early.
            least: So many Batches of each size, whatever they take.
        """
        left = {count: seconds / len(counts) for count in counts}
        runs = dict.fromkeys(counts, 0)
        while True:
            due = [count for count in counts if left[count] > 0 or runs[count] < least]
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
        ratios = {count: _thinned(np.array(found) / factors[count]) for count, found in relative.items()}
        sizes = () if alike else tuple(float(size) for size in self._sizes)
        return Cost(fixed_s, per_request_s, factors, ratios, sizes, sum(map(len, relative.values())))


def _thinned(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """`values`, in order; of many, the means of equally many neighbours, which keep the mean of all."""
    values = np.sort(values)
    if len(values) <= _RATIOS_MAX:
        return tuple(values.tolist())
    return tuple(float(part.mean()) for part in np.array_split(values, _RATIOS_MAX))
