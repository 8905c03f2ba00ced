"""The ingress of a deployment without Ray: a front, doors and the links between them, over fake engines."""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import uvloop
from oip_client import binary_request, read_answer
from serving_fakes import Served, acall, make_config, make_served, rows

from headrace.observe.ledger import Books
from headrace.serving.front_app import FrontApp
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_ledgers import EARLIER, GONE_MAX, ReplicaLedgers
from headrace.serving.front_ready import FRESH_S, Readiness
from headrace.serving.grpc_app import CallInfo, GrpcApp, Refusal
from headrace.serving.host import ModelHost
from headrace.serving.ingress import door as door_module
from headrace.serving.ingress.bridge import Bridge
from headrace.serving.ingress.door import Door, DoorAddress
from headrace.serving.ingress.loop_thread import LoopThread
from headrace.serving.ingress.pool import Link, Pool
from headrace.serving.ingress.pool import Replica as PoolReplica
from headrace.serving.ingress.wire import PREFIX, Answer, Ask, Call, Cancel, Goodbye, Hello
from headrace.serving.messages import RPCS
from headrace.serving.service import OipService
from headrace.serving.statistics import statistics

INFER = "/v2/models/doubler/infer"


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> Any:
    """Every test runs on either event loop: their transports and sockets differ."""
    return asyncio.DefaultEventLoopPolicy() if request.param == "asyncio" else uvloop.EventLoopPolicy()


class Replica:
    """A served doubler behind a door."""

    def __init__(self, **settings: Any) -> None:
        self.served: Served = make_served(make_config(**settings))
        self.door = Door(self.served.app, GrpcApp(self.served.app.service))

    async def open(self, host: str = "") -> DoorAddress:
        self.address = await self.door.open(host)
        return self.address

    def die(self) -> None:
        """What the kernel does to the connections of a process that is killed."""
        assert self.door._server is not None
        self.door._server.close()
        for link in list(self.door.links):
            assert link.transport is not None
            link.transport.abort()

    @property
    def computed(self) -> int:
        return len(self.served.engines[0].computed)


class Deployment:
    """A front, and the replicas that Serve would start when it is asked for one."""

    def __init__(self) -> None:
        self.asleep: list[Replica] = []
        self.woken = 0
        self.pool = Pool("doubler", self.wake)
        self.service = OipService(ModelHost([]), body_bytes_max=8 << 20)
        self.front = FrontApp(lambda: {"doubler": Books()}, self.service, {"doubler": self.pool})
        self.calls = FrontGrpcApp(self.service, {"doubler": self.pool})

    async def wake(self) -> tuple[str, DoorAddress]:
        self.woken += 1
        if not self.asleep:
            await asyncio.sleep(30)
        await asyncio.sleep(0.05)
        replica = self.asleep.pop(0)
        return f"woken-{self.woken}", await replica.open()

    async def infer(self, *values: float, **headers: str) -> Any:
        return await acall(self.front, "POST", INFER, rows(*values), headers)


@asynccontextmanager
async def deployed(*replicas: Replica, host: str = "") -> AsyncIterator[Deployment]:
    deployment = Deployment()
    for number, replica in enumerate(replicas):
        await deployment.pool.add(str(number), await replica.open(host))
    yield deployment
    await deployment.pool.close()
    for replica in replicas:
        replica.die()


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
async def test_answers_come_through_unchanged(host: str) -> None:
    replica = Replica()
    direct = replica.served.app
    async with deployed(replica, host=host) as deployment:
        body, headers = binary_request({"x": ("FP32", np.arange(6, dtype=np.float32).reshape(2, 3))}, id="7")
        for method, path, payload, extra in (
            ("POST", INFER, rows(1, 2, 3), {}),
            ("POST", INFER, body, headers),
            ("POST", INFER, b"{", {}),
            ("POST", INFER, rows(1, 2), {}),
            ("POST", INFER, rows(666, 1, 2), {}),
            ("POST", "/v2/models/doubler/versions/9/infer", rows(1, 2, 3), {}),
            ("GET", INFER, b"", {}),
            ("GET", "/v2/models/doubler", b"", {}),
            ("GET", "/v2/models/doubler/ready", b"", {}),
            ("GET", "/v2/models/doubler/nonsense", b"", {}),
        ):
            want = await acall(direct, method, path, payload, extra)
            got = await acall(deployment.front, method, path, payload, extra)
            assert got == want, path
        zipped = await acall(
            deployment.front, "POST", INFER, gzip.compress(body), {**headers, "content-encoding": "gzip"}
        )
        assert (read_answer(zipped.body, zipped.headers)["y"] == 2 * np.arange(6).reshape(2, 3)).all()
        assert (await acall(deployment.front, "GET", "/v2/models/nobody")).error.endswith("expected one of doubler")
        assert (await acall(deployment.front, "GET", "/v2/ledger")).json["doubler"]["accepted"] == 0


