"""Requests with strings, which take long to convert: many are submitted on a thread of their own."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from batcher_fakes import WAIT_S, check_balance, identities

import headrace as hr
from headrace.engine import Engine
from headrace.errors import BackendUnavailable, DeadlineExceeded, Overloaded

MANY = {"x": np.array([f"é{number}" for number in range(5000)], dtype=object)}


class Submits:
    """The calls of a Batcher's `submit`: on which thread, and with how many milliseconds left."""

    def __init__(self, batcher: hr.Batcher) -> None:
        self.threads: list[str] = []
        self.left_ms: list[float | None] = []
        self._submit: Callable[..., Any] = batcher.submit
        batcher.submit = self  # type: ignore[method-assign]

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        self.left_ms.append(options["deadline_ms"])
        return self._submit(*args, **options)


@pytest.fixture(scope="module")
def strings() -> Engine:
    return identities(x=onnx.TensorProto.STRING)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opens = threading.Event()
    yield opens
    opens.set()


def hold(batcher: hr.Batcher, gate: threading.Event) -> None:
    """Has the thread that submits wait until the gate opens."""
    batcher._sideline._thread.submit(gate.wait, WAIT_S)


def test_results_are_copied_out_of_the_batch(strings: Engine) -> None:
    with hr.Batcher(strings) as batcher:
        futures = [batcher.submit({"x": np.array([f"a{i}", "", "é" * i], dtype=object)}) for i in range(50)]
        gc.collect()
        for i, future in enumerate(futures):
            assert future.result()["x_out"].tolist() == [f"a{i}", "", "é" * i]


def test_many_hold_up_no_event_loop(strings: Engine) -> None:
    async def main(batcher: hr.Batcher) -> None:
        assert (await batcher.infer(MANY))["x_out"].tolist() == MANY["x"].tolist()
        assert (await batcher.infer({"x": MANY["x"][:3]}))["x_out"].tolist() == MANY["x"][:3].tolist()
        with pytest.raises(DeadlineExceeded):
            await batcher.infer(MANY, deadline_ms=-1)
        asking = asyncio.create_task(batcher.infer(MANY))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    with hr.Batcher(strings) as batcher:
        submits = Submits(batcher)
        asyncio.run(main(batcher))
        batcher.close()
        assert submits.threads
        assert threading.main_thread().name not in submits.threads
        check_balance(batcher.stats())
        assert batcher.stats()["queued"] == 0
        with pytest.raises(BackendUnavailable):
            asyncio.run(batcher.infer(MANY))


def test_other_inputs_may_be_large() -> None:
    with hr.Batcher(identities(x=onnx.TensorProto.STRING, f=onnx.TensorProto.FLOAT)) as batcher:
        submits = Submits(batcher)
        numbers = np.arange(5000, dtype=np.float32)
        result = asyncio.run(batcher.infer({"x": MANY["x"][:3], "f": numbers}))
        np.testing.assert_array_equal(result["f_out"], numbers)
        assert submits.threads == []


@pytest.mark.parametrize("by_slo", [False, True])
def test_the_deadline_of_many_begins_when_they_come(strings: Engine, gate: threading.Event, by_slo: bool) -> None:
    async def main(batcher: hr.Batcher) -> None:
        hold(batcher, gate)
        late = asyncio.create_task(batcher.infer(MANY, deadline_ms=None if by_slo else 20))
        patient = asyncio.create_task(batcher.infer(MANY, deadline_ms=60_000))
        await asyncio.sleep(0.05)
        gate.set()
        with pytest.raises(DeadlineExceeded, match="waited"):
            await late
        await patient

    with hr.Batcher(strings, slo_ms=20 if by_slo else None) as batcher:
        submits = Submits(batcher)
        asyncio.run(main(batcher))
        (left_ms,) = submits.left_ms  # what came too late was not even converted
        assert left_ms is not None
        assert left_ms <= 60_000 - 50
        stats = batcher.stats()
        assert (stats["refused"], stats["ok"], stats["accepted"]) == (1, 1, 1)


def test_no_more_wait_to_be_submitted_than_may_wait(strings: Engine, gate: threading.Event) -> None:
    async def main(batcher: hr.Batcher) -> None:
        hold(batcher, gate)
        asking = [asyncio.create_task(batcher.infer(MANY)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"got 2 .* max_queue=2") as caught:
            await batcher.infer(MANY)
        assert caught.value.retry_after_s > 0
        gate.set()
        await asyncio.gather(*asking)
        await batcher.infer(MANY)

    with hr.Batcher(strings, max_queue=2) as batcher:
        asyncio.run(main(batcher))
        stats = batcher.stats()
        assert (stats["refused"], stats["ok"], stats["accepted"]) == (1, 3, 3)
