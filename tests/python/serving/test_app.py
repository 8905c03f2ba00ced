"""Every route of the ASGI application, over fake engines."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from typing import Any

import numpy as np
import pytest
from oip_client import binary_request, read_answer
from serving_fakes import MIRROR, Answer, Served, acall, call, make_config, make_served, rows

from headrace.serving.app import build_asgi

INFER = "/v2/models/doubler/infer"


def test_server_routes() -> None:
    app = make_served().app
    assert call(app, "GET", "/v2/health/live").json == {"live": True}
    assert call(app, "GET", "/v2/health/ready").json == {"ready": True}
    server = call(app, "GET", "/v2").json
    assert server["name"] == "headrace"
    assert "binary_tensor_data" in server["extensions"]
    assert call(app, "GET", "/v2/").json == server


def test_readiness_waits_for_every_model_and_ends_with_the_drain() -> None:
    served = make_served(load=False)
    for path in ("/v2/health/ready", "/v2/models/doubler/ready", "/v2/models/doubler"):
        assert call(served.app, "GET", path).status == 503, path
    assert call(served.app, "GET", "/v2/health/live").status == 200
    answer = call(served.app, "POST", INFER, rows(1, 2, 3))
    assert answer.status == 503
    assert "got state loading, expected ready" in answer.error
    served.host.load()
    assert len(served.engines[0].computed) == 1, "ready only after a warm-up run"
    assert call(served.app, "GET", "/v2/health/ready").status == 200
    served.host.drain()
    assert call(served.app, "GET", "/v2/health/ready").json == {"ready": False}
    assert call(served.app, "POST", INFER, rows(1, 2, 3)).status == 200, "what still arrives is still answered"


def test_model_metadata_says_what_really_runs_it() -> None:
    app = make_served(make_config(versions=(1, 3))).app
    got = call(app, "GET", "/v2/models/doubler").json
    assert got["versions"] == ["1", "3"]
    assert got["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert got["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    assert got["parameters"] == {
        "version": "3", "backend": "fake", "device": "cpu:0", "isa": "scalar", "precision": "fp32", "threads": 1,
        "parity": "not checked: a fake",
    }  # fmt: skip
    assert call(app, "GET", "/v2/models/doubler/versions/1").json["parameters"]["version"] == "1"
    assert call(app, "GET", "/v2/models/doubler/versions/1/ready").json == {"name": "doubler", "ready": True}


def test_infer_in_json() -> None:
    answer = call(make_served().app, "POST", INFER, rows(1, 2, 3, 4, 5, 6.5, id="42"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "model_name": "doubler",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [2, 4, 6, 8, 10, 13]}],
        "id": "42",
    }


def test_infer_of_every_dtype_in_binary_as_the_stock_client_sends_it() -> None:
    app = make_served(make_config("mirror")).app
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    for spec in MIRROR.inputs:
        values: list[Any] = [["ä", ""]] if spec.dtype == "string" else [[1, 0]]
        arrays[spec.name] = (spec.oip_datatype, np.array(values, dtype=spec.numpy_dtype))
    body, headers = binary_request(arrays, id="b")
    answer = call(app, "POST", "/v2/models/mirror/infer", body, headers)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    got = read_answer(answer.body, answer.headers)
    for name, (_, array) in arrays.items():
        assert got[name.replace("in_", "out_")].tolist() == array.tolist(), name


def test_one_output_in_binary_and_a_version_by_number() -> None:
    app = make_served(make_config(versions=(1, 3))).app
    wanted = [{"name": "y", "parameters": {"binary_data": True}}]
    answer = call(app, "POST", "/v2/models/doubler/versions/1/infer", rows(1, 2, 3, outputs=wanted))
    assert read_answer(answer.body, answer.headers)["y"].tolist() == [[2, 4, 6]]
    head = json.loads(answer.body[: int(answer.headers["inference-header-content-length"])])
    assert head["model_version"] == "1"
    assert call(app, "POST", INFER, rows(1, 2, 3)).json["model_version"] == "3"


def test_chunked_and_compressed_bodies() -> None:
    app = make_served().app
    body = rows(1, 2, 3)
    assert call(app, "POST", INFER, [body[:7], body[7:20], body[20:]]).status == 200
    assert call(app, "POST", INFER, gzip.compress(body), {"Content-Encoding": "gzip"}).status == 200
    assert call(app, "POST", INFER, zlib.compress(body), {"Content-Encoding": "deflate"}).status == 200
    answer = call(app, "POST", INFER, gzip.compress(body)[:-9], {"Content-Encoding": "gzip"})
    assert answer.status == 400
    assert "cut short" in answer.error
    answer = call(app, "POST", INFER, body, {"Content-Encoding": "gzip"})
    assert answer.status == 400
    assert "broken gzip data" in answer.error
    answer = call(app, "POST", INFER, body, {"Content-Encoding": "br"})
    assert answer.status == 400
    assert "got 'br', expected gzip, deflate or identity" in answer.error


def test_a_body_over_the_limit_gets_413_however_it_hides() -> None:
    served = make_served(body_bytes_max=1000)
    chunks = [b" " * 300] * 9
    bomb = gzip.compress(b" " * 100_000)
    for body, headers in (
        (b"", {"Content-Length": "1001"}),
        (b" " * 1001, {}),
        (chunks, {}),
        (bomb, {"Content-Encoding": "gzip"}),
    ):
        answer = call(served.app, "POST", INFER, body, headers)
        assert answer.status == 413
        assert "expected at most 1000 bytes" in answer.error
        assert answer.headers["connection"] == "close"
    assert call(served.app, "POST", INFER, rows(1, 2, 3)).status == 200


def test_the_bytes_of_all_bodies_together_are_bounded() -> None:
    served = make_served()
    app = build_asgi(served.host, body_bytes_max=1000, in_flight_bytes_max=1500)
    served.engines[0].gate.clear()
    body = rows(1, 2, 3).ljust(900)

    async def main() -> list[Answer]:
        first = asyncio.create_task(acall(app, "POST", INFER, body))
        await _until_queued(served, 1)
        whole = await acall(app, "POST", INFER, body)
        chunked = await acall(app, "POST", INFER, [body[:400], body[400:]])
        small = asyncio.create_task(acall(app, "POST", INFER, rows(1, 2, 3)))
        await _until_queued(served, 2)
        served.engines[0].gate.set()
        return [whole, chunked, await first, await small]

    whole, chunked, first, small = asyncio.run(main())
    for refused in (whole, chunked):
        assert refused.status == 429
        assert "bodies in flight: got 1800 bytes, expected at most 1500" in refused.error
    assert (first.status, small.status) == (200, 200)
    for bad in (b"junk", rows(666, 0, 0), b" " * 1001, [b" " * 600] * 2, gzip.compress(rows(1, 2, 3))):
        headers = {"Content-Encoding": "gzip"} if bad[:2] == b"\x1f\x8b" else {}
        call(app, "POST", INFER, bad, headers)
    assert app._in_flight.bytes == 0, "every way to end gives the bytes back"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/", 404, "path: got '/', expected"),
        ("GET", "/v2/models", 404, "path: got"),
        ("GET", "/v2/models/nope", 404, "got 'nope', expected one of doubler"),
        ("POST", "/v2/models/nope/infer", 404, "got 'nope', expected one of doubler"),
        ("POST", "/v2/models/doubler/versions/9/infer", 404, "got version '9', expected one of 1"),
        ("POST", "/v2/models/doubler/versions/01/infer", 404, "got version '01'"),
        ("POST", "/v2/models/doubler/versions/²/infer", 404, "got version '²'"),
        ("POST", "/v2/models/doubler/versions/" + "9" * 5000 + "/infer", 404, "got version"),
        ("GET", "/v2/models/../../etc/passwd", 404, "path: got"),
        ("GET", "/v2/models/..", 404, "got '..', expected one of doubler"),
        ("GET", "/v2/models/doubler\0/ready", 404, "got 'doubler"),
        ("GET", INFER, 405, "got method GET, expected POST"),
        ("POST", "/v2/health/live", 405, "got method POST, expected GET or HEAD"),
        ("DELETE", "/metrics", 405, "got method DELETE"),
    ],
)
def test_wrong_paths_and_methods(method: str, path: str, status: int, message: str) -> None:
    answer = call(make_served().app, method, path)
    assert answer.status == status
    assert message in answer.error
    assert len(answer.error) < 300


def test_wrong_headers() -> None:
    app = make_served().app
    for name in ("Content-Length", "Inference-Header-Content-Length", "X-Envoy-Expected-Rq-Timeout-Ms"):
        for value in ("-1", "1e3", "x", "9" * 30):
            answer = call(app, "POST", INFER, rows(1, 2, 3), {name: value})
            assert answer.status == 400
            assert f"header {name.lower()}: got" in answer.error


def test_errors_become_their_statuses() -> None:
    app = make_served().app
    bad = call(app, "POST", INFER, rows(1, 2))
    assert bad.status == 400
    assert "got 2 values in data, expected" in bad.error
    failed = call(app, "POST", INFER, rows(666, 0, 0))
    assert failed.status == 500
    assert failed.error == "node 'boom': got 666, expected anything else"
    bug = call(app, "POST", INFER, rows(667, 0, 0))
    assert bug.status == 500
    assert bug.error == "internal error: ZeroDivisionError", "our bugs do not leak their details"


async def _until_queued(served: Served, count: int) -> None:
    async with asyncio.timeout(10):
        while served.batchers[0].ledger["queued"] != count:
            await asyncio.sleep(0.001)


def test_overload_gets_429_with_retry_after_and_deadlines_get_504() -> None:
    served = make_served(make_config(max_queue=2))
    served.engines[0].gate.clear()

    async def main() -> tuple[list[Answer], Answer]:
        slow = asyncio.create_task(acall(served.app, "POST", INFER, rows(1, 2, 3)))
        await _until_queued(served, 1)
        late = asyncio.create_task(acall(served.app, "POST", INFER, rows(4, 5, 6, parameters={"timeout": 1000})))
        await _until_queued(served, 2)
        refused = await acall(served.app, "POST", INFER, rows(1, 2, 3))
        await asyncio.sleep(0.01)
        served.engines[0].gate.set()
        return await asyncio.gather(slow, late), refused

    (slow, late), refused = asyncio.run(main())
    assert slow.status == 200
    assert refused.status == 429
    assert refused.headers["retry-after"] == "3"
    assert late.status == 504
    assert "got a wait beyond 1.0 ms" in late.error
    assert len(served.engines[0].computed) == 1, "a late request is never computed"


def test_deadlines_reach_the_scheduler() -> None:
    served = make_served()
    call(served.app, "POST", INFER, rows(1, 2, 3))
    call(served.app, "POST", INFER, rows(1, 2, 3, parameters={"timeout": 5_000_000}))
    call(served.app, "POST", INFER, rows(1, 2, 3), {"x-envoy-expected-rq-timeout-ms": "2000"})
    call(served.app, "POST", INFER, rows(1, 2, 3), {"x-envoy-expected-rq-timeout-ms": "0"})
    both = rows(1, 2, 3, parameters={"timeout": 1_000_000})
    call(served.app, "POST", INFER, both, {"x-envoy-expected-rq-timeout-ms": "2000"})
    deadlines = [deadline for deadline, _ in served.batchers[0].seen]
    assert deadlines == [None, 5000, 2000, None, 1000]


def test_level_1_goes_first_and_no_level_goes_in_the_middle() -> None:
    served = make_served()
    for level in (0, 1, 2, 10, 11, 2**64):
        assert call(served.app, "POST", INFER, rows(1, 2, 3, parameters={"priority": level})).status == 200
    unnamed, highest, high, same, low, lowest = (priority for _, priority in served.batchers[0].seen)
    assert highest > high > unnamed == same == 0 > low > lowest > -(2**31)


def test_good_requests_are_bit_identical_among_bad_ones() -> None:
    served = make_served()
    good = rows(0.1, 1 / 3, 2e-38)
    want = call(served.app, "POST", INFER, good).body
    bad = [
        b"", b"[" * 100_000, rows(1, 2), rows(1, 2, 3, shape=(2**40, 3)), rows(666, 0, 0), rows(667, 0, 0),
        rows(1, 2, 3, outputs=[{"name": "zz"}]), b"\xff" * 100,
    ]  # fmt: skip

    async def main() -> list[Answer]:
        calls = [acall(served.app, "POST", INFER, body) for pair in bad * 5 for body in (pair, good)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(main())
    assert {answer.body for answer in answers[1::2]} == {want}
    assert {answer.status for answer in answers[0::2]} == {400, 500}


def test_a_client_that_leaves_takes_its_request_out_of_the_queue() -> None:
    served = make_served()
    served.engines[0].gate.clear()
    sent: list[Any] = []

    async def main() -> Answer:
        first = asyncio.create_task(acall(served.app, "POST", INFER, rows(1, 2, 3)))
        await _until_queued(served, 1)
        gone = asyncio.Event()
        body = [{"type": "http.request", "body": rows(7, 8, 9), "more_body": False}]

        async def receive() -> Any:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": INFER, "headers": []}
        second = asyncio.create_task(served.app(scope, receive, send))
        await _until_queued(served, 2)
        gone.set()
        await asyncio.wait({second}, timeout=10)
        assert second.done()
        assert not second.cancelled()
        assert second.cancelling() == 0
        assert served.batchers[0].ledger["cancelled"] == 1
        served.engines[0].gate.set()
        return await first

    assert asyncio.run(main()).status == 200
    assert [request["x"].tolist() for request in served.engines[0].computed] == [[[1, 2, 3]]]
    assert served.app.service.http_responses == {200: 1, 499: 1}


def test_a_server_that_cancels_the_task_is_obeyed() -> None:
    served = make_served()
    served.engines[0].gate.clear()

    async def main() -> None:
        task = asyncio.create_task(acall(served.app, "POST", INFER, rows(1, 2, 3)))
        await _until_queued(served, 1)
        task.cancel()
        served.engines[0].gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("policy", ["allow", "count", "error"])
def test_the_nonfinite_guard(policy: str) -> None:
    served = make_served(make_config(nonfinite=policy))
    overflow = call(served.app, "POST", INFER, rows(1, 3e38, 2))
    fine = call(served.app, "POST", INFER, rows(1, 2, 3))
    assert fine.status == 200
    assert next(iter(served.host)).nonfinite == (0 if policy == "allow" else 1)
    if policy == "error":
        assert overflow.status == 500
        assert re.search(r"got 1 NaN or Inf of 3 values in output 'y', expected finite values", overflow.error)
    else:
        assert overflow.json["outputs"][0]["data"] == [2, None, 4]


def test_a_mount_prefix_is_taken_off() -> None:
    app = make_served().app
    assert call(app, "POST", "/mounted" + INFER, rows(1, 2, 3), root_path="/mounted").status == 200
    assert call(app, "GET", "/mounted/v2/health/live", root_path="/mounted/").status == 200
    assert call(app, "GET", "/v2/health/live", root_path="/mounted").status == 200
    assert call(app, "GET", "/v2/models/doubler/ready", root_path="/v2/models/doubler").status == 200


def test_lifespan_is_acknowledged() -> None:
    sent: list[str] = []

    async def main() -> None:
        messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

        async def receive() -> Any:
            return messages.pop()

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await make_served().app({"type": "lifespan"}, receive, send)

    asyncio.run(main())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_the_header_that_names_the_caller() -> None:
    served = make_served()
    call(served.app, "POST", INFER, rows(1, 2, 3), headers={"x-headrace-caller": "ann"})
    call(served.app, "POST", INFER, rows(1, 2, 3))
    app = build_asgi(served.host, caller_header="X-API-Key")
    call(app, "POST", INFER, rows(1, 2, 3), headers={"x-api-key": "bob", "x-headrace-caller": "ann"})
    assert served.batchers[0].callers == [b"ann", None, b"bob"]


def test_the_ledger_of_a_process() -> None:
    served = make_served()
    call(served.app, "POST", INFER, rows(1, 2, 3))
    call(served.app, "POST", INFER, rows(666, 2, 3))
    books = call(served.app, "GET", "/v2/ledger").json["doubler"]
    assert (books["accepted"], books["ok"], books["failed"], books["lost"]) == (2, 1, 1, 0)


def test_a_stuck_batch_ends_liveness() -> None:
    served = make_served(make_config("doubler"), make_config("mirror", stall_s=90.0))
    for batcher in served.batchers:
        batcher.running_s = 60.0
    answer = call(served.app, "GET", "/v2/health/live")
    assert (answer.status, answer.json) == (503, {"live": False, "stalled": ["doubler/1"]})
    served.batchers[0].running_s = 0.0
    assert call(served.app, "GET", "/v2/health/live").status == 200
