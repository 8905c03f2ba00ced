"""The autoscaling policy against Ray Serve's own, on simulated load: replicas paid for, and requests kept waiting.

    .venv/bin/python benchmarks/autoscaling/simulate.py [--start-s 6] [--json FILE]

Replicas of a known capacity start in a known time behind a fair queue; arrivals are Poisson. The policies are the real
ones, called as Serve's controller calls them, ten times a second. "cost" is replica-seconds over those of a planner who
knows the rate and needs no time to start anything; "late" is the share of requests that waited longer than the
objective.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.serve import autoscaling_policy as ray_policy
from ray.serve.config import AutoscalingConfig
from rich.console import Console
from rich.table import Table

from headrace.serving.autoscaling import Observation, PolicyConfig, PolicyState, ReplicaReport, decide

TICK_S = 0.1
CAPACITY_RPS = 50.0
SLO_S = 0.1
UTILISATION = 0.7
REPLICAS_MAX = 40
RATE_TAU_S = 2.0
SEED = 1

Rate = Callable[[float], float]


@dataclass(frozen=True)
class Load:
    """A rate in requests per second over seconds, and how long it lasts."""

    seconds: float
    rate: Rate


LOADS = {
    "constant 120/s": Load(300, lambda t: 120.0),
    "step 20 to 300/s": Load(300, lambda t: 300.0 if 60 <= t < 180 else 20.0),
    "ramp to 400/s": Load(400, lambda t: 400 * max(0.0, 1 - abs(t - 200) / 200)),
    "spikes of 10 s": Load(400, lambda t: 400.0 if t % 100 < 10 else 40.0),
    "day and night": Load(600, lambda t: max(0.0, 250 * math.sin(2 * math.pi * t / 300))),
    "one call a minute": Load(600, lambda t: 1.0 if t % 60 < 1 else 0.0),
}


@dataclass(frozen=True)
class Outcome:
    """What one policy made of one load."""

    replica_s: float
    ideal_s: float
    late: float
    p99_wait_s: float
    changes: int


class Replicas:
    """Replicas behind one queue: first come, first served."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.target = 0
        self.running = 0
        self.ready_at: list[float] = []
        self.queue: deque[float] = deque()
        self.waits: list[float] = []
        self.done = 0.0
        self.offered_rps = 0.0
        self.idle_s = 0.0

    def step(self, now: float, arrivals: int) -> None:
        """Serves what can be served in one tick."""
        self.running += sum(at <= now for at in self.ready_at)
        self.ready_at = [at for at in self.ready_at if at > now]
        self.running = min(self.running, self.target)
        self.offered_rps += (1 - math.exp(-TICK_S / RATE_TAU_S)) * (arrivals / TICK_S - self.offered_rps)
        self.idle_s = 0.0 if arrivals or self.queue else self.idle_s + TICK_S
        if self.idle_s > RATE_TAU_S:
            self.offered_rps = 0.0
        self.queue.extend([now] * arrivals)
        # Work that nobody asked for cannot be saved up, but for the fraction of a request in hand.
        can_do = self.running * CAPACITY_RPS * TICK_S
        self.done = min(self.done + can_do, max(1.0, can_do))
        while self.queue and self.done >= 1:
            self.done -= 1
            self.waits.append(now - self.queue.popleft())

    def scale(self, target: int, now: float) -> int:
        """Sets the target; returns 1 if that was a change."""
        changed = target != self.target
        have = self.running + len(self.ready_at)
        if target > have:
            self.ready_at += [now + self.start_s] * (target - have)
        elif target < have:
            # Those that are not up yet are given up first.
            keep = max(0, target - self.running)
            self.ready_at = sorted(self.ready_at)[:keep]
        self.target = target
        return int(changed)


