"""Headrace on Ray Serve: one application per model, each with its own replicas and its own scale.

A replica is a `ModelHost` with one model and the same ASGI application that ``headrace serve`` runs, mounted at
``/v2/models/NAME``; the routes of the server itself (``/v2``, ``/v2/health/...``) are answered by a small front
application. Requests are queued, batched and refused by our Batcher, not by Serve: Serve may hand a replica as many
requests as its Batcher has room for.

    deployment = deploy(load_deploy("app.yaml"))
    print(deployment.url)
    deployment.shutdown()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgspec

from headrace.config import DeployConfig, DeployedModel, HttpConfig
from headrace.errors import BackendUnavailable, ConfigError, ExecutionError
from headrace.serving.app import build_asgi
from headrace.serving.autoscaling import SloPolicy
from headrace.serving.front import FRONT, FRONT_DEPLOYMENT, ReplicaLedger, build_front
from headrace.serving.host import ModelHost, OpenBatcher, OpenEngine, open_batcher, open_engine
from headrace.serving.load import LoadMeter, sample

try:
    import ray
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, HTTPOptions
    from ray.serve.context import _get_global_client
    from ray.serve.schema import LoggingConfig
except ModuleNotFoundError as error:
    raise BackendUnavailable(f"Ray Serve: got {error}, expected it installed: pip install 'headrace[ray]'") from error

DEPLOYMENT = "model"
# Replicas and callers push their metrics this often; the policy cannot react faster than that.
METRICS_INTERVAL_S = 0.5
# Window Serve averages its own counts over. Longer would keep an idle model "busy" for as long.
LOOK_BACK_S = 1.0
# Queue delay at which the policy counts the objective as broken, where the model has no slo_ms.
QUEUE_DELAY_S_DEFAULT = 0.1
# Serve polls a draining replica this often, and kills it after the longer time.
DRAIN_POLL_S = 0.2
DRAIN_S_MAX = 30.0
# How long a drained replica waits for its last report to arrive.
LAST_REPORT_S_MAX = 2.0
# Requests are small and live in the replicas; the object store only carries control messages.
OBJECT_STORE_BYTES = 128 << 20
# Every process of a Ray cluster we start inherits this, which is how they are found again at the end.
TAG_VARIABLE = "HEADRACE_DEPLOYMENT_TAG"


class ModelReplica:
    """One replica of one model, as Serve hosts it.

    Args:
        deployed: The model and how it scales.
        engine_opener: Makes the Engine; tests put their own here.
        batcher_opener: Makes the Batcher; tests put their own here.
    """

    def __init__(
        self,
        deployed: DeployedModel,
        engine_opener: OpenEngine = open_engine,
        batcher_opener: OpenBatcher = open_batcher,
    ) -> None:
        settings = deployed.model.settings
        if settings.threads is None:
            # A replica may use what Ray reserved for it, not the whole machine.
            threads = max(1, int(deployed.autoscaling.cpus_per_replica))
            settings = msgspec.structs.replace(settings, threads=threads)
        model = msgspec.structs.replace(deployed.model, settings=settings)
        self._host = ModelHost([model], engine_opener=engine_opener, batcher_opener=batcher_opener)
        self._host.load()
        self._name = model.name
        self._meter = LoadMeter()
        self._front = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
        self._load: dict[str, float] = {}

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once, after the constructor."""
        return build_asgi(self._host)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve on the event loop's thread, every `METRICS_INTERVAL_S` or more often."""
        self._load = self._meter.report(sample(self._host.stats().values()))
        self._front.report.remote(self._ledger(final=False))
        return self._load

    def _ledger(self, final: bool) -> ReplicaLedger:
        total: Counter[str] = Counter()
        for stats in self._host.stats().values():
            total.update({key: value for key, value in stats.items() if isinstance(value, int | float)})
        replica = serve.get_replica_context().replica_id.unique_id
        return ReplicaLedger(self._name, replica, os.getpid(), dict(total), self._load, final)

    def check_health(self) -> None:
        """Called by Serve every few seconds; raising restarts the replica."""
        if not self._host.ready:
            raise ExecutionError("replica: got state draining, expected ready")

    async def __del__(self) -> None:
        # Serve calls this once no request is left, or its patience is at an end: answer what was accepted, then go.
        with contextlib.suppress(Exception):  # the front may be gone already, where everything shuts down
            await asyncio.wait_for(self._front.report.remote(self._ledger(final=True)), LAST_REPORT_S_MAX)
        await asyncio.to_thread(self._host.close)


