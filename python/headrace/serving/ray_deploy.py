"""Deploys models on Ray Serve, watches them and takes them away again.

Example::

    with deploy(load_deploy("app.yaml")) as deployment:
        print(deployment.url)
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray import serve

from headrace import __version__
from headrace.config import DeployConfig, DeployedModel
from headrace.errors import ConfigError
from headrace.serving.assignment import Assignment, Edition
from headrace.serving.front import build_front
from headrace.serving.front_ledgers import ReplicaLedger
from headrace.serving.front_shared import (
    FRONT,
    FRONT_DEPLOYMENT,
    MODEL_DEPLOYMENT,
    FrontAddress,
    check_shared,
    digest,
    moved,
    ports,
)
from headrace.serving.ingress.wire import WIRE
from headrace.serving.opening import OpenBatcher, OpenEngine, open_batcher, open_engine
from headrace.serving.ray_build import Making, reserved, run_target
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
from headrace.serving.ray_models import end_model, known_models, running_models, wait_running
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
        found: dict[str, Counter[str]] = {}
        for name in self.models:
            if name in applications and MODEL_DEPLOYMENT in applications[name].deployments:
                found[name] = Counter()
                for deployment in applications[name].deployments.values():
                    found[name].update({str(state): count for state, count in deployment.replica_states.items()})
        return {name: dict(counts) for name, counts in found.items()}

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
        Models that are new or were unloaded are started, and those that are not named any more are drained. Where the
        front listens does not change, and `progress` is told so.

        Args:
            config: What to deploy now.
            progress: Told about each step.
            timeout_s: How long what has to start may take.

        Raises:
            ConfigError: The replicas do not fit on the cluster, or the front would have to be another (its ingress,
                caller header or ledger): nothing has changed. Or what lies there of a model cannot be read: models
                named before it have begun to change.
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
        before, known = running_models(), known_models()
        leaving = set(self.models) - set(names)
        self.models = tuple({*self.models, *names})  # what an end in the middle of this has to take away
        for deployed in config.models:
            _assign(deployed, joins=True, tell=tell)
        # The front first: requests that come from now on are refused, not kept waiting for replicas.
        _tell_front(sorted({*names, *known} - leaving))
        for name in leaving:
            tell(f"draining {name}")
            end_model(name)
            RayStore().delete(name)
        self.models = names
        _tell_front(sorted({*names, *known_models()}))
        making = _making(config, self._openers)
        targets = [run_target(one, making, runs=one.model.name in before) for one in config.models]
        serve.run_many(targets, wait_for_applications_running=False)
        wait_running(names, timeout_s, tell, {*names} - {*before})

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
        _tell_front([name for name in known_models() if name not in self.models])  # first, as in `update`
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
        config: What to deploy; see `headrace.deploy_file.load_deploy`.
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
    making = _making(config, openers)
    before: list[str] | None = None
    front_ran, kept = False, dict[str, bytes]()
    try:
        _check_fits(config.models)
        proxy_url = start_serve(config.http, owns_ray=tag is not None)
        tell(f"loading {', '.join(names)}")
        before, known, front_ran = running_models(), known_models(), FRONT in serve.status().applications
        kept = {name: content for name in known if (content := RayStore().get(name)) is not None}
        token = read_token(None, os.environ.get("HEADRACE_ADMIN_TOKEN"))
        # Before anything changes for the models that run.
        front = _check_front(config, token)
        for deployed in config.models:
            _assign(deployed, front_ran, tell)
        where = front or _run_front(sorted({*names, *known}), config, making, token)
        if front_ran:
            _tell_front(sorted({*names, *known_models()}))
        deployment.url = proxy_url or url(where.host, where.port)
        deployment.grpc = url(where.host, where.grpc_port).removeprefix("http://")
        tell(f"ingress: {INGRESSES[where.ingress]}")
        targets = [run_target(one, making, runs=one.model.name in before) for one in config.models]
        serve.run_many(targets, wait_for_applications_running=False)
        wait_running((FRONT, *names), timeout_s, tell, names)
    except BaseException as error:
        try:
            if before is not None and tag is None:
                _take_back([name for name in names if name not in before], kept, front_ran)
        except Exception as also:
            error.add_note(f"What had begun could not be taken back: {type(also).__name__}: {also}")
        finally:
            if tag is not None:
                deployment.shutdown()
        raise
    return deployment


def _take_back(names: Sequence[str], kept: Mapping[str, bytes], front_ran: bool) -> None:
    """After a deployment that failed: what ran before it stays, the front included, and what was unloaded is again."""
    _delete_models(names)
    for name in names:
        if name in kept:
            RayStore().put(name, kept[name])
    others = [name for name in known_models() if name not in names or name in kept]
    if FRONT not in serve.status().applications:
        return
    if front_ran:
        _tell_front(others)
    else:
        serve.delete(FRONT, _blocking=True)


def _delete_models(names: Sequence[str]) -> list[str]:
    """Drains and deletes models; returns those that are left."""
    for name in names:
        end_model(name)
        RayStore().delete(name)
    return [name for name in known_models() if name not in names]


def _making(config: DeployConfig, openers: tuple[OpenEngine, OpenBatcher]) -> Making:
    return Making(config.http.ingress, config.http.caller_header, config.ledger, *openers)


def _assign(deployed: DeployedModel, joins: bool, tell: Callable[[str], None]) -> None:
    """Says what the replicas of a model are to serve, before any of them starts, or to those that run.

    Args:
        deployed: The model.
        joins: Whether there is a front. What that knows already it decides on alone, and it knows what was rolled back.
        tell: Told what comes of it.
    """
    name, edition = deployed.model.name, Edition.of(deployed.model, deployed.source)
    if not joins or RayStore().get(name) is None:
        first = Assignment(generation=1, running=edition, scaling=deployed.autoscaling)
        RayStore().put(name, first.encode())
        return
    handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
    status = handle.bring.remote(name, edition, deployed.autoscaling).result(timeout_s=30)
    if "rolled_back" in status:
        gone = status["rolled_back"]
        tell(f"{name} version {gone['version']} was rolled back, and is not tried again as it is: {gone['reason']}")
    elif "candidate" in status:
        tell(f"{name} version {status['candidate']['version']} is brought in ({status['candidate']['mode']})")


def _check_fits(models: Sequence[DeployedModel]) -> None:
    """One replica of each model must fit; Serve would otherwise wait for CPUs or GPUs that never come."""
    resources = ray.cluster_resources()
    parts = [part for model in models for part in model.parts.values()]
    need: dict[str, float] = {}
    for part in parts:
        for name, amount in reserved(part).items():
            need[name] = need.get(name, 0.0) + max(1, part.autoscaling.min_replicas) * amount
    keys = {"CPU": ("autoscaling.cpus_per_replica", "CPUs"), "GPU": ("settings.device", "GPUs")}
    for name, amount in need.items():
        have = float(resources.get(name, 0))
        if amount > have + 1e-9:
            key, what = keys.get(name, ("autoscaling.resources", f"of {name!r}"))
            raise ConfigError(
                f"{key}: got {amount:g} {what} for the first replicas of {len(models)} models, "
                f"expected at most the cluster's {have:g}"
            )


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


def _run_front(names: Sequence[str], config: DeployConfig, making: Making, admin_token: str | None) -> FrontAddress:
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
        version=__version__,
        wire=WIRE,
    )
    # It takes what the store has for what is deployed; Serve's own shutdown takes the models, but leaves that behind.
    store = RayStore()
    for name in set(store.names()) - set(names):
        store.delete(name)
    front = build_front(names, where, making, admin_token)
    prefix = "/" if http.ingress == "ray" else None
    serve.run_many([serve.RunTarget(front, name=FRONT, route_prefix=prefix)], wait_for_applications_running=False)
    return where
