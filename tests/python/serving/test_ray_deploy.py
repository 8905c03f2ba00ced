"""What `deploy` and `Deployment.update` do to what runs already, on a stand-in for Serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the Ray extra is not installed")

import headrace
from headrace.config import AutoscalingConfig, DeployConfig, DeployedModel, HttpConfig, ModelConfig, ModelSettings
from headrace.errors import ConfigError, ExecutionError
from headrace.serving import ray_deploy, ray_models
from headrace.serving.assignment import Assignment, Assignments, Edition
from headrace.serving.front_shared import FRONT, MODEL_DEPLOYMENT, FrontAddress
from headrace.serving.ingress.wire import WIRE
from headrace.serving.ray_build import Making
from headrace.serving.standings import Standing


class Memory(dict[str, bytes]):
    """Stands in for Ray's store."""

    def put(self, name: str, content: bytes) -> None:
        self[name] = content

    def names(self) -> list[str]:
        return sorted(self)

    def delete(self, name: str) -> None:
        self.pop(name, None)


class FakeFront:
    """The front as its handle shows it."""

    def __init__(self, where: FrontAddress, store: Memory) -> None:
        self._where = where
        self.names: list[str] = []
        self.assignments = Assignments(store)

    def __getattr__(self, method: str) -> Any:
        call: Callable[..., Any] = object.__getattribute__(self, f"on_{method}")
        return SimpleNamespace(remote=lambda *args: SimpleNamespace(result=lambda timeout_s: call(*args)))

    def on_where(self) -> FrontAddress:
        return self._where

    def on_set_names(self, names: list[str]) -> None:
        self.names = names
        self.assignments.forget()

    def on_bring(self, name: str, edition: Edition, scaling: AutoscalingConfig) -> dict[str, Any]:
        self.assignments.bring(name, edition, scaling)
        return self.assignments.status(name)


