"""Every Request has its own Result or its own error, on the native backend and on Engines that run in Python."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from batcher_fakes import VECTOR, WAIT_S, Gated, GatedExecutable, check_balance, gather, vector

import headrace as hr
from headrace.backend import Request, Result
from headrace.engine import Engine
from headrace.errors import (
    ConfigError,
    DeadlineExceeded,
    DtypeMismatch,
    ExecutionError,
    MissingInput,
    Overloaded,
    ShapeMismatch,
    UnknownInput,
)


def test_submit_answers_every_request_with_its_own_result(native: Engine) -> None:
    with hr.Batcher(native) as batcher:
        futures = [batcher.submit(gather(i, index=i % 7, length=7)) for i in range(500)]
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(WAIT_S)["y"], [2.0 * (i + i % 7)])
        stats = batcher.stats()
    assert stats["ok"] == stats["accepted"] == 500
    assert sum(n * count for n, count in enumerate(stats["batch_sizes"])) == 500
    check_balance(stats)


def test_infer_answers_every_request_with_its_own_result(native: Engine) -> None:
    async def main(batcher: hr.Batcher) -> None:
        results = await asyncio.gather(*(batcher.infer(gather(i)) for i in range(200)))
        assert [float(result["y"][0]) for result in results] == [2.0 * i for i in range(200)]

    with hr.Batcher(native) as batcher:
        asyncio.run(main(batcher))
        asyncio.run(main(batcher))  # a second event loop


def test_a_short_request_is_answered_without_a_wait(native: Engine) -> None:
    async def waits(batcher: hr.Batcher) -> int | None:
        count = 0
        for _ in range(64):
            batcher._scheduler.fit([(1, 1e-6), (100, 2e-6)])  # whatever it has learnt of a slow machine since
            asking = batcher.infer(gather(3.0))
            try:
                while (waits_for := asking.send(None)) is None:
                    count += 1
            except StopIteration as end:
                np.testing.assert_array_equal(end.value["y"], [6.0])
            else:
                await asyncio.wait({waits_for})
                asking.close()
                return None
        return count

    # A thread that is descheduled while it runs one looks like a Request that takes long, after which none runs there
    # for a while: hence some attempts.
    for _ in range(5):
        with hr.Batcher(native) as batcher:
            if (count := asyncio.run(waits(batcher))) is None:
                continue
            # None of them waits for anything, but some let the loop's other tasks run.
            assert 0 < count <= 4
            assert batcher.stats()["ok"] == batcher.stats()["batch_sizes"][1] == 64
            check_balance(batcher.stats())
            return
    pytest.fail("got a Request that was handed over in each of 5 attempts")


async def waited_for(asking: Coroutine[Any, Any, Result], y: float) -> bool:
    """Whether a Request, with y for its Result, was waited for on the event loop's thread, where it may have run."""
    try:
        waits_for = asking.send(None)
    except StopIteration as end:
        np.testing.assert_array_equal(end.value["y"], [y])
        return False
    assert isinstance(waits_for, asyncio.Future)
    await asyncio.wait({waits_for})
    with pytest.raises(StopIteration) as end_:
        asking.send(None)
    np.testing.assert_array_equal(end_.value.value["y"], [y])
    return True


def test_a_long_request_does_not_run_on_the_event_loop(native: Engine) -> None:
    async def main(batcher: hr.Batcher) -> list[bool]:
        # Long enough that the scheduler's thread has hardly run all of them before anybody could wait.
        return [await waited_for(batcher.infer(gather(3.0, length=1 << 23)), 6.0) for _ in range(3)]

    with hr.Batcher(native) as batcher:
        batcher._scheduler.fit([(1, 1.0), (100, 1.0)])
        assert any(asyncio.run(main(batcher)))


def test_no_request_of_a_backend_in_python_runs_on_the_event_loop(gated: Gated) -> None:
    async def main() -> None:
        gated.executable.gate.clear()
        asyncio.get_running_loop().call_soon(gated.release)
        assert await waited_for(gated.batcher.infer(vector(3.0)), 6.0)

    gated.batcher._scheduler.fit([(1, 1e-6), (100, 2e-6)])
    asyncio.run(main())


def test_threads_and_loops_share_one_batcher(native: Engine) -> None:
    def thread(batcher: hr.Batcher, base: int) -> int:
        return sum(float(batcher.submit(gather(base + i)).result()["y"][0]) == 2.0 * (base + i) for i in range(200))

    async def task(batcher: hr.Batcher, base: int) -> int:
        return sum([float((await batcher.infer(gather(base + i)))["y"][0]) == 2.0 * (base + i) for i in range(200)])

    with hr.Batcher(native) as batcher, concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(thread, batcher, 1000 * t) for t in range(2)]
        calls += [pool.submit(asyncio.run, task(batcher, 1000 * t)) for t in range(2, 4)]
        assert [call.result(WAIT_S) for call in calls] == [200] * 4


