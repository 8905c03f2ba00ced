"""What the protocol answers, apart from the wire it goes over: REST (`app`) and gRPC (`grpc_app`) both ask here."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from headrace.serving.body import BODY_BYTES_MAX, CALLER_HEADER, IN_FLIGHT_BYTES_MAX, InFlight
from headrace.serving.host import ModelHost

EXTENSIONS = ("binary_tensor_data", "schedule_policy")


class OipService:
    """One server's state and answers, shared by all of its protocols.

    Attributes:
        host: The models.
        body_bytes_max: Longest request accepted, in bytes.
        caller_header: The request header, or gRPC metadata key, that names the caller; in lower case.
        in_flight: The bytes of all requests held at one time.
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
    ) -> None:
        self.host = host
        self.body_bytes_max = body_bytes_max
        self.caller_header = caller_header.lower()
        self.in_flight = InFlight(max(in_flight_bytes_max, body_bytes_max))
        self.http_responses: dict[int, int] = {}
        self.grpc_responses: dict[str, int] = {}

    @property
    def ready(self) -> bool:
        """Whether the server should be sent traffic."""
        return self.host.ready

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
