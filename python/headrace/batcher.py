"""The scheduler in front of an Engine, embeddable in any app.

    with hr.Batcher(engine, slo_ms=20) as batcher:
        future = batcher.submit({"x": array})        # concurrent.futures.Future
        result = await batcher.infer({"x": array})   # asyncio, with cancellation
        batcher.stats()                              # the ledger

Requests that come while the Engine is busy run together as soon as it is free; an idle Engine never waits for more.
The scheduling is C++ (``csrc/batcher``); this module is its Python face.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from headrace import _core, explain
from headrace.backend import Request, Result
from headrace.errors import BackendUnavailable, ConfigError, ExecutionError, RequestError
from headrace.sideline import Sideline
from headrace.ticket_future import Notifier, TicketFuture

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from headrace.engine import Engine
    from headrace.signature import Signature

__all__ = ["Batcher"]

# Warm-up runs for the cost model: Batches of so many Requests, each run twice ...
_WARMUP_BATCHES = (1, 8)
# ... but none larger once a single run took this long.
_WARMUP_RUN_S_MAX = 0.02

# More strings than this take longer to convert than to be handed to another thread, which is two threads' wake-ups.
_STRINGS_MAX = 2000
# A task whose Requests are all answered without waiting would never let its event loop run another: after so many, it
# does.
_TURN = 32


class Batcher:
    """Runs the Requests of any number of callers together.

    Safe to call from any number of threads and event loops. A Request's arrays must not be changed until it is
    answered: they are not copied.

    A process that is forked from this one, by `multiprocessing` say, has none of the Batcher's threads: there a Batcher
    refuses Requests with `BackendUnavailable`, and closing it does nothing. The Engine can be used there, in a Batcher
    of the child's own too, where no thread was inside it at the fork.

    One that is dropped without `close` cancels what waits; at the end of the process, all do.

    Args:
        engine: Runs the Batches. It stays the caller's to close, after the Batcher.
        slo_ms: The deadline of Requests that bring none, in milliseconds after their arrival; None for no deadline.
        max_queue: Requests that may wait; one more is refused.
        max_batch: Requests per Batch at most.
        ledger_fd: The file that keeps the books, from `headrace.observe.ledger.create`, taken over; -1 for none.

    Raises:
        ConfigError: An argument is out of range.
        BackendUnavailable: The system gives the process no more threads or file descriptors.
    """

    def __init__(
        self,
        engine: Engine,
        slo_ms: float | None = None,
        max_queue: int = 1024,
        max_batch: int = 64,
        *,
        ledger_fd: int = -1,
    ) -> None:
        if not hasattr(engine, "executable"):
            raise ConfigError(f"Batcher: got {type(engine).__name__} for engine, expected an Engine (model.compile())")
        _check_options(slo_ms, max_queue, max_batch)
        slo_s = 0.0 if slo_ms is None else slo_ms / 1e3
        plan = getattr(engine.executable, "core", None)
        self._enqueue: Callable[..., _core.Ticket]
        if isinstance(plan, _core.NativePlan):
            self._scheduler = _core.Scheduler.of_plan(plan, max_queue, max_batch, slo_s, ledger_fd)
            self._enqueue = self._scheduler.submit
        else:
            run_batch = engine.executable.run_batch
            self._scheduler = _core.Scheduler.of_function(run_batch, max_queue, max_batch, slo_s, ledger_fd)
            self._enqueue = self._check_and_submit
        self._engine = engine
        self._answered_here = 0
        self._string_inputs = [spec.name for spec in engine.signature.inputs if spec.dtype == "string"]
        self._sideline = Sideline(self._scheduler, slo_ms, max_queue)
        self._scheduler.fit(_warmup_runs(engine, max_batch))
        # None once closed.
        self._loops: dict[asyncio.AbstractEventLoop, _core.Mailbox] | None = {}
        self._loops_dropped = weakref.finalize(self, _close_mailboxes, self._loops)
        self._loops_dropped.atexit = False
        self._process = os.getpid()
        self._loops_lock = threading.Lock()
        self._notifier = Notifier()
        _live.add(self)

    def submit(
        self, req: Request, *, deadline_ms: float | None = None, priority: int = 0, caller: Hashable = None
    ) -> concurrent.futures.Future[Result]:
        """Queues a Request.

        Args:
            req: Input name -> array, as for the Engine.
            deadline_ms: Milliseconds from now in which the Result is of use; None for the Batcher's `slo_ms`. A Request
                whose deadline passes while it waits is not computed.
            priority: Larger goes first; among equals, the earlier deadline.
            caller: Whose Request it is: a name, a key, anything hashable. While several callers compete, none is
                admitted beyond its fair share of the backlog. Those that give none are one caller together.

        Returns:
            A future of the Result. Its ``cancel()`` works until the Request runs.

        Raises:
            RequestError: The Request does not fit the signature; nothing else is disturbed.
            Overloaded: The queue is full, the caller has its fair share of it, or the deadline cannot be met;
                ``retry_after_s`` says when to come back.
            DeadlineExceeded: The deadline has already passed.
            BackendUnavailable: The Batcher is closed.
        """
        try:
            request = req if type(req) is dict else dict(req)
            ticket = self._enqueue(request, deadline_ms, priority, _hash(caller), False)
        except (TypeError, ValueError, RequestError) as error:
            explain.refuse(self._engine.signature, req, error)
        return TicketFuture(ticket, self._notifier)

    async def infer(
        self, req: Request, *, deadline_ms: float | None = None, priority: int = 0, caller: Hashable = None
    ) -> Result:
        """Runs a Request and returns its Result.

        Cancelling the awaiting task takes the Request out of the queue. The event loop is woken once for all
        Requests that end together. Where the Engine is idle and the Request sooner run than handed to the scheduler's
        thread (20 us, by the cost model; native backend), it runs on the event loop's own thread.
        Many strings (more than 2000) are converted on another thread, for which at most `max_queue` Requests wait.

        Args:
            req: As for `submit`.
            deadline_ms: As for `submit`.
            priority: As for `submit`.
            caller: As for `submit`.

        Raises:
            HeadraceError: As `submit`, and what the Request ended with: `DeadlineExceeded`, `ExecutionError`, or
                `Cancelled` where the Batcher was closed first.
        """
        loop = asyncio.get_running_loop()
        loops = self._loops
        mailbox = None if loops is None else loops.get(loop)
        if mailbox is None:
            mailbox = self._open_mailbox(loop)
        try:
            request = req if type(req) is dict else dict(req)
            beside = self._string_inputs and self._has_many_strings(request)
            ticket = None if beside else self._enqueue(request, deadline_ms, priority, _hash(caller), True)
        except (TypeError, ValueError, RequestError) as error:
            explain.refuse(self._engine.signature, req, error)
        if ticket is None:
            return await self._infer_beside(request, deadline_ms, priority, caller)
        if ticket.done:
            self._answered_here += 1
            if self._answered_here % _TURN == 0:
                await asyncio.sleep(0)
        else:
            future: asyncio.Future[Result] = loop.create_future()
            if ticket.attach(mailbox, future):
                try:
                    return await future
                except asyncio.CancelledError:
                    ticket.cancel()
                    raise
        result: Result = ticket.result()
        return result

    def _has_many_strings(self, request: Request) -> bool:
        return any(getattr(request.get(name), "size", 0) > _STRINGS_MAX for name in self._string_inputs)

    async def _infer_beside(
        self, request: Request, deadline_ms: float | None, priority: int, caller: Hashable
    ) -> Result:
        """As `infer`, with strings converted beside the loop, since each costs what a thousand numbers do."""

        def submit(left_ms: float | None) -> concurrent.futures.Future[Result]:
            return self.submit(request, deadline_ms=left_ms, priority=priority, caller=caller)

        return await asyncio.wrap_future(await self._sideline.submit(submit, deadline_ms))

    def stats(self) -> dict[str, Any]:
        """The ledger and what was measured.

        Counts: ``accepted`` = ``ok`` + ``failed`` + ``expired`` + ``cancelled`` + ``queued`` in every snapshot, where
        ``queued`` = ``waiting`` + ``running``; ``refused`` ones were never accepted. ``batches``; ``batch_sizes[n]``:
        Batches of n Requests; ``batch_seconds[n]``: how long those ran together; ``requests_per_batch``: their mean.

        Measured: ``offered_rps``, arrivals per second over the last seconds, refused ones included; ``capacity_rps``,
        Requests per second that full Batches would sustain within the SLO, by the cost model (0 until a Batch ran);
        both also as ``..._work_per_s``, in the unit of `Engine.work`; ``utilisation``, the share of the last seconds
        in which the Engine ran; ``queue_delay_s``, how long recent Requests waited, or the longest waiting one if
        that is more; ``running_s``, how long the Batch that runs has been running, 0 if none does; ``queue_delay``
        and ``compute``, histograms (``count``, ``total_s``, ``p50_s``, ``p99_s``, cumulative ``buckets``) of the wait
        of each Request and the run of each Batch; ``cost_fixed_s`` and ``cost_per_work_s``, the cost model.
        """
        return self._scheduler.stats()

    def close(self, drain: bool = True) -> None:
        """Takes no more Requests, answers those accepted, and returns when the Engine is idle.

        Ctrl-C ends the wait, while what was accepted is still being answered; a second call waits for that, or, without
        `drain`, cancels what then waits.

        Args:
            drain: True to run what waits; False to cancel it (its callers get `Cancelled`).
        """
        if os.getpid() != self._process:  # forked: the other one's
            return
        self._scheduler.close(drain)
        self._sideline.close()
        self._notifier.close()
        with self._loops_lock:
            self._loops = None
        self._loops_dropped()
        _live.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        # Whoever presses Ctrl-C or leaves by sys.exit() does not want to wait for what is queued.
        self.close(drain=kind is None or not issubclass(kind, KeyboardInterrupt | SystemExit))

    def _check_and_submit(
        self,
        request: Request,
        deadline_ms: float | None,
        priority: int,
        caller: int,
        here: bool,
    ) -> _core.Ticket:
        """As the scheduler's own `submit`, but nothing that needs the interpreter runs on the caller's thread."""
        arrays = self._engine.check(request)
        work = self._engine.work(arrays)
        return self._scheduler.submit_checked(arrays, work, deadline_ms, priority, caller)

    def _open_mailbox(self, loop: asyncio.AbstractEventLoop) -> _core.Mailbox:
        if os.getpid() != self._process:  # where a thread that is gone may hold the lock
            raise BackendUnavailable(
                f"got a Request in process {os.getpid()}, which was forked from the Batcher's, {self._process}, "
                f"expected a Batcher that was made there"
            )
        with self._loops_lock:
            if self._loops is None:  # nobody would close this one
                raise BackendUnavailable("got a Request for a closed Batcher")
            for other in [other for other in self._loops if other.is_closed()]:
                del self._loops[other]
            mailbox = _core.Mailbox()
            loop.add_reader(mailbox.fd, _deliver, mailbox)
            self._loops[loop] = mailbox
            return mailbox


def _check_options(slo_ms: float | None, max_queue: int, max_batch: int) -> None:
    if slo_ms is not None and not slo_ms > 0:
        raise ConfigError(f"Batcher: got slo_ms={slo_ms!r}, expected a positive number of milliseconds or None")
    for name, value in (("max_queue", max_queue), ("max_batch", max_batch)):
        if not 0 < value <= 1 << 24:
            raise ConfigError(f"Batcher: got {name}={value!r}, expected 1 to {1 << 24}")


def _hash(caller: Hashable) -> int:
    """What the scheduler knows a caller by: 64 bits, 0 for none."""
    return 0 if caller is None else hash(caller) & 0xFFFF_FFFF_FFFF_FFFF


def _deliver(mailbox: _core.Mailbox) -> None:
    """Gives everything in an event loop's mailbox to the futures that wait for it. Runs on that loop."""
    for ticket in mailbox.fetch():
        future = ticket.take_target()
        if future.done():  # its task was cancelled
            continue
        try:
            result = ticket.result()
        except BaseException as error:
            _deliver_error(future, error)
        else:
            future.set_result(result)


