"""What a replica reports: rates that add up over replicas, and a capacity that is the smaller of two."""

from __future__ import annotations

import pytest

from headrace.serving import load
from headrace.serving.autoscaling import (
    METRIC_BACKLOG,
    METRIC_CAPACITY,
    METRIC_HEARTBEAT,
    METRIC_OFFERED,
    METRIC_QUEUE_DELAY,
)
from headrace.serving.load import LoadMeter, LoadSample, sample


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0
        self.cpu_s = 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(load, "monotonic", lambda: fake.now_s)
    monkeypatch.setattr(load, "thread_time", lambda: fake.cpu_s)
    return fake


def ledger(**counts: float) -> dict[str, float]:
    return {"accepted": 0, "refused": 0, "queued": 0, "queue_delay_s": 0.0, "capacity_rps": 0.0, **counts}


def test_the_ledgers_of_a_replica_are_summed_and_the_slowest_sets_the_pace() -> None:
    fast = ledger(accepted=10, refused=2, queued=1, queue_delay_s=0.1, capacity_rps=500.0)
    slow = ledger(accepted=5, queued=3, queue_delay_s=0.4, capacity_rps=50.0)
    assert sample([fast, slow, ledger()]) == LoadSample(17, 4, 0.4, 50.0)
    assert sample([]) == LoadSample(0, 0, 0, 0)


def test_the_offered_rate_settles_at_the_true_one(clock: Clock) -> None:
    meter, arrived, report = LoadMeter(), 0.0, {}
    for _ in range(100):
        clock.now_s += 0.2
        arrived += 0.2 * 30
        report = meter.report(LoadSample(arrived, 2, 0.01, 100))
    assert report[METRIC_OFFERED] == pytest.approx(30, rel=0.01)
    assert report[METRIC_BACKLOG] == 2
    assert report[METRIC_QUEUE_DELAY] == 0.01


def test_while_traffic_moves_to_a_new_replica_the_sum_stays_the_true_rate(clock: Clock) -> None:
    old, new, arrived = LoadMeter(), LoadMeter(), [0.0, 0.0]
    for tick in range(200):
        clock.now_s += 0.1
        shares = (4.0, 0.0) if tick < 150 else (2.0, 2.0)
        arrived = [count + share for count, share in zip(arrived, shares, strict=True)]
        reports = [meter.report(LoadSample(count, 1, 0, 100)) for meter, count in zip((old, new), arrived, strict=True)]
        if tick > 140:
            assert sum(report[METRIC_OFFERED] for report in reports) == pytest.approx(40, rel=0.01)


def test_without_arrivals_it_soon_says_zero(clock: Clock) -> None:
    meter = LoadMeter()
    clock.now_s += 1
    assert meter.report(LoadSample(20, 0, 0.05, 100))[METRIC_OFFERED] > 0
    clock.now_s += load.RATE_TAU_S + 0.1
    report = meter.report(LoadSample(20, 0, 0.05, 100))
    assert report[METRIC_OFFERED] == 0
    assert report[METRIC_QUEUE_DELAY] == 0, "the delay of requests long gone is none now"
    clock.now_s += 10
    assert meter.report(LoadSample(20, 3, 5.0, 100))[METRIC_QUEUE_DELAY] == 5.0, "what still waits is not idle"


def test_capacity_is_the_smaller_of_engine_and_event_loop(clock: Clock) -> None:
    meter, arrived = LoadMeter(), 0.0
    for _ in range(100):
        clock.now_s += 0.2
        clock.cpu_s += 10 * 0.004  # 4 ms of the loop's thread per request: 250 per second
        arrived += 10
        assert meter.report(LoadSample(arrived, 0, 0, 90))[METRIC_CAPACITY] == 90
    assert meter.report(LoadSample(arrived, 0, 0, 9000))[METRIC_CAPACITY] == pytest.approx(250, rel=0.01)
    assert meter.report(LoadSample(arrived, 0, 0, 0))[METRIC_CAPACITY] == pytest.approx(250, rel=0.01)


def test_capacity_is_unknown_before_anything_was_measured(clock: Clock) -> None:
    clock.now_s += 1
    assert LoadMeter().report(LoadSample(0, 0, 0, 0))[METRIC_CAPACITY] == 0


def test_the_heartbeat_always_moves(clock: Clock) -> None:
    meter = LoadMeter()
    first = meter.report(LoadSample(0, 0, 0, 0))[METRIC_HEARTBEAT]
    clock.now_s += 0.5
    assert meter.report(LoadSample(0, 0, 0, 0))[METRIC_HEARTBEAT] > first
