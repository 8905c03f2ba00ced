"""Requests from bytes: httptools' parser, and what it leaves to its user."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple
from urllib.parse import unquote

import httptools

from headrace.serving.http.exchange import Answering, Headers, HttpExchange
from headrace.serving.http.limits import HEAD_BYTES_MAX, Arrival, clock


class Refusal(NamedTuple):
    """Why nothing that follows is read: the status and the message that answer it."""

    status: int
    message: str


ASGI = {"version": "3.0", "spec_version": "2.3"}
NO_REQUEST = Refusal(400, "connection: got bytes that are not an HTTP/1.1 request, expected one")


class RequestParser:
    """Makes requests of what one connection brings.

    Args:
        connection: The exchanges'.
        arrival: What is known of the request that is coming; kept here.
        came: Where the exchange of each request is put as soon as its head is whole.

    Attributes:
        arriving: The request whose body comes; None where a head does.
    """

    def __init__(self, connection: Answering, arrival: Arrival, came: deque[HttpExchange]) -> None:
        self.arriving: HttpExchange | None = None
        self._arrival = arrival
        self._came = came
        self._connection = connection
        self._refusal: Refusal | None = None
        # Bytes since the last ones of a body, in a body: what frames chunks, and trailers.
        self._framing = 0
        self._parser: Any
        self._start()

    def _start(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        # Or else a client that announces the end of the connection and sends more would be told that this is no HTTP.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._target = b""
        self._headers: Headers = []
        self._hosts = 0
        self._expects_continue = False
        self._upgrades = False

    def close(self) -> None:
        """Lets go of all that refers to this one or to its user, so that nothing is left for the garbage collector."""
        self.arriving = None
        del self._connection, self._parser

    def feed(self, data: bytes) -> Refusal | None:
        """Takes what came; what is whole of it has begun when this returns, also where it ends with a refusal."""
        arrival = self._arrival
        long_head = arrival.in_head and arrival.received + len(data) > HEAD_BYTES_MAX
        taken = 0 if long_head else self._feed(data)
        if taken < len(data):
            view = memoryview(data)
            while taken < len(data) and self._refusal is None:
                # A head that comes in one piece is bounded as one in many is.
                end = taken + HEAD_BYTES_MAX - arrival.received if arrival.in_head else len(data)
                taken += self._feed(view[taken:end])
        return self._refusal

    def _feed(self, data: bytes | memoryview) -> int:
        """Has httptools' parser take bytes; returns how many it took."""
        arrival = self._arrival
        if arrival.in_head:
            arrival.received += len(data)
        else:
            self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_in_http()
            return int(upgrade.args[0])
        except httptools.HttpParserError:
            self._refusal = self._refusal or NO_REQUEST
        else:
            if arrival.in_head and arrival.received >= HEAD_BYTES_MAX:
                self._refusal = Refusal(
                    431, f"head: got {arrival.received} bytes without its end, expected at most {HEAD_BYTES_MAX}"
                )
            elif self._framing > HEAD_BYTES_MAX:
                self._refusal = Refusal(
                    431, f"body: got {self._framing} bytes of trailers, expected at most {HEAD_BYTES_MAX}"
                )
        return len(data)

    def _go_on_in_http(self) -> None:
        """Reads a request to go on in another protocol as one that asks for no such thing, as RFC 9110, 7.8, allows.

        httptools' parser takes what follows the head for the other protocol's. Some clients (Java's) ask for HTTP/2
        with every first request, and send its body as if they had not.
        """
        version = self._parser.get_http_version().encode()
        lines = [self._parser.get_method(), b" ", self._target, b" HTTP/", version, b"\r\n"]
        for name, value in self._headers:
            if name != b"upgrade":
                lines += (name, b": ", value, b"\r\n")
        self._start()
        self._arrival.received = 0
        self._feed(b"".join((*lines, b"\r\n")))

    # What httptools' parser calls.

    def on_message_begin(self) -> None:
        """The first byte of a request came, perhaps together with the end of the one before it."""
        if self._arrival.since is None:
            self._arrival.since = clock()

    def on_url(self, target: bytes) -> None:
        """A part of the request line's target."""
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, of which nobody here reads any."""
        if self._arrival.in_head:
            name = name.lower()
            self._headers.append((name, value))
            if name == b"host":
                self._hosts += 1
            elif name == b"expect":
                self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """The head is whole; a body may follow."""
        parser = self._parser
        version = parser.get_http_version()
        upgrades = parser.should_upgrade()
        if self._hosts != 1 or version != "1.1" or upgrades:
            self._check(version)
            if upgrades:
                self._upgrades = True
                return
        arrival = self._arrival
        arrival.in_head = False
        arrival.received = 0
        raw_path, query = self._target, b""
        if not raw_path.startswith(b"/") or b"?" in raw_path or b"#" in raw_path:
            raw_path, query = split(raw_path)
        path = raw_path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": _unescaped(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
        }
        # Clients of HTTP/1.0 that would keep it are none the worse for another connection.
        keeps = version != "1.0" and parser.should_keep_alive()
        waits = self._expects_continue and version != "1.0"
        self.arriving = HttpExchange(self._connection, scope, keeps, waits)
        self._came.append(self.arriving)
        self._target = b""
        self._headers = []
        self._expects_continue = False
        self._hosts = 0

    def _check(self, version: str) -> None:
        """Raises where RFC 9112 has a head refused that llhttp has not."""
        if version not in ("1.1", "1.0"):
            self._refusal = Refusal(505, f"version: got HTTP/{version}, expected HTTP/1.1")
        elif self._hosts != 1 and (self._hosts or version == "1.1"):
            self._refusal = Refusal(400, f"head: got {self._hosts} Host headers, expected one")
        elif self._parser.get_method() == b"CONNECT":
            self._refusal = Refusal(501, "method: got CONNECT, expected one of a server that is no proxy")
        if self._refusal is not None:
            raise ValueError(self._refusal.message)

    def on_body(self, body: bytes) -> None:
        """A part of the body, without what frames it."""
        self._arrival.received += len(body)
        self._framing = 0
        if self.arriving is not None:
            self.arriving.came(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._upgrades:
            return
        if self.arriving is not None:
            self.arriving.complete()
            self.arriving = None
        self._framing = 0
        arrival = self._arrival
        arrival.in_head = True
        arrival.received = 0
        arrival.since = None


def split(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request's target in any of its forms (RFC 9112, 3.2)."""
    target, _, query = target.partition(b"#")[0].partition(b"?")
    _, _, rest = target.partition(b"://")
    if target.startswith(b"/") or not rest:
        return target, query
    return b"/" + rest.partition(b"/")[2], query


def _unescaped(path: str) -> str:
    """A path without escapes, but for slashes: one that is escaped separates nothing (RFC 3986, section 2.2)."""
    return unquote(path.replace("%2F", "%252F").replace("%2f", "%252f"))
