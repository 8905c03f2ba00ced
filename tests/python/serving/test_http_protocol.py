"""What a connection makes of requests, over real sockets on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.serving import http_protocol
from headrace.serving.http_protocol import HttpProtocol, sweep

WAIT_S = 10.0
# More than the kernel takes for a client that does not read.
BIG = 20_000_000


class App:
    """Answers each request with what it was asked, when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked: list[str] = []
        self.tasks: list[bool] = []
        self.gone = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        self.asked.append(scope["path"])
        if scope["path"] == "/broken":
            raise ValueError("broken")
        if scope["path"] == "/silent":
            return
        body = b""
        if scope["path"] != "/early":
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone += 1
                    return
                body += message["body"]
                more = message["more_body"]
        if not self.may.is_set():
            await self.may.wait()
        with contextlib.suppress(RuntimeError):
            self.tasks.append(asyncio.current_task() is not None)
        answer = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} ".encode() + body
        answer += bytes(BIG if scope["path"] == "/big" else 0)
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})


class Server:
    """Connections to an App."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.state = SimpleNamespace(connections=set(), tasks=set(), total_requests=0)
        self.config = SimpleNamespace(loaded_app=app, timeout_keep_alive=75)
        self.port = 0

    def protocol(self) -> HttpProtocol:
        return HttpProtocol(self.config, self.state, {}, asyncio.get_running_loop())

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))


class Client:
    """One connection, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[bytes, bytes]:
        """The head of the next answer, and its body."""
        async with asyncio.timeout(WAIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            return head, await self.reader.readexactly(length)

    async def ended(self) -> bytes:
        """All that comes until the connection is closed."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server(App())
    listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for connection in list(server.state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


def over_sockets(test: Callable[[Server], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        async with serving() as server:
            await test(server)

    def run() -> None:
        asyncio.run(main())

    run.__name__ = test.__name__
    return run


def post(path: str, body: bytes = b"", *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@over_sockets
async def test_what_waits_for_nothing_is_answered_without_a_task(server: Server) -> None:
    client = await server.connect()
    for number in range(3):
        client.writer.write(post(f"/a%2F{number}?q=1", b"x"))
        head, body = await client.answer()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection" not in head
        assert body == f"POST /a/{number} q=1 x".encode()
    assert server.app.tasks == [False] * 3
    assert server.state.total_requests == 3
    server.app.may.clear()
    client.writer.write(post("/waits"))
    await asyncio.sleep(0.01)
    assert len(server.state.tasks) == 1
    server.app.may.set()
    assert (await client.answer())[1] == b"POST /waits  "
    assert server.app.tasks[-1]


@over_sockets
async def test_a_body_in_pieces_comes_whole(server: Server) -> None:
    client = await server.connect()
    body = bytes(range(256)) * 2000
    sent = post("/long", body)
    for start in range(0, len(sent), 70_001):
        client.writer.write(sent[start : start + 70_001])
        await asyncio.sleep(0)
    assert (await client.answer())[1] == b"POST /long  " + body
    client.writer.write(b"POST /chunks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (await client.answer())[1] == b"POST /chunks  abcde"


@over_sockets
async def test_pipelined_requests_are_answered_in_order_and_a_turn_each(server: Server) -> None:
    client, other = await server.connect(), await server.connect()
    client.writer.write(b"".join(post(f"/{number}", b"b" * number) for number in range(50)))
    other.writer.write(post("/other"))
    await other.answer()
    assert len(server.app.asked) < 51, "one connection kept the loop until it had all its answers"
    for number in range(50):
        assert (await client.answer())[1] == f"POST /{number}  ".encode() + b"b" * number
    client.writer.write(post("/after"))
    assert (await client.answer())[1] == b"POST /after  "


@over_sockets
async def test_pipelined_requests_wait_for_the_first(server: Server) -> None:
    server.app.may.clear()
    client = await server.connect()
    client.writer.write(post("/first") + post("/second"))
    await asyncio.sleep(0.02)
    assert server.app.asked == ["/first"]
    server.app.may.set()
    assert [(await client.answer())[1] for _ in range(2)] == [b"POST /first  ", b"POST /second  "]


@pytest.mark.parametrize("waits", [False, True])
def test_reading_goes_on_where_the_application_asked_for_no_body(waits: bool) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        client = await server.connect()
        for paths in (["/early"] * 3, ["/early", "/early"], ["/early"]):
            if waits:
                server.app.may.clear()
            client.writer.write(b"".join(b"GET %s HTTP/1.1\r\n\r\n" % path.encode() for path in paths))
            await asyncio.sleep(0.01)
            server.app.may.set()
            for path in paths:
                assert (await client.answer())[1] == f"GET {path}  ".encode()

    run()


@over_sockets
async def test_a_body_that_nobody_reads_leaves_the_next_request_whole(server: Server) -> None:
    server.app.may.clear()
    client = await server.connect()
    client.writer.write(post("/early", bytes(10 * http_protocol.UNREAD_BYTES_MAX)) + post("/next", b"n"))
    await asyncio.sleep(0.02)
    server.app.may.set()
    assert (await client.answer())[1] == b"POST /early  "
    assert (await client.answer())[1] == b"POST /next  n"


REFUSED = {
    "no HTTP": (b"\0garbage\r\n\r\n", b"400"),
    "an endless head": (b"GET / HTTP/1.1\r\nx: ".ljust(http_protocol.HEAD_BYTES_MAX + 1, b"x"), b"431"),
    "a body that is none": (b"POST /bad HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n", b"400"),
}


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("refused", "status"), REFUSED.values(), ids=REFUSED)
def test_requests_are_answered_before_what_is_refused_behind_them(refused: bytes, status: bytes, waits: bool) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        if waits:
            server.app.may.clear()
        client = await server.connect()
        # Nothing is read behind two of them; and what comes together with a request's end does not count as a head.
        paths = ["/good"] if status == b"431" else ["/good", "/also"]
        client.writer.write(b"".join(map(post, paths)))
        if status == b"431":
            await asyncio.sleep(0.01)
        client.writer.write(refused)
        await asyncio.sleep(0.02)
        assert server.app.asked[0] == "/good"
        server.app.may.set()
        for path in paths:
            assert (await client.answer())[1] == f"POST {path}  ".encode()
        assert (await client.ended()).startswith(b"HTTP/1.1 " + status)
        assert server.app.asked == paths

    run()


@over_sockets
async def test_who_keeps_the_connection(server: Server) -> None:
    for sent in (
        post("/", b"", "Connection: close"),
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ):
        client = await server.connect()
        client.writer.write(sent)
        assert b"\r\nconnection: close\r\n" in await client.ended()


@over_sockets
async def test_head_has_no_body(server: Server) -> None:
    client = await server.connect()
    client.writer.write(b"HEAD /x HTTP/1.1\r\nConnection: close\r\n\r\n")
    answer = await client.ended()
    assert b"content-length: 9\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@over_sockets
async def test_100_continue_is_said_once_to_who_expects_it(server: Server) -> None:
    client = await server.connect()
    client.writer.write(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.writer.write(b"abc")
    assert (await client.answer())[1] == b"POST /  abc"
    client.writer.write(post("/", b"d"))
    assert (await client.answer())[1] == b"POST /  d"


@pytest.mark.parametrize("path", ["/broken", "/silent"])
def test_an_application_that_gives_no_answer_costs_its_own_request_a_500(path: str) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        client, other = await server.connect(), await server.connect()
        client.writer.write(post(path))
        assert (await client.ended()).startswith(b"HTTP/1.1 500 ")
        other.writer.write(post("/fine"))
        assert (await other.answer())[1] == b"POST /fine  "

    run()


@over_sockets
async def test_an_answer_before_the_end_of_the_body_leaves_the_next_request_whole(server: Server) -> None:
    client = await server.connect()
    sent = post("/early", b"z" * 1000)
    client.writer.write(sent[:-500])
    assert (await client.answer())[1] == b"POST /early  "
    client.writer.write(sent[-500:] + post("/next", b"n"))
    assert (await client.answer())[1] == b"POST /next  n"


@over_sockets
async def test_the_application_hears_that_the_client_has_gone(server: Server) -> None:
    client = await server.connect()
    client.writer.write(post("/cut", b"z" * 1000)[:-1])
    await asyncio.sleep(0.02)
    client.writer.transport.abort()
    async with asyncio.timeout(WAIT_S):
        while not server.app.gone or server.state.connections or server.state.tasks:
            await asyncio.sleep(0.005)


@over_sockets
async def test_the_end_of_the_server_answers_what_was_asked(server: Server) -> None:
    idle, busy = await server.connect(), await server.connect()
    server.app.may.clear()
    busy.writer.write(post("/busy") + post("/behind"))
    await asyncio.sleep(0.02)
    for connection in list(server.state.connections):
        connection.shutdown()
    assert await idle.ended() == b""
    server.app.may.set()
    _, first, second = (await busy.ended()).split(b"HTTP/1.1 200 OK")
    assert first.endswith(b"POST /busy  ")
    assert b"connection: close" not in first
    assert b"connection: close" in second


@over_sockets
async def test_a_client_that_does_not_read_is_sent_no_more(server: Server) -> None:
    client = await server.connect()
    client.writer.write(post("/big"))
    for number in range(5):
        client.writer.write(post(f"/{number}", b"y" * 1000))
    await asyncio.sleep(0.1)
    assert len(server.app.asked) <= 2, "requests are read of a client that reads no answer"
    assert server.state.total_requests == 1, "answers pile up for a client that reads none"
    assert len((await client.answer())[1]) > BIG
    for _ in range(5):
        await client.answer()


@pytest.mark.parametrize("ends", [False, True])
def test_a_client_that_takes_nothing_of_its_answer_is_sent_away(ends: bool) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        client = await server.connect()
        client.writer.write(post("/big"))
        while not server.state.total_requests:
            await asyncio.sleep(0.005)
        (connection,) = server.state.connections
        now = monotonic()
        if ends:
            connection.shutdown()
        limit_s = 20 if ends else 75
        connection.check_time(now)
        connection.check_time(now + limit_s - 1)
        left = connection.transport.get_write_buffer_size()
        while connection.transport.get_write_buffer_size() == left:
            await client.reader.read(1 << 20)
        await asyncio.sleep(0.05)  # the reader's own buffer is soon full
        connection.check_time(now + limit_s + 1)
        connection.check_time(now + 2 * limit_s)
        await asyncio.sleep(0)
        assert server.state.connections
        connection.check_time(now + 2 * limit_s + 2)
        async with asyncio.timeout(WAIT_S):
            while server.state.connections:
                await asyncio.sleep(0.005)

    run()


@over_sockets
async def test_idle_connections_are_closed_in_the_end(server: Server) -> None:
    server.config.timeout_keep_alive = 0.05
    client = await server.connect()
    client.writer.write(post("/"))
    await client.answer()
    before, http_protocol.SWEEP_S = http_protocol.SWEEP_S, 0.02
    sweeping = asyncio.create_task(sweep(server.state.connections))
    try:
        assert await client.ended() == b""
    finally:
        http_protocol.SWEEP_S = before
        sweeping.cancel()
