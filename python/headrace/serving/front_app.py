"""What the front answers over REST: the server's own routes itself, those of a model by way of its replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

import msgspec

from headrace.errors import BackendUnavailable, Cancelled, HeadraceError, NotFound
from headrace.observe.ledger import Books
from headrace.serving import eager
from headrace.serving.app import JSON, OipApp, Scope
from headrace.serving.body import Receive, Send, body_headers, read_body
from headrace.serving.ingress.pool import Pool
from headrace.serving.ingress.wire import Ask, Headers
from headrace.serving.service import OipService

DEADLINE_HEADER = b"x-envoy-expected-rq-timeout-ms"


class FrontApp(OipApp):
    """The ASGI application of a deployment.

    Args:
        books: Finds the books of each model.
        service: What the server's own routes are answered from.
        pools: The replicas of each deployed model, by its name.
        unloaded: The models that were taken out of service.
    """

    def __init__(
        self,
        books: Callable[[], Awaitable[dict[str, Books]]],
        service: OipService,
        pools: Mapping[str, Pool],
        unloaded: Collection[str] = (),
    ) -> None:
        super().__init__(service)
        self._books = books
        self._pools = pools
        self._unloaded = unloaded
        # What of a request's head concerns the replica: its body goes there whole, and decompressed.
        self._forwarded = frozenset((b"inference-header-content-length", DEADLINE_HEADER, self._caller_header))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI 3)."""
        if scope["type"] != "http" or (name := _model_of(scope["path"])) is None:
            await super().__call__(scope, receive, send)
        elif (pool := self._pools.get(name)) is not None:
            await self._relay(pool, scope, receive, send)
        else:
            await self.send_error(unknown(name, self._pools, self._unloaded), send)

    async def _ledger(self) -> tuple[int, bytes, tuple[bytes, bytes]]:
        return 200, msgspec.json.encode(await self._books()), JSON

    async def _relay(self, pool: Pool, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a replica answer, and passes its answer on as it is."""
        held = 0
        try:
            headers = body_headers(scope["headers"], self._caller_header)
            body = await read_body(receive, headers, self.body_bytes_max, self._in_flight)
            held = len(body)
            forwarded = [pair for pair in scope["headers"] if pair[0] in self._forwarded]
            ask = Ask(0, scope["method"], scope["path"], forwarded)
            status, answer_headers, answer = await self._ask(pool, ask, body, headers.deadline_ms, receive)
        except Exception as error:
            await self.send_error(error, send)
            return
        finally:
            self._in_flight.give(held)
        responses = self.service.http_responses
        responses[status] = responses.get(status, 0) + 1
        await send({"type": "http.response.start", "status": status, "headers": answer_headers})
        await send({"type": "http.response.body", "body": answer})

    async def _ask(
        self, pool: Pool, ask: Ask, body: bytes, deadline_ms: float | None, receive: Receive
    ) -> tuple[int, Headers, bytes]:
        """Asks a replica; where the client goes away meanwhile, takes it back and raises `Cancelled`."""
        watched = self._watch.enter(receive)
        try:
            deadline_s = None if deadline_ms is None else deadline_ms / 1000
            replica = pool.choose(deadline_s)
            if replica is None:
                loop = asyncio.get_running_loop()
                began = loop.time()
                await eager.in_task()
                replica, left_s = await pool.wait(deadline_s)
                ask.waited_s = loop.time() - began
                if left_s is not None:
                    left = b"%d" % max(1, 1000 * left_s)
                    ask.headers = [(name, left if name == DEADLINE_HEADER else value) for name, value in ask.headers]
            answer, answered = await replica.ask(ask, body)
            return answer.status, answer.headers, answered
        except asyncio.CancelledError:
            if not watched.gone:
                raise
            watched.swallow_cancel()
            raise Cancelled("client: got a closed connection, expected it open until the answer") from None
        finally:
            watched.leave()


def _model_of(path: str) -> str | None:
    """The model whose replica answers a path; None for what the front answers itself, as it does statistics."""
    match path.removesuffix("/").split("/"):
        case ["", "v2", "models", _, "stats"] | ["", "v2", "models", _, "versions", _, "stats"]:
            return None
        case ["", "v2", "models", "stats"]:
            return None
        case ["", "v2", "models", name, *_]:
            return name
    return None


def unknown(name: str, names: Collection[str], unloaded: Collection[str] = ()) -> HeadraceError:
    """The error for a model that nobody deployed, that was unloaded, or that goes away together with all others."""
    if name in unloaded:
        return NotFound(f"model {name!r}: got a request to a model that was unloaded, expected one that is loaded")
    if not names and not unloaded:
        return BackendUnavailable(
            f"model {name[:128]!r}: got a deployment that begins or ends, expected one with models", retry_after_s=1.0
        )
    return NotFound(f"model: got {name[:128]!r}, expected one of {', '.join(names)}")
