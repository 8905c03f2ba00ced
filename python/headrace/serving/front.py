"""The front of a deployment, in which each model is a Ray Serve application of its own.

It listens for gRPC, and for REST unless Serve's proxy does, passes what concerns a model on to one of its replicas
(see `headrace.serving.ingress`), and answers the rest itself: stock clients ask ``/v2/health/ready`` and ``/v2`` before
they send anything. Behind Serve's proxy, which routes by the longest prefix, it gets what no model's application takes.

It also keeps the ledgers of all replicas, those that are gone included: a replica reports twice a second while it lives
and once more when it has drained, so that the counts of a deployment balance across every scale-down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from headrace.config import AutoscalingConfig
from headrace.errors import ExecutionError, NotFound
from headrace.observe.ledger import Books
from headrace.serving import grpc_server
from headrace.serving.assignment import Assignment, Assignments, Edition
from headrace.serving.body import BODY_BYTES_MAX
from headrace.serving.front_app import FrontApp, unknown
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_ledgers import ReplicaLedger, ReplicaLedgers
from headrace.serving.front_ready import Readiness
from headrace.serving.front_repository import ApplicationsLike, DeployedRepository
from headrace.serving.front_shared import FRONT_DEPLOYMENT, FrontAddress, deployment_of
from headrace.serving.heap import settle
from headrace.serving.host import ModelHost
from headrace.serving.http.limits import sweep
from headrace.serving.ingress.bridge import Bridge
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.ingress.loop_thread import LoopThread
from headrace.serving.ingress.pool import Pool
from headrace.serving.ledger_reader import LedgerReader
from headrace.serving.listener import HttpServer, http_server, listen
from headrace.serving.ray_build import Making
from headrace.serving.ray_models import Applications
from headrace.serving.ray_store import RayStore
from headrace.serving.service import OipService
from headrace.serving.statistics import merged

log = logging.getLogger("headrace.serving")

# Requests that still run when the front has to go get so long.
DRAIN_S_MAX = 10


class FrontService(OipService):
    """What the front answers itself: nothing about one model alone, and the statistics of all."""

    def __init__(
        self, front: FrontState, repository: DeployedRepository, caller_header: str, admin_token: str | None
    ) -> None:
        super().__init__(ModelHost([]), caller_header=caller_header, repository=repository, admin_token=admin_token)
        self._front = front

    @property
    def ready(self) -> bool:
        """As was known when somebody asked last, for the metrics."""
        return self._front.readiness.last

    async def is_ready(self) -> bool:
        """Whether no model is loading and one can be used; not before there are any, nor when they go."""
        return await self._front.readiness.get()

    async def statistics(self, name: str | None, version: str | None) -> dict[str, Any]:
        """The statistics of one version, of every version of one model, or (None) of all."""
        if name is not None and name not in self._front.pools:
            raise unknown(name, self._front.pools, self._front.unloaded)
        found = self._front.statistics(name)
        if version is not None:
            found = [one for one in found if one["version"] == version]
            if not found:
                raise NotFound(f"model {name!r}: got version {version[:32]!r}, expected a version that is deployed")
        return {"model_stats": found}


class FrontState:
    """What the front knows and does; everything here runs on its own event loop.

    Attributes:
        pools: The replicas of each model that is in service.
        unloaded: The models that are deployed and were taken out of service.
        assignments: What the replicas are to serve.
        applications: Starts and ends the replicas of models that are loaded and unloaded.
        readiness: Whether requests should come.
        app: What answers REST.
    """

    def __init__(
        self,
        where: FrontAddress,
        ledger: Path | None,
        caller_header: str,
        admin_token: str | None,
        applications: ApplicationsLike,
    ) -> None:
        self.pools: dict[str, Pool] = {}
        self.unloaded: set[str] = set()
        self.assignments = Assignments(RayStore())
        self.applications = applications
        self.readiness = Readiness(self.pools, _statuses, unloaded=self.unloaded)
        self._where = where
        self._disk = None if ledger is None else LedgerReader(ledger)
        self._ledgers = ReplicaLedgers()
        self._handles: dict[tuple[str, str], Any] = {}
        self._repository = DeployedRepository(self)
        self._service = FrontService(self, self._repository, caller_header, admin_token)
        self.app = FrontApp(self.books, self._service, self.pools, self.unloaded)
        self._http: HttpServer | None = None
        self._calls: grpc_server.GrpcListener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        # What nobody waits for. The loop alone would not keep it.
        self._beside: set[asyncio.Task[None]] = set()

    async def start(self, names: Sequence[str]) -> None:
        """Listens.

        Raises:
            ConfigError: The address and a port cannot be listened on.
        """
        await self.set_names(names)
        for name in self.unloaded:  # a front that died meanwhile may have left replicas
            self.begin(self._repository.finish_unload(name))
        where = self._where
        calls = FrontGrpcApp(self._service, self.pools, self.unloaded)
        self._calls = await grpc_server.start(calls, where.host, where.grpc_port, BODY_BYTES_MAX)
        if where.ingress == "headrace":
            listener = listen(where.host, where.port)
            self._http = http_server(self.app, DRAIN_S_MAX)
            self._tasks.append(asyncio.create_task(self._http.serve(sockets=[listener])))
            self._tasks.append(asyncio.create_task(sweep(self._http.server_state.connections)))

    async def stop(self) -> None:
        """Answers what is under way, within `DRAIN_S_MAX`, and stops listening; what still comes gets 503."""
        await self.set_names([])
        self._repository.stop()
        for task in self._beside:
            task.cancel()
        if self._http is not None:
            self._http.should_exit = True
        if self._calls is not None:
            await self._calls.server.stop(DRAIN_S_MAX)
        if self._http is not None:
            serving, sweeping = self._tasks
            await serving
            sweeping.cancel()

    def check(self) -> None:
        """Raises `ExecutionError` where it does not listen any more."""
        for task in self._tasks:
            if task.done():
                error = None if task.cancelled() else task.exception()
                raise ExecutionError(f"front: got a listener that ended ({error!r}), expected it to run")

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are deployed beside it, unloaded ones included."""
        return (*self.pools, *self.unloaded)

    async def set_names(self, names: Sequence[str]) -> None:
        """Takes requests to these models, and to no others from now on; what those have under way is answered."""
        self.assignments.forget()
        known = {name: self.assignments.get(name) for name in names}
        self.unloaded.clear()
        self.unloaded.update(name for name, one in known.items() if one is not None and one.unloaded)
        for name in names:
            if name not in self.unloaded and name not in self.pools:
                self.restore(name)
        for name in [name for name in self.pools if name not in names or name in self.unloaded]:
            await self.pools.pop(name).close()

    async def withdraw(self, name: str) -> None:
        """Takes no more requests to a model that is being unloaded; what it has under way is answered."""
        self.unloaded.add(name)
        if (pool := self.pools.pop(name, None)) is not None:
            await pool.close()

    def restore(self, name: str) -> None:
        """Takes requests to a model."""
        self.unloaded.discard(name)
        self.pools[name] = Pool(name, partial(self._wake, name), self._groups(name), self._most(name))

    def _groups(self, name: str) -> list[str]:
        """The groups of a model's replicas, in the order in which they are filled; [""] where there is one."""
        assignment = self.assignments.get(name)
        return list(assignment.scaling.groups) or [""] if assignment is not None else [""]

    def _most(self, name: str) -> dict[str, int]:
        """How many replicas each group of a model's may have."""
        assignment = self.assignments.get(name)
        groups = {} if assignment is None else assignment.scaling.groups
        return {group: scaling.max_replicas for group, scaling in groups.items()}

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begins what nobody waits for; it is given up when the front ends."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def bring(self, name: str, edition: Edition, scaling: AutoscalingConfig) -> dict[str, Any]:
        """See `Front.bring`."""
        self.assignments.bring(name, edition, scaling)
        if (pool := self.pools.get(name)) is not None:
            pool.arrange(self._groups(name), self._most(name))
        return self.assignments.status(name)

    def rollouts(self) -> dict[str, dict[str, Any]]:
        """See `Front.rollouts`."""
        return {name: self.assignments.status(name) for name in self.names}

    async def report(self, ledger: ReplicaLedger, door: DoorAddress | None) -> Assignment | None:
        """See `Front.report`."""
        self._ledgers.note(ledger)
        if door is not None and (pool := self.pools.get(ledger.model)) is not None:
            # Not waited for: the replica waits for its answer not as long as a connection may take.
            self.begin(pool.add(ledger.replica, door, ledger.group, ledger.room))
        if ledger.standing is None:
            return None
        return self.assignments.report(ledger.model, ledger.replica, ledger.standing, ledger.final, ledger.group)

    async def _wake(self, name: str, group: str) -> tuple[str, DoorAddress]:
        """Has Serve choose a replica of a group, starting one where there is none, and asks it where its door is."""
        key = name, deployment_of(self._groups(name), group)
        if key not in self._handles:
            # Kept, because each one made starts a router of its own.
            self._handles[key] = serve.get_deployment_handle(key[1], app_name=name)
        found: tuple[str, DoorAddress] = await self._handles[key].door.remote()
        return found

    def statistics(self, name: str | None) -> list[dict[str, Any]]:
        """See `Front.statistics`."""
        models = [one for one in self._ledgers.models if one not in self.unloaded] if name is None else [name]
        return merged(entry for model in models for replica in self._ledgers.of(model) for entry in replica.statistics)

    async def books(self) -> dict[str, Books]:
        """The books of each model: exact where there is a ledger on disk, else of what the replicas last reported."""
        if self._disk is not None:
            return await self._disk.books()
        return {model: self._ledgers.books(model) for model in self._ledgers.models}

    def latest(self) -> dict[str, list[ReplicaLedger]]:
        """See `Front.ledgers`."""
        return {model: self._ledgers.of(model) for model in self._ledgers.models}


