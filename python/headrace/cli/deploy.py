"""``headrace deploy``."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import click

STATUS_EVERY_S = 1.0


@click.command("deploy")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--host", "address", default=None, help="Address to listen on, in place of the file's.")
@click.option("--port", default=None, type=click.IntRange(0, 65535), help="In place of the file's; 0 takes a free one.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds the models may take to start.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one JSON object per line.")
def command(file: Path, address: str | None, port: int | None, timeout_s: float, as_json: bool) -> None:
    """Deploy the models that FILE (YAML) names on Ray Serve, and keep them until SIGTERM or Ctrl+C.

    Joins the Ray that RAY_ADDRESS names, or starts one on this machine and stops it at the end. Prints "ready: URL"
    once every model answers, and then the replicas of each model whenever they change.
    """
    import msgspec

    from headrace.config import load_deploy

    config = load_deploy(file)
    http = msgspec.structs.replace(
        config.http,
        host=config.http.host if address is None else address,
        port=config.http.port if port is None else port,
    )
    config = msgspec.structs.replace(config, http=http)
    from headrace.serve import deploy

    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        # Before everything is up there is something to interrupt; later there is only the wait below.
        if not ready:
            raise KeyboardInterrupt
        stop.set()

    ready = False
    say = _say_json if as_json else _say_line
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        deployment = deploy(config, progress=lambda step: say("progress", step), timeout_s=timeout_s)
    except KeyboardInterrupt:
        sys.exit(130)
    # Ray puts its own handlers in place while it starts.
    ready = True
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    say("grpc", deployment.grpc)
    say("ready", deployment.url)
    try:
        _watch(deployment, stop, say)
    finally:
        say("progress", "draining")
        left = deployment.shutdown()
    if left:
        say("error", f"processes still running: {left}")
        sys.exit(1)
    say("stopped", deployment.url)


def _watch(deployment: Any, stop: threading.Event, say: Any) -> None:
    shown: dict[str, dict[str, int]] | None = None
    while not stop.wait(STATUS_EVERY_S):
        replicas = deployment.replicas()
        if replicas != shown:
            shown = replicas
            say("replicas", replicas)


def _say_json(event: str, value: Any) -> None:
    click.echo(json.dumps({"event": event, "value": value}))


def _say_line(event: str, value: Any) -> None:
    if event == "replicas":
        value = ", ".join(
            f"{name} " + (" ".join(f"{count} {state.lower()}" for state, count in states.items()) or "none")
            for name, states in value.items()
        )
    click.echo(f"{event}: {value}")
