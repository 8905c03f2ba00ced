"""The Batcher through its Python face, on the native backend and on Engines that run in Python."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import headrace as hr
from headrace import _core
from headrace import batcher as batcher_module
from headrace.backend import Executable, Plan, Request, Result
from headrace.engine import Engine
from headrace.errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    DtypeMismatch,
    ExecutionError,
    MissingInput,
    Overloaded,
    ShapeMismatch,
    UnknownInput,
)
from headrace.signature import Signature, TensorSpec

WAIT_S = 20.0


class GatedExecutable(Executable):
    """Doubles x; can be held inside a Batch; fails for Requests in which x[0] is negative."""

    plan = Plan(backend="gated", device="cpu", isa="python", precision="fp32", threads=1)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[float]] = []

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        self.batches.append([float(request["x"][0]) for request in requests])
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        for request in requests:
            if request["x"][0] < 0:
                raise ValueError(f"got x[0]={request['x'][0]}, expected at least 0")
        return [{"y": request["x"] * 2} for request in requests]


VECTOR = Signature((TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))


class Gated:
    """A Batcher on a GatedExecutable."""

    def __init__(self, **options: Any) -> None:
        self.executable = GatedExecutable()
        self.batcher = hr.Batcher(Engine(VECTOR, self.executable, "gated"), **options)
        self.executable.batches.clear()  # the warm-up
        while self.executable.entered.acquire(blocking=False):
            pass

    def occupy(self) -> concurrent.futures.Future[Result]:
        """Submits a Request and holds the Engine in it, so that later ones gather."""
        self.executable.gate.clear()
        future = self.batcher.submit(vector(0))
        assert self.executable.entered.acquire(timeout=WAIT_S)
        return future

    def release(self) -> None:
        self.executable.gate.set()


def vector(first: float, length: int = 1) -> Request:
    return {"x": np.full(length, first, np.float32)}


@pytest.fixture
def make_gated() -> Iterator[Callable[..., Gated]]:
    made: list[Gated] = []

    def make(**options: Any) -> Gated:
        made.append(Gated(**options))
        return made[-1]

    yield make
    for gated in made:
        gated.release()
        gated.batcher.close(drain=False)


@pytest.fixture
def gated(make_gated: Callable[..., Gated]) -> Gated:
    return make_gated()


@pytest.fixture(scope="module")
def native() -> Engine:
    """y = x + x, then gathered at i: an index out of range fails in the Engine, not at the check."""
    nodes = [helper.make_node("Add", ["x", "x"], ["d"]), helper.make_node("Gather", ["d", "i"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "double_gather",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["k"]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["k"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return hr.load(model).compile(backend="native", threads=1)


def gather(first: float, index: int = 0, length: int = 1) -> Request:
    return {"x": np.arange(first, first + length, dtype=np.float32), "i": np.array([index])}


def check_balance(stats: dict[str, Any]) -> None:
    ended = stats["ok"] + stats["failed"] + stats["expired"] + stats["cancelled"]
    assert stats["accepted"] == ended + stats["queued"]
    assert stats["queued"] == stats["waiting"] + stats["running"]


# Results


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


def test_string_results_are_copied_out_of_the_batch() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "strings",
        [helper.make_tensor_value_info("x", onnx.TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.STRING, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with hr.Batcher(hr.load(model).compile(threads=1)) as batcher:
        futures = [batcher.submit({"x": np.array([f"a{i}", "", "é" * i], dtype=object)}) for i in range(50)]
        gc.collect()
        for i, future in enumerate(futures):
            assert future.result()["y"].tolist() == [f"a{i}", "", "é" * i]


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


# Futures and cancellation


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


# Life and death


def test_close_drains(gated: Gated) -> None:
    first = gated.occupy()
    waiting = [gated.batcher.submit(vector(i)) for i in range(5)]
    closer = threading.Thread(target=gated.batcher.close)
    closer.start()
    time.sleep(0.01)
    gated.release()
    closer.join(WAIT_S)
    assert all(future.done() for future in [first, *waiting])
    with pytest.raises(BackendUnavailable, match="closed"):
        gated.batcher.submit(vector(1))
    gated.batcher.close()
    check_balance(gated.batcher.stats())


def test_close_without_drain_cancels_what_waits(gated: Gated) -> None:
    first = gated.occupy()
    waiting = gated.batcher.submit(vector(1))
    told: list[object] = []
    waiting.add_done_callback(told.append)

    async def awaiting() -> None:
        task = asyncio.create_task(gated.batcher.infer(vector(2)))
        await asyncio.sleep(0)
        closer = threading.Thread(target=gated.batcher.close, args=(False,))
        closer.start()
        with pytest.raises(Cancelled, match="closed"):
            await task
        gated.release()
        await asyncio.to_thread(closer.join, WAIT_S)

    asyncio.run(awaiting())
    with pytest.raises(Cancelled, match="closed"):
        waiting.result(WAIT_S)
    assert not waiting.cancelled()
    assert told == [waiting]
    assert float(first.result(WAIT_S)["y"][0]) == 0
    assert gated.batcher.stats()["cancelled"] == 2


def test_closing_from_a_callback_or_a_backend_does_not_deadlock(gated: Gated) -> None:
    first = gated.occupy()
    closed = threading.Event()
    first.add_done_callback(lambda _: (gated.batcher.close(), closed.set()))
    gated.release()
    assert closed.wait(WAIT_S)

    class Closing(GatedExecutable):
        batcher: hr.Batcher | None = None

        def run_batch(self, requests: Sequence[Request]) -> list[Result]:
            if self.batcher is not None:
                self.batcher.close()
            return super().run_batch(requests)

    executable = Closing()
    with hr.Batcher(Engine(VECTOR, executable)) as batcher:
        executable.batcher = batcher
        assert "from outside" in str(batcher.submit(vector(1)).exception(WAIT_S))
        executable.batcher = None


def test_an_engine_closed_first_fails_the_requests(gated: Gated) -> None:
    def closed(requests: Sequence[Request]) -> list[Result]:
        raise BackendUnavailable("closed")

    executable = GatedExecutable()
    executable.run_batch = closed  # type: ignore[method-assign]
    with hr.Batcher(Engine(VECTOR, executable)) as batcher, pytest.raises(BackendUnavailable):
        batcher.submit(vector(1)).result(WAIT_S)


def test_a_batcher_that_is_dropped_ends_its_thread_and_frees_its_engine(native: Engine) -> None:
    executable = GatedExecutable()
    batcher = hr.Batcher(Engine(VECTOR, executable))
    future = batcher.submit(vector(1))
    future.result(WAIT_S)
    gone = weakref.ref(executable)
    del batcher, executable
    gc.collect()
    assert gone() is None
    assert float(future.result()["y"][0]) == 2.0


def test_inputs_of_abandoned_requests_are_freed(native: Engine) -> None:
    class Tracked(np.ndarray):  # ndarray itself takes no weak references of subclasses' kind
        pass

    with hr.Batcher(native) as batcher:
        references = []
        for i in range(200):
            x = np.array([i], np.float32).view(Tracked)
            references.append(weakref.ref(x))
            batcher.submit({"x": x, "i": np.array([0])})
            del x
        deadline = time.monotonic() + WAIT_S
        while batcher.stats()["queued"] and time.monotonic() < deadline:
            time.sleep(0.001)
        batcher.stats()
    gc.collect()
    assert not any(reference() is not None for reference in references)


@pytest.mark.parametrize("body", ["", "future.result()", "future.add_done_callback(print)"])
def test_a_process_that_forgets_to_close_still_ends(body: str) -> None:
    script = f"""
        import time
        import numpy as np, headrace as hr
        from headrace.engine import Engine
        from headrace.signature import Signature, TensorSpec
        class Slow:
            plan = None
            def run_batch(self, requests):
                time.sleep(0.05)
                return [{{"y": r["x"]}} for r in requests]
        spec = lambda name: TensorSpec(name, "float32", ("n",))
        batcher = hr.Batcher(Engine(Signature((spec("x"),), (spec("y"),)), Slow()))
        for _ in range(50):
            future = batcher.submit({{"x": np.zeros(1, np.float32)}})
        {body}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


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


def test_mailbox_wait_ends_when_closed() -> None:
    mailbox = _core.Mailbox()
    mailbox.close()
    assert not mailbox.wait()