async def test_bodies_of_any_size_come_whole() -> None:
    async with deployed(Replica()) as deployment:
        deployment.service.body_bytes_max = 1 << 20
        for count in (0, 3, 3000, 60_000):
            x = np.arange(count, dtype=np.float32).reshape(-1, 3)
            body, headers = binary_request({"x": ("FP32", x)})
            answers = await asyncio.gather(*(acall(deployment.front, "POST", INFER, body, headers) for _ in range(3)))
            for answer in answers:
                assert (read_answer(answer.body, answer.headers)["y"] == 2 * x).all()


async def test_refusals_keep_their_status_and_say_when_to_come_back() -> None:
    replica = Replica(max_queue=1)
    engine = replica.served.engines[0]
    async with deployed(replica) as deployment:
        engine.gate.clear()
        first = asyncio.create_task(deployment.infer(1, 2, 3))
        while replica.served.batchers[0].ledger["queued"] == 0:
            await asyncio.sleep(0.005)
        refused = await deployment.infer(1, 2, 3)
        assert (refused.status, refused.headers["retry-after"]) == (429, "3")
        engine.gate.set()
        assert (await first).status == 200
        late = await acall(
            deployment.front,
            "POST",
            INFER,
            rows(1, 2, 3),
            {"x-envoy-expected-rq-timeout-ms": "50", "x-headrace-caller": "me"},
        )
        assert late.status == 200
        assert replica.served.batchers[0].seen[-1] == (50, 0)
        assert replica.served.batchers[0].callers[-1] == b"me"


async def test_requests_of_a_replica_that_dies_fail_at_once_and_no_others() -> None:
    dying, staying = Replica(), Replica()
    async with deployed(dying, staying) as deployment:
        dying.served.engines[0].gate.clear()
        sent = [asyncio.create_task(deployment.infer(float(i), 2, 3)) for i in range(8)]
        while staying.computed < 4:
            await asyncio.sleep(0.005)
        dying.die()
        answers = await asyncio.wait_for(asyncio.gather(*sent), 1)
        assert sorted(answer.status for answer in answers) == [200] * 4 + [503] * 4
        lost = next(answer for answer in answers if answer.status == 503)
        assert lost.headers["retry-after"] == "1"
        assert "try again" in lost.error
        after = [await deployment.infer(1, 2, 3) for _ in range(4)]
        assert [answer.status for answer in after] == [200] * 4
        dying.served.engines[0].gate.set()


async def test_a_replica_that_leaves_answers_what_it_has_and_loses_nothing() -> None:
    leaving, staying = Replica(), Replica()
    async with deployed(leaving, staying) as deployment:
        answers: list[int] = []

        async def client() -> None:
            for _ in range(60):
                answers.append((await deployment.infer(1, 2, 3)).status)

        clients = [asyncio.create_task(client()) for _ in range(4)]
        while leaving.computed < 20:
            await asyncio.sleep(0.001)
        await leaving.door.drain(5)
        had = leaving.computed
        await deployment.pool.add("0", leaving.address)  # a report of its that comes late
        await asyncio.gather(*clients)
        assert answers == [200] * 240
        assert leaving.computed == had
        assert leaving.computed + staying.computed == 240
        assert min(leaving.computed, staying.computed) >= 20


