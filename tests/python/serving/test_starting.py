"""What a replica opens that starts: what was decided, as far as that still lies there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from following_fakes import TRIAL, Cluster, Replica

from headrace.errors import ConfigError
from headrace.serving import assignment
from headrace.serving.assignment import Assignment, Edition
from headrace.serving.starting import assigned


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


@pytest.mark.parametrize("mode", ["replace", "canary"])
async def test_a_model_whose_files_broke_is_repaired_by_what_is_deployed_next(tmp_path: Path, mode: str) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    cluster.put(1, "rubbish")
    with pytest.raises(ConfigError, match="got files that changed since they were deployed"):
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
    with pytest.raises(ConfigError, match="got files that changed since they were deployed"):
        Replica(9, cluster.store)
    cluster.deploy()
    cluster.replicas += [late, Replica(9, cluster.store)]
    assert await cluster.replicas[-1].ask() == "1"
    await cluster.close()


async def test_a_replica_that_starts_serves_what_was_decided_or_not_at_all(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=1)
    cluster.put(1, "other")  # and nobody deploys it
    with pytest.raises(
        ConfigError, match=r"version 1: got files that changed .*: put these back, or deploy the others"
    ):
        Replica(1, cluster.store)
    cluster.put(1)
    os.utime(cluster.folder / "1" / "model.onnx", ns=(1, 1))
    cluster.replicas.append(Replica(2, cluster.store))  # the same bytes, copied again
    assert cluster.serving == ["1", "1"]
    await cluster.close()


async def test_files_that_only_the_replicas_have_are_served_as_they_are(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    model = cluster.edition().model
    assert Edition.of(msgspec.structs.replace(model, files={1: tmp_path / "elsewhere"})).digest == ""
    unseen = Edition(model=model, contents="as of nothing")
    cluster.store.put("doubler", Assignment(generation=1, running=unseen).encode())
    cluster.replicas.append(Replica(0, cluster.store))
    assert cluster.serving == ["1"]
    await cluster.close()


def test_what_a_replica_notes_beside_a_plan_is_no_change(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    before = cluster.edition()
    (cluster.folder / "1" / "plan.headrace.parity").write_text("ok")
    assert cluster.edition() == before
    (cluster.folder / "1" / "plan.headrace").write_text("a plan")
    assert cluster.edition() != before


def test_a_file_that_cannot_be_read_is_an_error_and_not_left_unchecked(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    model, missing = cluster.edition().model, cluster.folder / "2" / "model.onnx"
    model = msgspec.structs.replace(model, files={**model.files, 2: missing})
    with pytest.raises(ConfigError, match=r"model 'doubler': got .*doubler/2.*, expected files that can be read"):
        Edition.of(model)


def test_the_files_in_folders_of_a_version_are_its_own_too(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    weights = cluster.folder / "1" / "weights" / "layer.bin"
    weights.parent.mkdir()
    weights.write_text("a")
    before = cluster.edition()
    weights.write_text("b")
    assert not before.is_there
    assert not cluster.edition().is_as(before)
    weights.write_text("a")
    assert before.is_there


def test_a_replica_that_knows_what_it_is_to_serve_does_not_read_the_files_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, replicas=0)
    model, kept = cluster.edition().model, cluster.store.get("doubler")
    assert assigned(None, model).running == cluster.edition()
    monkeypatch.setattr(assignment, "_digest", None)
    assert kept is not None
    assert assigned(kept, model) == Assignment.decode(kept)