class Cluster:
    """Serve, Ray and the front, as far as `ray_deploy` sees them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.store = Memory()
        self.applications: dict[str, Any] = {}
        self.front: FakeFront | None = None
        self.states: dict[str, str] = {}
        # The models that were run, and whether they ran already.
        self.ran: list[tuple[str, bool]] = []
        fake = SimpleNamespace(
            status=lambda: SimpleNamespace(applications=dict(self.applications)),
            delete=lambda name, _blocking: self.applications.pop(name, None),
            run_many=self.run_many,
            RunTarget=lambda app, name, route_prefix: (app, name),
            get_deployment_handle=lambda deployment, app_name: self.front,
        )
        cpus = {"CPU": 4.0}
        fake_ray = SimpleNamespace(available_resources=lambda: cpus, cluster_resources=lambda: cpus)
        for name, value in {
            "serve": fake,
            "ray": fake_ray,
            "connect": lambda tell: None,
            "start_serve": lambda http, owns_ray: "",
            "RayStore": lambda: self.store,
            "run_target": self.run_target,
            "build_front": lambda names, where, *rest: (names, where),
        }.items():
            patch.setattr(ray_deploy, name, value)
        patch.setattr(ray_models, "serve", fake)
        patch.setattr(ray_models, "RayStore", lambda: self.store)

    def run_target(self, deployed: DeployedModel, making: Making, *, runs: bool) -> Any:
        self.ran.append((deployed.model.name, runs))
        return deployed, deployed.model.name

    def run_many(self, targets: list[Any], wait_for_applications_running: bool) -> None:
        for app, name in targets:
            if name == FRONT:
                self.front = FakeFront(app[1], self.store)
                self.front.names = self.store.names() or list(app[0])
            deployments = {} if name == FRONT else {MODEL_DEPLOYMENT: SimpleNamespace(message="it is rubbish")}
            status = self.states.get(name, "RUNNING")
            self.applications[name] = SimpleNamespace(status=status, message="", deployments=deployments)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def config(root: Path, *names: str, ledger: Path | None = None, **http: Any) -> DeployConfig:
    models = []
    for name in names:
        path = root / f"{name}.onnx"
        path.touch()
        model = ModelConfig(name=name, files={1: path}, settings=ModelSettings())
        models.append(DeployedModel(model=model, autoscaling=AutoscalingConfig()))
    return DeployConfig(http=HttpConfig(**{"port": 0} | http), models=models, ledger=ledger)


def test_a_deployment_that_fails_leaves_what_ran_before_it(cluster: Cluster, tmp_path: Path) -> None:
    ray_deploy.deploy(config(tmp_path, "old"))
    cluster.states["new"] = "DEPLOY_FAILED"
    with pytest.raises(ExecutionError, match="it is rubbish"):
        ray_deploy.deploy(config(tmp_path, "old", "new"))
    assert set(cluster.applications) == {FRONT, "old"}
    assert set(cluster.store) == {"old"}
    assert cluster.front is not None
    assert cluster.front.names == ["old"]


def test_a_first_deployment_that_fails_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    cluster.states["new"] = "DEPLOY_FAILED"
    with pytest.raises(ExecutionError, match="it is rubbish"):
        ray_deploy.deploy(config(tmp_path, "new"))
    assert not cluster.applications
    assert not cluster.store


@pytest.mark.parametrize(
    "http", [{"ingress": "ray"}, {"port": 1}, {"grpc_port": 1}, {"host": "::1"}, {"caller_header": "x-other"}]
)
def test_a_front_that_cannot_be_joined_is_an_error_before_anything_changes(
    cluster: Cluster, tmp_path: Path, http: dict[str, Any]
) -> None:
    ray_deploy.deploy(config(tmp_path, "old"))
    kept = dict(cluster.store)
    (tmp_path / "old.onnx").write_text("another")
    joining = config(tmp_path, "old", "new", **http)
    with pytest.raises(ConfigError, match=r"the running front|the front listens"):
        ray_deploy.deploy(joining)
    assert set(cluster.applications) == {FRONT, "old"}
    assert cluster.store == kept, "no new edition was brought in"


def test_what_all_beside_one_front_share_must_be_the_same(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = tmp_path / "books"
    monkeypatch.setenv("HEADRACE_ADMIN_TOKEN", "the-token-of-the-first")
    deployment = ray_deploy.deploy(config(tmp_path, "old", ledger=books, caller_header="X-Caller"))
    with pytest.raises(ConfigError, match=r"^ledger: got None, expected .*books"):
        ray_deploy.deploy(config(tmp_path, "new", caller_header="X-Caller"))
    for change in ({"caller_header": "x-other"}, {"ingress": "ray", "caller_header": "x-caller"}):
        with pytest.raises(ConfigError, match="as the running front has it"):
            deployment.update(config(tmp_path, "new", ledger=books, **change))
    assert set(cluster.applications) == {FRONT, "old"}
    monkeypatch.setenv("HEADRACE_ADMIN_TOKEN", "another-token-altogether")
    with pytest.raises(ConfigError, match=r"^HEADRACE_ADMIN_TOKEN: got another token"):
        ray_deploy.deploy(config(tmp_path, "new", ledger=books, caller_header="x-caller"))
    monkeypatch.delenv("HEADRACE_ADMIN_TOKEN")
    ray_deploy.deploy(config(tmp_path, "new", ledger=books, caller_header="x-caller"))
    assert set(cluster.applications) == {FRONT, "new", "old"}


def test_an_update_says_what_it_does_not_change(cluster: Cluster, tmp_path: Path) -> None:
    deployment = ray_deploy.deploy(config(tmp_path, "old"))
    steps: list[str] = []
    deployment.update(config(tmp_path, "old", port=1), progress=steps.append)
    assert "http.port: got 1, expected" in steps[0]
    deployment.update(config(tmp_path, "old", "new"), progress=steps.append)
    assert set(cluster.applications) == {FRONT, "new", "old"}


def test_shutdown_takes_the_front_with_the_last_model(cluster: Cluster, tmp_path: Path) -> None:
    first = ray_deploy.deploy(config(tmp_path, "a"))
    second = ray_deploy.deploy(config(tmp_path, "b"))
    first.shutdown()
    assert set(cluster.applications) == {FRONT, "b"}
    second.shutdown()
    assert not cluster.applications


def test_a_new_front_does_not_know_models_that_serve_took_away_with_the_last_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    ray_deploy.deploy(config(tmp_path, "gone", "back"))
    cluster.applications.clear()  # as `serve shutdown` does
    ray_deploy.deploy(config(tmp_path, "back", "new"))
    assert cluster.front is not None
    assert cluster.front.names == ["back", "new"]
    assert set(cluster.store) == {"back", "new"}


def unload(cluster: Cluster, name: str) -> None:
    """What the front does."""
    assert cluster.front is not None
    cluster.front.assignments.unload(name)
    cluster.applications.pop(name)


def test_an_unloaded_model_stays_known_until_it_is_deployed_again_or_named_no_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    first = ray_deploy.deploy(config(tmp_path, "a", "b"))
    other = ray_deploy.deploy(config(tmp_path, "c"))
    assert cluster.front is not None
    for name in "abc":
        unload(cluster, name)
    first.update(config(tmp_path, "a"))
    assert set(cluster.applications) == {FRONT, "a"}
    assert cluster.ran[-1] == ("a", False), "it starts as a new one does"
    assert cluster.front.names == ["a", "c"]
    kept = {name: Assignment.decode(content).unloaded for name, content in cluster.store.items()}
    assert kept == {"a": False, "c": True}
    first.shutdown()
    assert set(cluster.applications) == {FRONT}, "the other deployment's model can be loaded again"
    assert cluster.front.names == ["c"]
    other.shutdown()
    assert not cluster.applications
    assert not cluster.store


def test_a_version_that_was_rolled_back_is_not_served_after_an_unload_and_a_deployment(
    cluster: Cluster, tmp_path: Path
) -> None:
    good = config(tmp_path, "a")
    ray_deploy.deploy(good)
    assert cluster.front is not None
    (tmp_path / "a.onnx").write_text("it is bad")
    bad = Edition.of(good.models[0].model)
    generation = cluster.front.assignments.bring("a", bad).generation
    cluster.front.assignments.report("a", "0", Standing(generation, "failed", "it fails"))
    unload(cluster, "a")
    kept = dict(cluster.store)
    cluster.states["a"] = "DEPLOY_FAILED"  # as what ran before does not lie there any more
    with pytest.raises(ExecutionError, match="it is rubbish"):
        ray_deploy.deploy(good)
    assert cluster.store == kept, "it is unloaded as before, and nobody forgot what was rolled back"
    assert (set(cluster.applications), cluster.front.names) == ({FRONT}, ["a"])
    del cluster.states["a"]
    steps: list[str] = []
    ray_deploy.deploy(good, progress=steps.append)
    now = Assignment.decode(cluster.store["a"])
    assert (now.rolled_back, now.unloaded) == (bad, False)
    assert now.running.digest not in ("", bad.digest)
    assert any("was rolled back, and is not tried again as it is: it fails" in step for step in steps)


def test_a_front_of_another_headrace_cannot_be_joined(cluster: Cluster, tmp_path: Path) -> None:
    deployment = ray_deploy.deploy(config(tmp_path, "old"))
    assert cluster.front is not None
    assert cluster.front._where.version == headrace.__version__
    kept = dict(cluster.store)
    for version in ("0.0.1", ""):
        cluster.front._where = replace(cluster.front._where, version=version)
        for join in (ray_deploy.deploy, deployment.update):
            with pytest.raises(ConfigError, match=f"got version {headrace.__version__}, expected {version}"):
                join(config(tmp_path, "old", "new"))
    for wire in (WIRE + 1, 0):  # two builds of one version
        cluster.front._where = replace(cluster.front._where, version=headrace.__version__, wire=wire)
        for join in (ray_deploy.deploy, deployment.update):
            with pytest.raises(ConfigError, match=f"format is number {WIRE}, expected number {wire}"):
                join(config(tmp_path, "old", "new"))
    assert set(cluster.applications) == {FRONT, "old"}
    assert cluster.store == kept


def test_the_end_of_an_unload_is_not_waited_for_where_the_model_is_deployed_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    ray_deploy.deploy(config(tmp_path, "a"))
    assert cluster.front is not None
    front, asked = cluster.front, 0
    serve: Any = ray_models.serve

    def delete(name: str, _blocking: bool) -> None:
        """Takes its time, and a deployment comes."""
        front.assignments.bring(name, Edition.of(config(tmp_path, "a").models[0].model))
        nonlocal asked
        asked += 1

    serve.delete = delete
    applications = ray_models.Applications(Making())
    assert not applications.end("a"), "it is in service"
    assert asked == 0
    front.assignments.unload("a")
    assert applications.end("a")
    assert asked == 1
    assert "a" in cluster.applications