async def test_the_first_request_starts_a_replica_and_all_others_wait_for_it() -> None:
    async with deployed() as deployment:
        replica = Replica()
        deployment.asleep.append(replica)
        answers = await asyncio.gather(
            deployment.infer(1, 2, 3), *(deployment.infer(float(i), 2, 3) for i in range(20))
        )
        assert [answer.status for answer in answers] == [200] * 21
        assert deployment.woken == 1
        # What is waited for counts against the deadline, and beyond it nothing is computed.
        replica.die()
        await asyncio.sleep(0.05)
        started = asyncio.get_running_loop().time()
        late = await acall(deployment.front, "POST", INFER, rows(1, 2, 3), {"x-envoy-expected-rq-timeout-ms": "100"})
        assert late.status == 504
        assert asyncio.get_running_loop().time() - started < 1
        deployment.asleep.append(Replica())
        waiting = asyncio.create_task(deployment.infer(1, 2, 3))
        await asyncio.sleep(0.01)
        await deployment.pool.close()
        assert (await waiting).status == 503


async def test_a_client_that_goes_away_takes_its_request_out_of_the_queue() -> None:
    replica = Replica()
    batcher = replica.served.batchers[0]
    async with deployed(replica) as deployment:
        replica.served.engines[0].gate.clear()
        first = asyncio.create_task(deployment.infer(1, 2, 3))
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": rows(4, 5, 6), "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": INFER, "headers": []}
        second = asyncio.create_task(deployment.front(scope, receive, send))
        while batcher.ledger["queued"] < 2:
            await asyncio.sleep(0.005)
        gone.set()
        await second
        while batcher.ledger["cancelled"] < 1:
            await asyncio.sleep(0.005)
        assert replica.served.app.service.http_responses[499] == 1
        replica.served.engines[0].gate.set()
        assert (await first).status == 200


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
    where = module.FrontAddress("headrace", "127.0.0.1", 0, 0)
    front = module.FrontState(where, None, "x-caller", None)
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


async def test_a_report_is_answered_while_the_replica_is_still_being_connected_to() -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.serving import front as module

    front = module.FrontState(module.FrontAddress("headrace", "127.0.0.1", 0, 0), None, "x-caller", None)
    pool = front.pools["doubler"] = Pool("doubler", Deployment().wake)
    replica = Replica()
    MEANWHILE[:] = [None]
    ledger = module.ReplicaLedger("doubler", "0", 1, {}, {}, False)
    assert await asyncio.wait_for(front.report(ledger, Meanwhile(**vars(await replica.open()))), 1) is None
    await asyncio.sleep(0.02)
    assert not MEANWHILE
    assert pool._connecting == {"0"}
    await front.stop()
    await asyncio.sleep(0.02)
    assert not pool._connecting
    await front.report(module.ReplicaLedger("doubler", "1", 1, {}, {}, False), replica.address)
    replica.die()


async def test_reports_that_fail_are_logged_once_for_each_kind(caplog: Any) -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.serving.ray_app import ModelReplica

    replica: Any = ModelReplica.__new__(ModelReplica)
    replica._name, replica._front, replica._untold = "doubler", object(), set()
    for error in (KeyError("one"), KeyError("two"), OSError("three")):
        replica._ledger = lambda final, error=error: (_ for _ in ()).throw(error)
        await replica._report(None)
    assert [record.getMessage().split(": ", 2)[2] for record in caplog.records] == ["KeyError: 'one'", "OSError: three"]


async def test_the_wait_for_a_replica_counts_against_the_timeout_in_the_body() -> None:
    replica = Replica()
    request = RPCS["ModelInfer"][0](model_name="doubler")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend([1, 2, 3])
    for timeout_us, status in ((10_000_000, 200), (20_000, 504)):
        body = rows(1, 2, 3, parameters={"timeout": timeout_us})
        request.parameters["timeout"].int64_param = timeout_us
        for relay in (False, True):
            async with deployed() as deployment:
                deployment.asleep.append(replica)  # comes after 50 ms
                if relay:
                    call = await deployment.calls.relay("ModelInfer", request.SerializeToString(), CallInfo())
                    assert isinstance(call, bytes) if status == 200 else call.status == "DEADLINE_EXCEEDED"  # type: ignore[union-attr]
                else:
                    assert (await acall(deployment.front, "POST", INFER, body)).status == status
                if status == 200:
                    left_ms, _ = replica.served.batchers[0].seen[-1]
                    assert left_ms is not None
                    assert 5_000 < left_ms <= 9_960
            replica.die()
            replica = Replica()


