"""How a Batcher ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from batcher_fakes import VECTOR, WAIT_S, Gated, GatedExecutable, check_balance, vector

import headrace as hr
from headrace import _core
from headrace.backend import Request, Result
from headrace.engine import Engine
from headrace.errors import (
    BackendUnavailable,
    Cancelled,
)


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


def test_infer_after_close_opens_nothing(gated: Gated) -> None:
    gated.batcher.close()

    async def infer() -> None:
        with pytest.raises(BackendUnavailable, match="closed"):
            await gated.batcher.infer(vector(1))

    gc.collect()  # not to count what earlier tests left
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        asyncio.run(infer())
    assert len(os.listdir("/proc/self/fd")) == before


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
        from headrace.backend import Executable
        from headrace.engine import Engine
        from headrace.signature import Signature, TensorSpec
        class Slow(Executable):
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


def test_mailbox_wait_ends_when_closed() -> None:
    mailbox = _core.Mailbox()
    mailbox.close()
    assert not mailbox.wait()
