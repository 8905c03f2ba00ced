"""The simulated replicas against queues whose answers are known, and against a simulator written another way."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from typing import Any

import numpy as np
import pytest

from headrace import _core
from headrace.errors import ConfigError, HeadraceError
from headrace.serving.autoscaling import PolicyConfig
from headrace.simulate import HeadracePolicy, Sample, Service, Shape, Trace, diurnal, simulate
from headrace.simulate.world import quantile

EXPONENTIAL = [-math.log1p(-(i + 0.5) / 20_000) for i in range(20_000)]


def pool(**changes: Any) -> _core.SimulatedPool:
    options: dict[str, Any] = {
        "fixed_s": 0.0, "per_request_s": 1.0, "ratios": [], "max_batch": 1, "max_queue": 1 << 20, "deadline_s": 0.0,
        "objective_s": 0.0, "cold_start_s": 5.0, "held_max": 1000, "choices": 2, "seed": 3,
    }  # fmt: skip
    return _core.SimulatedPool(**options | changes)


def run(replicas: int, rate: float, seconds: float, **changes: Any) -> _core.PoolWindow:
    simulated = pool(**changes)
    simulated.start_now(replicas)
    simulated.offer_poisson(rate, seconds)
    simulated.advance(2 * seconds)
    return simulated.take()


def mean(window: _core.PoolWindow) -> float:
    bounds = _core.latency_bounds()
    return float(np.dot(window.latencies, (bounds[:-1] + bounds[1:]) / 2) / window.latencies.sum())


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_constant_service_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    window = run(1, load, 1_000_000)
    assert mean(window) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.03)


def test_exponential_service_has_the_quantiles_of_m_m_1() -> None:
    window = run(1, 0.8, 1_000_000, ratios=EXPONENTIAL)
    assert mean(window) == pytest.approx(1 / (1 - 0.8), rel=0.05)
    assert quantile(window.latencies, 0.99) == pytest.approx(-math.log(0.01) / (1 - 0.8), rel=0.08)


def test_an_engine_that_wakes_waits_as_welch_says() -> None:
    """M/G/1 whose first customer after a pause takes longer (Welch, Operations Research 12(5), 1964)."""
    load, wake = 0.5, 0.5
    window = run(1, load, 1_000_000, wake_s=wake)
    setup = (2 * wake + load * wake**2) / (2 * (1 + load * wake))
    assert mean(window) == pytest.approx(1 + load / (2 * (1 - load)) + setup, rel=0.02)


def test_batches_have_the_ratios_of_their_size() -> None:
    """At no load all are Batches of one; in a rush, all but the first are of two."""
    two = {"max_batch": 2, "ratios_of": [[1.0], [3.0], [0.5]]}
    for rate, seconds, each_s in ((1e-4, 1_000_000, 3 * 1), (10.0, 1000.0, 0.5 * 2)):
        window = run(1, rate, seconds, **two)
        assert window.busy_s / window.batches == pytest.approx(each_s, rel=0.01)


def test_two_servers_wait_little_longer_than_erlang_says_of_one_queue() -> None:
    """Two servers, and the shorter queue of both: a little worse than M/M/2, where nobody waits behind an idle one."""
    window = run(2, 1.0, 400_000, ratios=EXPONENTIAL)
    erlang_c = 1 / 3  # two servers, one Erlang
    pooled = 1 + erlang_c / (2 - 1.0)
    assert pooled < mean(window) < 1.12 * pooled


@pytest.mark.parametrize("load", [0.7, 0.9])
def test_the_shorter_of_two_queues_is_the_supermarket_model(load: float) -> None:
    """Mitzenmacher, IEEE TPDS 12(10), 2001: mean time = sum over i >= 1 of load^(2^i - 2), for many replicas."""
    window = run(1000, 1000 * load, 300, ratios=EXPONENTIAL)
    assert mean(window) == pytest.approx(sum(load ** (2**i - 2) for i in range(1, 12)), rel=0.03)


def other_simulator(
    arrivals: list[float], fixed: float, per: float, max_batch: int, deadline: float
) -> tuple[list[float], int, int]:
    """One replica, event by event from a heap. Returns latencies, refused and expired."""
    events: list[tuple[float, int, str]] = [(at, i, "arrive") for i, at in enumerate(arrivals)]
    heapq.heapify(events)
    ids = itertools.count(len(arrivals))
    queue: deque[float] = deque()
    busy_until, batch = 0.0, (0.0, 0.0)
    latencies: list[float] = []
    refused = expired = 0

    def begin(now: float) -> None:
        nonlocal busy_until, batch, expired
        taken: list[float] = []
        while queue and len(taken) < max_batch:
            left = queue[0] + deadline - now
            if not taken and left < fixed + per:
                queue.popleft()
                expired += 1
                continue
            most = min(taken[0] + deadline - now, max(deadline / 8, 32 * fixed)) if taken else 0.0
            if taken and fixed + per * (len(taken) + 1) > most:
                break
            taken.append(queue.popleft())
        if taken:
            busy_until = now + fixed + per * len(taken)
            batch = (now, fixed + per * len(taken))
            latencies.extend(busy_until - at for at in taken)
            heapq.heappush(events, (busy_until, next(ids), "done"))

    while events:
        now, _, what = heapq.heappop(events)
        if what == "done":
            begin(now)
            continue
        elapsed = now - batch[0]
        left = max(batch[1] - elapsed, 0.1 * elapsed) if now < busy_until else 0.0
        jobs = len(queue) + 1
        finish = left + math.ceil(jobs / max_batch) * fixed + jobs * per
        if fixed + per + (finish - fixed - per) / 0.75 > deadline:
            refused += 1
            continue
        queue.append(now)
        if now >= busy_until:
            begin(now)
    return latencies, refused, expired


@pytest.mark.parametrize(
    ("rate", "max_batch", "fixed"), [(5.0, 4, 0.1), (18.0, 4, 0.1), (60.0, 16, 0.1), (40.0, 16, 0.0005)]
)
def test_batching_and_admission_agree_with_another_simulator(rate: float, max_batch: int, fixed: float) -> None:
    arrivals = np.cumsum(np.random.default_rng(7).exponential(1 / rate, 20_000))
    latencies, refused, expired = other_simulator(arrivals.tolist(), fixed, 0.03, max_batch, 0.6)
    simulated = pool(fixed_s=fixed, per_request_s=0.03, max_batch=max_batch, deadline_s=0.6)
    simulated.start_now(1)
    simulated.offer(arrivals)
    simulated.advance(arrivals[-1] + 10)
    window = simulated.take()
    assert (window.arrived, window.ok) == (len(arrivals), len(latencies))
    assert (window.refused, window.expired) == (refused, expired)
    for share in (0.5, 0.99):
        assert quantile(window.latencies, share) == pytest.approx(np.quantile(latencies, share), rel=0.02)


def test_every_request_is_counted_once_while_replicas_come_and_go() -> None:
    simulated = pool(fixed_s=0.01, per_request_s=0.02, max_batch=8, deadline_s=0.3, cold_start_s=2.0)
    chance = np.random.default_rng(5)
    for second in range(1, 200):
        simulated.offer_poisson(300.0, float(second))
        simulated.advance(float(second))
        simulated.scale(int(chance.integers(0, 12)))
    simulated.scale(3)
    simulated.advance(400.0)
    window = simulated.take()
    assert window.arrived == window.ok + window.refused + window.expired
    assert window.held > 0
    assert simulated.state().ongoing == 0
    assert sum(window.latencies) == window.ok


def test_replicas_are_paid_for_from_the_asking_to_the_last_answer() -> None:
    simulated = pool(cold_start_s=5.0, per_request_s=1.0)
    simulated.scale(2)
    simulated.advance(4.0)
    assert simulated.state().running == 0
    simulated.advance(10.0)
    assert simulated.state().running == 2
    assert simulated.window.replica_s == 20
    simulated.offer([10.5])
    simulated.advance(11.0)
    simulated.scale(0)
    simulated.advance(20.0)
    assert simulated.take().replica_s == pytest.approx(22 + 0.5)


def test_the_first_request_waits_for_the_first_replica() -> None:
    simulated = pool(cold_start_s=5.0, per_request_s=0.1, max_batch=4)
    simulated.offer([1.0, 1.5])
    simulated.scale(1)
    simulated.advance(20.0)
    window = simulated.take()
    assert (window.held, window.ok) == (2, 2)
    assert quantile(window.latencies, 1.0) == pytest.approx(5.6, rel=0.02)


class Fixed:
    name = "fixed"

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.bounds = (replicas, replicas)

    def __call__(self, sample: Sample) -> int:
        return self.replicas


def test_a_seed_gives_the_same_numbers_and_another_one_others() -> None:
    trace = diurnal(Shape(seconds=600, base_rps=20, peak_rps=200))
    service = Service(0.01, 0.02, max_batch=8, slo_s=0.4, cold_start_s=5)

    def run_with(seed: int) -> dict[str, Any]:
        policy = HeadracePolicy(service, PolicyConfig(1, 50, slo_s=0.2))
        return simulate(trace, service, policy, seed=seed).to_dict()

    first = run_with(1)
    assert run_with(1) == first
    assert run_with(2)["ok"] != first["ok"]


@pytest.mark.parametrize(("least", "most", "first"), [(1, 3, 3), (40, 50, 40)])
def test_a_simulation_begins_within_the_bounds(least: int, most: int, first: int) -> None:
    trace = diurnal(Shape(seconds=60, base_rps=200, peak_rps=200))  # for which some ten are needed
    service = Service(0.01, 0.02, max_batch=8, slo_s=0.4, cold_start_s=5)
    outcome = simulate(trace, service, HeadracePolicy(service, PolicyConfig(least, most, slo_s=0.2)), series_s=1.0)
    assert outcome.series["running"][0] == first


def test_arrivals_of_a_trace_are_replayed_as_they_are() -> None:
    at_s = np.array([0.0, 0.25, 3.5, 3.5, 9.0])
    outcome = simulate(
        Trace("five", 1.0, np.array([2.0, 0, 0, 2, 0, 0, 0, 0, 0, 1]), at_s), Service(0, 0.1, slo_s=1.0), Fixed(1),
        series_s=1.0,
    )  # fmt: skip
    assert outcome.counts["arrived"] == outcome.counts["ok"] == 5
    assert outcome.series["rate_rps"] == [2, 0, 0, 2, 0, 0, 0, 0, 0, 1]
    assert outcome.attainment == 1.0
    assert outcome.replica_hours == pytest.approx(10 * 1 / 3600, rel=0.01)
    woken = simulate(Trace("five", 1.0, np.zeros(10), at_s), Service(0, 0.1, slo_s=1.0, wake_s=0.2), Fixed(1))
    assert woken.quantiles_s["p50"] == pytest.approx(0.3, rel=0.03), "three of five find it idle"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_request_s": 0.0}, r"got fixed_s \+ per_request_s=0"),
        ({"max_batch": 0}, "got max_batch=0"),
        ({"ratios": [1.0, math.nan]}, "got a ratio=nan"),
        ({"choices": 3}, "got choices=3"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        pool(**changes)


def test_a_tick_of_no_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="got tick_s=0"):
        simulate(diurnal(Shape(seconds=60)), Service(), Fixed(1), tick_s=0)


def one_batch(count: int, **options: Any) -> Any:
    """`count` requests that come together to an idle replica which is busy with one that came before them."""
    made = pool(fixed_s=0.01, per_request_s=0.001, max_batch=count, **options)
    made.start_now(1)
    made.offer(np.array([0.0] + [0.001] * count))
    made.advance(100.0)
    return made.window


def test_batches_off_the_line_take_as_much_longer_as_was_measured() -> None:
    on_it = one_batch(4)
    assert on_it.busy_s == pytest.approx(0.011 + 0.014)
    assert one_batch(4, factors=[9.0, 1.0, 9.0, 9.0, 1.5]).busy_s == pytest.approx(0.011 + 1.5 * 0.014)
    # Batches beyond the last are as far off as that.
    assert one_batch(4, factors=[9.0, 2.0]).busy_s == pytest.approx(2 * (0.011 + 0.014))


def test_a_batch_takes_as_long_as_its_requests_are_large_together() -> None:
    assert one_batch(4, sizes=[3.0]).busy_s == pytest.approx(0.013 + 0.022)
    some = one_batch(4000, sizes=[0.5, 1.5])
    assert some.busy_s == pytest.approx(0.011 + 4.01, rel=0.05)
    with pytest.raises(HeadraceError, match="a size=0"):
        pool(sizes=[0.0])


def test_a_large_request_is_refused_where_a_small_one_would_be_in_time() -> None:
    small, large = (one_batch(1, sizes=[size], deadline_s=0.05) for size in (1.0, 60.0))
    assert (small.refused, small.ok) == (0, 2)
    assert (large.refused, large.ok) == (2, 0)
