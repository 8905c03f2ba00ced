"""Listens for gRPC."""

from __future__ import annotations

import errno
import socket
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
        _refuse_taken(address, port)
        bound: int = server.add_insecure_port(f"{shown}:{port}")
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"gRPC address: got {shown}:{port}, expected a free one ({error})") from error
    await server.start()
    return GrpcListener(server, f"{shown}:{bound}")


def _refuse_taken(address: str, port: int) -> None:
    """Asks for a port in use before gRPC does, which would write a line of its own beside our error.

    Raises:
        OSError: Somebody listens there.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        # As gRPC does: connections of a server that has just ended are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # of all else gRPC is the judge
                raise
