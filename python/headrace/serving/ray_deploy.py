"""Deploys models on Ray Serve, watches them and takes them away again.

Example::

    with deploy(load_deploy("app.yaml")) as deployment:
        print(deployment.url)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray import serve

from headrace.config import DeployConfig, DeployedModel
from headrace.errors import ConfigError, ExecutionError
from headrace.serving.assignment import Assignment, Edition
from headrace.serving.front import FRONT, FRONT_DEPLOYMENT, FrontAddress, ReplicaLedger, build_front
from headrace.serving.front_shared import check_shared, digest, moved, ports
from headrace.serving.host import OpenBatcher, OpenEngine, open_batcher, open_engine
from headrace.serving.ray_app import DEPLOYMENT, build_app, gpus_of, replica_code
from headrace.serving.ray_cluster import (
    EXIT_S_MAX,
    check_port,
    connect,
    free_port,
    processes,
    start_serve,
    stop,
    url,
)
from headrace.serving.ray_store import RayStore
from headrace.serving.repository import read_token

# How the choice of ingress is told.
INGRESSES = {"headrace": "Headrace's own", "ray": "Ray Serve's proxy"}


@dataclass
class Deployment:
    """Models running on Ray Serve, and the way to stop them. Also a context manager.

    Attributes:
        url: Where the server answers, ``http://HOST:PORT``.
        models: The models' names.
        grpc: Where it answers gRPC, ``HOST:PORT``.
        tag: What the processes of the Ray that `deploy` started carry in their environment; None if it joined one.
    """

    url: str
    models: tuple[str, ...]
    tag: str | None = None
    grpc: str = ""
    _left: list[int] | None = field(default=None, repr=False)
    _openers: tuple[OpenEngine, OpenBatcher] = field(default=(open_engine, open_batcher), repr=False)

    def replicas(self) -> dict[str, dict[str, int]]:
        """Replicas of each model by Serve's state: ``{"tickets": {"RUNNING": 1, "STARTING": 1}}``."""
        applications = serve.status().applications
        return {
            name: {
                str(state): count for state, count in applications[name].deployments[DEPLOYMENT].replica_states.items()
            }
            for name in self.models
            if name in applications and DEPLOYMENT in applications[name].deployments
        }

    def ledgers(self) -> dict[str, list[ReplicaLedger]]:
        """What every replica counted, the ones that are gone included: at most half a second old."""
        handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
        known: dict[str, list[ReplicaLedger]] = handle.ledgers.remote().result(timeout_s=10)
        return {name: known.get(name, []) for name in self.models}

    def rollouts(self) -> dict[str, dict[str, Any]]:
        """What each model's replicas serve and are to serve; see `headrace.serving.assignment.Assignments.status`."""
        handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
        known: dict[str, dict[str, Any]] = handle.rollouts.remote().result(timeout_s=10)
        return {name: known.get(name, {}) for name in self.models}

    def update(
        self, config: DeployConfig, *, progress: Callable[[str], None] | None = None, timeout_s: float = 300.0
    ) -> None:
        """Brings a changed configuration into what runs, without losing a request.

        What a model is served from changes in its replicas, as its ``[rollout]`` settings say: this returns when that
        has begun, and `rollouts` tells how it goes. What a replica is made of (its CPUs) changes by new replicas.
        Models that are new are started, and those that are not named any more are drained. Where the front listens
        does not change, and `progress` is told so.

        Args:
            config: What to deploy now.
            progress: Told about each step.
            timeout_s: How long what has to start may take.

        Raises:
            ConfigError: The replicas do not fit on the cluster, or the front would have to be another (its ingress,
                caller header or ledger); nothing has changed.
            ExecutionError: A model did not come up.
        """
        tell = progress or (lambda step: None)
        names = tuple(deployed.model.name for deployed in config.models)
        _check_fits(config.models)
        handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
        where = handle.where.remote().result(timeout_s=30)
        check_shared(where, config, None)
        if elsewhere := moved(where, config.http):
            tell(f"{'; '.join(elsewhere)}, where the front goes on listening")
        before = _deployed_models()
        for deployed in config.models:
            _assign(deployed, deployed.model.name in before, tell)
        leaving = set(self.models) - set(names)
        # The front first: requests that come from now on are refused, not kept waiting for replicas.
        _tell_front(sorted({*names, *before} - leaving))
        for name in leaving:
            tell(f"draining {name}")
            serve.delete(name, _blocking=True)
            RayStore().delete(name)
        self.models = names
        _tell_front(sorted({*names, *_deployed_models()}))
        serve.run_many(_targets(config, self._openers, before), wait_for_applications_running=False)
        _wait_running(names, timeout_s, tell, {*names} - {*before})

    def processes(self) -> list[int]:
        """The ids of the processes that Ray started for us and that still run; [] where we joined a running Ray."""
        return [] if self.tag is None else processes(self.tag)

    def shutdown(self, timeout_s: float = EXIT_S_MAX) -> list[int]:
        """Drains and stops the models, and Ray where we started it.

        Args:
            timeout_s: How long Ray's processes may take to go before they are killed.

        Returns:
            The ids of processes that were still there in the end: [] when all went well. Calling it again does no
            more than to return the same.
        """
        if self._left is None:
            # A Ray that died already must not keep us from cleaning up what is left of it.
            with contextlib.suppress(Exception) if self.tag else contextlib.nullcontext():
                self._delete()
            self._left = stop(self.tag, timeout_s) if self.tag else []
        return self._left

    def _delete(self) -> None:
        """Takes our applications away: each answers what it has, and other people's stay."""
        _tell_front([name for name in _deployed_models() if name not in self.models])  # first, as in `update`
        others = _delete_models(self.models)
        if others:
            _tell_front(others)
        else:
            serve.delete(FRONT, _blocking=True)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def deploy(
    config: DeployConfig,
    *,
    progress: Callable[[str], None] | None = None,
    timeout_s: float = 300.0,
    engine_opener: OpenEngine = open_engine,
    batcher_opener: OpenBatcher = open_batcher,
) -> Deployment:
    """Deploys models on Ray Serve and waits until each has a replica that answers.

    Joins the Ray this process is connected to, or the one ``RAY_ADDRESS`` names; otherwise starts one on this machine,
    without its dashboard, listening on the loopback address, with a random access token.

    Args:
        config: What to deploy; see `headrace.config.load_deploy`.
        progress: Told about each step.
        timeout_s: How long the models may take to come up.
        engine_opener: Makes the Engine of a replica; tests put their own here.
        batcher_opener: Makes the Batcher of a replica; tests put their own here.

    Raises:
        ConfigError: The replicas do not fit on the cluster, or the port is taken.
        ExecutionError: A model did not come up.
    """
    tell = progress or (lambda step: None)
    tag = connect(tell)
    names = tuple(deployed.model.name for deployed in config.models)
    openers = engine_opener, batcher_opener
    deployment = Deployment("", names, tag, _openers=openers)
    before: list[str] | None = None
    front_ran = False
    try:
        _check_fits(config.models)
        proxy_url = start_serve(config.http, owns_ray=tag is not None)
        tell(f"loading {', '.join(names)}")
        before, front_ran = _deployed_models(), FRONT in serve.status().applications
        token = read_token(None, os.environ.get("HEADRACE_ADMIN_TOKEN"))
        # Before anything changes for the models that run.
        front = _check_front(config, token)
        for deployed in config.models:
            _assign(deployed, deployed.model.name in before, tell)
        where = front or _run_front(sorted({*names, *before}), config, token)
        if front_ran:
            _tell_front(sorted({*names, *_deployed_models()}))
        deployment.url = proxy_url or url(where.host, where.port)
        deployment.grpc = url(where.host, where.grpc_port).removeprefix("http://")
        tell(f"ingress: {INGRESSES[where.ingress]}")
        serve.run_many(_targets(config, openers, before), wait_for_applications_running=False)
        _wait_running((FRONT, *names), timeout_s, tell, names)
    except BaseException as error:
        try:
            if before is not None and tag is None:
                _take_back([name for name in names if name not in before], front_ran)
        except Exception as also:
            error.add_note(f"What had begun could not be taken back: {type(also).__name__}: {also}")
        finally:
            if tag is not None:
                deployment.shutdown()
        raise
    return deployment


