"""From a model and how it scales to its Ray Serve application: each scales alone, so each is one of its own.

Where its replicas are of several groups, each is a deployment in that application, with settings, resources and a scale
of its own. To everybody else they are one model: the front, its books and its rollouts know replicas alone.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import ray
from msgspec.structs import replace
from ray import cloudpickle, serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig
from ray.serve.schema import LoggingConfig

from headrace import __version__
from headrace.config import DeployConfig, DeployedModel
from headrace.errors import ConfigError
from headrace.serving import autoscaling
from headrace.serving.assignment import resolved
from headrace.serving.autoscaling import SloPolicy
from headrace.serving.body import CALLER_HEADER
from headrace.serving.front_shared import MODEL_DEPLOYMENT, deployment_of
from headrace.serving.load import queue_delay_s_max
from headrace.serving.opening import OpenBatcher, OpenEngine, open_batcher, open_engine
from headrace.serving.ray_app import ModelReplica, gpus_of

# Replicas and callers push their metrics this often; the policy cannot react faster than that.
METRICS_INTERVAL_S = 0.5
# Window Serve averages its own counts over. Longer would keep an idle model "busy" for as long.
LOOK_BACK_S = 1.0
# Serve polls a draining replica this often.
DRAIN_POLL_S = 0.2
# What a replica has beyond its drain before Serve kills it: for its last report and the end of the Engine.
CLOSE_S = 5.0


@dataclass(frozen=True)
class Making:
    """What the replicas of all models beside one front have in common.

    Attributes:
        ingress: "headrace", or "ray" if Serve's proxy is to reach them.
        caller_header: The request header that names the caller.
        ledger: Folder of the request ledger on disk; None for none.
        engine_opener: Makes the Engine of a replica.
        batcher_opener: Makes the Batcher of a replica.
    """

    ingress: str = "headrace"
    caller_header: str = CALLER_HEADER
    ledger: Path | None = None
    engine_opener: OpenEngine = open_engine
    batcher_opener: OpenBatcher = open_batcher


def run_target(deployed: DeployedModel, making: Making, *, runs: bool) -> serve.RunTarget:
    """What `serve.run_many` takes for one model.

    Args:
        deployed: The model and how it scales.
        making: What its replicas have in common with all others.
        runs: Whether it runs already, and is to keep the replicas that it has.
    """
    name = deployed.model.name
    application = build_app(
        deployed,
        engine_opener=making.engine_opener,
        batcher_opener=making.batcher_opener,
        caller_header=making.caller_header,
        ledger=making.ledger,
        code=lambda group, part: replica_code(part, making, group),
        surge_percent=_surge_percent,
        running=_running(name) if runs else (),
    )
    # Behind our own ingress a model can be reached in no other way.
    prefix = f"/v2/models/{name}" if making.ingress == "ray" else None
    return serve.RunTarget(application, name=name, route_prefix=prefix)


def _running(name: str) -> set[str]:
    """The deployments of an application: a group may be new to a model that runs."""
    application = serve.status().applications.get(name)
    return set() if application is None else set(application.deployments)


def _surge_percent(deployed: DeployedModel) -> int:
    """New replicas start before old ones go where one of them fits: Serve would wait for ever for one that does not."""
    free = ray.available_resources()
    return 100 if all(free.get(name, 0) + 1e-9 >= amount for name, amount in reserved(deployed).items()) else 0


def reserved(deployed: DeployedModel) -> dict[str, float]:
    """What Ray reserves for each replica, by its names."""
    scaling = deployed.autoscaling
    return {"CPU": scaling.cpus_per_replica, "GPU": float(gpus_of(deployed.model)), **scaling.resources}


def build_app(
    config: DeployedModel | DeployConfig,
    *,
    engine_opener: OpenEngine = open_engine,
    batcher_opener: OpenBatcher = open_batcher,
    caller_header: str = CALLER_HEADER,
    ledger: Path | None = None,
    code: Callable[[str, DeployedModel], str] | None = None,
    surge_percent: Callable[[DeployedModel], int] = lambda part: 0,
    running: Collection[str] = (),
) -> serve.Application:
    """Builds the Ray Serve application of one model, to be run at the prefix ``/v2/models/NAME``.

    Args:
        config: The model and how it scales, or a deployment with that one model in it.
        engine_opener: Makes the Engine of a replica; tests put their own here.
        batcher_opener: Makes the Batcher of a replica; tests put their own here.
        caller_header: The request header that names the caller; callers who compete share a replica fairly.
        ledger: Folder of the request ledger on disk, on the replicas' machine or shared by all; None for none.
        code: Replicas stay while this stays, of each group by its name; None to start them again whenever this runs
            again.
        surge_percent: Replicas that may start before old ones go, where they have to start again, of each group.
        running: Its Serve deployments that run already, and are to keep the replicas that they have.

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
    deployed = replace(config, model=resolved(config.model))
    parts = deployed.parts
    given = engine_opener, batcher_opener, caller_header, ledger

    def make(group: str, part: DeployedModel) -> serve.Deployment:
        name = deployment_of(parts, group)
        version = None if code is None else code(group, part)
        return _deployment(part, name, name in running, surge_percent(part), version)

    first, *others = (make(group, part) for group, part in parts.items())
    bound = [other.bind(deployed, *given, group) for other, group in zip(others, list(parts)[1:], strict=True)]
    return first.bind(deployed, *given, next(iter(parts)), bound)


