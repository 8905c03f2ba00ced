"""The futures of a Batcher, with threads and with asyncio, and what cancelling them does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest
from batcher_fakes import WAIT_S, Gated, gather, vector

import headrace as hr
from headrace import batcher as batcher_module
from headrace.backend import Result
from headrace.engine import Engine


def test_a_waiting_request_can_be_cancelled_and_a_running_one_not(gated: Gated) -> None:
    running = gated.occupy()
    waiting = gated.batcher.submit(vector(1))
    assert running.running()
    assert not waiting.running()
    assert not running.cancel()
    assert waiting.cancel()
    assert waiting.cancel()
    assert waiting.cancelled()
    assert waiting.done()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.exception()
    gated.release()
    assert running.result(WAIT_S)["y"][0] == 0
    assert not running.cancel()
    assert gated.executable.batches == [[0]]
    stats = gated.batcher.stats()
    assert (stats["cancelled"], stats["ok"]) == (1, 1)


def test_result_times_out(gated: Gated) -> None:
    future = gated.occupy()
    with pytest.raises(TimeoutError):
        future.result(0.01)
    with pytest.raises(TimeoutError):
        future.exception(0)
    assert not future.done()


def test_futures_work_with_the_standard_library(gated: Gated) -> None:
    first = gated.occupy()
    called: list[concurrent.futures.Future[Result]] = []
    told = threading.Event()
    early = gated.batcher.submit(vector(1))
    early.add_done_callback(called.append)
    early.add_done_callback(lambda _: told.set())
    bad = gated.batcher.submit(vector(-1))
    dropped = gated.batcher.submit(vector(3))
    futures = [first, early, bad, dropped]
    assert concurrent.futures.wait(futures, timeout=0.01).not_done == set(futures)
    assert dropped.cancel()
    assert concurrent.futures.wait(futures, WAIT_S, concurrent.futures.FIRST_COMPLETED).done == {dropped}
    gated.release()
    assert set(concurrent.futures.as_completed(futures, WAIT_S)) == set(futures)
    assert told.wait(WAIT_S)
    assert called == [early]
    assert float(early.result()["y"][0]) == 2.0
    assert isinstance(bad.exception(), ValueError)
    late: list[object] = []
    early.add_done_callback(late.append)  # at once: it has ended
    assert late == [early]


def test_a_future_can_be_awaited_through_wrap_future(native: Engine) -> None:
    async def main(batcher: hr.Batcher) -> Result:
        return await asyncio.wrap_future(batcher.submit(gather(21)))

    with hr.Batcher(native) as batcher:
        assert float(asyncio.run(main(batcher))["y"][0]) == 42.0


def test_cancelling_the_awaiting_task_takes_the_request_out_of_the_queue(gated: Gated) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(gated.batcher.infer(vector(i))) for i in range(1, 4)]
        await asyncio.sleep(0)
        assert gated.batcher.stats()["waiting"] == 3
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert gated.batcher.stats()["waiting"] == 2
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gated.batcher.infer(vector(9)), 0.01)
        gated.release()
        assert [float(r["y"][0]) for r in await asyncio.gather(tasks[0], tasks[2])] == [2.0, 6.0]

    gated.occupy()
    asyncio.run(main())
    assert gated.executable.batches == [[0], [1, 3]]
    stats = gated.batcher.stats()
    assert (stats["cancelled"], stats["ok"]) == (2, 3)


def test_cancelling_a_running_infer_drops_its_result(gated: Gated) -> None:
    async def main() -> None:
        gated.executable.gate.clear()
        task = asyncio.create_task(gated.batcher.infer(vector(1)))
        while not gated.executable.batches:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gated.release()
        assert float((await gated.batcher.infer(vector(2)))["y"][0]) == 4.0

    asyncio.run(main())
    assert gated.batcher.stats()["ok"] == 2


def test_an_event_loop_is_woken_once_per_batch(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes: list[int] = []
    deliver = batcher_module._deliver
    monkeypatch.setattr(batcher_module, "_deliver", lambda mailbox: (wakes.append(1), deliver(mailbox)))

    async def main() -> None:
        tasks = [asyncio.create_task(gated.batcher.infer(vector(i))) for i in range(40)]
        await asyncio.sleep(0)
        gated.release()
        await asyncio.gather(*tasks)

    gated.occupy()
    asyncio.run(main())
    assert len(gated.executable.batches) == 2
    assert len(wakes) == 1
