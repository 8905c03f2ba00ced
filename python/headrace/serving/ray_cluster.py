"""The Ray a deployment runs on: joined, or started here and stopped again with everything that came with it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.schema import LoggingConfig

from headrace.config import HttpConfig
from headrace.errors import ConfigError

# Requests are small and live in the replicas; the object store only carries control messages.
OBJECT_STORE_BYTES = 128 << 20
# Every process of a Ray we start inherits this, which is how they are found again at the end.
TAG_VARIABLE = "HEADRACE_DEPLOYMENT_TAG"
# Ray's own processes usually need a second; those that take longer than this are killed.
EXIT_S_MAX = 20.0


def connect(tell: Callable[[str], None]) -> str | None:
    """Joins the Ray this process is connected to or ``RAY_ADDRESS`` names; otherwise starts one on this machine.

    The one started here has no dashboard, and with Ray's defaults asks every client for an access token.

    Args:
        tell: Told what is done.

    Returns:
        The tag of the processes that were started; None where Ray was joined.
    """
    if ray.is_initialized():
        return None
    if os.environ.get("RAY_ADDRESS"):
        tell(f"joining Ray at {os.environ['RAY_ADDRESS']}")
        ray.init(log_to_driver=False, logging_level="WARNING")
        return None
    tell("starting Ray on this machine")
    # It announces at every start that access tokens are on, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    tag = secrets.token_hex(16)
    os.environ[TAG_VARIABLE] = tag
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Serve kills a proxy that needs longer to start, and a busy machine of two cores can need more than its 5 s.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="WARNING",
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    except BaseException:
        stop(tag, EXIT_S_MAX)
        raise
    finally:
        # Only Ray's processes are to carry it, not what this one may start later.
        del os.environ[TAG_VARIABLE]
    return tag


def stop(tag: str, timeout_s: float) -> list[int]:
    """Stops the Ray that `connect` started.

    Args:
        tag: What `connect` returned.
        timeout_s: How long its processes may take to go before they are killed.

    Returns:
        The ids of processes that are still there.
    """
    # Serve's client in this process would go on talking to a controller that is gone.
    _set_global_client(None)
    ray.shutdown()
    left = _wait_gone(tag, timeout_s)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return _wait_gone(tag, 5.0) if left else []


def processes(tag: str) -> list[int]:
    """The ids of this user's other processes that carry `tag`."""
    import psutil  # comes with Ray, which has to be imported first

    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.pid != os.getpid() and process.environ().get(TAG_VARIABLE) == tag
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _wait_gone(tag: str, timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    left = processes(tag)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = processes(tag)
    return left


def start_serve(http: HttpConfig, owns_ray: bool) -> str:
    """Starts Serve where it does not run yet, with its proxy only where that is to be the ingress.

    Args:
        http: Where to listen; port 0 takes a free one.
        owns_ray: True if Ray was started here, so that nobody can have started Serve on it.

    Returns:
        The URL of Serve's proxy, which is not where we asked if others started it; "" where the front listens itself.

    Raises:
        ConfigError: The port is taken, or the running Serve listens on another.
    """
    logging_config = LoggingConfig(enable_access_log=False, log_level="WARNING")
    if http.ingress == "headrace":
        serve.start(proxy_location="Disabled", logging_config=logging_config)
        return ""
    port = http.port or free_port(http.host)
    if owns_ray:
        check_port(http.host, port)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=http.host, port=port),
        logging_config=logging_config,
    )
    actual = _get_global_client().http_config
    if http.port not in (0, actual.port):
        raise ConfigError(f"http.port: got {http.port}, expected {actual.port} (or 0), where the running Serve listens")
    return url(actual.host, actual.port)


def url(host: str, port: int) -> str:
    """``http://HOST:PORT``."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def on_head() -> bool:
    """Whether this process runs on Ray's head node."""
    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and "node:__internal_head__" in node["Resources"] for node in ray.nodes())


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """A port in use must be an error before anything is deployed; and Serve's proxy would share it silently."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"http: got {host}:{port}, expected one that is free here ({error.strerror})") from error
