"""A new version on trial: who answers, what is counted, and what is decided."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from headrace.backend import Result
from headrace.config import ModelSettings, RolloutSettings
from headrace.errors import DeadlineExceeded, ExecutionError, Overloaded, ShapeMismatch
from headrace.serving.decode import InferCall
from headrace.serving.evidence import Evidence, judge, pooled, quantile, wilson_low
from headrace.serving.rollout import SHADOW_BYTES_MAX, SHADOWS_MAX, Trial

CALL = InferCall(inputs={}, outputs=(), id=None, priority=0, timeout_us=0)
SOON = InferCall(inputs={}, outputs=(), id=None, priority=0, timeout_us=40_000)
LATER = InferCall(inputs={}, outputs=(), id=None, priority=0, timeout_us=200_000)


class FakeVersion:
    """Answers with its own number, later or not at all when a test asks for it."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.settings = ModelSettings(stall_s=0.05)
        self.seen: list[float | None] = []
        self.act: Callable[[], Any] = lambda: float(version)
        self.delay_s = 0.0
        self.result: Result = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def infer(self, call: InferCall, deadline_ms: float | None = None, caller: Hashable = None) -> Result:
        self.seen.append(deadline_ms)
        await self.gate.wait()
        await asyncio.sleep(self.delay_s)
        return self.result or {"y": np.full(2, self.act(), np.float32)}


def raising(error: Exception) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def trial(**settings: Any) -> tuple[Trial, FakeVersion, FakeVersion]:
    running, candidate = FakeVersion("1"), FakeVersion("2")
    return Trial(RolloutSettings(**settings), running, candidate), running, candidate


async def send(on: Trial, count: int) -> list[str]:
    return [(await on.infer(CALL))[0].version for _ in range(count)]


@given(st.floats(0.01, 0.5))
def test_a_canary_answers_exactly_its_share(share: float) -> None:
    async def main() -> None:
        on, *_ = trial(mode="canary", share=share)
        answered = await send(on, 200)
        assert abs(answered.count("2") - 200 * share) <= 1
        assert on.evidence["candidate"].requests == answered.count("2")
        assert on.evidence["running"].requests == answered.count("1")

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        ExecutionError("got NaN"),
        Overloaded("full"),
        DeadlineExceeded("late"),
        ZeroDivisionError("bug"),
        ShapeMismatch("got 200 positions, expected at most 128"),
    ],
)
def test_what_a_canary_fails_at_the_running_version_answers(error: Exception) -> None:
    async def main() -> None:
        on, running, candidate = trial(mode="canary", share=0.5)
        candidate.act = raising(error)
        assert set(await send(on, 20)) == {"1"}
        assert (len(candidate.seen), len(running.seen)) == (10, 20)
        assert (on.evidence["candidate"].requests, on.evidence["candidate"].failed) == (10, 10)
        assert on.judge().action == "rollback"

    asyncio.run(main())


def test_what_neither_version_can_answer_says_nothing_about_the_candidate() -> None:
    async def main() -> None:
        on, running, candidate = trial(mode="canary", share=0.5)
        running.act = candidate.act = raising(ExecutionError("got NaN"))
        for _ in range(8):
            with pytest.raises(ExecutionError):
                await on.infer(CALL)
        assert on.evidence["candidate"].failed == 0
        assert on.evidence["running"].failed == 4
        assert on.judge().action == "wait"

    asyncio.run(main())


def test_a_wrong_request_is_nobodys_failure() -> None:
    async def main() -> None:
        on, running, candidate = trial(mode="canary", share=0.5)
        running.act = candidate.act = raising(ShapeMismatch("got [3], expected [2]"))
        for _ in range(8):
            with pytest.raises(ShapeMismatch):
                await on.infer(CALL)
        assert on.evidence["candidate"].requests == on.evidence["running"].requests == 0

    asyncio.run(main())


