"""What becomes of a new version where the replicas are of several groups, on their word alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from following_fakes import Memory

from headrace.config import AutoscalingConfig, ModelConfig, ModelSettings, RolloutSettings
from headrace.serving.assignment import LISTEN_S, Assignments, Edition
from headrace.serving.evidence import Digest
from headrace.serving.standings import DEATHS_MAX, QUIET_S_MAX, RESTART_S_MAX, SILENT_S_MAX, Standing

SCALING = AutoscalingConfig(groups={"cpu": AutoscalingConfig(), "gpu": AutoscalingConfig(min_replicas=0)})


def digest(requests: int = 0, failed: int = 0, seconds: float = 0.01) -> Digest:
    return Digest(requests=requests, failed=failed, points=((seconds, float(requests)),) if requests else ())


class Deployed:
    """A model with a group on CPUs and one on GPUs, and something new to bring in."""

    def __init__(self, mode: str = "canary") -> None:
        self.now = [100.0]
        self.store = Memory()
        self.assignments = Assignments(self.store, lambda: self.now[0])
        settings = ModelSettings(rollout=RolloutSettings(mode=mode, min_requests=20, min_s=1))  # type: ignore[arg-type]
        model = ModelConfig(name="m", files={1: Path("1")}, settings=settings)
        self.assignments.bring("m", Edition(model=model, contents="old"), SCALING)
        self.reports: dict[str, tuple[str, Any]] = {}
        self.report(**{"cpu-0": "none", "gpu-0": "none"})
        self.wait(LISTEN_S)
        self.generation = self.assignments.bring("m", Edition(model=model, contents="new")).generation

    def report(self, *final: str, **states: Any) -> str:
        """What replicas report from now on: a state, or what running version and candidate did in a trial."""
        for replica, what in states.items():
            self.reports[replica.replace("_", "-")] = (replica.partition("-")[0], what)
        for replica, (group, what) in list(self.reports.items()):
            # After the first generation a replica that says "none" has not heard of the next.
            generation = 1 if what == "none" else self.generation
            standing = (
                Standing(generation, what)
                if isinstance(what, str)
                else Standing(generation, "trial", "", 60.0, what[0], what[1])
            )
            self.assignments.report("m", replica, standing, replica in final, group)
            if replica in final:
                del self.reports[replica]
        return self.outcome

    def wait(self, seconds: float) -> str:
        """Lets time pass, with a report each second of those that still live."""
        for _ in range(int(seconds) + 1):
            self.now[0] += 1
            self.report()
        return self.outcome

    @property
    def outcome(self) -> str:
        status = self.assignments.status("m")
        if "rolled_back" in status:
            return str(status["rolled_back"]["reason"])
        return "waits" if "candidate" in status else "takes over"


@pytest.mark.parametrize("mode", ["replace", "canary"])
def test_a_change_of_one_group_alone_is_decided_by_that_group(mode: str) -> None:
    deployed = Deployed(mode)
    assert deployed.report(**{"cpu-0": "unchanged"}) == "waits", "the GPU has not even heard of it"
    assert deployed.report(**{"gpu-0": "loading"}) == "waits"
    assert deployed.wait(60) == "waits"
    if mode == "replace":
        assert deployed.report(**{"gpu-0": "ready"}) == "takes over"
    else:
        assert deployed.report(**{"gpu-0": (digest(30), digest(5))}) == "waits"
        assert deployed.report(**{"gpu-0": (digest(90), digest(25))}) == "takes over"


def test_the_faster_group_does_not_decide_for_the_slower() -> None:
    deployed = Deployed("replace")
    assert deployed.report(**{"cpu-0": "ready", "gpu-0": "loading"}) == "waits"
    deployed.assignments.report("m", "gpu-0", Standing(deployed.generation, "failed", "it is bad"), False, "gpu")
    assert deployed.outcome == "group gpu: it is bad"


def test_a_version_that_fails_in_one_group_is_rolled_back_however_well_it_does_in_the_other() -> None:
    deployed = Deployed()
    assert deployed.report(**{"gpu-0": (digest(90), digest(10, failed=10))}).startswith("group gpu: failures: got 10")
    deployed = Deployed()  # of both together it would be one in two hundred
    well = digest(2000), digest(2000)
    assert "group gpu: failures" in deployed.report(**{"gpu-0": (digest(9), digest(10, failed=10)), "cpu-0": well})


def test_latencies_are_compared_within_a_group() -> None:
    # Slow as a GPU is for small requests, and no slower than before: nothing against it, whatever the mixture.
    deployed = Deployed()
    cpu, gpu = (digest(1000, 0, 0.001), digest(30, 0, 0.001)), (digest(30, 0, 0.1), digest(900, 0, 0.1))
    assert deployed.report(**{"cpu-0": cpu, "gpu-0": gpu}) == "takes over"
    # And slower there alone, which is lost among a hundred times as many.
    deployed = Deployed()
    assert deployed.report(**{"cpu-0": (digest(5000), digest(5000)), "gpu-0": "loading"}) == "waits"
    assert "group gpu: latency" in deployed.report(**{"gpu-0": (digest(50, 0, 0.001), digest(50, 0, 0.009))})


def test_a_group_without_requests_holds_nothing_up_for_long() -> None:
    deployed = Deployed()
    cpu = digest(90), digest(30)
    assert deployed.report(**{"cpu-0": cpu, "gpu-0": (digest(9), digest(1))}) == "waits"
    assert deployed.wait(QUIET_S_MAX - 5) == "waits"
    assert deployed.report(**{"gpu-0": (digest(12), digest(2))}) == "waits", "it is at it"
    assert deployed.wait(QUIET_S_MAX - 5) == "waits"
    assert deployed.wait(10) == "takes over"
    deployed = Deployed()  # but that nobody used it is no reason for it
    deployed.report(**{"cpu-0": "unchanged", "gpu-0": (digest(9), digest(1))})
    assert deployed.wait(3 * QUIET_S_MAX) == "waits"
    deployed.report("gpu-0")
    assert deployed.wait(3 * QUIET_S_MAX) == "waits", "what it saw before it went to sleep is half a trial"
    assert "group gpu: no verdict" in deployed.wait(3600)


def test_a_group_that_sleeps_is_not_waited_for() -> None:
    deployed = Deployed()
    deployed.report("gpu-0", **{"gpu-0": "loading"})
    assert deployed.report(**{"cpu-0": (digest(90), digest(30))}) == "takes over"
    deployed = Deployed()
    deployed.report("gpu-0", **{"gpu-0": "none"})
    assert deployed.report(**{"cpu-0": "unchanged"}) == "takes over"


def test_a_version_that_the_replicas_of_one_group_die_of_is_rolled_back() -> None:
    deployed = Deployed("replace")
    deployed.report(**{f"cpu-{number}": "loading" for number in range(20)})
    for number in range(DEATHS_MAX):  # one after the other: each starts when the last one is long dead
        deployed.report(**{f"gpu-{number}": "loading"})
        del deployed.reports[f"gpu-{number}"]
        assert deployed.report(**{"cpu-0": "ready"}) == "waits"
        last = deployed.wait(2 * SILENT_S_MAX)
    assert last.startswith(f"group gpu: got {DEATHS_MAX} of {DEATHS_MAX} replicas dead")
    deployed = Deployed("replace")  # where none starts again, the group sleeps
    deployed.report(**{"cpu-0": "ready", "gpu-0": "loading"})
    del deployed.reports["gpu-0"]
    assert deployed.wait(RESTART_S_MAX - 5) == "waits"
    assert deployed.wait(10) == "takes over"


def test_a_front_that_starts_again_hears_every_group_first() -> None:
    deployed = Deployed()
    deployed.report(**{"cpu-0": "unchanged", "gpu-0": (digest(9), digest(1))})
    deployed.assignments = Assignments(deployed.store, lambda: deployed.now[0])
    deployed.assignments.report("m", "cpu-0", Standing(deployed.generation, "unchanged"), False, "cpu")
    assert deployed.outcome == "waits"
    assert deployed.wait(LISTEN_S) == "waits"


def test_each_group_is_tried_as_its_own_settings_say() -> None:
    deployed = Deployed()
    settings = ModelSettings(rollout=RolloutSettings(mode="canary", min_requests=50, min_s=1))
    model = ModelConfig(name="m", files={1: Path("1")}, settings=ModelSettings(), groups={"gpu": settings})
    deployed.generation = deployed.assignments.bring("m", Edition(model=model, contents="newer")).generation
    deployed.report(**{"cpu-0": "loading"})
    assert deployed.report(**{"cpu-0": "ready", "gpu-0": (digest(90), digest(45))}) == "waits"
    assert "45 of 50 requests" in deployed.assignments.status("m")["candidate"]["decision"]
    assert deployed.report(**{"gpu-0": (digest(90), digest(55))}) == "takes over"


def test_what_arrives_after_last_words_was_said_before_them() -> None:
    deployed = Deployed("replace")
    deployed.report(**{f"cpu-{number}": "ready" for number in range(4)})
    for number in range(DEATHS_MAX):
        deployed.report(f"cpu-{number}", **{f"cpu-{number}": "ready"})
        deployed.assignments.report("m", f"cpu-{number}", Standing(deployed.generation, "loading"), False, "cpu")
    assert deployed.wait(2 * SILENT_S_MAX) == "waits", "they ended as they were told, and did not die"
    assert deployed.report(**{"gpu-0": "ready"}) == "takes over"
