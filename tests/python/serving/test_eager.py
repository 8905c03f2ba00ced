"""Coroutines that become tasks only where they wait."""

from __future__ import annotations

import asyncio

import pytest

from headrace.serving import eager


def test_without_a_wait_there_is_no_task() -> None:
    async def main() -> None:
        seen: list[object] = []

        async def work() -> None:
            seen.append(eager.current().task)

        assert eager.begin(asyncio.get_running_loop(), work()) is None
        assert seen == [None]

    asyncio.run(main())


def test_what_waits_goes_on_as_a_task() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        waits_for: asyncio.Future[int] = loop.create_future()
        seen: list[object] = []

        async def work() -> None:
            course = eager.current()
            await asyncio.sleep(0)
            seen.append(await waits_for)
            await eager.in_task()
            async with asyncio.timeout(5):
                await asyncio.sleep(0.001)
            seen.append(course.task is asyncio.current_task())

        task = eager.begin(loop, work())
        assert task is not None
        loop.call_later(0.01, waits_for.set_result, 7)
        await task
        assert seen == [7, True]

    asyncio.run(main())


def test_in_task_makes_room_for_what_needs_a_task() -> None:
    async def main() -> None:
        async def work() -> None:
            await eager.in_task()
            async with asyncio.timeout(5):
                await asyncio.sleep(0)

        task = eager.begin(asyncio.get_running_loop(), work())
        assert task is not None
        await task

    asyncio.run(main())


@pytest.mark.parametrize("later", [False, True])
def test_a_cancelled_one_hears_of_it_where_it_waits(later: bool) -> None:
    async def main() -> None:
        heard: list[str] = []
        waits_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                await waits_for
            except asyncio.CancelledError:
                heard.append("cancelled")
                raise

        task = eager.begin(asyncio.get_running_loop(), work())
        assert task is not None
        if later:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert heard == ["cancelled"]
        assert waits_for.cancelled()

    asyncio.run(main())


def test_errors_come_out_at_once_or_of_the_task() -> None:
    async def main() -> None:
        async def work(waits: bool) -> None:
            if waits:
                await asyncio.sleep(0)
            raise ValueError("no")

        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="no"):
            eager.begin(loop, work(False))
        task = eager.begin(loop, work(True))
        assert task is not None
        with pytest.raises(ValueError, match="no"):
            await task

    asyncio.run(main())