def test_a_canary_is_given_copies_where_a_deadline_leaves_no_time_for_two_attempts() -> None:
    async def main() -> None:
        on, running, candidate = trial(mode="canary", share=0.5, min_requests=4, min_s=0, slower_max=1000)
        running.delay_s = candidate.delay_s = 0.03
        for _ in range(8):
            assert (await on.infer(SOON))[0] is running
        await settle(on)
        seen = on.evidence["candidate"]
        assert (seen.requests, seen.failed, seen.compared) == (4, 0, 0)
        assert on.judge().action == "promote"
        running.delay_s = 0.0
        for _ in range(100):  # until it is forgotten how long that took
            answered = await on.infer(SOON)
        candidate.delay_s = 0.0
        assert {(await on.infer(SOON))[0].version for _ in range(2)} == {"1", "2"}, answered

    asyncio.run(main())


@pytest.mark.parametrize("call", [CALL, LATER], ids=["no deadline", "deadline"])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_what_is_late_in_a_busy_moment_counts_against_both_versions(call: InferCall, share: float) -> None:
    async def burst(on: Trial, *busy: FakeVersion) -> list[str]:
        for one in busy:
            one.gate.clear()
        asked = [asyncio.create_task(on.infer(call)) for _ in range(40)]
        await asyncio.sleep(0.15)  # longer than the 0.05 s that a candidate has
        for one in busy:
            one.gate.set()
        answered = [(await one)[0].version for one in asked]
        await settle(on)
        return answered

    async def main() -> None:
        on, running, candidate = trial(mode="canary", share=share)
        await burst(on, running, candidate)
        assert on.judge().action == "wait", "they are the same"
        while not on._fits_twice(200.0):  # until it is forgotten how long that took
            await on.infer(call)
        for one in on.evidence.values():
            one.requests = one.failed = 0
        assert set(await burst(on, candidate)) == {"1"}
        assert on.judge().action == "rollback", "now it is the candidate alone"

    asyncio.run(main())


def test_a_copy_has_the_time_that_the_running_version_had() -> None:
    async def main() -> None:
        on, running, candidate = trial(mode="shadow", share=1)
        await on.infer(CALL, 70.0)
        await on.infer(SOON, 70.0)
        running.settings = ModelSettings(slo_ms=90.0)
        await on.infer(CALL)
        await settle(on)
        assert candidate.seen == running.seen == [70.0, 40.0, 90.0]

    asyncio.run(main())


def test_a_canary_that_hangs_holds_no_request_for_long() -> None:
    async def main() -> None:
        on, _, candidate = trial(mode="canary", share=0.5)
        candidate.gate.clear()
        assert set(await send(on, 8)) == {"1"}
        assert on.evidence["candidate"].failed == 4
        assert on.judge().action == "rollback"

    asyncio.run(main())


def test_both_attempts_together_have_the_time_of_one() -> None:
    async def main() -> None:
        on, running, candidate = trial(mode="canary", share=0.5)
        candidate.gate.clear()
        await on.infer(CALL)
        await on.infer(SOON, 1000.0)
        first, second = candidate.seen[0], running.seen[1]
        assert first == 40.0, "it queues as the running version does, and is given up at half of that"
        assert second is not None
        assert second <= 20.0

    asyncio.run(main())


def test_a_shadow_answers_nobody_and_its_differences_are_counted() -> None:
    async def main() -> None:
        on, running, candidate = trial(mode="shadow", share=0.5, tolerance=0.1, divergent_max=0.2)
        candidate.act = running.act
        assert set(await send(on, 20)) == {"1"}
        await settle(on)
        seen = on.evidence["candidate"]
        assert (seen.requests, seen.compared, seen.divergent) == (10, 10, 0)
        assert on.judge().action == "wait"
        candidate.act = lambda: 3.0
        await send(on, 20)
        await settle(on)
        assert (seen.compared, seen.divergent, seen.worst) == (20, 10, 2.0)
        assert on.judge().action == "rollback"
        assert "10 of 20 answers" in on.judge().reason
        candidate.act = raising(ExecutionError("no"))
        assert set(await send(on, 4)) == {"1"}
        await settle(on)
        assert seen.failed == 2
        candidate.act = raising(ShapeMismatch("got [200], expected at most [128]"))
        assert set(await send(on, 4)) == {"1"}
        await settle(on)
        assert seen.failed == 4, "the running version answered them"
        assert candidate.seen == [None] * 24

    asyncio.run(main())


