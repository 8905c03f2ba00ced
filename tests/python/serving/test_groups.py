"""Groups of replicas of one model: filled in their order, and woken where those before them stay full."""

from __future__ import annotations

import asyncio

import pytest
from ingress_fakes import Replica, deployed, event_loop_policy  # noqa: F401 (a fixture)

from headrace.serving.grpc_app import CallInfo
from headrace.serving.ingress import pool as pool_module
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.load import Room
from headrace.serving.messages import RPCS


async def test_groups_are_filled_in_their_order() -> None:
    replicas = {"large": ("gpu", 4.0), "a": ("cpu", 2.0), "b": ("cpu", 1.0)}
    async with deployed() as deployment:
        pool = deployment.pool
        pool.arrange(["cpu", "gpu"])
        doors = {name: Replica() for name in replicas}
        for name, (group, room) in replicas.items():
            await pool.add(name, await doors[name].open(), group, Room(room))
        taken = []
        for _ in range(7):
            replica = pool.choose()
            assert replica is not None
            replica.in_flight += 1
            taken.append(replica.name)
        assert sorted(taken[:3]) == ["a", "a", "b"]
        assert taken[3:] == ["large"] * 4
        # When all are full, each gets as much more as it can do.
        for _ in range(14):
            replica = pool.choose()
            assert replica is not None
            replica.in_flight += 1
        assert {name: one.in_flight for name, one in pool._replicas.items()} == {"large": 12, "a": 6, "b": 3}
        # What a replica can do is what it reported last.
        await pool.add("b", DoorAddress("", 0, b""), "cpu", Room(100.0))
        replica = pool.choose()
        assert replica is not None
        assert replica.name == "b"


async def test_who_is_in_a_hurry_goes_past_a_group_that_others_wait_for() -> None:
    async with deployed() as deployment:
        pool, slow, fast = deployment.pool, Replica(), Replica()
        pool.arrange(["cpu", "gpu"])
        # One that runs, and 5 that may wait 100 ms each.
        await pool.add("slow", await slow.open(), "cpu", Room(1.0, 10.0, 0.5))
        await pool.add("fast", await fast.open(), "gpu", Room(1.0, 1000.0, 0.5))
        patient = [pool.choose(deadline_s) for deadline_s in (None, 30.0, 1.0)]
        assert [one.name for one in patient if one is not None] == ["slow"] * 3
        replica = pool._replicas["slow"]
        replica.in_flight = 3
        for deadline_s, expected in ((None, "slow"), (1.0, "slow"), (0.5, "slow"), (0.3, "fast"), (-1.0, "fast")):
            chosen = pool.choose(deadline_s)
            assert chosen is not None
            assert chosen.name == expected, deadline_s
        # Over either protocol.
        asked = []
        choose = pool.choose
        pool.choose = lambda deadline_s=None: asked.append(deadline_s) or choose(deadline_s)  # type: ignore[method-assign]
        answer = await deployment.infer(1.0, 2.0, 3.0, **{"x-envoy-expected-rq-timeout-ms": "300"})
        assert answer.status == 200
        payload = RPCS["ModelReady"][0](name="doubler").SerializeToString()
        await deployment.calls.relay("ModelReady", payload, CallInfo(0.2, None, None))
        await deployment.infer(1.0, 2.0, 3.0)
        assert asked == [0.3, 0.2, None]


async def test_where_all_replicas_stay_full_the_next_group_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PASSED_S", 0.05)
    async with deployed() as deployment:
        pool, awake, asleep = deployment.pool, Replica(), Replica()
        deployment.asleep = [asleep]
        pool.arrange(["cpu", "gpu"])
        await pool.add("a", await awake.open(), "cpu", Room(1.0))
        replica = pool.choose()
        assert replica is not None
        for _ in range(10):  # busy now and then, which is nothing
            replica.in_flight = 1 - replica.in_flight
            assert pool.choose() is replica
            await asyncio.sleep(0.01)
        assert deployment.groups_woken == []
        replica.in_flight = 1
        while (chosen := pool.choose()) is replica:
            await asyncio.sleep(0.005)
        assert deployment.groups_woken == ["gpu"]
        assert chosen is not None
        assert chosen.group == "gpu"


