"""The autoscaling policy: bounds, direction, hysteresis, zero, and missing reports."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
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
    Observation,
    PolicyConfig,
    PolicyState,
    ReplicaReport,
    SloPolicy,
    decide,
)

TICK_S = 0.1


class World:
    """Replicas of a known true capacity behind a fair load balancer, driven by the policy."""

    def __init__(self, config: PolicyConfig, capacity_rps: float, start_s: float = 0.0, believed: float = 1.0) -> None:
        self.config = config
        self.capacity_rps = capacity_rps
        self.believed = believed
        self.start_s = start_s
        self.state = PolicyState()
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
        target, self.state = decide(self.config, self.state, obs)
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
@settings(max_examples=40, deadline=None)
def test_constant_load_does_not_flap(rate: float, capacity: float, seed: int) -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=100), capacity, start_s=1.0)
    world.run(rate, 40)
    settled = len(world.trace)
    noise = random.Random(seed)
    for _ in range(600):
        world.step(rate * noise.uniform(0.94, 1.06))
    moved = changes(world.trace[settled - 1 :])
    # Noise may push one decision up to the next integer; it must then stay there.
    assert len(moved) <= 1, moved
    assert world.target >= math.ceil(rate / capacity)


def test_a_step_up_is_followed_at_once_and_by_enough() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20), capacity_rps=50, start_s=2.0)
    world.run(10, 5)
    assert world.target == 1
    assert world.run(300, 0.2)[-1] >= 9  # 300 / (50 * 0.7)
    world.run(300, 10)
    assert world.queue == 0


def test_scaling_down_waits_for_the_hold_and_then_goes_all_the_way() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20, down_hold_s=8), capacity_rps=50)
    world.run(300, 20)
    assert world.target == 9
    assert set(world.run(10, 7.5)) == {9}
    assert world.run(10, 2)[-1] == 1


def test_a_dip_shorter_than_the_hold_is_ignored() -> None:
    world = World(PolicyConfig(min_replicas=1, max_replicas=20, down_hold_s=8), capacity_rps=50)
    world.run(300, 20)
    for _ in range(3):
        world.run(10, 5)
        world.run(300, 5)
    assert set(world.trace[-300:]) == {9}


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
    assert world.target == 4  # 100 / (50 * 0.7 * 0.8), not the 1 of this moment


def test_scaling_down_asks_for_more_headroom_than_staying() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=20, down_hold_s=2)
    alone, pair = World(config, capacity_rps=50), World(config, capacity_rps=50)
    assert alone.run(33, 10)[-1] == 1  # fits 50 * 0.7
    pair.run(60, 10)
    assert pair.run(33, 10)[-1] == 2, "but not 50 * 0.7 * 0.8"


def test_a_backlog_is_drained_by_more_replicas_than_the_rate_needs() -> None:
    config = PolicyConfig(min_replicas=1, max_replicas=20, drain_s=5)
    one = ReplicaReport(offered_rps=10, capacity_rps=50, queue_delay_s=0, backlog=500)
    target, _ = decide(config, PolicyState(), Observation(1.0, running=1, target=1, reports=(one,)))
    assert target == 4  # (10 + 494 / 5) / 35


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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "got min_replicas=3, max_replicas=2"),
        ({"target_utilisation": 0.0}, "got target_utilisation=0.0"),
        ({"slo_s": 0.0}, "got slo_s=0.0"),
        ({"down_margin": 1.0}, "got down_margin=1.0"),
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
    policy = SloPolicy(stale_after_s=2.0, idle_to_zero_s=1.0, down_hold_s=1.0)
    state: dict[str, Any] = {}
    target = 1
    for tick in range(20):  # the last report said "idle", but it is frozen
        target, state = policy(context(10 + tick, {"a": 5.0}, 0.0, state, target))  # type: ignore[arg-type]
        if tick == 0:
            state["headrace"] = replace(state["headrace"], last_active_s=10 + 2.5)
    assert target == 1


def test_the_adapter_refuses_unknown_settings() -> None:
    with pytest.raises(TypeError, match="speed"):
        SloPolicy(speed=3.0)
