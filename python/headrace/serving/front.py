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

from headrace.errors import NotFound
from headrace.observe.ledger import Books, totals
from headrace.observe.ledger import read as read_ledger
from headrace.serving.app import JSON, Scope, build_asgi
from headrace.serving.body import Receive, Send
from headrace.serving.errors import error_text, http_status
from headrace.serving.host import ModelHost

# Name of the application, and of the deployment in it.
FRONT = "headrace-front"
FRONT_DEPLOYMENT = "front"


@dataclass(frozen=True)
class ReplicaLedger:
    """What one replica counted until now.

    Attributes:
        model: The model it serves.
        replica: Serve's id of the replica.
        pid: Its process.
        stats: Its Batcher's ledger, with the Requests ``rejected`` before they got there.
        load: What it told the autoscaling policy.
        final: True once it has drained: these are its last words.
    """

    model: str
    replica: str
    pid: int
    stats: dict[str, Any]
    load: dict[str, float]
    final: bool


class FrontApp:
    """The ASGI application of the server's routes.

    A class with ``__call__``, because uvicorn takes any other callable that is no plain function for ASGI 2.

    Attributes:
        names: The models that are deployed beside it.
    """

    def __init__(self, books: Callable[[], dict[str, Books]]) -> None:
        self.names: tuple[str, ...] = ()
        self._books = books
        self._server = build_asgi(ModelHost([]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI 3)."""
        if scope["type"] == "http" and scope["path"] == "/v2/ledger" and scope["method"] in ("GET", "HEAD"):
            await send_json(200, msgspec.json.encode(self._books()), send)
        elif scope["type"] == "http" and (name := _model_of(scope["path"])) is not None:
            await _send_not_found(f"model: got {name[:128]!r}, expected one of {', '.join(self.names)}", send)
        else:
            await self._server(scope, receive, send)


class Front:
    """The front application as Serve hosts it.

    Args:
        names: The models that are deployed beside it.
        ledger: Folder of the request ledger on disk; None to go by what the replicas report.
    """

    def __init__(self, names: Sequence[str], ledger: Path | None = None) -> None:
        self._ledgers: dict[str, dict[str, ReplicaLedger]] = {}
        self._ledger = ledger
        self._app = FrontApp(self.books)
        self._app.names = tuple(names)

    def __serve_build_asgi_app__(self) -> FrontApp:
        """Called by Serve once, after the constructor."""
        return self._app

    def set_names(self, names: Sequence[str]) -> None:
        """Called through a handle whenever models come or go: a second deployment would lose the ledgers."""
        self._app.names = tuple(names)

    def report(self, ledger: ReplicaLedger) -> None:
        """Called by the replicas through their handle; the latest report of each is kept, its last words for good."""
        replicas = self._ledgers.setdefault(ledger.model, {})
        known = replicas.get(ledger.replica)
        if known is None or not known.final:
            replicas[ledger.replica] = ledger

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
    match path.split("/"):
        case ["", "v2", "models", name, *_]:
            return name
    return None


def build_front(names: Sequence[str], ledger: Path | None = None) -> Any:
    """Builds the front application, to be run at the prefix ``/``; the arguments are `Front`'s."""
    deployment = serve.deployment(
        name=FRONT_DEPLOYMENT,
        max_ongoing_requests=1000,
        # While the front is away its callers drop what they cannot send: a newer report comes twice a second.
        max_queued_requests=100,
        ray_actor_options={"num_cpus": 0},
    )
    return deployment(serve.ingress()(Front)).bind(names, ledger)