class Ours:
    """`decide`, with what the replicas would report."""

    def __init__(self) -> None:
        self.config = PolicyConfig(0, REPLICAS_MAX, SLO_S, UTILISATION, idle_to_zero_s=30.0)
        self.state = PolicyState()

    def __call__(self, now: float, world: Replicas) -> int:
        """The target at `now`."""
        count = world.running
        reports: tuple[ReplicaReport, ...] = ()
        if count:
            delay_s = len(world.queue) / (count * CAPACITY_RPS)
            reports = (
                ReplicaReport(world.offered_rps / count, CAPACITY_RPS, delay_s, len(world.queue) / count),
            ) * count
        obs = Observation(now, count, world.target, reports, 0, float(len(world.queue)))
        decision, self.state = decide(self.config, self.state, obs)
        return decision.replicas


class RayDefault:
    """Serve's policy by queue length, with its wrapper that applies factors and delays."""

    def __init__(self, **config: Any) -> None:
        self.config = AutoscalingConfig(min_replicas=0, max_replicas=REPLICAS_MAX, **config)
        self.policy = ray_policy._apply_autoscaling_config(ray_policy._core_replica_queue_length_policy)
        self.state: dict[str, Any] = {}
        self.recent: deque[float] = deque(maxlen=max(1, round(self.config.look_back_period_s / TICK_S)))

    def __call__(self, now: float, world: Replicas) -> int:
        """The target at `now`."""
        # A replica that works at its capacity has one request in hand at any time; the rest waits.
        in_hand = min(world.running, world.offered_rps / CAPACITY_RPS)
        self.recent.append(len(world.queue) + in_hand)
        ctx = SimpleNamespace(
            current_num_replicas=world.running,
            target_num_replicas=world.target,
            total_num_requests=sum(self.recent) / len(self.recent),
            config=self.config,
            policy_state=self.state,
        )
        real, ray_policy.time = ray_policy.time, SimpleNamespace(time=lambda: now)  # type: ignore[assignment]
        try:
            target, self.state = self.policy(ctx)  # type: ignore[arg-type]
        finally:
            ray_policy.time = real
        return max(0, min(REPLICAS_MAX, math.ceil(target)))


POLICIES: dict[str, Callable[[], Callable[[float, Replicas], int]]] = {
    "headrace": Ours,
    "Ray default": RayDefault,
    "Ray, short delays": lambda: RayDefault(
        target_ongoing_requests=1.0,
        look_back_period_s=2.0,
        metrics_interval_s=1.0,
        upscale_delay_s=0,
        downscale_delay_s=10,
        downscale_to_zero_delay_s=30,
    ),
}


def simulate(policy: Callable[[float, Replicas], int], load: Load, start_s: float) -> Outcome:
    """Runs one policy through one load."""
    chance, world = np.random.default_rng(SEED), Replicas(start_s)
    world.scale(1, -start_s)
    paid = ideal = 0.0
    changes = 0
    for tick in range(round(load.seconds / TICK_S)):
        now = tick * TICK_S
        rate = load.rate(now)
        world.step(now, int(chance.poisson(rate * TICK_S)))
        changes += world.scale(policy(now, world), now)
        paid += (world.running + len(world.ready_at)) * TICK_S
        ideal += math.ceil(rate / (CAPACITY_RPS * UTILISATION)) * TICK_S
    waits = np.array(world.waits + [load.seconds - at for at in world.queue])
    return Outcome(paid, ideal, float((waits > SLO_S + TICK_S / 2).mean()), float(np.quantile(waits, 0.99)), changes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Headrace's autoscaling policy against Ray Serve's own.")
    parser.add_argument("--start-s", type=float, default=6.0, help="seconds a replica needs until it takes requests")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    table = Table("load", "policy", "cost", "late", "p99 wait, s", "changes")
    rows = []
    for name, load in LOADS.items():
        for policy, make in POLICIES.items():
            outcome = simulate(make(), load, args.start_s)
            cost = outcome.replica_s / outcome.ideal_s
            table.add_row(
                name, policy, f"{cost:.2f}", f"{outcome.late:.1%}", f"{outcome.p99_wait_s:.1f}", str(outcome.changes)
            )
            rows.append({"load": name, "policy": policy, "cost": cost, **outcome.__dict__})
        table.add_section()
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"start_s": args.start_s, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
