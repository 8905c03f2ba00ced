"""What the policy is told, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum

# Beyond this no count or rate is one: what a replica with broken counters reports is not added up.
REPORT_MAX = 1e12


@dataclass(frozen=True)
class PolicyConfig:
    """What the policy aims for. Times are in seconds, rates in requests per second.

    Attributes:
        min_replicas: Lower bound; 0 lets an idle Model go away.
        max_replicas: Upper bound.
        slo_s: Time in the queue that is still fine.
        late_share: Share of the requests that may wait longer than that.
        target_utilisation: Share of the measured capacity that is never planned beyond.
        capacity_rps: What a replica can sustain as far as is known before one has measured it; 0 for unknown.
        cold_start_s: How long a replica needs to start, until a start has been seen.
        interval_s: Time from a change of load to the decision that sees it: reporting and averaging.
        trend_tau_s: Memory of the trend, the least; twice the forecast's horizon if that is more.
        error_tau_s: Memory of how wrong the forecasts were.
        margin: How many root mean squares of the forecasts' shortfall are added.
        drain_s: Time in which an excess backlog should be gone.
        breach_hold_s: How long the objective must be broken before replicas are added against the sizing.
        settle_s: Shortest time between two such additions, so that the last one can show its effect.
        down_hold_s: Fewer replicas must have been enough for so long before any is taken away.
        down_margin: How much more load one replica must bear before the second goes, as a share; relatively less where
            there are many, whose load is steadier.
        idle_to_zero_s: Idle time after which the last replica goes.
        fallback_ongoing: Ongoing requests per replica to plan with while capacity is unknown.
        distrust_s: For how long missing reports block scaling down, whatever else is known.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    slo_s: float = 0.1
    late_share: float = 0.01
    target_utilisation: float = 0.85
    capacity_rps: float = 0.0
    cold_start_s: float = 5.0
    interval_s: float = 1.0
    trend_tau_s: float = 10.0
    error_tau_s: float = 300.0
    margin: float = 2.0
    drain_s: float = 5.0
    breach_hold_s: float = 1.0
    settle_s: float = 5.0
    down_hold_s: float = 10.0
    down_margin: float = 0.2
    idle_to_zero_s: float = 45.0
    fallback_ongoing: float = 8.0
    distrust_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"autoscaling: got min_replicas={self.min_replicas}, max_replicas={self.max_replicas}; "
                "expected 0 <= min_replicas <= max_replicas and max_replicas >= 1"
            )
        for one in fields(self):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"autoscaling: got {one.name}={value}; expected a finite number, 0 or more")
        for name in ("slo_s", "drain_s", "fallback_ongoing", "trend_tau_s", "error_tau_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"autoscaling: got {name}={getattr(self, name)}; expected more than 0")
        if not 0 < self.target_utilisation <= 1:
            raise ValueError(f"autoscaling: got target_utilisation={self.target_utilisation}; expected 0 < it <= 1")
        for name in ("down_margin", "late_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"autoscaling: got {name}={getattr(self, name)}; expected 0 <= it < 1")


@dataclass(frozen=True)
class ReplicaReport:
    """What one replica measured over its last window. Stale reports are left out of an `Observation`.

    Attributes:
        offered_rps: Requests that arrived per second, refused ones included.
        capacity_rps: Requests per second it could sustain at the objective; 0 while not yet measured.
        queue_delay_s: Time the latest requests waited before they ran.
        backlog: Requests waiting or running now.
    """

    offered_rps: float
    capacity_rps: float
    queue_delay_s: float
    backlog: float

    @property
    def valid(self) -> bool:
        """False for what no replica can have measured."""
        # Written out, since it is asked of every replica in every decision; false for NaN, too.
        return (
            0 <= self.offered_rps <= REPORT_MAX
            and 0 <= self.capacity_rps <= REPORT_MAX
            and 0 <= self.queue_delay_s <= REPORT_MAX
            and 0 <= self.backlog <= REPORT_MAX
        )


@dataclass(frozen=True)
class Observation:
    """Everything one decision is made from.

    Attributes:
        now_s: A clock that only grows, the same one for every call.
        running: Replicas that take requests now.
        target: Replicas asked for so far (those still starting included).
        reports: Fresh reports, at most one per running replica. Invalid ones count as missing.
        stale: Running replicas that reported once but no longer do. A new replica that has yet to report is not one.
        ongoing: The balancer's own count of requests queued or running; 0 where it has none.
    """

    now_s: float
    running: int
    target: int
    reports: tuple[ReplicaReport, ...] = ()
    stale: int = 0
    ongoing: float = 0.0


class Reason(StrEnum):
    """Why a decision is what it is."""

    STEADY = "steady"
    LOAD = "load"
    FORECAST = "forecast"
    BACKLOG = "backlog"
    BREACH = "objective broken"
    WAKE = "request without replicas"
    HOLD = "too early to go down"
    DOWN = "fewer are enough"
    IDLE = "idle"
    BLIND = "reports missing"
    BOUNDS = "bounds"


@dataclass(frozen=True)
class Decision:
    """A number of replicas, and what it rests on.

    Attributes:
        replicas: Within ``[min_replicas, max_replicas]``.
        reason: Why.
        offered_rps: Requests per second measured.
        planned_rps: What was planned for: the larger of measured and expected, with the margin.
        capacity_rps: Per replica; 0 while unknown.
        needed: Replicas that `planned_rps` and the backlog need.
    """

    replicas: int
    reason: Reason
    offered_rps: float = 0.0
    planned_rps: float = 0.0
    capacity_rps: float = 0.0
    needed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.replicas} replicas ({self.reason}): offered {self.offered_rps:.4g}/s, planned for "
            f"{self.planned_rps:.4g}/s at {self.capacity_rps:.4g}/s each, needed {self.needed}"
        )
