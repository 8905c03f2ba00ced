"""The one error tree of Headrace.

    HeadraceError
    |-- ModelError                 the Model cannot be used
    |   |-- InvalidModel           it breaks the rules of its own format
    |   |-- UnsupportedOp          it is valid, but the Backend lacks an op; all are listed at once
    |   `-- ParityError            a Plan's outputs differ from the reference's by more than allowed
    |-- PlanError                  a saved Plan cannot be used, or the Plan cannot be saved
    |   |-- StalePlan              it was made for another model, machine, build or other options
    |   `-- InvalidPlan            it is truncated, corrupted or no saved Plan at all
    |-- RequestError               one Request is wrong; nothing else is affected
    |   |-- MissingInput
    |   |-- UnknownInput
    |   |-- ShapeMismatch
    |   |-- DtypeMismatch
    |   |-- MalformedRequest       the body could not be decoded at all
    |   `-- RequestTooLarge        the body is longer than the server accepts
    |-- ConfigError                an option, or a configuration file or folder, cannot be used
    |-- NotFound                   no such model or version
    |-- NotOffered                 the protocol has it, this server does not
    |-- Unauthenticated            the token that a request needs is missing or wrong
    |-- AccessDenied               no token lets a request do this here
    |-- Overloaded                 refused at admission; carries retry_after_s
    |-- DeadlineExceeded           it expired before it was computed
    |-- Cancelled                  its caller gave it up
    |-- BackendUnavailable         the Backend or its device is not there
    `-- ExecutionError             the Engine failed while running an accepted Request, or a Backend while compiling

Every message says what was got, what was expected, and where.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of every error Headrace raises on purpose."""


class ModelError(HeadraceError):
    """The Model cannot be used."""


class InvalidModel(ModelError):
    """The Model breaks the rules of its own format."""


class UnsupportedOp(ModelError):
    """The Backend lacks at least one op of the Model.

    Args:
        backend: Name of the Backend that refused.
        nodes: One ``(op type, node name, reason)`` per refused node, all of them.
    """

    def __init__(self, backend: str, nodes: list[tuple[str, str, str]]) -> None:
        self.backend = backend
        self.nodes = nodes
        lines = [f"  {op} (node {name!r}): {reason}" for op, name, reason in nodes]
        count = len(nodes)
        noun = "node" if count == 1 else "nodes"
        super().__init__(f"backend {backend!r} cannot run {count} {noun} of the model:\n" + "\n".join(lines))


class ParityError(ModelError):
    """A Plan's outputs differ from the reference's by more than the tolerance."""


class PlanError(HeadraceError):
    """A saved Plan cannot be used, or the Plan cannot be saved."""


class StalePlan(PlanError):
    """The saved Plan was made for another model, machine or build, or with other options. Save it anew."""


class InvalidPlan(PlanError):
    """The file is truncated, corrupted or no saved Plan at all."""


class RequestError(HeadraceError):
    """One Request is wrong. No other Request is affected."""


class MissingInput(RequestError):
    """The Request lacks an input that the signature names."""


class UnknownInput(RequestError):
    """The Request names an input that the signature does not have."""


class ShapeMismatch(RequestError):
    """An input's shape does not fit the signature."""


class DtypeMismatch(RequestError):
    """An input's dtype is not the one the signature names."""


class MalformedRequest(RequestError):
    """The body of a Request could not be decoded."""


class RequestTooLarge(RequestError):
    """The body of a Request is longer than the server accepts."""


class ConfigError(HeadraceError):
    """An option, a configuration file or a model repository cannot be used. The message names it, or file and key."""


class NotFound(HeadraceError):
    """No model, version or route of that name."""


class NotOffered(HeadraceError):
    """A part of the protocol that this server does not offer."""


class Unauthenticated(HeadraceError):
    """The request needs a token, and brought none or a wrong one."""


class AccessDenied(HeadraceError):
    """Nobody may do this here, whatever token they bring."""


class Overloaded(HeadraceError):
    """Refused at admission: the Request could not have met its deadline, or the queue is full.

    Args:
        message: What was refused and why.
        retry_after_s: Seconds after which a new attempt is likely to be admitted.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(HeadraceError):
    """The Request's deadline passed before it was computed."""


class Cancelled(HeadraceError):
    """The caller gave the Request up before it was computed."""


class BackendUnavailable(HeadraceError):
    """The Backend, the device it was asked to use, or the process that should have answered is not there.

    Args:
        message: What is missing.
        retry_after_s: Seconds after which it is likely to be back; None where that is not known.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ExecutionError(HeadraceError):
    """The Engine failed while it ran an accepted Request, or a Backend while it compiled a Model that it accepts.

    No other Backend takes its place: what failed is to be seen, not hidden behind a slower one.
    """
