"""Engines and Batchers where processes fork and end, threads cannot be made, and nobody closes them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from batcher_fakes import VECTOR, WAIT_S, Gated, GatedExecutable, vector

import headrace as hr
from headrace import batcher as batcher_module
from headrace.backend import Request, Result
from headrace.engine import Engine
from headrace.errors import Cancelled, ExecutionError

NATIVE = """
import os, sys, threading, time
import numpy as np, onnx
from onnx import helper
import headrace as hr
from headrace.errors import BackendUnavailable

def compile(threads):
    weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    tensor = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [tensor("x")], [tensor("y")], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return hr.load(model).compile(backend="native", threads=threads)

x = {"x": np.ones((512, 64), np.float32)}
threads = lambda: len(os.listdir("/proc/self/task"))
"""


def run_script(body: str) -> str:
    """What a fresh process prints that runs it after NATIVE; it must end by itself, without an error."""
    done = subprocess.run(
        [sys.executable, "-c", NATIVE + textwrap.dedent(body)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


def test_forked_processes_end_and_can_use_the_engine() -> None:
    printed = run_script("""
        def child(what):
            pid = os.fork()
            if pid == 0:
                signal.alarm(50)  # ends one that hangs
                what()
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0, what

        def use():
            assert threads() == 1
            np.testing.assert_array_equal(engine(x)["y"], expected)
            assert threads() == 2  # the pool's worker, made anew
            np.testing.assert_array_equal(compile(3)(x)["y"], expected)
            with hr.Batcher(engine) as own:
                np.testing.assert_array_equal(own.submit(x).result()["y"], expected)

        def refuse():
            for ask in (lambda: batcher.submit(x), lambda: asyncio.run(batcher.infer(x)), batcher.stats, batcher.close):
                try:
                    ask()
                    assert ask == batcher.close
                except BackendUnavailable as error:
                    assert "forked" in str(error)

        def drop():
            global engine, batcher
            del engine, batcher
            gc.collect()

        import asyncio, gc, signal
        engine = compile(2)
        expected = engine(x)["y"]
        batcher = hr.Batcher(engine)
        batcher.submit(x).result()
        for what in (lambda: None, use, refuse, drop):
            child(what)
        batcher.close()
        child(lambda: None)
        np.testing.assert_array_equal(engine(x)["y"], expected)
        print("ended")
    """)
    assert printed == "ended\n"


@pytest.mark.parametrize("call", ["engine(x)", "batcher.submit(x).result()"])
def test_a_process_ends_while_daemon_threads_are_inside_calls(call: str) -> None:
    printed = run_script(f"""
        engine = compile(2)
        batcher = hr.Batcher(engine)
        def loop():
            while True:
                try:
                    {call}
                except hr.HeadraceError:  # of the closed Batcher
                    time.sleep(1e-4)
                    engine(x)
        for _ in range(4):
            threading.Thread(target=loop, daemon=True).start()
        time.sleep(0.1)
        print("ends")
    """)
    assert printed == "ends\n"


def test_where_no_thread_can_be_made_that_is_an_error() -> None:
    printed = run_script("""
        import resource
        engine = compile(1)
        hr.Batcher  # imported when it is first asked for, which takes memory
        def limit(mib):
            pages = int(open("/proc/self/statm").read().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (mib << 20), -1))
        for mib in (2, 12):  # stacks have 8 MiB: no thread of a Batcher, one of them
            limit(mib)
            try:
                hr.Batcher(engine)
                print("made")
            except BackendUnavailable as error:
                print("fewer threads" in str(error))
        limit(64)
        try:
            compile(16)
            print("made")
        except BackendUnavailable as error:
            print("of 16 threads" in str(error))
        np.testing.assert_array_equal(engine(x)["y"], 64)
    """)
    assert printed == "True\nTrue\nTrue\n"


class Dropping(GatedExecutable):
    """Drops the only reference to its Batcher while it runs a Batch."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[hr.Batcher] = []

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        self.held.clear()
        gc.collect()
        return super().run_batch(requests)


