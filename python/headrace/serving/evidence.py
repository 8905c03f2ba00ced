"""What versions on trial did, in one process or pooled over many, and the one decision that it leads to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from headrace.config import RolloutSettings

# One-sided 97.5 %: a version is called worse when chance would hardly explain it.
Z = 1.96
# Fewer cases say nothing, however large a share of the requests they are.
CASES_MIN = 3
# Of fewer answers of the running version, a 95th percentile says nothing about its latency.
ANSWERS_MIN = 20
# Latest latencies that a version is judged by.
LATENCIES_KEPT = 1000
# Below this, differences of latency are the machine's noise.
LATENCY_SLACK_S = 1e-3
# Latencies in a digest: enough for a 95th percentile, few enough to be sent twice a second.
DIGEST_POINTS = 64

Action = Literal["wait", "promote", "rollback"]


@dataclass(kw_only=True)
class Counts:
    """What one version did during a trial, but for how long it took.

    Attributes:
        requests: Requests it was given, those apart that were given up or wrong.
        failed: Those of them that ended in an error, were refused or came too late (for a candidate: see `rollout`); of
            a candidate, only those that the running version answered, and also those that were rejected.
        compared: Answers compared with the running version's.
        divergent: Those that differed by more than the tolerance.
        worst: The largest difference (see `headrace.parity.Parity`).
        skipped: Requests of which the candidate was too slow to be given a copy.
    """

    requests: int = 0
    failed: int = 0
    compared: int = 0
    divergent: int = 0
    worst: float = 0.0
    skipped: int = 0

    def latency_s(self, share: float) -> float:
        """Seconds below which `share` of the latest answers took, waiting included; 0 of none."""
        raise NotImplementedError

    def beyond(self, limit_s: float) -> tuple[float, float]:
        """How many of the latest answers took longer than that, and how many these are."""
        raise NotImplementedError

    def summary(self) -> dict[str, float]:
        """The counts and the latencies' median and 95th percentile, for people and programs."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "p50_ms": 1e3 * self.latency_s(0.5),
            "p95_ms": 1e3 * self.latency_s(0.95),
            "compared": self.compared,
            "divergent": self.divergent,
            "worst": self.worst,
            "skipped": self.skipped,
        }


