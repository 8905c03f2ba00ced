"""Work on threads that neither an event loop nor the interpreter waits for at its end: what may take for ever."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_running: set[threading.Thread] = set()


def aside(name: str, work: Callable[[], T]) -> asyncio.Future[T]:
    """Begins work on a thread of its own.

    Args:
        name: The thread's.
        work: What to do there.

    Returns:
        Its result or its exception; whoever does not want to wait any more may settle it otherwise.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def settle(put: Callable[[Any], None], value: Any) -> None:
        if not ended.done():
            put(value)

    def tell(put: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, put, value)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            if isinstance(error, StopIteration):  # which no future takes
                error = RuntimeError(f"{name}: got a StopIteration, expected a result or another exception")
            tell(ended.set_exception, error)
        else:
            tell(ended.set_result, result)
        finally:
            _running.discard(thread)

    thread = threading.Thread(target=run, name=name, daemon=True)
    _running.add(thread)
    try:
        thread.start()
    except RuntimeError:  # there are too many
        _running.discard(thread)
        raise
    return ended


def given_up() -> list[str]:
    """The names of the threads whose work has not ended; asked when nobody waits for any."""
    return sorted(thread.name for thread in _running)