async def settle(on: Trial) -> None:
    while on._shadows:
        await asyncio.sleep(0)


def test_a_slow_shadow_holds_nothing_up() -> None:
    async def main() -> None:
        on, _, candidate = trial(mode="shadow", share=1)
        candidate.settings = ModelSettings()
        candidate.gate.clear()
        assert set(await send(on, SHADOWS_MAX + 5)) == {"1"}
        assert on.evidence["candidate"].skipped == 5
        await on.close()
        assert not on._shadows

    asyncio.run(main())


@pytest.mark.parametrize("part", ["strings in", "answers"])
def test_copies_for_a_shadow_hold_a_bounded_amount_of_memory(part: str) -> None:
    size = SHADOW_BYTES_MAX // 4

    async def main() -> None:
        on, running, candidate = trial(mode="shadow", share=1)
        candidate.settings = ModelSettings()
        candidate.gate.clear()
        call = CALL
        if part == "strings in":
            text = np.empty(1, object)
            text[0] = bytes(size - 1024)
            call = InferCall(inputs={"x": text}, outputs=(), id=None, priority=0, timeout_us=0)
        else:
            running.result = {"y": np.empty(size - 1024, np.uint8)}
        for _ in range(6):
            await on.infer(call)
        assert len(on._shadows) == 4
        assert on.evidence["candidate"].skipped == 2
        await on.close()

    asyncio.run(main())


def test_a_moment_without_a_core_makes_no_candidate_slow() -> None:
    settings = RolloutSettings(mode="shadow", min_requests=20, min_s=0)
    for slow, action in ((2, "promote"), (3, "rollback")):
        candidate = evidence(20 - slow)
        candidate.latencies_s.extend([0.1] * slow)
        candidate.requests = 20
        for seen in (candidate, candidate.digest()):
            decision = judge(settings, evidence(100), seen, 1)
            assert decision.action == action, (slow, decision)


def evidence(
    requests: int = 0, failed: int = 0, latency_s: float = 0.01, compared: int = 0, divergent: int = 0
) -> Evidence:
    found = Evidence(requests=requests, failed=failed, compared=compared, divergent=divergent)
    found.latencies_s.extend([latency_s] * (requests - failed))
    return found


@pytest.mark.parametrize(
    ("candidate", "elapsed_s", "action", "reason"),
    [
        (evidence(99), 60, "wait", "99 of 100 requests"),
        (evidence(100), 5, "wait", "5.0 of 10 s"),
        (evidence(100), 10, "promote", "100 requests"),
        (evidence(1, failed=1), 0, "wait", ""),
        (evidence(2, failed=2), 0, "wait", ""),
        (evidence(3, failed=3), 0, "rollback", "failures: got 3 of 3"),
        (evidence(100, failed=1, latency_s=0.1), 10, "rollback", "latency"),
        (evidence(3), 3601, "rollback", "no verdict"),
        (evidence(100, failed=1), 10, "promote", ""),
        (evidence(100, failed=10), 10, "rollback", "failures"),
        (evidence(100, latency_s=0.02), 10, "rollback", "latency: got 20.00 ms at p50"),
        (evidence(100, latency_s=0.015), 10, "promote", ""),
        (evidence(99, latency_s=0.5), 10, "wait", ""),
        (evidence(100, compared=100, divergent=100), 10, "promote", ""),
    ],
)
def test_decisions(candidate: Evidence, elapsed_s: float, action: str, reason: str) -> None:
    decision = judge(RolloutSettings(mode="canary"), evidence(1000), candidate, elapsed_s)
    assert decision.action == action
    assert reason in decision.reason


