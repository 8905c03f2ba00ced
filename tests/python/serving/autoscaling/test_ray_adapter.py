"""The policy as Ray Serve calls it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.serving.autoscaling import (
    METRIC_BACKLOG,
    METRIC_CAPACITY,
    METRIC_HEARTBEAT,
    METRIC_OFFERED,
    METRIC_QUEUE_DELAY,
    Reason,
    SloPolicy,
)
from headrace.serving.autoscaling.ray_adapter import DECISION_KEY


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


def test_every_change_is_told_to_a_controller_that_keeps_warnings_alone(caplog: pytest.LogCaptureFixture) -> None:
    policy = SloPolicy(target_utilisation=0.5)
    with caplog.at_level("WARNING", "ray.serve"):
        named = context(1.0, {"a": 1.0}, 120.0, {}, 1)
        named.app_name, named.deployment_name = "tickets", "model-gpu"
        _, state = policy(named)  # type: ignore[arg-type]
        policy(context(2.0, {"a": 2.0}, 120.0, state, 3))  # type: ignore[arg-type]
    (told,) = (record.getMessage() for record in caplog.records)
    assert "tickets/model-gpu: 1 -> 3 replicas (load)" in told


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
    from headrace.serving.ray_build import _autoscaling

    model = ModelConfig(name="a", files={}, settings=ModelSettings(max_batch=8))
    config = _autoscaling(DeployedModel(model=model, autoscaling=AutoscalingConfig()), runs=False)
    pickled = config.policy.get_serialized_policy_def()
    ran = subprocess.run([sys.executable, "-c", WITHOUT_HEADRACE], input=pickled, capture_output=True, check=True)
    assert int(ran.stdout) == 5  # 33 requests, 8 for each
