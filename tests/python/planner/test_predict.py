"""From measured Batches to expected latencies, against queues whose answers are known."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

import headrace as hr
from headrace.backend import Executable, Plan, Request, Result
from headrace.planner import rehearsal
from headrace.planner.cost import Cost
from headrace.planner.predict import capacity, fewest_replicas, highest_rate, simulate
from headrace.planner.rehearsal import rehearse


def even(fixed_s: float, per_request_s: float, **changes: object) -> Cost:
    return Cost(fixed_s, per_request_s, {1: 1.0}, {1: (1.0,)}, **changes)  # type: ignore[arg-type]


def test_one_at_a_time_waits_as_pollaczek_and_khinchine_say() -> None:
    """M/D/1 at half load: half of the requests wait at most for what is left of one other."""
    found = simulate(even(0.0, 0.01), 1, 1, 50.0, final=True)
    assert found.utilisation == pytest.approx(0.5, rel=0.02)
    assert 0.0100 <= found.p50_s <= 0.0102
    # P(wait > t services) ~ (1 - u) / (u e^h - 1) * e^(-h t) with u (e^h - 1) = h (Cramer and Lundberg): h = 1.2564.
    wait = math.log(0.5 / (0.5 * math.exp(1.2564) - 1) / 0.01) / 1.2564
    assert found.p99_s == pytest.approx(0.01 * (1 + wait), rel=0.05)


def test_capacity_is_that_of_full_batches_with_half_of_the_slo_for_waiting() -> None:
    cost = even(0.01, 0.001)
    assert capacity(cost, 64, None) == pytest.approx(64 / 0.074)
    assert capacity(cost, 64, 0.08) == pytest.approx(30 / 0.04)
    assert capacity(cost, 64, 0.001) == pytest.approx(1 / 0.011)


def test_batches_off_the_line_are_predicted_as_measured() -> None:
    cost = Cost(0.0, 0.01, {1: 1.0, 8: 0.5}, {1: (1.0,)})
    assert cost.seconds(8) == pytest.approx(0.04)
    assert cost.factor(4) == pytest.approx(1 - 0.5 * 3 / 7)
    assert capacity(cost, 8, None) == pytest.approx(200)


def test_more_than_can_be_done_is_late_without_bound() -> None:
    assert math.isinf(simulate(even(0.0, 0.01), 1, 1, 101.0).p99_s)
    assert fewest_replicas(even(0.0, 0.01), 1, 1e6, None) is None


@pytest.mark.parametrize("rate", [20.0, 90.0, 450.0, 3000.0])
def test_the_fewest_replicas_meet_the_slo_and_one_less_does_not(rate: float) -> None:
    cost, slo_s = even(0.0, 0.01), 0.025
    replicas = fewest_replicas(cost, 1, rate, slo_s)
    assert replicas is not None
    assert simulate(cost, 1, replicas, rate, slo_s).p99_s <= slo_s
    if replicas > 1:
        assert simulate(cost, 1, replicas - 1, rate, slo_s).p99_s > slo_s


def test_the_highest_rate_is_where_p99_reaches_the_slo() -> None:
    cost = even(0.002, 0.008)
    rate = highest_rate(cost, 16, 0.05)
    assert simulate(cost, 16, 1, rate, 0.05).p99_s <= 0.05
    assert simulate(cost, 16, 1, 1.05 * rate, 0.05).p99_s > 0.05
    assert highest_rate(cost, 16, 0.009) == 0


def test_deadlines_keep_batches_short() -> None:
    """Where they get hardly cheaper by being long, requests that need not wait for the whole are answered sooner."""
    cost = even(0.0005, 0.007)
    free, held = (simulate(cost, 16, 1, 110.0, slo_s, final=True) for slo_s in (None, 0.15))
    assert held.requests_per_batch < 0.95 * free.requests_per_batch
    assert held.p99_s < 0.95 * free.p99_s


def test_who_is_refused_has_no_answer_in_time() -> None:
    cost = even(0.0, 0.01)
    found = simulate(cost, 1, 1, 90.0, 0.03)
    assert math.isinf(found.p99_s)
    assert found.p50_s < 0.03
    # 80 % are taken, so their median is not that of all.
    assert found.p50_s > simulate(cost, 1, 1, 60.0, 0.03).p50_s
    assert math.isfinite(simulate(cost, 1, 1, 90.0).p99_s)


def test_requests_of_many_sizes_make_longer_tails() -> None:
    same = simulate(even(0.0, 0.01), 1, 1, 60.0)
    mixed = simulate(even(0.0, 0.01, sizes=tuple(np.repeat([0.2, 1.8], 50))), 1, 1, 60.0)
    assert mixed.utilisation == pytest.approx(same.utilisation, rel=0.05)
    assert mixed.p99_s > 1.3 * same.p99_s


def test_what_shows_only_behind_a_batcher_is_part_of_each_latency() -> None:
    found = simulate(even(0.0, 0.01, wake_s=0.002, outside_s=0.005), 1, 1, 1.0)
    assert found.p50_s == pytest.approx(0.017, rel=0.02)
    # In full Batches in a row the Engine never pauses, and answers do not keep it from the next one.
    assert found.capacity_rps == pytest.approx(100)


def test_a_disturbance_is_that_of_batches_of_its_size() -> None:
    """One in fifty short Batches takes three times as long; long ones never do."""
    disturbed = tuple(1.0 + 2.0 * (i == 0) for i in range(50))
    cost = Cost(0.0, 0.01, {1: 1.0, 8: 1.0}, {1: disturbed, 8: (1.0,)})
    assert simulate(cost, 1, 1, 0.1).p99_s == pytest.approx(0.03, rel=0.02)
    assert capacity(cost, 8, None) == pytest.approx(100)
    assert capacity(cost, 1, None) == pytest.approx(100 / 1.04)


class _Sleeps(Executable):
    plan = Plan("sleeps", "cpu", "none", "fp32", 1)

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        time.sleep(0.003)
        return [{"y": request["x"]} for request in requests]


def test_a_rehearsal_finds_batches_that_take_longer_than_they_were_measured_to() -> None:
    spec = hr.TensorSpec("x", "float32", (1,))
    engine = hr.Engine(hr.Signature((spec,), (hr.TensorSpec("y", "float32", (1,)),)), _Sleeps())
    request = {"x": np.zeros(1, np.float32)}
    # A sleep is never shorter than was asked for, so this bound does not depend on the machine.
    found = rehearse(engine, even(0.002, 0.0), [request], 8, 100.0)
    assert found.wake_s >= 0.9e-3
    assert 1 - 1e-6 < found.slowness < 2
    assert 0 < found.outside_s < 0.05
    # Much faster than it was measured to be: not because of pauses.
    found = rehearse(engine, even(3.0, 0.0), [request], 8, 100.0)
    assert (found.slowness, found.wake_s) == (0.7, 0)


def test_an_engine_that_is_slower_in_general_is_not_taken_for_one_that_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 requests in a second, each a Batch of its own that was measured to take 3 ms, and takes 1.8 times that."""
    stats = {"batch_sizes": [0, 100], "batch_seconds": [0.0, 0.54], "queue_delay": {"total_s": 0.0}}
    sent_s = [0.01 * place for place in range(100)]
    monkeypatch.setattr(rehearsal, "_send", lambda *_: (sent_s, [one + 0.0054 for one in sent_s], 1.0, stats))
    spec = hr.TensorSpec("x", "float32", (1,))
    engine = hr.Engine(hr.Signature((spec,), (hr.TensorSpec("y", "float32", (1,)),)), _Sleeps())
    found = rehearse(engine, even(0.003, 0.0), [], 1, 100.0)
    # 46 of them found it idle. Waking costs no more than a Batch.
    assert found.wake_s == pytest.approx(0.003)
    # All that ran is accounted for, as `Cost.scaled` makes wakes dearer too.
    assert found.slowness * (0.3 + 46 * found.wake_s) == pytest.approx(0.54)
    stats["batch_seconds"] = [0.0, 0.4]
    found = rehearse(engine, even(0.003, 0.0), [], 1, 100.0)
    assert (found.slowness, found.wake_s) == pytest.approx((1.0, 0.1 / 60)), "what waking explains is no slowness"


