"""What a connection makes of requests, over real sockets on one event loop."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from time import monotonic, sleep
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from http_fakes import BIG, WAIT_S, Server, over_sockets, post

from headrace.serving.http import limits
from headrace.serving.http.connection import UNREAD_BYTES_MAX
from headrace.serving.http.limits import HEAD_BYTES_MAX, sweep


@over_sockets
async def test_what_waits_for_nothing_is_answered_without_a_task(server: Server) -> None:
    client = await server.connect()
    for number in range(3):
        client.writer.write(post(f"/a%3A{number}?q=1", b"x"))
        head, body = await client.answer()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection" not in head
        assert body == f"POST /a:{number} q=1 x".encode()
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
    client.writer.write(
        b"POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
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
            client.writer.write(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() for path in paths))
            await asyncio.sleep(0.01)
            server.app.may.set()
            for path in paths:
                assert (await client.answer())[1] == f"GET {path}  ".encode()

    run()


@over_sockets
async def test_a_body_that_nobody_reads_leaves_the_next_request_whole(server: Server) -> None:
    server.app.may.clear()
    client = await server.connect()
    client.writer.write(post("/early", bytes(10 * UNREAD_BYTES_MAX)) + post("/next", b"n"))
    await asyncio.sleep(0.02)
    server.app.may.set()
    assert (await client.answer())[1] == b"POST /early  "
    assert (await client.answer())[1] == b"POST /next  n"


REFUSED = {
    "no HTTP": (b"\0garbage\r\n\r\n", b"400"),
    "an endless head": (b"GET / HTTP/1.1\r\nx: ".ljust(HEAD_BYTES_MAX + 1, b"x"), b"431"),
    "a body that is none": (b"POST /bad HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n", b"400"),
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
    client.writer.write(b"HEAD /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await client.ended()
    assert b"content-length: 9\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@over_sockets
async def test_100_continue_is_said_once_to_who_expects_it(server: Server) -> None:
    client = await server.connect()
    client.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
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
@pytest.mark.parametrize(("bytes_per_s", "stays"), [(0, False), (16_000, False), (64_000, True)])
def test_a_client_that_takes_too_little_of_its_answer_is_sent_away(bytes_per_s: int, stays: bool, ends: bool) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, post("/big"))
            while not server.state.total_requests:
                await asyncio.sleep(0.005)
            (connection,) = server.state.connections
            if ends:
                connection.shutdown()
            began, limit_s = monotonic(), 20 if ends else 75
            for second in range(0, 3 * limit_s, 5):
                connection.check_time(began + second)
                await asyncio.sleep(0)
                if connection not in server.state.connections:
                    break
                assert stays or second <= limit_s, "it is still there"
                left = 5 * bytes_per_s
                while left:
                    left -= len(await loop.sock_recv(client, min(left, 10_000)))
            assert stays or second > limit_s, "it was sent away too early"
            assert stays == (connection in server.state.connections)
            assert connection.transport.get_write_buffer_size() > 0 or not stays, "there was nothing to be taken"

    run()


def test_a_client_that_takes_all_it_is_sent_stays_however_much_waits_for_it() -> None:
    class Transport:
        def get_write_buffer_size(self) -> int:
            return 50_000

        def get_extra_info(self, name: str) -> None:
            return None

    taking = limits.Taking(Transport())  # type: ignore[arg-type]
    for second in range(1000):
        taking.written += 50_000
        assert not taking.too_slow(second, 20)
    assert not taking.too_slow(1000, 20)
    assert taking.too_slow(1030, 20)


@over_sockets
async def test_a_head_by_the_byte_is_cut_off(server: Server) -> None:
    client, other = await server.connect(), await server.connect()
    other.writer.write(post("/other"))
    await other.answer()
    (slow,) = [one for one in server.state.connections if one._idle_since is None]
    began = monotonic()
    for second in range(20):
        client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n"[second : second + 1])
        await asyncio.sleep(0.001)
        slow.check_time(began + second)
    slow.check_time(began + 20.1)
    assert (await client.ended()).startswith(b"HTTP/1.1 408 ")


@over_sockets
async def test_time_in_which_nothing_is_read_of_a_request_is_not_its_clients(server: Server) -> None:
    server.app.may.clear()
    client = await server.connect()
    second = post("/second", bytes(1000))
    client.writer.write(post("/first") + second[:-1])
    await asyncio.sleep(0.02)
    (connection,) = server.state.connections
    connection.check_time(limits.clock() + 1000)  # `/first` takes long
    client.writer.write(second[-1:])
    server.app.may.set()
    for path in ("/first", "/second"):
        assert (await client.answer())[1].startswith(f"POST {path}  ".encode())


@over_sockets
async def test_the_time_of_a_head_begins_when_nothing_is_to_be_answered_before_it(server: Server) -> None:
    server.app.may.clear()
    client = await server.connect()
    second = post("/second")
    client.writer.write(post("/first") + second[:9])
    await asyncio.sleep(0.02)
    (connection,) = server.state.connections
    assert connection._arrival.since is not None
    connection._arrival.since -= 1000  # `/first` took long
    connection.check_time(limits.clock())
    server.app.may.set()
    assert (await client.answer())[1] == b"POST /first  "
    connection.check_time(limits.clock() + limits.HEAD_S_MAX - 1)
    client.writer.write(second[9:])
    assert (await client.answer())[1] == b"POST /second  "


@pytest.mark.parametrize("left", [1, 50], ids=["body", "head"])
def test_half_a_request_in_one_piece_with_a_whole_one_is_not_waited_for_longer_than_another(left: int) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        client = await server.connect()
        client.writer.write(post("/first") + post("/second", b"x" * 20)[:-left])
        assert (await client.answer())[1] == b"POST /first  "
        (connection,) = server.state.connections
        connection.check_time(limits.clock() + limits.BODY_S_MAX + 1)
        assert (await client.ended()).startswith(b"HTTP/1.1 408 ")

    run()


@over_sockets
async def test_a_client_that_goes_on_sending_after_its_last_answer_is_left_alone_in_the_end(server: Server) -> None:
    client = await server.connect()
    client.writer.write(post("/early", bytes(1000), "Connection: close")[:-1])
    assert (await client.answer())[1] == b"POST /early  "
    assert await client.ended() == b""
    (connection,) = server.state.connections
    client.writer.write(bytes(1 << 20))
    await client.writer.drain()
    connection.check_time(limits.clock() + limits.LINGER_S_MAX - 1)
    await asyncio.sleep(0.01)
    assert server.state.connections, "an answer may be lost if the connection is closed while its client still sends"
    connection.check_time(limits.clock() + limits.LINGER_S_MAX + 1)
    async with asyncio.timeout(WAIT_S):
        while server.state.connections:
            await asyncio.sleep(0.005)


@over_sockets
async def test_connections_that_ended_leave_nothing_for_the_garbage_collector(server: Server) -> None:
    gc.collect()
    gc.disable()
    try:
        for sent in (
            post("/", b"x", "Connection: close"),
            post("/early", b"x" * 10, "Connection: close")[:-1],
            b"no HTTP\r\n\r\n",
            post("/cut", b"x" * 10)[:-1],
        ):
            client = await server.connect()
            (connection,) = server.state.connections
            gone = weakref.ref(connection)
            client.writer.write(sent)
            await asyncio.sleep(0.01)
            client.writer.close()
            del connection
            async with asyncio.timeout(WAIT_S):
                while gone() is not None:
                    await asyncio.sleep(0.005)
    finally:
        gc.enable()


@over_sockets
async def test_idle_connections_are_closed_in_the_end(server: Server) -> None:
    server.config.timeout_keep_alive = 0.05
    client = await server.connect()
    client.writer.write(post("/"))
    await client.answer()
    before, limits.SWEEP_S = limits.SWEEP_S, 0.02
    sweeping = asyncio.create_task(sweep(server.state.connections))
    try:
        assert await client.ended() == b""
    finally:
        limits.SWEEP_S = before
        sweeping.cancel()


@over_sockets
async def test_time_in_which_the_server_stood_still_is_no_clients(server: Server) -> None:
    client = await server.connect()
    with patch.object(limits, "SWEEP_S", 0.02):
        sweeping = asyncio.create_task(sweep(server.state.connections))
        await asyncio.sleep(0.05)
        (connection,) = server.state.connections
        client.writer.write(post("/", b"body")[:-2])
        while connection._arrival.in_head:
            await asyncio.sleep(0.001)
        before = limits.clock()
        sleep(0.3)  # as a stopped process would
        await asyncio.sleep(0.05)
        assert limits.clock() - before < 0.3
        client.writer.write(b"dy")
        assert (await client.answer())[1] == b"POST /  body"
        sweeping.cancel()


@over_sockets
async def test_one_connection_that_cannot_be_looked_at_keeps_no_other_from_it(server: Server) -> None:
    class Broken:
        transport = SimpleNamespace(abort=lambda: server.state.connections.discard(broken))

        def check_time(self, now: float) -> None:
            raise ValueError("broken")

    broken = Broken()
    server.state.connections.add(broken)
    server.config.timeout_keep_alive = 0.05
    with patch.object(limits, "SWEEP_S", 0.02), patch.object(limits.log, "exception") as told:
        sweeping = asyncio.create_task(sweep(server.state.connections))
        client = await server.connect()
        client.writer.write(post("/"))
        await client.answer()
        assert await client.ended() == b""
        assert broken not in server.state.connections
        told.assert_called_once()
        sweeping.cancel()


@over_sockets
async def test_clients_that_go_during_an_early_answer_are_no_bugs(server: Server) -> None:
    loop = asyncio.get_running_loop()
    with patch.object(limits.log, "exception") as told:
        for _ in range(10):
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", server.port))
                await asyncio.sleep(0.002)
                client.send(post("/early", b"x" * 1000, "Connection: close")[:-500])
            while server.state.connections:
                await asyncio.sleep(0.002)
        assert len(server.app.asked) == 10
        told.assert_not_called()
