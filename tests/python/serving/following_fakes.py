"""A model's replicas and their front in one process, on fakes: who follows what is decided."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from serving_fakes import FakeBatcher, FakeEngine

from headrace.config import AutoscalingConfig, ModelConfig, in_group, load_model_folder
from headrace.errors import ExecutionError, InvalidModel
from headrace.serving.assignment import Assignment, Assignments, Edition
from headrace.serving.decode import InferCall
from headrace.serving.follower import Follower
from headrace.serving.host import ModelHost
from headrace.serving.starting import load_assigned

CALL = InferCall(inputs={"x": np.ones((1, 3), np.float32)}, outputs=(), id=None, priority=0, timeout_us=0)
TRIAL = {"min_requests": 10, "min_s": 0.0, "slower_max": 1e6}


class Memory:
    """A store that outlives the front."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def put(self, name: str, content: bytes) -> None:
        self.kept[name] = content


class Replica:
    """One replica, as `ray_app` makes it."""

    def __init__(self, number: int, store: Memory, group: str = "") -> None:
        self.name, self.group = f"replica-{number}", group
        self.engines: list[FakeEngine] = []
        # What it finds in every file, whatever lies there.
        self.content = ""
        given = store.get("doubler")
        assert given is not None
        assignment = Assignment.decode(given)
        self.host, serving = load_assigned(assignment, self.open_host, self.adapt)
        self.follower = Follower(self.host, assignment, self.adapt, serving)
        self.follower.follow()

    def adapt(self, model: ModelConfig) -> ModelConfig:
        return in_group(model, self.group)

    def open_host(self, model: ModelConfig) -> ModelHost:
        return ModelHost([model], engine_opener=self.open, batcher_opener=FakeBatcher)

    def open(self, path: Path, settings: Any) -> FakeEngine:
        content = self.content or path.read_text()
        if content == "rubbish":
            raise InvalidModel(f"{path}: got rubbish, expected a model")
        engine = FakeEngine()
        # The warm-up is a request of least size; what a failing version fails at is any other.
        engine.factor = 3 if content == "other" else 2
        if content == "failing":
            engine.run_batch = failing(engine.run_batch)  # type: ignore[method-assign]
        self.engines.append(engine)
        return engine

    def hang(self) -> threading.Event:
        """Has what is "hanging" hang while it is opened, until the event is set."""
        gate, opener = threading.Event(), self.open

        def open_late(path: Path, settings: Any) -> FakeEngine:
            if path.read_text() == "hanging":
                gate.wait(20)
            return opener(path, settings)

        self.host._loader.engine_opener = open_late
        return gate

    async def ask(self) -> str:
        served, _ = await self.host.route("doubler").infer(CALL)
        return served.version

    def report(self, assignments: Assignments) -> None:
        newer = assignments.report("doubler", self.name, self.follower.standing(), group=self.group)
        if newer is not None:
            self.follower.follow(newer)

    @property
    def open_engines(self) -> int:
        return sum(not engine.closed for engine in self.engines)


def failing(run: Callable[..., Any]) -> Callable[..., Any]:
    warmed: list[bool] = []

    def run_batch(requests: Any) -> Any:
        if warmed:
            raise ExecutionError("got a request, expected none: a failing model")
        warmed.append(True)
        return run(requests)

    return run_batch


class Cluster:
    """A model's folder, its replicas and the front.

    Attributes:
        groups: Of each group of replicas, what its settings say in place of the model's own.
    """

    def __init__(self, root: Path, replicas: int = 3, groups: Sequence[str] = ()) -> None:
        self.groups: dict[str, dict[str, Any]] = {group: {} for group in groups}
        self.folder = root / "doubler"
        self.store = Memory()
        self.assignments = Assignments(self.store)
        self.put(1)
        scaling = AutoscalingConfig(groups={group: AutoscalingConfig() for group in groups})
        self.assignments.bring("doubler", self.edition(), scaling)
        self.replicas = [
            Replica(number, self.store, groups[number % len(groups)] if groups else "") for number in range(replicas)
        ]

    def put(self, version: int, content: str = "a model", **rollout: Any) -> None:
        path = self.folder / str(version) / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if rollout:
            text = "\n".join(f"{key} = {value!r}" for key, value in rollout.items())
            (self.folder / "headrace.toml").write_text("[rollout]\n" + text)

    def edition(self) -> Edition:
        model = load_model_folder(self.folder)
        groups = {group: replace(model.settings, **changes) for group, changes in self.groups.items()}
        return Edition.of(replace(model, groups=groups))

    def deploy(self) -> Assignment:
        return self.assignments.bring("doubler", self.edition())

    async def turn(self, requests: int = 0) -> list[str]:
        """Some requests to each replica, then one report of each."""
        answered = [await replica.ask() for _ in range(requests) for replica in self.replicas]
        await asyncio.sleep(0.01)
        for replica in self.replicas:
            replica.report(self.assignments)
        return answered

    async def settle(self, requests: int = 2, until: Callable[[], bool] | None = None) -> list[str]:
        """Turns until there is no candidate and every replica has followed; returns who answered."""
        answered: list[str] = []
        for _ in range(400):
            answered += await self.turn(requests)
            if until is not None and until():
                return answered
            now = self.assignments.get("doubler")
            assert now is not None
            settled = all(one.follower._reached == now.generation for one in self.replicas)
            if until is None and now.candidate is None and settled and self.quiet():
                return answered
        raise AssertionError(f"it did not settle: {self.assignments.status('doubler')}")

    def quiet(self) -> bool:
        return all(not list(one.host._retiring) for one in self.replicas)

    @property
    def serving(self) -> list[str]:
        return [one.host.find("doubler").version for one in self.replicas]

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.follower.close()
            await asyncio.to_thread(replica.host.close)
            assert replica.open_engines == 0
