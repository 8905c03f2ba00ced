"""The replica's end: a private listener that answers what the ingress sends over its links."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from headrace.errors import ExecutionError
from headrace.serving import eager
from headrace.serving.app import OipApp, Scope
from headrace.serving.body import Message as AsgiMessage
from headrace.serving.grpc_app import CallInfo, GrpcApp, Refusal
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
    Headers,
    Hello,
    Message,
    Return,
    Welcome,
    proof,
)

log = logging.getLogger("headrace.serving")

# An unknown peer has so long to prove that it knows the key.
HELLO_S_MAX = 5.0
POLL_S = 0.02

Asgi: TypeAlias = Any  # an ASGI 3 application


@dataclass(frozen=True)
class DoorAddress:
    """Where a replica's door is.

    Attributes:
        host: The address it listens on; "" for a socket of Linux's abstract namespace, which has no file to be left
            behind and cannot be reached from other machines.
        port: The TCP port, or the socket's name.
        key: Without it nobody is let in, and nobody is taken for the replica. It comes over Ray's own, authenticated
            channels, and never goes over a link.
    """

    host: str
    port: int | str
    key: bytes

    async def connect(self, protocol: Callable[[bytes], Any]) -> Any:
        """Opens a link and waits until either end knows the other; returns what `protocol` made of the key.

        Raises:
            OSError: Nobody is there, or one who does not know the key.
        """
        link = await self.open(lambda: protocol(self.key))
        try:
            await link.welcomed
        except BaseException:
            link.close()
            raise
        return link

    async def open(self, protocol: Callable[[], Any]) -> Any:
        """Opens a connection; returns the protocol."""
        loop = asyncio.get_running_loop()
        if self.host:
            _, made = await loop.create_connection(protocol, self.host, int(self.port))
            return made
        # Connected here, because uvloop takes no path that begins with a zero byte.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, f"\0{self.port}")
        except BaseException:
            sock.close()
            raise
        _, made = await loop.create_unix_connection(protocol, sock=sock)
        return made


class Exchange:
    """One request as an ASGI application sees it, whose body has come whole and whose answer goes out whole."""

    __slots__ = ("_ask", "_body", "_gone", "body", "headers", "status")

    def __init__(self, ask: Ask, body: bytes) -> None:
        self._ask = ask
        self._body: bytes | None = body
        self._gone: asyncio.Event | None = None
        self.status = 500
        self.headers: Headers = []
        self.body = b""

    async def run(self, app: Asgi) -> Exchange:
        """Has the application answer it."""
        ask = self._ask
        scope: Scope = {"type": "http", "method": ask.method, "path": ask.path, "headers": ask.headers}
        if ask.waited_s:
            scope["headrace.waited_s"] = ask.waited_s
        await app(scope, self.receive, self.send)
        return self

    def disconnect(self) -> None:
        """Tells the application that nobody waits for the answer."""
        if self._gone is None:
            self._gone = asyncio.Event()
        self._gone.set()

    async def receive(self) -> AsgiMessage:
        """ASGI's receive: the body, and then nothing until the client has gone."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._gone is None:
            self._gone = asyncio.Event()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: AsgiMessage) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.body += message.get("body", b"")


