"""A new version of a model beside the running one: a canary or a shadow, until the evidence decides.

A canary answers a share of the requests. Whatever it fails at, refuses or is too late with is answered by the running
version, so that callers see no failure of the trial; it only counts against it. A shadow answers nobody: it is given
copies of the requests, and its answers are compared. `headrace.serving.evidence` turns what was counted into a
decision.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable
from time import monotonic, perf_counter
from typing import Any, Generic, Protocol, TypeVar

from headrace.backend import Result
from headrace.config import ModelSettings, RolloutSettings
from headrace.errors import ParityError
from headrace.parity import compare
from headrace.serving.decode import InferCall
from headrace.serving.errors import outcome
from headrace.serving.evidence import Decision, Evidence, judge

# Of the time to a request's deadline, the share that a canary may take before the running version has to answer.
CANARY_SHARE_OF_DEADLINE = 0.5
# Copies that a shadow may be working on, and bytes of their inputs; further requests are not copied.
SHADOWS_MAX = 64
SHADOW_BYTES_MAX = 64 << 20
# Answers of more bytes are compared beside the event loop.
COMPARE_BYTES_MAX = 1 << 16

# The ledger's words for what a version could be to blame for.
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
        if not chosen or self.settings.mode == "shadow":
            result = await self._run("running", call, deadline_ms, caller)
            if chosen:
                self._shadow(call, result)
            return self.running, result
        started = perf_counter()
        try:
            return self.candidate, await self._try(call, deadline_ms, caller)
        except Exception as error:
            if outcome(error) not in FAILURES:
                raise
        left_ms = None if deadline_ms is None else deadline_ms - 1e3 * (perf_counter() - started)
        result = await self._run("running", call, left_ms, caller)
        # Only now: what the running version cannot answer either says nothing about the candidate.
        self.evidence["candidate"].requests += 1
        self.evidence["candidate"].failed += 1
        return self.running, result

    async def close(self) -> None:
        """Gives up the copies that a shadow still works on."""
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

    async def _try(self, call: InferCall, deadline_ms: float | None, caller: Hashable) -> Result:
        """Has the candidate answer, in time for the running version to do so if it does not."""
        patience_s = self.candidate.settings.stall_s
        if deadline_ms is not None:
            deadline_ms *= CANARY_SHARE_OF_DEADLINE
            patience_s = min(patience_s, deadline_ms / 1e3)
        started = perf_counter()
        result = await asyncio.wait_for(self.candidate.infer(call, deadline_ms, caller), patience_s)
        self._answered("candidate", started)
        return result

    async def _run(self, role: str, call: InferCall, deadline_ms: float | None, caller: Hashable) -> Result:
        version = self.running if role == "running" else self.candidate
        started = perf_counter()
        try:
            result = await version.infer(call, deadline_ms, caller)
        except Exception as error:
            if outcome(error) in FAILURES:
                self.evidence[role].requests += 1
                self.evidence[role].failed += 1
            raise
        self._answered(role, started)
        return result

    def _answered(self, role: str, started: float) -> None:
        self.evidence[role].requests += 1
        self.evidence[role].latencies_s.append(perf_counter() - started)

    def _shadow(self, call: InferCall, expected: Result) -> None:
        size = sum(array.nbytes for array in call.inputs.values())
        if len(self._shadows) >= SHADOWS_MAX or self._copied + size > SHADOW_BYTES_MAX:
            self.evidence["candidate"].skipped += 1
            return
        self._copied += size
        task = asyncio.create_task(self._copy(call, expected, size))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _copy(self, call: InferCall, expected: Result, size: int) -> None:
        seen = self.evidence["candidate"]
        try:
            patience_s = self.candidate.settings.stall_s
            result = await asyncio.wait_for(self._run("candidate", call, None, None), patience_s)
            difference = await _difference(result, expected)
        except TimeoutError:
            seen.requests += 1
            seen.failed += 1
            return
        except Exception:
            return  # counted by `_run` where it is a failure
        finally:
            self._copied -= size
        seen.compared += 1
        seen.worst = max(seen.worst, difference)
        seen.divergent += difference > self.settings.tolerance


async def _difference(got: Result, expected: Result) -> float:
    """How far two answers are apart; infinite where their shapes or dtypes differ."""
    try:
        if sum(array.nbytes for array in expected.values()) > COMPARE_BYTES_MAX:
            return (await asyncio.to_thread(compare, [got], [expected])).error
        return compare([got], [expected]).error
    except ParityError:
        return math.inf