def _deliver_error(future: asyncio.Future[Result], error: BaseException) -> None:
    try:
        future.set_exception(error)
    except Exception as refusal:  # others wait behind this one
        future.set_exception(ExecutionError(f"got {error!r}, which a future does not take: {refusal}"))


def _close_mailboxes(loops: dict[asyncio.AbstractEventLoop, _core.Mailbox]) -> None:
    for loop, mailbox in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its watch on the mailbox with it
            loop.call_soon_threadsafe(_close_mailbox, loop, mailbox)


def _close_mailbox(loop: asyncio.AbstractEventLoop, mailbox: _core.Mailbox) -> None:
    _deliver(mailbox)
    loop.remove_reader(mailbox.fd)


def _warmup_runs(engine: Engine, max_batch: int) -> list[tuple[float, float]]:
    """Times the Engine on its smallest Request: (work, seconds) pairs for the cost model, which live Batches correct.

    Empty where the model does not take such a Request; then the first Batch teaches the cost model.
    """
    samples: list[tuple[float, float]] = []
    try:
        request = engine.check(_smallest_request(engine.signature))
        work = engine.work(request)
        for size in _WARMUP_BATCHES:
            if size > max_batch or (samples and samples[-1][1] > _WARMUP_RUN_S_MAX):
                break
            runs_s = []
            for _ in range(2):
                start_s = time.perf_counter()
                engine.executable.run_batch([request] * size)
                runs_s.append(time.perf_counter() - start_s)
            samples.append((float(size * work), min(runs_s)))
    except Exception:  # whatever a backend raises
        return []
    return samples


def _smallest_request(signature: Signature) -> Request:
    """Zeros, with every symbolic dim 1."""
    return {
        spec.name: np.full(
            [1 if isinstance(dim, str) else dim for dim in spec.dims],
            "" if spec.dtype == "string" else 0,
            dtype=spec.numpy_dtype,
        )
        for spec in signature.inputs
    }


# A scheduler thread that outlives the interpreter would run a Python backend without one.
_live: weakref.WeakSet[Batcher] = weakref.WeakSet()
os.register_at_fork(after_in_child=_live.clear)


@atexit.register
def _close_all() -> None:
    errors = []
    for batcher in list(_live):
        try:
            batcher.close(drain=False)
        except Exception as error:  # the others are to be closed all the same
            errors.append(error)
    if errors:
        raise ExceptionGroup("closing the Batchers that were still open", errors)
