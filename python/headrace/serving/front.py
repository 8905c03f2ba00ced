"""The routes of the server itself, where each model is a Ray Serve application of its own.

Stock clients ask ``/v2/health/ready`` and ``/v2`` before they send anything. Serve routes by the longest prefix, so
what no model's application takes comes here, and a model nobody deployed is answered with the protocol's 404.

It also keeps the ledgers of all replicas, those that are gone included: a replica reports twice a second while it lives
and once more when it has drained, so that the counts of a deployment balance across every scale-down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from ray import serve

from headrace.errors import ConfigError, NotFound
from headrace.observe.ledger import Books, totals
from headrace.observe.ledger import read as read_ledger
from headrace.serving import grpc_server
from headrace.serving.app import JSON, OipApp, Scope
from headrace.serving.assignment import Assignment, Assignments, Edition, Standing
from headrace.serving.body import BODY_BYTES_MAX, CALLER_HEADER, Receive, Send
from headrace.serving.errors import error_text, http_status
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_repository import DeployedRepository
from headrace.serving.host import ModelHost
from headrace.serving.ray_store import RayStore
from headrace.serving.service import OipService
from headrace.serving.statistics import merged

# Name of the application, and of the deployment in it.
FRONT = "headrace-front"
FRONT_DEPLOYMENT = "front"
# Name of the deployment in each model's application.
MODEL_DEPLOYMENT = "model"
# Calls that still run when the front has to go get so long.
GRPC_DRAIN_S_MAX = 10


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


class FrontApp:
    """The ASGI application of the server's routes.

    A class with ``__call__``, because uvicorn takes any other callable that is no plain function for ASGI 2.

    Attributes:
        names: The models that are deployed beside it.
    """

    def __init__(self, books: Callable[[], dict[str, Books]], service: OipService, grpc: GrpcFront | None) -> None:
        self.names: tuple[str, ...] = ()
        self._books = books
        self._server = OipApp(service)
        self._grpc = grpc
        self._handles: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http" and scope["path"] == "/v2/ledger" and scope["method"] in ("GET", "HEAD"):
            await send_json(200, msgspec.json.encode(self._books()), send)
        elif scope["type"] == "http" and (name := _model_of(scope["path"])) is not None:
            await _send_not_found(f"model: got {name[:128]!r}, expected one of {', '.join(self.names)}", send)
        else:
            await self._server(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Listens for gRPC as long as the application lives."""
        await receive()
        listener = None
        try:
            if self._grpc is not None:
                app = FrontGrpcApp(self._server.service, self._handle_of)
                listener = await grpc_server.start(app, self._grpc.host, self._grpc.port, BODY_BYTES_MAX)
        except ConfigError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if listener is not None:
            await listener.server.stop(GRPC_DRAIN_S_MAX)
        await send({"type": "lifespan.shutdown.complete"})

    def _handle_of(self, name: str) -> Any:
        if name not in self.names:
            raise NotFound(f"model: got {name[:128]!r}, expected one of {', '.join(self.names)}")
        if name not in self._handles:
            # Kept, because each one made starts a router of its own.
            self._handles[name] = serve.get_deployment_handle(MODEL_DEPLOYMENT, app_name=name)
        return self._handles[name]


@dataclass(frozen=True)
class GrpcFront:
    """Where the front listens for gRPC: an address of the machine it runs on, which is Ray's head, and a port."""

    host: str
    port: int


class FrontService(OipService):
    """What the front answers itself: nothing about one model alone, and the statistics of all."""

    def __init__(self, front: Front, caller_header: str, admin_token: str | None) -> None:
        super().__init__(
            ModelHost([]), caller_header=caller_header, repository=DeployedRepository(front), admin_token=admin_token
        )
        self._front = front

    async def statistics(self, name: str | None, version: str | None) -> dict[str, Any]:
        """The statistics of one version, of every version of one model, or (None) of all."""
        if name is not None and name not in self._front.names:
            raise NotFound(f"model: got {name[:128]!r}, expected one of {', '.join(self._front.names)}")
        found = self._front.statistics(name)
        if version is not None:
            found = [one for one in found if one["version"] == version]
            if not found:
                raise NotFound(f"model {name!r}: got version {version[:32]!r}, expected a version that is deployed")
        return {"model_stats": found}


