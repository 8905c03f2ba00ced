"""What a plan would do under a load: the Batcher with a candidate's cost, simulated request by request."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from headrace import _core
from headrace.planner.cost import Cost
from headrace.simulate.world import quantile

# Simulated requests after a tenth as many to fill the queues: some 10 ms, and 100 beyond the p99.
_REQUESTS = 20_000
_REQUESTS_FINAL = 200_000
_QUEUE = 1 << 20
# Above this share of what full Batches sustain, queues of any length come; nobody should plan for it.
UTILISATION_MAX = 0.95
# Replicas beyond that are a question for another tool.
REPLICAS_MAX = 1024


@dataclass(frozen=True)
class Prediction:
    """What is expected of one replica count and Batch limit at a rate.

    Attributes:
        max_batch: Requests per Batch at most.
        replicas: How many, behind a balancer that picks the shorter of two queues.
        rate_rps: Requests per second, of all replicas together.
        p50_s: Half of the latencies are below it.
        p99_s: 99 in 100 are.
        capacity_rps: Requests per second that full Batches of one replica sustain within the SLO.
        utilisation: Share of the time in which an Engine runs.
        requests_per_batch: Mean.
    """

    max_batch: int
    replicas: int
    rate_rps: float
    p50_s: float
    p99_s: float
    capacity_rps: float
    utilisation: float
    requests_per_batch: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return asdict(self)


def capacity(cost: Cost, max_batch: int, slo_s: float | None) -> float:
    """Requests per second that full Batches sustain, as the Batcher reckons: half of the SLO is for waiting."""
    jobs = max_batch
    if slo_s is not None:
        within = [count for count in range(1, max_batch + 1) if cost.seconds(count) <= slo_s / 2]
        jobs = max(within, default=1)
    return jobs / (cost.seconds(jobs) * cost.noise(jobs))


def simulate(
    cost: Cost, max_batch: int, replicas: int, rate_rps: float, slo_s: float | None = None, *, final: bool = False
) -> Prediction:
    """Runs Poisson arrivals through simulated replicas. Infinite latencies where they cannot keep up.

    Args:
        cost: What Batches cost.
        max_batch: Requests per Batch at most.
        replicas: How many.
        rate_rps: Requests per second, of all together; more than 0.
        slo_s: The deadline that the Batcher gives each request, by which it refuses and keeps Batches short; None for
            none, so that latencies tell how late it would be. Who is refused or expires has no answer in time: of more
            than one in a hundred the p99 is infinite.
        final: Whether to simulate longer, for figures that are shown.
    """
    sustained = capacity(cost, max_batch, slo_s)
    most = max(sustained, capacity(cost, max_batch, None))
    if rate_rps > UTILISATION_MAX * replicas * most:
        return Prediction(max_batch, replicas, rate_rps, math.inf, math.inf, sustained, 1.0, float(max_batch))
    factors, ratios_of = cost.up_to(max_batch)
    pool = _core.SimulatedPool(
        fixed_s=cost.fixed_s, per_request_s=cost.per_request_s, ratios=[], max_batch=max_batch,
        max_queue=_QUEUE, deadline_s=slo_s or 0.0, objective_s=0.0, cold_start_s=0.0, held_max=0, choices=2, seed=1,
        factors=factors, sizes=list(cost.sizes), ratios_of=ratios_of, wake_s=cost.wake_s,
    )  # fmt: skip
    pool.start_now(replicas)
    wanted = _REQUESTS_FINAL if final else _REQUESTS
    warm_s = wanted / 10 / rate_rps
    pool.offer_poisson(rate_rps, warm_s)
    pool.take()
    pool.offer_poisson(rate_rps, warm_s + wanted / rate_rps)
    pool.advance(warm_s + wanted / rate_rps)
    window = pool.take()
    p50_s, p99_s = (cost.outside_s + _answered_within(window, share) for share in (0.5, 0.99))
    utilisation = min(1.0, window.busy_s / (replicas * wanted / rate_rps))
    return Prediction(
        max_batch, replicas, rate_rps, p50_s, p99_s, sustained, utilisation, window.ok / max(1, window.batches)
    )


def _answered_within(window: _core.PoolWindow, share: float) -> float:
    """The latency that a share of all requests does not exceed, in seconds; infinite where fewer were answered."""
    answered = window.ok / max(1, window.ok + window.refused + window.expired)
    return quantile(window.latencies, share / answered) if share < answered else math.inf


def fewest_replicas(cost: Cost, max_batch: int, rate_rps: float, slo_s: float | None) -> int | None:
    """The fewest replicas whose p99 is within the SLO; None where no number of them is."""
    if slo_s is not None and alone(cost) > slo_s:
        return None
    least = max(1, math.ceil(rate_rps / (UTILISATION_MAX * capacity(cost, max_batch, None)) - 1e-9))

    def meets(replicas: int) -> bool:
        p99_s = simulate(cost, max_batch, replicas, rate_rps, slo_s).p99_s
        return math.isfinite(p99_s) and (slo_s is None or p99_s <= slo_s)

    low = high = least
    while high <= REPLICAS_MAX and not meets(high):
        low, high = high + 1, high + 2 * (high - least) + 1
    if high > REPLICAS_MAX:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle + 1, high)
    return high


def alone(cost: Cost) -> float:
    """The p99 of one request among almost none, whatever the SLO, in seconds."""
    return simulate(cost, 1, 1, 1e-3 / cost.seconds(1)).p99_s


def highest_rate(cost: Cost, max_batch: int, slo_s: float | None) -> float:
    """Requests per second at which one replica's p99 reaches the SLO; 0 where a single request does not make it."""
    most = UTILISATION_MAX * capacity(cost, max_batch, None)
    if slo_s is None or simulate(cost, max_batch, 1, most, slo_s).p99_s <= slo_s:
        return most
    if alone(cost) > slo_s:
        return 0.0
    low, high = 0.0, most
    for _ in range(8):
        middle = (low + high) / 2
        if simulate(cost, max_batch, 1, middle, slo_s).p99_s <= slo_s:
            low = middle
        else:
            high = middle
    return low
