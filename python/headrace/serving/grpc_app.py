"""The Open Inference Protocol over gRPC, in the event loop that also runs the REST application.

Requests arrive as bytes and are parsed here, not by grpc: so what cannot be parsed is the client's error like any
other, and parsing counts as decoding.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import grpc

from headrace.errors import BackendUnavailable, NotOffered
from headrace.serving import grpc_codec
from headrace.serving.errors import error_text, grpc_status, retry_after, retry_after_s
from headrace.serving.messages import RPCS, SERVICE, ModelInferRequest, parse
from headrace.serving.repository import refuse_overrides
from headrace.serving.service import OipService
from headrace.serving.turns import PART_BYTES, in_turns

# Status details travel in a header, and clients refuse headers of more than 8 KiB; an ASCII character may take 3 bytes.
DETAILS_CHARS_MAX = 2000

Context: TypeAlias = Any  # a grpc.aio.ServicerContext, which brings no types


@dataclass(frozen=True)
class CallInfo:
    """What a call says beside its message.

    Attributes:
        remaining_s: Seconds that the client still waits; None where it set no deadline.
        caller: Whose request it is, for fair shares; None for those without a name. Bytes, as REST's headers are: one
            caller is one, whichever protocol it uses.
        authorization: The value of the metadata of this name; None where there is none.
        waited_s: Seconds that it waited for a replica; `remaining_s` is what was left then.
    """

    remaining_s: float | None = None
    caller: bytes | None = None
    authorization: str | None = None
    waited_s: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """An error as gRPC says it.

    Attributes:
        status: The name of the status code.
        details: What the client is told.
        trailing: Metadata that goes with it.
    """

    status: str
    details: str
    trailing: tuple[tuple[str, str], ...]

    @staticmethod
    def of(error: Exception) -> Refusal:
        """What `error` is answered with."""
        return Refusal(grpc_status(error), error_text(error)[:DETAILS_CHARS_MAX], _trailing(error))


Answer = Callable[[Any, CallInfo], Awaitable[dict[str, Any]]]
Handler = Callable[[Any, Context], Awaitable[bytes]]


class GrpcApp(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers the calls of ``inference.GRPCInferenceService``; see `headrace.serving.grpc_server.start`.

    Args:
        service: What the calls are answered from.
    """

    def __init__(self, service: OipService) -> None:
        self._service = service
        self._answers: dict[str, Answer] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }
        self._handlers = {f"/{SERVICE}/{rpc}": grpc.unary_unary_rpc_method_handler(self._handler(rpc)) for rpc in RPCS}
        # To the wire a single message is a stream of one, so this refuses calls of every kind.
        self._not_offered = grpc.stream_unary_rpc_method_handler(self._handler(None))

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """Finds the handler of a call; None lets grpc answer that there is no such service."""
        method: str = handler_call_details.method
        if not method.startswith(f"/{SERVICE}/"):
            return None
        return self._handlers.get(method, self._not_offered)

    def _handler(self, rpc: str | None) -> Handler:
        """What grpc calls for one RPC; None for those that are not offered."""
        counts = self._service.grpc_responses

        async def handle(payload: Any, context: Context) -> bytes:
            answered = await self.relay(rpc, payload, self._info(context))
            status = "OK" if isinstance(answered, bytes) else answered.status
            counts[status] = counts.get(status, 0) + 1
            if isinstance(answered, bytes):
                return answered
            await context.abort(grpc.StatusCode[answered.status], answered.details, answered.trailing)
            raise AssertionError("unreachable: abort raises")

        return handle

    def _info(self, context: Context) -> CallInfo:
        caller: bytes | None = None
        authorization: str | None = None
        for key, value in context.invocation_metadata() or ():
            if key == self._service.caller_header:
                caller = value if isinstance(value, bytes) else value.encode("latin-1", "replace")
            elif key == "authorization":
                authorization = value.decode("latin-1") if isinstance(value, bytes) else value
        return CallInfo(context.time_remaining(), caller, authorization)

    async def relay(self, rpc: str | None, payload: bytes, info: CallInfo) -> bytes | Refusal:
        """Answers one call, whose errors become values: so it can be made from another process."""
        try:
            return await self.answer(rpc, payload, info)
        except Exception as error:
            return Refusal.of(error)

    async def answer(self, rpc: str | None, payload: bytes, info: CallInfo) -> bytes:
        """Answers one call; cancelling the task takes an inference out of the queue.

        Args:
            rpc: Its name; None for one that is not offered.
            payload: The bytes of its message.
            info: What else it says.

        Returns:
            The bytes of the answer's message.

        Raises:
            HeadraceError: What the call is to be answered with.
        """
        if rpc is None:
            raise NotOffered(
                f"{SERVICE}: got a call that is not offered here (streaming, shared memory, tracing and logging "
                f"settings are not), expected one of {', '.join(RPCS)}"
            )
        if rpc == "ModelInfer":
            return await self._infer(payload, info)
        request_class, answer_class = RPCS[rpc]
        fields = await self._answers[rpc](parse(request_class, payload), info)
        encoded: bytes = answer_class(**fields).SerializeToString()
        return encoded

    async def _infer(self, payload: bytes, info: CallInfo) -> bytes:
        started = perf_counter()
        self._service.in_flight.take(len(payload))
        try:
            request = parse(ModelInferRequest, payload)
            route = self._service.host.route(request.model_name, request.model_version or None)
            served = found = route.served
            found.users += 1
            try:
                if len(payload) <= PART_BYTES:
                    call = grpc_codec.decode(served.decoder, request)
                else:
                    call = await in_turns(grpc_codec.decode_in_steps(served.decoder, request))
                call.count_wait(info.waited_s)
                served.stages["decode"].observe(perf_counter() - started)
                deadline_ms = None if info.remaining_s is None else 1000 * info.remaining_s
                served, result = await route.infer(call, deadline_ms, info.caller)
                computed = perf_counter()
                answer = await in_turns(grpc_codec.encode_in_steps(served.name, served.version, call, result))
                served.stages["encode"].observe(perf_counter() - computed)
            except BaseException as error:  # a call that is cancelled counts too
                served.ended(perf_counter() - started, error)
                raise
            finally:
                found.users -= 1
            served.ended(perf_counter() - started)
        finally:
            self._service.in_flight.give(len(payload))
        return answer

    async def _server_live(self, request: Any, info: CallInfo) -> dict[str, Any]:
        return {"live": not self._service.host.stalled()}

    async def _server_ready(self, request: Any, info: CallInfo) -> dict[str, Any]:
        return {"ready": await self._service.is_ready()}

    async def _server_metadata(self, request: Any, info: CallInfo) -> dict[str, Any]:
        return self._service.server_metadata()

    async def _model_ready(self, request: Any, info: CallInfo) -> dict[str, Any]:
        try:
            self._service.host.find(request.name, request.version or None)
        except BackendUnavailable:
            return {"ready": False}
        return {"ready": True}

    async def _model_metadata(self, request: Any, info: CallInfo) -> dict[str, Any]:
        found = self._service.model_metadata(request.name, request.version or None)
        # The message has no field for what REST says in `parameters`.
        return {key: found[key] for key in ("name", "versions", "platform", "inputs", "outputs")}

    async def _model_config(self, request: Any, info: CallInfo) -> dict[str, Any]:
        return {"config": self._service.model_config(request.name, request.version or None)}

    async def _model_statistics(self, request: Any, info: CallInfo) -> dict[str, Any]:
        return await self._service.statistics(request.name or None, request.version or None)

    async def _repository_index(self, request: Any, info: CallInfo) -> dict[str, Any]:
        states = await self._service.repository(info.authorization).index()
        return {"models": [one._asdict() for one in states if not request.ready or one.state == "READY"]}

    async def _repository_load(self, request: Any, info: CallInfo) -> dict[str, Any]:
        repository = self._service.repository(info.authorization)
        refuse_overrides(request.parameters)
        await repository.load(request.model_name)
        return {}

    async def _repository_unload(self, request: Any, info: CallInfo) -> dict[str, Any]:
        await self._service.repository(info.authorization).unload(request.model_name)
        return {}


def _trailing(error: Exception) -> tuple[tuple[str, str], ...]:
    """When to come back: in HTTP's words, and in those that gRPC clients with a retry policy act upon."""
    seconds, header = retry_after_s(error), retry_after(error)
    if seconds is None or header is None:
        return ()
    return (("retry-after", header.decode()), ("grpc-retry-pushback-ms", str(math.ceil(1000 * seconds))))
