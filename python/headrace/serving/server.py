"""`headrace serve`: one process, one event loop; uvicorn in front of the ASGI application, and gRPC beside it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import ExecutionError
from headrace.extras import needs
from headrace.serving.app import OipApp
from headrace.serving.aside import aside
from headrace.serving.body import BODY_BYTES_MAX, CALLER_HEADER
from headrace.serving.closing import close_host
from headrace.serving.heap import settle
from headrace.serving.host import ModelHost
from headrace.serving.http.limits import sweep
from headrace.serving.listener import DRAIN_S_MAX, http_server, listen, url_of
from headrace.serving.repository import ModelRepository
from headrace.serving.service import OipService

if TYPE_CHECKING:
    from headrace.serving.grpc_server import GrpcListener


def run(
    host: ModelHost,
    *,
    address: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    body_bytes_max: int = BODY_BYTES_MAX,
    caller_header: str = CALLER_HEADER,
    repository: Path | None = None,
    admin_token: str | None = None,
    on_ready: Callable[[str, str | None], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then answers everything accepted and closes `host`.

    Liveness answers from the start; readiness once every model is loaded and warmed.

    Args:
        host: The models; loaded here.
        address: Address to listen on.
        port: TCP port of REST; 0 takes a free one.
        grpc_port: TCP port of gRPC; 0 takes a free one, None serves none.
        body_bytes_max: Longest request body accepted, in bytes.
        caller_header: The request header that names the caller, for fair shares.
        repository: The folder that models may be loaded from while the server runs; None to offer no such thing.
        admin_token: Who brings it may do that; None for nobody.
        on_ready: Called once, when every model is ready, with the server's URL and the ``HOST:PORT`` of gRPC (or None).
        progress: Told the name of each model before it loads.

    Raises:
        ConfigError: The address and a port cannot be listened on.
        BackendUnavailable: gRPC is asked for, and not installed.
        ExecutionError: A model is stuck in a Batch or could not be closed, or was loading when the second signal came;
            its thread still runs.
        HeadraceError: A model could not be loaded.
    """
    service = OipService(
        host,
        body_bytes_max=body_bytes_max,
        caller_header=caller_header,
        repository=None if repository is None else ModelRepository(host, repository),
        admin_token=admin_token,
    )
    with contextlib.closing(listen(address, port)) as listener:
        try:
            _loop_runner(_serve(service, listener, grpc_port, on_ready, progress))
        finally:
            close_host(host)


def _loop_runner(main: object) -> None:
    """Runs on uvloop where it is installed: about twice asyncio's requests per second."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)  # type: ignore[arg-type]
    else:
        uvloop.run(main)  # type: ignore[arg-type]


async def _serve(
    service: OipService,
    listener: socket.socket,
    grpc_port: int | None,
    on_ready: Callable[[str, str | None], None] | None,
    progress: Callable[[str], None] | None,
) -> None:
    host = service.host
    server = http_server(OipApp(service))
    calls = None if grpc_port is None else await _start_grpc(service, listener.getsockname()[0], grpc_port)
    loop = asyncio.get_running_loop()
    stops: list[asyncio.Task[None]] = []  # the loop alone would not keep them
    hurried = loop.create_future()

    def stop() -> None:
        # The second signal means it: what is still running is cut off.
        server.force_exit = host.draining
        if server.force_exit and not hurried.done():
            hurried.set_result(None)
        server.should_exit = True
        service.drain()
        if calls is not None:
            stops.append(loop.create_task(calls.server.stop(0 if server.force_exit else DRAIN_S_MAX)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    sweeping = asyncio.create_task(sweep(server.server_state.connections))
    loading = aside("headrace-load", partial(host.load, progress))
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and loading.exception() is not None:
        server.should_exit = True
    settle()
    while loading.done() and not (server.started or serving.done()):
        await asyncio.sleep(0.005)
    if on_ready is not None and not server.should_exit and not serving.done():
        on_ready(url_of(listener), calls.address if calls else None)
    # uvicorn stops listening, then waits for every request it has taken in; gRPC does the same meanwhile.
    await serving
    sweeping.cancel()
    if calls is not None:
        await calls.server.stop(DRAIN_S_MAX)
    await asyncio.wait({loading, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()  # the wait for it alone
        raise ExecutionError("load: got a second signal while a model loads, expected time for it to end")
    await loading


async def _start_grpc(service: OipService, address: str, port: int) -> GrpcListener:
    """Imports gRPC only where it is wanted: it is an extra, and takes a quarter of a second."""
    with needs("serve", "gRPC", ", or not asked for (--no-grpc)"):
        from headrace.serving import grpc_app, grpc_server
    return await grpc_server.start(grpc_app.GrpcApp(service), address, port, service.body_bytes_max)
