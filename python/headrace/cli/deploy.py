"""``headrace deploy``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from headrace.config import DeployConfig
    from headrace.serve import Deployment

Say = Callable[[str, Any], None]

STATUS_EVERY_S = 1.0
# Serve's controller and the front come back when they die; a Ray that does not answer for so many looks is gone.
LOOKS_LOST_MAX = 60


@click.command("deploy")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--host", "address", default=None, help="Address to listen on, in place of the file's.")
@click.option("--port", default=None, type=click.IntRange(0, 65535), help="In place of the file's; 0 takes a free one.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds the models may take to start.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one JSON object per line.")
def command(file: Path, address: str | None, port: int | None, timeout_s: float, as_json: bool) -> None:
    """Deploy the models that FILE (YAML) names on Ray Serve, and keep them until SIGTERM or Ctrl+C.

    Joins the Ray that RAY_ADDRESS names, or starts one on this machine and stops it at the end. Prints "ready: URL"
    once every model answers, and then the replicas of each model whenever they change. SIGHUP has it read FILE and the
    models again, and bring in what changed without losing a request; how that goes is printed too.
    """
    config = _read(file, address, port)
    from headrace.serve import deploy

    # Handlers run in the middle of whatever the main thread is at: a wait for an Event would hold the lock that its
    # `set` needs.
    woken: SimpleQueue[None] = SimpleQueue()
    ends = again = False

    def on_hangup(number: int, frame: FrameType | None) -> None:
        nonlocal again
        again = True
        woken.put(None)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal ends
        # Starting and updating take minutes and are interrupted; otherwise there is only the wait below. What follows
        # an update that was interrupted is the end, which is not.
        interrupts = not ready or (updating and not ends)
        ends = True
        woken.put(None)
        if interrupts:
            raise KeyboardInterrupt

    ready = updating = False
    say = _say_json if as_json else _say_line
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    # Nobody can know from outside when it is ready for it, and by default it ends a process.
    signal.signal(signal.SIGHUP, on_hangup)
    try:
        deployment = deploy(config, progress=lambda step: say("progress", step), timeout_s=timeout_s)
    except KeyboardInterrupt:
        sys.exit(130)
    # Ray puts its own handlers in place while it starts.
    ready = True
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGHUP, on_hangup)
    say("grpc", deployment.grpc)
    say("ready", deployment.url)
    try:
        watch = Watch(deployment, say)
        while True:
            with contextlib.suppress(Empty):
                woken.get(timeout=STATUS_EVERY_S)
            if ends:
                break
            if again:
                again = False
                updating = True
                try:
                    _update(deployment, lambda: _read(file, address, port), say)
                finally:
                    updating = False
            watch.look()
    except KeyboardInterrupt:
        pass
    finally:
        say("progress", "draining")
        left = deployment.shutdown()
    if left:
        say("error", f"processes still running: {left}")
        sys.exit(1)
    say("stopped", deployment.url)


def _read(file: Path, address: str | None, port: int | None) -> DeployConfig:
    import msgspec

    from headrace.deploy_file import load_deploy

    config = load_deploy(file)
    http = msgspec.structs.replace(
        config.http,
        host=config.http.host if address is None else address,
        port=config.http.port if port is None else port,
    )
    return msgspec.structs.replace(config, http=http)


def _update(deployment: Deployment, read: Callable[[], DeployConfig], say: Say) -> None:
    """Brings in what changed; where that cannot be done, for whatever reason, what runs goes on running."""
    from headrace.errors import HeadraceError

    try:
        deployment.update(read(), progress=lambda step: say("progress", step))
    except HeadraceError as error:
        say("error", str(error))
    except Exception as error:  # of Ray, while a part of it is being started again, or of a file
        say("error", f"update: {type(error).__name__}: {error}")
    else:
        say("updated", deployment.url)


class Watch:
    """Says what a deployment's replicas and new versions do, whenever that changes.

    Args:
        deployment: The deployment.
        say: Prints an event and its value.
    """

    def __init__(self, deployment: Deployment, say: Say) -> None:
        self._deployment = deployment
        self._say = say
        self._replicas: dict[str, dict[str, int]] | None = None
        self._rollouts: dict[str, dict[str, Any]] = {}
        self._lost = 0

    def look(self) -> None:
        """Looks once. What is just being started again is asked the next time.

        Raises:
            Exception: Ray's own, where it has not answered for `LOOKS_LOST_MAX` looks.
        """
        try:
            replicas = self._deployment.replicas()
        except Exception as error:
            self._lost += 1
            if self._lost >= LOOKS_LOST_MAX:
                raise
            if self._lost == 1:
                self._say("error", f"status: {type(error).__name__}: {error}")
            return
        self._lost = 0
        if replicas != self._replicas:
            self._replicas = replicas
            self._say("replicas", replicas)
        try:
            rollouts = self._deployment.rollouts()
        except Exception:
            return
        for name, now in rollouts.items():
            before = self._rollouts.get(name, now)
            if _milestone(now) != _milestone(before):
                self._say("rollout", {"model": name, **now})
        self._rollouts = rollouts


def _milestone(status: dict[str, Any]) -> object:
    """What of a model's state is worth a line: not every request that a candidate was given."""
    candidate = status.get("candidate")
    return (
        status.get("generation"),
        candidate and (candidate["version"], candidate["state"]),
        status.get("rolled_back"),
        status.get("stuck"),
    )


def _say_json(event: str, value: Any) -> None:
    import msgspec

    # A difference without bound becomes null: JSON has no word for it.
    click.echo(msgspec.json.encode({"event": event, "value": value}).decode())


def _say_line(event: str, value: Any) -> None:
    if event == "replicas":
        value = ", ".join(
            f"{name} " + (" ".join(f"{count} {state.lower()}" for state, count in states.items()) or "none")
            for name, states in value.items()
        )
    elif event == "rollout":
        value = _rollout_line(value)
    click.echo(f"{event}: {value}")


def _rollout_line(status: dict[str, Any]) -> str:
    if status.get("unloaded"):
        return f"{status['model']} is unloaded"
    line = f"{status['model']} serves version {status['running']}"
    if (candidate := status.get("candidate")) is not None:
        line += f"; version {candidate['version']} ({candidate['mode']}) is {candidate['state']}"
    if (gone := status.get("rolled_back")) is not None:
        line += f"; version {gone['version']} was rolled back: {gone['reason']}"
    for version, replicas in status.get("stuck", {}).items():
        line += f"; version {version} is stuck in a batch in {replicas} of its replicas"
    return line
