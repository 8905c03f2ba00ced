"""A real server process on a real socket: what only uvicorn and the kernel can break."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from serving_fakes import make_served, rows

from headrace.errors import ConfigError, ExecutionError
from headrace.serving import closing
from headrace.serving.closing import close_host
from headrace.serving.server import run

HERE = Path(__file__).parent
INFER = "/v2/models/doubler/infer"


@contextlib.contextmanager
def server(
    delay_s: float = 0.0, body_bytes_max: int = 1 << 20, address: str = "127.0.0.1"
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "fake_server.py"), str(delay_s), str(body_bytes_max), address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        shown = f"[{address}]" if ":" in address else address
        assert line.startswith(f"ready: http://{shown}:"), line + process.stdout.read()
        url = urlparse(line.removeprefix("ready: ").strip())
        assert url.hostname
        assert url.port
        yield process, url.hostname, url.port
    finally:
        process.kill()
        process.wait()


def post(address: str, port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, port, timeout=30)
    try:
        connection.request("POST", INFER, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def metric(address: str, port: int, line: str) -> float:
    connection = http.client.HTTPConnection(address, port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return next((float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line)), 0.0)


def wait_for(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_sigterm_answers_what_was_accepted_then_exits_with_0() -> None:
    with server(delay_s=0.4) as (process, address, port):
        answers: list[tuple[int, bytes]] = []
        body = rows(1, 2, 3)
        clients = [threading.Thread(target=lambda: answers.append(post(address, port, body))) for _ in range(3)]
        for client in clients:
            client.start()
        wait_for(lambda: metric(address, port, "headrace_queue_requests{") == 3)
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(20)
        assert [status for status, _ in answers] == [200, 200, 200]
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "drained\n"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=1).close()


LOADS_FOR_EVER = """
import time
from pathlib import Path
from serving_fakes import make_config
from headrace.serving.host import ModelHost
from headrace.serving.server import run

class Host(ModelHost):
    def drain(self):
        super().drain()
        print("draining", flush=True)

def open_engine(path, settings):
    print("loading", flush=True)
    time.sleep(600)

run(Host([make_config()], engine_opener=open_engine), port=0)
"""


def test_a_second_signal_does_not_wait_for_a_model_that_loads() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOADS_FOR_EVER],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "ExecutionError: load: got a second signal while a model loads" in said
    finally:
        process.kill()
        process.communicate()


LOADS_AGAIN_FOR_EVER = """
import sys, time
from pathlib import Path
from serving_fakes import FakeBatcher, FakeEngine
from headrace.config import load_repository
from headrace.serving.aside import given_up
from headrace.serving.host import ModelHost
from headrace.serving.server import run

root = Path(sys.argv[1])

def open_engine(path, settings):
    if path.parent.name == "2":
        print("loading", flush=True)
        time.sleep(600)
    return FakeEngine()

