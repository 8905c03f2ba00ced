"""A gRPC server on asyncio that gives every message back: what grpcio itself costs. Prints its port.

Run by grpc.py: ``python -m benchmarks.serving.grpc_echo``.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import uvloop


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers any call with its own message."""

    def __init__(self) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, message: bytes, context: Any) -> bytes:
        return message

    def service(self, handler_call_details: Any) -> Any:
        """The handler of every call."""
        return self._handler


async def main() -> None:
    server = grpc.aio.server(handlers=(Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
