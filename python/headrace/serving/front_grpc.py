"""gRPC in front of models that are Ray Serve applications of their own.

Serve's own gRPC proxy asks every client to name the application in metadata, which stock clients do not, and listens on
every interface. So the front application listens itself, where it is told, and passes each call on to its model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from headrace.errors import BackendUnavailable, HeadraceError, Overloaded
from headrace.serving.grpc_app import CallInfo, GrpcApp, Refusal
from headrace.serving.messages import RPCS, parse
from headrace.serving.service import OipService

# The calls that a replica answers, each with the field that names the model.
ROUTED = {"ModelInfer": "model_name", "ModelReady": "name", "ModelMetadata": "name", "ModelConfig": "name"}


class FrontGrpcApp(GrpcApp):
    """Answers the calls about the server itself, and passes those about a model on.

    Args:
        service: What the calls about the server are answered from.
        handle_of: The Serve handle of a model's deployment, by the model's name; raises `NotFound`.
    """

    def __init__(self, service: OipService, handle_of: Callable[[str], Any]) -> None:
        super().__init__(service)
        self._handle_of = handle_of

    async def relay(self, rpc: str | None, payload: bytes, info: CallInfo) -> bytes | Refusal:
        """Answers one call, or has a replica answer it; cancelling the task cancels it there too."""
        if rpc not in ROUTED:
            return await super().relay(rpc, payload, info)
        held = 0
        try:
            self._service.in_flight.take(len(payload))
            held = len(payload)
            name = getattr(parse(RPCS[rpc][0], payload), ROUTED[rpc])
            return await _ask(self._handle_of(name), rpc, payload, info)
        except HeadraceError as error:
            return Refusal.of(error)
        except BackPressureError:
            return Refusal.of(Overloaded(f"model {name!r}: got more calls than may wait, expected fewer"))
        except (RayError, RayServeException) as error:
            kind = type(error).__name__
            return Refusal.of(BackendUnavailable(f"model {name!r}: got {kind} from its replica, expected an answer"))
        except Exception as error:
            return Refusal.of(error)
        finally:
            self._service.in_flight.give(held)


async def _ask(handle: Any, rpc: str, payload: bytes, info: CallInfo) -> bytes | Refusal:
    response = handle.grpc.remote(rpc, payload, info)
    try:
        answer: bytes | Refusal = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    return answer
