"""The cheapest plan that meets a latency objective at a rate, found by measuring on this machine.

    report = hr.plan(model, slo_ms=20, rate=500)
    print(report)                       # the choice, what to expect of it, and why each other one lost
    report.save_html("report.html")

space.py      the candidates: backend x precision x threads x ...
requests.py   what they are measured with
answers.py    what they must answer
cost.py       timing Batches: a + b * work, the Batcher's cost model
rehearsal.py  what only a real Batcher under a load shows, and replicas side by side
predict.py    from cost to p50, p99 and capacity: the Batcher, simulated
offers.py     from predictions to a price, and why one candidate loses to another
entry.py      one candidate in the search
search.py     little time for all, most for the last few; bounds that drop the others
report.py     the result
html.py       the result as a page with plots
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from headrace.errors import BackendUnavailable, ConfigError
from headrace.planner.report import Question, Report, Row
from headrace.planner.space import Candidate, Space, space_of

if TYPE_CHECKING:
    from headrace.backend import Request
    from headrace.model import Model

__all__ = ["Candidate", "Question", "Report", "Row", "Space", "plan", "space_of"]

# What a GPU costs, in cores: about the ratio of prices on clouds.
GPU_CORES = 24.0


def plan(
    model: Model,
    *,
    slo_ms: float | None = None,
    rate: float | None = None,
    tolerance: float | None = None,
    budget_s: float = 60.0,
    samples: Sequence[Request] | None = None,
    dims: Mapping[str, int] | None = None,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    threads: Sequence[int] = (),
    gpu_cores: float = GPU_CORES,
    progress: Callable[[str, float], None] | None = None,
) -> Report:
    """Measures what the installed backends can do with a Model on this machine, and chooses.

    Args:
        model: What is to run.
        slo_ms: Milliseconds that 99 in 100 requests must be answered in; None for any latency.
        rate: Requests per second that arrive, at random times; None for the cheapest plan per request.
        tolerance: The largest error against the reference backend (see `headrace.parity.Parity`); None for 0.02 in
            lower precisions and 0.001 in fp32.
        budget_s: Seconds it may take. A candidate that was not reached in time is reported as such.
        samples: Requests like those that will come; None to make some from the signature.
        dims: Lengths of symbolic dims of those that are made.
        backends: Which to try; empty for all installed ones but the reference.
        precisions: Which to try; empty for all.
        threads: Threads per replica to try; empty for powers of two, and all cores.
        gpu_cores: How many cores a GPU costs as much as.
        progress: Told what happens: words, and the share of the budget that is spent.

    Raises:
        ConfigError: An argument is out of range.
        BackendUnavailable: No backend can run the model.
        ParityError: There are no samples, and none can be made.
    """
    from headrace.hardware import probe
    from headrace.planner.search import Search
    from headrace.threads import checked_threads

    for name, value in (("slo_ms", slo_ms), ("rate", rate), ("budget_s", budget_s), ("gpu_cores", gpu_cores)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"plan: got {name}={value!r}, expected a positive number")
    if tolerance is not None and not tolerance >= 0:
        raise ConfigError(f"plan: got tolerance={tolerance!r}, expected 0 or more")
    threads = [checked_threads(count, "plan: threads") for count in threads]
    hardware = probe()
    question = Question(None if slo_ms is None else slo_ms / 1e3, rate, tolerance, hardware.cores, gpu_cores)
    space = space_of(model, hardware.cores, backends, precisions, threads)
    if not space.candidates:
        reasons = "; ".join(f"{backend}: {why}" for backend, why in space.refused.items())
        raise BackendUnavailable(
            f"plan: no backend can run model {model.name!r}: {reasons or 'none fits what was asked'}"
        )
    search = Search(model, space.candidates, question, budget_s, samples, dict(dims or {}) or None, progress)
    rows = search.run()
    return Report(
        model=model.name, sha256=model.sha256, source=model.source, question=question, rows=rows,
        refused=space.refused, machine=hardware.summary(), fingerprint=hardware.fingerprint,
        reference=search.answers.reference, samples=search.answers.samples, wall_s=round(search.wall_s, 3),
        measured_s=round(search.measured_s, 3), made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        dims=search.answers.dims,
    )  # fmt: skip
