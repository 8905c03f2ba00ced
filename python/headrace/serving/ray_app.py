"""One replica of a model on Ray Serve.

A replica is a `ModelHost` with one model and the same ASGI application that ``headrace serve`` runs, on an event loop
of its own. Requests reach it through its door (see `headrace.serving.ingress`) or, by way of Serve's proxy, at the
prefix ``/v2/models/NAME``; the routes of the server itself (``/v2``, ``/v2/health/...``) are answered by the front.
Requests are queued, batched and refused by our Batcher, not by Serve: Serve may hand a replica as many requests as its
Batcher has room for.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from msgspec.structs import replace
from ray import serve

from headrace.config import DeployedModel, ModelConfig, in_group
from headrace.errors import ExecutionError
from headrace.serving.app import OipApp
from headrace.serving.autoscaling import METRIC_CAPACITY
from headrace.serving.body import CALLER_HEADER
from headrace.serving.closing import close_host
from headrace.serving.follower import Follower
from headrace.serving.front_ledgers import ReplicaLedger
from headrace.serving.front_shared import FRONT, FRONT_DEPLOYMENT
from headrace.serving.grpc_app import GrpcApp
from headrace.serving.heap import settle
from headrace.serving.host import ModelHost, OpenBatcher, OpenEngine, open_batcher, open_engine
from headrace.serving.ingress.bridge import Bridge
from headrace.serving.ingress.door import Door, DoorAddress
from headrace.serving.ingress.loop_thread import LoopThread
from headrace.serving.load import LoadMeter, Room, queue_delay_s_max, sample
from headrace.serving.ray_cluster import on_head
from headrace.serving.ray_store import RayStore
from headrace.serving.service import OipService
from headrace.serving.standings import Standing
from headrace.serving.starting import assigned, load_assigned

log = logging.getLogger("headrace.serving")

# An event loop that does not answer within this is stuck.
LOOP_S_MAX = 5.0
# How often a replica tells the front what it counted, and how long it waits to be heard.
REPORT_S = 0.5
REPORT_S_MAX = 2.0
# How long its last words wait for copies of a trial that it has given up: with the report itself this must be less than
# what Serve leaves it (`ray_build.CLOSE_S`).
LAST_WORDS_S_MAX = 2.0


class ModelReplica:
    """One replica of one model, as Serve hosts it: Serve calls it on one loop, and everything runs on another.

    Args:
        deployed: The model and how it scales.
        engine_opener: Makes the Engine; tests put their own here.
        batcher_opener: Makes the Batcher; tests put their own here.
        caller_header: The request header that names the caller.
        ledger: Folder of the request ledger on disk, on this machine or shared by all; None for none.
        group: Which of the model's groups of replicas it is of; "" where there is one.
        others: Handles of the deployments of the other groups, which are an application only as long as one holds them.
    """

    def __init__(
        self,
        deployed: DeployedModel,
        engine_opener: OpenEngine = open_engine,
        batcher_opener: OpenBatcher = open_batcher,
        caller_header: str = CALLER_HEADER,
        ledger: Path | None = None,
        group: str = "",
        others: Sequence[Any] = (),
    ) -> None:
        self._name, self._group = deployed.model.name, group
        scaling = deployed.parts[group].autoscaling
        self._leave_s = scaling.leave_s
        # A replica may use what Ray reserved for it, not the whole machine.
        self._threads = max(1, int(scaling.cpus_per_replica))
        # Whoever runs the application without `deploy` has no front, and calls to it would wait forever.
        has_front = FRONT in serve.status().applications
        self._front = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT) if has_front else None
        # By now the model may be another than when this deployment was made.
        assignment = assigned(RayStore().get(self._name) if has_front else None, deployed.model)

        def open_host(model: ModelConfig) -> ModelHost:
            return ModelHost([model], engine_opener=engine_opener, batcher_opener=batcher_opener, ledger=ledger)

        self._host, serving = load_assigned(assignment, open_host, self._adapt)
        self._follower = Follower(self._host, assignment, self._adapt, serving)
        self._meter = LoadMeter()
        self._load: dict[str, float] = {}
        # Kinds of errors that reports ended with.
        self._untold: set[type[Exception]] = set()
        self._reporting: asyncio.Task[None] | None = None
        self._id = serve.get_replica_context().replica_id.unique_id
        service = ReplicaService(self, self._host, caller_header=caller_header)
        self._app = OipApp(service)
        self._door = Door(self._app, GrpcApp(service))
        self._thread = LoopThread("headrace-replica")
        settle()
        self._address = self._thread.submit(self._open()).result()

    async def _open(self) -> DoorAddress:
        """Takes requests from now on: the ingress need not wait for Serve to notice that there is one more."""
        address = await self._door.open("" if on_head() else ray.util.get_node_ip_address())
        if self._front is None:
            self._follower.follow()
        else:
            self._reporting = asyncio.create_task(self._report_always(address))
        return address

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once, after the constructor."""
        return Bridge(self._app, self._thread)

    def door(self) -> tuple[str, DoorAddress]:
        """Called by the front through a handle: which replica this is, and where it can be reached."""
        return self._id, self._address

    def _adapt(self, model: ModelConfig) -> ModelConfig:
        return adapted(in_group(model, self._group), self._threads)

    async def statistics(self) -> list[dict[str, Any]] | None:
        """The statistics of this model on all replicas, by way of the front; None where there is none."""
        if self._front is None:
            return None
        await self._report(self._address)
        found: list[dict[str, Any]] = await self._front.statistics.remote(self._name)
        return found

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every half a second or more often."""
        if self._host.ready:  # Serve asks until the very end, when there is nothing left to count
            await self._thread.ask(self._measure)
        return self._load

    def _measure(self) -> None:
        """Runs on the application's loop, whose thread's CPU time it looks at."""
        books = self._host.books()[self._name]
        self._load = self._meter.report(sample(self._host.stats().values(), float(books.accepted + books.refused)))

    async def _report_always(self, address: DoorAddress) -> None:
        # Before it opens a candidate: if that is the end of this process, the front must know what it died of.
        await self._report(address)
        self._follower.follow()
        while True:
            await asyncio.sleep(REPORT_S)
            await self._report(address)

    async def _report(self, address: DoorAddress | None, standing: Standing | None = None) -> None:
        """Tells the front what was counted, and follows what it answers. Without an answer all stays as it is.

        Args:
            address: Where requests are taken; None for the last report, when none are.
            standing: How far it has followed its assignment; None for as far as it has now.
        """
        assert self._front is not None, "this is a bug: there is no front to report to"
        try:
            ledger = self._ledger(standing or self._follower.standing(), final=address is None)
            newer = await asyncio.wait_for(self._front.report.remote(ledger, address), REPORT_S_MAX)
            if newer is not None and address is not None:
                self._follower.follow(newer)
        except Exception as error:  # the front may be starting, or gone where everything shuts down
            if type(error) not in self._untold:  # twice a second would be too often
                self._untold.add(type(error))
                log.warning("model %s: the front was not told: %s: %s", self._name, type(error).__name__, error)

    def _ledger(self, standing: Standing, final: bool) -> ReplicaLedger:
        total: Counter[str] = Counter()
        for stats in self._host.stats().values():
            total.update({key: value for key, value in stats.items() if isinstance(value, int | float)})
        # With those of the versions that were closed.
        stats = dict(total) | vars(self._host.books()[self._name])
        versions = tuple(self._host.statistics())
        return ReplicaLedger(
            self._name, self._id, os.getpid(), stats, self._load, final, versions, standing, self._group, self._room()
        )

    def _room(self) -> Room:
        """One request that runs, and what may wait."""
        settings = next((served.settings for served in self._host), None)
        if settings is None:  # it has closed
            return Room(1.0)
        capacity_rps = self._load.get(METRIC_CAPACITY, 0.0)
        if capacity_rps <= 0:
            return Room(float(settings.max_batch))
        return Room(1.0, capacity_rps, queue_delay_s_max(settings.slo_ms))

    async def check_health(self) -> None:
        """Called by Serve every few seconds; raising restarts the replica."""
        if not self._host.ready:
            raise ExecutionError("replica: got state draining, expected ready")
        if self._follower.broken:
            raise ExecutionError(f"replica: got a model that cannot take over, expected it to: {self._follower.broken}")
        if stalled := self._host.stalled():
            raise ExecutionError(f"replica: got a Batch that does not end in {', '.join(stalled)}, expected it to")
        try:
            await asyncio.wait_for(self._thread.ask(lambda: None), LOOP_S_MAX)
        except TimeoutError:
            raise ExecutionError(f"replica: got an event loop stuck for {LOOP_S_MAX:g} s, expected it to run") from None

    async def __del__(self) -> None:
        # Serve calls this once no request of its own is left, or its patience is at an end.
        try:
            await self._thread.run(self._leave())
            await asyncio.to_thread(close_host, self._host)
        finally:
            await asyncio.to_thread(self._thread.stop)

    async def _leave(self) -> None:
        """Answers what was accepted, gives up what is on trial, and says last what was counted of both."""
        await self._door.drain(self._leave_s)
        self._host.drain()
        if self._reporting is not None:
            self._reporting.cancel()
        standing = self._follower.standing()  # what a trial has shown, which ends with it
        closing = asyncio.create_task(self._follower.close())
        if self._front is not None:
            await asyncio.wait({closing}, timeout=LAST_WORDS_S_MAX)
            await self._report(None, standing)
        await closing


class ReplicaService(OipService):
    """What a replica answers: as one server does, but with the statistics of all replicas.

    Args:
        replica: Knows how to ask the front for those.
        host: The model.
        caller_header: The request header that names the caller.
    """

    def __init__(self, replica: ModelReplica, host: ModelHost, *, caller_header: str) -> None:
        super().__init__(host, caller_header=caller_header)
        self._replica = replica

    async def statistics(self, name: str | None, version: str | None) -> dict[str, Any]:
        """The statistics of one version, of every version of one model, or (None) of all."""
        own = await super().statistics(name, version)
        everywhere = await self._replica.statistics()
        if everywhere is None:
            return own
        return {"model_stats": [one for one in everywhere if version in (None, one["version"])]}


def adapted(model: ModelConfig, threads: int) -> ModelConfig:
    """A model as one replica runs it: on what Ray reserved for it.

    Args:
        model: As it was deployed.
        threads: Of a model that does not say.
    """
    settings = model.settings
    if settings.threads is None:
        settings = replace(settings, threads=threads)
    if gpus_of(model):
        settings = replace(settings, device="cuda:0")  # Ray shows a replica its own GPU and no other
    return model if settings is model.settings else replace(model, settings=settings)


def gpus_of(model: ModelConfig) -> int:
    """How many GPUs a replica needs."""
    return int((model.settings.device or "").partition(":")[0] == "cuda")