def test_a_canary_leaves_something_to_compare_it_with() -> None:
    with pytest.raises(ValueError, match=r"got 0\.6 for a canary, expected at most 0\.5"):
        RolloutSettings(mode="canary", share=0.6)
    assert judge(RolloutSettings(mode="canary"), evidence(50), evidence(100), 10).action == "wait"


def test_a_candidate_may_fail_as_often_as_the_running_version() -> None:
    running = evidence(1000, failed=100)
    assert judge(RolloutSettings(), running, evidence(200, failed=20), 10).action == "promote"
    assert judge(RolloutSettings(), running, evidence(200, failed=60), 10).action == "rollback"


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("failing", [0.0, 0.3, 0.9])
def test_chance_does_not_end_a_candidate_that_is_the_same(share: float, failing: float) -> None:
    def ends(candidate_failing: float, seed: int) -> bool:
        rng = np.random.default_rng(seed)
        running, candidate = Evidence(), Evidence()
        for drawn, bad in zip(rng.random(1000), rng.random(1000), strict=True):
            seen = candidate if drawn < share else running
            seen.requests += 1
            seen.failed += int(bad < (candidate_failing if seen is candidate else failing))
            if judge(RolloutSettings(min_requests=10**6), running, candidate, 0.0).action == "rollback":
                return True
        return False

    assert sum(ends(failing, seed) for seed in range(40)) <= 2
    if failing < 0.9:
        assert all(ends(failing + 0.4, seed) for seed in range(10))


def test_a_suspect_waits_for_evidence() -> None:
    settings = RolloutSettings(mode="canary", share=0.5)
    decision = judge(settings, evidence(100), evidence(100, failed=6), 11)
    assert (decision.action, decision.reason) == ("wait", "100 of 100 requests, 6 failed, 11.0 of 10 s")
    assert judge(settings, evidence(400), evidence(400, failed=24), 11).action == "rollback"
    assert judge(settings, evidence(400, failed=8), evidence(400, failed=10), 11).action == "promote"
    late = judge(settings, evidence(100), evidence(100, failed=6), 1e4)
    assert (late.action, late.reason) == ("rollback", "no verdict: got 100 requests, 6 failed in 10000 s")


def test_a_candidate_that_repairs_what_answers_nothing_takes_over() -> None:
    for running in (evidence(900, failed=900), evidence(900, failed=899, latency_s=0.0005)):
        decision = judge(RolloutSettings(mode="canary", failures_max=1.0), running, evidence(100), 11)
        assert decision.action == "promote"
        assert "no latency to compare" in decision.reason


def test_as_many_requests_are_waited_for_as_were_asked_for() -> None:
    decision = judge(RolloutSettings(min_requests=5000), evidence(9000), evidence(4999), 11)
    assert (decision.action, decision.reason[:12]) == ("wait", "4999 of 5000")
    assert judge(RolloutSettings(min_requests=5000), evidence(9000), evidence(5000), 11).action == "promote"


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_agrees_with_scipy(of: int, share: float) -> None:
    count = round(share * of)
    expected = binomtest(count, of).proportion_ci(0.95, method="wilson").low
    assert wilson_low(count, of) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.lists(st.floats(0.001, 1), min_size=1, max_size=900), min_size=1, max_size=4))
def test_evidence_of_several_processes_counts_as_if_it_had_been_one(latencies: list[list[float]]) -> None:
    parts = [evidence() for _ in latencies]
    for part, values in zip(parts, latencies, strict=True):
        part.requests, part.failed, part.worst = len(values), 1, max(values)
        part.latencies_s.extend(values)
    everything = [value for values in latencies for value in values]
    whole = pooled(part.digest() for part in parts)
    assert (whole.requests, whole.failed, whole.worst) == (len(everything), len(parts), max(everything))
    for share in (0.5, 0.95):
        # Each digest is off by at most the rank of half a point.
        low, high = (quantile(everything, min(1.0, max(0.0, share + off))) for off in (-0.02, 0.02))
        assert low <= whole.latency_s(share) <= high