def _take_back(names: Sequence[str], front_ran: bool) -> None:
    """After a deployment that failed: what ran before it stays, the front included."""
    others = _delete_models(names)
    if FRONT not in serve.status().applications:
        return
    if front_ran:
        _tell_front(others)
    else:
        serve.delete(FRONT, _blocking=True)


def _delete_models(names: Sequence[str]) -> list[str]:
    """Drains and deletes models; returns those that are left."""
    for name in names:
        serve.delete(name, _blocking=True)
        RayStore().delete(name)
    return [name for name in _deployed_models() if name not in names]


def _targets(
    config: DeployConfig, openers: tuple[OpenEngine, OpenBatcher], running: Collection[str]
) -> list[serve.RunTarget]:
    return [
        serve.RunTarget(
            build_app(
                deployed,
                engine_opener=openers[0],
                batcher_opener=openers[1],
                caller_header=config.http.caller_header,
                ledger=config.ledger,
                code=replica_code(deployed, openers, config.http.caller_header, config.ledger),
                surge_percent=_surge_percent(deployed),
                runs=deployed.model.name in running,
            ),
            name=deployed.model.name,
            # Behind our own ingress a model can be reached in no other way.
            route_prefix=f"/v2/models/{deployed.model.name}" if config.http.ingress == "ray" else None,
        )
        for deployed in config.models
    ]


