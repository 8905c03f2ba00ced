"""The futures that a Batcher gives out for the Tickets of its C++ side."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import weakref
from typing import Any

from headrace import _core
from headrace.backend import Result

_LOG = logging.getLogger(__name__)


class TicketFuture(concurrent.futures.Future[Result]):
    """A future that waits in C++.

    The base class's state (a Condition and lists) costs more to make than the rest of `submit`, and setting it needs
    the interpreter. So it comes into being only when something asks for it: callbacks, `concurrent.futures.wait`,
    `asyncio.wrap_future`. Until then the ticket alone knows how things stand.
    """

    def __init__(self, ticket: _core.Ticket, notifier: Notifier) -> None:
        self._ticket = ticket
        self._notifier = notifier

    def result(self, timeout: float | None = None) -> Result:
        """The Result, waited for."""
        result: Result = self._ticket.result(timeout)
        return result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it ended with, waited for; None for a Result."""
        try:
            self._ticket.result(timeout)
        except concurrent.futures.CancelledError:
            raise
        except BaseException as error:
            if not self._ticket.done:  # a timeout, or Ctrl-C, of this call
                raise
            return error
        return None

    def done(self) -> bool:
        """Whether it has ended."""
        return self._ticket.done

    def running(self) -> bool:
        """Whether its Batch runs."""
        return self._ticket.status == "running"

    def cancelled(self) -> bool:
        """Whether its caller took it out of the queue."""
        return self._ticket.status == "cancelled"

    def cancel(self) -> bool:
        """Takes it out of the queue; False where it runs or has ended."""
        return self._ticket.cancel() or self.cancelled()

    def __getattr__(self, name: str) -> Any:
        # Reached only for attributes that are not there: the base class's, before the first use of them.
        if name not in ("_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _materialise:
            if "_done_callbacks" not in self.__dict__:
                super().__init__()
                if not self._notifier.watch(self._ticket, self):
                    self.settle()
        return self.__dict__[name]

    def settle(self) -> None:
        """Tells the base class how the ticket ended."""
        try:
            result = self._ticket.result()
        except concurrent.futures.CancelledError:
            super().cancel()
            self.set_running_or_notify_cancel()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)


_materialise = threading.RLock()


class Notifier:
    """A thread that settles futures whose callbacks or waiters must be told; started when the first one asks.

    It ends with `close`, or when nobody holds the Notifier any more: every future does that it has to settle.
    """

    def __init__(self) -> None:
        self._mailbox = _core.Mailbox()
        weakref.finalize(self, self._mailbox.close).atexit = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def watch(self, ticket: _core.Ticket, future: TicketFuture) -> bool:
        """Has the future settled when the ticket ends; False if it has ended already."""
        if not ticket.attach(self._mailbox, future):
            ticket.take_target()
            return False
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_settle_all, args=(self._mailbox,), name="headrace-notifier", daemon=True
                )
                self._thread.start()
        return True

    def close(self) -> None:
        """Ends the thread once it has settled what there is."""
        self._mailbox.close()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _settle_all(mailbox: _core.Mailbox) -> None:
    while mailbox.wait():
        for ticket in mailbox.fetch():
            try:
                ticket.take_target().settle()
            except BaseException:  # of a callback; the standard library lets those pass that are no Exception
                _LOG.exception("got an exception from a callback of a future of a Batcher")
