"""A thread beside the event loops, which submits Requests that take long to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import TYPE_CHECKING

from headrace.errors import BackendUnavailable, DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace import _core
    from headrace.backend import Result

    Submitted = concurrent.futures.Future[Result]

_RETRY_MIN_S = 1e-3


class Sideline:
    """Submits Requests one after the other on a thread of its own, which starts with the first.

    One thread, since the interpreter lets but one at a time convert what takes long.

    Args:
        scheduler: Keeps the books.
        slo_ms: The deadline of Requests that bring none, in milliseconds; None for no deadline.
        max_queue: Requests that may wait for the thread; one more is refused.
    """

    def __init__(self, scheduler: _core.Scheduler, slo_ms: float | None, max_queue: int) -> None:
        self._scheduler = scheduler
        self._slo_ms = slo_ms
        self._max_queue = max_queue
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "headrace-sideline")
        self._lock = threading.Lock()
        self._waiting = 0
        self._took_s = 0.0

    async def submit(self, submit: Callable[[float | None], Submitted], deadline_ms: float | None) -> Submitted:
        """Submits a Request on the thread.

        Args:
            submit: Does so, with the milliseconds that are then left to the deadline. Where the awaiting task is
                cancelled, what it returns is cancelled too.
            deadline_ms: Milliseconds from now; None for `slo_ms`.

        Raises:
            Overloaded: Too many wait for the thread; ``retry_after_s`` says when one of them will have been submitted.
            DeadlineExceeded: The deadline passed while the Request waited for it.
            BackendUnavailable: The Sideline is closed.
            HeadraceError: What `submit` raised.
        """
        deadline_ms = self._slo_ms if deadline_ms is None else deadline_ms
        came_s = time.monotonic()
        with self._lock:
            waiting = self._waiting
            if waiting < self._max_queue:
                self._waiting += 1
        if waiting >= self._max_queue:
            self._scheduler.count_refused()
            raise Overloaded(
                f"queue full: got {waiting} Requests that wait for their strings to be converted, expected fewer than "
                f"max_queue={self._max_queue}",
                retry_after_s=max(self._took_s, _RETRY_MIN_S),
            )
        loop = asyncio.get_running_loop()
        try:
            submitting = loop.run_in_executor(self._thread, self._submit, submit, deadline_ms, came_s)
        except RuntimeError as error:  # says the closed executor
            raise BackendUnavailable("got a Request for a closed Batcher") from error
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_withdraw)
            raise

    def close(self) -> None:
        """Takes no more; the thread ends after those that wait for it."""
        self._thread.shutdown(wait=False)

    def _submit(
        self, submit: Callable[[float | None], Submitted], deadline_ms: float | None, came_s: float
    ) -> Submitted:
        with self._lock:
            self._waiting -= 1
        began_s = time.monotonic()
        waited_ms = 1e3 * (began_s - came_s)
        if deadline_ms is None:
            left_ms = None
        elif 0 < deadline_ms <= waited_ms:  # one that had passed before is `submit`'s to refuse
            self._scheduler.count_refused()
            raise DeadlineExceeded(
                f"not computed: waited {waited_ms:.3g} ms for its strings to be converted, too long for a deadline of "
                f"{deadline_ms:.3g} ms"
            )
        else:
            left_ms = deadline_ms - waited_ms
        try:
            return submit(left_ms)
        finally:
            self._took_s = time.monotonic() - began_s


def _withdraw(submitting: asyncio.Future[Submitted]) -> None:
    """Takes a Request out of the queue whose caller went away while it was submitted."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
