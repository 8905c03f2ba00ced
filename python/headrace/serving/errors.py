"""The one table from Headrace's errors to HTTP statuses."""

from __future__ import annotations

import logging
import math

from headrace import errors

log = logging.getLogger("headrace.serving")

# Checked in order: a subclass stands before its base.
HTTP_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (errors.RequestTooLarge, 413),
    (errors.RequestError, 400),
    (errors.NotFound, 404),
    (errors.Overloaded, 429),
    (errors.DeadlineExceeded, 504),
    (
        errors.Cancelled,
        499,
    ),  # nginx's code for a client that closed the connection: nobody reads it but logs and metrics
    (errors.BackendUnavailable, 503),
    (errors.ExecutionError, 500),
)

# The words of the request ledger, for requests that never reached a Batcher too.
OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (errors.RequestError, "rejected"),
    (errors.NotFound, "rejected"),
    (errors.Overloaded, "refused"),
    (errors.DeadlineExceeded, "expired"),
    (errors.Cancelled, "cancelled"),
)


def http_status(error: BaseException) -> int:
    """The HTTP status that answers `error`; 500 for whatever is not in the table."""
    return next((status for kind, status in HTTP_STATUS if isinstance(error, kind)), 500)


def outcome(error: BaseException) -> str:
    """The ledger's word for a request that ended with `error`."""
    return next((word for kind, word in OUTCOMES if isinstance(error, kind)), "failed")


def error_text(error: BaseException) -> str:
    """What the client is told. An error that is not ours is a bug: it is logged whole and told only by its type."""
    if isinstance(error, errors.HeadraceError):
        return str(error)
    log.error("this is a bug: unexpected error while serving", exc_info=error)
    return f"internal error: {type(error).__name__}"


def retry_after(error: BaseException) -> bytes | None:
    """The value of ``Retry-After`` in whole seconds, rounded up as the header cannot say less, or None."""
    if isinstance(error, errors.Overloaded):
        return str(max(1, math.ceil(min(error.retry_after_s, 3600.0)))).encode()
    return None
