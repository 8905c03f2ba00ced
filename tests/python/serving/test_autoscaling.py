"""The autoscaling policy: bounds, direction, hysteresis, zero, and missing reports."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.serving.autoscaling import (
    METRIC_BACKLOG,
    METRIC_CAPACITY,
    METRIC_HEARTBEAT,
    METRIC_OFFERED,
    METRIC_QUEUE_DELAY,
    Decision,
    Observation,
    PolicyConfig,
    PolicyState,
    Reason,
    ReplicaReport,
    SloPolicy,
)
from headrace.serving.autoscaling import decide as decide_with_reason
from headrace.serving.autoscaling.forecast import Forecast
from headrace.serving.autoscaling.ray_adapter import DECISION_KEY
from headrace.serving.autoscaling.staffing import replicas_for

TICK_S = 0.1


def decide(config: PolicyConfig, state: PolicyState, obs: Observation) -> tuple[int, PolicyState]:
    decision, state = decide_with_reason(config, state, obs)
    return decision.replicas, state


class World:
    """Replicas of a known true capacity behind a fair load balancer, driven by the policy."""

    def __init__(self, config: PolicyConfig, capacity_rps: float, start_s: float = 0.0, believed: float = 1.0) -> None:
        self.config = config
        self.capacity_rps = capacity_rps
        self.believed = believed
        self.start_s = start_s
        self.state = PolicyState()
        self.decision = Decision(0, Reason.STEADY)
        self.target = config.min_replicas
        self.running = self.target
        self.starting: list[float] = []
        self.now = 100.0
        self.queue = 0.0
        self.trace: list[int] = []

    def step(self, rate: float) -> int:
        self.now += TICK_S
        done = [t for t in self.starting if t <= self.now]
        self.starting = [t for t in self.starting if t > self.now]
        self.running = min(self.target, self.running + len(done))
        total = self.running * self.capacity_rps
        self.queue = max(0.0, self.queue + (rate - total) * TICK_S)
        share = rate / self.running if self.running else 0.0
        delay = self.queue / total if total else 0.0
        report = ReplicaReport(share, self.capacity_rps * self.believed, delay, self.queue / max(1, self.running))
        obs = Observation(self.now, self.running, self.target, (report,) * self.running, 0, self.queue)
        self.decision, self.state = decide_with_reason(self.config, self.state, obs)
        target = self.decision.replicas
        if target > self.target:
            self.starting += [self.now + self.start_s] * (target - self.target)
        self.target = target
        self.running = min(self.running, target)
        self.trace.append(target)
        return target

    def run(self, rate: float, seconds: float) -> list[int]:
        return [self.step(rate) for _ in range(round(seconds / TICK_S))]


def changes(trace: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in itertools.pairwise(trace) if a != b]


reports = st.builds(
    ReplicaReport,
    st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.floats(0, 100),
    st.floats(0, 1e5),
)


@given(
    low=st.integers(0, 4),
    extra=st.integers(0, 20),
    observed=st.lists(
        st.tuples(st.floats(0, 30), st.integers(0, 30), st.lists(reports, max_size=4), st.floats(0, 1e6)),
        min_size=1,
        max_size=30,
    ),
)
@settings(max_examples=200, deadline=None)
def test_never_leaves_its_bounds(
    low: int, extra: int, observed: list[tuple[float, int, list[ReplicaReport], float]]
) -> None:
    config = PolicyConfig(min_replicas=low, max_replicas=max(1, low + extra), idle_to_zero_s=5)
    state, target, now = PolicyState(), low, 0.0
    for gap, running, some, ongoing in observed:
        now += gap
        obs = Observation(now, running, target, tuple(some[:running]), max(0, len(some) - running), ongoing)
        target, state = decide(config, state, obs)
        assert config.min_replicas <= target <= config.max_replicas


@given(
    target=st.integers(1, 10),
    rate=st.floats(0, 1000),
    more=st.floats(0, 1000),
    capacity=st.floats(1, 500),
    delay=st.floats(0, 1),
    backlog=st.floats(0, 1000),
    warm=st.floats(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_more_load_never_means_fewer_replicas(
    target: int, rate: float, more: float, capacity: float, delay: float, backlog: float, warm: float
) -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=50)

    def observe(now: float, total: float) -> Observation:
        one = ReplicaReport(total / target, capacity, delay, backlog / target)
        return Observation(now, target, target, (one,) * target, 0, backlog)

    _, state = decide(config, PolicyState(), observe(0.0, warm))
    _, state = decide(config, state, observe(config.down_hold_s, warm))
    for now in (config.down_hold_s + 0.1, 3 * config.down_hold_s):
        less, _ = decide(config, state, observe(now, rate))
        grown, _ = decide(config, state, observe(now, rate + more))
        assert grown >= less


@given(rate=st.floats(1, 900), capacity=st.floats(20, 200), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_constant_load_does_not_flap(rate: float, capacity: float, seed: int) -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=100), capacity, start_s=1.0)
    world.run(rate, 40)
    settled = len(world.trace)
    noise = random.Random(seed)
    for _ in range(600):
        world.step(rate * noise.uniform(0.94, 1.06))
    moved = changes(world.trace[settled - 1 :])
    # Noise may push the need up to its own highest; it must then stay there.
    assert all(after > before for before, after in moved), moved
    assert world.target <= 1.1 * world.trace[settled - 1] + 1
    assert world.target >= math.ceil(rate / capacity)


def test_a_step_up_is_followed_at_once_and_by_enough() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20), capacity_rps=50, start_s=2.0)
    world.run(10, 5)
    assert world.target == 1
    assert world.run(300, 0.2)[-1] >= 8  # 300 / (50 * 0.85)
    world.run(300, 10)
    assert world.queue == 0


def test_scaling_down_waits_for_the_hold_and_then_goes_all_the_way() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20, down_hold_s=8), capacity_rps=50)
    world.run(300, 20)
    assert world.target == 8
    assert set(world.run(10, 7.5)) == {8}
    assert world.run(10, 2)[-1] == 1


def test_a_dip_shorter_than_the_hold_is_ignored() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20, down_hold_s=8), capacity_rps=50)
    world.run(300, 20)
    for _ in range(3):
        world.run(10, 5)
        world.run(300, 5)
    assert min(world.trace[-300:]) == 8


def test_an_idle_model_goes_to_zero_and_comes_back() -> None:
    world = World(PolicyConfig(min_replicas=0, max_replicas=4, idle_to_zero_s=5, down_hold_s=2), 50, start_s=1.0)
    assert world.step(0) == 0
    assert world.run(20, 0.5)[-1] >= 1
    world.run(20, 10)
    assert world.target == 1
    assert set(world.run(0, 4.8)) == {1}
    assert world.run(0, 0.5)[-1] == 0
    assert set(world.run(0, 20)) == {0}
    assert world.run(20, 0.3)[-1] >= 1


def test_a_minimum_above_zero_is_kept_while_idle() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=4, idle_to_zero_s=1), capacity_rps=50)
    assert set(world.run(0, 60)) == {1}


def test_a_replica_that_is_still_starting_is_not_idle() -> None:
    world = World(PolicyConfig(min_replicas=0, max_replicas=4, idle_to_zero_s=2), 50, start_s=30.0)
    world.run(5, 0.5)
    assert world.target == 1
    world.queue = 0.0  # the caller gave up
    assert set(world.run(0, 25)) == {1}


def test_what_was_needed_during_the_hold_is_kept() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20, down_hold_s=8), capacity_rps=50)
    world.run(300, 20)
    world.run(10, 3)
    world.run(100, 3)
    world.run(10, 2.5)
    assert 3 <= world.target <= 4  # 100 / (50 * 0.85), not the 1 of this moment


def test_scaling_down_asks_for_more_headroom_than_staying() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=20, down_hold_s=2)
    alone, pair = World(config, capacity_rps=50), World(config, capacity_rps=50)
    assert alone.run(28, 10)[-1] == 1
    pair.run(60, 10)
    assert pair.run(28, 10)[-1] == 2, "one would do, but not for a fifth more"


def test_a_backlog_is_drained_by_more_replicas_than_the_rate_needs() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=20, drain_s=5)
    one = ReplicaReport(offered_rps=10, capacity_rps=50, queue_delay_s=0, backlog=500)
    target, _ = decide(config, PolicyState(), Observation(1.0, running=1, target=1, reports=(one,)))
    assert target == 3  # (10 + 494 / 5) / 42.5


def test_a_broken_objective_adds_a_replica_although_capacity_says_enough() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=10, slo_s=0.1, breach_hold_s=1, settle_s=5, down_hold_s=2)
    state, target = PolicyState(), 1

    def run(seconds: float, rate: float, delay_s: float, start_s: float) -> list[int]:
        nonlocal state, target
        trace = []
        for tick in range(round(seconds / TICK_S)):
            one = ReplicaReport(rate / target, 1000.0, delay_s, 1.0)
            obs = Observation(start_s + tick * TICK_S, target, target, (one,) * target)
            target, state = decide(config, state, obs)
            trace.append(target)
        return trace

    assert set(run(0.9, 90, 0.3, 0)) == {1}, "a moment is no breach"
    assert run(0.5, 90, 0.3, 0.9)[-1] == 2
    assert set(run(4, 90, 0.3, 1.4)) == {2}, "the last one must have time to show its effect"
    assert run(3, 90, 0.3, 5.4)[-1] == 3
    assert set(run(30, 90, 0.01, 8.4)) == {3}, "this rate is known to need three"
    assert run(10, 60, 0.01, 38.4)[-1] == 1, "which is forgotten when the rate is gone"


def test_a_measured_capacity_that_is_too_high_is_survived() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=10), capacity_rps=50, believed=3.0)
    world.run(90, 90)
    assert world.target * 50 >= 90
    assert world.queue == 0


def test_a_starting_replica_does_not_inflate_the_load() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=10)
    one = ReplicaReport(offered_rps=50, capacity_rps=50, queue_delay_s=0, backlog=1)
    target, _ = decide(config, PolicyState(), Observation(1.0, running=2, target=2, reports=(one,), ongoing=1))
    assert target == 2


def test_a_silent_replica_is_taken_to_see_what_the_others_see() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=10)
    one = ReplicaReport(offered_rps=70, capacity_rps=100, queue_delay_s=0, backlog=1)
    target, _ = decide(config, PolicyState(), Observation(1.0, running=2, target=1, reports=(one,), stale=1))
    assert target == 2


@given(running=st.integers(1, 8), fresh=st.integers(0, 7), ongoing=st.floats(0, 4), ticks=st.integers(1, 250))
@settings(max_examples=100, deadline=None)
def test_stale_metrics_do_not_scale_down(running: int, fresh: int, ongoing: float, ticks: int) -> None:
    config = PolicyConfig(min_replicas=0, max_replicas=8, down_hold_s=1, idle_to_zero_s=1)
    fresh = min(fresh, running - 1)
    idle = ReplicaReport(0.0, 100.0, 0.0, 0.0)
    state, target = PolicyState(), running
    for tick in range(ticks):
        obs = Observation(tick * TICK_S, running, target, (idle,) * fresh, running - fresh, ongoing)
        target, state = decide(config, state, obs)
        assert target >= running


def test_without_reports_the_ongoing_requests_decide() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=10, fallback_ongoing=8)
    target, state = decide(config, PolicyState(), Observation(0.0, running=1, target=1, ongoing=33))
    assert target == 5
    # Reports that never come must not pin the replicas for good.
    for tick in range(1, 1000):
        target, state = decide(config, state, Observation(tick * TICK_S, running=5, target=target, ongoing=3))
    assert target == 1


anything = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([-1.0, 1e300, 0.0, 5.0])


@given(
    observed=st.lists(
        st.tuples(
            st.floats(-5, 30),
            st.integers(-2, 12),
            st.lists(st.builds(ReplicaReport, anything, anything, anything, anything), max_size=4),
            st.integers(-3, 5),
            anything,
        ),
        min_size=1,
        max_size=25,
    )
)
@settings(max_examples=150, deadline=None)
def test_no_numbers_whatever_make_it_fail_or_leave_its_bounds(
    observed: list[tuple[float, int, list[ReplicaReport], int, float]],
) -> None:
    config = PolicyConfig(min_replicas=0, max_replicas=10, idle_to_zero_s=5)
    state, target, now = PolicyState(), 3, 100.0
    for gap, running, some, stale, ongoing in observed:
        now += gap
        decision, state = decide_with_reason(
            config, state, Observation(now, running, target, tuple(some), stale, ongoing)
        )
        target = decision.replicas
        assert 0 <= target <= 10
        assert all(map(math.isfinite, (decision.offered_rps, decision.planned_rps, decision.capacity_rps)))
        assert str(decision.reason) in str(decision)


@given(
    running=st.integers(1, 8),
    bad=st.lists(st.sampled_from([math.nan, math.inf, -1.0]), min_size=1, max_size=8),
    ticks=st.integers(1, 600),
)
@settings(max_examples=50, deadline=None)
def test_invalid_reports_never_scale_down(running: int, bad: list[float], ticks: int) -> None:
    config = PolicyConfig(min_replicas=0, max_replicas=8, down_hold_s=1, idle_to_zero_s=1, distrust_s=5)
    state, target = PolicyState(), running
    reports = tuple(ReplicaReport(value, 100.0, 0.0, 0.0) for value in bad[:running])
    for tick in range(ticks):
        target, state = decide(config, state, Observation(tick * TICK_S, running, target, reports, 0, math.nan))
        assert target == running


def test_reports_that_stop_hold_the_replicas_for_as_long_as_nothing_else_is_known() -> None:
    config = PolicyConfig(min_replicas=0, max_replicas=8, down_hold_s=1, idle_to_zero_s=1, distrust_s=5)
    state, target = PolicyState(), 4
    busy = (ReplicaReport(40.0, 100.0, 0.0, 1.0),) * 4
    for tick in range(3):
        target, state = decide(config, state, Observation(tick * TICK_S, 4, target, busy))
    for tick in range(3, 3000):
        decision, state = decide_with_reason(config, state, Observation(tick * TICK_S, 4, target, stale=4))
        assert decision.replicas == target == 4
    assert decision.reason is Reason.BLIND


def test_after_missing_reports_the_hold_starts_over() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=8, down_hold_s=8)
    state, target = PolicyState(), 4
    low = (ReplicaReport(1.0, 100.0, 0.0, 0.0),) * 4
    seen = []
    for tick in range(300):
        reports = () if tick < 50 else low
        obs = Observation(tick * TICK_S, target, target, reports[:target], stale=target if tick < 50 else 0)
        target, state = decide(config, state, obs)
        seen.append(target)
    assert set(seen[:129]) == {4}
    assert seen[132] == 1


def test_a_ramp_is_met_before_it_is_there() -> None:
    """A load that grows by 10/s every second, replicas that take 10 s to start: asked for 10 s ahead."""
    config = PolicyConfig(min_replicas=1, max_replicas=100, cold_start_s=10)
    world = World(config, capacity_rps=50, start_s=10.0)
    world.run(100, 30)
    reasons = set()
    for tick in range(600):
        world.step(100 + tick * TICK_S * 10)
        reasons.add(world.decision.reason)
    assert Reason.FORECAST in reasons
    rate = 100 + 600
    assert world.running * 50 >= rate, "those that run now must carry what comes now"
    assert world.queue == 0
    assert world.target <= 1.25 * (rate + 10 * 11) / 42.5


def test_the_time_a_start_takes_is_learnt() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20, cold_start_s=1), capacity_rps=50, start_s=7.0)
    world.run(10, 5)
    assert world.state.cold_start_s == 0
    world.run(200, 20)
    assert world.state.cold_start_s == pytest.approx(7.0, abs=0.5)


def test_a_capacity_known_beforehand_sizes_the_first_requests() -> None:
    config = PolicyConfig(min_replicas=0, max_replicas=20, capacity_rps=10, slo_s=0.5, drain_s=5)
    decision, _ = decide_with_reason(config, PolicyState(), Observation(0.0, running=0, target=0, ongoing=200))
    assert decision.replicas == 5  # (200 - 6 in hand) / 5 s at 85 % of 10/s
    assert decision.reason is Reason.WAKE


def test_one_sick_replica_does_not_set_the_capacity_of_all() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=50)
    well, sick = ReplicaReport(40, 100, 0, 0), ReplicaReport(40, 1e9, 0, 0)
    _, state = decide(config, PolicyState(), Observation(0.0, 5, 5, (well,) * 4 + (sick,)))
    assert state.capacity_rps <= 160


@pytest.mark.parametrize("reason", [Reason.LOAD, Reason.BACKLOG, Reason.BREACH, Reason.HOLD, Reason.DOWN])
def test_every_decision_says_why(reason: Reason) -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=60), capacity_rps=50, start_s=3.0, believed=1.6)
    seen: set[Reason] = set()
    for tick in range(900):
        rate = 40 + min(tick, 200) * 1.5 if tick < 300 else 800 if tick < 450 else 40
        world.step(rate)
        seen.add(world.decision.reason)
    assert reason in seen


def test_staffing_keeps_the_waits_of_a_single_queue_as_erlang_says() -> None:
    # Two servers with 1.7 Erlangs: C = 0.781. The wait is five services.
    late = 0.781 * math.exp(-2 * (2 - 1.7) * 5)
    assert replicas_for(1.7, 1.0, 5.0, 1.01 * late, 1.0, 50) == 2
    assert replicas_for(1.7, 1.0, 5.0, 0.99 * late, 1.0, 50) == 3


def test_many_replicas_need_less_headroom_than_few() -> None:
    shares = [replicas_for(10.0 * load, 10.0, 0.5, 0.001, 0.99, 5000) / load for load in (1, 4, 16, 64, 256, 1024)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] >= 2
    assert shares[-1] < 1.15


def test_a_tighter_objective_needs_more_replicas() -> None:
    counts = [replicas_for(500.0, 10.0, wait, 0.01, 0.9, 5000) for wait in (1.0, 0.3, 0.2, 0.1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] <= 50 / 0.3 + 1


def test_the_forecast_follows_a_line_and_knows_its_errors() -> None:
    forecast = Forecast()
    for second in range(120):
        forecast = forecast.note(float(second), 50.0 + 2 * second, 10.0, 1.0, 20.0, 300.0)
    assert forecast.at(10.0) == pytest.approx(50 + 2 * 129, rel=0.01)
    calm = forecast.shortfall_rps
    for second in range(120, 132):
        forecast = forecast.note(float(second), 900.0, 10.0, 1.0, 20.0, 300.0)
    assert forecast.shortfall_rps > calm + 50
    assert forecast.note(5.0, 7.0, 10.0, 1.0, 20.0, 300.0).at(10.0) == 7.0, "a clock that stepped back starts over"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "got min_replicas=3, max_replicas=2"),
        ({"target_utilisation": 0.0}, "got target_utilisation=0.0"),
        ({"slo_s": 0.0}, "got slo_s=0.0"),
        ({"down_margin": 1.0}, "got down_margin=1.0"),
        ({"cold_start_s": math.nan}, "got cold_start_s=nan"),
        ({"late_share": 1.0}, "got late_share=1.0"),
    ],
)
def test_a_bad_config_says_what_was_expected(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        PolicyConfig(**bad)
    assert message in str(caught.value)


def context(now: float, beats: dict[str, float], rate: float, state: dict[str, Any], target: int) -> SimpleNamespace:
    """What Serve passes, as far as the adapter reads it."""

    def series(value: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(timestamp=0.0, value=-1.0), SimpleNamespace(timestamp=1.0, value=value)]

    raw = {
        METRIC_HEARTBEAT: {key: series(beat) for key, beat in beats.items()},
        METRIC_OFFERED: {key: series(rate) for key in beats},
        METRIC_CAPACITY: {key: series(100.0) for key in beats},
        METRIC_QUEUE_DELAY: {key: series(0.0) for key in beats},
        METRIC_BACKLOG: {key: series(0.0) for key in beats},
    }
    return SimpleNamespace(
        current_time=now,
        current_num_replicas=max(1, len(beats)),
        target_num_replicas=target,
        raw_metrics=raw,
        total_num_requests=0.0,
        policy_state=state,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
    )


def test_the_adapter_reads_the_latest_point_of_every_series() -> None:
    policy = SloPolicy(target_utilisation=0.5)
    target, state = policy(context(1.0, {"a": 1.0}, 120.0, {}, 1))  # type: ignore[arg-type]
    assert target == 3
    target, _ = policy(context(2.0, {"a": 2.0}, 170.0, state, 3))  # type: ignore[arg-type]
    assert target == 4


def test_the_adapter_notices_a_heartbeat_that_stopped() -> None:
    policy = SloPolicy(stale_after_s=2.0, idle_to_zero_s=3.0, down_hold_s=1.0)
    state: dict[str, Any] = {}
    target = 1
    for tick in range(20):  # the last report said "idle", but it is frozen
        target, state = policy(context(10 + tick, {"a": 5.0}, 0.0, state, target))  # type: ignore[arg-type]
    assert target == 1
    assert state[DECISION_KEY].reason is Reason.BLIND


def test_the_adapter_refuses_unknown_settings() -> None:
    with pytest.raises(TypeError, match="speed"):
        SloPolicy(speed=3.0)


WITHOUT_HEADRACE = """
import pickle, sys
from types import SimpleNamespace

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "headrace":
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
policy = pickle.load(sys.stdin.buffer)()
print(policy(SimpleNamespace(
    current_time=1.0, current_num_replicas=1, target_num_replicas=1, raw_metrics={}, total_num_requests=33.0,
    policy_state={}, capacity_adjusted_min_replicas=0, capacity_adjusted_max_replicas=8,
))[0])
"""


def test_a_controller_without_headrace_can_run_the_policy() -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.config import AutoscalingConfig, DeployedModel, ModelConfig, ModelSettings
    from headrace.serving.ray_app import _autoscaling

    model = ModelConfig(name="a", files={}, settings=ModelSettings(max_batch=8))
    config = _autoscaling(DeployedModel(model=model, autoscaling=AutoscalingConfig()))
    pickled = config.policy.get_serialized_policy_def()
    ran = subprocess.run([sys.executable, "-c", WITHOUT_HEADRACE], input=pickled, capture_output=True, check=True)
    assert int(ran.stdout) == 5  # 33 requests, 8 for each
