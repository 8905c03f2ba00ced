"""What goes over a link between the ingress and a replica: many requests at a time over one connection, in frames.

A frame is a prefix (bytes of the message, bytes of the body; two little-endian uint32), the message in MessagePack, and
the body as it is. Frames that become ready in one turn of the event loop leave in one write and mostly arrive in one
read, so the more requests are under way, the less each one costs. Nothing in a frame is ever unpickled.

A link begins with a `Challenge`, a `Hello` and a `Welcome`. In these either end proves that it knows the door's key,
which is not in them; whoever does not know it is cut off. What follows is neither signed nor encrypted.
"""

from __future__ import annotations

import asyncio
import hmac
import struct
from typing import TypeAlias, cast

import msgspec

from headrace.serving.body import BODY_BYTES_MAX

# Of all that goes between a front and its replicas, the reports included. A front takes no deployment of another number
# beside it, so count it up with every change of what is said or of what it means.
WIRE = 2

PREFIX = struct.Struct("<II")
# The ingress has bounded heads and bodies already; this only keeps a broken peer from being believed.
MESSAGE_BYTES_MAX = 1 << 20
# Results may be larger than requests.
BODY_BYTES_LIMIT = 16 * BODY_BYTES_MAX
# What an unknown peer may send: its part of the introduction.
HELLO_BYTES_MAX = 128
NONCE_BYTES = 32

Headers: TypeAlias = list[tuple[bytes, bytes]]


class Challenge(msgspec.Struct, tag="challenge", array_like=True, frozen=True):
    """The first message of a link, from the replica: the ingress's proof is to be made with this."""

    nonce: bytes


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """The ingress's answer to it, and what the replica's proof is to be made with."""

    nonce: bytes
    proof: bytes


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    """The replica's answer to that: requests may come."""

    proof: bytes


def proof(key: bytes, who: type[Hello] | type[Welcome], challenge: bytes, answer: bytes) -> bytes:
    """What only who knows the key can say: of one end, and of one link, since either end's nonce is in it."""
    return hmac.digest(key, b"%s %s %s" % (who.__name__.encode(), challenge, answer), "sha256")


class Ask(msgspec.Struct, tag="ask", array_like=True):
    """A REST request; its body follows. It waited for a replica for `waited_s`."""

    id: int
    method: str
    path: str
    headers: Headers
    waited_s: float = 0.0


class Answer(msgspec.Struct, tag="answer", array_like=True):
    """The answer to an `Ask`; its body follows."""

    id: int
    status: int
    headers: Headers


class Call(msgspec.Struct, tag="call", array_like=True):
    """A gRPC call; its message follows. The fields are `CallInfo`'s."""

    id: int
    rpc: str
    remaining_s: float | None
    caller: bytes | None
    authorization: str | None
    waited_s: float = 0.0


class Return(msgspec.Struct, tag="return", array_like=True):
    """The answer to a `Call`: its message follows where `status` is empty, else the rest is a `Refusal`'s."""

    id: int
    status: str = ""
    details: str = ""
    trailing: list[tuple[str, str]] = []


class Cancel(msgspec.Struct, tag="cancel", array_like=True):
    """Nobody waits for the answer any more."""

    id: int


class Goodbye(msgspec.Struct, tag="goodbye", array_like=True, frozen=True):
    """From a replica: send no more requests. From the ingress: none will come after this."""


Message: TypeAlias = Challenge | Hello | Welcome | Ask | Answer | Call | Return | Cancel | Goodbye
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


class Frames(asyncio.Protocol):
    """One end of a link."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._outgoing: list[bytes] = []
        # The beginning of a frame whose rest has not come, and the bytes it will have.
        self._partial = bytearray()
        self._expected = 0
        self.message_bytes_max = MESSAGE_BYTES_MAX
        self.body_bytes_max = BODY_BYTES_LIMIT

    def received(self, message: Message, body: bytes) -> None:
        """Called for each frame."""
        raise NotImplementedError

    def lost(self) -> None:
        """Called once, when the connection has ended."""

    @property
    def is_open(self) -> bool:
        """Whether anything can be sent."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def unsent(self) -> bool:
        """Whether something was sent that has not left this process."""
        if not self.is_open:
            return False
        assert self.transport is not None
        return bool(self._outgoing) or self.transport.get_write_buffer_size() > 0

    def send(self, message: Message, body: bytes = b"") -> None:
        """Sends one frame, together with all others of this turn of the event loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        head = _ENCODER.encode(message)
        self._outgoing.append(PREFIX.pack(len(head), len(body)) + head)
        if body:
            self._outgoing.append(body)

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self.is_open:
            assert self.transport is not None
            self.transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    def close(self) -> None:
        """Ends the connection once everything sent has left."""
        if self._outgoing:
            self._flush()
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.lost()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: some bytes came, of part of a frame or of many."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._expected:
                return
            data = bytes(self._partial)
            self._partial.clear()
        start, end = 0, len(data)
        self._expected = PREFIX.size
        while end - start >= PREFIX.size:
            message_bytes, body_bytes = PREFIX.unpack_from(data, start)
            if message_bytes > self.message_bytes_max or body_bytes > self.body_bytes_max:
                self._abort()
                return
            head = start + PREFIX.size
            tail = head + message_bytes
            self._expected = tail + body_bytes - start
            if start + self._expected > end:
                break
            start += self._expected
            self._expected = PREFIX.size
            try:
                message = _DECODER.decode(data[head:tail])
            except msgspec.MsgspecError:
                self._abort()
                return
            self.received(message, data[tail:start])
        if start < end:
            self._partial += memoryview(data)[start:]

    def _abort(self) -> None:
        """What comes is no link of ours: nothing in it can be believed."""
        if self.transport is not None:
            self.transport.abort()
