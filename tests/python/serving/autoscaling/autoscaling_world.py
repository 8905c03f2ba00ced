"""A world for the policy: replicas whose true capacity is known, and the ticks of a clock."""

from __future__ import annotations

import itertools

from headrace.serving.autoscaling import (
    Decision,
    Observation,
    PolicyConfig,
    PolicyState,
    Reason,
    ReplicaReport,
)
from headrace.serving.autoscaling import decide as decide_with_reason

TICK_S = 0.1


def decide(config: PolicyConfig, state: PolicyState, obs: Observation) -> tuple[int, PolicyState]:
    decision, state = decide_with_reason(config, state, obs)
    return decision.replicas, state


class World:
    """Replicas of a known true capacity behind a fair load balancer, driven by the policy."""

    def __init__(self, config: PolicyConfig, capacity_rps: float, start_s: float = 0.0, believed: float = 1.0) -> None:
        self.config = config
        self.capacity_rps = capacity_rps
        self.believed = believed
        self.start_s = start_s
        self.state = PolicyState()
        self.decision = Decision(0, Reason.STEADY)
        self.target = config.min_replicas
        self.running = self.target
        self.starting: list[float] = []
        self.now = 100.0
        self.queue = 0.0
        self.trace: list[int] = []

    def step(self, rate: float) -> int:
        self.now += TICK_S
        done = [t for t in self.starting if t <= self.now]
        self.starting = [t for t in self.starting if t > self.now]
        self.running = min(self.target, self.running + len(done))
        total = self.running * self.capacity_rps
        self.queue = max(0.0, self.queue + (rate - total) * TICK_S)
        share = rate / self.running if self.running else 0.0
        delay = self.queue / total if total else 0.0
        report = ReplicaReport(share, self.capacity_rps * self.believed, delay, self.queue / max(1, self.running))
        obs = Observation(self.now, self.running, self.target, (report,) * self.running, 0, self.queue)
        self.decision, self.state = decide_with_reason(self.config, self.state, obs)
        target = self.decision.replicas
        if target > self.target:
            self.starting += [self.now + self.start_s] * (target - self.target)
        self.target = target
        self.running = min(self.running, target)
        self.trace.append(target)
        return target

    def run(self, rate: float, seconds: float) -> list[int]:
        return [self.step(rate) for _ in range(round(seconds / TICK_S))]


def changes(trace: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in itertools.pairwise(trace) if a != b]
