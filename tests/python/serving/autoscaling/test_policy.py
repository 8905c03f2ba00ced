"""The autoscaling policy: bounds, direction, hysteresis, zero."""

from __future__ import annotations

import math
import random

import pytest
from autoscaling_world import TICK_S, World, changes, decide
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.serving.autoscaling import (
    Observation,
    PolicyConfig,
    PolicyState,
    Reason,
    ReplicaReport,
)
from headrace.serving.autoscaling import decide as decide_with_reason

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


def test_a_steep_rise_that_nobody_foresaw_does_not_hold_replicas_once_it_is_over() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=2, slo_s=0.25, down_hold_s=10)
    state, target, now = PolicyState(), 1, 100.0
    # Seconds, the rate, the replicas that run, and the capacity of one, which is less under load. What would wait for
    # too long is refused, so that no backlog tells of it.
    for seconds, rate, running, capacity in ((12, 4.6, 1, 46), (6.5, 51, 1, 25), (3, 51, 2, 25), (30, 4.6, 2, 25)):
        for _ in range(round(seconds / TICK_S)):
            now += TICK_S
            report = ReplicaReport(rate / running, capacity, 0.01, 0)
            target, state = decide(config, state, Observation(now, running, target, (report,) * running, 0, 0))
    assert target == 1, "the forecasts' errors at the peak must not outweigh what is left"


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
