"""An event loop in a thread of its own, beside the one Ray Serve runs user code on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# Threads for what would block the loop (`asyncio.to_thread`): versions that open, close and are compared.
WORKERS = 6


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Makes uvloop's where that is installed: about twice asyncio's requests per second."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class LoopThread:
    """Runs coroutines for other threads until it is stopped.

    Serve's own loop is plain asyncio's, and what is put on it waits for whatever else Serve does there.
    """

    def __init__(self, name: str) -> None:
        self.loop = new_event_loop()
        self.loop.set_default_executor(_whole_pool(f"{name}-worker"))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine there; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there for a coroutine of another loop; cancelling one cancels the other."""
        return await asyncio.wrap_future(self.submit(coroutine))

    async def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a plain function there for a coroutine of another loop."""

        async def call() -> T:
            return function(*arguments)

        return await self.run(call())

    def tell(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls a plain function there, some time soon."""
        self.loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        """Ends the loop and the thread; what still runs on it ends with it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


def _whole_pool(name: str) -> ThreadPoolExecutor:
    """A pool that has all of its threads from the start: one that grew with use would look like a leak for hours."""
    pool = ThreadPoolExecutor(WORKERS, name)
    together = threading.Barrier(WORKERS + 1)
    for _ in range(WORKERS):
        pool.submit(together.wait)
    together.wait()
    return pool
