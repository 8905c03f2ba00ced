"""HTTP/1.1 for one ASGI application, on llhttp's parser, under uvicorn's server.

uvicorn's own protocol costs a small request more than its inference does: a task, an event, a timer, two messages with
checked headers. And it bounds neither what a client may send as a head nor how long it may take. Here a request whose
answer waits for nothing is answered before `data_received` returns, an answer goes out whole in one write, and time is
checked by one sweep over all connections (`sweep`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from time import monotonic
from typing import Any
from urllib.parse import unquote

import httptools
import msgspec

from headrace.serving import eager
from headrace.serving.body import Message

log = logging.getLogger("headrace.serving")

# Request line and headers; what nginx allows by default is 32 KiB.
HEAD_BYTES_MAX = 64 * 1024
# From the connection, or the first byte on a kept one, to the end of the headers.
HEAD_S_MAX = 20.0
# A body may take this long, and longer in proportion to what has come: nobody with a network is that slow.
BODY_S_MAX = 30.0
BODY_BYTES_PER_S_MIN = 32 * 1024
# More of a body is not read before the application has asked for what is there.
UNREAD_BYTES_MAX = 64 * 1024
# Who takes nothing of an answer is sent away after the time that an idle connection may last, or this one once the
# server ends. Slow clients take something all the time, but the kernel, which buffers some MB, tells of it seldom.
UNTAKEN_S_MAX = 20.0
# A longer answer is not copied behind its head.
JOINED_BYTES_MAX = 64 * 1024
# Nobody is cut off earlier than allowed, and at most this much later.
SWEEP_S = 1.0

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
Headers = list[tuple[bytes, bytes]]


class HttpExchange:
    """One request and its answer, as the application sees them.

    Attributes:
        scope: ASGI's.
        keep_alive: Whether the connection outlives the answer.
        whole: Whether all of the body has come.
        over: Whether it was answered, or there is nobody left to answer.
    """

    __slots__ = ("_connection", "_expects_continue", "_start", "_told", "_waiter", "keep_alive", "over", "parts",
                 "scope", "unread", "whole")  # fmt: skip

    def __init__(
        self, connection: HttpProtocol, scope: dict[str, Any], keep_alive: bool, expects_continue: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.parts: list[bytes] = []
        self.unread = 0
        self.whole = False
        self.over = False
        self._connection = connection
        self._expects_continue = expects_continue
        self._told = False
        self._start: Message = {}
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self) -> Message:
        """ASGI's receive: what has come of the body, and after its end nothing until the client has gone."""
        if self._expects_continue:
            self._expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.over or self.parts or (self.whole and not self._told)):
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.over:
            return {"type": "http.disconnect"}
        body = b"".join(self.parts)
        self.parts.clear()
        self.unread = 0
        self._told = self.whole
        self._connection.update_reading()
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    async def send(self, message: Message) -> None:
        """ASGI's send, of an answer that says its length and whose body is one message."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message.get("more_body"):
            raise RuntimeError("this is a bug: got a part of an answer, expected answers whole")
        if (unwritable := self._connection.unwritable) is not None:
            await unwritable
        if not self.over:
            self._connection.answer(self, self._start["status"], self._start["headers"], message["body"])

    def came(self, body: bytes) -> None:
        """More of the body came."""
        self.parts.append(body)
        self.unread += len(body)
        self.wake()

    def end(self) -> None:
        """There is nothing to be said any more."""
        self.over = True
        self.wake()

    def wake(self) -> None:
        """Lets `receive` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class HttpProtocol(asyncio.Protocol):
    """One connection; see the module. Made by uvicorn's server, whose `shutdown` it answers to.

    Args:
        config: The server's configuration, loaded.
        server_state: Its connections and tasks.
        app_state: Not used: our applications have no lifespan.
        _loop: The running event loop.
    """

    def __init__(
        self, config: Any, server_state: Any, app_state: Any, _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport
        # Of the request being received: when it began, or None between requests, and the bytes of its head or body.
        self.since: float | None = None
        self.in_head = True
        self.received = 0
        # Done once the client reads on; None where it does.
        self.unwritable: asyncio.Future[None] | None = None
        self._app = config.loaded_app
        self._idle_s_max: float = config.timeout_keep_alive
        self._state = server_state
        self._parser: Any = httptools.HttpRequestParser(self)
        # Or else a client that announces the end of the connection and sends more would be told that this is no HTTP.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._url = b""
        self._headers: Headers = []
        self._expects_continue = False
        # The request whose body comes, those without an answer, and whether the application is at the first of them.
        self._arriving: HttpExchange | None = None
        self._open: deque[HttpExchange] = deque()
        self._begun = False
        # What ends the connection once the requests that came whole before it are answered.
        self._refusal: tuple[int, str] | None = None
        self._ends = False
        self._idle_since: float | None = None
        # What the client has yet to take of the answers, in bytes, and since when it has taken nothing of it.
        self._untaken = 0
        self._untaken_since = 0.0
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected, and is expected to send a request."""
        self.transport = transport  # type: ignore[assignment]
        self._state.connections.add(self)
        self.since = monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._state.connections.discard(self)
        self._ends = True
        for exchange in self._open:
            exchange.end()
        self.resume_writing()
        self._parser = None  # it refers to us

    def data_received(self, data: bytes) -> None:
        """More of a request's head or body came, or several requests at once."""
        if self.since is None:
            self.since = monotonic()
            self._idle_since = None
        if self.in_head:
            self.received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to a protocol that is not spoken here: the request is one like any other
        except httptools.HttpParserError:
            self.refuse(400, "connection: got bytes that are not an HTTP/1.1 request, expected one")
            return
        if self.in_head and self.received > HEAD_BYTES_MAX:
            self.refuse(431, f"head: got {self.received} bytes without its end, expected at most {HEAD_BYTES_MAX}")
            return
        self._begin()
        self.update_reading()

    def on_url(self, url: bytes) -> None:
        """A part of the request line's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, of which there may be any number and which nobody here reads."""
        if self.in_head:
            name = name.lower()
            self._headers.append((name, value))
            if name == b"expect":
                self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """The head is whole; a body may follow."""
        self.in_head = False
        self.received = 0
        parser = self._parser
        version = parser.get_http_version()
        raw_path, query = self._url, b""
        if not raw_path.startswith(b"/") or b"?" in raw_path or b"#" in raw_path:
            url = httptools.parse_url(raw_path)
            raw_path, query = url.path, url.query or b""
        path = raw_path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
        }
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self._arriving = HttpExchange(self, scope, keep_alive, self._expects_continue)
        self._open.append(self._arriving)
        self._url = b""
        self._headers = []
        self._expects_continue = False

    def on_body(self, body: bytes) -> None:
        """A part of the body, without what frames it."""
        self.received += len(body)
        exchange = self._arriving
        if exchange is not None and not exchange.over:
            exchange.came(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange = self._arriving
        if exchange is not None:
            exchange.whole = True
            exchange.wake()
        self._arriving = None
        self.in_head = True
        self.received = 0
        self.since = None

    def eof_received(self) -> None:
        """The client sends no more, but may still read."""
        if not self.in_head:
            self.refuse(400, f"body: got its end after {self.received} bytes, expected all of it")

    def _begin(self) -> None:
        """Has the application answer the first request, if there is one and nobody is at it."""
        if self._begun or not self._open or self.transport.is_closing():
            return
        self._begun = True
        task = eager.begin(self.loop, self._run(self._open[0]))
        if task is not None:
            self._state.tasks.add(task)
            task.add_done_callback(self._state.tasks.discard)

    async def _run(self, exchange: HttpExchange) -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("this is a bug: the application raised")
        except BaseException:  # the server ends, and has no time left
            self.transport.close()
            raise
        if not exchange.over:
            exchange.keep_alive = False
            body = b'{"error":"this is a bug: the request got no answer"}'
            length = (b"content-length", str(len(body)).encode())
            self.answer(exchange, 500, [(b"content-type", b"application/json"), length], body)

    def answer(self, exchange: HttpExchange, status: int, headers: Headers, body: bytes) -> None:
        """Writes the answer to the first request that has none, and turns to the next where one has come already."""
        lines = [STATUS_LINES[status]]
        ends = not exchange.keep_alive or (self._ends and len(self._open) == 1)
        said = False
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
            said = said or name == b"connection"  # of which none but "close" is ever sent
        if ends and not said:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        exchange.end()
        self._open.popleft()
        self._begun = False
        self._state.total_requests += 1
        if exchange.scope["method"] == "HEAD":
            self.transport.write(b"".join(lines))
        elif len(body) <= JOINED_BYTES_MAX:
            lines.append(body)
            self.transport.write(b"".join(lines))
        else:
            self.transport.write(b"".join(lines))
            self.transport.write(body)
        if ends or said:
            self.transport.close()
        elif self._refusal is not None and not (self._open and self._open[0].whole):
            self.refuse(*self._refusal)
        elif self._open:
            self.loop.call_soon(self._begin)  # in another turn of the loop, so that other connections have theirs
        else:
            self._idle_since = monotonic()
        self.update_reading()

    def write(self, data: bytes) -> None:
        """Writes what is no answer."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def update_reading(self) -> None:
        """Reads on where at most one request is to be answered and the application has read what came of it."""
        few = not self._open or (len(self._open) == 1 and self._open[0].unread <= UNREAD_BYTES_MAX)
        want = few and self._refusal is None
        if want != self._reading and not self.transport.is_closing():
            self._reading = want
            if want:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def pause_writing(self) -> None:
        """The client does not read what it asked for."""
        self.unwritable = self.loop.create_future()

    def resume_writing(self) -> None:
        """It does again, or is gone."""
        if self.unwritable is not None and not self.unwritable.done():
            self.unwritable.set_result(None)
        self.unwritable = None

    def shutdown(self) -> None:
        """The server ends: what was asked is answered, and nothing more."""
        self._ends = True
        if not self._open:
            self.transport.close()

    def check_time(self, now: float) -> None:
        """Cuts off a request that takes too long to arrive, a connection without any, and a client that reads none."""
        if self._takes_nothing(now):
            self.transport.abort()  # to close it would wait for the client
            return
        if self.since is None:
            if self._idle_since is not None and now - self._idle_since > self._idle_s_max:
                self.transport.close()
            return
        took = now - self.since
        if self.in_head:
            # Of pipelined requests the first is still to be answered.
            if took > HEAD_S_MAX and not self._open:
                self.refuse(408, f"head: got no end of it in {took:.0f} s, expected it within {HEAD_S_MAX:g} s")
            return
        # Where the answer came first, what is left of the body is worth no more than the least time.
        answered = self._arriving is None or self._arriving.over
        more = 0.0 if answered else self.received / BODY_BYTES_PER_S_MIN
        if took > BODY_S_MAX + more:
            self.refuse(
                408,
                f"body: got {self.received} bytes in {took:.0f} s, expected all of it within {BODY_S_MAX:g} s, "
                f"or {BODY_BYTES_PER_S_MIN} bytes per second",
            )

    def _takes_nothing(self, now: float) -> bool:
        """Whether the client has taken nothing of its answers for too long."""
        untaken = self.transport.get_write_buffer_size()
        if untaken == 0 or untaken < self._untaken or self._untaken == 0:
            self._untaken_since = now
        self._untaken = untaken
        return now - self._untaken_since > (min(UNTAKEN_S_MAX, self._idle_s_max) if self._ends else self._idle_s_max)

    def refuse(self, status: int, message: str) -> None:
        """Answers with an error, in the form of the protocol's, and closes the connection.

        Requests that came whole before it are answered first.
        """
        if self.transport.is_closing():
            return
        self.since = None
        if self._open and self._open[0].whole:
            self._refusal = status, message
            self.update_reading()
            self._begin()
            return
        # A request that was answered before its end gets no second answer.
        if (self._open[0] if self._open else None) is (None if self.in_head else self._arriving):
            body = msgspec.json.encode({"error": message})
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINES[status] + head + body)
        for exchange in self._open:
            exchange.end()
        self.transport.close()


async def sweep(connections: set[Any]) -> None:
    """Checks the time of all of a uvicorn server's connections, for ever."""
    while True:
        await asyncio.sleep(SWEEP_S)
        now = monotonic()
        for connection in list(connections):
            connection.check_time(now)
