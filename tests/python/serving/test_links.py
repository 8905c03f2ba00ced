"""What goes over the links between a front and its replicas, and who may open one."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import struct
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from ingress_fakes import INFER, MEANWHILE, Meanwhile, Replica, deployed, event_loop_policy  # noqa: F401 (a fixture)
from serving_fakes import rows

from headrace.serving.assignment import Assignment, Edition
from headrace.serving.evidence import Digest
from headrace.serving.front_ledgers import ReplicaLedger
from headrace.serving.grpc_app import CallInfo, Refusal
from headrace.serving.ingress import door as door_module
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.ingress.link import Link
from headrace.serving.ingress.link import Replica as PoolReplica
from headrace.serving.ingress.wire import (
    NONCE_BYTES,
    PREFIX,
    WIRE,
    Answer,
    Ask,
    Call,
    Cancel,
    Challenge,
    Frames,
    Goodbye,
    Hello,
    Message,
    Welcome,
)
from headrace.serving.load import Room
from headrace.serving.messages import RPCS
from headrace.serving.standings import Standing


def test_whoever_changes_what_is_said_gives_it_another_number() -> None:
    structs = [*get_args(Message), Edition, Assignment]
    fields: list[Any] = [[(one.name, str(one.type)) for one in msgspec.structs.fields(cls)] for cls in structs]
    reports = (ReplicaLedger, Standing, Digest, Room, DoorAddress)
    fields += [[(one.name, str(one.type)) for one in dataclasses.fields(cls)] for cls in reports]
    tags = [cls.__struct_config__.tag for cls in get_args(Message)]
    said = hashlib.sha256(repr((PREFIX.format, tags, fields)).encode()).hexdigest()[:16]
    assert (WIRE, said) == (2, "6fd9d206b15890ac"), "count WIRE up, and put its number and this digest here"


async def test_a_request_that_is_cancelled_before_it_begins_holds_up_no_drain() -> None:
    replica = Replica()
    link = await (await replica.open()).connect(Link)
    for _ in range(3):  # both frames come in one read
        link.send(Ask(1, "POST", INFER, []), rows(1, 2, 3))
        link.send(Cancel(1))
        link.send(Call(2, "ModelInfer", None, None, None), b"")
        link.send(Cancel(2))
        await asyncio.sleep(0.02)
    await asyncio.wait_for(replica.door.drain(60), 5)


async def test_a_link_that_comes_while_the_replica_leaves_is_told() -> None:
    replica = Replica()
    address = await replica.open()
    replica.door.draining = True
    link = await address.connect(Link)
    while not link.leaving:
        await asyncio.sleep(0.005)
    await asyncio.wait_for(replica.door.drain(60), 5)


async def test_a_result_too_large_for_a_link_is_an_error_of_its_own(monkeypatch: Any) -> None:
    replica = Replica()
    async with deployed(replica) as deployment:
        link = deployment.pool._replicas["0"].links[0]
        assert (await deployment.infer(*range(90))).status == 200
        link.body_bytes_max = 200
        monkeypatch.setattr(door_module, "BODY_BYTES_LIMIT", 200)
        refused = await deployment.infer(*range(90))
        assert (refused.status, "expected at most 200" in refused.error) == (500, True)
        payload = RPCS["ModelConfig"][0](name="doubler").SerializeToString()
        call = await deployment.calls.relay("ModelConfig", payload, CallInfo())
        assert isinstance(call, bytes)
        monkeypatch.setattr(door_module, "BODY_BYTES_LIMIT", len(call) - 1)
        call = await deployment.calls.relay("ModelConfig", payload, CallInfo())
        assert isinstance(call, Refusal)
        assert call.status == "INTERNAL"
        assert link.is_open


async def test_few_replicas_that_left_are_remembered() -> None:
    async with deployed() as deployment:
        pool = deployment.pool
        for number in range(300):
            link = Link()
            link.leaving = True
            pool._remove(PoolReplica(str(number), (link, link)))
        assert len(pool._left) < 300
        assert "299" in pool._left


async def test_a_drain_waits_until_the_answers_have_left() -> None:
    replica = Replica()
    link = await (await replica.open()).connect(Link)
    assert link.transport is not None
    while not replica.door.links:
        await asyncio.sleep(0.005)
    answering = next(iter(replica.door.links))
    x = np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)
    link.transport.pause_reading()  # the ingress is slow
    answering.send(Answer(1, 200, []), x.tobytes())
    answering.received(Goodbye(), b"")
    draining = asyncio.create_task(replica.door.drain(60))
    await asyncio.sleep(0.1)
    assert not draining.done()
    link.transport.resume_reading()
    await asyncio.wait_for(draining, 5)


async def test_a_link_that_is_lost_before_the_other_is_open_leaves_no_replica() -> None:
    replica = Replica()

    async def lose(link: Link) -> None:
        assert link.transport is not None
        link.transport.abort()
        await asyncio.sleep(0.02)

    async def nothing(link: Link) -> None:
        await asyncio.sleep(0.02)

    async with deployed() as deployment:
        address = Meanwhile(**vars(await replica.open()))
        MEANWHILE[:] = [nothing, lose]
        await deployment.pool.add("0", address)
        assert not deployment.pool._replicas
        MEANWHILE[:] = [nothing, nothing]
        await deployment.pool.add("0", address)
        assert deployment.pool.reachable
    replica.die()


async def test_a_connection_that_is_given_up_leaves_no_link() -> None:
    replica = Replica()

    async def nothing(link: Link) -> None:
        await asyncio.sleep(0.02)

    async with deployed() as deployment:
        MEANWHILE[:] = [None, nothing]
        adding = asyncio.create_task(deployment.pool.add("0", Meanwhile(**vars(await replica.open()))))
        while MEANWHILE:
            await asyncio.sleep(0.005)
        links = set(replica.door.links)
        assert len(links) == 1
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        for _ in range(200):
            if not links & replica.door.links:
                break
            await asyncio.sleep(0.005)
        assert not links & replica.door.links
    replica.die()


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
async def test_nobody_comes_in_without_the_key(host: str) -> None:
    replica = Replica()
    async with deployed(replica, host=host) as deployment:
        assert (await deployment.infer(1, 2, 3)).status == 200
        known = len(replica.door.links)
        with pytest.raises(OSError, match="expected a welcome"):
            await DoorAddress(replica.address.host, replica.address.port, b"x" * 32).connect(Link)
        for said in (
            PREFIX.pack(1 << 30, 1 << 30) + b"x" * 100,
            frame(Ask(1, "POST", INFER, [])),
            frame(Hello(b"n" * NONCE_BYTES, b"")),
        ):
            stranger = await replica.address.open(Listener)
            stranger.transport.write(said)
            await until(lambda stranger=stranger: not stranger.is_open)
        assert len(replica.door.links) == known


async def test_the_key_is_never_sent_and_a_proof_is_good_for_one_link_alone() -> None:
    replica = Replica()
    address = await replica.open("127.0.0.1")
    sent: list[bytes] = []

    class Overheard(Link):
        def data_received(self, data: bytes) -> None:
            sent.append(data)
            super().data_received(data)

        def _flush(self) -> None:
            sent.extend(self._outgoing)
            super()._flush()

    await address.connect(Overheard)
    assert len(replica.door.links) == 1
    assert len(sent) == 3
    assert address.key not in b"".join(sent)
    again = await address.open(Listener)
    again.transport.write(sent[1])
    await until(lambda: not again.is_open)
    assert len(replica.door.links) == 1
    replica.die()


@pytest.mark.parametrize("welcome", [Welcome(b"x" * 32), Goodbye(), Answer(1, 200, [])])
async def test_who_does_not_know_the_key_is_not_taken_for_a_replica(welcome: Any) -> None:
    class Impostor(Listener):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.send(Challenge(b"c" * NONCE_BYTES))

        def received(self, message: Any, body: bytes) -> None:
            self.send(welcome)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Impostor, "127.0.0.1", 0)
    with pytest.raises(OSError, match="expected a welcome"):
        await DoorAddress("127.0.0.1", server.sockets[0].getsockname()[1], b"k" * 32).connect(Link)
    server.close()


class Listener(Frames):
    """Says nothing by itself, and does nothing about what it hears."""

    def received(self, message: Any, body: bytes) -> None:
        pass


def frame(message: Any) -> bytes:
    head = msgspec.msgpack.encode(message)
    return PREFIX.pack(len(head), 0) + head


async def until(what: Callable[[], bool]) -> None:
    for _ in range(200):
        if what():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in time")


async def test_frames_that_come_byte_by_byte_are_the_same_frames() -> None:
    replica = Replica()
    async with deployed(replica) as deployment:
        link = deployment.pool._replicas["0"].links[0]
        assert link.transport is not None
        write = link.transport.write

        class Trickle:
            def write(self, data: bytes) -> None:
                for index in range(len(data)):
                    write(data[index : index + 1])

            def is_closing(self) -> bool:
                return False

        whole, link.transport = link.transport, Trickle()  # type: ignore[assignment]
        answers = await asyncio.gather(*(deployment.infer(float(i), 2, 3) for i in range(5)))
        assert [answer.json["outputs"][0]["data"][0] for answer in answers] == [0, 2, 4, 6, 8]
        link.transport = whole
        assert struct.calcsize("<II") == PREFIX.size == 8
