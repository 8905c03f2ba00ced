"""What one replica tells the autoscaling policy and the ingress: its load, what it could sustain, and its room."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Any

from headrace.serving.autoscaling import (
    METRIC_BACKLOG,
    METRIC_CAPACITY,
    METRIC_HEARTBEAT,
    METRIC_OFFERED,
    METRIC_QUEUE_DELAY,
)

# Queue delay at which an objective counts as broken, where the model has no slo_ms.
QUEUE_DELAY_S_DEFAULT = 0.1
# Time constant of the offered rate. A new replica starts its average at 0, so that while traffic moves from one
# replica to another the sum over replicas stays the true rate: one falls exactly as the other rises.
RATE_TAU_S = 2.0
# Time constant of the CPU cost of a request; slower, because it changes with the requests and not with their number.
COST_TAU_S = 10.0
# Fewer requests than this say too little about what one costs.
COST_REQUESTS_MIN = 5


def queue_delay_s_max(slo_ms: float | None) -> float:
    """How long a request may wait: half of its deadline, since the rest is for decoding, running and encoding."""
    return QUEUE_DELAY_S_DEFAULT if slo_ms is None else slo_ms / 2000


@dataclass(frozen=True)
class Room:
    """Requests that a replica can have at a time and answer in time, as it says of itself.

    Attributes:
        requests: Whatever the deadline ...
        rate_rps: ... and as many more as it answers at this rate ...
        wait_s: ... while a request may wait for so long, or for half of its own deadline if that is less.
    """

    requests: float = math.inf
    rate_rps: float = 0.0
    wait_s: float = 0.0

    def within(self, deadline_s: float | None) -> float:
        """The number of them.

        Args:
            deadline_s: Of the request that is to be answered; None for that of all.
        """
        if deadline_s is None or self.rate_rps == 0:
            return self.requests + self.rate_rps * self.wait_s
        return self.requests + self.rate_rps * max(0.0, min(self.wait_s, queue_delay_s_max(1000 * deadline_s)))


# Of a replica that has not said.
UNBOUNDED = Room()


@dataclass(frozen=True)
class LoadSample:
    """Cumulative counts and present estimates of a replica, over all of its models."""

    arrived: float
    queued: float
    queue_delay_s: float
    capacity_rps: float


def sample(ledgers: Iterable[Mapping[str, Any]], arrived: float | None = None) -> LoadSample:
    """Sums up the `stats()` of a replica's Batchers; the slowest of them sets delay and capacity.

    Args:
        ledgers: Those of the versions that serve.
        arrived: Requests that came, where versions have been closed that counted some of them.
    """
    ledgers = list(ledgers)
    if arrived is None:
        arrived = float(sum(stats["accepted"] + stats["refused"] for stats in ledgers))
    known = [float(stats["capacity_rps"]) for stats in ledgers if stats["capacity_rps"] > 0]
    return LoadSample(
        arrived=arrived,
        queued=float(sum(stats["queued"] for stats in ledgers)),
        queue_delay_s=max((float(stats["queue_delay_s"]) for stats in ledgers), default=0.0),
        capacity_rps=min(known, default=0.0),
    )


class LoadMeter:
    """Turns cumulative counts into rates. Call `report` from the thread that runs the event loop.

    A replica's capacity is the smaller of two: what its Batcher measured of the Engine, and what the event loop's one
    thread can decode and encode, from the CPU time that thread spent per request.
    """

    def __init__(self) -> None:
        self._last_s = monotonic()
        self._last_cpu_s = thread_time()
        self._last_arrived = 0.0
        self._cost_arrived = 0.0
        self._cost_cpu_s = self._last_cpu_s
        self._cost_at_s = self._last_s
        self._offered_rps = 0.0
        self._loop_cost_s = 0.0
        self._arrival_s = -math.inf

    def report(self, now: LoadSample) -> dict[str, float]:
        """The metrics of this moment, by the names `headrace.serving.autoscaling` reads."""
        clock_s, cpu_s = monotonic(), thread_time()
        elapsed_s = max(1e-6, clock_s - self._last_s)
        # Never below zero: a version that is being closed may be missing from the counts for a moment.
        fresh = max(0.0, now.arrived - self._last_arrived)
        self._offered_rps += (1 - math.exp(-elapsed_s / RATE_TAU_S)) * (fresh / elapsed_s - self._offered_rps)
        if fresh > 0:
            self._arrival_s = clock_s
        self._last_s, self._last_arrived = clock_s, now.arrived
        self._note_cost(now.arrived, clock_s, cpu_s)
        # An average never reaches zero by itself; without arrivals it is only memory, and would keep a replica alive.
        idle = now.queued == 0 and clock_s - self._arrival_s > RATE_TAU_S
        return {
            METRIC_HEARTBEAT: clock_s,
            METRIC_OFFERED: 0.0 if idle else self._offered_rps,
            METRIC_CAPACITY: self._capacity(now.capacity_rps),
            METRIC_QUEUE_DELAY: 0.0 if idle else now.queue_delay_s,
            METRIC_BACKLOG: now.queued,
        }

    def _note_cost(self, arrived: float, clock_s: float, cpu_s: float) -> None:
        count = arrived - self._cost_arrived
        if count < COST_REQUESTS_MIN:
            return
        cost_s = (cpu_s - self._cost_cpu_s) / count
        weight = 1 - math.exp(-(clock_s - self._cost_at_s) / COST_TAU_S) if self._loop_cost_s else 1.0
        self._loop_cost_s += weight * (cost_s - self._loop_cost_s)
        self._cost_arrived, self._cost_cpu_s, self._cost_at_s = arrived, cpu_s, clock_s

    def _capacity(self, engine_rps: float) -> float:
        loop_rps = 1 / self._loop_cost_s if self._loop_cost_s > 0 else 0.0
        known = [rps for rps in (engine_rps, loop_rps) if rps > 0]
        return min(known, default=0.0)
