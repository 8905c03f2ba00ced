"""From a model file to what serves it: the Engine, compared with the reference backend, and the scheduler in front."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from headrace.backend import Plan, Request, Result
from headrace.config import ModelSettings
from headrace.errors import DeadlineExceeded, HeadraceError, ParityError, PlanError
from headrace.parity import compare
from headrace.plan_file import PLAN_FILE
from headrace.serving.warmup import warmup_request
from headrace.signature import Signature

if TYPE_CHECKING:
    from headrace.engine import Engine
    from headrace.model import Model

log = logging.getLogger("headrace.serving")

# Relative L2 error allowed where the settings name none. fp32 differs from the reference by the order of its sums; a
# precision that was lowered on purpose differs by its rounding, and must only not be broken.
TOLERANCE_FP32 = 1e-3
TOLERANCE_LOWERED = 0.1


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
    its place; where there is one, it is compiled, and the log says why.

    Raises:
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
    if path == plan:
        return headrace.load_plan(plan.parent, **options)
    if plan.is_file() and settings.backend in ("auto", "native"):
        try:
            return headrace.load_plan(plan.parent, model=path, **options)
        except PlanError as error:
            log.warning("compiling %s, because its saved plan is refused: %s", path, error)
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
    if not settings.parity:
        engine.parity = "not checked: parity = false"
        return engine
    try:
        engine.parity = check_parity(model, engine, settings, warmup_request(engine.signature, path.parent.parent))
    except BaseException:
        engine.close()
        raise
    return engine


def check_parity(model: Model, engine: Engine, settings: ModelSettings, request: Request) -> str:
    """Compares an Engine with the reference backend on one Request.

    Args:
        model: What the Engine was compiled from.
        engine: The Engine.
        settings: Say how far it may be off, and how long the reference may take.
        request: The Request.

    Returns:
        What was found, for people. Where the reference lacks an op or is too slow, nothing is, and this says so.

    Raises:
        ParityError: The outputs are too far apart.
        HeadraceError: The Engine failed.
    """
    if engine.plan.backend == "reference":
        return "not checked: it runs on the reference backend"
    try:
        with model.compile(backend="reference") as reference:
            expected = cast(Any, reference.executable).inner.run_until(
                reference.check(request), time.monotonic() + settings.parity_s_max
            )
    except DeadlineExceeded:
        return f"not checked: the reference backend took longer than parity_s_max = {settings.parity_s_max:g} s"
    except HeadraceError as error:
        return f"not checked: {str(error)[:200]}"
    found = compare(engine.run_batch([request]), [expected])
    tolerance = settings.parity_tolerance
    if tolerance is None:
        tolerance = TOLERANCE_FP32 if engine.plan.precision == "fp32" else TOLERANCE_LOWERED
    if found.error > tolerance:
        raise ParityError(
            f"output {found.output!r}: got an error of {found.error:.3g} against the reference backend, "
            f"expected at most {tolerance:g} (parity_tolerance; parity = false serves it unchecked)"
        )
    return f"error {found.error:.2g} against the reference backend, {tolerance:g} allowed"


def open_batcher(engine: EngineLike, settings: ModelSettings, *, ledger_fd: int = -1) -> BatcherLike:
    """Puts the C++ scheduler in front of an Engine; `ledger_fd` as for `headrace.Batcher`."""
    from headrace.batcher import Batcher

    return Batcher(
        cast("Engine", engine),
        slo_ms=settings.slo_ms,
        max_queue=settings.max_queue,
        max_batch=settings.max_batch,
        ledger_fd=ledger_fd,
    )
