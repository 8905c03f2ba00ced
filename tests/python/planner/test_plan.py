"""What is chosen among backends whose speed is known, and what is said of those that lose."""

from __future__ import annotations

import gc
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.python.planner.conftest import Made

import headrace as hr
from headrace.errors import BackendUnavailable, ConfigError, ExecutionError, InvalidPlan, ParityError, PlanError
from headrace.planner import Report, Row, search
from headrace.planner.cost import Cost, Stopwatch
from headrace.planner.file import read
from headrace.planner.rehearsal import Rehearsal

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    machine = dataclasses.replace(hr.hardware.probe(), cores=4)
    monkeypatch.setattr(hr.hardware, "probe", lambda: machine)


def row(report: Report, name: str) -> Row:
    (found,) = [one for one in report.rows if str(one.candidate) == name]
    return found


def test_the_cheapest_that_meets_the_slo_is_chosen_and_every_loser_has_its_reason(
    doubling: hr.Model, install: Install
) -> None:
    quick = Made(0.001, 0.004, {"fp32": 1.0, "bf16": 2.0, "int8": 3.0}, wrong={"int8": 0.3})
    install(
        quick=quick,
        slow=Made(0.001, 0.04),
        absent=Made(0.001, 0.001, refuses="no wheel: pip install absent"),
        unable=Made(0.001, 0.001, missing_op="Add"),
    )
    report = hr.plan(doubling, slo_ms=30, rate=600)
    choice = report.choice
    # fp32 sustains some 250 requests/s per core and bf16 500: 4 cores against 2.
    assert choice is not None
    assert str(choice.candidate) == "quick bf16, 1 thread"
    assert choice.prediction is not None
    assert (choice.cores, choice.prediction.replicas) == (2, 2)
    assert choice.prediction.p99_s < 0.03
    assert row(report, "quick fp32, 1 thread").why.startswith("slower: takes ")
    assert row(report, "slow fp32, 1 thread").why.startswith("too slow: p99 of a request alone is 41 ms")
    int8 = row(report, "quick int8, 1 thread")
    assert "parity failed: error 0.3 in output 'y' against the reference backend, tolerance 0.02" in int8.why
    assert row(report, "quick int8, 4 threads").why.startswith("as on one thread: parity failed")
    assert report.refused == {
        "absent": "no wheel: pip install absent",
        "unable": "cannot run op Add (node 'a node'): no such kernel",
    }
    assert all(one.why for one in report.rows if one.status != "chosen")


def test_what_cannot_win_is_dropped_by_its_bound_and_never_compiled(doubling: hr.Model, install: Install) -> None:
    quick = Made(0.001, 0.004)
    install(quick=quick)
    report = hr.plan(doubling, slo_ms=100, rate=100)
    assert str(report.choice and report.choice.candidate) == "quick fp32, 1 thread"
    assert {options.threads for options in quick.compiled} == {1}
    assert (
        "even if 4 threads were 4 times as fast as one, it would take 4 cores"
        in row(report, "quick fp32, 4 threads").why
    )


def test_more_threads_are_taken_where_one_is_too_slow_for_the_slo(doubling: hr.Model, install: Install) -> None:
    install(quick=Made(0.0, 0.020))
    report = hr.plan(doubling, slo_ms=15, rate=0.2)
    assert report.choice is not None
    assert report.choice.candidate.threads == 2
    assert report.choice.cores == 2


def test_a_lower_precision_is_taken_only_where_it_saves_cores(doubling: hr.Model, install: Install) -> None:
    install(quick=Made(0.0, 0.004, {"fp32": 1.0, "bf16": 2.0}))
    report = hr.plan(doubling, slo_ms=100, rate=50)
    assert report.choice is not None
    assert report.choice.candidate.precision == "fp32"
    assert row(report, "quick bf16, 1 thread").why.startswith("its lower precision saves no core")
    assert row(report, "quick bf16, 1 thread").status == "frontier"


def test_without_a_rate_the_cheapest_per_request_is_chosen(doubling: hr.Model, install: Install) -> None:
    install(even=Made(0.0, 0.010), batches=Made(0.012, 0.001))
    report = hr.plan(doubling, slo_ms=200)
    assert report.choice is not None
    assert report.choice.candidate.backend == "batches"
    found = report.choice.prediction
    assert found is not None
    assert found.max_batch >= 32
    assert found.rate_rps > 400


