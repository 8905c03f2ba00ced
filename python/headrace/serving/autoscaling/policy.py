"""What is decided, from one observation to the next. docs/autoscaling.md has the formulae and where they come from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from headrace.serving.autoscaling.forecast import Forecast
from headrace.serving.autoscaling.staffing import replicas_for
from headrace.serving.autoscaling.terms import REPORT_MAX, Decision, Observation, PolicyConfig, Reason

# Below one request in a day a "capacity" is an artefact, and dividing by it would overflow.
_CAPACITY_RPS_MIN = 1e-5
# A replica whose reported capacity is further off the median than this factor counts as at the factor.
_CAPACITY_SPREAD = 4.0
# Weight of a newly seen start in the cold-start time, and the shortest and longest that is believed.
_START_WEIGHT = 0.3
_START_S_MIN, _START_S_MAX = 0.1, 900.0
# Replicas added to a broken objective, as a share of those there are.
_BREACH_SHARE = 0.05


@dataclass(frozen=True)
class PolicyState:
    """What the policy remembers between two decisions.

    Attributes:
        capacity_rps: Last known capacity of a replica; 0 while unknown.
        cold_start_s: How long starts have taken; 0 before the first was seen.
        asked: When more replicas were asked for, and how many ran then; None while none is awaited.
        forecast: The offered rate and its trend.
        last_active_s: When there was last anything to do.
        covered_s: When every running replica last had a fresh report.
        held_since_s: Since when going down has been watched for without a break.
        needs: (time, replicas) needed of late, with every pair that a later, larger one outdoes left out.
        strict: The same with the margin that going down asks for.
        breach_since_s: Since when the objective is broken; None while it holds.
        raised_s: When replicas were last added because of that.
        floor_replicas: Replicas known to be needed ...
        floor_rps: ... at this offered rate and above.
    """

    capacity_rps: float = 0.0
    cold_start_s: float = 0.0
    asked: tuple[float, int] | None = None
    forecast: Forecast = field(default_factory=Forecast)
    last_active_s: float | None = None
    covered_s: float | None = None
    held_since_s: float | None = None
    needs: tuple[tuple[float, int], ...] = ()
    strict: tuple[tuple[float, int], ...] = ()
    breach_since_s: float | None = None
    raised_s: float = -math.inf
    floor_replicas: int = 0
    floor_rps: float = 0.0


@dataclass(frozen=True)
class _Load:
    """The reports summed up; `covered` is True if every running replica had a valid one."""

    offered_rps: float
    backlog: float
    queue_delay_s: float
    covered: bool
    measured: bool


def decide(config: PolicyConfig, state: PolicyState, obs: Observation) -> tuple[Decision, PolicyState]:
    """Decides how many replicas there should be.

    Args:
        config: Bounds and aims.
        state: The state returned by the previous call, or ``PolicyState()``.
        obs: What is known now.

    Returns:
        The decision and the state for the next call.
    """
    obs = _cleaned(obs)
    state = _note_start(_note_capacity(config, state, obs), obs)
    load = _sum_up(obs)
    if load.measured:
        horizon_s = _cold_start_s(config, state) + config.interval_s
        trend_tau_s = max(config.trend_tau_s, 2 * horizon_s)
        forecast = state.forecast.note(
            obs.now_s, load.offered_rps, horizon_s, max(0.5, config.interval_s), trend_tau_s, config.error_tau_s
        )
        state = replace(state, forecast=forecast)
    state = _note_activity(state, obs, load)
    trusted, state = _is_trusted(config, state, obs, load)

    planned_rps = _planned_rps(config, state, load, config.margin)
    needed = _needed(config, state, obs, load, planned_rps)
    # One error of the forecasts more than going up asks for.
    careful_rps = _planned_rps(config, state, load, config.margin + 1)
    strict_rps = careful_rps * (1 + config.down_margin / math.sqrt(max(1, needed)))
    strict = _needed(config, state, obs, load, strict_rps)
    floor, state = _floor(config, state, obs, load, needed)
    wanted = max(1, needed, floor)
    replicas, reason, state = _choose(config, state, obs, load, trusted, wanted, max(wanted, strict))
    if reason is Reason.LOAD:
        reason = _why_up(config, state, obs, load, wanted)
    bounded = max(config.min_replicas, min(config.max_replicas, replicas))
    if bounded != replicas:
        reason = Reason.BOUNDS
    if bounded > obs.target and obs.running >= obs.target:  # while others start, which of them came is not known
        state = replace(state, asked=(obs.now_s, obs.running))
    return Decision(bounded, reason, load.offered_rps, planned_rps, state.capacity_rps, wanted), state


def _cleaned(obs: Observation) -> Observation:
    """Invalid numbers taken for missing ones."""
    ongoing = obs.ongoing if 0 <= obs.ongoing <= REPORT_MAX else 0.0
    reports = tuple(report for report in obs.reports if report.valid)
    stale = max(0, obs.stale) + len(obs.reports) - len(reports)
    return replace(
        obs, running=max(0, obs.running), target=max(0, obs.target), reports=reports, stale=stale, ongoing=ongoing
    )


def _sum_up(obs: Observation) -> _Load:
    reports = obs.reports
    if not reports:
        return _Load(0.0, obs.ongoing, 0.0, covered=obs.running == 0, measured=False)
    # Callers spread evenly, so a replica that fell silent is taken to see what the others see.
    scale = (len(reports) + obs.stale) / len(reports)
    delays = sorted(report.queue_delay_s for report in reports)
    return _Load(
        offered_rps=scale * sum(report.offered_rps for report in reports),
        backlog=max(scale * sum(report.backlog for report in reports), obs.ongoing),
        # Of many replicas one is always the unlucky one; of a few it counts.
        queue_delay_s=delays[math.ceil(0.9 * (len(delays) - 1))],
        covered=len(reports) >= obs.running and obs.stale == 0,
        measured=True,
    )


def _note_capacity(config: PolicyConfig, state: PolicyState, obs: Observation) -> PolicyState:
    measured = sorted(report.capacity_rps for report in obs.reports if report.capacity_rps > _CAPACITY_RPS_MIN)
    if not measured:
        return state if state.capacity_rps else replace(state, capacity_rps=config.capacity_rps)
    median = measured[len(measured) // 2]
    least, most = median / _CAPACITY_SPREAD, median * _CAPACITY_SPREAD
    return replace(state, capacity_rps=sum(min(most, max(least, rps)) for rps in measured) / len(measured))


def _note_start(state: PolicyState, obs: Observation) -> PolicyState:
    """Learns how long a replica takes to start, from when it was asked for until one more runs."""
    if state.asked is None:
        return state
    asked_s, running = state.asked
    if obs.running > running:
        took_s = min(_START_S_MAX, max(_START_S_MIN, obs.now_s - asked_s))
        known_s = state.cold_start_s
        learnt_s = known_s + _START_WEIGHT * (took_s - known_s) if known_s else took_s
        return replace(state, cold_start_s=learnt_s, asked=None)
    if obs.target <= obs.running or obs.running < running:  # taken back, or one died meanwhile
        return replace(state, asked=None)
    return state


def _cold_start_s(config: PolicyConfig, state: PolicyState) -> float:
    return state.cold_start_s or config.cold_start_s


def _note_activity(state: PolicyState, obs: Observation, load: _Load) -> PolicyState:
    busy = load.offered_rps > 0 or load.backlog > 0 or obs.running < obs.target
    if busy or state.last_active_s is None or obs.now_s < state.last_active_s:
        return replace(state, last_active_s=obs.now_s)
    return state


def _is_trusted(config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load) -> tuple[bool, PolicyState]:
    """Whether this observation may take replicas away.

    It may if every running replica reported. If some have been silent for `distrust_s` the others are believed; if all
    have, only requests that the balancer itself counts are: that there are none is no news from where none comes.
    """
    if load.covered or state.covered_s is None or obs.now_s < state.covered_s:
        state = replace(state, covered_s=obs.now_s)
    assert state.covered_s is not None
    waited = obs.now_s - state.covered_s >= config.distrust_s
    return load.covered or (waited and (load.measured or obs.ongoing > 0)), state


def _planned_rps(config: PolicyConfig, state: PolicyState, load: _Load, errors: float) -> float:
    """The rate to be ready for: now, or when a replica asked for now is there, with so many errors for being wrong."""
    if not load.measured:
        return load.offered_rps
    horizon_s = _cold_start_s(config, state) + config.interval_s
    # A trend is a guess from a few samples: it is not followed to more than twice what is there.
    expected = min(2 * load.offered_rps, state.forecast.at(horizon_s))
    # After a fall the errors made at the higher rate are still remembered, and must not outweigh what is left.
    margin = min(errors * state.forecast.shortfall_rps, load.offered_rps)
    return max(load.offered_rps, expected) + margin


def _needed(config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load, rate_rps: float) -> int:
    """Replicas that meet the objective at `rate_rps` and work off the backlog, at most one over the maximum."""
    most = config.max_replicas + 1
    capacity = state.capacity_rps
    if capacity <= _CAPACITY_RPS_MIN or (not load.measured and obs.running > 0):
        return math.ceil(min(most, obs.ongoing / config.fallback_ongoing))
    # What the running replicas can answer within the objective is no excess, only work in hand.
    in_hand = (capacity * config.slo_s + 1) * max(1, obs.running)
    excess = max(0.0, load.backlog - in_hand)
    rate_rps += excess / config.drain_s
    return replicas_for(rate_rps, capacity, config.slo_s, config.late_share, config.target_utilisation, most)


def _floor(
    config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load, needed: int
) -> tuple[int, PolicyState]:
    """Adds replicas when the objective stays broken although the sizing is met; keeps the floors learnt so.

    Then the measured capacity is wrong, and only what happened at which rate can be believed.
    """
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
            floor_replicas=min(config.max_replicas, obs.target + max(1, int(_BREACH_SHARE * obs.target))),
            floor_rps=load.offered_rps,
        )
    if state.floor_replicas and load.covered and load.offered_rps <= (1 - config.down_margin) * state.floor_rps:
        state = replace(state, floor_replicas=0, floor_rps=0.0)
    return state.floor_replicas, state


def _choose(
    config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load, trusted: bool, wanted: int, strict: int
) -> tuple[int, Reason, PolicyState]:
    """Up at once; down when fewer have been enough for long, and known to be; zero when idle for longer."""
    if obs.target == 0:
        awake = obs.ongoing > 0 or load.offered_rps > 0
        return (wanted, Reason.WAKE, _forget_hold(state)) if awake else (0, Reason.IDLE, state)
    if wanted > obs.target:
        return wanted, Reason.LOAD, _forget_hold(state)
    if not trusted:
        return obs.target, Reason.BLIND, _forget_hold(state)
    assert state.last_active_s is not None
    if config.min_replicas == 0 and obs.now_s - state.last_active_s >= config.idle_to_zero_s:
        return 0, Reason.IDLE, _forget_hold(state)
    since_s = obs.now_s if state.held_since_s is None or obs.now_s < state.held_since_s else state.held_since_s
    state = replace(
        state,
        held_since_s=since_s,
        needs=_remember(state.needs, obs.now_s, wanted, config.down_hold_s),
        strict=_remember(state.strict, obs.now_s, strict, config.down_hold_s),
    )
    if max(strict, 1) >= obs.target:
        return obs.target, Reason.STEADY, state
    if obs.now_s - since_s < config.down_hold_s or state.strict[0][1] >= obs.target:
        return obs.target, Reason.HOLD, state
    return state.needs[0][1], Reason.DOWN, state


def _forget_hold(state: PolicyState) -> PolicyState:
    return replace(state, held_since_s=None, needs=(), strict=())


def _remember(
    past: tuple[tuple[float, int], ...], now_s: float, value: int, keep_s: float
) -> tuple[tuple[float, int], ...]:
    """A sliding maximum: the first pair is the largest of the last `keep_s`, and what can never be that is left out."""
    kept = [pair for pair in past if now_s - keep_s <= pair[0] <= now_s and pair[1] > value]
    return (*kept, (now_s, value))


def _why_up(config: PolicyConfig, state: PolicyState, obs: Observation, load: _Load, wanted: int) -> Reason:
    if wanted == state.floor_replicas and state.raised_s == obs.now_s:
        return Reason.BREACH
    if not load.measured:
        return Reason.BLIND
    calm = replace(load, backlog=0.0)
    if _needed(config, state, obs, calm, load.offered_rps) > obs.target:
        return Reason.LOAD
    return (
        Reason.FORECAST
        if _needed(config, state, obs, calm, _planned_rps(config, state, load, config.margin)) > obs.target
        else (Reason.BACKLOG)
    )
