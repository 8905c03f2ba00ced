"""The one ASGI application: the Open Inference Protocol over REST, for `headrace serve` and for Ray Serve alike.

Plain ASGI, because a framework's routing and request objects would cost more than everything done here: an inference
of 30 floats takes well under 100 us of Python, of which JSON and numpy are half.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable
from time import perf_counter
from typing import Any

import msgspec

from headrace.backend import Result
from headrace.errors import Cancelled, NotFound
from headrace.serving import eager
from headrace.serving.body import (
    BODY_BYTES_MAX,
    CALLER_HEADER,
    IN_FLIGHT_BYTES_MAX,
    BodyHeaders,
    Message,
    Receive,
    Send,
    body_headers,
    read_body,
)
from headrace.serving.decode import InferCall
from headrace.serving.encode import encode, encode_in_steps, is_long
from headrace.serving.errors import error_text, http_status, retry_after
from headrace.serving.host import ModelHost, Route, ServedModel
from headrace.serving.ledger_reader import LedgerReader
from headrace.serving.repository import decode_repository_request, refuse_overrides
from headrace.serving.service import OipService
from headrace.serving.turns import PART_BYTES, in_turns
from headrace.serving.watch import DisconnectWatch

Scope = dict[str, Any]
Headers = list[tuple[bytes, bytes]]
# Status, body and content type.
Answered = tuple[int, bytes, tuple[bytes, bytes]]
Answer = Callable[[], Answered | Awaitable[Answered]]

# They carry a name or two.
REPOSITORY_BODY_BYTES_MAX = 1 << 20

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
BINARY: tuple[bytes, bytes] = (b"content-type", b"application/octet-stream")


def build_asgi(
    host: ModelHost,
    *,
    body_bytes_max: int = BODY_BYTES_MAX,
    in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
    caller_header: str = CALLER_HEADER,
) -> OipApp:
    """Makes the ASGI application that serves `host`'s models.

    Args:
        host: The models. The caller loads and closes it.
        body_bytes_max: Longest request body accepted, in bytes; longer ones get 413.
        in_flight_bytes_max: Bytes of all bodies held at one time; a request beyond gets 429.
        caller_header: The request header that names the caller; callers who compete share a model fairly.
    """
    service = OipService(
        host,
        body_bytes_max=body_bytes_max,
        in_flight_bytes_max=in_flight_bytes_max,
        caller_header=caller_header,
    )
    return OipApp(service)


class OipApp:
    """An ASGI application.

    Args:
        service: What the requests are answered from. `build_asgi` makes one for REST alone.
    """

    def __init__(self, service: OipService) -> None:
        self.service = service
        self.host = service.host
        self.body_bytes_max = service.body_bytes_max
        self._caller_header = service.caller_header.encode("latin-1")
        self._in_flight = service.in_flight
        self._watch = DisconnectWatch()
        self._ledgers = None if self.host.ledger is None else LedgerReader(self.host.ledger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI 3)."""
        kind = scope["type"]
        if kind == "http":
            path = scope["path"]
            if path in self.host.infer_routes and scope["method"] == "POST":
                await self._infer(path, scope, receive, send)
            else:
                await self._route(scope, receive, send)
        elif kind == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _infer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.host.infer_routes[path]
        served = found = route.served
        started = perf_counter()
        held = 0
        found.users += 1
        failure: Exception | None = None
        try:
            headers = body_headers(scope["headers"], self._caller_header)
            body = await read_body(receive, headers, self.body_bytes_max, self._in_flight)
            held = len(body)
            received = perf_counter()
            if held <= PART_BYTES:
                call = served.decoder.decode(body, headers.json_length)
            else:
                call = await in_turns(served.decoder.steps(body, headers.json_length))
            del body
            if waited_s := scope.get("headrace.waited_s"):  # for this replica, see `headrace.serving.ingress`
                call.count_wait(waited_s)
            served.stages["decode"].observe(perf_counter() - received)
            served, result = await self._run(route, call, headers, receive)
            computed = perf_counter()
            if is_long(call.outputs, result):
                steps = encode_in_steps(served.name, served.version, call.id, call.outputs, result)
                payload, json_length = await in_turns(steps)
            else:
                payload, json_length = encode(served.name, served.version, call.id, call.outputs, result)
            served.stages["encode"].observe(perf_counter() - computed)
        except Exception as error:
            failure = error
            await self.send_error(error, send)
        else:
            if json_length is None:
                await self._send(send, 200, payload, JSON)
            else:
                length = (b"inference-header-content-length", str(json_length).encode())
                await self._send(send, 200, payload, BINARY, length)
        finally:
            self._in_flight.give(held)
            found.users -= 1
        served.ended(perf_counter() - started, failure)

    async def _run(
        self, route: Route, call: InferCall, headers: BodyHeaders, receive: Receive
    ) -> tuple[ServedModel, Result]:
        """Runs `call`; where the client goes away meanwhile, takes it out of the queue and raises `Cancelled`."""
        watched = self._watch.enter(receive)
        try:
            return await route.infer(call, headers.deadline_ms, headers.caller)
        except asyncio.CancelledError:
            if not watched.gone:
                raise
            watched.swallow_cancel()
            raise Cancelled("client: got a closed connection, expected it open until the answer") from None
        finally:
            watched.leave()

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every route but the inference of a loaded model."""
        try:
            path = path_of(scope)
            if path in self.host.infer_routes and scope["method"] == "POST":
                await self._infer(path, scope, receive, send)
                return
            answer: Answer
            allowed: tuple[str, ...]
            if path.startswith("/v2/repository/"):
                answer, allowed = partial(self._repository, path, scope, receive), ("POST",)
            else:
                answer, allowed = self._find(path)
            if scope["method"] not in allowed:
                expected = " or ".join(allowed)
                body = _json({"error": f"{path[:128]}: got method {scope['method']}, expected {expected}"})
                await self._send(send, 405, body, JSON, (b"allow", ", ".join(allowed).encode()))
                return
            answered = answer()
            if isawaitable(answered):
                await eager.in_task()
                answered = await answered
            status, body, content_type = answered
        except Exception as error:
            await self.send_error(error, send)
            return
        await self._send(send, status, body, content_type)

    def _find(self, path: str) -> tuple[Answer, tuple[str, ...]]:
        """What answers `path`, and by which methods."""
        read = ("GET", "HEAD")
        match path.removesuffix("/").split("/")[1:]:
            case ["metrics"]:
                return self._metrics, read
            case ["v2"]:
                return lambda: (200, _json(self.service.server_metadata()), JSON), read
            case ["v2", "ledger"]:
                return self._ledger, read
            case ["v2", "health", "live"]:
                return self._live, read
            case ["v2", "health", "ready"]:
                return self._ready, read
            case ["v2", "models", "stats"]:
                return partial(self._statistics, None, None), read
            case ["v2", "models", name]:
                return lambda: self._model_metadata(name, None), read
            case ["v2", "models", name, "stats"]:
                return partial(self._statistics, name, None), read
            case ["v2", "models", name, "versions", version, "stats"]:
                return partial(self._statistics, name, version), read
            case ["v2", "models", name, "config"]:
                return lambda: (200, _json(self.service.model_config(name, None)), JSON), read
            case ["v2", "models", name, "versions", version, "config"]:
                return lambda: (200, _json(self.service.model_config(name, version)), JSON), read
            case ["v2", "models", name, "versions", version]:
                return lambda: self._model_metadata(name, version), read
            case ["v2", "models", name, "ready"]:
                return lambda: self._model_ready(name, None), read
            case ["v2", "models", name, "versions", version, "ready"]:
                return lambda: self._model_ready(name, version), read
            case ["v2", "models", name, "infer"]:
                return lambda: self._not_loaded(name, None), ("POST",)
            case ["v2", "models", name, "versions", version, "infer"]:
                return lambda: self._not_loaded(name, version), ("POST",)
        raise NotFound(
            f"path: got {path[:128]!r}, expected /metrics or a path of the Open Inference Protocol under /v2"
        )

    async def _repository(self, path: str, scope: Scope, receive: Receive) -> Answered:
        """The model repository extension. Whoever has no token learns nothing from it."""
        sent = dict(scope["headers"]).get(b"authorization")
        repository = self.service.repository(sent.decode("latin-1") if sent is not None else None)
        parts = path.removesuffix("/").split("/")[3:]
        body = await read_body(receive, body_headers(scope["headers"], b""), REPOSITORY_BODY_BYTES_MAX, self._in_flight)
        self._in_flight.give(len(body))
        request = decode_repository_request(body)
        match parts:
            case ["index"]:
                states = [state for state in await repository.index() if not request.ready or state.state == "READY"]
                return 200, _json([state._asdict() for state in states]), JSON
            case ["models", name, "load"]:
                refuse_overrides(request.parameters)
                await repository.load(name)
            case ["models", name, "unload"]:
                await repository.unload(name)
            case _:
                raise NotFound(f"path: got {path[:128]!r}, expected index, models/NAME/load or models/NAME/unload")
        return 200, b"{}", JSON

    async def _statistics(self, name: str | None, version: str | None) -> Answered:
        return 200, _json(await self.service.statistics(name, version)), JSON

    async def _ledger(self) -> Answered:
        """The books of every process that keeps them in the same folder, or else of this one alone."""
        return 200, _json(self.host.books() if self._ledgers is None else await self._ledgers.books()), JSON

    def _live(self) -> Answered:
        stalled = self.host.stalled()
        return (503, _json({"live": False, "stalled": stalled}), JSON) if stalled else (200, b'{"live":true}', JSON)

    async def _ready(self) -> Answered:
        ready = await self.service.is_ready()
        return (200 if ready else 503), _json({"ready": ready}), JSON

    def _model_metadata(self, name: str, version: str | None) -> Answered:
        return 200, _json(self.service.model_metadata(name, version)), JSON

    def _model_ready(self, name: str, version: str | None) -> Answered:
        self.host.find(name, version)
        return 200, _json({"name": name, "ready": True}), JSON

    def _not_loaded(self, name: str, version: str | None) -> Answered:
        """Reached by inference of a model that is not loaded, for which `find` has the right error.

        A version may also be spelled in a way `infer_routes` does not list ("01"): that is no version.
        """
        self.host.find(name, version)
        raise NotFound(
            f"model {name!r}: got version {str(version)[:32]!r}, expected a version as the metadata lists it"
        )

    def _metrics(self) -> Answered:
        from headrace.observe.metrics import CONTENT_TYPE, exposition

        return 200, exposition(self.service), (b"content-type", CONTENT_TYPE.encode())

    async def send_error(self, error: Exception, send: Send) -> None:
        """Answers with an error."""
        status = http_status(error)
        extra: Headers = []
        if status == 401:
            extra.append((b"www-authenticate", b"Bearer"))
        if (seconds := retry_after(error)) is not None:
            extra.append((b"retry-after", seconds))
        if status == 413:
            # The rest of the body is still on its way; a kept connection would have to swallow it.
            extra.append((b"connection", b"close"))
        await self._send(send, status, _json({"error": error_text(error)}), JSON, *extra)

    async def _send(self, send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        responses = self.service.http_responses
        responses[status] = responses.get(status, 0) + 1
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    """Acknowledges start and stop: whoever made the host loads and closes it."""
    while True:
        message: Message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def path_of(scope: Scope) -> str:
    """The path below the prefix this application is mounted under, whether or not the server left the prefix in."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and path.startswith(root + "/") and not path.startswith("/v2"):
        return path.removeprefix(root)
    return path


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
