"""New versions in many replicas at once: who follows what, and who decides, on fakes in one process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from serving_fakes import FakeBatcher, FakeEngine

from headrace.config import ModelConfig, ModelSource, RolloutSettings, load_model_folder
from headrace.errors import ConfigError, ExecutionError, InvalidModel, NotOffered
from headrace.serving import follower
from headrace.serving.assignment import SILENT_S_MAX, Assignment, Assignments, Edition, Standing
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

    def __init__(self, number: int, store: Memory) -> None:
        self.name = f"replica-{number}"
        self.engines: list[FakeEngine] = []
        given = store.get("doubler")
        assert given is not None
        assignment = Assignment.decode(given)
        self.host, serving = load_assigned(assignment, self.open_host, lambda model: model)
        self.follower = Follower(self.host, assignment, lambda model: model, serving)
        self.follower.follow()

    def open_host(self, model: ModelConfig) -> ModelHost:
        return ModelHost([model], engine_opener=self.open, batcher_opener=FakeBatcher)

    def open(self, path: Path, settings: Any) -> FakeEngine:
        content = path.read_text()
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

        self.host._engine_opener = open_late
        return gate

    async def ask(self) -> str:
        served, _ = await self.host.route("doubler").infer(CALL)
        return served.version

    def report(self, assignments: Assignments) -> None:
        newer = assignments.report("doubler", self.name, self.follower.standing())
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
    """A model's folder, its replicas and the front."""

    def __init__(self, root: Path, replicas: int = 3) -> None:
        self.folder = root / "doubler"
        self.store = Memory()
        self.assignments = Assignments(self.store)
        self.put(1)
        self.assignments.bring("doubler", self.edition())
        self.replicas = [Replica(number, self.store) for number in range(replicas)]

    def put(self, version: int, content: str = "a model", **rollout: Any) -> None:
        path = self.folder / str(version) / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if rollout:
            text = "\n".join(f"{key} = {value!r}" for key, value in rollout.items())
            (self.folder / "headrace.toml").write_text("[rollout]\n" + text)

    def edition(self) -> Edition:
        return Edition.of(load_model_folder(self.folder))

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


