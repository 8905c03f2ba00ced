"""Loading and unloading the models of a deployment through its front, without Ray and over fake engines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the Ray extra is not installed")

from ingress_fakes import INFER, Replica, front_state
from serving_fakes import acall, rows

from headrace.config import AutoscalingConfig, DeployedModel, ModelSource, load_source
from headrace.errors import ExecutionError
from headrace.serving import front as front_module
from headrace.serving import front_repository
from headrace.serving.assignment import Assignments, Edition
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_ledgers import ReplicaLedger
from headrace.serving.grpc_app import CallInfo, Refusal
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.messages import RPCS

TOKEN = "a-token-for-tests-only"
SCALING = AutoscalingConfig(min_replicas=2, max_replicas=7, leave_s=3.0)


class Memory(dict[str, bytes]):
    """Stands in for Ray's store."""

    def put(self, name: str, content: bytes) -> None:
        self[name] = content

    def names(self) -> list[str]:
        return sorted(self)


class Serve:
    """Serve, as far as the front sees it: one replica of each application."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.front: Any = None
        self.running: dict[str, Replica] = {}
        self.started: list[DeployedModel] = []
        self.fails = ""

    def start(self, deployed: DeployedModel, timeout_s: float) -> None:
        if self.fails:
            raise ExecutionError(self.fails)
        self.started.append(deployed)
        self.running[deployed.model.name] = Replica()

    def end(self, name: str) -> None:
        if (replica := self.running.get(name)) is not None:
            self._wait(replica.door.drain(5))
            self._wait(self.front.report(self._ledger(name), None))
            del self.running[name]

    def _wait(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def _ledger(self, name: str) -> ReplicaLedger:
        return ReplicaLedger(name, "0", 1, self.running[name].served.batchers[0].stats(), {}, True)

    async def wake(self, name: str, group: str) -> tuple[str, DoorAddress]:
        replica = self.running[name]
        return str(id(replica)), await replica.open()

    def status(self) -> Any:
        running = SimpleNamespace(status="RUNNING", message="", deployments={})
        return SimpleNamespace(applications=dict.fromkeys(self.running, running))


class Deployment:
    """A model that was deployed from a folder, and its front."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = root / "doubler"
        self.put(1)
        self.store, self.serve = Memory(), Serve()
        monkeypatch.setattr(front_module, "RayStore", lambda: self.store)
        monkeypatch.setattr(front_module, "_statuses", lambda: {name: "RUNNING" for name in self.serve.running})
        monkeypatch.setattr(front_repository.serve, "status", self.serve.status)
        source = ModelSource(path=self.folder, file=root / "app.yaml", where="models[0]")
        edition = Edition.of(load_source("doubler", source), source)
        Assignments(self.store).bring("doubler", edition, SCALING)
        self.serve.start(DeployedModel(model=edition.model, autoscaling=SCALING, source=source), 1)

    def put(self, version: int) -> None:
        path = self.folder / str(version) / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_text("a model")

    async def start_front(self) -> None:
        self.front = self.serve.front = front_state(self.serve, TOKEN)
        self.front._wake = self.serve.wake
        await self.front.start(self.store.names())
        self.calls = FrontGrpcApp(self.front.app.service, self.front.pools, self.front.unloaded)

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", token: str = TOKEN) -> Any:
        return await acall(self.front.app, method, path, body, {"authorization": f"Bearer {token}"})

    async def infer(self) -> int:
        status: int = (await self.ask(INFER, "POST", rows(1, 2, 3))).status
        return status

    async def change(self, what: str, token: str = TOKEN) -> Any:
        return await self.ask(f"/v2/repository/models/doubler/{what}", "POST", token=token)

    async def index(self) -> list[tuple[str, str, str]]:
        listed = (await self.ask("/v2/repository/index", "POST")).json
        return [(one["version"], one["state"], one["reason"]) for one in listed]


async def test_an_unload_answers_what_was_accepted_and_a_load_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    assert await deployment.infer() == 200
    assert await deployment.index() == [("1", "READY", "")]
    assert (await deployment.change("unload", "not-the-token-at-all")).status == 401

    served = deployment.serve.running["doubler"].served
    served.engines[0].gate.clear()
    under_way = asyncio.create_task(deployment.infer())
    while served.batchers[0].ledger["queued"] == 0:
        await asyncio.sleep(0.005)
    unloading = asyncio.create_task(deployment.change("unload"))
    while (await deployment.ask("/v2/models/doubler/ready")).status != 404:
        await asyncio.sleep(0.005)
    assert await deployment.infer() == 404
    assert not unloading.done()
    served.engines[0].gate.set()
    assert await under_way == 200
    assert (await unloading).status == 200

    assert not deployment.serve.running
    (books,) = deployment.front.books().values()
    assert books.balanced
    assert (books.accepted, books.ok, books.queued) == (2, 2, 0)
    assert await deployment.index() == [("", "UNAVAILABLE", "unloaded")]
    assert (await deployment.ask("/v2/models/doubler/stats")).status == 404
    assert (await deployment.ask("/v2/health/ready")).status == 200, "as of one server whose models were all unloaded"
    call = await deployment.calls.relay(
        "ModelReady", RPCS["ModelReady"][0](name="doubler").SerializeToString(), CallInfo()
    )
    assert isinstance(call, Refusal)
    assert call.status == "NOT_FOUND"
    assert (await deployment.change("unload")).status == 404, "it is unloaded already"

    deployment.put(2)
    assert (await deployment.change("load")).status == 200
    assert await deployment.infer() == 200
    assert await deployment.index() == [("2", "READY", "")]
    started = deployment.serve.started[-1]
    assert (set(started.model.files), started.autoscaling) == ({2}, SCALING)
    await deployment.front.stop()
    deployment.serve.running["doubler"].die()


async def test_a_load_that_fails_leaves_the_model_unloaded_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    assert (await deployment.change("unload")).status == 200
    deployment.serve.fails = "got rubbish, expected a model"
    failed = await deployment.change("load")
    assert (failed.status, "got rubbish" in failed.error) == (400, True)
    ((_, state, reason),) = await deployment.index()
    assert state == "UNAVAILABLE"
    assert "the last load failed: ExecutionError: got rubbish" in reason
    assert await deployment.infer() == 404
    deployment.serve.fails = ""
    assert (await deployment.change("load")).status == 200
    assert await deployment.infer() == 200
    await deployment.front.stop()
    deployment.serve.running["doubler"].die()


async def test_a_front_that_starts_again_ends_what_was_being_unloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    Assignments(deployment.store).unload("doubler")  # and then the front was killed
    await deployment.start_front()
    while deployment.serve.running:
        await asyncio.sleep(0.005)
    assert await deployment.infer() == 404
    assert (await deployment.change("load")).status == 200
    assert await deployment.infer() == 200
    await deployment.front.stop()
    deployment.serve.running["doubler"].die()
