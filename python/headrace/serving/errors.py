"""The one table from Headrace's errors to what each protocol says, and to the ledger's words."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from headrace import errors

log = logging.getLogger("headrace.serving")


class Answered(NamedTuple):
    """How an error is answered.

    Attributes:
        kind: The error, its subclasses included.
        http: The HTTP status.
        grpc: The name of the gRPC status code.
        outcome: The ledger's word, for requests that never reached a Batcher too.
    """

    kind: type[BaseException]
    http: int
    grpc: str
    outcome: str


# Checked in order: a subclass stands before its base.
TABLE: tuple[Answered, ...] = (
    Answered(errors.RequestTooLarge, 413, "RESOURCE_EXHAUSTED", "rejected"),
    Answered(errors.RequestError, 400, "INVALID_ARGUMENT", "rejected"),
    Answered(errors.NotFound, 404, "NOT_FOUND", "rejected"),
    Answered(errors.NotOffered, 501, "UNIMPLEMENTED", "rejected"),
    Answered(errors.Unauthenticated, 401, "UNAUTHENTICATED", "rejected"),
    Answered(errors.AccessDenied, 403, "PERMISSION_DENIED", "rejected"),
    # What the model repository holds cannot be served: these come from asking to load it.
    Answered(errors.ConfigError, 400, "FAILED_PRECONDITION", "rejected"),
    Answered(errors.ModelError, 400, "FAILED_PRECONDITION", "rejected"),
    Answered(errors.PlanError, 400, "FAILED_PRECONDITION", "rejected"),
    Answered(errors.Overloaded, 429, "RESOURCE_EXHAUSTED", "refused"),
    Answered(errors.DeadlineExceeded, 504, "DEADLINE_EXCEEDED", "expired"),
    # 499 is nginx's code for a client that closed the connection: nobody reads it but logs and metrics.
    Answered(errors.Cancelled, 499, "CANCELLED", "cancelled"),
    Answered(errors.BackendUnavailable, 503, "UNAVAILABLE", "failed"),
    Answered(BaseException, 500, "INTERNAL", "failed"),
)


def _row(error: BaseException) -> Answered:
    return next(row for row in TABLE if isinstance(error, row.kind))


def http_status(error: BaseException) -> int:
    """The HTTP status that answers `error`; 500 for whatever is not in the table."""
    return _row(error).http


def grpc_status(error: BaseException) -> str:
    """The name of the gRPC status code that answers `error`; ``INTERNAL`` for whatever is not in the table."""
    return _row(error).grpc


def outcome(error: BaseException) -> str:
    """The ledger's word for a request that ended with `error`."""
    return _row(error).outcome


def error_text(error: BaseException) -> str:
    """What the client is told. An error that is not ours is a bug: it is logged whole and told only by its type."""
    if isinstance(error, errors.HeadraceError):
        return str(error)
    log.error("this is a bug: unexpected error while serving", exc_info=error)
    return f"internal error: {type(error).__name__}"


def retry_after(error: BaseException) -> bytes | None:
    """The value of ``Retry-After`` in whole seconds, rounded up as the header cannot say less, or None."""
    seconds = retry_after_s(error)
    return None if seconds is None else str(max(1, math.ceil(seconds))).encode()


def retry_after_s(error: BaseException) -> float | None:
    """Seconds after which to try again, or None."""
    if isinstance(error, errors.Overloaded | errors.BackendUnavailable) and error.retry_after_s is not None:
        return min(error.retry_after_s, 3600.0)
    return None
