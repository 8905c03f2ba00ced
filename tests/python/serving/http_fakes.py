"""An application, and connections to it over real sockets on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from headrace.serving.http.connection import HttpProtocol

WAIT_S = 10.0
# More than the kernel takes for a client that does not read.
BIG = 20_000_000


class App:
    """Answers each request with what it was asked, when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked: list[str] = []
        self.tasks: list[bool] = []
        self.gone = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        self.asked.append(scope["path"])
        if scope["path"] == "/broken":
            raise ValueError("broken")
        if scope["path"] == "/silent":
            return
        body = b""
        if scope["path"] != "/early":
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone += 1
                    return
                body += message["body"]
                more = message["more_body"]
        if not self.may.is_set():
            await self.may.wait()
        with contextlib.suppress(RuntimeError):
            self.tasks.append(asyncio.current_task() is not None)
        answer = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} ".encode() + body
        answer += bytes(BIG if scope["path"] == "/big" else 0)
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})


class Server:
    """Connections to an App."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.state = SimpleNamespace(connections=set(), tasks=set(), total_requests=0)
        self.config = SimpleNamespace(loaded_app=app, timeout_keep_alive=75)
        self.port = 0

    def protocol(self) -> HttpProtocol:
        return HttpProtocol(self.config, self.state, {}, asyncio.get_running_loop())

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))


class Client:
    """One connection, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[bytes, bytes]:
        """The head of the next answer, and its body."""
        async with asyncio.timeout(WAIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            return head, await self.reader.readexactly(length)

    async def ended(self) -> bytes:
        """All that comes until the connection is closed."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server(App())
    listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for connection in list(server.state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


def over_sockets(test: Callable[[Server], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        async with serving() as server:
            await test(server)

    def run() -> None:
        asyncio.run(main())

    run.__name__ = test.__name__
    return run


def post(path: str, body: bytes = b"", *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
