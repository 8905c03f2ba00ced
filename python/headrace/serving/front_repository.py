"""The model repository of a deployment on Ray, as the front application offers it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from ray import serve

from headrace.config import DeployedModel
from headrace.errors import BackendUnavailable, ExecutionError, ModelError, NotFound
from headrace.serving.assignment import Assignments, Edition
from headrace.serving.model_state import ModelState, stuck_in_replicas, tried_by_replicas

log = logging.getLogger("headrace.serving")

# The state of a Serve application in the words of the repository index.
STATES = {"RUNNING": "READY", "DEPLOYING": "LOADING", "NOT_STARTED": "LOADING"}
POLL_S = 0.1
# A load that takes longer goes on, but whoever asked for it is answered.
LOAD_S_MAX = 300.0
# Between attempts to end what an unload has left.
END_RETRY_S = 5.0


class ApplicationsLike(Protocol):
    """What the repository needs of `headrace.serving.ray_models.Applications`: both calls block."""

    def start(self, deployed: DeployedModel, timeout_s: float) -> None:
        """Starts a model's replicas, and waits for the first."""

    def end(self, name: str) -> bool:
        """Takes a model's replicas away, once they have answered what they have, unless it is deployed again meanwhile.

        Returns:
            Whether there was anything to take away.
        """


