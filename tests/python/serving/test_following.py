"""New versions in many replicas at once: who follows what, and who decides."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from following_fakes import TRIAL, Cluster, Replica
from serving_fakes import FakeBatcher

from headrace.observe.ledger import Books
from headrace.serving import assignment, follower
from headrace.serving.assignment import Assignments
from headrace.serving.standings import Standing
from headrace.serving.statistics import merged


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
    told = merged(entry for one in cluster.replicas for entry in one.host.statistics())
    assert [entry["version"] for entry in told] == ["1", "2"]
    assert told[1]["inference_count"] > 0, "statistics must not forget what was rolled back"
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
    cluster.replicas[1].host._loader.engine_opener = cluster.replicas[1].open
    cluster.put(2)
    cluster.assignments.bring("doubler", cluster.edition())
    lagging = cluster.replicas.pop()
    await cluster.settle()
    cluster.replicas.append(lagging)
    await cluster.settle(1, lambda: bool(lagging.follower.broken))
    assert "ZeroDivisionError" in lagging.follower.broken
    assert await lagging.ask() == "1"
    await cluster.close()


async def test_files_that_changed_since_they_were_deployed_are_not_served(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=2)
    lagging = cluster.replicas.pop()
    cluster.put(2)
    cluster.deploy()
    await cluster.settle()
    assert cluster.serving == ["2"]
    cluster.put(2, "other")  # and nobody deploys it
    cluster.replicas.append(lagging)
    await cluster.settle(1, lambda: bool(lagging.follower.broken))
    assert "got other files than those that were deployed" in lagging.follower.broken
    assert await lagging.ask() == "1"
    cluster.replicas.remove(lagging)
    cluster.put(3)
    cluster.deploy()
    cluster.put(3, "other")
    await cluster.settle()
    assert cluster.serving == ["2"]
    assert "got other files" in cluster.assignments.status("doubler")["rolled_back"]["reason"]
    assert (cluster.replicas[0].open_engines, lagging.open_engines) == (1, 1)
    cluster.replicas.append(lagging)
    await cluster.close()


async def test_a_version_that_hangs_while_it_is_opened_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "OPEN_S_MAX", 0.2)
    # It must not take a thread away from what else needs one: one such version after the other would take them all.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    cluster = Cluster(tmp_path, replicas=2)
    gates = [one.hang() for one in cluster.replicas]
    cluster.put(2, "hanging")
    cluster.deploy()
    async with asyncio.timeout(15):
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
    late = lambda: [(len(one.engines), one.open_engines) for one in cluster.replicas]  # noqa: E731
    await cluster.settle(until=lambda: late() == [(3, 1), (3, 1)] and cluster.quiet())
    await cluster.close()


async def test_a_version_that_does_not_close_does_not_keep_a_replica_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follower, "CLOSE_S_MAX", 0.1)
    cluster = Cluster(tmp_path, replicas=1)
    (one,) = cluster.replicas
    hanging, may = one.engines[0], threading.Event()
    monkeypatch.setattr(hanging, "close", may.wait)
    cluster.put(2)
    cluster.deploy()
    await cluster.settle(until=lambda: cluster.serving == ["2"])
    async with asyncio.timeout(10):
        await one.follower.close()
    assert "given up: closing doubler/1" in caplog.text
    assert one.host.closing() == ["doubler/1"]
    hanging.closed = True
    may.set()
    await cluster.close()


async def test_a_candidate_that_hangs_is_shown_until_it_is_let_go(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=3)
    cluster.put(2, mode="canary", share=0.5, **TRIAL | {"min_requests": 10**6})
    cluster.deploy()
    await cluster.settle(1, lambda: all(one.host.trial("doubler") for one in cluster.replicas))
    ends = []
    for one in cluster.replicas[:2]:
        trial, may = one.host.trial("doubler"), threading.Event()
        assert trial is not None
        assert isinstance(trial.candidate.batcher, FakeBatcher)
        trial.candidate.batcher.running_s = 100.0
        trial.candidate.batcher.close = may.wait  # type: ignore[method-assign]
        ends.append(may)
    cluster.assignments.bring("doubler", cluster.assignments.get("doubler").running)  # type: ignore[union-attr]

    def stuck() -> object:
        return cluster.assignments.status("doubler").get("stuck")

    await cluster.settle(0, lambda: stuck() == {"2": 2})
    cluster.put(3, mode="replace")
    cluster.deploy()
    await cluster.settle(0, lambda: cluster.serving == ["3"] * 3)
    assert stuck() == {"2": 2}, "what came after it changes nothing"
    gone = cluster.replicas[1]
    cluster.assignments.report("doubler", gone.name, gone.follower.standing(), final=True)
    assert stuck() == {"2": 1}
    for may in ends:
        may.set()
    await cluster.settle(0, lambda: not stuck())
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


@pytest.mark.parametrize("hangs", [False, True])
async def test_the_last_words_of_a_replica_count_the_copies_that_it_gave_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.serving import ray_app

    monkeypatch.setattr(ray_app, "LAST_WORDS_S_MAX", 0.2 if hangs else 10.0)
    cluster = Cluster(tmp_path, replicas=1)
    cluster.put(2, mode="shadow", share=1.0, **TRIAL | {"min_requests": 10**6})
    cluster.deploy()
    await cluster.settle(0, lambda: cluster.replicas[0].host.trial("doubler") is not None)
    (one,) = cluster.replicas
    gate = one.engines[1].gate
    gate.clear()
    for _ in range(5):
        await one.ask()
    await asyncio.sleep(0.02)
    assert one.host.books()["doubler"].queued == 5
    told: list[Any] = []

    async def report(ledger: Any, address: Any) -> None:
        told.append(ledger)

    class Leaving(ray_app.ModelReplica):
        __init__ = object.__init__  # type: ignore[assignment]
        __del__ = None  # type: ignore[assignment]

    replica: Any = Leaving()
    replica._name, replica._id, replica._group, replica._leave_s = "doubler", "0", "", 0.0
    replica._load, replica._untold, replica._host, replica._follower = {}, set(), one.host, one.follower
    replica._front = SimpleNamespace(report=SimpleNamespace(remote=report))
    replica._reporting = asyncio.create_task(asyncio.sleep(60))
    replica._door = SimpleNamespace(drain=lambda seconds: asyncio.sleep(0))
    if not hangs:
        asyncio.get_running_loop().call_later(0.1, gate.set)
    leaving = asyncio.create_task(replica._leave())
    async with asyncio.timeout(5):
        while not told:
            await asyncio.sleep(0.01)
        (last,) = told
        assert last.final
        assert last.standing.state == "trial", "what the trial has shown is told, though it is over"
        books = Books.of_stats(last.stats)
        assert books.accepted == 10
        assert books.balanced
        assert books.queued == 0 or hangs, "nobody will count what ends later"
        gate.set()
        await leaving
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


@pytest.mark.parametrize("content", ["a model", "failing"])
async def test_a_change_of_one_groups_settings_is_tried_in_that_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(assignment, "LISTEN_S", 0.0)
    cluster = Cluster(tmp_path, replicas=4, groups=["cpu", "gpu"])
    cluster.put(1, mode="canary", share=0.5, **TRIAL | {"min_requests": 20})
    cluster.deploy()
    await cluster.settle(4)
    cpus, gpus = cluster.replicas[::2], cluster.replicas[1::2]
    before = [one.host.find("doubler") for one in cpus]
    for one in gpus:  # whatever is opened there now is that
        one.content = content
    cluster.groups["gpu"] = {"max_queue": 7}
    cluster.deploy()
    states = set()

    def watch() -> bool:
        states.update((one.group, one.follower.standing().state) for one in cluster.replicas)
        return "candidate" not in cluster.assignments.status("doubler")

    await cluster.settle(4, watch)
    await cluster.settle(0)
    assert ("cpu", "unchanged") in states
    assert ("gpu", "trial") in states
    assert not {("cpu", "trial"), ("cpu", "ready"), ("gpu", "ready")} & states
    assert [one.host.find("doubler") for one in cpus] == before
    assert [one.host.find("doubler").settings.max_queue for one in gpus] == [7 if content == "a model" else 1024] * 2
    if content == "failing":
        assert "group gpu: failures" in cluster.assignments.status("doubler")["rolled_back"]["reason"]
    await cluster.close()


async def test_a_group_that_is_new_begins_with_what_runs_in_settings_of_its_own(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, replicas=1, groups=["cpu"])
    cluster.put(2, mode="canary", **TRIAL | {"min_requests": 10**6})
    del cluster.groups["cpu"]  # which gets another name
    cluster.groups |= {"plain": {}, "gpu": {"max_queue": 7}}
    cluster.deploy()
    cluster.replicas.append(Replica(1, cluster.store, "gpu"))
    served = cluster.replicas[-1].host.find("doubler")
    assert (served.version, served.settings.max_queue) == ("1", 7)
    await cluster.turn()
    old = cluster.replicas[0].follower.standing().generation
    bad = Standing(old, "failed", "it has no such group")
    cluster.assignments.report("doubler", "replica-0", bad, group="cpu")
    assert "candidate" in cluster.assignments.status("doubler"), "who leaves does not decide"
    await cluster.close()
