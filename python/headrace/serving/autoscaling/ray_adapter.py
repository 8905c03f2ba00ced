"""The policy as Ray Serve calls it: on its controller, about ten times a second."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.serving.autoscaling.policy import PolicyState, decide
from headrace.serving.autoscaling.terms import Decision, Observation, PolicyConfig, ReplicaReport

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

# Names under which a replica reports, through Serve's record_autoscaling_stats.
METRIC_HEARTBEAT = "headrace_heartbeat"
METRIC_OFFERED = "headrace_offered_rps"
METRIC_CAPACITY = "headrace_capacity_rps"
METRIC_QUEUE_DELAY = "headrace_queue_delay_s"
METRIC_BACKLOG = "headrace_backlog"

# Keys of what Serve keeps for us between two calls.
STATE_KEY = "headrace"
DECISION_KEY = "headrace_decision"


@dataclass
class _Freshness:
    """When each replica's heartbeat last moved, by the controller's own clock: replica clocks are not compared."""

    seen: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def fresh(self, heartbeats: Mapping[Any, float], now_s: float, stale_after_s: float) -> set[Any]:
        """The keys of `heartbeats` that moved within the last `stale_after_s`."""
        self.seen = {key: self.seen[key] for key in heartbeats if key in self.seen}
        for key, beat in heartbeats.items():
            if math.isfinite(beat) and (key not in self.seen or self.seen[key][0] != beat):
                self.seen[key] = (beat, now_s)
        return {key for key, (_, moved_s) in self.seen.items() if now_s - moved_s <= stale_after_s}


class SloPolicy:
    """`decide` as a Ray Serve autoscaling policy.

    Serve builds one per deployment on its controller, with `kwargs` from the deployment's config, and calls it with
    its context; Serve then applies its own bounds and delays, which `headrace.serving.ray_app` sets to zero because
    the policy has its own hysteresis. Every change is logged with its reason, and the last decision is kept in the
    policy's state under `DECISION_KEY`.

    Args:
        stale_after_s: Age after which a replica's report no longer counts.
        kwargs: Fields of `PolicyConfig`, except the replica bounds: those come from Serve's own config.
    """

    def __init__(self, stale_after_s: float = 5.0, **kwargs: float) -> None:
        self._stale_after_s = stale_after_s
        self._kwargs = kwargs
        PolicyConfig(**kwargs)  # type: ignore[arg-type]  # refuse a bad config where it is written
        self._freshness = _Freshness()

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas for `ctx`, and the state Serve hands back next time."""
        config = PolicyConfig(
            min_replicas=ctx.capacity_adjusted_min_replicas,
            max_replicas=max(1, ctx.capacity_adjusted_max_replicas),
            **self._kwargs,
        )
        state = (ctx.policy_state or {}).get(STATE_KEY) or PolicyState()
        observed = self._observe(ctx)
        decision, state = decide(config, state, observed)
        if decision.replicas != observed.target:
            self._log(ctx, observed, decision)
        return decision.replicas, {STATE_KEY: state, DECISION_KEY: decision}

    def _log(self, ctx: AutoscalingContext, observed: Observation, decision: Decision) -> None:
        # Looked up each time: a logger inside a policy that is pickled by value would have to be pickled with it.
        # Both, since each of a model's groups of replicas is a deployment of its own.
        name = "/".join(filter(None, (getattr(ctx, one, None) for one in ("app_name", "deployment_name"))))
        # A warning, because a controller that we start leaves out what is less.
        logging.getLogger("ray.serve").warning("headrace autoscaling: %s: %d -> %s", name, observed.target, decision)

    def _observe(self, ctx: AutoscalingContext) -> Observation:
        now_s = float(ctx.current_time or 0.0)
        raw: Mapping[str, Mapping[Any, Sequence[Any]]] = ctx.raw_metrics or {}

        def latest(name: str) -> dict[Any, float]:
            return {key: _number(series[-1].value) for key, series in (raw.get(name) or {}).items() if series}

        beats = latest(METRIC_HEARTBEAT)
        fresh = self._freshness.fresh(beats, now_s, self._stale_after_s)
        offered, capacity = latest(METRIC_OFFERED), latest(METRIC_CAPACITY)
        delay, backlog = latest(METRIC_QUEUE_DELAY), latest(METRIC_BACKLOG)
        # A fresh replica that left a number out has not reported: NaN makes the report an invalid one.
        reports = tuple(
            ReplicaReport(*(named.get(key, math.nan) for named in (offered, capacity, delay, backlog)))
            for key in sorted(fresh, key=str)
        )
        return Observation(
            now_s=now_s,
            running=int(ctx.current_num_replicas),
            target=int(ctx.target_num_replicas),
            reports=reports,
            stale=len(beats) - len(fresh),
            ongoing=_number(ctx.total_num_requests),
        )


def _number(value: Any) -> float:
    """NaN for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
