"""A new version of a model beside the running one: a canary or a shadow, until the evidence decides.

A canary answers a share of the requests. Whatever it fails at, refuses or is too late with is answered by the running
version, so that callers see no failure of the trial; it only counts against it. A shadow answers nobody: it is given
copies of the requests, and its answers are compared. `judge` turns what was counted into one decision: wait, promote or
roll back.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, Generic, Literal, Protocol, TypeVar

from headrace.backend import Result
from headrace.config import ModelSettings, RolloutSettings
from headrace.errors import ParityError
from headrace.parity import compare
from headrace.serving.decode import InferCall
from headrace.serving.errors import outcome

# One-sided 97.5 %: a version is called worse when chance would hardly explain it.
Z = 1.96
# Fewer cases say nothing, however large a share of the requests they are.
CASES_MIN = 3
# Of the time to a request's deadline, the share that a canary may take before the running version has to answer.
CANARY_SHARE_OF_DEADLINE = 0.5
# Latest latencies that a version is judged by.
LATENCIES_KEPT = 1000
# Below this, differences of latency are the machine's noise.
LATENCY_SLACK_S = 1e-3
# Copies that a shadow may be working on, and bytes of their inputs; further requests are not copied.
SHADOWS_MAX = 64
SHADOW_BYTES_MAX = 64 << 20
# Answers of more bytes are compared beside the event loop.
COMPARE_BYTES_MAX = 1 << 16

# The ledger's words for what a version could be to blame for.
FAILURES = ("failed", "refused", "expired")

Action = Literal["wait", "promote", "rollback"]


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


@dataclass
class Evidence:
    """What one version did during a trial.

    Attributes:
        requests: Requests it was given, those apart that were given up or wrong.
        failed: Those of them that ended in an error, were refused or came too late; of a candidate, only those that the
            running version then answered.
        latencies_s: Seconds of the latest answers, waiting included.
        compared: Answers compared with the running version's.
        divergent: Those that differed by more than the tolerance.
        worst: The largest difference (see `headrace.parity.Parity`).
        skipped: Requests that a shadow was too slow to be given.
    """

    requests: int = 0
    failed: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))
    compared: int = 0
    divergent: int = 0
    worst: float = 0.0
    skipped: int = 0

    def summary(self) -> dict[str, float]:
        """The counts and the latencies' median and 95th percentile, for people and programs."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "p50_ms": 1e3 * quantile(self.latencies_s, 0.5),
            "p95_ms": 1e3 * quantile(self.latencies_s, 0.95),
            "compared": self.compared,
            "divergent": self.divergent,
            "worst": self.worst,
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class Decision:
    """What to do with a candidate, and why."""

    action: Action
    reason: str


def judge(settings: RolloutSettings, running: Evidence, candidate: Evidence, elapsed_s: float) -> Decision:
    """Decides on a candidate.

    Shares are compared by the lower end of their Wilson score interval (Wilson 1927), once there are `CASES_MIN` cases:
    chance alone is not the end of a good version, and one that always fails is gone after three requests.

    Args:
        settings: What is tolerated, and how much evidence a promotion needs.
        running: What the running version did since the trial began.
        candidate: What the candidate did.
        elapsed_s: Seconds since the trial began.
    """
    tolerated = running.failed / max(running.requests, 1) + settings.failures_max
    if candidate.failed >= CASES_MIN and wilson_low(candidate.failed, candidate.requests) > tolerated:
        return Decision(
            "rollback",
            f"failures: got {candidate.failed} of {candidate.requests}, expected at most {tolerated:.2%}",
        )
    limit = settings.divergent_max
    divergent = wilson_low(candidate.divergent, candidate.compared)
    if limit is not None and candidate.divergent >= CASES_MIN and divergent > limit:
        return Decision(
            "rollback",
            f"divergence: got {candidate.divergent} of {candidate.compared} answers that differ by more than "
            f"{settings.tolerance:g} (worst {candidate.worst:.3g}), expected at most {limit:.2%}",
        )
    enough = min(settings.min_requests, LATENCIES_KEPT)
    if min(candidate.requests, running.requests) < enough or elapsed_s < settings.min_s:
        if elapsed_s > settings.max_s:
            return Decision("rollback", f"no verdict: got {candidate.requests} requests in {elapsed_s:.0f} s")
        return Decision("wait", f"{candidate.requests} of {enough} requests, {elapsed_s:.1f} of {settings.min_s:g} s")
    for share in (0.5, 0.95):
        got, known = quantile(candidate.latencies_s, share), quantile(running.latencies_s, share)
        if got > settings.slower_max * known + LATENCY_SLACK_S:
            return Decision(
                "rollback",
                f"latency: got {1e3 * got:.2f} ms at p{share * 100:g}, expected at most {settings.slower_max:g} "
                f"times the running version's {1e3 * known:.2f} ms",
            )
    return Decision("promote", f"{candidate.requests} requests and {elapsed_s:.1f} s without a reason against it")


def wilson_low(count: int, of: int) -> float:
    """The lower end of the Wilson score interval of a share; 0 where nothing was counted."""
    if of == 0:
        return 0.0
    share = count / of
    middle = share + Z * Z / (2 * of)
    spread = Z * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    return max(0.0, (middle - spread) / (1 + Z * Z / of))


def quantile(values: Sequence[float] | deque[float], share: float) -> float:
    """The value below which `share` of the values are; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


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

    def judge(self) -> Decision:
        """What the evidence says now."""
        seen = self.evidence
        return judge(self.settings, seen["running"], seen["candidate"], monotonic() - self._started)

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
