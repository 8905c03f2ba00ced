"""One request and its answer."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from headrace.serving.body import Message

Headers = list[tuple[bytes, bytes]]


class Answering(Protocol):
    """What an exchange needs of its connection."""

    loop: asyncio.AbstractEventLoop
    # Done once the client reads on; None where it does.
    unwritable: asyncio.Future[None] | None
    # Whether what the client sends is read.
    reading: bool

    def say_continue(self) -> None:
        """Tells the client to send its body."""

    def answer(self, exchange: HttpExchange, status: int, headers: Headers, body: bytes) -> None:
        """Writes the answer."""

    def update_reading(self) -> None:
        """Reads on, or not, as what is unread or unanswered by now allows."""


class HttpExchange:
    """One request and its answer, as the application sees them.

    Attributes:
        scope: ASGI's.
        keep_alive: Whether the connection may outlive the answer.
        expects_continue: Whether the client holds the body back until it is told to send it.
        unread: Bytes of the body that the application has not asked for.
        whole: Whether all of the body has come.
        over: Whether it was answered, or there is nobody left to answer.
    """

    __slots__ = ("_connection", "_parts", "_start", "_told", "_waiter", "expects_continue", "keep_alive", "over",
                 "scope", "unread", "whole")  # fmt: skip

    def __init__(self, connection: Answering, scope: dict[str, Any], keep_alive: bool, expects_continue: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.unread = 0
        self.whole = False
        self.over = False
        self._connection = connection
        self._parts: list[bytes] = []
        self._told = False
        self._start: Message = {}
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self) -> Message:
        """ASGI's receive: what has come of the body, and after its end nothing until the client has gone."""
        if self.expects_continue and not self.over:
            self.expects_continue = False
            self._connection.say_continue()
        while not (self.over or self._parts or (self.whole and not self._told)):
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.over:
            return {"type": "http.disconnect"}
        body = b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        self._told = self.whole
        if not self._connection.reading:
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
        if not self.over:
            self._parts.append(body)
            self.unread += len(body)
            if self._waiter is not None:
                self._wake()

    def complete(self) -> None:
        """All of the body has come."""
        self.whole = True
        if self._waiter is not None:
            self._wake()

    def end(self) -> None:
        """There is nothing to be said any more."""
        self.over = True
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        """Lets `receive` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
