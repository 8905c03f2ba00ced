"""Reads a request's body, never more of it than the server accepts."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import Cancelled, MalformedRequest, Overloaded, RequestTooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_BYTES_MAX = 64 * 1024 * 1024
# Of all requests being received or answered: bounds memory where a bound on the number of requests does not.
IN_FLIGHT_BYTES_MAX = 8 * BODY_BYTES_MAX
# Whose value names the caller, unless told otherwise.
CALLER_HEADER = "x-headrace-caller"


class InFlight:
    """Counts the bytes of all bodies that are held in memory, and refuses more than `bytes_max` of them."""

    __slots__ = ("bytes", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max

    def take(self, count: int) -> None:
        """Counts bytes in.

        Raises:
            Overloaded: There is no room for them; nothing was counted.
        """
        if self.bytes + count > self.bytes_max:
            raise Overloaded(
                f"bodies in flight: got {self.bytes + count} bytes, expected at most {self.bytes_max} in all requests"
            )
        self.bytes += count

    def give(self, count: int) -> None:
        """Counts bytes out."""
        self.bytes -= count


@dataclass(slots=True)
class BodyHeaders:
    """What the request's headers say about its body, its deadline and its caller.

    `deadline_ms` comes from ``x-envoy-expected-rq-timeout-ms``, which Envoy (and so Istio and KServe's gateways) sets
    to the time the caller still waits. HTTP itself has no header for it. `caller` is whom the request counts for where
    callers share the Engine; None for those without a name.
    """

    content_length: int | None = None
    json_length: int | None = None
    encoding: bytes = b""
    deadline_ms: float | None = None
    caller: bytes | None = None


def body_headers(headers: Iterable[tuple[bytes, bytes]], caller_header: bytes) -> BodyHeaders:
    """Picks out the headers that matter to an inference request.

    Args:
        headers: ASGI's: names in lower case.
        caller_header: The one that names the caller, in lower case.

    Raises:
        MalformedRequest: One of them is not the number it should be.
    """
    found = BodyHeaders()
    for name, value in headers:
        if name == b"content-length":
            found.content_length = _number(name, value)
        elif name == b"inference-header-content-length":
            found.json_length = _number(name, value)
        elif name == b"content-encoding":
            found.encoding = value.strip().lower()
        elif name == b"x-envoy-expected-rq-timeout-ms":
            # Envoy writes 0 where the route has no timeout.
            found.deadline_ms = float(_number(name, value)) or None
        elif name == caller_header:
            found.caller = value
    return found


async def read_body(receive: Receive, headers: BodyHeaders, bytes_max: int, in_flight: InFlight) -> bytes:
    """Receives and decompresses one body. Its bytes are counted in `in_flight`; the caller counts ``len(body)`` out.

    Args:
        receive: ASGI's receive.
        headers: What `body_headers` found.
        bytes_max: Longest body accepted, before and after decompression.
        in_flight: The bytes of all bodies.

    Raises:
        Overloaded: There is no room for the body now.
        RequestTooLarge: As soon as it is known, before the rest has been received.
        Cancelled: The client went away.
        MalformedRequest: The content encoding is unknown or the compressed data is broken.
    """
    if headers.content_length is not None and headers.content_length > bytes_max:
        raise _too_large(f"{headers.content_length} bytes", bytes_max)
    message = await receive()
    chunk: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False):
        body = chunk
        if len(body) > bytes_max:
            raise _too_large(f"{len(body)} bytes", bytes_max)
        in_flight.take(len(body))
    else:
        body = await _read_rest(receive, message, bytes_max, in_flight)
    if headers.encoding in (b"", b"identity"):
        return body
    in_flight.give(len(body))
    body = _decompress(body, headers.encoding, bytes_max)
    in_flight.take(len(body))
    return body


async def _read_rest(receive: Receive, message: Message, bytes_max: int, in_flight: InFlight) -> bytes:
    buffer = bytearray()
    counted = 0
    try:
        while True:
            if message["type"] == "http.disconnect":
                raise Cancelled("body: got a closed connection, expected the rest of the body")
            chunk: bytes = message.get("body", b"")
            if counted + len(chunk) > bytes_max:
                raise _too_large("more", bytes_max)
            in_flight.take(len(chunk))
            counted += len(chunk)
            buffer += chunk
            if not message.get("more_body", False):
                return bytes(buffer)
            message = await receive()
    except BaseException:
        in_flight.give(counted)
        raise


def _decompress(body: bytes, encoding: bytes, bytes_max: int) -> bytes:
    """Decompresses gzip or deflate, stopping at `bytes_max`: a few kB can stand for gigabytes."""
    if encoding not in (b"gzip", b"deflate"):
        raise MalformedRequest(
            f"header Content-Encoding: got {encoding[:32].decode('latin-1')!r}, expected gzip, deflate or identity"
        )
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16 if encoding == b"gzip" else zlib.MAX_WBITS)
    try:
        plain = stream.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise MalformedRequest(f"body: got broken {encoding.decode()} data ({error})") from error
    if len(plain) > bytes_max:
        raise _too_large("more after decompression", bytes_max)
    if not stream.eof:
        raise MalformedRequest(f"body: got {encoding.decode()} data cut short, expected all of it")
    return plain


def _too_large(got: str, bytes_max: int) -> RequestTooLarge:
    return RequestTooLarge(f"body: got {got}, expected at most {bytes_max} bytes")


def _number(name: bytes, value: bytes) -> int:
    if not (value.isdigit() and len(value) <= 18):
        raise MalformedRequest(
            f"header {name.decode('latin-1')}: got {value[:32].decode('latin-1')!r}, expected a whole number"
        )
    return int(value)
