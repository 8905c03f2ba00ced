"""What a replica that starts opens: what its model's assignment says, as far as that still lies there."""

from __future__ import annotations

import logging
from collections.abc import Callable

from headrace.config import ModelConfig
from headrace.errors import ConfigError
from headrace.serving.assignment import Assignment, Edition
from headrace.serving.host import ModelHost

log = logging.getLogger("headrace.serving")


def assigned(kept: bytes | None, model: ModelConfig) -> Assignment:
    """What a replica that starts is to serve: what was decided since it was made, or what it was made with. Blocking.

    Args:
        kept: What the store has for the model; None for nothing.
        model: What the replica was made with.
    """
    if kept is not None:
        return Assignment.decode(kept)
    return Assignment(generation=0, running=Edition.of(model))


def load_assigned(
    assignment: Assignment, open_host: Callable[[ModelConfig], ModelHost], adapt: Callable[[ModelConfig], ModelConfig]
) -> tuple[ModelHost, Edition]:
    """Opens what is running, or the candidate where that is the only one that can be opened. Blocking.

    Nothing else is ever opened: what nobody deployed was not decided on.

    Args:
        assignment: What the model's replicas are to serve.
        open_host: Makes a host that has loaded nothing yet.
        adapt: Makes the configuration that this replica loads of an edition's.

    Returns:
        The host, loaded, and the edition that it serves.

    Raises:
        ConfigError: Something else lies in the place of the running version.
        Exception: Nothing of it can be loaded.
    """
    running, candidate = assignment.running, assignment.candidate
    try:
        _check_there(assignment)
        return _load(running, open_host, adapt), running
    except Exception as error:
        if candidate is None or not candidate.is_there:
            raise
        log.error("model %s version %s cannot be opened any more: %s", running.model.name, running.newest, error)
    # Else whatever is deployed to repair it would wait for replicas that never start.
    log.warning("model %s: serving version %s in its place", running.model.name, candidate.newest)
    return _load(candidate, open_host, adapt), candidate


def _load(
    edition: Edition, open_host: Callable[[ModelConfig], ModelHost], adapt: Callable[[ModelConfig], ModelConfig]
) -> ModelHost:
    model = adapt(edition.model)
    host = open_host(model)
    try:
        host.load()
        host.find(model.name)  # a replica whose model failed its parity check must not start
    except BaseException:
        host.close()
        raise
    return host


def _check_there(assignment: Assignment) -> None:
    """Files that were replaced in their place are not what was judged; the old ones cannot be had any more."""
    running, gone = assignment.running, assignment.rolled_back
    if running.is_there:
        return
    found = "files that changed since they were deployed"
    if gone is not None and gone.newest == running.newest and gone.is_there:
        found = f"the files that were rolled back ({assignment.reason})"
    raise ConfigError(
        f"model {running.model.name!r} version {running.newest}: got {found}, expected those that were running: "
        "put these back, or deploy the others"
    )
