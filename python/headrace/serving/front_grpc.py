"""gRPC in front of models that are Ray Serve applications of their own.

Serve's own gRPC proxy asks every client to name the application in metadata, which stock clients do not, and listens on
every interface. So the front listens itself, where it is told, and passes each call on to a replica of its model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from headrace.serving.front_app import unknown
from headrace.serving.grpc_app import CallInfo, GrpcApp, Refusal
from headrace.serving.ingress.pool import Pool
from headrace.serving.ingress.wire import Call
from headrace.serving.messages import RPCS, parse
from headrace.serving.service import OipService

# The calls that a replica answers, each with the field that names the model.
ROUTED = {"ModelInfer": "model_name", "ModelReady": "name", "ModelMetadata": "name", "ModelConfig": "name"}


class FrontGrpcApp(GrpcApp):
    """Answers the calls about the server itself, and passes those about a model on.

    Args:
        service: What the calls about the server are answered from.
        pools: The replicas of each deployed model, by its name.
        unloaded: The models that were taken out of service.
    """

    def __init__(self, service: OipService, pools: Mapping[str, Pool], unloaded: Collection[str] = ()) -> None:
        super().__init__(service)
        self._pools = pools
        self._unloaded = unloaded

    async def relay(self, rpc: str | None, payload: bytes, info: CallInfo) -> bytes | Refusal:
        """Answers one call, or has a replica answer it; cancelling the task cancels it there too."""
        if rpc not in ROUTED:
            return await super().relay(rpc, payload, info)
        held = 0
        try:
            self._service.in_flight.take(len(payload))
            held = len(payload)
            name = getattr(parse(RPCS[rpc][0], payload), ROUTED[rpc])
            pool = self._pools.get(name)
            if pool is None:
                raise unknown(name, self._pools, self._unloaded)
            return await _ask(pool, rpc, payload, info)
        except Exception as error:
            return Refusal.of(error)
        finally:
            self._service.in_flight.give(held)


async def _ask(pool: Pool, rpc: str, payload: bytes, info: CallInfo) -> bytes | Refusal:
    replica, remaining_s, waited_s = pool.choose(info.remaining_s), info.remaining_s, 0.0
    if replica is None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        replica, remaining_s = await pool.wait(remaining_s)
        waited_s = loop.time() - began
    call = Call(0, rpc, remaining_s, info.caller, info.authorization, waited_s)
    answer, answered = await replica.call(call, payload)
    if answer.status:
        return Refusal(answer.status, answer.details, tuple((key, value) for key, value in answer.trailing))
    return answered
