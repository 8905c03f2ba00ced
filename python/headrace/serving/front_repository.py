"""The model repository of a deployment on Ray, as the front application offers it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from ray import serve

from headrace.errors import ModelError, NotFound, NotOffered
from headrace.serving.assignment import Assignments
from headrace.serving.host import ModelState

# The state of a Serve application in the words of the repository index.
STATES = {"RUNNING": "READY", "DEPLOYING": "LOADING", "NOT_STARTED": "LOADING"}
POLL_S = 0.1
# A load that takes longer goes on, but whoever asked for it is answered.
LOAD_S_MAX = 300.0


class FrontLike(Protocol):
    """What the repository needs of `headrace.serving.front.Front`."""

    assignments: Assignments

    @property
    def names(self) -> Sequence[str]:
        """The models that are deployed."""


class DeployedRepository:
    """The models of a deployment: each can be read again from where it was deployed from.

    Args:
        front: Knows the models.
    """

    def __init__(self, front: FrontLike) -> None:
        self._front = front

    async def index(self) -> list[ModelState]:
        """Every model in the state in which Serve has it, and the versions that are to take over, or were to."""
        applications = (await asyncio.to_thread(serve.status)).applications
        found: list[ModelState] = []
        for name in self._front.names:
            application = applications.get(name)
            state = STATES.get(application.status if application is not None else "", "UNAVAILABLE")
            reason = "" if state == "READY" or application is None else application.message[:2000]
            found.extend(self._states(name, state, reason))
        return found

    def _states(self, name: str, state: str, reason: str) -> list[ModelState]:
        assignment = self._front.assignments.get(name)
        if assignment is None:
            return [ModelState(name, "", state, reason)]
        versions = sorted(assignment.running.model.files)
        found = [ModelState(name, str(version), state, reason) for version in versions]
        status = self._front.assignments.status(name)
        if (candidate := status.get("candidate")) is not None:
            found.append(ModelState(name, candidate["version"], "LOADING", describe(candidate)))
        if (gone := status.get("rolled_back")) is not None:
            found.append(ModelState(name, gone["version"], "UNAVAILABLE", f"was rolled back: {gone['reason']}"))
        return found

    async def load(self, name: str) -> None:
        """Reads a model again, and has its replicas bring in what is there now, as `headrace deploy` would.

        Returns once it serves or is on trial, or at once where the model has no replicas now.

        Raises:
            NotFound: No such model.
            NotOffered: It was not deployed from a file.
            ConfigError: What lies there cannot be used; nothing has changed.
            ModelError: It could not be loaded or checked; what served before still does.
        """
        assignments = self._front.assignments
        known = assignments.get(name) if name in self._front.names else None
        if known is None:
            raise NotFound(f"model: got {name[:128]!r}, expected one of {', '.join(self._front.names)}")
        edition = await asyncio.to_thread(known.running.again)
        now = assignments.bring(name, edition)
        end = asyncio.get_running_loop().time() + LOAD_S_MAX
        while now.candidate == edition and asyncio.get_running_loop().time() < end:
            candidate = assignments.status(name)["candidate"]
            if candidate["state"] == "on trial" or (not candidate["replicas"] and not await self._replicas(name)):
                return
            await asyncio.sleep(POLL_S)
            now = assignments.get(name) or now
        if now.rolled_back == edition:
            raise ModelError(f"model {name!r} version {edition.newest}: was rolled back: {now.reason}")

    async def _replicas(self, name: str) -> int:
        application = (await asyncio.to_thread(serve.status)).applications.get(name)
        states = [] if application is None else [one.replica_states for one in application.deployments.values()]
        return sum(sum(state.values()) for state in states)

    async def unload(self, name: str) -> None:
        """Raises `NotOffered`."""
        raise NotOffered(f"repository: got an unload of {name[:128]!r} on Ray, expected the end of its deployment")


def describe(candidate: dict[str, Any]) -> str:
    """The candidate of `Assignments.status`, for people."""
    if candidate["state"] == "loading":
        return f"is being loaded by {candidate['replicas']} replicas"
    counts = ", ".join(f"{key} {value:g}" for key, value in candidate["candidate"].items())
    return f"on trial as a {candidate['mode']} in {candidate['replicas']} replicas: {candidate['decision']} ({counts})"
