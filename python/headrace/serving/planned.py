"""Opening a model by its plan file: as planned on the machine it was planned for, checked or planned anew elsewhere."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.config import MODEL_FILE, ModelSettings
from headrace.errors import HeadraceError, StalePlan
from headrace.parity import DEFAULT_TOLERANCE, TOLERANCES
from headrace.planner.file import PlanToml, of_report, read
from headrace.serving.opening import open_as_told

if TYPE_CHECKING:
    from headrace.engine import Engine
    from headrace.hardware import Hardware

log = logging.getLogger("headrace.serving")

# A server that starts should not keep its callers waiting longer than a planner that nobody waits for.
MEASURE_S = 20.0
# Timing on another machine: this long, and so much more than planned counts as slower.
_TIMED_S = 0.1
_SLOWER = 1.1


def open_planned(path: Path, settings: ModelSettings) -> Engine:
    """Opens a model as `settings.plan` says; `Engine.plan`'s reasons and the log say what came of it.

    Raises:
        StalePlan: The plan is of another model; or of another machine, and is refused there, or nothing on this one
            meets what was asked for.
        ParityError: Its outputs are too far from the reference backend's.
        HeadraceError: It could not be loaded or compiled.
    """
    from headrace.hardware import probe

    file = Path(str(settings.plan))
    planned, machine = read(file), probe()
    # One that is mapped says by itself which model it was made from.
    sha256 = _sha256(path) if path.suffix == Path(MODEL_FILE).suffix else None
    _check_model(file, planned, sha256)
    if settings.parity_tolerance is None:
        settings = msgspec.structs.replace(settings, parity_tolerance=_tolerance(planned))
    if planned.machine.fingerprint == machine.fingerprint:
        engine = open_as_told(path, settings)
        remark = f"as planned for this machine ({file})"
    else:
        engine, remark = _open_elsewhere(path, settings, file, planned, machine)
    if sha256 is None:
        try:
            _check_model(file, planned, engine.sha256)
        except StalePlan:
            engine.close()
            raise
    plan = engine.executable.plan
    engine.executable.plan = replace(plan, reasons=(*plan.reasons, remark))
    return engine


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_model(file: Path, planned: PlanToml, sha256: str | None) -> None:
    if sha256 is not None and sha256 != planned.model.sha256:
        raise StalePlan(
            f"{file}: model sha256: got {sha256} of the model here, expected {planned.model.sha256}, for which it was "
            "planned: plan anew"
        )


def _tolerance(planned: PlanToml) -> float:
    """What the planner held the choice to."""
    if planned.asked.tolerance is not None:
        return max(planned.asked.tolerance, 1e-12)  # settings know no 0
    exact = planned.choice.precision == "fp32" and not planned.choice.winograd
    return TOLERANCES["fp32"] if exact else DEFAULT_TOLERANCE


def _open_elsewhere(
    path: Path, settings: ModelSettings, file: Path, planned: PlanToml, machine: Hardware
) -> tuple[Engine, str]:
    """On a machine that the plan was not made for."""
    policy = settings.on_other_hardware or planned.on_other_hardware
    here = f"{machine.summary()} (fingerprint {machine.fingerprint})"
    if policy == "refuse":
        raise StalePlan(
            f"{file}: got {here}, expected {planned.machine.about} (fingerprint {planned.machine.fingerprint}), and "
            "on_other_hardware = 'refuse': plan anew on this machine"
        )
    log.warning("%s was made for %s, and this is %s: %s", file, planned.machine.about, here, policy)
    if policy == "measure":
        return _plan_anew(path, settings, file, planned)
    threads = min(planned.choice.threads, machine.cores)
    engine = open_as_told(path, msgspec.structs.replace(settings, parity=True, threads=threads))
    fewer = "" if threads == planned.choice.threads else f", on {threads} threads instead of {planned.choice.threads}"
    remark = f"planned for {planned.machine.about} and checked here{fewer}: {engine.parity}; {_speed(engine, planned)}"
    log.warning("%s: %s", path, remark)
    return engine, remark


def _speed(engine: Engine, planned: PlanToml) -> str:
    """How this machine compares with the one that was measured, in words."""
    from headrace.planner.cost import Stopwatch
    from headrace.planner.requests import representative

    if planned.evidence.dims is None:
        return "its speed was not compared, because it was planned with requests that are not here"
    try:
        requests, _, _ = representative(engine, dims=planned.evidence.dims)
    except HeadraceError as error:
        return f"its speed was not compared: {error}"
    watch = Stopwatch(engine, requests)
    watch.warm_up()
    watch.spend((1,), _TIMED_S)
    expected = planned.expected
    times = 1e3 * watch.cost().seconds(1) / (expected.fixed_ms + expected.per_request_ms)
    if times <= _SLOWER:
        return f"a request takes {times:.2f} times as long as there"
    busy = times * expected.utilisation
    meets = "it cannot keep up" if busy >= 1 else f"{busy:.0%} busy instead of {expected.utilisation:.0%}"
    return (
        f"a request takes {times:.2f} times as long as there: at {expected.rate:g} requests/s on "
        f"{planned.choice.replicas} replicas {meets}"
    )


def _plan_anew(path: Path, settings: ModelSettings, file: Path, planned: PlanToml) -> tuple[Engine, str]:
    """Asks the same question on this machine."""
    import headrace

    asked = planned.asked
    report = headrace.plan(
        headrace.load(str(path)),
        slo_ms=asked.slo_ms, rate=asked.rate, tolerance=asked.tolerance, budget_s=MEASURE_S, dims=planned.evidence.dims,
    )  # fmt: skip
    if report.choice is None:
        raise StalePlan(f"{file}: planned anew on this machine: {report.answer()}")
    # The deadline stays as it was asked for.
    chosen = {key: value for key, value in of_report(report).settings().items() if key != "slo_ms"}
    engine = open_as_told(path, msgspec.structs.replace(settings, **chosen))
    plan = engine.executable.plan
    # The settings are those of the deployment: what holds in this process alone goes with the Engine.
    engine.executable.plan = replace(plan, details={**plan.details, "max_batch": chosen["max_batch"]})
    remark = f"planned anew on this machine, because {file} is of another: {report.choice.candidate}"
    log.warning("%s: %s\n%s", path, remark, report.answer())
    return engine, remark