def test_results_are_the_engines_own_and_outlive_the_batcher(native: Engine) -> None:
    with hr.Batcher(native) as batcher:
        result = batcher.submit(gather(3.0)).result()
    gc.collect()
    expected = native(gather(3.0))
    assert result.keys() == expected.keys()
    np.testing.assert_array_equal(result["y"], expected["y"])
    result["y"][0] = 1.0  # writable, like any new array


def test_requests_gather_while_the_engine_is_busy(gated: Gated) -> None:
    first = gated.occupy()
    futures = [gated.batcher.submit(vector(i)) for i in range(1, 6)]
    gated.release()
    assert [float(future.result(WAIT_S)["y"][0]) for future in [first, *futures]] == [0, 2, 4, 6, 8, 10]
    assert gated.executable.batches == [[0], [1, 2, 3, 4, 5]]


def test_max_batch_and_priority(make_gated: Callable[..., Gated]) -> None:
    gated = make_gated(max_batch=2)
    gated.occupy()
    for i in range(1, 5):
        gated.batcher.submit(vector(i), priority=i // 3)
    gated.release()
    gated.batcher.close()
    assert gated.executable.batches == [[0], [3, 4], [1, 2]]


# Refusals and failures


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({}, MissingInput),
        ({"x": np.zeros(1, np.float64)}, DtypeMismatch),
        ({"x": np.zeros((1, 1), np.float32)}, ShapeMismatch),
        ({"x": np.zeros(1, np.float32), "z": np.zeros(1)}, UnknownInput),
    ],
)
def test_a_wrong_request_is_refused_in_the_submitting_thread(
    gated: Gated, request_: Request, error: type[Exception]
) -> None:
    gated.occupy()
    with pytest.raises(error, match="expected"):
        gated.batcher.submit(request_)
    with pytest.raises(error, match="expected"):
        asyncio.run(gated.batcher.infer(request_))
    assert gated.batcher.stats()["accepted"] == 1


def test_a_wrong_request_disturbs_nothing_on_native(native: Engine) -> None:
    with hr.Batcher(native) as batcher:
        with pytest.raises(DtypeMismatch):
            batcher.submit({"x": np.zeros(1), "i": np.array([0])})
        assert float(batcher.submit(gather(1)).result()["y"][0]) == 2.0


def test_a_request_that_fails_in_the_engine_fails_alone(gated: Gated) -> None:
    gated.occupy()
    futures = [gated.batcher.submit(vector(-1 if i in (3, 7) else i)) for i in range(10)]
    gated.release()
    for i, future in enumerate(futures):
        if i in (3, 7):
            assert isinstance(future.exception(WAIT_S), ValueError)  # as the backend raised it
        else:
            assert float(future.result(WAIT_S)["y"][0]) == 2.0 * i
    stats = gated.batcher.stats()
    assert (stats["ok"], stats["failed"], stats["batches"]) == (9, 2, 2)


def test_a_request_that_fails_on_native_fails_alone(native: Engine) -> None:
    with hr.Batcher(native) as batcher:
        futures = [batcher.submit(gather(i, index=5 if i % 10 == 3 else 0)) for i in range(64)]
        for i, future in enumerate(futures):
            if i % 10 == 3:
                with pytest.raises(ExecutionError, match="5"):
                    future.result(WAIT_S)
            else:
                assert float(future.result(WAIT_S)["y"][0]) == 2.0 * i
        assert batcher.stats()["failed"] == 7


def test_a_backend_that_returns_too_little_is_an_execution_error(make_gated: Callable[..., Gated]) -> None:
    gated = make_gated()
    gated.executable.run_batch = None  # type: ignore[assignment]  # the Batcher has bound it already
    other = Engine(VECTOR, gated.executable, "short")
    gated.executable.run_batch = lambda requests: []  # type: ignore[method-assign]
    with hr.Batcher(other) as batcher, pytest.raises(ExecutionError, match="got 0 Results"):
        batcher.submit(vector(1)).result(WAIT_S)


