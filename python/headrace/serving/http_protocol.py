"""uvicorn's HTTP/1.1 protocol with bounds on what a client may send and how long it may take.

uvicorn itself bounds neither: a connection that never ends its head is held for ever, and a head without end is
collected without end. Well-behaved requests pay a few attribute assignments for it; time is checked by one sweep over
all connections (`sweep`), not by a timer for each.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from time import monotonic
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Request line and headers; what nginx allows by default is 32 KiB.
HEAD_BYTES_MAX = 64 * 1024
# From the connection, or the first byte on a kept one, to the end of the headers.
HEAD_S_MAX = 20.0
# A body may take this long, and longer in proportion to what has come: nobody with a network is that slow.
BODY_S_MAX = 30.0
BODY_BYTES_PER_S_MIN = 32 * 1024
# Nobody is cut off earlier than allowed, and at most this much later.
SWEEP_S = 1.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection; see the module."""

    # Of the request being received: when it began, or None between requests, and the bytes of its head or body so far.
    since: float | None = None
    in_head = True
    received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected, and is expected to send a request."""
        super().connection_made(transport)
        self.since = monotonic()

    def data_received(self, data: bytes) -> None:
        """More of a request's head or body came, or several requests at once."""
        if self.since is None:
            self.since = monotonic()
        if self.in_head:
            self.received += len(data)
        super().data_received(data)
        if self.in_head and self.received > HEAD_BYTES_MAX:
            self.refuse(431, f"head: got {self.received} bytes without its end, expected at most {HEAD_BYTES_MAX}")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, of which there may be any number and which nobody here reads."""
        if self.in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole; a body may follow."""
        self.in_head = False
        self.received = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body, without what frames it."""
        self.received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self.in_head = True
        self.received = 0
        self.since = None
        super().on_message_complete()

    def eof_received(self) -> None:
        """The client sends no more, but may still read."""
        if not self.in_head:
            self.refuse(400, f"body: got its end after {self.received} bytes, expected all of it")

    def check_time(self, now: float) -> None:
        """Cuts off a request that takes too long to arrive."""
        if self.since is None:
            return
        took = now - self.since
        if self.in_head:
            # Between requests it is uvicorn that counts, and of pipelined ones the first is still to be answered.
            if took > HEAD_S_MAX and not self._answering():
                self.refuse(408, f"head: got no end of it in {took:.0f} s, expected it within {HEAD_S_MAX:g} s")
            return
        # Where the answer came first, what is left of the body is worth no more than the least time.
        more = 0.0 if self.cycle.response_started else self.received / BODY_BYTES_PER_S_MIN
        if took > BODY_S_MAX + more:
            self.refuse(
                408,
                f"body: got {self.received} bytes in {took:.0f} s, expected all of it within {BODY_S_MAX:g} s, "
                f"or {BODY_BYTES_PER_S_MIN} bytes per second",
            )

    def refuse(self, status: int, message: str) -> None:
        """Answers with an error, in the form of the protocol's, and closes the connection."""
        if self.transport.is_closing():
            return
        self.since = None
        # An answer under way, or one to the request whose body this is, cannot be followed by another.
        if not (self._answering() if self.in_head else self.cycle.response_started):
            body = msgspec.json.encode({"error": message})
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP; uvicorn's own answer is plain text."""
        self.refuse(400, "connection: got bytes that are not an HTTP/1.1 request, expected one")

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


async def sweep(connections: set[Any]) -> None:
    """Checks the time of all of a uvicorn server's connections, for ever."""
    while True:
        await asyncio.sleep(SWEEP_S)
        now = monotonic()
        for connection in list(connections):
            connection.check_time(now)