def build_app(
    config: DeployedModel | DeployConfig,
    *,
    engine_opener: OpenEngine = open_engine,
    batcher_opener: OpenBatcher = open_batcher,
) -> serve.Application:
    """Builds the Ray Serve application of one model, to be run at the prefix ``/v2/models/NAME``.

    Args:
        config: The model and how it scales, or a deployment with that one model in it.
        engine_opener: Makes the Engine of a replica; tests put their own here.
        batcher_opener: Makes the Batcher of a replica; tests put their own here.

    Raises:
        ConfigError: The deployment has several models. Each scales alone, so each is an application of its own.

    Example:
        >>> config = load_deploy("app.yaml")
        >>> for one in config.models:
        ...     serve.run(build_app(one), name=one.model.name, route_prefix=f"/v2/models/{one.model.name}")
    """
    if isinstance(config, DeployConfig):
        if len(config.models) != 1:
            names = ", ".join(one.model.name for one in config.models)
            raise ConfigError(
                f"build_app: got {len(config.models)} models ({names}), expected one; build each by itself"
            )
        config = config.models[0]
    deployed = config
    settings = deployed.model.settings
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=settings.max_queue + 2 * settings.max_batch,
        max_queued_requests=settings.max_queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        graceful_shutdown_timeout_s=DRAIN_S_MAX,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": deployed.autoscaling.cpus_per_replica},
        autoscaling_config=_autoscaling(deployed),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment(serve.ingress()(ModelReplica)).bind(deployed, engine_opener, batcher_opener)


def _autoscaling(deployed: DeployedModel) -> AutoscalingConfig:
    """Serve's own delays are zero because the policy has its own hysteresis."""
    scaling, slo_ms = deployed.autoscaling, deployed.model.settings.slo_ms
    policy = AutoscalingPolicy(
        policy_function=SloPolicy,
        policy_kwargs={
            # Half of the deadline may go into waiting; the rest is for decoding, running and encoding.
            "slo_s": QUEUE_DELAY_S_DEFAULT if slo_ms is None else slo_ms / 2000,
            "target_utilisation": scaling.target_utilisation,
            "down_hold_s": scaling.down_hold_s,
            "idle_to_zero_s": scaling.idle_s,
            "fallback_ongoing": float(deployed.model.settings.max_batch),
        },
    )
    with warnings.catch_warnings():
        # Serve calls metrics_interval_s deprecated, but 2.60 reads nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            # One replica at first, even of a model that may go to zero: a deployment must show that it can load.
            initial_replicas=max(1, scaling.min_replicas),
            max_replicas=scaling.max_replicas,
            metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            policy=policy,
        )


@dataclass
class Deployment:
    """Models running on Ray Serve, and the way to stop them. Also a context manager.

    Attributes:
        url: Where the server answers, ``http://HOST:PORT``.
        models: The models' names.
        owns_ray: True if `deploy` started Ray, so that `shutdown` stops it.
    """

    url: str
    models: tuple[str, ...]
    owns_ray: bool
    _tag: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._left: list[int] | None = None

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

    def processes(self) -> list[int]:
        """The ids of the processes that Ray started for us and that still run; [] where we joined a running Ray."""
        return [] if self._tag is None else tagged_processes(self._tag)

    def shutdown(self, timeout_s: float = 60.0) -> list[int]:
        """Drains and stops the models, and Ray where we started it.

        Args:
            timeout_s: How long to wait until every process that was started is gone.

        Returns:
            The ids of processes that were still there in the end: [] when all went well. Calling it again does no
            more than to return the same.
        """
        if self._left is None:
            self._left = self._stop(timeout_s)
        return self._left

    def _stop(self, timeout_s: float) -> list[int]:
        if not self.owns_ray:
            for name in self.models:
                serve.delete(name, _blocking=True)
            others = _deployed_models()
            if others:
                _run_front(others)
            else:
                serve.delete(FRONT, _blocking=True)
            return []
        with contextlib.suppress(Exception):  # a Ray that died already must not keep us from cleaning up
            serve.shutdown()
        ray.shutdown()
        return _wait_gone(self.processes, timeout_s)

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
    owns_ray, tag = _connect(tell)
    names = tuple(deployed.model.name for deployed in config.models)
    deployment = Deployment("", names, owns_ray, tag)
    try:
        _check_fits(config.models)
        deployment.url = _start_serve(config.http, owns_ray)
        tell(f"loading {', '.join(names)}")
        targets = [
            serve.RunTarget(
                build_app(deployed, engine_opener=engine_opener, batcher_opener=batcher_opener),
                name=deployed.model.name,
                route_prefix=f"/v2/models/{deployed.model.name}",
            )
            for deployed in config.models
        ]
        _run_front(sorted({*names, *_deployed_models()}))
        serve.run_many(targets, wait_for_applications_running=False)
        _wait_running((FRONT, *names), timeout_s, tell)
    except BaseException:
        deployment.shutdown()
        raise
    return deployment