def test_a_full_queue_refuses(make_gated: Callable[..., Gated]) -> None:
    gated = make_gated(max_queue=2)
    gated.occupy()
    gated.batcher.submit(vector(1))
    gated.batcher.submit(vector(2))
    with pytest.raises(Overloaded, match="max_queue=2") as caught:
        gated.batcher.submit(vector(3))
    assert caught.value.retry_after_s > 0
    gated.release()
    gated.batcher.close()
    assert gated.batcher.stats()["refused"] == 1
    assert gated.executable.batches == [[0], [1, 2]]


def test_a_deadline_that_cannot_be_met_is_refused_and_not_computed(gated: Gated) -> None:
    gated.batcher._scheduler.fit([(1, 0.5), (10, 0.5)])
    with pytest.raises(Overloaded, match="expected at least 500 ms"):
        gated.batcher.submit(vector(1), deadline_ms=100)
    gated.batcher.submit(vector(2), deadline_ms=60_000).result(WAIT_S)
    assert gated.executable.batches == [[2]]


def test_a_greedy_caller_leaves_room_for_the_others(make_gated: Callable[..., Gated]) -> None:
    gated = make_gated(max_queue=20)
    gated.occupy()
    for _ in range(14):  # a 15th is more than twice the 6 places left of 20
        gated.batcher.submit(vector(1), caller="greedy")
    with pytest.raises(Overloaded, match="fair share: got 14 waiting Requests of this caller"):
        gated.batcher.submit(vector(1), caller="greedy")
    modest = gated.batcher.submit(vector(2), caller="modest")
    gated.release()
    assert modest.result(WAIT_S)["y"][0] == 4
    gated.batcher.close()
    check_balance(gated.batcher.stats())


def test_the_expired_are_answered_while_the_engine_hangs(gated: Gated) -> None:
    gated.occupy()
    expired = gated.batcher.submit(vector(1), deadline_ms=20)
    with pytest.raises(DeadlineExceeded, match="waited"):
        expired.result(WAIT_S)
    assert gated.batcher.stats()["running_s"] >= 0.02
    assert gated.batcher.stats()["running"] == 1
    check_balance(gated.batcher.stats())


@pytest.mark.parametrize("deadline_ms", [1e12, 1e300, float("inf")])
def test_a_deadline_that_never_comes_is_not_the_slo(make_gated: Callable[..., Gated], deadline_ms: float) -> None:
    gated = make_gated(slo_ms=20)
    gated.occupy()
    patient = gated.batcher.submit(vector(2), deadline_ms=deadline_ms)
    with pytest.raises(DeadlineExceeded, match="waited"):
        gated.batcher.submit(vector(1)).result(WAIT_S)
    gated.release()
    assert patient.result(WAIT_S)["y"][0] == 4


@pytest.mark.parametrize("deadline_ms", [0, -5.0, -1e300, float("nan")])
def test_a_deadline_in_the_past_is_refused(gated: Gated, deadline_ms: float) -> None:
    with pytest.raises(DeadlineExceeded):
        gated.batcher.submit(vector(1), deadline_ms=deadline_ms)
    assert gated.executable.batches == []


def test_the_expired_are_not_computed(make_gated: Callable[..., Gated]) -> None:
    gated = make_gated(slo_ms=30)
    gated.occupy()
    expired = gated.batcher.submit(vector(1))
    patient = gated.batcher.submit(vector(2), deadline_ms=60_000)
    time.sleep(0.04)
    gated.release()
    with pytest.raises(DeadlineExceeded, match="waited"):
        expired.result(WAIT_S)
    assert float(patient.result(WAIT_S)["y"][0]) == 4.0
    assert gated.executable.batches[1:] == [[2]]
    assert gated.batcher.stats()["expired"] == 1


@pytest.mark.parametrize("options", [{"slo_ms": 0}, {"slo_ms": float("nan")}, {"max_queue": 0}, {"max_batch": -1}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        hr.Batcher(Engine(VECTOR, GatedExecutable()), **options)


def test_stats_measure_what_happened(gated: Gated) -> None:
    for i in range(20):
        gated.batcher.submit(vector(i, length=3)).result(WAIT_S)
    stats = gated.batcher.stats()
    assert stats["batches"] == stats["batch_sizes"][1] == stats["compute"]["count"] == 20
    assert stats["requests_per_batch"] == 1.0
    assert stats["queue_delay"]["count"] == 20
    assert stats["queue_delay"]["buckets"][-1] == (float("inf"), 20)
    assert stats["offered_rps"] > 0
    assert stats["capacity_rps"] > 0
    assert stats["capacity_work_per_s"] == pytest.approx(3 * stats["capacity_rps"])
    assert 0 < stats["utilisation"] <= 1