def _deployment(part: DeployedModel, name: str, runs: bool, surge_percent: int, code: str | None) -> serve.Deployment:
    """The deployment of one group of replicas. What they are to serve comes to them by their arguments."""
    settings, scaling = part.model.settings, part.autoscaling
    deployment = serve.deployment(
        name=name,
        max_ongoing_requests=settings.max_queue + 2 * settings.max_batch,
        max_queued_requests=settings.max_queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        graceful_shutdown_timeout_s=scaling.leave_s + CLOSE_S,
        # How soon a dead replica is noticed, and another started.
        health_check_period_s=2,
        ray_actor_options={
            "num_cpus": scaling.cpus_per_replica,
            "num_gpus": gpus_of(part.model),
            "resources": dict(scaling.resources),
        },
        autoscaling_config=_autoscaling(part, runs),
        logging_config=LoggingConfig(enable_access_log=False),
        max_surge_percent=surge_percent,
        # Serve's proxy, where there is one, knows the first alone.
    )(serve.ingress()(ModelReplica) if name == MODEL_DEPLOYMENT else ModelReplica)
    return deployment if code is None else deployment.options(version=code, _internal=True)


def replica_code(deployed: DeployedModel, making: Making, group: str = "") -> str:
    """Equal where replicas need not be started again: what else changes, they follow while they run.

    Args:
        deployed: The model, as one group of its replicas has it.
        making: What they have in common with all others.
        group: That group's name, by which they find their settings for as long as they run.
    """
    openers = making.engine_opener, making.batcher_opener
    parts = (
        __version__,
        group,
        deployed.autoscaling.cpus_per_replica,
        deployed.autoscaling.leave_s,
        gpus_of(deployed.model),
        sorted(deployed.autoscaling.resources.items()),
        *(f"{opener.__module__}.{opener.__qualname__}" for opener in openers),
        making.caller_header,
        making.ledger,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _autoscaling(deployed: DeployedModel, runs: bool) -> AutoscalingConfig:
    """Serve's own delays are zero because the policy has its own hysteresis."""
    scaling, slo_ms = deployed.autoscaling, deployed.model.settings.slo_ms
    # Serve pickles the policy's own module by value, but not those it imports: its controller may have no Headrace.
    cloudpickle.register_pickle_by_value(autoscaling)
    policy = AutoscalingPolicy(
        policy_function=SloPolicy,
        policy_kwargs={
            "slo_s": queue_delay_s_max(slo_ms),
            "target_utilisation": scaling.target_utilisation,
            "down_hold_s": scaling.down_hold_s,
            "idle_to_zero_s": scaling.idle_s,
            "fallback_ongoing": float(deployed.model.settings.max_batch),
        },
    )
    cloudpickle.unregister_pickle_by_value(autoscaling)
    with warnings.catch_warnings():
        # Serve calls metrics_interval_s deprecated, but 2.60 reads nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            # One replica at first, even of a model that may go to zero: a deployment must show that it can load. Later
            # changes would take it for the number that is wanted, whatever the load.
            initial_replicas=None if runs else max(1, scaling.min_replicas),
            max_replicas=scaling.max_replicas,
            metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            policy=policy,
        )
