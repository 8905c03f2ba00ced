"""The autoscaling policy: how many replicas a Model needs, decided from what its replicas measured.

`decide` is a pure function of a config, the state it returned last time and one `Observation`; nothing in it knows
Ray. `SloPolicy` is the thin adapter Ray Serve calls on its controller about ten times a second. This module imports
neither Ray nor the rest of Headrace, because Serve pickles it by value and a controller may have neither.

Sizing: the replicas report the rate they were offered, the rate they could sustain (measured while busy), what waits
and for how long. With offered rate L, excess backlog Q (what cannot be answered within the objective), drain time T
and capacity C per replica,

    replicas = ceil((L + Q / T) / (C * target_utilisation))

Up is immediate. Down needs the smaller number to have been enough for `down_hold_s` at a stricter utilisation, so a
noisy but constant load does not flap. When the objective is broken although the sizing says it should hold, the
measured capacity is wrong: one replica is added, and the pair (replicas, rate) that failed is remembered as a floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

# Names under which a replica reports, through Serve's record_autoscaling_stats.
METRIC_HEARTBEAT = "headrace_heartbeat"
METRIC_OFFERED = "headrace_offered_rps"
METRIC_CAPACITY = "headrace_capacity_rps"
METRIC_QUEUE_DELAY = "headrace_queue_delay_s"
METRIC_BACKLOG = "headrace_backlog"

_STATE_KEY = "headrace"

# Below one request in a day a "capacity" is an artefact, and dividing by it would overflow.
_CAPACITY_RPS_MIN = 1e-5


@dataclass(frozen=True)
class PolicyConfig:
    """What the policy aims for. Times are in seconds, rates in requests per second.

    Attributes:
        min_replicas: Lower bound; 0 lets an idle Model go away.
        max_replicas: Upper bound.
        slo_s: Time in the queue that is still fine.
        target_utilisation: Share of the measured capacity to plan with.
        drain_s: Time in which an excess backlog should be gone; about what a replica needs to start, since more
            replicas than that come too late to help.
        breach_hold_s: How long the objective must be broken before a replica is added against the sizing.
        settle_s: Shortest time between two such additions, so that the last one can show its effect.
        down_hold_s: How long fewer replicas must have been enough before any is taken away.
        down_margin: Extra headroom asked for before scaling down, as a share of the utilisation.
        idle_to_zero_s: Idle time after which the last replica goes.
        fallback_ongoing: Ongoing requests per replica to plan with while capacity is unknown.
        distrust_s: How long missing reports block scaling down before Serve's own counts are believed alone.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    slo_s: float = 0.1
    target_utilisation: float = 0.7
    drain_s: float = 5.0
    breach_hold_s: float = 1.0
    settle_s: float = 5.0
    down_hold_s: float = 10.0
    down_margin: float = 0.2
    idle_to_zero_s: float = 60.0
    fallback_ongoing: float = 8.0
    distrust_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"autoscaling: got min_replicas={self.min_replicas}, max_replicas={self.max_replicas}; "
                "expected 0 <= min_replicas <= max_replicas and max_replicas >= 1"
            )
        if not 0 < self.target_utilisation <= 1:
            raise ValueError(f"autoscaling: got target_utilisation={self.target_utilisation}; expected 0 < it <= 1")
        if not 0 <= self.down_margin < 1:
            raise ValueError(f"autoscaling: got down_margin={self.down_margin}; expected 0 <= it < 1")
        for name in ("slo_s", "drain_s", "fallback_ongoing"):
            if not getattr(self, name) > 0:
                raise ValueError(f"autoscaling: got {name}={getattr(self, name)}; expected more than 0")


@dataclass(frozen=True)
class ReplicaReport:
    """What one replica measured over its last window. Stale reports are left out of an `Observation`.

    Attributes:
        offered_rps: Requests that arrived per second, refused ones included.
        capacity_rps: Requests per second it could sustain; 0 while not yet measured.
        queue_delay_s: Time the latest requests waited before they ran.
        backlog: Requests waiting or running now.
    """

    offered_rps: float
    capacity_rps: float
    queue_delay_s: float
    backlog: float


@dataclass(frozen=True)
class Observation:
    """Everything one decision is made from.

    Attributes:
        now_s: A clock that only grows, the same one for every call.
        running: Replicas that take requests now.
        target: Replicas asked for so far (those still starting included).
        reports: Fresh reports, at most one per running replica.
        stale: Running replicas that reported once but no longer do. A new replica that has yet to report is not one.
        ongoing: Serve's own count of requests queued or running, from its callers.
    """

    now_s: float
    running: int
    target: int
    reports: tuple[ReplicaReport, ...] = ()
    stale: int = 0
    ongoing: float = 0.0


