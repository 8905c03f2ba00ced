"""Listens for gRPC."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import grpc.aio

from headrace.errors import ConfigError

# Calls being answered at one time; more are refused. Bounds memory beside the Batchers' queues, which fill first.
CALLS_MAX = 8192


@dataclass(frozen=True)
class GrpcListener:
    """A running gRPC server.

    Attributes:
        server: Stopped by whoever started it.
        address: Where it listens, ``HOST:PORT``.
    """

    server: grpc.aio.Server
    address: str


async def start(app: grpc.GenericRpcHandler, address: str, port: int, body_bytes_max: int) -> GrpcListener:
    """Starts a gRPC server on the running event loop.

    Args:
        app: Answers the calls.
        address: Address to listen on.
        port: TCP port; 0 takes a free one.
        body_bytes_max: Longest request accepted, in bytes.

    Raises:
        ConfigError: The address and port cannot be listened on.
    """
    server = grpc.aio.server(
        handlers=(app,),
        maximum_concurrent_rpcs=CALLS_MAX,
        options=(
            ("grpc.max_receive_message_length", body_bytes_max),
            ("grpc.max_send_message_length", -1),
            # Otherwise two servers would share a port without a word.
            ("grpc.so_reuseport", 0),
        ),
    )
    shown = f"[{address}]" if ":" in address else address
    try:
        bound: int = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError as error:
        raise ConfigError(f"gRPC address: got {shown}:{port}, expected a free one ({error})") from error
    await server.start()
    return GrpcListener(server, f"{shown}:{bound}")
