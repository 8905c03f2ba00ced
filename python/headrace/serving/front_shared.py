"""What all deployments beside one front share, and so cannot each have their own way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from headrace import __version__
from headrace.config import DeployConfig, HttpConfig
from headrace.errors import ConfigError
from headrace.serving.body import CALLER_HEADER
from headrace.serving.ingress.wire import WIRE

# Name of the application, and of the deployment in it.
FRONT = "headrace-front"
FRONT_DEPLOYMENT = "front"
# Name of the deployment in each model's application; of the first, where its replicas are of several groups.
MODEL_DEPLOYMENT = "model"


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
        version: Which Headrace it is; "" for one that did not say so yet.
        wire: What it says to its replicas and understands of them; 0 for one that did not say so yet.
    """

    ingress: str
    host: str
    port: int
    grpc_port: int
    caller_header: str = CALLER_HEADER
    ledger: Path | None = None
    token_digest: str = field(default="", repr=False)
    version: str = ""
    wire: int = 0


def check_shared(found: FrontAddress, config: DeployConfig, admin_token: str | None) -> None:
    """What all deployments beside one front share: replicas that took another header would never get it from there.

    Raises:
        ConfigError: It is another.
    """
    if found.version != __version__:
        # Replicas are of the Headrace that deploys them, and a front understands those of its own.
        raise ConfigError(
            f"headrace: got version {__version__}, expected {found.version or 'an older one'}, which the running front "
            "is: deploy with that, or end its deployments first"
        )
    if found.wire != WIRE:
        raise ConfigError(
            f"headrace: got a build of {__version__} whose wire format is number {WIRE}, expected number {found.wire}, "
            "which the running front has: deploy with its build, or end its deployments first"
        )
    wanted = config.http.ingress, config.http.caller_header.lower(), config.ledger
    have = found.ingress, found.caller_header, found.ledger
    for key, got, expected in zip(("http.ingress", "http.caller_header", "ledger"), wanted, have, strict=True):
        if got != expected:
            raise ConfigError(f"{key}: got {got}, expected {expected}, as the running front has it")
    if admin_token is not None and digest(admin_token) != found.token_digest:
        raise ConfigError("HEADRACE_ADMIN_TOKEN: got another token, expected the running front's, or none")


def moved(found: FrontAddress, http: HttpConfig) -> list[str]:
    """Where a front would listen elsewhere than the one that runs."""
    rest = http.port if found.ingress == "headrace" else 0
    got = {"host": http.host, "port": rest or found.port, "grpc_port": http.grpc_port or found.grpc_port}
    return [
        f"http.{key}: got {value}, expected {getattr(found, key)}{'' if key == 'host' else ' (or 0)'}"
        for key, value in got.items()
        if value != getattr(found, key)
    ]


def deployment_of(groups: Iterable[str], group: str) -> str:
    """The name of the Serve deployment with one group of a model's replicas.

    Args:
        groups: All of them, in the order in which they are filled.
        group: The one.
    """
    return MODEL_DEPLOYMENT if group == next(iter(groups), group) else f"{MODEL_DEPLOYMENT}-{group}"


def digest(token: str) -> str:
    """What can be compared with a token, and shows nothing of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def ports(http: HttpConfig) -> tuple[int, int]:
    """The ports on which a front is to take REST and gRPC; 0 for any that is free."""
    rest = http.port if http.ingress == "headrace" else 0
    return rest, http.grpc_port if http.grpc_port is not None else http.port + 1 if http.port else 0
