"""A new version of a model beside the running one: a canary or a shadow, until the evidence decides.

A canary answers a share of the requests. Whatever it fails at is answered by the running version, so that callers never
see a failure of the trial; it only counts against it. A shadow answers nobody: it is given copies of the requests, and
its answers are compared. `judge` turns what was counted into one decision: wait, promote or roll back.
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
from headrace.config import RolloutSettings
from headrace.errors import ParityError
from headrace.parity import compare
from headrace.serving.decode import InferCall
from headrace.serving.errors import outcome

# One-sided 97.5 %: a version is called worse when chance would hardly explain it.
Z = 1.96
# Latest latencies that a version is judged by.
LATENCIES_KEPT = 1000
# Below this, differences of latency are the machine's noise.
LATENCY_SLACK_S = 1e-3
# Copies that a shadow may be working on; further requests are not copied.
SHADOWS_MAX = 64
# A shadow's copies go behind every real request.
SHADOW_PRIORITY = -1_000_000

Action = Literal["wait", "promote", "rollback"]


class Version(Protocol):
    """What a trial needs of a served version."""

    @property
    def version(self) -> str:
        """Its number."""

    async def infer(
        self, call: InferCall, deadline_ms: float | None = None, caller: Hashable = None, *, priority: int | None = None
    ) -> Result:
        """Runs one decoded request."""


V = TypeVar("V", bound=Version)


@dataclass
class Evidence:
    """What one version did during a trial.

    Attributes:
        requests: Requests it ran.
        failed: Those that ended with an error of the Engine or of a guard.
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

    Shares are compared by the lower end of their Wilson score interval (Wilson 1927), so that one early failure of a
    good version is not the end of it, and a version that always fails is gone after four requests.

    Args:
        settings: What is tolerated, and how much evidence a promotion needs.
        running: What the running version did since the trial began.
        candidate: What the candidate did.
        elapsed_s: Seconds since the trial began.
    """
    tolerated = running.failed / max(running.requests, 1) + settings.failures_max
    if wilson_low(candidate.failed, candidate.requests) > tolerated:
        return Decision(
            "rollback",
            f"failures: got {candidate.failed} of {candidate.requests}, expected at most {tolerated:.2%}",
        )
    limit = settings.divergent_max
    if limit is not None and wilson_low(candidate.divergent, candidate.compared) > limit:
        return Decision(
            "rollback",
            f"divergence: got {candidate.divergent} of {candidate.compared} answers that differ by more than "
            f"{settings.tolerance:g} (worst {candidate.worst:.3g}), expected at most {limit:.2%}",
        )
    enough = settings.min_requests
    if min(len(candidate.latencies_s), len(running.latencies_s)) >= min(enough, LATENCIES_KEPT):
        for share in (0.5, 0.95):
            got, known = quantile(candidate.latencies_s, share), quantile(running.latencies_s, share)
            if got > settings.slower_max * known + LATENCY_SLACK_S:
                return Decision(
                    "rollback",
                    f"latency: got {1e3 * got:.2f} ms at p{share * 100:g}, expected at most {settings.slower_max:g} "
                    f"times the running version's {1e3 * known:.2f} ms",
                )
    if candidate.requests >= enough and elapsed_s >= settings.min_s:
        return Decision("promote", f"{candidate.requests} requests and {elapsed_s:.1f} s without a reason against it")
    return Decision("wait", f"{candidate.requests} of {enough} requests, {elapsed_s:.1f} of {settings.min_s:g} s")


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
        if chosen and self.settings.mode == "canary":
            started = perf_counter()
            try:
                return self.candidate, await self._run("candidate", call, deadline_ms, caller)
            except Exception as error:
                if outcome(error) not in ("failed", "refused"):
                    raise  # the request was late or given up: nothing that another version could make good
            if deadline_ms is not None:
                deadline_ms -= 1e3 * (perf_counter() - started)
        result = await self._run("running", call, deadline_ms, caller)
        if chosen and self.settings.mode == "shadow":
            self._shadow(call, result)
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

    async def _run(
        self, role: str, call: InferCall, deadline_ms: float | None, caller: Hashable, priority: int | None = None
    ) -> Result:
        version = self.running if role == "running" else self.candidate
        seen = self.evidence[role]
        started = perf_counter()
        try:
            result = await version.infer(call, deadline_ms, caller, priority=priority)
        except Exception as error:
            if outcome(error) == "failed":
                seen.requests += 1
                seen.failed += 1
            raise
        seen.requests += 1
        seen.latencies_s.append(perf_counter() - started)
        return result

    def _shadow(self, call: InferCall, expected: Result) -> None:
        if len(self._shadows) >= SHADOWS_MAX:
            self.evidence["candidate"].skipped += 1
            return
        task = asyncio.create_task(self._copy(call, expected))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _copy(self, call: InferCall, expected: Result) -> None:
        seen = self.evidence["candidate"]
        try:
            result = await self._run("candidate", call, None, None, SHADOW_PRIORITY)
        except Exception as error:
            if outcome(error) != "failed":
                seen.skipped += 1
            return
        try:
            difference = compare([result], [expected]).error
        except ParityError:
            difference = math.inf
        seen.compared += 1
        seen.worst = max(seen.worst, difference)
        seen.divergent += difference > self.settings.tolerance
