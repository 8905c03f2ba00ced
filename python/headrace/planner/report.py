"""What the planner found: the question, the choice, every candidate with its figures, and why each loser lost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from headrace.planner.predict import Prediction
from headrace.planner.space import Candidate


@dataclass(frozen=True)
class Question:
    """What was asked.

    Attributes:
        slo_s: Latency that 99 in 100 requests must stay below; None for any.
        rate_rps: Requests per second of the whole deployment; None for the cheapest per request.
        tolerance: Largest error against the reference (`headrace.parity.Parity`); None for 0.02 in lowered precisions
            and 0.001 in fp32.
        cores: Of one machine.
        gpu_cores: How many cores a GPU costs as much as.
    """

    slo_s: float | None
    rate_rps: float | None
    tolerance: float | None
    cores: int
    gpu_cores: float


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        candidate: What was measured.
        status: "chosen", "frontier" (nothing is better in cost, p99 and error at once) or "lost".
        why: Why it lost, or what speaks for it.
        error: Against the reference; None if it was not compared.
        error_output: The output with that error.
        fixed_s: Of the cost model; None if nothing was timed.
        per_request_s: Of the cost model.
        batches: How many Batches were timed.
        prediction: At the rate, with the fewest replicas that meet the SLO; None if no number does or it was dropped.
        cores: What those replicas take together; a GPU counts as `Question.gpu_cores`.
        rate_max_rps: The rate at which p99 of one replica reaches the SLO.
        alone_s: p99 of a request with no others around; of one that was too slow to go on with, its second run.
        curve: Rate, p50 and p99 of one replica, from little load to its highest.
    """

    candidate: Candidate
    status: Literal["chosen", "frontier", "lost"]
    why: str
    error: float | None = None
    error_output: str = ""
    fixed_s: float | None = None
    per_request_s: float | None = None
    batches: int = 0
    prediction: Prediction | None = None
    cores: float | None = None
    rate_max_rps: float | None = None
    alone_s: float | None = None
    curve: tuple[tuple[float, float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return asdict(self) | {"candidate": self.candidate.to_dict(), "name": str(self.candidate)}


@dataclass(frozen=True)
class Report:
    """Everything the planner found out. `str(report)` is for people, `to_dict()` for programs.

    Attributes:
        model: Its name.
        sha256: Of the model's file.
        source: Where it was loaded from.
        question: What was asked.
        rows: Every candidate, best first.
        refused: Backend -> why it cannot run this Model here.
        machine: The machine in a line, and its fingerprint.
        fingerprint: Of the machine.
        reference: What the outputs were compared with.
        samples: Which Requests that was done on.
        wall_s: How long it took.
        measured_s: How long Batches were timed and rehearsed in that time.
        made_at: When, in ISO 8601.
        dims: Lengths of symbolic dims of those Requests, if they were made.
    """

    model: str
    sha256: str
    source: str
    question: Question
    rows: tuple[Row, ...]
    refused: dict[str, str]
    machine: str
    fingerprint: str
    reference: str
    samples: str
    wall_s: float
    measured_s: float
    made_at: str
    dims: dict[str, int] | None = None

    @property
    def choice(self) -> Row | None:
        """The cheapest candidate that meets the SLO; None if none does."""
        return next((row for row in self.rows if row.status == "chosen"), None)

    @property
    def nearest(self) -> Row | None:
        """Where none meets the SLO, the one that comes nearest."""
        timed = [row for row in self.rows if row.alone_s is not None and not row.why.startswith("parity failed")]
        return min(timed, key=lambda row: row.alone_s or math.inf, default=None)

    def replicas_per_machine(self, row: Row) -> int:
        """How many of a row's replicas one machine holds."""
        if row.candidate.on_gpu:  # each has one for itself, of those that its backend can use
            mine = row.candidate
            usable = {one.candidate.device for one in self.rows if one.candidate.backend == mine.backend}
            fitting = len({device for device in usable if device != "cpu"})
        else:
            fitting = max(1, self.question.cores // row.candidate.threads)
        return min(fitting, row.prediction.replicas) if row.prediction else fitting

    def answer(self) -> str:
        """The answer in a few lines."""
        question = self.question
        asked = ", ".join(
            [
                f"p99 within {1e3 * question.slo_s:g} ms" if question.slo_s is not None else "any latency",
                f"{question.rate_rps:g} requests/s" if question.rate_rps is not None else "as cheap as possible",
            ]
        )
        row = self.choice
        if row is None or row.prediction is None:
            nearest = self.nearest
            if nearest is None:
                return f"{self.model}: {asked}: nothing can run it here"
            return (
                f"{self.model}: {asked}: no plan does that here\n  nearest: {nearest.candidate}: "
                f"p99 {1e3 * (nearest.alone_s or 0):.3g} ms for a request with no others around"
            )
        found = row.prediction
        per_machine = self.replicas_per_machine(row)
        machines = math.ceil(found.replicas / per_machine)
        return "\n".join(
            [
                f"{self.model}: {asked}: {row.candidate}",
                f"  replicas          {found.replicas} ({per_machine} per machine, {machines} "
                f"machine{'s' if machines > 1 else ''} like this), {row.cores:g} cores in all, "
                f"Batches of up to {found.max_batch}",
                f"  expected          p50 {1e3 * found.p50_s:.3g} ms, p99 {1e3 * found.p99_s:.3g} ms at "
                f"{found.rate_rps:.4g} requests/s, {found.utilisation:.0%} busy",
                f"  capacity          {found.capacity_rps:.4g} requests/s per replica in full Batches",
                f"  error             {row.error:.2g} against {self.reference}"
                if row.error is not None
                else "  error             not compared",
            ]
        )

    def __str__(self) -> str:
        lost = [f"  not {row.candidate}: {row.why}" for row in self.rows if row.status != "chosen"]
        lost += [f"  not {backend}: {why}" for backend, why in self.refused.items()]
        return "\n".join([self.answer(), *lost])

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values; a latency without bound is None."""
        report = asdict(self)
        report["rows"] = [row.to_dict() for row in self.rows]
        choice = self.choice
        report["choice"] = None if choice is None else choice.to_dict()
        if choice is not None:
            report["choice"]["replicas_per_machine"] = self.replicas_per_machine(choice)
        report["answer"] = self.answer()
        finite: dict[str, Any] = _finite(report)
        return finite

    def save(self, path: str | Path) -> None:
        """Writes the choice as a plan file, for ``headrace serve`` and ``headrace deploy``.

        Raises:
            PlanError: There is no choice.
            OSError: It cannot be written.
        """
        from headrace.planner.file import write

        write(self, Path(path))

    def save_html(self, path: str | Path) -> None:
        """Writes the report as one HTML file with plots that needs nothing else.

        Raises:
            OSError: It cannot be written.
        """
        from headrace.planner.html import page

        Path(path).write_text(page(self), encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