class Front:
    """The front application as Serve hosts it.

    Args:
        names: The models that are deployed beside it.
        ledger: Folder of the request ledger on disk; None to go by what the replicas report.
        grpc: Where to listen for gRPC; None for nowhere.
        caller_header: The request header that names the caller.
        admin_token: Who brings it may see the repository's index; None for nobody.
    """

    def __init__(
        self,
        names: Sequence[str],
        ledger: Path | None = None,
        grpc: GrpcFront | None = None,
        caller_header: str = CALLER_HEADER,
        admin_token: str | None = None,
    ) -> None:
        self._ledgers: dict[str, dict[str, ReplicaLedger]] = {}
        self.assignments = Assignments(RayStore())
        self._ledger = ledger
        self._grpc = grpc
        self._app = FrontApp(self.books, FrontService(self, caller_header, admin_token), grpc)
        self._app.names = tuple(names)

    def __serve_build_asgi_app__(self) -> FrontApp:
        """Called by Serve once, after the constructor."""
        return self._app

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are deployed beside it."""
        return self._app.names

    def grpc(self) -> GrpcFront | None:
        """Called through a handle by a deployment that joins this one: where gRPC is listened for."""
        return self._grpc

    def statistics(self, name: str | None) -> list[dict[str, Any]]:
        """The protocol's statistics by version, of one model or (None) of all, over the replicas that are gone too."""
        models = self._ledgers if name is None else {name: self._ledgers.get(name, {})}
        return merged(
            entry for replicas in models.values() for replica in replicas.values() for entry in replica.statistics
        )

    def set_names(self, names: Sequence[str]) -> None:
        """Called through a handle whenever models come or go: a second deployment would lose the ledgers."""
        self._app.names = tuple(names)
        self.assignments.forget()

    def bring(self, name: str, edition: Edition) -> dict[str, Any]:
        """Called through a handle by whoever deploys a model again; see `Assignments.bring`."""
        self.assignments.bring(name, edition)
        return self.assignments.status(name)

    def rollouts(self) -> dict[str, dict[str, Any]]:
        """Called through a handle: what each model's replicas serve and are to serve."""
        return {name: self.assignments.status(name) for name in self.names}

    def report(self, ledger: ReplicaLedger) -> Assignment | None:
        """Called by the replicas through their handle; the latest report of each is kept, its last words for good.

        Returns:
            What the replica is to serve, where it does not know that yet.
        """
        replicas = self._ledgers.setdefault(ledger.model, {})
        known = replicas.get(ledger.replica)
        if known is None or not known.final:
            replicas[ledger.replica] = ledger
        if ledger.standing is None:
            return None
        return self.assignments.report(ledger.model, ledger.replica, ledger.standing, ledger.final)

    def books(self) -> dict[str, Books]:
        """The books of each model: exact where there is a ledger on disk, else of what the replicas last reported."""
        if self._ledger is not None:
            return totals(read_ledger(self._ledger))
        return {
            model: sum((Books.of_stats(replica.stats) for replica in replicas.values()), Books())
            for model, replicas in self._ledgers.items()
        }

    def ledgers(self) -> dict[str, list[ReplicaLedger]]:
        """Every replica's latest report by model, oldest replica first."""
        return {model: list(replicas.values()) for model, replicas in self._ledgers.items()}


async def _send_not_found(message: str, send: Send) -> None:
    error = NotFound(message)
    await send_json(http_status(error), msgspec.json.encode({"error": error_text(error)}), send)


async def send_json(status: int, body: bytes, send: Send) -> None:
    """Sends one answer."""
    headers = [JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _model_of(path: str) -> str | None:
    """The model a path of the protocol names."""
    if path == "/v2/models/stats":
        return None
    match path.split("/"):
        case ["", "v2", "models", name, *_]:
            return name
    return None


def build_front(
    names: Sequence[str],
    ledger: Path | None = None,
    grpc: GrpcFront | None = None,
    caller_header: str = CALLER_HEADER,
    admin_token: str | None = None,
) -> Any:
    """Builds the front application, to be run at the prefix ``/``; the arguments are `Front`'s."""
    deployment = serve.deployment(
        name=FRONT_DEPLOYMENT,
        max_ongoing_requests=1000,
        # While the front is away its callers drop what they cannot send: a newer report comes twice a second.
        max_queued_requests=100,
        # On the head, where Serve's proxy listens too.
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )
    return deployment(serve.ingress()(Front)).bind(names, ledger, grpc, caller_header, admin_token)