host = ModelHost(load_repository(root), engine_opener=open_engine, batcher_opener=FakeBatcher)
token = "0123456789abcdef"
run(host, port=0, repository=root, admin_token=token, on_ready=lambda url, grpc: print(f"ready: {url}", flush=True))
print("drained", given_up(), flush=True)
"""


def test_a_load_that_was_asked_for_is_given_up_when_the_server_ends(tmp_path: Path) -> None:
    for version in ("1", "2"):
        folder = tmp_path / "doubler" / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"a model")
    (tmp_path / "doubler/headrace.toml").write_text("versions = [1]")
    process = subprocess.Popen(
        [sys.executable, "-c", LOADS_AGAIN_FOR_EVER, str(tmp_path)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = urlparse(process.stdout.readline().removeprefix("ready: ").strip())
        (tmp_path / "doubler/headrace.toml").write_text("versions = [2]")
        connection = http.client.HTTPConnection(str(url.hostname), int(url.port or 0), timeout=30)
        headers = {"authorization": "Bearer 0123456789abcdef"}
        connection.request("POST", "/v2/repository/models/doubler/load", headers=headers)
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        response = connection.getresponse()
        assert (response.status, b"got a load while the server is stopping" in response.read()) == (503, True)
        connection.close()
        said, errors = process.communicate(timeout=20)
        assert (process.returncode, said, errors) == (0, "drained ['headrace-load']\n", "")
    finally:
        process.kill()
        process.communicate()


def test_a_closed_connection_leaves_the_queue() -> None:
    with server(delay_s=0.3) as (_, address, port):
        body = rows(1, 2, 3)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        first = threading.Thread(target=lambda: post(address, port, body))
        first.start()
        wait_for(lambda: metric(address, port, "headrace_queue_requests{") == 1)
        with socket.create_connection((address, port)) as leaver:
            leaver.sendall(head + body)
            wait_for(lambda: metric(address, port, "headrace_queue_requests{") == 2)
        wait_for(lambda: metric(address, port, 'headrace_requests_total{model="doubler",outcome="cancelled"') == 1)
        first.join(20)
        wait_for(lambda: metric(address, port, 'headrace_requests_total{model="doubler",outcome="ok"') == 1)


def test_an_endless_body_is_cut_off_and_the_server_stays_well() -> None:
    with server(body_bytes_max=100_000) as (_, address, port):
        with socket.create_connection((address, port), timeout=20) as endless:
            endless.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
            end = time.monotonic() + 10
            with contextlib.suppress(OSError):
                while time.monotonic() < end:
                    endless.sendall(chunk)
                pytest.fail("a body was swallowed for ten seconds by a server that takes 0.1 MB")
            answer = b""
            with contextlib.suppress(OSError):
                answer = endless.recv(4096)
            assert answer == b"" or b" 413 " in answer.splitlines()[0]
        assert post(address, port, rows(1, 2, 3))[0] == 200


def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes() -> None:
    with server(body_bytes_max=100_000) as (_, address, port), socket.create_connection((address, port)) as client:
        client.settimeout(20)
        client.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode())
        answer = b""
        while part := client.recv(4096):
            answer += part
        assert b" 413 " in answer.splitlines()[0]
        assert b"got 99999999999 bytes, expected at most 100000 bytes" in answer


def test_garbage_on_the_socket_harms_nobody_else() -> None:
    with server() as (_, address, port):
        for garbage in (
            b"\0" * 1000,
            b"GET /v2 HTTP/9.9\r\n\r\n",
            b"POST " + INFER.encode() + b" HTTP/1.1\r\n: x\r\n\r\n",
        ):
            with socket.create_connection((address, port)) as client, contextlib.suppress(OSError):
                client.sendall(garbage)
                client.settimeout(5)
                client.recv(4096)
        assert post(address, port, rows(1, 2, 3))[0] == 200


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"address: got 127\.0\.0\.1:{port}, expected a free one"):
            run(make_served(load=False).host, port=port)


def test_ipv6_is_served_like_ipv4() -> None:
    with server(address="::1") as (_, address, port):
        assert post(address, port, rows(1, 2, 3))[0] == 200
        with socket.create_connection((address, port), timeout=20) as client:
            client.sendall(b"GET http://[::1]/v2/health/ready HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_stuck_batch_does_not_keep_the_server_from_ending() -> None:
    served = make_served()
    ended = threading.Event()
    served.batchers[0].close = ended.wait  # type: ignore[method-assign]
    served.batchers[0].running_s = 60.0
    try:
        with pytest.raises(ExecutionError, match="got a Batch that does not end in doubler/1"):
            close_host(served.host)
    finally:
        ended.set()


def test_an_engine_that_does_not_close_does_not_keep_the_server_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "CLOSE_S_MAX", 0.1)
    served = make_served()
    ended = threading.Event()
    served.engines[0].close = ended.wait  # type: ignore[method-assign]
    try:
        with pytest.raises(ExecutionError, match=r"got no end of closing doubler/1 in 0\.1 s"):
            close_host(served.host)
    finally:
        ended.set()


def test_an_error_of_closing_is_not_lost() -> None:
    served = make_served()

    def fail() -> None:
        raise ExecutionError("engine: got no answer")

    served.engines[0].close = fail  # type: ignore[method-assign]
    with pytest.raises(ExecutionError, match="got no answer"):
        close_host(served.host)
