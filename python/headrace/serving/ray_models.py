"""The Serve applications of models: started, watched and taken away. Everything here blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ray import serve

from headrace.config import AutoscalingConfig, DeployedModel
from headrace.errors import ExecutionError
from headrace.serving.assignment import Assignment
from headrace.serving.front_ready import FAILED
from headrace.serving.front_shared import FRONT, MODEL_DEPLOYMENT
from headrace.serving.ray_build import Making, run_target
from headrace.serving.ray_store import RayStore

POLL_S = 0.1
# What Serve takes to end an application, beside the drain of its replicas.
DELETE_S_MAX = 60.0


class Applications:
    """The applications of models beside one front, for whoever loads and unloads them.

    Args:
        making: What their replicas have in common.
    """

    def __init__(self, making: Making) -> None:
        self._making = making

    def start(self, deployed: DeployedModel, timeout_s: float) -> None:
        """Starts a model's replicas, and waits for the first.

        Raises:
            ExecutionError: None came up, and why.
        """
        target = run_target(deployed, self._making, runs=False)
        serve.run_many([target], wait_for_applications_running=False)
        wait_running([deployed.model.name], timeout_s)

    def end(self, name: str) -> bool:
        """Takes the application of a model that was unloaded away, unless it is deployed again meanwhile.

        Returns:
            Whether there was one.

        Raises:
            ExecutionError: It is still there long after its replicas' drain.
        """
        return end_model(name, lambda: (kept := _kept(name)) is not None and not kept.unloaded)


def running_models() -> list[str]:
    """The models of every Headrace deployment on this Serve, other people's included, that have an application."""
    applications = serve.status().applications
    return sorted(name for name, app in applications.items() if name != FRONT and MODEL_DEPLOYMENT in app.deployments)


def known_models() -> list[str]:
    """Those and the ones that were unloaded."""
    if FRONT not in serve.status().applications:
        return running_models()
    store = RayStore()
    unloaded = [name for name in store.names() if (kept := _kept(name)) is not None and kept.unloaded]
    return sorted({*running_models(), *unloaded})


def end_model(name: str, is_wanted: Callable[[], bool] = lambda: False) -> bool:
    """Takes a model's application away, once its replicas have answered what they have; none is as good.

    Args:
        name: The model.
        is_wanted: Asked whether the application is to stay after all, since somebody deployed the model again.

    Returns:
        Whether there was one.

    Raises:
        ExecutionError: It is still there long after its replicas' drain.
    """
    if is_wanted() or name not in serve.status().applications:
        return False
    kept = _kept(name)
    scaling = AutoscalingConfig() if kept is None else kept.scaling
    leave_s = max(one.leave_s for one in (scaling, *scaling.groups.values()))
    end = time.monotonic() + leave_s + DELETE_S_MAX
    serve.delete(name, _blocking=False)
    while name in serve.status().applications:
        if is_wanted():
            break
        if time.monotonic() > end:
            raise ExecutionError(f"model {name!r}: got an application that does not end, expected it to be gone by now")
        time.sleep(POLL_S)
    return True


def _kept(name: str) -> Assignment | None:
    content = RayStore().get(name)
    return None if content is None else Assignment.decode(content)


def wait_running(
    names: Sequence[str],
    timeout_s: float,
    tell: Callable[[str], None] = lambda step: None,
    starting: Collection[str] = (),
) -> None:
    """Waits until applications run.

    Args:
        names: Of the applications.
        timeout_s: How long that may take.
        tell: Told when one is ready of which it is worth telling.
        starting: Those.

    Raises:
        ExecutionError: One of them cannot run, or does not in time.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(names)
    while waiting:
        applications = serve.status().applications
        for name in list(waiting):
            status = applications[name].status if name in applications else "NOT_STARTED"
            if status == "RUNNING":
                waiting.remove(name)
                if name in starting:
                    tell(f"{name} is ready")
            elif status in FAILED:
                raise ExecutionError(
                    f"model {name!r}: got Serve status {status}, expected RUNNING\n{_why(applications[name])}"
                )
        if waiting and time.monotonic() > deadline:
            raise ExecutionError(
                f"deploy: got no ready {', '.join(waiting)} after {timeout_s:g} s, expected all RUNNING"
            )
        time.sleep(POLL_S)


def _why(application: Any) -> str:
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    return "\n".join(message for message in messages if message)
