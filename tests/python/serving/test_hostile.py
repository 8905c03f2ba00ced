"""Hostile and broken input over raw sockets, against a real server with a real model.

Every case is answered with a 4xx and a plain message in bounded time. After each the server is well, a good client that
never stops gets the same bits throughout, and in the end the server holds no more memory than before.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import onnx
import pytest
from oip_client import binary_request
from onnx import TensorProto, helper, numpy_helper

INFER = "/v2/models/credit/infer"
LENGTH = "Inference-Header-Content-Length"
# A hostile request is over by then, whatever it is: the server under test waits half a second for a head or a body.
ANSWER_S_MAX = 5.0
DEEP = 250_000
VALUES = [round(0.1 * i, 1) for i in range(30)]


def http_bytes(body: bytes = b"", path: str | bytes = INFER, method: str = "POST", **headers: object) -> bytes:
    """A request as bytes. Headers override or (None) drop the right ones; "_" in their names stands for "-"."""
    named: dict[str, object] = {"Host": "x", "Content-Length": len(body)}
    named.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in named.items() if value is not None)
    raw_path = path if isinstance(path, bytes) else path.encode()
    return method.encode() + b" " + raw_path + b" HTTP/1.1\r\n" + lines + b"\r\n" + body


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 30], "datatype": "FP32", "data": VALUES, **changes}


def infer(**changes: Any) -> bytes:
    """An inference in JSON whose one tensor is changed."""
    return http_bytes(json.dumps({"inputs": [tensor(**changes)]}).encode())


def data(text: str) -> bytes:
    """An inference whose data is `text` as it is."""
    return http_bytes(json.dumps({"inputs": [tensor(data="@")]}).replace('"@"', text).encode())


def binary(size: int, sent: int = 120, shape: tuple[int, ...] = (1, 30), **headers: object) -> bytes:
    """An inference in binary form that declares `size` bytes and sends `sent`."""
    one = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [one]}).encode()
    return http_bytes(head + bytes(sent), **{LENGTH: len(head), **headers})


def chunked(body: bytes) -> bytes:
    return http_bytes(Content_Length=None, Transfer_Encoding="chunked") + body


@dataclass(frozen=True)
class Case:
    """What is sent, and the status and message that answer it."""

    name: str
    sent: bytes
    status: int
    message: str = ""


WRONG_DATA = {
    "NaN": "[NaN" + ",1" * 29 + "]",
    "Infinity": "[1" + ",1" * 28 + ",-Infinity]",
    "a number beyond all ranges": "[1e999" + ",1" * 29 + "]",
    "a number beyond float32": "[1e39" + ",1" * 29 + "]",
    "a number of 100,000 digits": "[" + "9" * 100_000 + ",1" * 29 + "]",
    "an octal number": "[01" + ",1" * 29 + "]",
    "a hexadecimal number": "[0x1" + ",1" * 29 + "]",
    "a number cut short": "[1e" + ",1" * 29 + "]",
    "a trailing comma": "[1" + ",1" * 29 + ",]",
    "no comma": "[1 1" + ",1" * 28 + "]",
    "strings": json.dumps(["1"] * 30),
    "true": "[true" + ",1" * 29 + "]",
    "an object": "{}",
    "ragged rows": "[[1,2],[3]]",
    "too few": "[1,2,3]",
    "too many": "[1" + ",1" * 30 + "]",
    "deep nesting": "[" * DEEP,
    "deep nesting that ends": "[" * DEEP + "]" * DEEP,
}
WRONG_SHAPES: dict[str, tuple[list[Any], str]] = {
    "too few dims": ([30], "got 1 dims"),
    "too many dims": ([1] * 31 + [30], "got 32 dims"),
    "100,000 dims": ([1] * 100_000, "got 100000 dims"),
    "a wrong dim": ([1, 31], "got 31 at axis 1"),
    "a negative dim": ([-1, 30], "got -1 at axis 0"),
    "negative dims of a right product": ([-1, -30], "got -1 at axis 0"),
    "a product of 2^31 * 30": ([2**31, 30], "got 30 values in data, expected 64424509440"),
    "a product that is 30 in 64 bits": ([2**63 + 1, 30], "got 30 values in data, expected 276701161105643274270"),
    "a dim of 5000 digits": ([10**4000, 30], "expected|[Nn]umber|integer"),
    "a fraction": ([1.5, 30], "Expected `int`, got `float`"),
    "a string": (["1", 30], "Expected `int`, got `str`"),
}
WRONG_BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "truncated"),
    "JSON cut short": (json.dumps({"inputs": [tensor()]}).encode()[:-2], "truncated"),
    "more after the JSON": (json.dumps({"inputs": [tensor()]}).encode() + b"x", "trailing"),
    "an array": (b"[]", "Expected `object`, got `array`"),
    "bytes that are no text": (bytes(range(256)), "malformed|invalid"),
    "broken UTF-8 in a name": (json.dumps({"inputs": [tensor(name="@")]}).encode().replace(b"@", b"\xff\xc0"), "UTF-8"),
    "half a surrogate": (json.dumps({"inputs": [tensor(name="\ud800")]}).encode(), "surrogate|UTF-8|escape"),
    "UTF-16": ('{"inputs": []}'.encode("utf-16"), "malformed|invalid"),
    "inputs of a wrong type": (b'{"inputs": {"x": 1}}', "Expected `array`, got `object`"),
    "an input of a wrong type": (b'{"inputs": [7]}', "Expected `object`, got `int`"),
    "a name of a wrong type": (json.dumps({"inputs": [tensor(name=7)]}).encode(), "Expected `str`, got `int`"),
    "the same input twice": (json.dumps({"inputs": [tensor(), tensor()]}).encode(), "got 'x' twice"),
    "an input nobody knows": (
        json.dumps({"inputs": [tensor(name="../x")]}).encode(),
        r"got '\.\./x', expected one of x",
    ),
    "an input of 500,000 letters": (json.dumps({"inputs": [tensor(name="y" * 500_000)]}).encode(), "expected one of x"),
    "a datatype of another kind": (json.dumps({"inputs": [tensor(datatype="INT64")]}).encode(), "expected FP32"),
    "deep nesting": (b"[" * DEEP, "Expected `object`"),
    "deep nesting in inputs": (b'{"inputs":' + b"[" * DEEP, "Expected `object`, got `array`"),
    "deep nesting of objects": (b'{"a":' * (DEEP // 2), "too deep"),
    "deep nesting in parameters": (b'{"parameters":{"a":' + b"[" * DEEP, "too deep"),
    "gigabytes declared": (json.dumps({"inputs": [tensor(shape=[2**30, 30])]}).encode(), "got 30 values"),
    "shared memory": (
        json.dumps({"inputs": [tensor(parameters={"shared_memory_region": "/dev/mem"})]}).encode(),
        "shared memory extension is not offered",
    ),
}
PATHS = {
    "..": "/v2/models/../infer",
    "an encoded ..": "/v2/models/%2e%2e/infer",
    "a way out": "/v2/models/..%2f..%2fetc%2fpasswd/infer",
    "an encoded NUL": "/v2/models/credit%00/infer",
    "an encoded line end": "/v2/models/credit%0d%0aX:1/infer",
    "broken UTF-8": "/v2/models/%ff%fe/infer",
    "half an escape": "/v2/models/credit%/infer",
    "another alphabet": "/v2/models/" + "%D1%81redit/infer",
    "an escaped slash": "/v2/models/credit%2Fversions%2F1/infer",
    "8000 letters": "/v2/models/" + "a" * 8000 + "/infer",
    "a version that is none": "/v2/models/credit/versions/-1/infer",
    "a version of 5000 digits": "/v2/models/credit/versions/" + "9" * 5000 + "/infer",
    "an empty name": "/v2/models//infer",
    "a whole URL": "http://elsewhere/v2/models/nope/infer",
}
GOOD_BODY = json.dumps({"inputs": [tensor()]}).encode()
HTTP: list[Case] = [
    Case("NULs", b"\0" * 1000, 400, "expected"),
    Case("a TLS hello", bytes.fromhex("16030100a5010000a10303") + bytes(160), 400, "expected"),
    Case("another protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "expected"),
    Case("a method nobody knows", http_bytes(method="BREW"), 400, "expected"),
    Case("GET", http_bytes(method="GET"), 405, "got method GET, expected POST"),
    Case("DELETE", http_bytes(method="DELETE"), 405, "got method DELETE, expected POST"),
    Case("TRACE", http_bytes(method="TRACE"), 405, "got method TRACE"),
    Case("PUT to health", http_bytes(method="PUT", path="/v2/health/live"), 405, "got method PUT"),
    Case("a header without a name", b"POST " + INFER.encode() + b" HTTP/1.1\r\n: x\r\n\r\n", 400, "expected"),
    Case("a length that is none", http_bytes(Content_Length="abc"), 400, "expected"),
    Case("a negative length", http_bytes(Content_Length=-1), 400, "expected"),
    Case("a length beyond 64 bits", http_bytes(Content_Length=2**64), 400, "expected"),
    Case(
        "two lengths", http_bytes(GOOD_BODY).replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n", 1), 400, "expected"
    ),
    Case("a length and chunks", http_bytes(GOOD_BODY, Transfer_Encoding="chunked"), 400, "expected"),
    Case(
        "a body declared too large", http_bytes(Content_Length=10**12), 413, "got 1000000000000 bytes, expected at most"
    ),
    Case("a body too large", http_bytes(b" " * (1 << 20 | 1)), 413, "expected at most 1048576"),
    Case(
        "chunks too large", chunked(b"80000\r\n" + b" " * 0x80000 + b"\r\n80001\r\n" + b" " * 0x80001), 413, "at most"
    ),
    Case("a bomb", http_bytes(gzip.compress(b" " * (8 << 20)), Content_Encoding="gzip"), 413, "after decompression"),
    Case("broken gzip", http_bytes(GOOD_BODY, Content_Encoding="gzip"), 400, "broken gzip"),
    Case("another encoding", http_bytes(GOOD_BODY, Content_Encoding="br"), 400, "got 'br', expected"),
    Case("a chunk size that is none", chunked(b"zz\r\n" + GOOD_BODY), 400, "expected"),
    Case("a negative chunk size", chunked(b"-5\r\n" + GOOD_BODY), 400, "expected"),
    Case("a chunk size beyond 64 bits", chunked(b"f" * 17 + b"\r\n" + GOOD_BODY), 400, "expected"),
    Case("a chunk longer than its size", chunked(b"2\r\n" + GOOD_BODY + b"\r\n0\r\n\r\n"), 400, "expected"),
    Case("chunks of nothing", chunked(b"0\r\n\r\n"), 400, "truncated"),
    Case("headers without end", b"POST / HTTP/1.1\r\n" + b"X-Y: zzzzzzzz\r\n" * 20_000, 431, "expected at most 65536"),
    Case("a URL without end", b"GET /" + b"a" * 300_000, 431, "expected at most 65536"),
    Case("half a head and silence", b"POST /v2/models/credit/infer HTTP/1.1\r\nHost:", 408, "head: got no end of it"),
    Case("nothing and silence", b"", 408, "head: got no end of it"),
    Case("half a body and silence", http_bytes(GOOD_BODY[:50], Content_Length=500), 408, "body: got 50 bytes"),
    Case("a chunk and silence", chunked(b"5\r\nabcde\r\n"), 408, "body: got 5 bytes"),
    Case("an upgrade", http_bytes(b"", Connection="Upgrade", Upgrade="websocket"), 400, "truncated"),
    Case("a deadline that is none", http_bytes(GOOD_BODY, x_envoy_expected_rq_timeout_ms="soon"), 400, "got 'soon'"),
]
BINARY: list[Case] = [
    Case("a size too large for the shape", binary(124, 124), 400, "got binary_data_size 124, expected 120"),
    Case("a size too small for the shape", binary(116, 116), 400, "got binary_data_size 116, expected 120"),
    Case("a size beyond the body", binary(120, 100), 400, "expected 0 to 100, the bytes left"),
    Case("a body beyond the size", binary(120, 130), 400, "got 130 bytes of binary data, expected the 120"),
    Case("a negative size", binary(-120), 400, "got binary_data_size -120"),
    Case("gigabytes declared", binary(4 << 30, 120, (2**25, 32)), 400, "got 32 at axis 1"),
    Case("gigabytes declared rightly", binary(120 << 25, 120, (2**25, 30)), 400, "expected 0 to 120"),
    Case("a product that is right in 64 bits", binary(120, 120, (2**61 + 1, 30)), 400, "expected 2767"),
    Case("a size of 5000 digits", binary(10**4000), 400, "expected|integer"),
    Case("a header length of 0", binary(120, **{LENGTH: 0}), 400, "got 0, expected 1 to"),
    Case("a header length beyond the body", binary(120, **{LENGTH: 10_000}), 400, "got 10000, expected 1 to"),
    Case("a header length within the JSON", binary(120, **{LENGTH: 20}), 400, "truncated"),
    Case("a header length within the data", binary(120, **{LENGTH: 150}), 400, "trailing|malformed|invalid"),
    Case("a negative header length", binary(120, **{LENGTH: -5}), 400, "got '-5', expected a whole number"),
    Case("a header length that is none", binary(120, **{LENGTH: "1e2"}), 400, "got '1e2', expected a whole number"),
]
CASES = [
    *HTTP,
    *BINARY,
    *(Case(f"data: {name}", data(text), 400) for name, text in WRONG_DATA.items()),
    *(Case(f"shape: {name}", infer(shape=shape), 400, message) for name, (shape, message) in WRONG_SHAPES.items()),
    *(Case(f"body: {name}", http_bytes(body), 400, message) for name, (body, message) in WRONG_BODIES.items()),
    *(Case(f"path: {name}", http_bytes(GOOD_BODY, path), 404, "got") for name, path in PATHS.items()),
]


def save_model(path: Path) -> None:
    """softmax(x W), 30 inputs and 4 outputs."""
    weight = numpy_helper.from_array(np.random.default_rng(7).standard_normal((30, 4)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["p"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 30])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


class Server:
    """A server process, and a client that never stops asking it the same."""

    def __init__(self, repository: Path) -> None:
        script = Path(__file__).with_name("hostile_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(repository)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:"), line
        url = urlparse(line.removeprefix("ready: ").strip())
        self.address = (str(url.hostname), int(url.port or 0))
        self.answers: list[set[tuple[int, bytes]]] = [set(), set()]
        self.asked = 0
        self.failure: Exception | None = None
        self.leaving = threading.Event()
        self.client = threading.Thread(target=self._ask)
        self.client.start()

    def _ask(self) -> None:
        x = np.array([VALUES], np.float32)
        requests = [(GOOD_BODY, {}), binary_request({"x": ("FP32", x)})]
        try:
            connection = http.client.HTTPConnection(*self.address, timeout=ANSWER_S_MAX)
            while not self.leaving.wait(0.005):
                for (body, headers), seen in zip(requests, self.answers, strict=True):
                    connection.request("POST", INFER, body, headers)
                    response = connection.getresponse()
                    seen.add((response.status, response.read()))
                    self.asked += 1
            connection.close()
        except Exception as error:
            self.failure = error

    def send(self, sent: bytes) -> bytes:
        """Sends bytes, and returns all that comes back until the answer is whole or the connection closed."""
        with socket.create_connection(self.address, timeout=ANSWER_S_MAX) as client:
            with contextlib.suppress(
                OSError
            ):  # refused before all of it was sent; the answer may be there all the same
                client.sendall(sent)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while not whole(answer) and (part := client.recv(65536)):
                    answer += part
            return answer

    def healthy(self) -> bool:
        connection = http.client.HTTPConnection(*self.address, timeout=ANSWER_S_MAX)
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
        connection.close()
        return status == 200

    def memory_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def close(self) -> None:
        self.leaving.set()
        self.client.join(20)
        self.process.kill()
        self.process.communicate()


def whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("repository")
    save_model(root / "credit/1/model.onnx")
    running = Server(root)
    try:
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_request_gets_a_plain_4xx_and_harms_nobody(server: Server, case: Case) -> None:
    began = time.monotonic()
    answer = server.send(case.sent)
    took = time.monotonic() - began
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % case.status), answer[:300]
    assert b"content-type: application/json" in head
    message = json.loads(body)["error"]
    assert re.search(case.message, message), message
    assert len(message) < 700
    assert took < ANSWER_S_MAX
    assert server.healthy()


def test_a_body_cut_off_by_its_sender_says_so(server: Server) -> None:
    with socket.create_connection(server.address, timeout=ANSWER_S_MAX) as client:
        client.sendall(http_bytes(GOOD_BODY[:50], Content_Length=500))
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"got its end after 50 bytes" in answer


def test_a_body_by_the_byte_is_cut_off(server: Server) -> None:
    began = time.monotonic()
    with socket.create_connection(server.address, timeout=ANSWER_S_MAX) as client:
        client.sendall(http_bytes(Content_Length=500))
        client.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - began < ANSWER_S_MAX:
            client.sendall(b" ")
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_that_keeps_its_rate_is_not_cut_off(server: Server) -> None:
    body = GOOD_BODY.ljust(100_000)
    with socket.create_connection(server.address, timeout=ANSWER_S_MAX) as client:
        client.sendall(http_bytes(Content_Length=len(body)))
        for start in range(0, len(body), 10_000):
            client.sendall(body[start : start + 10_000])
            time.sleep(0.1)  # twice the time that is granted to a body of no bytes
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_the_good_client_got_the_same_bits_throughout_and_memory_is_back(server: Server) -> None:
    quick = [case for case in CASES if case.status != 408]
    for _ in range(2):
        for case in quick:
            server.send(case.sent)
    assert server.healthy()
    memory, files = server.memory_kib(), server.files()
    for _ in range(4):
        for case in quick:
            server.send(case.sent)
    assert server.healthy()
    # One round receives 12 MB and more; holding on to a tenth of what four rounds send would show.
    assert server.memory_kib() - memory < 4096
    assert server.files() <= files + 1
    assert server.failure is None
    assert server.asked > 100
    assert [len(seen) for seen in server.answers] == [1, 1]
    assert [next(iter(seen))[0] for seen in server.answers] == [200, 200]
