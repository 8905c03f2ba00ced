"""Coroutines that begin at once, on the event loop's thread, and become tasks only where they have to wait.

A task costs a turn of the event loop before its first step. Most requests have all they need when they arrive, and an
answer before anybody would have had to wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, NoReturn


class Course:
    """What one coroutine runs in.

    Attributes:
        task: The task; None as long as it has not waited for anything.
    """

    __slots__ = ("task",)

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task = task


class _Beginning(threading.local):
    """What the coroutine runs in whose first step this thread takes."""

    course: Course | None = None


_beginning = _Beginning()


def current() -> Course:
    """What the calling coroutine runs in; its task may be there only later."""
    if (course := _beginning.course) is not None:
        return course
    task = asyncio.current_task()
    assert task is not None, "this is a bug: the caller runs outside of any task"
    return Course(task)


async def in_task() -> None:
    """Lets the calling coroutine go on as a task, for what needs one, such as `asyncio.timeout`."""
    if _beginning.course is not None:
        await asyncio.sleep(0)


def begin(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Runs a coroutine up to where it first waits.

    Until then `asyncio.current_task` knows nothing of it: see `in_task`.

    Args:
        loop: The running event loop.
        coroutine: What to run.

    Returns:
        The task in which the rest runs; None if there is no rest.

    Raises:
        BaseException: What the coroutine raised before it waited.
    """
    outer, course = _beginning.course, Course(None)
    _beginning.course = course
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    finally:
        _beginning.course = outer
    task = course.task = loop.create_task(_Rest(coroutine, waits_for))
    return task


class _Rest(Coroutine[Any, Any, None]):
    """The rest of a coroutine that has yielded once already.

    Itself a coroutine: a task around one that awaits it could be cancelled before it does, and the rest would not hear
    of it.
    """

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = [waits_for]

    def __await__(self) -> NoReturn:
        raise TypeError("this is a bug: the rest of a coroutine is for a task to run")

    def send(self, value: Any) -> Any:
        """What the coroutine yields next."""
        return self._waits_for.pop() if self._waits_for else self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """What it yields after an exception."""
        if self._waits_for and asyncio.isfuture(waited := self._waits_for.pop()):
            # As a task would: nobody waits for it any more, and what it stands for may be worth no more work.
            waited.cancel()
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Ends it where it stands."""
        self._coroutine.close()
