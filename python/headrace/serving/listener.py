"""Where a server listens, and uvicorn as it is set up for everything here that does."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from headrace.errors import ConfigError
from headrace.serving.http.connection import HttpProtocol

# A client that never finishes sending its body must not keep the process alive.
DRAIN_S_MAX = 60


class HttpServer(uvicorn.Server):
    """uvicorn's own signal handling raises the signal again at the end, which would kill us before the host closes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield


def http_server(app: Any, drain_s_max: float = DRAIN_S_MAX) -> HttpServer:
    """A server for an ASGI application, to be given its sockets by `serve`.

    Args:
        app: The application.
        drain_s_max: How long requests that are under way at the end may take.
    """
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        lifespan="off",
        access_log=False,
        # Its own configuration of logging closes every handler there is; Serve's would be among them, without which its
        # controller takes no replica over after a restart.
        log_config=None,
        log_level="warning",
        server_header=False,
        # Nobody here asks for the client's address.
        proxy_headers=False,
        date_header=False,
        backlog=1024,
        # Longer than load balancers keep idle connections (60 s), so that it is never we who close one being reused.
        timeout_keep_alive=75,
        ws="none",
        timeout_graceful_shutdown=int(drain_s_max),
    )
    return HttpServer(config)


def listen(address: str, port: int) -> socket.socket:
    """Binds here, not in uvicorn, so that port 0 and a port in use are ours to tell about.

    Raises:
        ConfigError: The address and port cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"address: got {address}:{port}, expected a free one ({error.strerror})") from error
    listener.set_inheritable(True)
    return listener


def url_of(listener: socket.socket) -> str:
    """``http://HOST:PORT`` of a listening socket."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