def test_where_nothing_meets_the_slo_it_says_so_and_what_comes_nearest(doubling: hr.Model, install: Install) -> None:
    install(one=Made(0.0, 0.050, scaling=0.0), other=Made(0.0, 0.080, scaling=0.0))
    report = hr.plan(doubling, slo_ms=5, rate=10)
    assert report.choice is None
    assert report.nearest is not None
    assert report.nearest.candidate.backend == "one"
    assert "no plan does that here" in str(report)
    with pytest.raises(PlanError, match="got a report without a choice"):
        report.save("unused.toml")


def test_what_was_not_reached_in_time_is_reported_as_such(doubling: hr.Model, install: Install) -> None:
    install(one=Made(0.0, 0.001), other=Made(0.0, 0.001))
    report = hr.plan(doubling, slo_ms=50, rate=10, budget_s=1e-6)
    assert report.choice is not None
    assert any("the budget of 1e-06 s was spent" in one.why for one in report.rows)


def test_one_that_fails_while_it_is_timed_loses_and_the_others_go_on(
    doubling: hr.Model, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, real = Made(0.0, 0.001), Stopwatch.spend

    def spend(watch: Stopwatch, *how: Any) -> None:  # what was timed by then has run well
        quick.fails_above = 0
        real(watch, *how)

    monkeypatch.setattr(Stopwatch, "spend", spend)
    install(quick=quick, sound=Made(0.0, 0.002))
    report = hr.plan(doubling, slo_ms=100, rate=100, threads=[1])
    assert str(report.choice and report.choice.candidate) == "sound fp32, 1 thread"
    assert row(report, "quick fp32, 1 thread").why.startswith("cannot run: no memory for ")
    assert row(report, "quick fp32, 1 thread").status == "lost"
    quick.fails_above = 1000
    install(quick=quick)
    report = hr.plan(doubling, slo_ms=100, rate=100, threads=[1])
    assert report.choice is None
    assert report.nearest is None


def test_where_large_batches_fail_smaller_ones_are_planned_with(doubling: hr.Model, install: Install) -> None:
    install(quick=Made(0.004, 0.0001, fails_above=20))
    report = hr.plan(doubling, slo_ms=100, threads=[1])
    assert report.choice is not None
    assert report.choice.prediction is not None
    assert report.choice.prediction.max_batch == 16


def test_one_that_fails_in_the_rehearsal_is_not_chosen(
    doubling: hr.Model, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(quick=Made(0.0, 0.001), sound=Made(0.0, 0.00102))

    def rehearse(engine: hr.Engine, *_: object) -> Rehearsal:
        if engine.plan.backend == "quick":
            raise ExecutionError("lost its device")
        return Rehearsal()

    monkeypatch.setattr(search, "rehearse", rehearse)
    report = hr.plan(doubling, slo_ms=100, rate=100)
    assert str(report.choice and report.choice.candidate) == "sound fp32, 1 thread"
    assert row(report, "quick fp32, 1 thread").why == "cannot run: lost its device"


@pytest.mark.parametrize("shown", [Rehearsal(slowness=1.9, outside_s=0.1), ExecutionError("lost its device")])
def test_those_that_lost_race_again_where_the_winner_fails_its_rehearsal(
    doubling: hr.Model, install: Install, monkeypatch: pytest.MonkeyPatch, shown: Rehearsal | ExecutionError
) -> None:
    install(quick=Made(0.0, 0.001), slow=Made(0.0, 0.004), slower=Made(0.0, 0.01))

    def rehearse(engine: hr.Engine, *_: object) -> Rehearsal:
        if engine.plan.backend != "quick":
            return Rehearsal()
        if isinstance(shown, ExecutionError):
            raise shown
        return shown

    monkeypatch.setattr(search, "rehearse", rehearse)
    report = hr.plan(doubling, slo_ms=100, rate=200)
    assert str(report.choice and report.choice.candidate) == "slow fp32, 1 thread"
    assert row(report, "slower fp32, 1 thread").why.startswith("slower: ")
    assert row(report, "quick fp32, 1 thread").why.startswith(("cannot run: ", "too slow: ", "no number of replicas"))


def test_one_that_is_too_slow_beside_others_of_its_kind_is_not_chosen(
    doubling: hr.Model, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(quick=Made(0.0, 0.010), sound=Made(0.0, 0.0125))
    beside = {"quick": 4.0, "sound": 1.0}
    monkeypatch.setattr(search, "slowdown", lambda engine, *_: beside[engine.plan.backend])
    report = hr.plan(doubling, slo_ms=35, rate=150, threads=[1])
    assert str(report.choice and report.choice.candidate) == "sound fp32, 1 thread"
    assert row(report, "quick fp32, 1 thread").why.startswith("too slow: p99 of a request alone is 40 ms")


def test_what_lost_races_again_where_the_best_takes_more_cores_beside_others_of_its_kind(
    doubling: hr.Model, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(quick=Made(0.0, 0.010, scaling=0.0), wide=Made(0.0, 0.013, scaling=1.0))
    beside = {"quick": 1.2, "wide": 1.0}
    monkeypatch.setattr(search, "slowdown", lambda engine, *_: beside[engine.plan.backend])
    rehearsed: list[tuple[str, float]] = []

    def rehearse(engine: hr.Engine, cost: Cost, *_: object) -> Rehearsal:
        rehearsed.append((engine.plan.backend, cost.seconds(1)))
        return Rehearsal(slowness=1.05)

    monkeypatch.setattr(search, "rehearse", rehearse)
    report = hr.plan(doubling, slo_ms=200, rate=210, threads=[1, 4])
    # Three replicas of one thread would have done, but they are in each other's way.
    assert str(report.choice and report.choice.candidate) == "wide fp32, 4 threads"
    assert row(report, "quick fp32, 1 thread").why.startswith("slower: as many cores as wide fp32, 4 threads")
    # Each is compared with what was measured of it, and once.
    assert [seconds for backend, seconds in rehearsed if backend == "quick"] == pytest.approx([0.010])


def test_what_is_far_behind_is_timed_once_and_not_rehearsed(
    doubling: hr.Model, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(best=Made(0.0, 0.001), close=Made(0.0, 0.0011), far=Made(0.0, 0.003))
    rehearsed: list[str] = []

    def rehearse(engine: hr.Engine, *_: object) -> Rehearsal:
        rehearsed.append(engine.plan.backend)
        return Rehearsal(slowness=1.2 if engine.plan.backend == "best" else 1.0)

    monkeypatch.setattr(search, "rehearse", rehearse)
    report = hr.plan(doubling, threads=[1])
    far = row(report, "far fp32, 1 thread")
    assert far.why.startswith("slower: 3.00 times the cost per request of best fp32, 1 thread, even if it were 50%")
    assert far.batches == 4  # one of one Request and one of eight, after two that say whether eight are too many
    # The other one of the last two is only looked at since the best was not as good as it seemed.
    assert rehearsed == ["best", "close"]
    assert str(report.choice and report.choice.candidate) == "close fp32, 1 thread"


@pytest.mark.parametrize("lowered", [0, 1])
def test_a_plan_of_which_nothing_runs_in_its_lower_precision_is_not_timed(
    doubling: hr.Model, install: Install, lowered: int
) -> None:
    install(quick=Made(0.0, 0.001, {"fp32": 1.0, "bf16": 1.5}, details={"lowered_ops": lowered}))
    report = hr.plan(doubling, slo_ms=100)
    assert str(report.choice and report.choice.candidate) == f"quick {'bf16' if lowered else 'fp32'}, 1 thread"
    if lowered == 0:
        for threads in ("1 thread", "2 threads", "4 threads"):
            one = row(report, f"quick bf16, {threads}")
            assert "the same as in fp32" in one.why
            assert one.batches == 0
        report = hr.plan(doubling, slo_ms=100, precisions=["bf16"])
        assert str(report.choice and report.choice.candidate) == "quick bf16, 1 thread", "there is no other"


def test_those_that_lost_hold_no_memory_while_others_are_measured(doubling: hr.Model, install: Install) -> None:
    made = {"quick": Made(0.0, 0.001), "slow": Made(0.0, 0.01)}
    install(**made)
    held: list[int] = []

    def look(words: str, _share: float) -> None:
        if "turn 3 of" in words:
            gc.collect()
            held.append(sum(len(one.executables) for one in made.values()))

    report = hr.plan(doubling, slo_ms=100, rate=100, progress=look)
    assert held[-1] == 1
    assert row(report, "slow fp32, 1 thread").per_request_s == pytest.approx(0.01)


def test_a_machine_holds_a_replica_for_each_gpu_that_its_backend_can_use(doubling: hr.Model, install: Install) -> None:
    install(quick=Made(0.0, 0.010))
    report = hr.plan(doubling, slo_ms=100, rate=390)
    assert report.choice is not None
    assert report.replicas_per_machine(report.choice) == 4  # of one thread, on four cores

    def on(device: str, backend: str = "quick") -> Row:
        assert report.choice is not None
        return replace(report.choice, candidate=replace(report.choice.candidate, device=device, backend=backend))

    two = replace(report, rows=(on("cuda:0"), on("cuda:1"), on("cpu"), on("cuda:2", "other")))
    assert [two.replicas_per_machine(one) for one in two.rows] == [2, 2, 4, 1]


def test_a_tolerance_holds_for_every_precision(doubling: hr.Model, install: Install) -> None:
    install(one=Made(0.0, 0.001, wrong={"fp32": 5e-4}))
    assert hr.plan(doubling, rate=10).choice is not None
    report = hr.plan(doubling, rate=10, tolerance=1e-4)
    assert report.choice is None
    assert "tolerance 0.0001" in report.rows[0].why


def test_given_samples_are_what_is_measured_and_must_fit(doubling: hr.Model, install: Install) -> None:
    install(one=Made(0.0, 0.001))
    report = hr.plan(doubling, samples=[{"x": np.ones(4, np.float32)}] * 2)
    assert report.samples == "2 given requests"
    with pytest.raises(BackendUnavailable, match="no backend can run"):
        hr.plan(doubling, backends=["missing"])
    for wrong in ({"slo_ms": 0}, {"rate": math.inf}, {"budget_s": -1}, {"tolerance": math.nan}):
        with pytest.raises(ConfigError, match=f"got {next(iter(wrong))}="):
            hr.plan(doubling, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="plan: threads: got 100000, expected an integer from 1 to"):
        hr.plan(doubling, threads=[1, 100_000])


def test_a_model_that_runs_nothing_made_up_needs_samples(install: Install) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "picky",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7])],
        [helper.make_tensor("shape", TensorProto.INT64, [1], [7])],
    )
    model = hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    with pytest.raises(ParityError, match="expected samples"):
        hr.plan(model, backends=["native"])


def test_the_report_is_json_and_a_page_that_needs_nothing_else(
    doubling: hr.Model, install: Install, tmp_path: Path
) -> None:
    install(
        quick=Made(0.001, 0.004, {"fp32": 1.0, "bf16": 2.0}), slow=Made(0.0, 0.5), gone=Made(0, 1, refuses="<gone>")
    )
    report = hr.plan(doubling, slo_ms=30, rate=300)
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["choice"]["candidate"]["backend"] == "quick"
    assert len(told["rows"]) == len(report.rows)
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    tree = ElementTree.fromstring(page.replace("<!doctype html>", "").replace('<meta charset="utf-8">', ""))
    assert len(tree.findall(".//svg")) == 2
    assert len(tree.findall(".//tbody/tr")) == len(report.rows)
    assert "&lt;gone&gt;" in page
    assert not any(word in page for word in ("<script", "http://", "https://", "nan", "inf"))


def test_the_plan_file_is_read_as_it_was_written(doubling: hr.Model, install: Install, tmp_path: Path) -> None:
    install(quick=Made(0.001, 0.004))
    report = hr.plan(doubling, slo_ms=30, rate=300, tolerance=0.01)
    path = tmp_path / "plan.toml"
    report.save(path)
    plan = read(path)
    assert plan.model.sha256 == doubling.sha256
    assert (plan.asked.slo_ms, plan.asked.rate, plan.asked.tolerance) == (30, 300, 0.01)
    assert plan.machine.fingerprint == hr.hardware.probe().fingerprint
    assert plan.settings()["backend"] == "quick"
    assert plan.on_other_hardware == "check"
    text = path.read_text()
    for damaged in (text.replace("format = 1", "format = 2"), text[: len(text) // 2], text + "\nmore = 1"):
        path.write_text(damaged)
        with pytest.raises(InvalidPlan, match=r"plan.toml: got .*, expected"):
            read(path)


def test_the_command_writes_what_was_asked_for(
    doubling: hr.Model, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from headrace.cli import plan

    onnx.save(doubling.to_proto(), tmp_path / "model.onnx")
    install(quick=Made(0.001, 0.004))
    outputs = ["--html", str(tmp_path / "r.html"), "-o", str(tmp_path / "plan.toml")]
    command = [str(tmp_path / "model.onnx"), "--slo-ms", "30", "--rate", "300", *outputs]
    result = CliRunner().invoke(plan.command, command)
    assert result.exit_code == 0, result.output
    assert "quick fp32, 1 thread" in result.output
    assert read(tmp_path / "plan.toml").choice.threads == 1
    assert (tmp_path / "r.html").is_file()
    result = CliRunner().invoke(plan.command, [command[0], "--slo-ms", "0.01", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["choice"] is None
