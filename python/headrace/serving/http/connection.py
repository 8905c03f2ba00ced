"""One connection: whose turn it is, whether it is read from, and what becomes of it after an answer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import Any

import msgspec

from headrace.serving import eager
from headrace.serving.http import limits
from headrace.serving.http.exchange import Headers, HttpExchange
from headrace.serving.http.limits import Arrival, Taking
from headrace.serving.http.parser import Refusal, RequestParser

log = logging.getLogger("headrace.serving")

# More of a body is not read before the application has asked for what is there.
UNREAD_BYTES_MAX = 64 * 1024
# A longer answer is not copied behind its head.
JOINED_BYTES_MAX = 64 * 1024

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class HttpProtocol(asyncio.Protocol):
    """One connection. Made by uvicorn's server, whose `shutdown` it answers to.

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
        # Done once the client reads on; None where it does.
        self.unwritable: asyncio.Future[None] | None = None
        self.reading = True
        self._app = config.loaded_app
        self._idle_s_max: float = config.timeout_keep_alive
        self._state = server_state
        self._arrival = Arrival(limits.clock())
        self._taking: Taking
        # The requests without an answer, and whether the application is at the first of them.
        self._open: deque[HttpExchange] = deque()
        self._begun = False
        self._parser = RequestParser(self, self._arrival, self._open)
        # What ends the connection once the requests that came whole before it are answered.
        self._refusal: Refusal | None = None
        self._ends = False
        # When the last answer was given; None before the first.
        self._idle_since: float | None = None
        # Since when nothing is left to be said, and what the client still sends is not looked at.
        self._lingers_since: float | None = None

    # What comes.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected, and is expected to send a request."""
        self.transport = transport  # type: ignore[assignment]
        self._taking = Taking(self.transport)
        self._state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._state.connections.discard(self)
        self._ends = True
        self._give_up()
        self.resume_writing()
        self._parser.close()

    def data_received(self, data: bytes) -> None:
        """More of a request's head or body came, or several requests at once."""
        if self._lingers_since is not None:
            return
        if (refusal := self._parser.feed(data)) is not None:
            self.refuse(refusal)
            return
        self._begin()
        self.update_reading()

    def eof_received(self) -> None:
        """The client sends no more. The connection is closed, and what is not answered yet is given up.

        It might still read, but nearly always it is gone, and its request is not worth a place in the queue.
        """
        if not self._arrival.in_head:
            received = self._arrival.received
            self.refuse(Refusal(400, f"body: got its end after {received} bytes, expected all of it"))

    def update_reading(self) -> None:
        """Reads on where at most one request is to be answered and the application has read what came of it."""
        few = not self._open or (len(self._open) == 1 and self._open[0].unread <= UNREAD_BYTES_MAX)
        want = (few and self._refusal is None) or self._lingers_since is not None
        if want != self.reading and not self.transport.is_closing():
            self.reading = want
            if want:
                self._arrival.go_on()
                self.transport.resume_reading()
            else:
                self._arrival.stop()
                self.transport.pause_reading()

    # What answers it.

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
        # Who was not told to send its body may or may not do so: where the next request begins is anybody's guess.
        unclear = exchange.expects_continue and not exchange.whole
        ends = not exchange.keep_alive or unclear or (self._ends and len(self._open) == 1)
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
            body = b""
        if len(body) <= JOINED_BYTES_MAX:
            lines.append(body)
            self._write(b"".join(lines))
        else:
            self._write(b"".join(lines))
            self._write(body)
        self._go_on(ends or said, exchange.whole)

    def _go_on(self, ends: bool, whole: bool) -> None:
        """What becomes of the connection after an answer, to a request whose body has or has not come whole."""
        if ends:
            self._end(whole)
        elif self._refusal is not None and not (self._open and self._open[0].whole):
            self.refuse(self._refusal)
        elif self._open:
            self.loop.call_soon(self._begin)  # in another turn of the loop, so that other connections have theirs
        else:
            self._idle_since = limits.clock()
            if self._arrival.in_head and self._arrival.since is not None:
                self._arrival.since = self._idle_since  # it had to wait for this answer
        if not self.reading:
            self.update_reading()

    def refuse(self, refusal: Refusal) -> None:
        """Answers with an error, in the form of the protocol's, and closes the connection.

        Requests that came whole before it are answered first.
        """
        if self.transport.is_closing() or self._lingers_since is not None:
            return
        self._arrival.since = None
        if self._open and self._open[0].whole:
            self._refusal = refusal
            self.update_reading()
            self._begin()
            return
        # A request that was answered before its end gets no second answer.
        if (self._open[0] if self._open else None) is (None if self._arrival.in_head else self._parser.arriving):
            body = msgspec.json.encode({"error": refusal.message})
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self._write(STATUS_LINES[refusal.status] + head + body)
        self._end(whole=False)

    def say_continue(self) -> None:
        """Tells the client to send its body."""
        if not self.transport.is_closing():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _write(self, data: bytes) -> None:
        self._taking.written += len(data)
        self.transport.write(data)

    def pause_writing(self) -> None:
        """The client does not read what it asked for."""
        self.unwritable = self.loop.create_future()

    def resume_writing(self) -> None:
        """It does again, or is gone."""
        if self.unwritable is not None and not self.unwritable.done():
            self.unwritable.set_result(None)
        self.unwritable = None

    # How it ends.

    def _end(self, whole: bool) -> None:
        """Closes the connection, at once only where the client has nothing more to send."""
        self._give_up()
        if whole and self.reading:
            self.transport.close()
        elif not self.transport.is_closing():
            self._lingers_since = limits.clock()
            try:
                self.transport.write_eof()
            except OSError:  # asyncio's own loop says so at once where the client has reset the connection
                self.transport.abort()
                return
            self.update_reading()

    def _give_up(self) -> None:
        """Nothing that is still open will be answered."""
        for exchange in self._open:
            exchange.end()
        self._open.clear()

    def shutdown(self) -> None:
        """The server ends: what was asked is answered, and nothing more."""
        self._ends = True
        if not self._open and self._lingers_since is None:
            self.transport.close()

    def check_time(self, now: float) -> None:
        """Cuts off a request that takes too long to arrive, a connection without any, and a client that reads none."""
        if self._taking.too_slow(now, min(limits.ENDING_S_MAX, self._idle_s_max) if self._ends else self._idle_s_max):
            self.transport.abort()  # to close it would wait for the client
            return
        if self._taking.waits():
            self._idle_since = None if self._idle_since is None else now
            self._lingers_since = None if self._lingers_since is None else now
        arriving = self._parser.arriving
        if self._lingers_since is not None:
            if now - self._lingers_since > limits.LINGER_S_MAX:
                self.transport.close()
        elif self._arrival.since is None:
            if not self._open and self._idle_since is not None and now - self._idle_since > self._idle_s_max:
                self.transport.close()
        else:
            self._idle_since = None if self._idle_since is None else now
            # Of pipelined requests the first is still to be answered.
            if not (self._arrival.in_head and self._open) and (
                late := self._arrival.overdue(now, answered=arriving is None or arriving.over)
            ):
                self.refuse(Refusal(408, late))