async def test_what_many_gone_replicas_counted_is_kept_in_one_sum() -> None:
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.serving.front import ReplicaLedger

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


class Meanwhile(DoorAddress):
    """Lets something happen when one link is open and the other is not."""

    async def connect(self, protocol: Any) -> Any:
        if (then := MEANWHILE.pop()) is None:
            await asyncio.sleep(30)
        link = await super().connect(protocol)
        await then(link)
        return link


MEANWHILE: list[Any] = []


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


async def test_grpc_calls_take_the_same_way() -> None:
    replica = Replica()
    async with deployed(replica) as deployment:
        request_class, answer_class = RPCS["ModelInfer"]
        request = request_class(model_name="doubler")
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
        tensor.contents.fp32_contents.extend([1, 2, 3])
        answered = await deployment.calls.relay("ModelInfer", request.SerializeToString(), CallInfo(5.0))
        assert isinstance(answered, bytes)
        assert list(answer_class.FromString(answered).outputs[0].contents.fp32_contents) == [2, 4, 6]
        assert replica.served.batchers[0].seen[-1] == (5000, 0)
        tensor.shape[0] = 2
        refused = await deployment.calls.relay("ModelInfer", request.SerializeToString(), CallInfo())
        assert isinstance(refused, Refusal)
        assert refused.status == "INVALID_ARGUMENT"
        replica.served.engines[0].gate.clear()
        tensor.shape[0] = 1
        lost = asyncio.create_task(deployment.calls.relay("ModelInfer", request.SerializeToString(), CallInfo()))
        while replica.served.batchers[0].ledger["queued"] == 0:
            await asyncio.sleep(0.005)
        replica.die()
        refused = await lost
        assert isinstance(refused, Refusal)
        assert (refused.status, dict(refused.trailing)["retry-after"]) == ("UNAVAILABLE", "1")
        replica.served.engines[0].gate.set()


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
async def test_nobody_comes_in_without_the_key(host: str) -> None:
    replica = Replica()
    async with deployed(replica, host=host) as deployment:
        assert (await deployment.infer(1, 2, 3)).status == 200
        known = len(replica.door.links)
        wrong = DoorAddress(replica.address.host, replica.address.port, b"x" * 32)
        for link in (await wrong.connect(Link), await wrong.connect(Silent)):
            if isinstance(link, Silent):
                link.transport.write(PREFIX.pack(1 << 30, 1 << 30) + b"x" * 100)
            for _ in range(200):
                if not link.is_open:
                    break
                await asyncio.sleep(0.005)
            assert not link.is_open
        assert len(replica.door.links) == known


class Silent(Link):
    """Says nothing by itself."""

    def send(self, message: Any, body: bytes = b"") -> None:
        assert isinstance(message, Hello | Goodbye)


async def test_serves_own_proxy_reaches_the_same_application_on_its_own_loop() -> None:
    served = make_served()
    thread = LoopThread("test")
    bridge: Any = Bridge(served.app, thread)
    try:
        for body, status in ((rows(1, 2, 3), 200), (b"{", 400), (rows(666, 1, 2), 500), (b"x" * (2 << 20), 413)):
            assert (await acall(bridge, "POST", INFER, body)).status == status
        served.engines[0].gate.clear()
        call = asyncio.create_task(acall(bridge, "POST", INFER, rows(1, 2, 3)))
        while served.batchers[0].ledger["queued"] == 0:
            await asyncio.sleep(0.005)
        call.cancel()
        while served.batchers[0].ledger["cancelled"] == 0:
            await asyncio.sleep(0.005)
    finally:
        served.engines[0].gate.set()
        thread.stop()


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