@dataclass(kw_only=True)
class Evidence(Counts):
    """What one version did during a trial in this process.

    Attributes:
        latencies_s: Seconds of the latest answers, waiting included.
    """

    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))

    def latency_s(self, share: float) -> float:
        """Seconds below which `share` of the latest answers took, waiting included; 0 of none."""
        return quantile(self.latencies_s, share)

    def beyond(self, limit_s: float) -> tuple[float, float]:
        """How many of the latest answers took longer than that, and how many these are."""
        return sum(seconds > limit_s for seconds in self.latencies_s), len(self.latencies_s)

    def digest(self) -> Digest:
        """The same in few bytes, to be pooled."""
        ordered = sorted(self.latencies_s)
        count = len(ordered)
        if count > DIGEST_POINTS:
            ordered = [ordered[(2 * i + 1) * count // (2 * DIGEST_POINTS)] for i in range(DIGEST_POINTS)]
        weight = count / max(len(ordered), 1)
        return Digest(**_counts(self), points=tuple((seconds, weight) for seconds in ordered))


@dataclass(kw_only=True)
class Digest(Counts):
    """What one version did during a trial, in one process or in several together.

    Attributes:
        points: Latencies in seconds in ascending order, each with the number of answers that it stands for.
    """

    points: tuple[tuple[float, float], ...] = ()

    def latency_s(self, share: float) -> float:
        """Seconds below which `share` of the latest answers took, waiting included; 0 of none."""
        reached = list(accumulate(weight for _, weight in self.points))
        return next((self.points[i][0] for i, sum_ in enumerate(reached) if sum_ > share * reached[-1]), 0.0)

    def beyond(self, limit_s: float) -> tuple[float, float]:
        """How many of the latest answers took longer than that, and how many these are."""
        slow = sum(weight for seconds, weight in self.points if seconds > limit_s)
        return slow, sum(weight for _, weight in self.points)


def pooled(digests: Iterable[Digest]) -> Digest:
    """What several processes saw, as if it had been one."""
    total, points = Digest(), list[tuple[float, float]]()
    for one in digests:
        for name, value in _counts(one).items():
            known = getattr(total, name)
            setattr(total, name, max(known, value) if name == "worst" else known + value)
        points.extend(one.points)
    total.points = tuple(sorted(points))
    return total


def _counts(seen: Counts) -> dict[str, Any]:
    return {name: getattr(seen, name) for name in Counts.__dataclass_fields__}


@dataclass(frozen=True)
class Decision:
    """What to do with a candidate, and why."""

    action: Action
    reason: str


def judge(settings: RolloutSettings, running: Counts, candidate: Counts, elapsed_s: float) -> Decision:
    """Decides on a candidate.

    Shares are compared by their Wilson score intervals (Wilson 1927), once there are `CASES_MIN` cases. Where the whole
    interval of the candidate lies above the whole of the running version's, chance alone does not explain it; one that
    always fails beside one that never does is gone after three or four requests. Where it only lies above what was seen
    of the running version, the candidate is suspect: that ends no good version, and promotes no bad one. It is too slow
    where more of its answers lie beyond what is tolerated of a percentile than belong there by chance.

    Args:
        settings: What is tolerated, and how much evidence a promotion needs.
        running: What the running version did since the trial began.
        candidate: What the candidate did.
        elapsed_s: Seconds since the trial began.
    """
    failing = wilson_low(candidate.failed, candidate.requests) if candidate.failed >= CASES_MIN else 0.0
    tolerated = wilson_high(running.failed, running.requests) + settings.failures_max
    if failing > tolerated:
        return Decision(
            "rollback",
            f"failures: got {candidate.failed} of {candidate.requests}, expected at most {tolerated:.2%}",
        )
    suspect = failing > running.failed / max(running.requests, 1) + settings.failures_max
    limit = settings.divergent_max
    divergent = wilson_low(candidate.divergent, candidate.compared)
    if limit is not None and candidate.divergent >= CASES_MIN and divergent > limit:
        return Decision(
            "rollback",
            f"divergence: got {candidate.divergent} of {candidate.compared} answers that differ by more than "
            f"{settings.tolerance:g} (worst {candidate.worst:.3g}), expected at most {limit:.2%}",
        )
    enough = settings.min_requests
    if suspect or min(candidate.requests, running.requests) < enough or elapsed_s < settings.min_s:
        failed = f", {candidate.failed} failed" if suspect else ""
        if elapsed_s > settings.max_s:
            return Decision("rollback", f"no verdict: got {candidate.requests} requests{failed} in {elapsed_s:.0f} s")
        reached = f"{candidate.requests} of {enough} requests{failed}, {elapsed_s:.1f} of {settings.min_s:g} s"
        return Decision("wait", reached)
    evidence = f"{candidate.requests} requests and {elapsed_s:.1f} s without a reason against it"
    answered = running.requests - running.failed
    if answered < min(ANSWERS_MIN, enough):
        # One that answers nearly nothing must not be kept because nothing is slower than that.
        return Decision("promote", f"{evidence} (no latency to compare: the running version answered {answered})")
    for share in (0.5, 0.95):
        got, known = candidate.latency_s(share), running.latency_s(share)
        limit_s = settings.slower_max * known + LATENCY_SLACK_S
        # Of 20 answers two are beyond a 95th percentile as soon as one core was taken away for a moment.
        if got > limit_s and wilson_low(*candidate.beyond(limit_s)) > 1 - share:
            return Decision(
                "rollback",
                f"latency: got {1e3 * got:.2f} ms at p{share * 100:g}, expected at most {settings.slower_max:g} "
                f"times the running version's {1e3 * known:.2f} ms",
            )
    return Decision("promote", evidence)


def wilson_low(count: float, of: float) -> float:
    """The lower end of the Wilson score interval of a share; 0 where nothing was counted."""
    if of == 0:
        return 0.0
    share = count / of
    middle = share + Z * Z / (2 * of)
    spread = Z * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    return max(0.0, (middle - spread) / (1 + Z * Z / of))


def wilson_high(count: int, of: int) -> float:
    """The upper end of the Wilson score interval of a share; 1 where nothing was counted."""
    return 1.0 - wilson_low(of - count, of)


def quantile(values: Sequence[float] | deque[float], share: float) -> float:
    """The value below which `share` of the values are; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0
