"""What the repository index tells of one version of a model."""

from __future__ import annotations

from typing import Any, NamedTuple

from headrace.serving.rollout import Trial
from headrace.serving.served import ServedModel


class ModelState(NamedTuple):
    """A version in the repository index: READY, LOADING or UNAVAILABLE, and why."""

    name: str
    version: str
    state: str
    reason: str


def tried(trial: Trial[ServedModel]) -> ModelState:
    """A candidate, with what it did until now."""
    status, candidate = trial.status(), trial.candidate
    counts = _counts(status["candidate"])
    reason = f"on trial as a {status['mode']} with {status['share']:.0%} of the requests: {status['state']} ({counts})"
    if candidate.hangs:
        reason += ", stuck in a batch"
    return ModelState(candidate.name, candidate.version, "LOADING", reason)


def tried_by_replicas(name: str, candidate: dict[str, Any]) -> ModelState:
    """The candidate of `Assignments.status`, with what it did in all replicas."""
    if candidate["state"] == "loading":
        reason = f"is being loaded by {candidate['replicas']} replicas"
    else:
        counts, replicas = _counts(candidate["candidate"]), candidate["replicas"]
        reason = f"on trial as a {candidate['mode']} in {replicas} replicas: {candidate['decision']} ({counts})"
    return ModelState(name, candidate["version"], "LOADING", reason)


def stuck(served: ServedModel) -> ModelState:
    """A version that is out of service and cannot be closed."""
    reason = "out of service, and stuck in a batch: what it holds is free when the process ends"
    return ModelState(served.name, served.version, "UNAVAILABLE", reason)


def stuck_in_replicas(count: int) -> str:
    """The reason of a version that is out of service and cannot be closed in some replicas."""
    where = "1 replica" if count == 1 else f"{count} replicas"
    return f"out of service, and stuck in a batch in {where}: what it holds there is free when the replica ends"


def _counts(summary: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in summary.items() if key != "version")
