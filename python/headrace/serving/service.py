"""What the protocol answers, apart from the wire it goes over: REST (`app`) and gRPC (`grpc_app`) both ask here."""

from __future__ import annotations

import hmac
from importlib import metadata
from typing import Any

from headrace.errors import AccessDenied, NotOffered, Unauthenticated
from headrace.serving.body import BODY_BYTES_MAX, CALLER_HEADER, IN_FLIGHT_BYTES_MAX, InFlight
from headrace.serving.host import ModelHost, ServedModel
from headrace.serving.repository import RepositoryLike
from headrace.serving.statistics import statistics

EXTENSIONS = ("binary_tensor_data", "schedule_policy", "statistics", "model_configuration", "model_repository")


class OipService:
    """One server's state and answers, shared by all of its protocols.

    Attributes:
        host: The models.
        body_bytes_max: Longest request accepted, in bytes.
        caller_header: The request header, or gRPC metadata key, that names the caller; in lower case.
        in_flight: The bytes of all requests held at one time.
        repository: The folder that models are loaded from and unloaded to; None where that is not offered.
        http_responses: HTTP status -> answers, of every route.
        grpc_responses: Name of a gRPC status code -> answers, of every call.
    """

    def __init__(
        self,
        host: ModelHost,
        *,
        body_bytes_max: int = BODY_BYTES_MAX,
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
        caller_header: str = CALLER_HEADER,
        repository: RepositoryLike | None = None,
        admin_token: str | None = None,
    ) -> None:
        self.host = host
        self._repository = repository
        self._admin_token = admin_token
        self.body_bytes_max = body_bytes_max
        self.caller_header = caller_header.lower()
        self.in_flight = InFlight(max(in_flight_bytes_max, body_bytes_max))
        self.http_responses: dict[int, int] = {}
        self.grpc_responses: dict[str, int] = {}

    @property
    def ready(self) -> bool:
        """Whether the server should be sent traffic."""
        return self.host.ready

    async def is_ready(self) -> bool:
        """`ready`, where it may have to be asked for."""
        return self.ready

    def repository(self, authorization: str | None) -> RepositoryLike:
        """The model repository, for those who may use it.

        Args:
            authorization: The value of the request's ``authorization`` header, or gRPC metadata.

        Raises:
            AccessDenied: The server has no token, so nobody may.
            Unauthenticated: The request's is missing or wrong.
            NotOffered: There is no repository here.
        """
        if self._admin_token is None:
            raise AccessDenied(
                "repository: got no token at the server's start, expected one (--admin-token-file or "
                "HEADRACE_ADMIN_TOKEN): without it the repository is closed"
            )
        expected = f"Bearer {self._admin_token}".encode()
        if not hmac.compare_digest((authorization or "").encode("utf-8", "replace"), expected):
            raise Unauthenticated("repository: got no valid token, expected 'authorization: Bearer TOKEN'")
        if self._repository is None:
            raise NotOffered("repository: got a request to a server without one, expected `headrace serve FOLDER`")
        return self._repository

    def drain(self) -> None:
        """The server ends: what was asked is answered, except that no load is waited for."""
        self.host.drain()
        if self._repository is not None:
            self._repository.stop()

    async def statistics(self, name: str | None, version: str | None) -> dict[str, Any]:
        """The statistics of one version, of every version of one model, or (None) of all.

        Raises:
            NotFound: No such model or version.
            BackendUnavailable: It is not ready.
        """
        if name is None:
            found: list[ServedModel] = list(self.host)
        elif version is None:
            self.host.find(name)
            found = [self.host.find(name, one) for one in self.host.versions(name)]
        else:
            found = [self.host.find(name, version)]
        return {"model_stats": [statistics(served) for served in found]}

    def model_config(self, name: str, version: str | None) -> dict[str, Any]:
        """The protocol's model configuration. Requests are batched whatever their shape, hence no batch dimension.

        Raises:
            NotFound: No such model or version.
            BackendUnavailable: It is not ready.
        """
        model = self.model_metadata(name, version)
        return {
            "name": name,
            "platform": model["platform"],
            "backend": model["parameters"]["backend"],
            "max_batch_size": 0,
            "input": [_config_tensor(tensor) for tensor in model["inputs"]],
            "output": [_config_tensor(tensor) for tensor in model["outputs"]],
        }

    def server_metadata(self) -> dict[str, Any]:
        """The server's name, version and protocol extensions."""
        try:
            version = metadata.version("headrace")
        except metadata.PackageNotFoundError:  # run from a source tree that was never installed
            version = "unknown"
        return {"name": "headrace", "version": version, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str | None) -> dict[str, Any]:
        """The protocol's model metadata.

        Raises:
            NotFound: No such model or version.
            BackendUnavailable: It is not ready.
        """
        served = self.host.find(name, version)
        return served.metadata(self.host.versions(name))


def _config_tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    datatype = tensor["datatype"]
    kind = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return {"name": tensor["name"], "data_type": kind, "dims": tensor["shape"]}
