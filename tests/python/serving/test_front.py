"""The front of a deployment: whether it is ready, and what it keeps of the replicas' reports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from following_fakes import Memory
from ingress_fakes import INFER, MEANWHILE, Deployment, Meanwhile, Replica, deployed, front_state
from msgspec.structs import replace
from serving_fakes import acall, make_served, rows

from headrace.config import ModelConfig, ModelSettings
from headrace.observe.ledger import Books
from headrace.serving.assignment import Edition
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_ledgers import EARLIER, GONE_MAX, LOST_S, ReplicaLedger, ReplicaLedgers
from headrace.serving.front_ready import FRESH_S, Readiness
from headrace.serving.grpc_app import CallInfo, Refusal
from headrace.serving.ingress.pool import Pool
from headrace.serving.standings import Standing
from headrace.serving.statistics import statistics


async def test_the_front_is_ready_once_no_model_is_loading_and_one_can_be_used() -> None:
    replica, serve = Replica(), {"doubler": "DEPLOYING", "other": "DEPLOYING"}
    seconds = 0.0
    async with deployed() as deployment:
        pools = {"doubler": deployment.pool, "other": Pool("other", deployment.wake)}
        readiness = Readiness(pools, lambda: dict(serve), lambda: seconds)
        assert not await readiness.get()
        await deployment.pool.add("0", await replica.open())
        assert not await readiness.get()
        serve["other"] = "RUNNING"  # at zero, since it has no replica
        assert not await readiness.get()  # Serve is not asked at every request
        seconds += FRESH_S
        assert await readiness.get()
        serve.clear()
        serve |= {"doubler": "RUNNING", "other": "DEPLOY_FAILED"}
        seconds += FRESH_S
        assert await readiness.get()
        replica.die()
        while deployment.pool.reachable:
            await asyncio.sleep(0.005)
        serve["doubler"] = "UNHEALTHY"
        seconds += FRESH_S
        assert not await readiness.get()
        serve |= {"doubler": "RUNNING", "other": "RUNNING"}
        seconds += FRESH_S
        assert await readiness.get()
        pools.clear()
        assert not await readiness.get()


async def test_a_front_that_ends_is_not_ready_and_says_that_models_may_come_back(monkeypatch: Any) -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.errors import ExecutionError
    from headrace.serving import front as module

    statuses = {"doubler": "RUNNING"}
    monkeypatch.setattr(module, "_statuses", lambda: statuses)
    monkeypatch.setattr(module, "RayStore", dict)
    front = front_state()
    await front.start(["doubler"])
    front.check()
    assert (await acall(front.app, "GET", "/v2/health/ready")).status == 200
    replica = Replica()
    await front.pools["doubler"].add("0", await replica.open())
    replica.served.engines[0].gate.clear()
    under_way = asyncio.create_task(acall(front.app, "POST", INFER, rows(1, 2, 3)))
    while replica.served.batchers[0].ledger["queued"] == 0:
        await asyncio.sleep(0.005)
    await front.stop()
    for path, method in ((INFER, "POST"), ("/v2/models/doubler", "GET"), ("/v2/health/ready", "GET")):
        assert (await acall(front.app, method, path, rows(1, 2, 3))).status == 503, path
    refused = await FrontGrpcApp(front.app.service, front.pools).relay("ModelInfer", b"", CallInfo())
    assert isinstance(refused, Refusal)
    assert refused.status == "UNAVAILABLE"
    replica.served.engines[0].gate.set()
    assert (await under_way).status == 200
    with pytest.raises(ExecutionError, match="listener that ended"):
        front.check()
    replica.die()


async def test_a_report_is_answered_while_the_replica_is_still_being_connected_to() -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    front = front_state()
    pool = front.pools["doubler"] = Pool("doubler", Deployment().wake)
    replica = Replica()
    MEANWHILE[:] = [None]
    ledger = ReplicaLedger("doubler", "0", 1, {}, {}, False)
    assert await asyncio.wait_for(front.report(ledger, Meanwhile(**vars(await replica.open()))), 1) is None
    await asyncio.sleep(0.02)
    assert not MEANWHILE
    assert pool._connecting == {"0"}
    await front.stop()
    await asyncio.sleep(0.02)
    assert not pool._connecting
    await front.report(ReplicaLedger("doubler", "1", 1, {}, {}, False), replica.address)
    replica.die()


async def test_a_report_counts_for_the_group_that_it_comes_from(monkeypatch: Any) -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.serving import front as module

    monkeypatch.setattr(module, "RayStore", Memory)
    front = front_state()
    edition = Edition(model=ModelConfig(name="m", files={1: Path("1")}, settings=ModelSettings()), contents="old")
    front.assignments.bring("m", edition)
    generation = front.assignments.bring("m", replace(edition, contents="new")).generation
    for group, state in (("gpu", "loading"), ("cpu", "unchanged")):
        standing = Standing(generation, state)  # type: ignore[arg-type]
        await front.report(ReplicaLedger("m", group, 1, {}, {}, False, standing=standing, group=group), None)
    assert "candidate" in front.assignments.status("m"), "the other group is still loading it"


async def test_reports_that_fail_are_logged_once_for_each_kind(caplog: Any) -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.serving.ray_app import ModelReplica

    replica: Any = ModelReplica.__new__(ModelReplica)
    replica._name, replica._front, replica._untold = "doubler", object(), set()
    for error in (KeyError("one"), KeyError("two"), OSError("three")):
        replica._ledger = lambda standing, final, error=error: (_ for _ in ()).throw(error)
        await replica._report(None, Standing(1))
    assert [record.getMessage().split(": ", 2)[2] for record in caplog.records] == ["KeyError: 'one'", "OSError: three"]


async def test_the_books_of_replicas_that_are_gone_close() -> None:
    seconds = 0.0
    ledgers = ReplicaLedgers(lambda: seconds)
    none = dict.fromkeys(("refused", "failed", "expired", "cancelled"), 0)
    for name in ("killed", "stopped", "alive"):
        ledgers.note(ReplicaLedger("m", name, 1, {"accepted": 5, "ok": 3, "queued": 2, **none}, {}, False))
    ledgers.note(ReplicaLedger("m", "left", 1, {"accepted": 2, "ok": 1, "queued": 1, **none}, {}, True))
    assert ledgers.books("m") == Books(accepted=17, ok=10, queued=6, lost=1)
    seconds = LOST_S + 0.1
    ledgers.note(ReplicaLedger("m", "alive", 1, {"accepted": 6, "ok": 4, "queued": 2, **none}, {}, False))
    assert ledgers.books("m") == Books(accepted=18, ok=11, queued=2, lost=5)
    ledgers.note(ReplicaLedger("m", "stopped", 1, {"accepted": 5, "ok": 5, "queued": 0, **none}, {}, False))
    assert ledgers.books("m") == Books(accepted=18, ok=13, queued=2, lost=3), "it was only stopped"
    for number in range(GONE_MAX + 5):
        seconds += LOST_S * 2
        ledgers.note(ReplicaLedger("m", str(number), 1, {"accepted": 1, "ok": 1, "queued": 0, **none}, {}, True))
    assert EARLIER in [one.replica for one in ledgers.of("m")]
    assert ledgers.books("m") == Books(accepted=87, ok=82, lost=5)


async def test_what_many_gone_replicas_counted_is_kept_in_one_sum() -> None:
    seconds = 0.0
    ledgers = ReplicaLedgers(lambda: seconds)
    served = make_served().host
    ledgers.note(ReplicaLedger("m", "silent", 1, {"ok": 1000}, {}, False))
    seconds = 1000.0
    ledgers.note(ReplicaLedger("m", "alive", 1, {"ok": 5}, {}, False))
    for number in range(200):
        told = tuple(statistics(one) | {"inference_count": 1} for one in served)
        ledgers.note(ReplicaLedger("m", str(number), 1, {"ok": 1}, {}, False))
        ledgers.note(ReplicaLedger("m", str(number), 1, {"ok": 2, "accepted": 2}, {}, True, told))
        ledgers.note(ReplicaLedger("m", str(number), 1, {"ok": 1}, {}, False))  # one that was overtaken
        found = ledgers.of("m")
        assert sum(one.stats["ok"] for one in found) == 1005 + 2 * (number + 1)
        assert sum(entry["inference_count"] for one in found for entry in one.statistics) == number + 1
    assert len(found) <= GONE_MAX + 3
    assert [one.replica for one in found][:2] == [EARLIER, "alive"]
    assert found[0].final
    assert found[-1].replica == "199"
