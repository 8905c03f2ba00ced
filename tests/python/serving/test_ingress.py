"""Requests on their way through the ingress of a deployment, without Ray and over fake engines."""

from __future__ import annotations

import asyncio
import gzip
import threading
from typing import Any

import numpy as np
import pytest
from ingress_fakes import INFER, Replica, deployed, event_loop_policy  # noqa: F401 (a fixture)
from oip_client import binary_request, read_answer
from serving_fakes import acall, make_served, rows

from headrace.serving.grpc_app import CallInfo, Refusal
from headrace.serving.ingress.bridge import Bridge
from headrace.serving.ingress.loop_thread import WORKERS, LoopThread
from headrace.serving.messages import RPCS


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


async def test_the_wait_for_a_replica_takes_of_a_long_deadline_what_it_took() -> None:
    async with deployed(Replica()) as deployment:
        _, left_s = await deployment.pool.wait(300.0)  # far longer than anybody waits for a replica
        assert left_s is not None
        assert 290 < left_s <= 300


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


async def test_a_loops_thread_has_all_of_its_workers_from_the_start() -> None:
    thread = LoopThread("grows-not")
    together = threading.Barrier(WORKERS)

    async def use() -> None:
        await asyncio.gather(*(asyncio.to_thread(together.wait, 10) for _ in range(WORKERS)))

    def own() -> int:
        return sum(one.name.startswith("grows-not") for one in threading.enumerate())

    try:
        before = own()
        await thread.run(use())
        assert own() == before == WORKERS + 1
    finally:
        thread.stop()
