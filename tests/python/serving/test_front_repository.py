"""Loading and unloading the models of a deployment through its front, without Ray and over fake engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the Ray extra is not installed")

from ingress_fakes import INFER, Replica, front_state
from msgspec.structs import replace
from serving_fakes import acall, rows

from headrace.config import AutoscalingConfig, DeployedModel, ModelSource, load_source
from headrace.errors import ExecutionError
from headrace.serving import assignment as assignment_module
from headrace.serving import front as front_module
from headrace.serving import front_repository
from headrace.serving.assignment import Assignment, Assignments, Edition
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_ledgers import ReplicaLedger
from headrace.serving.grpc_app import CallInfo, Refusal
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.messages import RPCS
from headrace.serving.standings import Standing

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
        # So many attempts to end something fail, and those that do not wait for this.
        self.stuck = 0
        self.may_end = threading.Event()
        self.may_end.set()
        # What happens while replicas start.
        self.meanwhile: Callable[[], Any] = lambda: None

    def start(self, deployed: DeployedModel, timeout_s: float) -> None:
        if self.fails:
            raise ExecutionError(self.fails)
        self.started.append(deployed)
        self.running[deployed.model.name] = Replica()
        self.meanwhile()

    def end(self, name: str) -> bool:
        if self.stuck > 0:
            self.stuck -= 1
            raise ExecutionError("got an application that does not end")
        self.may_end.wait(10)
        if (replica := self.running.get(name)) is None:
            return False
        self.wait(replica.door.drain(5))
        self.wait(self.front.report(self._ledger(name), None))
        del self.running[name]
        return True

    def wait(self, work: Coroutine[Any, Any, Any]) -> None:
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
    (books,) = (await deployment.front.books()).values()
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


async def test_a_front_that_ends_tells_those_whose_change_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    assert await deployment.infer() == 200
    deployment.serve.may_end.clear()
    unloading = asyncio.create_task(deployment.change("unload"))
    while not deployment.front.unloaded:
        await asyncio.sleep(0.005)
    await deployment.front.stop()
    answer = await unloading
    assert (answer.status, "while the deployment ends" in answer.error) == (503, True)
    deployment.serve.running["doubler"].die()
    deployment.serve.running.clear()
    deployment.serve.may_end.set()


async def test_a_front_that_starts_again_ends_what_was_being_unloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_repository, "END_RETRY_S", 0.01)
    deployment = Deployment(tmp_path, monkeypatch)
    Assignments(deployment.store).unload("doubler")  # and then the front was killed
    deployment.serve.stuck = 2
    deployment.serve.may_end.clear()
    await deployment.start_front()
    while deployment.serve.stuck:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    loading = asyncio.create_task(deployment.change("load"))
    await asyncio.sleep(0.05)
    assert await deployment.infer() == 404
    assert len(deployment.serve.started) == 1, "what is started before the end would be ended with it"
    deployment.serve.may_end.set()
    assert (await loading).status == 200
    assert await deployment.infer() == 200
    await deployment.front.stop()
    deployment.serve.running["doubler"].die()


async def test_a_load_that_meets_an_unload_leaves_the_model_as_the_store_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    reads, go_on = threading.Event(), threading.Event()

    def slow(name: str, source: ModelSource) -> Any:
        reads.set()
        go_on.wait(10)
        return load_source(name, source)

    monkeypatch.setattr(assignment_module, "load_source", slow)
    loading = asyncio.create_task(deployment.change("load"))
    await asyncio.to_thread(reads.wait, 10)
    unloading = asyncio.create_task(deployment.change("unload"))
    await asyncio.sleep(0.05)
    go_on.set()
    assert [(await loading).status, (await unloading).status] == [200, 200]
    assert not deployment.serve.running
    assert Assignment.decode(deployment.store["doubler"]).unloaded
    assert await deployment.index() == [("", "UNAVAILABLE", "unloaded")]
    await deployment.front.stop()


async def test_the_index_shows_what_is_stuck_out_of_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    assignments = deployment.front.assignments
    first = assignments.get("doubler").running
    standing = Standing(assignments.bring("doubler", replace(first, contents="changed")).generation, "failed", "bad")
    assignments.report("doubler", "0", standing)
    assert assignments.status("doubler")["rolled_back"]["reason"] == "bad"
    later = assignments.get("doubler").generation
    assignments.report("doubler", "0", Standing(later, stuck=("1", "7")))
    assignments.report("doubler", "1", Standing(later, stuck=("7",)))
    stuck = "out of service, and stuck in a batch in {}: what it holds there is free when the replica ends"
    assert await deployment.index() == [
        ("1", "READY", ""),
        ("1", "UNAVAILABLE", f"was rolled back: bad; {stuck.format('1 replica')}"),
        ("7", "UNAVAILABLE", stuck.format("2 replicas")),
    ]
    await deployment.front.stop()


async def test_an_unload_that_failed_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    deployment.serve.stuck = 2  # the front tries it once more at once, and again after seconds
    assert (await deployment.change("unload")).status == 500
    while deployment.serve.stuck:
        await asyncio.sleep(0.005)
    assert deployment.serve.running
    assert (await deployment.change("unload")).status == 200
    assert not deployment.serve.running
    assert (await deployment.change("unload")).status == 404
    await deployment.front.stop()


async def test_what_an_unload_could_not_end_is_ended_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_repository, "END_RETRY_S", 0.01)
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    deployment.serve.stuck = 4
    assert (await deployment.change("unload")).status == 500
    while deployment.serve.running:
        await asyncio.sleep(0.005)
    await deployment.front.stop()


async def test_a_model_that_is_named_no_more_while_it_is_loaded_leaves_no_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    assert (await deployment.change("unload")).status == 200

    def leave() -> None:
        del deployment.store["doubler"]
        deployment.serve.wait(deployment.front.set_names([]))

    deployment.serve.meanwhile = leave
    assert (await deployment.change("load")).status == 404
    assert not deployment.serve.running
    assert not deployment.store, "nobody may find it there again"
    await deployment.front.stop()


async def test_a_request_that_waits_for_a_replica_during_an_unload_may_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, monkeypatch)
    await deployment.start_front()
    deployment.serve.running.clear()
    waiting = asyncio.create_task(deployment.ask(INFER, "POST", rows(1, 2, 3)))
    while not deployment.front.pools["doubler"]._waiting:
        await asyncio.sleep(0.005)
    assert (await deployment.change("unload")).status == 200
    answer = await waiting
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    await deployment.front.stop()
