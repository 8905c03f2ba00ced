"""From a model file to what serves it: the Engine, compared with the reference backend, and the scheduler in front."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from headrace import gate
from headrace.backend import Plan, Request, Result
from headrace.config import ModelSettings
from headrace.errors import BackendUnavailable, PlanError
from headrace.plan_file import PLAN_FILE, PlanFile
from headrace.serving.warmup import parity_requests
from headrace.signature import Signature
from headrace.whole_file import replace_text

if TYPE_CHECKING:
    from headrace.engine import Engine
    from headrace.model import Model

log = logging.getLogger("headrace.serving")

# Beside a saved plan: what the gate found when it was first loaded, and of which plan.
PARITY_NOTE = "plan.headrace.parity"


class EngineLike(Protocol):
    """What the host needs of `headrace.engine.Engine`."""

    @property
    def signature(self) -> Signature:
        """The model's inputs and outputs."""

    @property
    def plan(self) -> Plan:
        """What was chosen for the model."""

    @property
    def parity(self) -> str:
        """What comparing it with the reference backend showed, or why it was not compared."""

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs Requests together."""

    def close(self) -> None:
        """Gives everything back."""


class BatcherLike(Protocol):
    """What the host needs of `headrace.batcher.Batcher`."""

    async def infer(
        self, req: Request, *, deadline_ms: float | None = None, priority: int = 0, caller: Hashable = None
    ) -> Result:
        """Queues one Request and waits for its Result; cancelling the wait takes it out of the queue."""

    def stats(self) -> dict[str, Any]:
        """The ledger."""

    def close(self) -> None:
        """Answers what was accepted, then stops."""


OpenEngine = Callable[[Path, ModelSettings], EngineLike]
# (engine, settings), and ledger_fd=... where there is a ledger on disk.
OpenBatcher = Callable[..., BatcherLike]


def open_engine(path: Path, settings: ModelSettings) -> EngineLike:
    """Opens a model file as its settings, or the plan file that they name, say.

    Raises:
        StalePlan: The plan file is of another model, or of another machine and not to be used on this one.
        ParityError: Its outputs are too far from the reference backend's.
        HeadraceError: It could not be loaded or compiled.
    """
    if settings.plan is None:
        return open_as_told(path, settings)
    from headrace.serving.planned import open_planned

    return open_planned(path, settings)


def open_as_told(path: Path, settings: ModelSettings) -> Engine:
    """Loads, compiles and checks a model file, or maps the saved Plan that it is or that lies beside it.

    A Plan that does not fit the model, the settings or this machine is an error where there is no model to compile in
    its place; where there is one, it is compiled, and the log says why. Saved Plans run on a CPU alone.

    Raises:
        BackendUnavailable: There is a saved Plan alone, and the settings ask for another device or backend than its.
        ParityError: Its outputs are too far from the reference backend's.
        HeadraceError: It could not be loaded or compiled.
    """
    import headrace

    plan = path.parent / PLAN_FILE
    options: dict[str, Any] = {
        "precision": settings.precision,
        "threads": settings.threads,
        "winograd": settings.winograd,
    }
    engine: Engine | None = None
    on_cpu = settings.device in (None, "cpu")
    if path == plan:
        if not on_cpu or settings.backend not in ("auto", "native"):
            raise BackendUnavailable(
                f"{path}: got backend {settings.backend!r} and device {settings.device!r} for a saved plan, expected "
                "'native' on 'cpu', which alone it was packed for: put its model.onnx beside it"
            )
        engine = headrace.load_plan(plan.parent, **options)
        engine.parity = "not checked: there is no model file beside the saved plan"
        return engine
    if plan.is_file() and on_cpu and settings.backend in ("auto", "native"):
        try:
            engine = headrace.load_plan(plan.parent, model=path, **options)
        except PlanError as error:
            log.warning("compiling %s, because its saved plan is refused: %s", path, error)
    mapped = engine is not None
    model: Model | None = None
    if engine is None:
        model = headrace.load(str(path))
        engine = model.compile(
            backend=settings.backend,
            device=settings.device,
            options=settings.options,
            fallback=settings.fallback,
            **options,
        )
    if (wanted := engine.plan.details.get("fallback_from")) is not None:
        log.warning("model %s runs on %s, because %s cannot", path, engine.plan.backend, wanted)
    try:
        engine.parity = _parity(path, plan if mapped else None, model, engine, settings)
    except BaseException:
        engine.close()
        raise
    return engine


def _parity(path: Path, plan: Path | None, model: Model | None, engine: Engine, settings: ModelSettings) -> str:
    """What the gate finds of an Engine, or found when its saved plan was first loaded.

    Args:
        path: The model file.
        plan: The saved plan that the Engine was mapped from, if it was.
        model: What it was compiled from, if it was.
        engine: The Engine.
        settings: How to check it.
    """
    if not settings.parity:
        return "not checked: parity = false"
    key, note = "", path.parent / PARITY_NOTE
    if plan is not None:
        import headrace

        key = f"{PlanFile(plan.parent).digest} {settings.parity_tolerance} {headrace.__version__}"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            known, _, found = note.read_text(encoding="utf-8").partition("\n")
            if known == key:
                return f"{found.strip()} (when the plan was first loaded)"
    if model is None:
        import headrace

        model = headrace.load(str(path))
    from headrace.graph.index_ranges import index_ranges

    ranges = index_ranges(model.graph.graph)
    requests = parity_requests(engine.signature, path.parent.parent, engine.run_batch, ranges)
    verdict = check_parity(model, engine, settings, requests)
    if plan is not None and verdict.compared:
        with contextlib.suppress(OSError):  # a read-only repository is checked each time
            replace_text(note, f"{key}\n{verdict}\n")
    return str(verdict)


def check_parity(model: Model, engine: Engine, settings: ModelSettings, requests: Sequence[Request]) -> gate.Verdict:
    """Compares an Engine with the reference backend; see `headrace.gate`.

    Args:
        model: What the Engine was compiled from.
        engine: The Engine.
        settings: Say how far it may be off, and how long the reference may take.
        requests: What to compare on.

    Returns:
        What was found. Where the reference lacks an op or is too slow, nothing is, and it says so.

    Raises:
        ParityError: The outputs are too far apart.
        HeadraceError: The Engine failed.
    """
    return gate.check(
        model,
        engine.run_batch,
        [engine.check(request) for request in requests],
        backend=engine.plan.backend,
        options=replace(engine.options, precision=engine.plan.precision, threads=engine.plan.threads),
        tolerance=settings.parity_tolerance,
        seconds_max=settings.parity_s_max,
    )


def max_batch_of(engine: EngineLike, settings: ModelSettings) -> int:
    """Requests per Batch at most: as the settings say, or as a plan does that was made anew on this machine."""
    return int(engine.plan.details.get("max_batch", settings.max_batch))


def open_batcher(engine: EngineLike, settings: ModelSettings, *, ledger_fd: int = -1) -> BatcherLike:
    """Puts the C++ scheduler in front of an Engine; `ledger_fd` as for `headrace.Batcher`."""
    from headrace.batcher import Batcher

    return Batcher(
        cast("Engine", engine),
        slo_ms=settings.slo_ms,
        max_queue=settings.max_queue,
        max_batch=max_batch_of(engine, settings),
        ledger_fd=ledger_fd,
    )