class Door:
    """Listens for the ingress's links and answers them. Everything here runs on one event loop.

    Args:
        app: Answers REST requests.
        calls: Answers gRPC calls.
    """

    def __init__(self, app: OipApp, calls: GrpcApp) -> None:
        self.app = app
        self.calls = calls
        self.key = secrets.token_bytes(32)
        self.links: set[DoorLink] = set()
        self.draining = False
        self._server: asyncio.AbstractServer | None = None

    async def open(self, host: str) -> DoorAddress:
        """Listens.

        Args:
            host: An address of this machine to listen on; "" if only this machine is to reach it.
        """
        loop = asyncio.get_running_loop()
        if not host and sys.platform == "linux":
            name = f"headrace-{secrets.token_hex(16)}"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(f"\0{name}")
            self._server = await loop.create_unix_server(lambda: DoorLink(self), sock=listener)
            return DoorAddress("", name, self.key)
        host = host or "127.0.0.1"
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((host, 0))
        self._server = await loop.create_server(lambda: DoorLink(self), sock=listener)
        return DoorAddress(host, listener.getsockname()[1], self.key)

    async def drain(self, timeout_s: float) -> None:
        """Asks the ingress for no more requests, answers those that are under way, and closes.

        A link whose other end has said that nothing more comes and that has answered everything loses nothing.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        self.draining = True
        if self._server is not None:
            self._server.close()
        for link in self.links:
            link.send(Goodbye())
        while any(link.busy for link in self.links) and loop.time() < end:
            await asyncio.sleep(POLL_S)
        for link in list(self.links):
            link.close()


class DoorLink(Frames):
    """The replica's end of one link."""

    def __init__(self, door: Door) -> None:
        super().__init__()
        self._door = door
        self._known = False
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._ends = False
        self._exchanges: dict[int, Exchange] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Not more than its proof can be before the peer is known.
        self.message_bytes_max, self.body_bytes_max = HELLO_BYTES_MAX, 0
        self._loop.call_later(HELLO_S_MAX, self._expect_known)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        self.send(Challenge(self._nonce))

    @property
    def busy(self) -> bool:
        """Whether a request is under way here, may still come, or has an answer that has not left."""
        return bool(self._tasks) or not self._ends or self.unsent

    def lost(self) -> None:
        """The ingress is gone, and its clients with it."""
        self._ends = True
        self._door.links.discard(self)
        for number in list(self._tasks):
            self._cancel(number)

    def received(self, message: Message, body: bytes) -> None:
        """Answers one frame."""
        if isinstance(message, Ask) and self._known:
            self._start(message.id, self._answer(message, body))
        elif isinstance(message, Call) and self._known:
            self._start(message.id, self._return(message, body))
        elif isinstance(message, Cancel):
            self._cancel(message.id)
        elif isinstance(message, Goodbye):
            self._ends = True
        elif isinstance(message, Hello) and not self._known and self._proves(message):
            self._known = True
            self._door.links.add(self)
            self.send(Welcome(proof(self._door.key, Welcome, message.nonce, self._nonce)))
            if self._door.draining:  # it was connecting when the others were told
                self.send(Goodbye())
            self.message_bytes_max, self.body_bytes_max = MESSAGE_BYTES_MAX, BODY_BYTES_LIMIT
        else:
            self._abort()

    def _proves(self, hello: Hello) -> bool:
        return hmac.compare_digest(hello.proof, proof(self._door.key, Hello, self._nonce, hello.nonce))

    def _expect_known(self) -> None:
        if not self._known:
            self._abort()

    def _start(self, number: int, work: Any) -> None:
        task = eager.begin(self._loop, work)
        if task is None:
            return
        self._tasks[number] = task
        # Not at the end of the work: what is cancelled before its first step has no end.
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    def _cancel(self, number: int) -> None:
        if (exchange := self._exchanges.get(number)) is not None:
            exchange.disconnect()  # the application counts it, and ends by itself
        elif (task := self._tasks.get(number)) is not None:
            task.cancel()

    async def _answer(self, ask: Ask, body: bytes) -> None:
        exchange = Exchange(ask, body)
        self._exchanges[ask.id] = exchange
        try:
            await exchange.run(self._door.app)
        except Exception:
            log.exception("this is a bug: the application raised")
        finally:
            del self._exchanges[ask.id]
        if len(exchange.body) > BODY_BYTES_LIMIT:
            error, exchange.body = _too_large(exchange.body), b""
            await self._door.app.send_error(error, exchange.send)
        self.send(Answer(ask.id, exchange.status, exchange.headers), exchange.body)

    async def _return(self, call: Call, payload: bytes) -> None:
        info = CallInfo(call.remaining_s, call.caller, call.authorization, call.waited_s)
        answered = await self._door.calls.relay(call.rpc, payload, info)
        if isinstance(answered, bytes) and len(answered) > BODY_BYTES_LIMIT:
            answered = Refusal.of(_too_large(answered))
        if isinstance(answered, bytes):
            self.send(Return(call.id), answered)
        else:
            self.send(Return(call.id, answered.status, answered.details, list(answered.trailing)))


def _too_large(body: bytes) -> ExecutionError:
    """The ingress would take a longer frame for a broken peer's, and end the link with all that is under way on it."""
    return ExecutionError(f"result: got {len(body)} bytes, expected at most {BODY_BYTES_LIMIT}")