@dataclass(frozen=True)
class PolicyState:
    """What the policy remembers between two decisions.

    Attributes:
        capacity_rps: Last known capacity of a replica; 0 while unknown.
        last_active_s: When there was last anything to do.
        covered_s: When every running replica last had a fresh report.
        low_since_s: Since when fewer replicas than the target would do; None while they would not.
        low_most: The most that was needed since then.
        breach_since_s: Since when the objective is broken; None while it holds.
        raised_s: When a replica was last added because of that.
        floor_replicas: Replicas known to be needed ...
        floor_rps: ... at this offered rate and above.
    """

    capacity_rps: float = 0.0
    last_active_s: float | None = None
    covered_s: float | None = None
    low_since_s: float | None = None
    low_most: int = 0
    breach_since_s: float | None = None
    raised_s: float = -math.inf
    floor_replicas: int = 0
    floor_rps: float = 0.0


@dataclass(frozen=True)
class _Load:
    """The reports summed up; `covered` is True if every running replica had one."""

    offered_rps: float
    backlog: float
    queue_delay_s: float
    covered: bool


def _sum_up(obs: Observation) -> _Load:
    reports = obs.reports
    if not reports:
        return _Load(0.0, obs.ongoing, 0.0, covered=obs.running == 0)
    # Callers spread evenly, so a replica that fell silent is taken to see what the others see.
    scale = (len(reports) + obs.stale) / len(reports)
    backlog = scale * sum(r.backlog for r in reports)
    return _Load(
        offered_rps=scale * sum(r.offered_rps for r in reports),
        backlog=max(backlog, obs.ongoing),
        queue_delay_s=max(r.queue_delay_s for r in reports),
        covered=len(reports) >= obs.running,
    )


def _needed(config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load, utilisation: float) -> int:
    """Replicas that meet the objective at `utilisation` of the measured capacity, at most one over the maximum."""
    most = config.max_replicas + 1
    if not obs.reports or state.capacity_rps <= 0:
        return math.ceil(min(most, obs.ongoing / config.fallback_ongoing))
    # What the running replicas can answer within the objective is no excess, only work in hand.
    in_hand = state.capacity_rps * config.slo_s * max(1, obs.running) + max(1, obs.running)
    excess = max(0.0, load.backlog - in_hand)
    rate = load.offered_rps + excess / config.drain_s
    # The small slack keeps 2.0000000001 from becoming 3.
    return math.ceil(min(most, rate / (state.capacity_rps * utilisation) - 1e-9))


def _note_capacity(state: PolicyState, obs: Observation) -> PolicyState:
    measured = [r.capacity_rps for r in obs.reports if r.capacity_rps > _CAPACITY_RPS_MIN]
    if not measured:
        return state
    return replace(state, capacity_rps=sum(measured) / len(measured))


def _apply_breach(
    config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load, needed: int
) -> tuple[int, PolicyState]:
    """Adds a replica when the objective stays broken although the sizing is met; keeps the floors learnt so."""
    now = obs.now_s
    if load.queue_delay_s <= config.slo_s:
        state = replace(state, breach_since_s=None)
    elif state.breach_since_s is None:
        state = replace(state, breach_since_s=now)
    settled = obs.running >= obs.target > 0 and now - state.raised_s >= config.settle_s
    broken = state.breach_since_s is not None and now - state.breach_since_s >= config.breach_hold_s
    if broken and settled and needed <= obs.target:
        state = replace(
            state,
            raised_s=now,
            breach_since_s=None,
            floor_replicas=min(config.max_replicas, obs.target + 1),
            floor_rps=load.offered_rps,
        )
    if state.floor_replicas and load.covered and load.offered_rps <= (1 - config.down_margin) * state.floor_rps:
        state = replace(state, floor_replicas=0, floor_rps=0.0)
    return max(needed, state.floor_replicas), state


def _hold_down(config: PolicyConfig, state: PolicyState, obs: Observation, enough: int) -> tuple[int, PolicyState]:
    """Takes replicas away only when `enough` stayed below the target for `down_hold_s`."""
    if enough >= obs.target:
        return obs.target, replace(state, low_since_s=None, low_most=0)
    if state.low_since_s is None:
        state = replace(state, low_since_s=obs.now_s, low_most=enough)
    state = replace(state, low_most=max(state.low_most, enough))
    assert state.low_since_s is not None
    if obs.now_s - state.low_since_s < config.down_hold_s:
        return obs.target, state
    return state.low_most, replace(state, low_since_s=None, low_most=0)


def _is_trusted(config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load) -> tuple[bool, PolicyState]:
    """Whether this observation may take replicas away: every replica reported, or none did for very long."""
    if load.covered or state.covered_s is None:
        state = replace(state, covered_s=obs.now_s)
    assert state.covered_s is not None
    return load.covered or obs.now_s - state.covered_s >= config.distrust_s, state