def _statuses() -> dict[str, str]:
    return {name: application.status for name, application in serve.status().applications.items()}


class Front:
    """The front application as Serve hosts it: Serve calls it on one loop, and everything runs on another.

    Args:
        names: The models that are deployed beside it.
        where: Where to listen.
        making: What the replicas of all models have in common.
        admin_token: Who brings it may use the repository; None for nobody.
    """

    def __init__(
        self, names: Sequence[str], where: FrontAddress, making: Making, admin_token: str | None = None
    ) -> None:
        self._where = where
        self._thread = LoopThread("headrace-front")
        self._state = FrontState(where, making.ledger, making.caller_header, admin_token, Applications(making))
        settle()
        # One that is started again must know of models that came after it was deployed.
        self._thread.submit(self._state.start(RayStore().names() or names)).result()

    def __serve_build_asgi_app__(self) -> Bridge:
        """Called by Serve once, after the constructor."""
        return Bridge(self._state.app, self._thread)

    def where(self) -> FrontAddress:
        """Called through a handle by a deployment that joins this one."""
        return self._where

    async def set_names(self, names: Sequence[str]) -> None:
        """Called through a handle whenever models come or go: a second deployment would lose the ledgers."""
        await self._thread.run(self._state.set_names(names))

    async def bring(self, name: str, edition: Edition, scaling: AutoscalingConfig) -> dict[str, Any]:
        """Called through a handle by whoever deploys a model again; see `Assignments.bring`."""
        return await self._thread.ask(self._state.bring, name, edition, scaling)

    async def rollouts(self) -> dict[str, dict[str, Any]]:
        """Called through a handle: what each model's replicas serve and are to serve."""
        return await self._thread.ask(self._state.rollouts)

    async def report(self, ledger: ReplicaLedger, door: DoorAddress | None = None) -> Assignment | None:
        """Called by the replicas through their handle; the latest report of each is kept, its last words for good.

        Args:
            ledger: What the replica counted.
            door: Where it can be reached; None where it takes no requests any more.

        Returns:
            What the replica is to serve, where it does not know that yet.
        """
        return await self._thread.run(self._state.report(ledger, door))

    async def statistics(self, name: str | None) -> list[dict[str, Any]]:
        """The protocol's statistics by version, of one model or (None) of all, over the replicas that are gone too."""
        return await self._thread.ask(self._state.statistics, name)

    async def ledgers(self) -> dict[str, list[ReplicaLedger]]:
        """Every replica's latest report by model, oldest replica first; see `ReplicaLedgers`."""
        return await self._thread.ask(self._state.latest)

    async def check_health(self) -> None:
        """Called by Serve; raising, or not answering in time, starts the front anew."""
        await self._thread.ask(self._state.check)

    async def __del__(self) -> None:
        await self._thread.run(self._state.stop())


def build_front(
    names: Sequence[str], where: FrontAddress, making: Making, admin_token: str | None = None
) -> serve.Application:
    """Builds the front application; the arguments are `Front`'s."""
    deployment = serve.deployment(
        name=FRONT_DEPLOYMENT,
        max_ongoing_requests=1000,
        # While the front is away its callers drop what they cannot send: a newer report comes twice a second.
        max_queued_requests=100,
        # A dead front is noticed by the next check, and nobody is answered until another has taken its place.
        health_check_period_s=1,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=LoggingConfig(enable_access_log=False),
        # On the head, where Serve's proxy listens too.
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )
    return deployment(serve.ingress()(Front)).bind(names, where, making, admin_token)
