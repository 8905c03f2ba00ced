"""The peers decide as what they stand for, and Headrace's policy meets its objective with less than they need."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from headrace.serving.autoscaling import PolicyConfig
from headrace.simulate import (
    HeadracePolicy,
    HpaPolicy,
    Outcome,
    RayPolicy,
    Sample,
    Service,
    Shape,
    Trace,
    diurnal,
    simulate,
)

SERVICE = Service(0.02, 0.03, max_batch=16, slo_s=0.5, cold_start_s=10)


def sample(now: float, running: int, target: int, ongoing: float = 0.0, busy_s: float = 0.0) -> Sample:
    return Sample(now, 1.0, running, target, 0, busy_s, ongoing, 0.0)


def test_the_hpa_like_policy_scales_by_the_ratio_at_every_sync() -> None:
    policy = HpaPolicy(1, 100, target=0.5)
    targets = [policy(sample(float(now), 4, 4, busy_s=3.2)) for now in range(1, 16)]  # 80 % busy
    assert targets[:14] == [4] * 14
    assert targets[14] == 7  # ceil(4 * 0.8 / 0.5)


@pytest.mark.parametrize(("busy", "target"), [(0.54, 4), (0.46, 4), (0.6, 5)])
def test_the_hpa_like_policy_tolerates_a_tenth(busy: float, target: int) -> None:
    policy = HpaPolicy(1, 100, target=0.5)
    assert [policy(sample(float(now), 4, 4, busy_s=4 * busy)) for now in range(1, 16)][-1] == target


def test_the_hpa_like_policy_goes_down_to_the_largest_wish_of_five_minutes() -> None:
    policy = HpaPolicy(1, 100, target=0.5)
    target, seen = 8, []
    for now in range(1, 700):
        busy = 0.5 if now <= 60 else 0.1
        target = policy(sample(float(now), target, target, busy_s=target * busy))
        seen.append(target)
    assert min(seen[:350]) == 8
    assert seen[-1] <= 2


def test_the_hpa_like_policy_does_not_double_count_what_is_starting() -> None:
    policy = HpaPolicy(1, 100, target=0.5)
    last = [policy(sample(float(now), 4, 8, busy_s=4.0)) for now in range(1, 16)][-1]
    assert last == 8  # 4 busy and 4 not ready, counted as idle: half of all, which is the target


def ray_policy(**config: float) -> RayPolicy:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    return RayPolicy(0, 50, **config)


def test_rays_policy_waits_for_its_delay_and_counts_what_is_ongoing() -> None:
    policy = ray_policy()
    target, first = 2, None
    for now in range(1, 120):
        target = policy(sample(float(now), 2, target, ongoing=20.0))
        if target != 2 and first is None:
            first = now
    assert target == 10
    assert first == 31  # the first report, and 30 s


def test_rays_policy_goes_down_after_ten_minutes() -> None:
    policy = ray_policy()
    target, changed = 10, []
    for now in range(1, 700):
        before, target = target, policy(sample(float(now), target, target, ongoing=2.0))
        changed += [now] if target != before else []
    assert changed == [601]
    assert target == 1


def test_rays_functions_give_what_its_own_wrapper_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ray_policy(look_back_s=1.0, push_s=1.0)
    from ray.serve import autoscaling_policy as ray

    wrapped = ray._apply_autoscaling_config(ray._core_replica_queue_length_policy)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(ray, "time", SimpleNamespace(time=lambda: clock.now))
    state: dict[str, object] = {}
    target = other = 1
    for now in range(1, 2000):
        ongoing = 40.0 if now % 900 < 300 else 3.0
        target = policy(sample(float(now), target, target, ongoing=ongoing))
        clock.now = float(now)
        ctx = SimpleNamespace(
            current_num_replicas=other, target_num_replicas=other, total_num_requests=ongoing, config=policy._config,
            policy_state=state,
        )  # fmt: skip
        other, state = wrapped(ctx)
        assert target == other, now


def half_an_hour(policy: HeadracePolicy | HpaPolicy) -> Outcome:
    trace = diurnal(Shape(seconds=1800, base_rps=400, peak_rps=400, burst=0.5, burst_s=60, calm_s=200, ramp_s=20))
    return simulate(trace, SERVICE, policy)


def test_bursts_are_met_with_fewer_replicas_than_a_utilisation_target_needs() -> None:
    ours = half_an_hour(HeadracePolicy(SERVICE, PolicyConfig(1, 200, slo_s=0.25)))
    peers = [half_an_hour(HpaPolicy(1, 200, target)) for target in (0.5, 0.6, 0.7)]
    assert ours.attainment >= 0.99
    assert all(ours.replica_hours < peer.replica_hours for peer in peers if peer.attainment >= ours.attainment)


def test_an_idle_model_costs_nothing_and_its_first_request_is_answered() -> None:
    trace = Trace("lonely", 1.0, np.zeros(600), np.array([300.0, 301.5, 310.0]))
    policy = HeadracePolicy(SERVICE, PolicyConfig(0, 20, slo_s=0.25, idle_to_zero_s=30))
    outcome = simulate(trace, SERVICE, policy)
    assert outcome.counts["ok"] == outcome.counts["arrived"] == 3
    assert outcome.counts["held"] > 0
    assert outcome.replica_hours * 3600 < 200
    assert policy.reasons["idle"] == 1