def test_a_batcher_dropped_inside_its_own_batch_ends_elsewhere() -> None:
    executable = Dropping()
    executable.held.append(hr.Batcher(Engine(VECTOR, executable)))
    before = _threads() - 2
    future = executable.held[0].submit(vector(1))
    deadline = time.monotonic() + WAIT_S
    while not future.done() and time.monotonic() < deadline:  # result() would run the Batch on this thread
        time.sleep(0.001)
    assert float(future.result()["y"][0]) == 2
    while _threads() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert _threads() <= before


def test_batchers_dropped_without_close_leave_nothing() -> None:
    def use() -> None:
        batcher = hr.Batcher(Engine(VECTOR, GatedExecutable()))
        told = threading.Event()
        batcher.submit(vector(1)).add_done_callback(lambda _: told.set())
        assert told.wait(WAIT_S)

    async def infer() -> None:
        for _ in range(5):
            await hr.Batcher(Engine(VECTOR, GatedExecutable())).infer(vector(1))
        gc.collect()
        await asyncio.sleep(0.01)
        assert _files() <= before[1] + 5  # the loop's own

    gc.collect()
    before = _threads(), _files()
    for _ in range(5):
        use()
    asyncio.run(infer())
    deadline = time.monotonic() + WAIT_S
    while (_threads(), _files()) > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.001)
    assert _threads() <= before[0]
    assert _files() <= before[1]


def test_a_stop_iteration_of_a_backend_is_an_execution_error() -> None:
    class Stopping(GatedExecutable):
        def run_batch(self, requests: Sequence[Request]) -> list[Result]:
            if any(request["x"][0] < 0 for request in requests):
                raise StopIteration("stops")
            return super().run_batch(requests)

    async def main() -> list[Result | BaseException]:
        asked = [batcher.infer(vector(first)) for first in (1, -1, 2, 3)]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), WAIT_S)

    with hr.Batcher(Engine(VECTOR, Stopping())) as batcher:
        answers = asyncio.run(main())
    assert isinstance(answers[1], ExecutionError)
    assert "stops" in str(answers[1])
    assert [answer["y"][0] for answer in answers if isinstance(answer, dict)] == [2, 4, 6]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_ends_its_thread_keeps_nobody_else_waiting(gated: Gated, error: type[BaseException]) -> None:
    def end(_: object) -> None:
        raise error

    first = gated.occupy()
    second = gated.batcher.submit(vector(1))
    told = threading.Event()
    first.add_done_callback(end)
    second.add_done_callback(lambda _: told.set())
    gated.release()
    assert told.wait(WAIT_S)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a worker of pytest-xdist."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_close_and_a_with_block_without_a_drain(gated: Gated) -> None:
    gated.occupy()
    waiting = gated.batcher.submit(vector(1))

    def close_and_interrupt() -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        gated.batcher.close()

    with pytest.raises(KeyboardInterrupt):
        close_and_interrupt()
    assert not waiting.done()
    threading.Timer(0.05, gated.release).start()
    with pytest.raises(KeyboardInterrupt), gated.batcher:
        raise KeyboardInterrupt
    assert isinstance(waiting.exception(WAIT_S), Cancelled)


def test_at_the_end_of_the_process_all_are_closed_though_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []

    class Closing:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self, drain: bool) -> None:
            closed.append(self.number)
            raise ExecutionError(f"{self.number} fails")

    monkeypatch.setattr(batcher_module, "_live", [Closing(1), Closing(2)])
    with pytest.raises(ExceptionGroup) as caught:
        batcher_module._close_all()
    assert closed == [1, 2]
    assert [str(error) for error in caught.value.exceptions] == ["1 fails", "2 fails"]


def test_a_backend_whose_warm_up_fails_in_its_own_way_can_be_batched() -> None:
    class Odd(Exception):
        pass

    class Failing(GatedExecutable):
        def run_batch(self, requests: Sequence[Request]) -> list[Result]:
            if requests[0]["x"][0] == 0:
                raise Odd
            return super().run_batch(requests)

    with hr.Batcher(Engine(VECTOR, Failing())) as batcher:
        assert float(batcher.submit(vector(1)).result(WAIT_S)["y"][0]) == 2


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
