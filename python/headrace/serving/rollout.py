"""A new version of a model beside the running one: a canary or a shadow, until the evidence decides.

A canary answers a share of the requests. Whatever it fails at, rejects, refuses or is too late with is answered by the
running version, so that callers see no failure of the trial; it only counts against it. A shadow answers nobody: it is
given copies of the requests, and its answers are compared. `headrace.serving.evidence` turns what was counted into a
decision.

Where a deadline leaves no time for two attempts, because the running version needs more than half of it, the running
version answers and a canary gets a copy too: it is judged, and no caller pays for it.

One clock judges both. An answer of the running version that took longer than the candidate would have been waited for
counts against it, though its caller gets it; a request that it is given for the second time, when half of the time is
gone, counts for nothing. So a busy moment counts against both.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Hashable, Mapping
from time import monotonic, perf_counter
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from headrace.backend import Result
from headrace.config import ModelSettings, RolloutSettings
from headrace.errors import ParityError
from headrace.parity import compare
from headrace.serving.decode import InferCall
from headrace.serving.errors import outcome
from headrace.serving.evidence import Decision, Evidence, judge

# Of the time to a request's deadline, the share that a canary may take before the running version has to answer.
CANARY_SHARE_OF_DEADLINE = 0.5
# How fast it is forgotten how long the running version may take: an answer that took longer is believed at once.
TAKES_DECAY = 0.95
# Copies that a candidate may be working on, and bytes of inputs and expected answers that they hold; further requests
# are not copied.
SHADOWS_MAX = 64
SHADOW_BYTES_MAX = 64 << 20
# Answers of more bytes are compared beside the event loop.
COMPARE_BYTES_MAX = 1 << 16

# The ledger's words for what the running version could be to blame for. What it rejects is the request's own fault;
# what it answers and the candidate rejects is the candidate's.
FAILURES = ("failed", "refused", "expired")


class Version(Protocol):
    """What a trial needs of a served version."""

    @property
    def version(self) -> str:
        """Its number."""

    @property
    def settings(self) -> ModelSettings:
        """How it is scheduled."""

    async def infer(self, call: InferCall, deadline_ms: float | None = None, caller: Hashable = None) -> Result:
        """Runs one decoded request."""


V = TypeVar("V", bound=Version)


class Trial(Generic[V]):
    """Requests to a model while a candidate is on trial. Used from the server's event loop only.

    Args:
        settings: The kind of trial.
        running: The version that answers.
        candidate: The version on trial. Its signature must be the running version's.
    """

    def __init__(self, settings: RolloutSettings, running: V, candidate: V) -> None:
        self.settings = settings
        self.running = running
        self.candidate = candidate
        self.evidence = {"running": Evidence(), "candidate": Evidence()}
        self._started = monotonic()
        self._due = 0.0
        # Seconds that the running version may take for an answer, waiting included: the most of late.
        self._takes_s = 0.0
        self._shadows: set[asyncio.Task[None]] = set()
        self._copied = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the trial began."""
        return monotonic() - self._started

    def judge(self) -> Decision:
        """What the evidence says now."""
        seen = self.evidence
        return judge(self.settings, seen["running"], seen["candidate"], self.elapsed_s)

    async def infer(
        self, call: InferCall, deadline_ms: float | None = None, caller: Hashable = None
    ) -> tuple[V, Result]:
        """Answers one request, and says which version did.

        Raises:
            HeadraceError: What the running version's `infer` raises, or `DeadlineExceeded` or `Cancelled` from the
                candidate's.
        """
        chosen = self._choose()
        deadline_ms = self._deadline_ms(call, deadline_ms)
        twice = self.settings.mode == "canary" and self._fits_twice(deadline_ms)
        patience_s = self._patience_s(deadline_ms if twice else None)
        if not chosen or not twice:
            result = await self._run(call, deadline_ms, caller, patience_s)
            if chosen:
                self._shadow(call, deadline_ms, result)
            return self.running, result
        started = perf_counter()
        try:
            return self.candidate, await self._try(call, deadline_ms, caller, patience_s)
        except Exception as error:
            if outcome(error) == "cancelled":
                raise
        left_ms = None if deadline_ms is None else deadline_ms - 1e3 * (perf_counter() - started)
        result = await self._run(call, left_ms, caller, None)
        # Only now: what the running version cannot answer either says nothing about the candidate.
        self._failed("candidate")
        return self.running, result

    async def close(self) -> None:
        """Gives up the copies that the candidate still works on."""
        for task in list(self._shadows):
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """The trial for people and programs."""
        decision = self.judge()
        return {
            "mode": self.settings.mode,
            "share": self.settings.share,
            "running": {"version": self.running.version, **self.evidence["running"].summary()},
            "candidate": {"version": self.candidate.version, **self.evidence["candidate"].summary()},
            "state": decision.reason,
        }

    def _choose(self) -> bool:
        """Whether the candidate gets this request: evenly spread, not at random, so that a share is kept exactly."""
        self._due += self.settings.share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def _deadline_ms(self, call: InferCall, deadline_ms: float | None) -> float | None:
        """The earliest of the deadlines that a request has, so that a second attempt does not begin them afresh."""
        own_ms = call.timeout_us / 1000 if call.timeout_us else None
        known = [one for one in (deadline_ms, own_ms) if one is not None]
        return min(known) if known else self.running.settings.slo_ms

    def _fits_twice(self, deadline_ms: float | None) -> bool:
        """Whether the running version would still be in time after the candidate's share of the time to a deadline."""
        return deadline_ms is None or self._takes_s <= (1 - CANARY_SHARE_OF_DEADLINE) * deadline_ms / 1e3

    def _patience_s(self, deadline_ms: float | None) -> float:
        """For how long the candidate is waited for, so that the running version may still be in time for a deadline."""
        patience_s = self.candidate.settings.stall_s
        return patience_s if deadline_ms is None else min(patience_s, CANARY_SHARE_OF_DEADLINE * deadline_ms / 1e3)

    async def _try(self, call: InferCall, deadline_ms: float | None, caller: Hashable, patience_s: float) -> Result:
        """Has the candidate answer. It queues for the whole deadline, as the running version does."""
        started = perf_counter()
        result = await asyncio.wait_for(self.candidate.infer(call, deadline_ms, caller), patience_s)
        self._answered("candidate", perf_counter() - started)
        return result

    async def _run(
        self, call: InferCall, deadline_ms: float | None, caller: Hashable, patience_s: float | None
    ) -> Result:
        """Has the running version answer.

        Args:
            call: The request.
            deadline_ms: Milliseconds to its deadline.
            caller: Whose it is.
            patience_s: Seconds after which an answer counts as a failure; None where nothing is counted.
        """
        started = perf_counter()
        try:
            result = await self.running.infer(call, deadline_ms, caller)
        except Exception as error:
            if patience_s is not None and outcome(error) in FAILURES:
                self._failed("running")
            raise
        took_s = perf_counter() - started
        self._takes_s = max(took_s, TAKES_DECAY * self._takes_s)
        if patience_s is not None and took_s <= patience_s:
            self._answered("running", took_s)
        elif patience_s is not None:
            self._failed("running")
        return result

    def _answered(self, role: str, took_s: float) -> None:
        self.evidence[role].requests += 1
        self.evidence[role].latencies_s.append(took_s)

    def _failed(self, role: str) -> None:
        self.evidence[role].requests += 1
        self.evidence[role].failed += 1

    def _shadow(self, call: InferCall, deadline_ms: float | None, expected: Result) -> None:
        size = _held_bytes(call.inputs) + _held_bytes(expected)
        if len(self._shadows) >= SHADOWS_MAX or self._copied + size > SHADOW_BYTES_MAX:
            self.evidence["candidate"].skipped += 1
            return
        self._copied += size
        task = asyncio.create_task(self._copy(call, deadline_ms, expected, size))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _copy(self, call: InferCall, deadline_ms: float | None, expected: Result, size: int) -> None:
        """Has the candidate answer what the running version has answered, in the time that this had."""
        try:
            result = await self._try(call, deadline_ms, None, self._patience_s(None))
            if self.settings.mode == "shadow":
                await self._compare(result, expected)
        except Exception as error:
            if outcome(error) != "cancelled":
                self._failed("candidate")
        finally:
            self._copied -= size

    async def _compare(self, result: Result, expected: Result) -> None:
        difference = await _difference(result, expected)
        seen = self.evidence["candidate"]
        seen.compared += 1
        seen.worst = max(seen.worst, difference)
        seen.divergent += difference > self.settings.tolerance


def _held_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """The memory that arrays hold, with the strings of those that are of strings."""
    return sum(
        array.nbytes + (sum(map(sys.getsizeof, array.flat)) if array.dtype.hasobject else 0)
        for array in arrays.values()
    )


async def _difference(got: Result, expected: Result) -> float:
    """How far two answers are apart; infinite where their shapes or dtypes differ."""
    try:
        if sum(array.nbytes for array in expected.values()) > COMPARE_BYTES_MAX:
            return (await asyncio.to_thread(compare, [got], [expected])).error
        return compare([got], [expected]).error
    except ParityError:
        return math.inf
