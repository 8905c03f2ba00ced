"""The ingress's end of the links to one replica: what was asked of it, and what it answered."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable

from headrace.errors import BackendUnavailable
from headrace.serving.ingress.wire import (
    BODY_BYTES_LIMIT,
    HELLO_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    NONCE_BYTES,
    Answer,
    Ask,
    Call,
    Cancel,
    Challenge,
    Frames,
    Goodbye,
    Hello,
    Message,
    Return,
    Welcome,
    proof,
)
from headrace.serving.load import UNBOUNDED, Room

# Larger bodies go over a connection of their own, so that no small request waits behind one.
SMALL_BYTES_MAX = 64 * 1024


class Link(Frames):
    """The ingress's end of one link.

    Args:
        key: The door's.

    Attributes:
        welcomed: Done when either end has proven to the other that it knows the key; an `OSError` where one did not.
    """

    def __init__(self, key: bytes = b"") -> None:
        super().__init__()
        self._key = key
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._challenge: bytes | None = None
        self.welcomed: asyncio.Future[None] = self._loop.create_future()
        self.message_bytes_max, self.body_bytes_max = HELLO_BYTES_MAX, 0
        self._waiting: dict[int, asyncio.Future[tuple[Message, bytes]]] = {}
        self._last = 0
        self.leaving = False
        self.on_lost: Callable[[], None] | None = None

    async def exchange(self, message: Ask | Call, body: bytes) -> tuple[Message, bytes]:
        """Sends a request and waits for its answer; cancelling it cancels it in the replica.

        Raises:
            BackendUnavailable: The replica died. Whether it had computed the answer is not known, so it is not asked
                of another one here; the caller may try again.
        """
        self._last += 1
        number = message.id = self._last
        future: asyncio.Future[tuple[Message, bytes]] = self._loop.create_future()
        self._waiting[number] = future
        self.send(message, body)
        try:
            return await future
        except asyncio.CancelledError:
            self.send(Cancel(number))
            raise
        finally:
            self._waiting.pop(number, None)

    def received(self, message: Message, body: bytes) -> None:
        """Gives an answer to whoever waits for it."""
        if not self.welcomed.done():
            self._introduce(message)
        elif isinstance(message, Answer | Return):
            future = self._waiting.get(message.id)
            if future is not None and not future.done():
                future.set_result((message, body))
        elif isinstance(message, Goodbye):
            self.leaving = True
            self.send(Goodbye())
        else:
            self._abort()

    def _introduce(self, message: Message) -> None:
        if isinstance(message, Challenge) and self._challenge is None:
            self._challenge = message.nonce
            self.send(Hello(self._nonce, proof(self._key, Hello, message.nonce, self._nonce)))
        elif isinstance(message, Welcome) and self._challenge is not None:
            expected = proof(self._key, Welcome, self._nonce, self._challenge)
            if not hmac.compare_digest(message.proof, expected):
                self._abort()
                return
            self.message_bytes_max, self.body_bytes_max = MESSAGE_BYTES_MAX, BODY_BYTES_LIMIT
            self.welcomed.set_result(None)
        else:
            self._abort()

    def lost(self) -> None:
        """Ends what still waits."""
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionAbortedError("got the end of a link that began, expected a welcome"))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    BackendUnavailable(
                        "replica: got the end of its process before its answer, expected an answer: try again",
                        retry_after_s=1.0,
                    )
                )
        if self.on_lost is not None:
            self.on_lost()


class Replica:
    """One replica: a link for small requests, one for large ones, and how many requests it has.

    Attributes:
        group: Its group's name; "" while it is not known, or where there are none.
        room: How many requests it can have in flight.
        in_flight: Requests that it has not answered.
    """

    def __init__(self, name: str, links: tuple[Link, Link], group: str = "", room: Room = UNBOUNDED) -> None:
        self.name = name
        self.links = links
        self.group, self.room = group, room
        self.in_flight = 0

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return all(link.is_open and not link.leaving for link in self.links)

    async def ask(self, message: Ask, body: bytes) -> tuple[Answer, bytes]:
        """Has it answer a REST request."""
        answer, answered = await self._exchange(message, body)
        assert isinstance(answer, Answer), "this is a bug: a REST request got another kind of answer"
        return answer, answered

    async def call(self, message: Call, payload: bytes) -> tuple[Return, bytes]:
        """Has it answer a gRPC call."""
        answer, answered = await self._exchange(message, payload)
        assert isinstance(answer, Return), "this is a bug: a gRPC call got another kind of answer"
        return answer, answered

    async def _exchange(self, message: Ask | Call, body: bytes) -> tuple[Message, bytes]:
        self.in_flight += 1
        try:
            return await self.links[len(body) > SMALL_BYTES_MAX].exchange(message, body)
        finally:
            self.in_flight -= 1
