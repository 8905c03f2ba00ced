"""Looks at a deployment twice a second: replicas, and what they counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

from traffic import Record

from headrace.serve import Deployment
from headrace.serving.autoscaling import METRIC_CAPACITY

EVERY_S = 0.5
CAPACITY_SAMPLES = 10
COUNTS = ("accepted", "ok", "failed", "expired", "cancelled", "refused", "rejected", "batches")


@dataclass(frozen=True)
class Sample:
    """One look at one model.

    Attributes:
        at_s: When, in seconds after the start of the clock.
        running: Replicas that take requests.
        starting: Replicas on their way.
        counts: What all replicas counted so far, those that are gone included.
        capacity_rps: Requests per second that one replica says it can sustain; 0 while none knows.
    """

    at_s: float
    running: int
    starting: int
    counts: Counter[str]
    capacity_rps: float


@dataclass
class Watch:
    """Samples of every model.

    Args:
        deployment: What to look at.
        clock_s: `perf_counter` at the start of the clock.
    """

    deployment: Deployment
    clock_s: float
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def look(self) -> None:
        """Takes one sample of each model. Blocking."""
        at_s = perf_counter() - self.clock_s
        replicas, ledgers = self.deployment.replicas(), self.deployment.ledgers()
        for name in self.deployment.models:
            counts: Counter[str] = Counter({key: 0 for key in COUNTS})
            for ledger in ledgers[name]:
                counts.update({key: int(ledger.stats.get(key, 0)) for key in COUNTS})
            states = replicas.get(name, {})
            known = [ledger.load.get(METRIC_CAPACITY, 0.0) for ledger in ledgers[name] if not ledger.final]
            running, starting = states.get("RUNNING", 0), states.get("STARTING", 0)
            sample = Sample(at_s, running, starting, counts, max(known, default=0.0))
            self.samples.setdefault(name, []).append(sample)

    async def forever(self) -> None:
        """Takes samples until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(EVERY_S)

    def capacity(self, name: str) -> float:
        """What one replica of `name` says it can sustain, a mean over the last few seconds; 0 if unknown."""
        recent = self.samples.get(name, [])[-CAPACITY_SAMPLES:]
        known = [sample.capacity_rps for sample in recent if sample.capacity_rps]
        return sum(known) / len(known) if known else 0.0


@dataclass(frozen=True)
class Now:
    """The last few seconds of one model, for the progress display."""

    offered_rps: float
    served_rps: float
    p50_ms: float
    p99_ms: float
    batch: float
    running: int
    starting: int


def now(record: Record, samples: list[Sample], at_s: float, window_s: float = 4.0) -> Now:
    """Sums up the window before `at_s`."""
    since = at_s - window_s
    offered = sum(1 for sent in reversed(record.sent_s[-5000:]) if sent >= since)
    recent = [latency for when, latency, outcome in record.done[-5000:] if when >= since and outcome == "ok"]
    recent.sort()
    last = samples[-1] if samples else Sample(0, 0, 0, Counter(), 0)
    before = next((sample for sample in samples if sample.at_s >= since), last)
    batches = last.counts["batches"] - before.counts["batches"]
    return Now(
        offered_rps=offered / window_s,
        served_rps=len(recent) / window_s,
        p50_ms=quantile(recent, 0.5) * 1e3,
        p99_ms=quantile(recent, 0.99) * 1e3,
        batch=(last.counts["ok"] - before.counts["ok"]) / batches if batches else 0.0,
        running=last.running,
        starting=last.starting,
    )


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the ordered values lie; 0 without any."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def balances(counts: Mapping[str, int]) -> bool:
    """Whether every accepted request has ended in exactly one way."""
    return counts["accepted"] == counts["ok"] + counts["failed"] + counts["expired"] + counts["cancelled"]
