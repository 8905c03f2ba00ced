"""The end of a host whose models may hang: bounded, and told."""

from __future__ import annotations

import threading
from time import monotonic

from headrace.errors import ExecutionError
from headrace.serving.host import ModelHost

CLOSE_POLL_S = 0.5
# What was accepted is answered by now, and Engines have nothing to do but to give memory back.
CLOSE_S_MAX = 60.0


def close_host(host: ModelHost) -> None:
    """Closes the host, unless a Batch that never ends, or an Engine that does not close, would make that take for ever.

    Raises:
        ExecutionError: A version is stuck in a Batch, or was not closed within `CLOSE_S_MAX`; its thread still runs.
        HeadraceError: What closing raised.
    """
    failures: list[Exception] = []

    def close() -> None:
        try:
            host.close()
        except Exception as error:
            failures.append(error)

    closing = threading.Thread(target=close, name="headrace-close", daemon=True)
    end = monotonic() + CLOSE_S_MAX
    closing.start()
    while closing.is_alive():
        closing.join(CLOSE_POLL_S)
        # What hangs is closed last, so nothing else is left then but what hangs.
        left, stuck = host.closing(), host.hanging()
        if closing.is_alive() and left and set(left) <= set(stuck):
            raise ExecutionError(f"close: got a Batch that does not end in {', '.join(stuck)}, expected it to")
        if closing.is_alive() and monotonic() > end:
            raise ExecutionError(
                f"close: got no end of closing {', '.join(left) or 'the host'} in {CLOSE_S_MAX:g} s, expected one"
            )
    if failures:
        raise failures[0]
