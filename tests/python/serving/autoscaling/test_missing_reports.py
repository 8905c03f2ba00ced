"""The autoscaling policy where reports are missing, stale or nonsense."""

from __future__ import annotations

import math

from autoscaling_world import TICK_S, decide
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
