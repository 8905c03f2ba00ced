"""What the front decides on the replicas' word alone, and keeps."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from following_fakes import Memory
from onnx import TensorProto, helper, numpy_helper

from headrace.config import AutoscalingConfig, ModelConfig, ModelSettings, ModelSource, RolloutSettings, load_model_path
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


def _settings() -> ModelSettings:
    return ModelSettings(rollout=RolloutSettings(mode="canary"), threads=2)


def test_what_was_not_read_from_a_file_cannot_be_read_again() -> None:
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    with pytest.raises(NotOffered, match="'m'"):
        Edition.of(model).again()
    assert msgspec.structs.asdict(Edition.of(model))["contents"]


@pytest.mark.parametrize("by", ["load", "bring"])
def test_no_model_comes_back_with_what_was_rolled_back(by: str) -> None:
    assignments = Assignments(Memory())
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    good, bad, other = (Edition(model=model, contents=contents) for contents in ("good", "bad", "other"))
    assignments.bring("m", good, AutoscalingConfig(max_replicas=7))
    generation = assignments.bring("m", bad).generation
    assignments.report("m", "0", Standing(generation, "failed", "it is bad"))
    now = assignments.unload("m")
    for edition, running in ((bad, good), (other, other)):
        after = getattr(assignments, by)("m", edition)
        assert (after.running, after.candidate, after.unloaded) == (running, None, by == "load")
        assert (after.reason, after.scaling.max_replicas) == ("it is bad" if running is good else "", 7)
        assert after.generation > now.generation
        now = assignments.unload("m")
    assert not assignments.loaded("m").unloaded


def test_what_was_rolled_back_is_known_by_its_bytes() -> None:
    assignments = Assignments(Memory())
    model = ModelConfig(name="m", files={1: Path("/a/m/1/model.onnx")}, settings=_settings())
    good, bad, touched = (
        Edition(model=model, contents=contents, digest=contents[:3]) for contents in ("good", "bad", "bad, but later")
    )
    assignments.bring("m", good)
    generation = assignments.bring("m", bad).generation
    assignments.report("m", "0", Standing(generation, "failed", "it is bad"))
    assert assignments.bring("m", touched).candidate is None
    assignments.unload("m")
    assert assignments.load("m", touched).running == good
    assignments.loaded("m")
    for other in (
        Edition(model=model, contents="bad", digest="of other bytes"),
        Edition(model=msgspec.structs.replace(model, settings=ModelSettings()), contents="bad", digest="bad"),
    ):
        assert assignments.bring("m", other).candidate == other


def test_weights_beside_a_single_file_are_part_of_the_edition(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(256, np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
    path, beside = tmp_path / "tickets.onnx", tmp_path / "w.bin"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    before = Edition.of(load_model_path(path))
    (tmp_path / "other.bin").write_bytes(b"of another model")
    assert before.is_there
    assert Edition.of(load_model_path(path)).is_as(before)
    beside.write_bytes(np.full(256, 7, np.float32).tobytes())
    assert not before.is_there
    assert not Edition.of(load_model_path(path)).is_as(before)
