"""From a model to its Ray Serve application, without a Ray that runs."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

pytest.importorskip("ray", reason="the Ray extra is not installed")

from ray_fakes import GROUPS, model

from headrace.config import (
    AutoscalingConfig,
    DeployConfig,
    DeployedModel,
    HttpConfig,
    ModelConfig,
    ModelSettings,
    in_group,
)
from headrace.deploy_file import load_deploy
from headrace.errors import ConfigError, ExecutionError
from headrace.serve import build_app
from headrace.serving import ray_build, ray_cluster, ray_deploy, ray_models
from headrace.serving.assignment import Assignment, Edition
from headrace.serving.ray_app import adapted
from headrace.serving.ray_build import Making, replica_code, run_target


def test_a_change_of_a_model_that_runs_leaves_its_replicas_as_many_as_they_are() -> None:
    def initial(**how: Any) -> Any:
        deployment = build_app(model("a", min_replicas=2, max_replicas=9), **how)._bound_deployment
        return deployment._deployment_config.autoscaling_config.initial_replicas

    assert initial() == 2
    assert initial(running=["model"]) is None, "Serve would go down to it under full load"


def test_a_replica_that_leaves_has_as_long_as_it_was_told() -> None:
    patient = model("a", leave_s=60)
    config = build_app(patient)._bound_deployment._deployment_config
    assert config.graceful_shutdown_timeout_s > 60, "Serve must not kill it before its time is up"
    assert replica_code(patient, Making()) != replica_code(model("a"), Making()), "those that run know the old time"


def on_device(device: str | None) -> DeployedModel:
    there = model("a")
    settings = ModelSettings(slo_ms=2000, device=device)
    config = ModelConfig(name="a", files=there.model.files, settings=settings)
    return DeployedModel(model=config, autoscaling=there.autoscaling)


@pytest.mark.parametrize(
    ("device", "gpus", "seen"),
    [(None, 0, None), ("cpu", 0, "cpu"), ("cuda:3", 1, "cuda:0"), ("cuda-on-host", 0, "cuda-on-host")],
)
def test_a_replica_on_a_gpu_gets_one_and_takes_the_one_it_gets(device: str | None, gpus: int, seen: str | None) -> None:
    deployed = on_device(device)
    options = build_app(deployed)._bound_deployment._replica_config.ray_actor_options
    assert (options["num_gpus"], options["num_cpus"]) == (gpus, 0.1)
    assert adapted(deployed.model, threads=2).settings.device == seen
    assert adapted(deployed.model, threads=2).settings.threads == 2
    same = replica_code(deployed, Making()) == replica_code(on_device(None), Making())
    assert same == (gpus == 0), "a replica without a GPU cannot go on to one in place"


def test_each_group_of_replicas_is_a_deployment_with_its_resources_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mixed" / "1").mkdir(parents=True)
    (tmp_path / "mixed" / "1" / "model.onnx").touch()
    (tmp_path / "app.yaml").write_text(GROUPS)
    (mixed,) = load_deploy(tmp_path / "app.yaml").models
    first = build_app(mixed)._bound_deployment
    (other,) = (bound._bound_deployment for bound in first.init_args[-1])
    assert (first.name, other.name) == ("model", "model-accelerated")
    assert first._replica_config.ray_actor_options["resources"] == {}
    assert other._replica_config.ray_actor_options["resources"] == {"accel": 1}
    assert (first.init_args[-2], other.init_args[-1]) == ("plain", "accelerated")
    model_of = {group: adapted(in_group(mixed.model, group), 2).settings.threads for group in mixed.parts}
    assert model_of == {"plain": 2, "accelerated": 1}
    codes = {replica_code(part, Making()) for part in mixed.parts.values()}
    assert len(codes) == 2, "a replica cannot go on to other resources in place"
    one = mixed.parts["plain"]
    named = {replica_code(one, Making(), group) for group in ("", "plain", "renamed")}
    assert len(named) == 3, "a replica that goes on would find the settings of its old group, or none"
    monkeypatch.setattr(ray_deploy.ray, "cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(ConfigError, match=r"autoscaling.resources: got 1 of 'accel' .* expected at most .* 0"):
        ray_deploy._check_fits([mixed])


def test_groups_that_change_places_or_come_to_a_model_that_runs_start_their_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "model.onnx").touch()
    (tmp_path / "app.yaml").write_text(GROUPS.replace("path: mixed", "path: mixed/model.onnx"))
    (mixed,) = load_deploy(tmp_path / "app.yaml").models
    application = SimpleNamespace(deployments={"model": None})
    monkeypatch.setattr(ray_build, "serve", SimpleNamespace(**vars(ray_build.serve)))
    monkeypatch.setattr(ray_build.serve, "status", lambda: SimpleNamespace(applications={"mixed": application}))
    monkeypatch.setattr(ray_build, "_surge_percent", lambda part: 0)

    def first_and_other(deployed: DeployedModel) -> list[Any]:
        first = run_target(deployed, Making(), runs=True).target._bound_deployment
        return [first, *(bound._bound_deployment for bound in first.init_args[-1])]

    first, other = first_and_other(mixed)
    initial = [one._deployment_config.autoscaling_config.initial_replicas for one in (first, other)]
    assert initial == [None, 1], "the one that runs keeps its replicas, and the new one shows that it can"
    alike = {group: replace(scaling, resources={}) for group, scaling in mixed.autoscaling.groups.items()}
    one, another = (
        first_and_other(replace(mixed, autoscaling=replace(mixed.autoscaling, groups=dict(groups))))[0]
        for groups in (alike.items(), reversed(alike.items()))
    )
    assert one.name == another.name
    assert one.version != another.version, "Serve would leave the replicas of the other group there"


def test_a_model_that_ends_gets_as_long_as_the_most_patient_of_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = {"cpu": AutoscalingConfig(leave_s=1), "gpu": AutoscalingConfig(leave_s=500)}
    edition = Edition.of(model("a").model)
    kept = Assignment(generation=1, running=edition, scaling=AutoscalingConfig(leave_s=1, groups=patient))
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + 10))
    applications = SimpleNamespace(applications={"a": None})
    for name, value in {
        "RayStore": lambda: {"a": kept.encode()},
        "serve": SimpleNamespace(delete=lambda name, _blocking: None, status=lambda: applications),
        "time": clock,
    }.items():
        monkeypatch.setattr(ray_models, name, value)
    with pytest.raises(ExecutionError, match="does not end"):
        ray_models.end_model("a")
    assert now[0] > 500


def test_more_gpus_than_the_cluster_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_deploy.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    ray_deploy._check_fits([on_device("cuda"), on_device("cpu")])
    with pytest.raises(ConfigError, match=r"got 2 GPUs .* expected at most the cluster.s 1"):
        ray_deploy._check_fits([on_device("cuda"), on_device("cuda:1")])


def test_one_application_is_one_model() -> None:
    both = DeployConfig(http=HttpConfig(), models=[model("a"), model("b")])
    with pytest.raises(ConfigError, match=r"got 2 models \(a, b\), expected one"):
        build_app(both)


def test_a_taken_port_is_an_error_before_anything_is_deployed() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{taken}"):
            ray_cluster.check_port("127.0.0.1", taken)
        assert ray_cluster.free_port() != taken
