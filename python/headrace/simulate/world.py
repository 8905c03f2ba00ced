"""Runs one policy through one trace, on simulated replicas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headrace import _core
from headrace.errors import ConfigError
from headrace.simulate.traces import Trace

# The utilisation every policy starts the trace with.
_START_UTILISATION = 0.7


@dataclass(frozen=True)
class Service:
    """What a replica can do: a Batch of n takes ``fixed_s + n * per_request_s``, times a random one of `ratios`.

    Attributes:
        fixed_s: Seconds per Batch. The Batcher reports it as ``cost_fixed_s``.
        per_request_s: Seconds per Request. ``cost_per_work_s`` times the work of a Request.
        ratios: Measured over predicted times of Batches; () if all take as long as predicted.
        wake_s: What a Batch takes longer that an idle Engine runs: its thread wakes, its caches are cold.
        max_batch: Requests per Batch at most.
        max_queue: Requests that may wait in a replica.
        slo_s: The deadline of a request, and what its latency is held against.
        cold_start_s: From a replica being asked for until it takes requests.
    """

    fixed_s: float = 0.0
    per_request_s: float = 0.01
    ratios: tuple[float, ...] = ()
    max_batch: int = 64
    max_queue: int = 1024
    slo_s: float = 0.1
    cold_start_s: float = 5.0
    wake_s: float = 0.0

    @property
    def capacity_rps(self) -> float:
        """Requests per second that full Batches sustain within the SLO, as the Batcher reckons."""
        jobs = float(self.max_batch)
        if self.per_request_s > 0:
            jobs = min(jobs, max(1.0, (self.slo_s / 2 - self.fixed_s) / self.per_request_s))
        slowness = float(np.mean(self.ratios)) if self.ratios else 1.0
        return jobs / ((self.fixed_s + jobs * self.per_request_s) * slowness)


@dataclass(frozen=True)
class Sample:
    """What can be measured at the end of a tick.

    Attributes:
        now_s: Simulated time.
        tick_s: Since the last one.
        running: Replicas that take requests.
        target: Replicas asked for.
        arrived: Requests that came in the tick.
        busy_s: Engine seconds of the Batches begun in the tick, over all replicas.
        ongoing: Requests held by the balancer, queued or running.
        queue_delay_s: Recent wait, exceeded by one replica in ten.
    """

    now_s: float
    tick_s: float
    running: int
    target: int
    arrived: int
    busy_s: float
    ongoing: float
    queue_delay_s: float


class Policy(Protocol):
    """Says after every tick how many replicas there should be.

    Attributes:
        name: For tables and plots.
        bounds: The least and the most replicas; a simulation begins within them, sized for the trace's first rate.
    """

    name: str
    bounds: tuple[int, int]

    def __call__(self, sample: Sample) -> int:
        """The target from now on."""
        ...


@dataclass
class Outcome:
    """What one policy made of one trace.

    Attributes:
        policy: Its name.
        counts: arrived, ok, late (of those ok), refused, expired, held (came while no replica ran), batches, changes
            (of the target).
        replica_hours: Paid for: from being asked for until drained.
        quantiles_s: ``p50``, ``p99``, ``p999``, from arrival at the balancer to the answer, of those answered.
        series: Per `series_s` seconds: ``at_s``, ``rate_rps``, ``running``, ``target`` (means), ``p99_s`` (NaN where
            none was answered), ``attainment``, ``replica_hours``.
    """

    policy: str
    counts: dict[str, int]
    replica_hours: float
    quantiles_s: dict[str, float]
    series_s: float
    series: dict[str, list[float]] = field(default_factory=dict)

    @property
    def attainment(self) -> float:
        """The share of all requests that came which was answered within the SLO."""
        counts = self.counts
        return (counts["ok"] - counts["late"]) / counts["arrived"] if counts["arrived"] else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the series included."""
        return {
            "policy": self.policy,
            "attainment": self.attainment,
            "replica_hours": self.replica_hours,
            **self.counts,
            **{f"{name}_s": value for name, value in self.quantiles_s.items()},
            "series_s": self.series_s,
            "series": self.series,
        }


