"""The autoscaling policy: how many replicas a Model needs, decided from what its replicas measured.

`decide` is a pure function of a config, the state it returned last time and one `Observation`. It knows neither Ray nor
the clock: Ray's controller (through `SloPolicy`) and the simulator (`headrace.simulate`) run the very same function.

    terms.py        what the policy is told, and what it answers
    policy.py       what is decided, and in which order
    staffing.py     replicas for a rate at an objective (Erlang C)
    forecast.py     the rate by the time a replica asked for now is there (Holt's linear smoothing)
    ray_adapter.py  the policy as Ray Serve calls it

Nothing in here imports Ray or the rest of Headrace: Serve's controller gets this package pickled by value, and may have
neither. docs/autoscaling.md explains the formulae and the knobs.
"""

from headrace.serving.autoscaling.policy import PolicyState, decide
from headrace.serving.autoscaling.ray_adapter import (
    METRIC_BACKLOG,
    METRIC_CAPACITY,
    METRIC_HEARTBEAT,
    METRIC_OFFERED,
    METRIC_QUEUE_DELAY,
    SloPolicy,
)
from headrace.serving.autoscaling.terms import Decision, Observation, PolicyConfig, Reason, ReplicaReport

__all__ = [
    "METRIC_BACKLOG",
    "METRIC_CAPACITY",
    "METRIC_HEARTBEAT",
    "METRIC_OFFERED",
    "METRIC_QUEUE_DELAY",
    "Decision",
    "Observation",
    "PolicyConfig",
    "PolicyState",
    "Reason",
    "ReplicaReport",
    "SloPolicy",
    "decide",
]
