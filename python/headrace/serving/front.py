"""The front of a deployment, in which each model is a Ray Serve application of its own.

It listens for gRPC, and for REST unless Serve's proxy does, passes what concerns a model on to one of its replicas
(see `headrace.serving.ingress`), and answers the rest itself: stock clients ask ``/v2/health/ready`` and ``/v2`` before
they send anything. Behind Serve's proxy, which routes by the longest prefix, it gets what no model's application takes.

It also keeps the ledgers of all replicas, those that are gone included: a replica reports twice a second while it lives
and once more when it has drained, so that the counts of a deployment balance across every scale-down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from headrace.errors import ExecutionError, NotFound
from headrace.observe.ledger import Books, totals
from headrace.observe.ledger import read as read_ledger
from headrace.serving import grpc_server
from headrace.serving.assignment import Assignment, Assignments, Edition, Standing
from headrace.serving.body import BODY_BYTES_MAX, CALLER_HEADER
from headrace.serving.front_app import FrontApp, unknown
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_ledgers import ReplicaLedgers
from headrace.serving.front_ready import Readiness
from headrace.serving.front_repository import DeployedRepository
from headrace.serving.heap import settle
from headrace.serving.host import ModelHost
from headrace.serving.http_protocol import sweep
from headrace.serving.ingress.bridge import Bridge
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.ingress.loop_thread import LoopThread
from headrace.serving.ingress.pool import Pool
from headrace.serving.listener import HttpServer, http_server, listen
from headrace.serving.ray_store import RayStore
from headrace.serving.service import OipService
from headrace.serving.statistics import merged

# Name of the application, and of the deployment in it.
FRONT = "headrace-front"
FRONT_DEPLOYMENT = "front"
# Name of the deployment in each model's application.
MODEL_DEPLOYMENT = "model"
# Requests that still run when the front has to go get so long.
DRAIN_S_MAX = 10


@dataclass(frozen=True)
class ReplicaLedger:
    """What one replica counted until now.

    Attributes:
        model: The model it serves.
        replica: Serve's id of the replica.
        pid: Its process.
        stats: Its Batcher's ledger, with the Requests ``rejected`` before they got there.
        load: What it told the autoscaling policy.
        statistics: The protocol's statistics of each version.
        standing: How far it has followed its model's assignment.
        final: True once it has drained: these are its last words.
    """

    model: str
    replica: str
    pid: int
    stats: dict[str, Any]
    load: dict[str, float]
    final: bool
    statistics: tuple[dict[str, Any], ...] = ()
    standing: Standing | None = None


@dataclass(frozen=True)
class FrontAddress:
    """Where a deployment listens: an address of the machine the front runs on, which is Ray's head, and ports.

    With what else of a deployment's settings the front was made with, and all that join it share.

    Attributes:
        ingress: "headrace" if the front listens for REST too, "ray" if Serve's proxy does.
        host: The address.
        port: Of REST.
        grpc_port: Of gRPC.
        caller_header: The request header that names the caller, in lower case.
        ledger: Folder of the request ledger on disk; None for none.
        token_digest: The administrator's token's; "" for no token.
    """

    ingress: str
    host: str
    port: int
    grpc_port: int
    caller_header: str = CALLER_HEADER
    ledger: Path | None = None
    token_digest: str = field(default="", repr=False)


class FrontService(OipService):
    """What the front answers itself: nothing about one model alone, and the statistics of all."""

    def __init__(self, front: FrontState, caller_header: str, admin_token: str | None) -> None:
        super().__init__(
            ModelHost([]), caller_header=caller_header, repository=DeployedRepository(front), admin_token=admin_token
        )
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
        if name is not None and name not in self._front.names:
            raise unknown(name, self._front.names)
        found = self._front.statistics(name)
        if version is not None:
            found = [one for one in found if one["version"] == version]
            if not found:
                raise NotFound(f"model {name!r}: got version {version[:32]!r}, expected a version that is deployed")
        return {"model_stats": found}


class FrontState:
    """What the front knows and does; everything here runs on its own event loop.

    Attributes:
        pools: The replicas of each deployed model.
        assignments: What those are to serve.
        readiness: Whether requests should come.
        app: What answers REST.
    """

    def __init__(self, where: FrontAddress, ledger: Path | None, caller_header: str, admin_token: str | None) -> None:
        self.pools: dict[str, Pool] = {}
        self.assignments = Assignments(RayStore())
        self.readiness = Readiness(self.pools, _statuses)
        self._where = where
        self._ledger = ledger
        self._ledgers = ReplicaLedgers()
        self._handles: dict[str, Any] = {}
        self._service = FrontService(self, caller_header, admin_token)
        self.app = FrontApp(self.books, self._service, self.pools)
        self._http: HttpServer | None = None
        self._calls: grpc_server.GrpcListener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._adding: set[asyncio.Task[None]] = set()

    async def start(self, names: Sequence[str]) -> None:
        """Listens.

        Raises:
            ConfigError: The address and a port cannot be listened on.
        """
        await self.set_names(names)
        where = self._where
        calls = FrontGrpcApp(self._service, self.pools)
        self._calls = await grpc_server.start(calls, where.host, where.grpc_port, BODY_BYTES_MAX)
        if where.ingress == "headrace":
            listener = listen(where.host, where.port)
            self._http = http_server(self.app, DRAIN_S_MAX)
            self._tasks.append(asyncio.create_task(self._http.serve(sockets=[listener])))
            self._tasks.append(asyncio.create_task(sweep(self._http.server_state.connections)))

    async def stop(self) -> None:
        """Answers what is under way, within `DRAIN_S_MAX`, and stops listening; what still comes gets 503."""
        await self.set_names([])
        for adding in self._adding:
            adding.cancel()
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
        """The models that are deployed beside it."""
        return tuple(self.pools)

    async def set_names(self, names: Sequence[str]) -> None:
        """Takes requests to these models, and to no others from now on; what those have under way is answered."""
        for name in names:
            if name not in self.pools:
                self.pools[name] = Pool(name, partial(self._wake, name))
        for name in [name for name in self.pools if name not in names]:
            await self.pools.pop(name).close()
        self.assignments.forget()

    def bring(self, name: str, edition: Edition) -> dict[str, Any]:
        """See `Front.bring`."""
        self.assignments.bring(name, edition)
        return self.assignments.status(name)

    def rollouts(self) -> dict[str, dict[str, Any]]:
        """See `Front.rollouts`."""
        return {name: self.assignments.status(name) for name in self.names}

    async def report(self, ledger: ReplicaLedger, door: DoorAddress | None) -> Assignment | None:
        """See `Front.report`."""
        self._ledgers.note(ledger)
        if door is not None and (pool := self.pools.get(ledger.model)) is not None:
            # Not waited for: the replica waits for its answer not as long as a connection may take.
            adding = asyncio.create_task(pool.add(ledger.replica, door))
            self._adding.add(adding)
            adding.add_done_callback(self._adding.discard)
        if ledger.standing is None:
            return None
        return self.assignments.report(ledger.model, ledger.replica, ledger.standing, ledger.final)

    async def _wake(self, name: str) -> tuple[str, DoorAddress]:
        """Has Serve choose a replica, starting one where there is none, and asks it where its door is."""
        if name not in self._handles:
            # Kept, because each one made starts a router of its own.
            self._handles[name] = serve.get_deployment_handle(MODEL_DEPLOYMENT, app_name=name)
        found: tuple[str, DoorAddress] = await self._handles[name].door.remote()
        return found

    def statistics(self, name: str | None) -> list[dict[str, Any]]:
        """See `Front.statistics`."""
        models = self._ledgers.models if name is None else (name,)
        return merged(entry for model in models for replica in self._ledgers.of(model) for entry in replica.statistics)

    def books(self) -> dict[str, Books]:
        """The books of each model: exact where there is a ledger on disk, else of what the replicas last reported."""
        if self._ledger is not None:
            return totals(read_ledger(self._ledger))
        return {
            model: sum((Books.of_stats(replica.stats) for replica in self._ledgers.of(model)), Books())
            for model in self._ledgers.models
        }

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
        ledger: Folder of the request ledger on disk; None to go by what the replicas report.
        caller_header: The request header that names the caller.
        admin_token: Who brings it may see the repository's index; None for nobody.
    """

    def __init__(
        self,
        names: Sequence[str],
        where: FrontAddress,
        ledger: Path | None = None,
        caller_header: str = CALLER_HEADER,
        admin_token: str | None = None,
    ) -> None:
        self._where = where
        self._thread = LoopThread("headrace-front")
        self._state = FrontState(where, ledger, caller_header, admin_token)
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

    async def bring(self, name: str, edition: Edition) -> dict[str, Any]:
        """Called through a handle by whoever deploys a model again; see `Assignments.bring`."""
        return await self._thread.ask(self._state.bring, name, edition)

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
    names: Sequence[str],
    where: FrontAddress,
    ledger: Path | None = None,
    caller_header: str = CALLER_HEADER,
    admin_token: str | None = None,
) -> Any:
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
    return deployment(serve.ingress()(Front)).bind(names, where, ledger, caller_header, admin_token)