async def test_a_group_is_woken_later_where_one_before_it_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PASSED_S", 0.0)
    monkeypatch.setattr(pool_module, "GROWTH_S", 0.15)
    async with deployed() as deployment:
        pool, full, asleep, loop = deployment.pool, Replica(), Replica(), asyncio.get_running_loop()
        deployment.asleep = [asleep]
        pool.arrange(["cpu", "gpu"], {"cpu": 2, "gpu": 1})
        await pool.add("a", await full.open(), "cpu", Room(1.0))
        start = loop.time()
        async with asyncio.timeout(5):
            while not deployment.groups_woken:
                replica = pool.choose()
                assert replica is not None
                replica.in_flight += 1
                await asyncio.sleep(0.005)
        assert loop.time() - start >= 0.15
        assert deployment.groups_woken == ["gpu"]


async def test_a_group_that_has_all_its_replicas_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PASSED_S", 0.0)
    async with deployed() as deployment:
        pool, full, asleep = deployment.pool, Replica(), Replica()
        deployment.asleep = [asleep]
        pool.arrange(["cpu", "gpu"], {"cpu": 1, "gpu": 5})
        await pool.add("a", await full.open(), "cpu", Room(1.0))
        for _ in range(3):
            replica = pool.choose()
            assert replica is not None
            replica.in_flight += 1
            await asyncio.sleep(0)
        assert deployment.groups_woken == ["gpu"]


async def test_the_first_group_is_woken_where_a_later_one_is_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PASSED_S", 0.05)
    async with deployed() as deployment:
        pool, dear, cheap = deployment.pool, Replica(), Replica()
        deployment.asleep = [cheap]
        pool.arrange(["cpu", "gpu"])
        await pool.add("large", await dear.open(), "gpu")
        async with asyncio.timeout(5):
            while (chosen := pool.choose()) is not None and chosen.group == "gpu":
                await asyncio.sleep(0.005)
        assert chosen is not None
        assert chosen.group == "cpu"
        assert deployment.groups_woken == ["cpu"]
        dear.die()
        for _ in range(20):
            await asyncio.sleep(0.005)
            chosen = pool.choose()
            assert chosen is not None
            assert chosen.group == "cpu"
        assert deployment.groups_woken == ["cpu"], "one that has room wakes nobody behind it"


async def test_a_group_that_cannot_be_woken_is_not_asked_at_every_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "PASSED_S", 0.0)
    async with deployed() as deployment:
        pool, awake = deployment.pool, Replica()
        pool.arrange(["cpu", "gpu"])

        async def wake(group: str) -> tuple[str, DoorAddress]:
            deployment.groups_woken.append(group)
            raise RuntimeError("there is no such deployment")

        pool._wake = wake
        await pool.add("a", await awake.open(), "cpu", Room(1.0))
        replica = pool.choose()
        assert replica is not None
        replica.in_flight = 1
        for _ in range(50):
            pool.choose()
            await asyncio.sleep(0)
        assert deployment.groups_woken == ["gpu"]
        assert len([one for one in caplog.records if "cannot be woken" in one.getMessage()]) == 1


@pytest.mark.parametrize("awake", [True, False])
async def test_where_a_group_finds_no_room_the_next_one_is_woken(monkeypatch: pytest.MonkeyPatch, awake: bool) -> None:
    monkeypatch.setattr(pool_module, "PASSED_S", 0.0)
    monkeypatch.setattr(pool_module, "WAKE_S_MAX", 0.05)
    async with deployed() as deployment:
        pool, full, placed = deployment.pool, Replica(), Replica()
        pool.arrange(["cpu", "large", "huge"] if awake else ["large", "huge"])

        async def wake(group: str) -> tuple[str, DoorAddress]:
            deployment.groups_woken.append(group)
            if group == "large":
                await asyncio.sleep(30)
            return "b", await placed.open()

        pool._wake = wake
        if awake:
            await pool.add("a", await full.open(), "cpu", Room(1.0))
            replica = pool.choose()
            assert replica is not None
            replica.in_flight = 1
        async with asyncio.timeout(5):
            chosen, _ = await pool.wait(None)
            while chosen.group != "huge":
                await asyncio.sleep(0.005)
                chosen, _ = await pool.wait(None)
        assert deployment.groups_woken == ["large", "huge"]
