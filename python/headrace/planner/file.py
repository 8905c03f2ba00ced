"""The plan file: what the planner chose and on which evidence, as TOML that people can read and servers take."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.config import OnOtherHardware
from headrace.errors import InvalidPlan, PlanError
from headrace.whole_file import replace_text

if TYPE_CHECKING:
    from headrace.planner.report import Report

FORMAT = 1


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


class ModelPart(_Part, frozen=True, kw_only=True):
    """Which model it is of."""

    name: str
    sha256: str


class AskedPart(_Part, frozen=True, kw_only=True):
    """What was asked: as `headrace.plan`'s arguments."""

    slo_ms: float | None = None
    rate: float | None = None
    tolerance: float | None = None


class ChoicePart(_Part, frozen=True, kw_only=True):
    """How the model is to be compiled and scheduled, and how many replicas the rate takes."""

    backend: str
    device: str
    precision: str
    threads: int
    winograd: bool
    max_batch: int
    replicas: int
    replicas_per_machine: int
    options: dict[str, str] = {}


class ExpectedPart(_Part, frozen=True, kw_only=True):
    """What one who follows the plan should see."""

    p50_ms: float
    p99_ms: float
    rate: float
    utilisation: float
    capacity_rps: float
    fixed_ms: float
    per_request_ms: float


class MachinePart(_Part, frozen=True, kw_only=True):
    """Where it was measured."""

    fingerprint: str
    about: str


class EvidencePart(_Part, frozen=True, kw_only=True):
    """Why it may be believed. `dims` are the symbolic dims of requests that were made from the signature."""

    error: float | None = None
    reference: str
    samples: str
    dims: dict[str, int] | None = None
    batches: int
    candidates: int
    measured_s: float
    made_at: str
    headrace: str


class PlanToml(_Part, frozen=True, kw_only=True):
    """A plan file.

    Attributes:
        on_other_hardware: What a server does where the machine's fingerprint is another. "check": it follows the plan
            if the answers are right there too, and says how much slower the machine is. "measure": it plans anew, with
            the same question. "refuse": it does not serve the model.
    """

    format: int
    on_other_hardware: OnOtherHardware = "check"
    model: ModelPart
    asked: AskedPart
    choice: ChoicePart
    expected: ExpectedPart
    machine: MachinePart
    evidence: EvidencePart

    def settings(self) -> dict[str, Any]:
        """The choice as keys of ``headrace.toml``."""
        choice = self.choice
        found: dict[str, Any] = {
            "backend": choice.backend, "device": choice.device, "precision": choice.precision,
            "threads": choice.threads, "winograd": choice.winograd, "max_batch": choice.max_batch,
            "options": choice.options,
        }  # fmt: skip
        if self.asked.slo_ms is not None:
            found["slo_ms"] = self.asked.slo_ms
        return found


def of_report(report: Report) -> PlanToml:
    """The plan file of a report.

    Raises:
        PlanError: The report has no choice.
    """
    from headrace import __version__

    row = report.choice
    if row is None or row.prediction is None or row.fixed_s is None or row.per_request_s is None:
        raise PlanError(f"model {report.model!r}: got a report without a choice, expected a plan that meets the SLO")
    question, found, candidate = report.question, row.prediction, row.candidate
    return PlanToml(
        format=FORMAT,
        model=ModelPart(name=report.model, sha256=report.sha256),
        asked=AskedPart(
            slo_ms=None if question.slo_s is None else round(1e3 * question.slo_s, 6),
            rate=question.rate_rps,
            tolerance=question.tolerance,
        ),
        choice=ChoicePart(
            backend=candidate.backend, device=candidate.device, precision=candidate.precision,
            threads=candidate.threads, winograd=candidate.winograd, max_batch=found.max_batch, replicas=found.replicas,
            replicas_per_machine=report.replicas_per_machine(row), options=dict(candidate.options),
        ),
        expected=ExpectedPart(
            p50_ms=_round(1e3 * found.p50_s), p99_ms=_round(1e3 * found.p99_s), rate=_round(found.rate_rps),
            utilisation=_round(found.utilisation), capacity_rps=_round(found.capacity_rps),
            fixed_ms=_round(1e3 * row.fixed_s), per_request_ms=_round(1e3 * row.per_request_s),
        ),
        machine=MachinePart(fingerprint=report.fingerprint, about=report.machine),
        evidence=EvidencePart(
            error=None if row.error is None else _round(row.error), reference=report.reference, samples=report.samples,
            dims=report.dims,
            batches=row.batches, candidates=len(report.rows), measured_s=report.measured_s, made_at=report.made_at,
            headrace=__version__,
        ),
    )  # fmt: skip


def _round(value: float) -> float:
    """Four significant digits: more would claim more than was measured."""
    return float(f"{value:.4g}")


def write(report: Report, path: Path) -> None:
    """Writes a report's choice.

    Raises:
        PlanError: The report has no choice.
        OSError: The file cannot be written.
    """
    replace_text(path, dumps(of_report(report), str(report.choice.candidate) if report.choice else ""))


def dumps(plan: PlanToml, about: str = "") -> str:
    """The text of a plan file; absent values are left out."""
    lines = [f"# Made by `headrace plan`: {about}", f"format = {plan.format}"]
    lines += [f"on_other_hardware = {_value(plan.on_other_hardware)}  # or measure, or refuse"]
    for name, part in msgspec.to_builtins(plan).items():
        if isinstance(part, dict):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_value(value)}" for key, value in part.items() if value is not None]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)} = {_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _text(value: str) -> str:
    """A basic string of TOML, which may hold anything but bare control characters."""
    import json

    return json.dumps(value, ensure_ascii=True)


def read(path: Path) -> PlanToml:
    """Reads a plan file.

    Raises:
        InvalidPlan: It cannot be read, or is no plan file of this format.
    """
    try:
        plan = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), PlanToml)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidPlan(f"{path}: got {error}, expected a plan file of `headrace plan -o`") from error
    if plan.format != FORMAT:
        raise InvalidPlan(f"{path}: got format {plan.format}, expected {FORMAT}: plan anew")
    return plan