def simulate(
    trace: Trace,
    service: Service,
    policy: Policy,
    *,
    tick_s: float = 1.0,
    series_s: float = 60.0,
    seed: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    """Runs a policy through a trace. The same arguments give the same outcome.

    Args:
        trace: What is offered.
        service: What a replica can do.
        policy: Asked after every tick.
        tick_s: How often that is. Between two ticks every request and every Batch is simulated by itself.
        series_s: Resolution of the outcome's series.
        seed: Of arrivals, routing and service times.
        progress: Called with the share done.

    Raises:
        ConfigError: A number makes no sense.
    """
    if not 0 < tick_s <= series_s:
        raise ConfigError(f"simulate: got tick_s={tick_s:g} and series_s={series_s:g}, expected 0 < tick_s <= series_s")
    return _Run(trace, service, policy, tick_s, series_s, seed).run(progress or (lambda share: None))


class _Run:
    """One simulation: the pool, the arrivals, and what is written down."""

    def __init__(
        self, trace: Trace, service: Service, policy: Policy, tick_s: float, series_s: float, seed: int
    ) -> None:
        self.trace, self.policy, self.tick_s, self.series_s = trace, policy, tick_s, series_s
        self.pool = _core.SimulatedPool(
            fixed_s=service.fixed_s, per_request_s=service.per_request_s, ratios=list(service.ratios),
            max_batch=service.max_batch, max_queue=service.max_queue, deadline_s=service.slo_s,
            objective_s=service.slo_s, cold_start_s=service.cold_start_s, held_max=1 << 20, choices=2, seed=seed,
            wake_s=service.wake_s,
        )  # fmt: skip
        low, high = policy.bounds
        needed = math.ceil(trace.rates[0] / (service.capacity_rps * _START_UTILISATION))
        self.target = max(low, min(high, needed))
        self.pool.start_now(self.target)
        self.changes = 0
        self.latencies = np.zeros(len(BOUNDS_S) - 1, np.int64)
        self.totals = dict.fromkeys(_COUNTS, 0)
        self.replica_s = 0.0
        self.series: dict[str, list[float]] = {name: [] for name in _SERIES}
        self.running_sum = self.target_sum = 0.0
        self.ticks_in_series = 0
        self.seen = (0, 0.0)

    def run(self, progress: Callable[[float], None]) -> Outcome:
        ticks = math.ceil(self.trace.seconds / self.tick_s - 1e-9)
        per_series = max(1, round(self.series_s / self.tick_s))
        for tick in range(ticks):
            self.offer(tick * self.tick_s, (tick + 1) * self.tick_s)
            self.decide()
            if (tick + 1) % per_series == 0 or tick + 1 == ticks:
                self.close_series()
                progress((tick + 1) / ticks)
        replica_s = self.replica_s
        # What still waits is answered, but nobody pays for a policy's leftovers.
        self.pool.advance(ticks * self.tick_s + 3600.0)
        self.add(self.pool.take())
        self.replica_s = replica_s
        return Outcome(
            self.policy.name,
            {**self.totals, "changes": self.changes},
            self.replica_s / 3600,
            {name: quantile(self.latencies, share) for name, share in QUANTILES.items()},
            self.series_s,
            self.series,
        )

    def offer(self, from_s: float, to_s: float) -> None:
        """What comes between two times, from the trace's arrivals or by its rates."""
        trace = self.trace
        if trace.arrivals_s is not None:
            first, last = np.searchsorted(trace.arrivals_s, (from_s, to_s))
            self.pool.offer(trace.arrivals_s[first:last])
            self.pool.advance(to_s)
            return
        now = from_s
        while now < to_s - 1e-9:
            place = int(now / trace.interval_s + 1e-9)
            end = min(to_s, (place + 1) * trace.interval_s)
            if place < len(trace.rates):
                self.pool.offer_poisson(float(trace.rates[place]), end)
            self.pool.advance(end)
            now = end

    def decide(self) -> None:
        window, state = self.pool.window, self.pool.state()
        arrived, busy_s = self.seen
        sample = Sample(
            self.pool.now, self.tick_s, state.running, self.target,
            window.arrived - arrived, window.busy_s - busy_s, state.ongoing, state.delay_high_s,
        )  # fmt: skip
        self.seen = (window.arrived, window.busy_s)
        self.running_sum += state.running
        self.target_sum += self.target
        self.ticks_in_series += 1
        target = self.policy(sample)
        if target != self.target:
            self.pool.scale(target)
            self.target, self.changes = target, self.changes + 1

    def add(self, window: _core.PoolWindow) -> npt.NDArray[np.int64]:
        counts: npt.NDArray[np.int64] = window.latencies
        self.latencies += counts
        for name in _COUNTS:
            self.totals[name] += getattr(window, name)
        self.replica_s += window.replica_s
        return counts

    def close_series(self) -> None:
        window = self.pool.take()
        self.seen = (0, 0.0)
        counts = self.add(window)
        seconds = self.ticks_in_series * self.tick_s
        row = {
            "at_s": self.pool.now - seconds,
            "rate_rps": window.arrived / seconds,
            "running": self.running_sum / self.ticks_in_series,
            "target": self.target_sum / self.ticks_in_series,
            "p99_s": quantile(counts, 0.99),
            "attainment": (window.ok - window.late) / window.arrived if window.arrived else 1.0,
            "replica_hours": window.replica_s / 3600,
        }
        for name, value in row.items():
            self.series[name].append(value)
        self.running_sum = self.target_sum = 0.0
        self.ticks_in_series = 0


_COUNTS = ("arrived", "ok", "late", "refused", "expired", "held", "batches")
_SERIES = ("at_s", "rate_rps", "running", "target", "p99_s", "attainment", "replica_hours")
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
BOUNDS_S: npt.NDArray[np.float64] = _core.latency_bounds()


def quantile(counts: npt.NDArray[np.int64], share: float) -> float:
    """The latency that a share of those counted does not exceed, in seconds; NaN if none were."""
    total = int(counts.sum())
    if total == 0:
        return math.nan
    sums = np.cumsum(counts)
    bucket = int(np.searchsorted(sums, share * total))
    before = sums[bucket] - counts[bucket]
    inside = (share * total - before) / counts[bucket]
    return float(BOUNDS_S[bucket] + inside * (BOUNDS_S[bucket + 1] - BOUNDS_S[bucket]))
