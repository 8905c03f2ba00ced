"""Groups of replicas of one model: filled in their order, and woken where those before them stay full."""

from __future__ import annotations

import asyncio

import pytest
from ingress_fakes import Replica, deployed, event_loop_policy  # noqa: F401 (a fixture)

from headrace.serving.ingress import pool as pool_module
from headrace.serving.ingress.door import DoorAddress


async def test_groups_are_filled_in_their_order() -> None:
    replicas = {"large": ("gpu", 4.0), "a": ("cpu", 2.0), "b": ("cpu", 1.0)}
    async with deployed() as deployment:
        pool = deployment.pool
        pool.arrange(["cpu", "gpu"])
        doors = {name: Replica() for name in replicas}
        for name, (group, room) in replicas.items():
            await pool.add(name, await doors[name].open(), group, room)
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
        await pool.add("b", DoorAddress("", 0, b""), "cpu", 100.0)
        replica = pool.choose()
        assert replica is not None
        assert replica.name == "b"


async def test_where_all_replicas_stay_full_the_next_group_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PASSED_S", 0.05)
    async with deployed() as deployment:
        pool, awake, asleep = deployment.pool, Replica(), Replica()
        deployment.asleep = [asleep]
        pool.arrange(["cpu", "gpu"])
        await pool.add("a", await awake.open(), "cpu", 1.0)
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
        await pool.add("a", await full.open(), "cpu", 1.0)
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
        await pool.add("a", await full.open(), "cpu", 1.0)
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
        await pool.add("a", await awake.open(), "cpu", 1.0)
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
            await pool.add("a", await full.open(), "cpu", 1.0)
            replica = pool.choose()
            assert replica is not None
            replica.in_flight = 1
        async with asyncio.timeout(5):
            chosen, _ = await pool.wait(None)
            while chosen.group != "huge":
                await asyncio.sleep(0.005)
                chosen, _ = await pool.wait(None)
        assert deployment.groups_woken == ["large", "huge"]