def test_batches_that_are_slower_right_after_another_are_not_taken_for_ones_that_woke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All take 1.2 times the 3 ms that were measured, and those that found the Engine idle a millisecond more."""
    spec = hr.TensorSpec("x", "float32", (1,))
    engine = hr.Engine(hr.Signature((spec,), (hr.TensorSpec("y", "float32", (1,)),)), _Sleeps())
    woken = 100 * (1 - 0.40)
    stats = {"batch_sizes": [0, 50, 25], "batch_seconds": [0.0, 0.40 - 0.09, 0.09], "queue_delay": {"total_s": 0.0}}
    monkeypatch.setattr(rehearsal, "_send", lambda *_: ([0.0] * 100, [0.1] * 100, 1.0, stats))
    found = rehearse(engine, even(0.003, 0.0), [], 2, 100.0)
    assert found.slowness == pytest.approx(1.2)
    assert found.slowness * (0.225 + woken * found.wake_s) == pytest.approx(0.40), "all that ran is accounted for"
    # Of one Request each: pairs, the second of which is sent while the first runs.
    sent_s = [0.02 * (place // 2) + 0.001 * (place % 2) for place in range(100)]
    done_s = [0.02 * (place // 2) + 0.005 + 0.0036 * (place % 2) for place in range(100)]
    stats = {"batch_sizes": [0, 100], "batch_seconds": [0.0, 0.41], "queue_delay": {"total_s": 0.0}}
    monkeypatch.setattr(rehearsal, "_send", lambda *_: (sent_s, done_s, 1.0, stats))
    found = rehearse(engine, even(0.003, 0.0), [], 1, 100.0)
    assert found.slowness == pytest.approx(1.2)
    assert found.wake_s == pytest.approx((0.41 / 1.2 - 0.3) / 59)
