"""Whatever is submitted, cancelled, late or broken, in whatever order: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import headrace as hr
from headrace.backend import Executable, Plan, Request, Result
from headrace.engine import Engine
from headrace.errors import Cancelled, DeadlineExceeded, Overloaded
from headrace.signature import Signature, TensorSpec

WAIT_S = 20.0
SIGNATURE = Signature((TensorSpec("x", "int64", ("n",)),), (TensorSpec("y", "int64", ("n",)),))
BAD = 1_000_000  # Requests from here on break the Batch they are in


class Recorder(Executable):
    """Adds one; remembers what it ran; can be held inside a Batch."""

    plan = Plan(backend="recorder", device="cpu", isa="python", precision="fp32", threads=1)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.answered: list[int] = []
        self.seen: set[int] = set()

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        ids = [int(request["x"][0]) for request in requests]
        self.seen.update(ids)
        assert self.gate.wait(WAIT_S)
        if any(number >= BAD for number in ids):
            raise ValueError("bad")
        self.answered += ids
        return [{"y": request["x"] + 1} for request in requests]


class BatcherMachine(RuleBasedStateMachine):
    """Drives one Batcher from threads and from an event loop, beside a ledger of its own."""

    @initialize(max_queue=st.integers(1, 12), max_batch=st.integers(1, 6))
    def start(self, max_queue: int, max_batch: int) -> None:
        self.executable = Recorder()
        self.batcher = hr.Batcher(Engine(SIGNATURE, self.executable), max_queue=max_queue, max_batch=max_batch)
        self.executable.answered.clear()
        self.executable.seen.clear()
        self.max_batch = max_batch
        self.number = 0
        self.refused: list[int] = []
        self.futures: dict[int, concurrent.futures.Future[Result]] = {}
        self.calls: dict[int, int] = {}  # callbacks by Request
        self.loop = asyncio.new_event_loop()
        self.loop_thread = threading.Thread(target=self.loop.run_forever)
        self.loop_thread.start()

    @rule(
        bad=st.integers(0, 9).map(lambda n: n == 0),
        deadline_ms=st.sampled_from([None, None, 0.5, 3.0, 60_000.0]),
        priority=st.integers(-1, 1),
        watched=st.booleans(),
    )
    def submit(self, bad: bool, deadline_ms: float | None, priority: int, watched: bool) -> None:
        number = self._next(bad)
        try:
            future = self.batcher.submit({"x": np.array([number])}, deadline_ms=deadline_ms, priority=priority)
        except (Overloaded, DeadlineExceeded):
            self.refused.append(number)
            return
        self.futures[number] = future
        if watched:
            self.calls[number] = 0
            future.add_done_callback(lambda _: self._called(number))

    @rule(deadline_ms=st.sampled_from([None, 60_000.0]))
    def infer(self, deadline_ms: float | None) -> None:
        number = self._next(False)
        call = self.batcher.infer({"x": np.array([number])}, deadline_ms=deadline_ms)
        self.futures[number] = asyncio.run_coroutine_threadsafe(call, self.loop)

    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        # Who was admitted depends on time, so what is drawn must not depend on it.
        if self.futures:
            list(self.futures.values())[which % len(self.futures)].cancel()

    @rule()
    def hold(self) -> None:
        self.executable.gate.clear()

    @rule()
    def release(self) -> None:
        self.executable.gate.set()

    @rule()
    def let_time_pass(self) -> None:
        time.sleep(0.002)

    @invariant()
    def the_ledger_balances(self) -> None:
        if not hasattr(self, "batcher"):
            return
        stats = self.batcher.stats()
        ended = stats["ok"] + stats["failed"] + stats["expired"] + stats["cancelled"]
        assert stats["accepted"] == ended + stats["waiting"] + stats["running"]
        assert sum(stats["batch_sizes"]) == stats["batches"]
        assert stats["running"] <= self.max_batch

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        self.executable.gate.set()
        outcomes = {number: self._outcome(future) for number, future in self.futures.items()}
        self.batcher.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.loop_thread.join(WAIT_S)
        self.loop.close()
        stats = self.batcher.stats()
        self._check_ledger(stats, outcomes)
        # Each was computed at most once to an answer, and the refused and the cancelled never.
        assert len(set(self.executable.answered)) == len(self.executable.answered)
        assert not self.executable.seen & set(self.refused)
        for number, outcome in outcomes.items():
            if outcome == "ok":
                assert number in self.executable.answered
            if outcome == "failed":
                assert number >= BAD
            assert self.calls.get(number, 1) == 1

    def _next(self, bad: bool) -> int:
        self.number += 1
        return self.number + (BAD if bad else 0)

    def _called(self, number: int) -> None:
        self.calls[number] += 1

    def _outcome(self, future: concurrent.futures.Future[Result]) -> str:
        try:
            result = future.result(WAIT_S)
        except concurrent.futures.CancelledError:
            return "cancelled"
        except DeadlineExceeded:
            return "expired"
        except Overloaded:
            return "refused"
        except ValueError:
            return "failed"
        number = next(number for number, other in self.futures.items() if other is future)
        assert int(result["y"][0]) == number + 1
        return "ok"

    def _check_ledger(self, stats: dict[str, Any], outcomes: dict[int, str]) -> None:
        counts = {word: list(outcomes.values()).count(word) for word in ("ok", "failed", "expired", "refused")}
        assert stats["waiting"] == stats["running"] == 0
        # An infer that was cancelled may have been refused, may have run, or was never submitted.
        cancelled = list(outcomes.values()).count("cancelled")
        assert 0 <= stats["refused"] - len(self.refused) - counts["refused"] <= cancelled
        assert stats["failed"] == counts["failed"]
        assert stats["expired"] == counts["expired"]
        assert stats["ok"] >= counts["ok"]
        assert stats["ok"] + stats["cancelled"] <= counts["ok"] + cancelled


BatcherMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBatcherMachine = BatcherMachine.TestCase


def test_many_threads_lose_nothing() -> None:
    executable = Recorder()
    outcomes: list[str] = []
    lock = threading.Lock()

    def client(batcher: hr.Batcher, base: int) -> None:
        random = np.random.default_rng(base)
        mine: list[str] = []
        futures: list[concurrent.futures.Future[Result]] = []
        for i in range(300):
            number = base + i + (BAD if random.random() < 0.02 else 0)
            deadline_ms = float(random.choice([0.2, 2.0, 50.0])) if random.random() < 0.3 else None
            try:
                future = batcher.submit(
                    {"x": np.array([number])}, deadline_ms=deadline_ms, priority=int(random.integers(3))
                )
            except (Overloaded, DeadlineExceeded):
                mine.append("refused")
                continue
            if random.random() < 0.1:
                future.cancel()
            if random.random() < 0.1:
                future.add_done_callback(lambda _: None)
            futures.append(future)
        for future in futures:
            try:
                future.result(WAIT_S)
                mine.append("ok")
            except concurrent.futures.CancelledError:
                mine.append("cancelled")
            except DeadlineExceeded:
                mine.append("expired")
            except (ValueError, Cancelled):
                mine.append("failed")
        with lock:
            outcomes.extend(mine)

    with hr.Batcher(Engine(SIGNATURE, executable), max_queue=100, max_batch=16) as batcher:
        executable.answered.clear()
        threads = [threading.Thread(target=client, args=(batcher, 1000 * t)) for t in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = batcher.stats()
    assert len(outcomes) == 1800
    for word in ("ok", "failed", "expired", "cancelled", "refused"):
        assert stats[word] == outcomes.count(word), word
    assert len(executable.answered) == len(set(executable.answered)) == stats["ok"]
