"""Notices clients that go away while their requests wait."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from headrace.serving import eager
from headrace.serving.body import Receive

# Most requests are answered sooner than this; only for those that wait longer is it worth watching the connection.
WATCH_AFTER_S = 0.002


class Watched:
    """One request being answered by the calling coroutine; see `DisconnectWatch.enter`."""

    __slots__ = ("_course", "_receive", "_watcher", "gone", "left", "since")

    def __init__(self, receive: Receive, since: float) -> None:
        self._course = eager.current()
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.since = since
        self.left = False
        self.gone = False

    def start(self) -> None:
        """Begins to watch the connection, for which ASGI needs a task of its own."""
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        # The body was read, so by ASGI the only message still to come is the disconnect. One look, because a server
        # that sends others without end would hold the loop for ever.
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.left:
            self.gone = True
            self._task.cancel()

    @property
    def _task(self) -> asyncio.Task[Any]:
        task = self._course.task
        assert task is not None, "this is a bug: a request waits outside of any task"
        return task

    def leave(self) -> None:
        """Ends the watch: the request has its answer, or its task was cancelled."""
        self.left = True
        if self._watcher is not None:
            self._watcher.cancel()

    def swallow_cancel(self) -> None:
        """Undoes our own `cancel`, so that the task may go on and count the request."""
        self._task.uncancel()


class DisconnectWatch:
    """Cancels the task of a request whose client has gone, so that the request leaves the queue.

    A timer per request would cost as much as decoding it; one timer sweeps all of them, in order of arrival.
    """

    def __init__(self) -> None:
        self._waiting: deque[Watched] = deque()
        # The loop on which a sweep is due; None while nobody waits.
        self._sweeping: asyncio.AbstractEventLoop | None = None

    def enter(self, receive: Receive) -> Watched:
        """Watches the request that the calling coroutine answers. The caller must `leave` it on every path.

        Args:
            receive: The request's ASGI receive, with the body already read from it.
        """
        loop = asyncio.get_running_loop()
        watched = Watched(receive, loop.time())
        if self._sweeping is not loop:
            self._waiting.clear()  # of a loop that has ended with requests unanswered
            self._sweeping = loop
            loop.call_later(WATCH_AFTER_S, self._sweep, loop)
        self._waiting.append(watched)
        return watched

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._waiting and (self._waiting[0].left or now - self._waiting[0].since >= WATCH_AFTER_S):
            watched = self._waiting.popleft()
            if not watched.left:
                watched.start()
        if self._waiting:
            loop.call_later(WATCH_AFTER_S, self._sweep, loop)
        else:
            self._sweeping = None
