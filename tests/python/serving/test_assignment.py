"""What the front decides on the replicas' word alone, and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from following_fakes import Memory

from headrace.config import ModelConfig, ModelSource, RolloutSettings
from headrace.errors import NotOffered
from headrace.serving.assignment import Assignment, Assignments, Edition
from headrace.serving.standings import SILENT_S_MAX, Standing


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


def test_a_load_does_not_bring_back_what_was_rolled_back() -> None:
    assignments = Assignments(Memory())
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    good, bad, other = (Edition(model=model, contents=contents) for contents in ("good", "bad", "other"))
    assignments.bring("m", good)
    generation = assignments.bring("m", bad).generation
    assignments.report("m", "0", Standing(generation, "failed", "it is bad"))
    assignments.unload("m")
    assert assignments.load("m", bad).running == good
    assert assignments.status("m")["rolled_back"]["reason"] == "it is bad"
    assert assignments.load("m", other).running == other
    assert not assignments.loaded("m").unloaded
    assert "rolled_back" not in assignments.status("m")