def _surge_percent(deployed: DeployedModel) -> int:
    """New replicas start before old ones go where one of them fits: Serve would wait for ever for one that does not."""
    free = ray.available_resources()
    has_cpus = free.get("CPU", 0) + 1e-9 >= deployed.autoscaling.cpus_per_replica
    return 100 if has_cpus and free.get("GPU", 0) >= gpus_of(deployed.model) else 0


def _assign(deployed: DeployedModel, runs: bool, tell: Callable[[str], None]) -> None:
    """Says what the replicas of a model are to serve, before any of them starts, or to those that run."""
    name, edition = deployed.model.name, Edition.of(deployed.model, deployed.source)
    if not runs:
        RayStore().put(name, Assignment(generation=1, running=edition).encode())
        return
    handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
    status = handle.bring.remote(name, edition).result(timeout_s=30)
    if "rolled_back" in status:
        gone = status["rolled_back"]
        tell(f"{name} version {gone['version']} was rolled back, and is not tried again as it is: {gone['reason']}")
    elif "candidate" in status:
        tell(f"{name} version {status['candidate']['version']} is brought in ({status['candidate']['mode']})")


def _check_fits(models: Sequence[DeployedModel]) -> None:
    """One replica of each model must fit; Serve would otherwise wait for CPUs or GPUs that never come."""
    resources = ray.cluster_resources()
    have, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    need = sum(max(1, m.autoscaling.min_replicas) * m.autoscaling.cpus_per_replica for m in models)
    if need > have + 1e-9:
        raise ConfigError(
            f"autoscaling.cpus_per_replica: got {need:g} CPUs for the first replicas of {len(models)} models, "
            f"expected at most the cluster's {have:g}"
        )
    need = sum(max(1, m.autoscaling.min_replicas) * gpus_of(m.model) for m in models)
    if need > gpus:
        raise ConfigError(
            f"settings.device: got {need:g} GPUs for the first replicas of {len(models)} models, one for each, "
            f"expected at most the cluster's {gpus:g}"
        )


def _deployed_models() -> list[str]:
    """The models of every Headrace deployment on this Serve, other people's included."""
    applications = serve.status().applications
    return sorted(name for name, app in applications.items() if name != FRONT and DEPLOYMENT in app.deployments)


def _tell_front(names: Sequence[str]) -> Any:
    """Tells the front application which models there are now, and returns its handle."""
    handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
    handle.set_names.remote(list(names)).result(timeout_s=30)
    return handle


def _check_front(config: DeployConfig, admin_token: str | None) -> FrontAddress | None:
    """Where the front listens; None where there is none, and one can listen as `config` says.

    Raises:
        ConfigError: A port is taken, or the front that runs is another than `config` wants.
    """
    http = config.http
    if FRONT not in serve.status().applications:
        for port in filter(None, ports(http)):
            check_port(http.host, port)
        return None
    handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
    found: FrontAddress = handle.where.remote().result(timeout_s=30)
    check_shared(found, config, admin_token)
    if elsewhere := moved(found, http):
        raise ConfigError(f"{'; '.join(elsewhere)}, where the front listens")
    return found


def _run_front(names: Sequence[str], config: DeployConfig, admin_token: str | None) -> FrontAddress:
    """Runs the front application, and says where it listens."""
    http = config.http
    rest, calls = ports(http)
    where = FrontAddress(
        ingress=http.ingress,
        host=http.host,
        # Ports are chosen here, so that the front takes the same ones if it has to start again.
        port=rest or free_port(http.host),
        grpc_port=calls or free_port(http.host),
        caller_header=http.caller_header.lower(),
        ledger=config.ledger,
        token_digest="" if admin_token is None else digest(admin_token),
    )
    # It takes what the store has for what is deployed; Serve's own shutdown takes the models, but leaves that behind.
    store = RayStore()
    for name in set(store.names()) - set(names):
        store.delete(name)
    front = build_front(names, where, config.ledger, http.caller_header, admin_token)
    prefix = "/" if http.ingress == "ray" else None
    serve.run_many([serve.RunTarget(front, name=FRONT, route_prefix=prefix)], wait_for_applications_running=False)
    return where


def _wait_running(
    names: Sequence[str], timeout_s: float, tell: Callable[[str], None], starting: Collection[str]
) -> None:
    deadline = time.monotonic() + timeout_s
    waiting = list(names)
    while waiting:
        applications = serve.status().applications
        for name in list(waiting):
            status = applications[name].status if name in applications else "NOT_STARTED"
            if status == "RUNNING":
                waiting.remove(name)
                if name in starting:
                    tell(f"{name} is ready")
            elif status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ExecutionError(
                    f"model {name!r}: got Serve status {status}, expected RUNNING\n{_why(applications[name])}"
                )
        if waiting and time.monotonic() > deadline:
            raise ExecutionError(
                f"deploy: got no ready {', '.join(waiting)} after {timeout_s:g} s, expected all RUNNING"
            )
        time.sleep(0.1)


def _why(application: Any) -> str:
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    return "\n".join(message for message in messages if message)
