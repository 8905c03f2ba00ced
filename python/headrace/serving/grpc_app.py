"""The Open Inference Protocol over gRPC, in the event loop that also runs the REST application.

Requests arrive as bytes and are parsed here, not by grpc: so what cannot be parsed is the client's error like any
other, and parsing counts as decoding.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeAlias

import grpc

from headrace.errors import BackendUnavailable, NotOffered, Overloaded
from headrace.serving import grpc_codec
from headrace.serving.errors import error_text, grpc_status, outcome, retry_after
from headrace.serving.messages import RPCS, SERVICE, ModelInferRequest, parse
from headrace.serving.service import OipService

# Status details travel in a header, and clients refuse headers of more than 8 KiB; an ASCII character may take 3 bytes.
DETAILS_CHARS_MAX = 2000

Context: TypeAlias = Any  # a grpc.aio.ServicerContext, which brings no types
Answer = Callable[[Any, Context], Awaitable[dict[str, Any]]]
Handler = Callable[[Any, Context], Awaitable[bytes]]


class GrpcApp(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers the calls of ``inference.GRPCInferenceService``; see `headrace.serving.grpc_server.start`.

    Args:
        service: What the calls are answered from.
    """

    def __init__(self, service: OipService) -> None:
        self._service = service
        answers: dict[str, Answer] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
        }
        self._handlers = {
            f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(self._answered(self._plain(name, answer)))
            for name, answer in answers.items()
        }
        self._handlers[f"/{SERVICE}/ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._answered(self._infer))
        # To the wire a single message is a stream of one, so this refuses calls of every kind.
        self._not_offered = grpc.stream_unary_rpc_method_handler(self._answered(_refuse))

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """Finds the handler of a call; None lets grpc answer that there is no such service."""
        method: str = handler_call_details.method
        if not method.startswith(f"/{SERVICE}/"):
            return None
        return self._handlers.get(method, self._not_offered)

    def _answered(self, answer: Handler) -> Handler:
        """`answer` with its errors turned into statuses, and counted."""
        counts = self._service.grpc_responses

        async def handle(payload: Any, context: Context) -> bytes:
            try:
                answered = await answer(payload, context)
            except Exception as error:
                status = grpc_status(error)
                counts[status] = counts.get(status, 0) + 1
                details = error_text(error)[:DETAILS_CHARS_MAX]
                await context.abort(grpc.StatusCode[status], details, _trailing(error))
                raise AssertionError("unreachable: abort raises") from error
            counts["OK"] = counts.get("OK", 0) + 1
            return answered

        return handle

    def _plain(self, name: str, answer: Answer) -> Handler:
        """A call that is all about messages: parsed, answered, serialised."""
        request_class, answer_class = RPCS[name]

        async def call(payload: bytes, context: Context) -> bytes:
            fields = await answer(parse(request_class, payload), context)
            encoded: bytes = answer_class(**fields).SerializeToString()
            return encoded

        return call

    async def _infer(self, payload: bytes, context: Context) -> bytes:
        return await self.infer(payload, context.time_remaining(), self._caller(context))

    def _caller(self, context: Context) -> bytes | None:
        """Bytes, as REST's headers are: one caller is one, whichever protocol it uses."""
        for key, value in context.invocation_metadata() or ():
            if key == self._service.caller_header:
                return value if isinstance(value, bytes) else value.encode("latin-1", "replace")
        return None

    async def infer(self, payload: bytes, remaining_s: float | None, caller: bytes | None) -> bytes:
        """Answers one ModelInferRequest; cancelling the task takes it out of the queue.

        Args:
            payload: The message's bytes.
            remaining_s: Seconds that the client still waits; None where it set no deadline.
            caller: Whose request it is, for fair shares; None for those without a name.

        Returns:
            The bytes of a ModelInferResponse.

        Raises:
            HeadraceError: What the call is to be answered with.
        """
        started = perf_counter()
        self._service.in_flight.take(len(payload))
        try:
            request = parse(ModelInferRequest, payload)
            served = self._service.host.find(request.model_name, request.model_version or None)
            try:
                call = grpc_codec.decode(served.decoder, request)
                served.stages["decode"].observe(perf_counter() - started)
                result = await served.infer(call, None if remaining_s is None else 1000 * remaining_s, caller)
                computed = perf_counter()
                answer = grpc_codec.encode(served.name, served.version, call, result)
                ended = perf_counter()
                served.stages["encode"].observe(ended - computed)
                served.stages["total"].observe(ended - started)
            except Exception as error:
                if outcome(error) == "rejected":
                    served.rejected += 1
                served.stages["total"].observe(perf_counter() - started)
                raise
        finally:
            self._service.in_flight.give(len(payload))
        return answer

    async def _server_live(self, request: Any, context: Context) -> dict[str, Any]:
        return {"live": not self._service.host.stalled()}

    async def _server_ready(self, request: Any, context: Context) -> dict[str, Any]:
        return {"ready": self._service.ready}

    async def _server_metadata(self, request: Any, context: Context) -> dict[str, Any]:
        return self._service.server_metadata()

    async def _model_ready(self, request: Any, context: Context) -> dict[str, Any]:
        try:
            self._service.host.find(request.name, request.version or None)
        except BackendUnavailable:
            return {"ready": False}
        return {"ready": True}

    async def _model_metadata(self, request: Any, context: Context) -> dict[str, Any]:
        found = self._service.model_metadata(request.name, request.version or None)
        # The message has no field for what REST says in `parameters`.
        return {key: found[key] for key in ("name", "versions", "platform", "inputs", "outputs")}


async def _refuse(payloads: Any, context: Context) -> bytes:
    raise NotOffered(
        f"{SERVICE}: got a call that is not offered here (streaming, shared memory, tracing and logging settings are "
        f"not), expected one of {', '.join(RPCS)}"
    )


def _trailing(error: Exception) -> tuple[tuple[str, str], ...]:
    """When to come back: in HTTP's words, and in those that gRPC clients with a retry policy act upon."""
    seconds = retry_after(error)
    if seconds is None:
        return ()
    assert isinstance(error, Overloaded), "this is a bug: only Overloaded says when to come back"
    pushback_ms = math.ceil(1000 * min(error.retry_after_s, 3600.0))
    return (("retry-after", seconds.decode()), ("grpc-retry-pushback-ms", str(pushback_ms)))