def _connect(tell: Callable[[str], None]) -> tuple[bool, str | None]:
    """Joins or starts Ray. Returns whether we started it, and the tag its processes carry."""
    if ray.is_initialized():
        return False, None
    if os.environ.get("RAY_ADDRESS"):
        tell(f"joining Ray at {os.environ['RAY_ADDRESS']}")
        ray.init(log_to_driver=False, logging_level="WARNING")
        return False, None
    tell("starting Ray on this machine")
    tag = secrets.token_hex(16)
    os.environ[TAG_VARIABLE] = tag
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
    return True, tag


def _start_serve(http: HttpConfig, owns_ray: bool) -> str:
    """Starts Serve where it does not run yet, and says where it listens: not where we asked if others started it."""
    port = http.port or free_port(http.host)
    if owns_ray:
        _check_port(http.host, port)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=http.host, port=port),
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    actual = _get_global_client().http_config
    if http.port not in (0, actual.port):
        raise ConfigError(f"http.port: got {http.port}, expected {actual.port} (or 0), where the running Serve listens")
    return f"http://[{actual.host}]:{actual.port}" if ":" in actual.host else f"http://{actual.host}:{actual.port}"


def _check_fits(models: Sequence[DeployedModel]) -> None:
    """One replica of each model must fit; Serve would otherwise wait for CPUs that never come."""
    have = float(ray.cluster_resources().get("CPU", 0))
    need = sum(max(1, m.autoscaling.min_replicas) * m.autoscaling.cpus_per_replica for m in models)
    if need > have + 1e-9:
        raise ConfigError(
            f"autoscaling.cpus_per_replica: got {need:g} CPUs for the first replicas of {len(models)} models, "
            f"expected at most the cluster's {have:g}"
        )


def _deployed_models() -> list[str]:
    """The models of every Headrace deployment on this Serve, other people's included."""
    applications = serve.status().applications
    return sorted(name for name, app in applications.items() if name != FRONT and DEPLOYMENT in app.deployments)


def _run_front(names: Sequence[str]) -> None:
    """Runs the front application, or tells the one that runs which models there are now."""
    if FRONT in serve.status().applications:
        handle = serve.get_deployment_handle(FRONT_DEPLOYMENT, app_name=FRONT)
        handle.set_names.remote(list(names)).result(timeout_s=30)
        return
    target = serve.RunTarget(build_front(names), name=FRONT, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)


def _wait_running(names: Sequence[str], timeout_s: float, tell: Callable[[str], None]) -> None:
    deadline = time.monotonic() + timeout_s
    waiting = list(names)
    while waiting:
        applications = serve.status().applications
        for name in list(waiting):
            status = applications[name].status if name in applications else "NOT_STARTED"
            if status == "RUNNING":
                waiting.remove(name)
                if name != FRONT:
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


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_port(host: str, port: int) -> None:
    """Serve's proxy shares its port silently (SO_REUSEPORT); a port in use must be an error instead."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"http: got {host}:{port}, expected one that is free here ({error.strerror})") from error


def tagged_processes(tag: str) -> list[int]:
    """The ids of this user's other processes whose environment carries `tag`."""
    import psutil  # comes with Ray, which has to be imported first

    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.pid != os.getpid() and process.environ().get(TAG_VARIABLE) == tag
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _wait_gone(processes: Callable[[], list[int]], timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    left = processes()
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = processes()
    return left
