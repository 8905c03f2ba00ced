"""The routes of the server itself, where each model is a Ray Serve application of its own.

Stock clients ask ``/v2/health/ready`` and ``/v2`` before they send anything. Serve routes by the longest prefix, so
what no model's application takes comes here, and a model nobody deployed is answered with the protocol's 404.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from ray import serve

from headrace.errors import NotFound
from headrace.serving.app import JSON, Scope, build_asgi
from headrace.serving.body import Receive, Send
from headrace.serving.errors import error_text, http_status
from headrace.serving.host import ModelHost

FRONT = "headrace-front"


class FrontApp:
    """The ASGI application of the server's routes.

    A class with ``__call__``, because uvicorn takes any other callable that is no plain function for ASGI 2.

    Args:
        names: The models that are deployed beside it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._server = build_asgi(ModelHost([]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI 3)."""
        if scope["type"] == "http" and (name := _model_of(scope["path"])) is not None:
            await _send_not_found(f"model: got {name[:128]!r}, expected one of {', '.join(self._names)}", send)
        else:
            await self._server(scope, receive, send)


class Front:
    """The front application as Serve hosts it.

    Args:
        names: The models that are deployed beside it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def __serve_build_asgi_app__(self) -> FrontApp:
        """Called by Serve once, after the constructor."""
        return FrontApp(self._names)


async def _send_not_found(message: str, send: Send) -> None:
    error = NotFound(message)
    body = msgspec.json.encode({"error": error_text(error)})
    headers = [JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": http_status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _model_of(path: str) -> str | None:
    """The model a path of the protocol names."""
    match path.split("/"):
        case ["", "v2", "models", name, *_]:
            return name
    return None


def build_front(names: Sequence[str]) -> Any:
    """Builds the front application, to be run at the prefix ``/``."""
    deployment = serve.deployment(name="front", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    return deployment(serve.ingress()(Front)).bind(names)