class FrontLike(Protocol):
    """What the repository needs of `headrace.serving.front.FrontState`."""

    assignments: Assignments
    applications: ApplicationsLike
    unloaded: set[str]

    @property
    def names(self) -> Sequence[str]:
        """The models that are deployed, unloaded ones included."""

    async def withdraw(self, name: str) -> None:
        """Takes no more requests to a model."""

    def restore(self, name: str) -> None:
        """Takes requests to it again."""

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begins what nobody waits for; it is given up when the front ends."""


class DeployedRepository:
    """The models of a deployment: each can be read again from where it was deployed from, and taken out of service.

    Args:
        front: Knows the models.
    """

    def __init__(self, front: FrontLike) -> None:
        self._front = front
        # Of each model that was ever loaded or unloaded: one of these at a time.
        self._locks: dict[str, asyncio.Lock] = {}
        # Unloaded models that are being started, and why the last start of one failed.
        self._starting: set[str] = set()
        self._failures: dict[str, str] = {}
        # The loop alone would not keep them.
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def index(self) -> list[ModelState]:
        """Every model in the state in which Serve has it, and the versions that are to take over, or were to."""
        applications = (await asyncio.to_thread(serve.status)).applications
        found: list[ModelState] = []
        for name in self._front.names:
            if name in self._front.unloaded:
                found.append(self._unloaded_state(name))
                continue
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
            found.append(tried_by_replicas(name, candidate))
        left = {version: stuck_in_replicas(count) for version, count in status.get("stuck", {}).items()}
        if (gone := status.get("rolled_back")) is not None:
            why = [f"was rolled back: {gone['reason']}", *filter(None, [left.pop(gone["version"], "")])]
            found.append(ModelState(name, gone["version"], "UNAVAILABLE", "; ".join(why)))
        return found + [ModelState(name, version, "UNAVAILABLE", why) for version, why in sorted(left.items())]

    def _unloaded_state(self, name: str) -> ModelState:
        if name in self._starting:
            return ModelState(name, "", "LOADING", "")
        return ModelState(name, "", "UNAVAILABLE", self._failures.get(name, "unloaded"))

    async def load(self, name: str) -> None:
        """Reads a model again, and has its replicas bring in what is there now, as `headrace deploy` would.

        Returns once it serves or is on trial, or at once where the model has no replicas now. Those of a model that was
        unloaded are started.

        Raises:
            NotFound: No such model.
            NotOffered: It was not deployed from a file.
            ConfigError: What lies there cannot be used; nothing has changed.
            ModelError: It could not be loaded or checked; what served before still does.
        """
        self._check_known(name)
        await self._run(self._load(name))

    async def unload(self, name: str) -> None:
        """Takes a model out of service: no new requests, then every accepted one answered, then no replica is left.

        Where its replicas do not end, that is tried until they have ended or it is loaded or deployed again.

        Raises:
            NotFound: No such model, or it was unloaded already.
            ExecutionError: Its replicas do not end.
        """
        self._check_known(name)
        await self._run(self._unload(name))

    def _check_known(self, name: str) -> None:
        if name not in self._front.names or self._front.assignments.get(name) is None:
            raise NotFound(f"model: got {name[:128]!r}, expected one of {', '.join(self._front.names)}")

    async def finish_unload(self, name: str) -> None:
        """Ends the replicas of an unloaded model that an unload has left, however often that takes."""
        front = self._front
        while name in front.unloaded:
            async with self._lock(name):
                if name not in front.unloaded:
                    return  # it was loaded while this waited
                try:
                    await asyncio.to_thread(front.applications.end, name)
                    return
                except Exception as error:
                    log.error("model %s: got unloaded and yet %s: %s", name, type(error).__name__, error)
            await asyncio.sleep(END_RETRY_S)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs to the end even if the client goes away."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            raise BackendUnavailable(
                "repository: got a change while the deployment ends, expected it running"
            ) from None

    def stop(self) -> None:
        """Gives up what is being loaded and unloaded: the front ends, and one that starts again knows what to do."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    async def _unload(self, name: str) -> None:
        front = self._front
        async with self._lock(name):
            self._check_known(name)  # whoever had the lock may have waited for long
            if name not in front.unloaded:
                # Noted first: a front that dies meanwhile goes on with it when it starts again.
                front.assignments.unload(name)
                self._failures.pop(name, None)
                await front.withdraw(name)
                await self._end(name)
            elif not await self._end(name):  # else an unload before this one could not end them
                raise NotFound(f"model {name!r}: got an unload of a model that was unloaded, expected one in service")
        log.warning("model %s: unloaded", name)

    async def _end(self, name: str) -> bool:
        try:
            return await asyncio.to_thread(self._front.applications.end, name)
        except Exception:
            self._front.begin(self.finish_unload(name))
            raise

    async def _load(self, name: str) -> None:
        async with self._lock(name):
            self._check_known(name)
            if name in self._front.unloaded:
                await self._start(name)
                return
            # Under the lock, as it may take minutes: what was unloaded meanwhile must not be noted as in service.
            edition = await self._read(name)
            self._front.assignments.bring(name, edition)
        await self._wait_brought(name, edition)

    async def _read(self, name: str) -> Edition:
        """What lies there now.

        Raises:
            NotFound: Nobody deploys the model any more.
        """
        known = self._front.assignments.get(name)
        assert known is not None, "this is a bug: a model runs that nobody had deployed"
        edition = await asyncio.to_thread(known.running.again)
        self._check_known(name)
        return edition

    async def _start(self, name: str) -> None:
        """Starts the replicas of a model that was unloaded. It stays unloaded until one of them answers."""
        front, known = self._front, self._front.assignments.get(name)
        assert known is not None, "this is a bug: a model was unloaded that nobody had deployed"
        self._starting.add(name)
        try:
            edition = known.running if known.running.source is None else await self._read(name)
            if name not in front.unloaded:
                return  # it was deployed again meanwhile
            edition = front.assignments.load(name, edition).running
            deployed = DeployedModel(model=edition.model, autoscaling=known.scaling, source=edition.source)
            await asyncio.to_thread(front.applications.start, deployed, LOAD_S_MAX)
        except Exception as error:
            self._failures[name] = f"unloaded; the last load failed: {type(error).__name__}: {error}"[:2000]
            with contextlib.suppress(Exception):  # that is tried again, and why it did not load matters more
                await self._end(name)
            if isinstance(error, ExecutionError):
                raise ModelError(f"model {name!r}: got no replica that could load it: {error}") from error
            raise
        finally:
            self._starting.discard(name)
        self._failures.pop(name, None)
        if name not in front.names:
            await self._end(name)
            raise NotFound(f"model {name!r}: got a deployment without it while it was loaded, expected one with it")
        if name in front.unloaded:  # else it was deployed again meanwhile
            front.assignments.loaded(name)
            front.restore(name)
        log.warning("model %s: loaded", name)

    async def _wait_brought(self, name: str, edition: Edition) -> None:
        """Waits until an edition that is to take over serves or is on trial."""
        assignments, loop = self._front.assignments, asyncio.get_running_loop()
        end = loop.time() + LOAD_S_MAX
        while (now := assignments.get(name)) is not None and now.candidate == edition and loop.time() < end:
            candidate = assignments.status(name)["candidate"]
            if candidate["state"] == "on trial" or (not candidate["replicas"] and not await self._replicas(name)):
                return
            await asyncio.sleep(POLL_S)
        if now is not None and edition.is_as(now.rolled_back):
            raise ModelError(f"model {name!r} version {edition.newest}: was rolled back: {now.reason}")

    async def _replicas(self, name: str) -> int:
        application = (await asyncio.to_thread(serve.status)).applications.get(name)
        states = [] if application is None else [one.replica_states for one in application.deployments.values()]
        return sum(sum(state.values()) for state in states)