async def test_a_new_version_replaces_the_old_one_in_every_replica(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.put(2)
    cluster.deploy()
    await cluster.settle()
    assert cluster.serving == ["2"] * 3
    assert [one.open_engines for one in cluster.replicas] == [1] * 3
    assert cluster.assignments.status("doubler") == {"generation": 3, "running": "2"}
    await cluster.close()


async def test_a_canary_is_judged_on_what_all_replicas_saw_together(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.put(2, mode="canary", share=0.5, **TRIAL | {"min_requests": 30})
    cluster.deploy()
    # No replica alone has 30 requests of each version when it is decided.
    answered = await cluster.settle(requests=4)
    assert cluster.serving == ["2"] * 3
    assert {"1", "2"} == set(answered)
    assert answered.count("2") < 30 + 4 * 3 * 3
    await cluster.close()


@pytest.mark.parametrize("mode", ["canary", "shadow"])
async def test_a_version_that_fails_is_rolled_back_everywhere_and_not_tried_again(tmp_path: Path, mode: str) -> None:
    cluster = Cluster(tmp_path)
    cluster.put(2, "failing", mode=mode, share=0.5, **TRIAL)
    cluster.deploy()
    answered = await cluster.settle()
    assert set(answered) == {"1"}, "callers must see nothing of the trial"
    assert [one.open_engines for one in cluster.replicas] == [1] * 3
    status = cluster.assignments.status("doubler")
    assert status["running"] == "1"
    assert status["rolled_back"]["version"] == "2"
    assert "failures" in status["rolled_back"]["reason"]
    before = cluster.assignments.get("doubler")
    assert cluster.deploy() == before, "what was rolled back is not tried again as it is"
    cluster.put(2, "a model", mode=mode, share=0.5, **TRIAL)
    cluster.deploy()
    await cluster.settle()
    assert cluster.serving == ["2"] * 3, "once it has changed it is"
    assert "rolled_back" not in cluster.assignments.status("doubler")
    await cluster.close()


async def test_a_shadow_that_diverges_is_rolled_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.put(2, "other", mode="shadow", share=0.5, divergent_max=0.1, **TRIAL)
    cluster.deploy()
    await cluster.settle()
    assert cluster.serving == ["1"] * 3
    assert "divergence" in cluster.assignments.status("doubler")["rolled_back"]["reason"]
    await cluster.close()


@pytest.mark.parametrize("mode", ["replace", "canary"])
async def test_a_version_that_does_not_load_changes_nothing(tmp_path: Path, mode: str) -> None:
    cluster = Cluster(tmp_path)
    cluster.put(2, "rubbish", mode=mode)
    cluster.deploy()
    answered = await cluster.settle()
    assert set(answered) == {"1"}
    assert "got rubbish" in cluster.assignments.status("doubler")["rolled_back"]["reason"]
    assert not any(one.follower.broken for one in cluster.replicas)
    await cluster.close()


async def test_replicas_that_start_during_and_after_a_trial_open_the_right_versions(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=1)
    cluster.put(2, mode="canary", share=0.5, **TRIAL | {"min_requests": 40})
    cluster.deploy()
    trial = lambda: all(one.host.trial("doubler") for one in cluster.replicas)  # noqa: E731
    await cluster.settle(1, trial)
    cluster.replicas.append(Replica(7, cluster.store))
    assert cluster.replicas[1].host.find("doubler").version == "1"
    await cluster.settle(1, trial)
    answered = [await cluster.replicas[1].ask() for _ in range(4)]
    assert sorted(answered) == ["1", "1", "2", "2"]
    await cluster.settle()
    cluster.replicas.append(Replica(8, cluster.store))
    assert cluster.serving == ["2", "2", "2"]
    assert cluster.replicas[2].open_engines == 1
    await cluster.close()


async def test_a_front_that_starts_again_knows_what_was_decided_and_learns_the_evidence(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.put(2, mode="canary", share=0.5, **TRIAL | {"min_requests": 50})
    cluster.deploy()
    await cluster.settle(1, lambda: all(one.host.trial("doubler") for one in cluster.replicas))
    await cluster.turn(10)
    seen = cluster.assignments.status("doubler")["candidate"]["candidate"]["requests"]
    cluster.assignments = Assignments(cluster.store)
    assert cluster.assignments.status("doubler")["candidate"]["candidate"]["requests"] == 0
    await cluster.turn()
    assert cluster.assignments.status("doubler")["candidate"]["candidate"]["requests"] == seen >= 15
    await cluster.settle(10)
    cluster.put(3, "failing", mode="canary", share=0.5, **TRIAL)
    cluster.deploy()
    await cluster.settle()
    cluster.assignments = Assignments(cluster.store)
    status = cluster.assignments.status("doubler")
    assert (status["running"], status["rolled_back"]["version"]) == ("2", "3")
    assert cluster.deploy().candidate is None
    await cluster.close()


async def test_a_deployment_during_a_trial_takes_its_place(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.put(2, mode="canary", share=0.5, **TRIAL | {"min_requests": 10**6})
    cluster.deploy()
    await cluster.settle(1, lambda: all(one.host.trial("doubler") for one in cluster.replicas))
    cluster.put(3, mode="canary", share=0.5, **TRIAL)
    cluster.deploy()
    await cluster.settle()
    assert cluster.serving == ["3"] * 3
    # Back to what serves already: whatever is on trial is given up.
    third = cluster.edition()
    cluster.put(4, mode="canary", share=0.5, **TRIAL | {"min_requests": 10**6})
    cluster.deploy()
    await cluster.settle(1, lambda: all(one.host.trial("doubler") for one in cluster.replicas))
    cluster.assignments.bring("doubler", third)
    await cluster.settle()
    assert cluster.serving == ["3"] * 3
    assert [one.open_engines for one in cluster.replicas] == [1] * 3
    await cluster.close()


async def test_a_replica_that_cannot_follow_says_so_and_serves_on(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=2)
    # Loads in one replica, which decides it, and not in the other.
    cluster.replicas[1].open = lambda path, settings: 1 / 0  # type: ignore[assignment, method-assign]
    cluster.replicas[1].host._engine_opener = cluster.replicas[1].open
    cluster.put(2)
    cluster.assignments.bring("doubler", cluster.edition())
    lagging = cluster.replicas.pop()
    await cluster.settle()
    cluster.replicas.append(lagging)
    await cluster.settle(1, lambda: bool(lagging.follower.broken))
    assert "ZeroDivisionError" in lagging.follower.broken
    assert await lagging.ask() == "1"
    await cluster.close()


@pytest.mark.parametrize(("dead", "alive", "blamed"), [(3, 0, True), (3, 2, True), (3, 3, False), (2, 0, False)])
def test_a_version_that_replicas_die_of_is_rolled_back(tmp_path: Path, dead: int, alive: int, blamed: bool) -> None:
    now = [100.0]
    assignments = Assignments(Memory(), lambda: now[0])
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    first = Edition.of(model)
    assignments.bring("m", first)
    generation = assignments.bring("m", Edition(model=model, contents="changed")).generation
    for number in range(dead):  # one after the other: what crashes is started again
        assignments.report("m", f"dead-{number}", Standing(generation, "loading"))
        now[0] += SILENT_S_MAX / 2
    for number in range(alive):
        assignments.report("m", f"alive-{number}", Standing(generation, "trial"))
    assignments.report("m", "drained", Standing(generation, "loading"), final=True)
    for _ in range(2):
        now[0] += SILENT_S_MAX / 2
        for number in range(max(alive, 1)):
            assignments.report("m", f"alive-{number}", Standing(generation, "trial"))
    assert ("rolled_back" in assignments.status("m")) == blamed


@pytest.mark.parametrize("mode", ["replace", "canary"])
async def test_a_model_whose_files_broke_is_repaired_by_what_is_deployed_next(tmp_path: Path, mode: str) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    cluster.put(1, "rubbish")
    with pytest.raises(InvalidModel, match="got rubbish"):
        Replica(0, cluster.store)
    cluster.put(2, mode=mode)
    (cluster.folder / "1" / "model.onnx").unlink()
    (cluster.folder / "1").rmdir()
    cluster.deploy()
    cluster.replicas = [Replica(number, cluster.store) for number in (1, 2)]
    await asyncio.sleep(0.05)
    assert cluster.serving == ["2", "2"]
    assert not any(one.follower.broken for one in cluster.replicas)
    await cluster.settle()
    assert cluster.serving == ["2", "2"]
    assert cluster.assignments.status("doubler")["running"] == "2"
    # They follow on from there.
    cluster.put(3, mode="replace")
    cluster.deploy()
    await cluster.settle()
    assert cluster.serving == ["3", "3"]
    await cluster.close()


async def test_a_replica_that_starts_during_a_trial_in_place_does_not_end_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    cluster.put(1, mode="canary", share=0.5, **TRIAL)
    cluster.store.kept.clear()
    cluster.assignments.forget()
    cluster.deploy()
    cluster.replicas = [Replica(number, cluster.store) for number in (1, 2)]
    cluster.put(1, "failing")
    cluster.deploy()
    await cluster.settle(0, lambda: all(one.host.trial("doubler") for one in cluster.replicas))
    cluster.replicas.append(Replica(7, cluster.store))
    await cluster.settle(0, lambda: cluster.replicas[2].follower.standing().state == "ready")
    await cluster.turn()
    late = cluster.replicas.pop()
    await cluster.settle()
    status = cluster.assignments.status("doubler")
    assert "failures" in status["rolled_back"]["reason"]
    # Nothing else lies there now than what was rolled back.
    with pytest.raises(ConfigError, match=r"got the files that were rolled back \(.*failures"):
        Replica(8, cluster.store)
    cluster.put(1, "a model again")
    cluster.replicas += [late, Replica(9, cluster.store)]
    assert await cluster.replicas[-1].ask() == "1"
    await cluster.close()


def test_what_a_replica_notes_beside_a_plan_is_no_change(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    before = cluster.edition()
    (cluster.folder / "1" / "plan.headrace.parity").write_text("ok")
    assert cluster.edition() == before
    (cluster.folder / "1" / "plan.headrace").write_text("a plan")
    assert cluster.edition() != before


def test_a_front_that_heard_nobody_for_a_while_takes_nobody_for_dead(tmp_path: Path) -> None:
    now = [100.0]
    assignments = Assignments(Memory(), lambda: now[0])
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    assignments.bring("m", Edition.of(model))
    generation = assignments.bring("m", Edition(model=model, contents="changed")).generation
    names = [f"replica-{number}" for number in range(4)]

    def report(*replicas: str) -> None:
        for replica in replicas:
            assignments.report("m", replica, Standing(generation, "trial"))

    report(*names)
    now[0] += 3 * SILENT_S_MAX
    report(*names)
    assert "candidate" in assignments.status("m"), "the pause was the front's"
    now[0] += 3 * SILENT_S_MAX
    report(names[0])
    for _ in range(10):  # the others do die in the next pause, which one of them shows by reporting on
        now[0] += SILENT_S_MAX / 10
        report(names[0])
    assert "rolled_back" in assignments.status("m")


async def test_a_version_that_hangs_while_it_is_opened_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "OPEN_S_MAX", 0.2)
    cluster = Cluster(tmp_path, replicas=2)
    gates = [one.hang() for one in cluster.replicas]
    cluster.put(2, "hanging")
    cluster.deploy()
    await cluster.settle()
    assert "got no end of opening it" in cluster.assignments.status("doubler")["rolled_back"]["reason"]
    assert not any(one.follower.broken for one in cluster.replicas), "what serves goes on"
    cluster.put(2, "a model")
    cluster.deploy()
    await cluster.settle()
    assert cluster.serving == ["2", "2"]
    # What it opens in the end is closed again.
    for gate in gates:
        gate.set()
    await cluster.settle(until=lambda: [one.open_engines for one in cluster.replicas] == [1, 1] and cluster.quiet())
    assert [len(one.engines) for one in cluster.replicas] == [3, 3]
    await cluster.close()


async def test_only_settings_or_only_contents_are_a_change_too(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    first = cluster.edition()
    cluster.put(1, "other")
    assert cluster.edition() != first
    cluster.deploy()
    await cluster.settle()
    assert [one.engines[-1].factor for one in cluster.replicas] == [3] * 3
    (cluster.folder / "headrace.toml").write_text("max_queue = 7")
    cluster.deploy()
    await cluster.settle()
    assert [one.host.find("doubler").settings.max_queue for one in cluster.replicas] == [7] * 3
    await cluster.close()


async def test_books_and_arrivals_never_go_back_when_a_version_is_closed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.turn(5)
    cluster.put(2)
    cluster.deploy()
    answered = await cluster.settle()
    for replica in cluster.replicas:
        books = replica.host.books()["doubler"]
        assert books.ok == 5 + len(answered) // 3
        assert books.balanced
    await cluster.close()


def test_an_assignment_survives_the_store() -> None:
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    source = ModelSource(path=Path("/a/m"), settings={"threads": 1}, file=Path("app.yaml"), where="models[0]")
    edition = Edition(model=model, contents="abc", source=source)
    kept = Assignment(generation=3, running=edition, rolled_back=edition, reason="it was late")
    assert Assignment.decode(kept.encode()) == kept


def _settings() -> Any:
    from headrace.config import ModelSettings

    return ModelSettings(rollout=RolloutSettings(mode="canary"), threads=2)


def test_what_was_not_read_from_a_file_cannot_be_read_again() -> None:
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    with pytest.raises(NotOffered, match="'m'"):
        Edition.of(model).again()
    assert msgspec.structs.asdict(Edition.of(model))["contents"]