def decide(config: PolicyConfig, state: PolicyState, obs: Observation) -> tuple[int, PolicyState]:
    """Decides how many replicas there should be.

    Args:
        config: Bounds and aims.
        state: The state returned by the previous call, or ``PolicyState()``.
        obs: What is known now.

    Returns:
        The number of replicas, within ``[min_replicas, max_replicas]``, and the state for the next call.
    """
    state = _note_capacity(state, obs)
    load = _sum_up(obs)
    busy = load.offered_rps > 0 or load.backlog > 0 or obs.running < obs.target or state.last_active_s is None
    if busy:
        state = replace(state, last_active_s=obs.now_s)
    trusted, state = _is_trusted(config, state, obs, load)

    needed = _needed(config, state, obs, load, config.target_utilisation)
    needed, state = _apply_breach(config, state, obs, load, needed)
    wanted = max(1, needed)
    if obs.target == 0:
        result = wanted if obs.ongoing > 0 else 0
    elif wanted > obs.target:
        result, state = wanted, replace(state, low_since_s=None, low_most=0)
    elif not trusted:
        result, state = obs.target, replace(state, low_since_s=None, low_most=0)
    else:
        strict = _needed(config, state, obs, load, config.target_utilisation * (1 - config.down_margin))
        result, state = _hold_down(config, state, obs, max(1, strict, state.floor_replicas))
        assert state.last_active_s is not None
        if obs.now_s - state.last_active_s >= config.idle_to_zero_s:
            result = 0
    return max(config.min_replicas, min(config.max_replicas, result)), state


@dataclass
class _Freshness:
    """When each replica's heartbeat last moved, by the controller's own clock: replica clocks are not compared."""

    seen: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def fresh(self, heartbeats: Mapping[Any, float], now_s: float, stale_after_s: float) -> set[Any]:
        """The keys of `heartbeats` that moved within the last `stale_after_s`."""
        self.seen = {key: self.seen[key] for key in heartbeats if key in self.seen}
        for key, beat in heartbeats.items():
            if key not in self.seen or self.seen[key][0] != beat:
                self.seen[key] = (beat, now_s)
        return {key for key, (_, moved_s) in self.seen.items() if now_s - moved_s <= stale_after_s}


class SloPolicy:
    """`decide` as a Ray Serve autoscaling policy.

    Serve builds one per deployment on its controller, with `kwargs` from the deployment's config, and calls it with
    its context; Serve then applies its own bounds and delays, which `headrace.serving.ray_app` sets to zero because
    the policy has its own hysteresis.

    Args:
        stale_after_s: Age after which a replica's report no longer counts.
        kwargs: Fields of `PolicyConfig`, except the replica bounds: those come from Serve's own config.
    """

    def __init__(self, stale_after_s: float = 5.0, **kwargs: float) -> None:
        self._stale_after_s = stale_after_s
        self._kwargs = kwargs
        PolicyConfig(**kwargs)  # type: ignore[arg-type]  # refuse a bad config where it is written
        self._freshness = _Freshness()

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas for `ctx`, and the state Serve hands back next time."""
        config = PolicyConfig(
            min_replicas=ctx.capacity_adjusted_min_replicas,
            max_replicas=max(1, ctx.capacity_adjusted_max_replicas),
            **self._kwargs,
        )
        state = (ctx.policy_state or {}).get(_STATE_KEY) or PolicyState()
        replicas, state = decide(config, state, self._observe(ctx))
        return replicas, {_STATE_KEY: state}

    def _observe(self, ctx: AutoscalingContext) -> Observation:
        now_s = float(ctx.current_time or 0.0)
        raw: Mapping[str, Mapping[Any, Sequence[Any]]] = ctx.raw_metrics or {}

        def latest(name: str) -> dict[Any, float]:
            values = {key: float(series[-1].value) for key, series in raw.get(name, {}).items() if series}
            return {key: value for key, value in values.items() if math.isfinite(value)}

        beats = latest(METRIC_HEARTBEAT)
        fresh = self._freshness.fresh(beats, now_s, self._stale_after_s)
        offered, capacity = latest(METRIC_OFFERED), latest(METRIC_CAPACITY)
        delay, backlog = latest(METRIC_QUEUE_DELAY), latest(METRIC_BACKLOG)
        reports = tuple(
            ReplicaReport(offered.get(key, 0.0), capacity.get(key, 0.0), delay.get(key, 0.0), backlog.get(key, 0.0))
            for key in sorted(fresh, key=str)
        )
        return Observation(
            now_s=now_s,
            running=int(ctx.current_num_replicas),
            target=int(ctx.target_num_replicas),
            reports=reports,
            stale=len(beats) - len(fresh),
            ongoing=max(0.0, float(ctx.total_num_requests or 0.0)),
        )
