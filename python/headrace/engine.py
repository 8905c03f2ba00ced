"""An Engine: a Plan that can be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from headrace import _core, device_arrays, discovery, explain
from headrace.backend import Backend, CompileOptions, Executable, Plan, Request, Result
from headrace.errors import BackendUnavailable, ConfigError, HeadraceError, RequestError, UnsupportedOp
from headrace.precision import compile_lowered
from headrace.signature import Signature

if TYPE_CHECKING:
    import os

    from headrace.model import Model


class Engine:
    """A compiled Model. Safe to call from any number of threads.

    Example::

        engine = hr.load("model.onnx").compile()
        out = engine({"x": array})
        outs = engine.run_batch([{"x": a}, {"x": b}])   # shapes may differ

    On the native backend, one on the CPU can be used in a process that is forked from this one too, where it gets
    threads of its own, unless a thread was inside it at the fork.
    """

    def __init__(
        self,
        signature: Signature,
        executable: Executable,
        name: str = "",
        sha256: str = "",
        options: CompileOptions | None = None,
    ) -> None:
        self.signature = signature
        self.name = name
        self.sha256 = sha256
        self.options = options or CompileOptions()
        self.executable = executable
        # What a server found when it compared the Engine with the reference backend.
        self.parity = "not checked"
        self._checker = _core.Signature(
            [(spec.name, spec.dtype, list(spec.dims)) for spec in signature.inputs],
            [(spec.name, spec.dtype, list(spec.dims)) for spec in signature.outputs],
        )
        # Native executables check and run in one C++ call.
        self._run_one = getattr(executable, "run_one", None)
        self._device_arrays = executable.device_arrays

    @property
    def plan(self) -> Plan:
        """What was chosen for the Model, and why."""
        return self.executable.plan

    def __call__(self, request: Request) -> Result:
        """Runs one Request.

        Args:
            request: Input name -> array (numpy, ``__array__`` or DLPack), with the signature's dtypes and dims.

        Returns:
            Output name -> numpy array.

        Raises:
            RequestError: The Request does not fit the signature.
            ExecutionError: The Engine failed while it ran the Request.
        """
        if self._run_one is not None:
            try:
                return self._run_one(request)  # type: ignore[no-any-return]
            except (TypeError, RequestError) as error:
                if isinstance(request, Mapping) and not isinstance(request, dict):
                    return self(dict(request))
                explain.refuse(self.signature, request, error)
        return self.executable.run_batch([self.check(request)])[0]

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs Requests together; their shapes may differ. Results come in the same order.

        Raises:
            RequestError: One of the Requests does not fit the signature; none was run.
            ExecutionError: The Engine failed.
        """
        try:
            if self._run_one is None:
                requests = [self._checked(request) for request in requests]
            return self.executable.run_batch(requests)
        except (TypeError, ValueError, RequestError) as error:
            if isinstance(error, TypeError) and _other_mappings(requests):
                return self.run_batch([dict(request) for request in requests])
            explain.refuse_batch(self.signature, requests, error)

    def check(self, request: Request) -> Result:
        """The Request as C-contiguous arrays, checked against the signature.

        Arrays that lie on a device stay there, if the Backend takes such.

        Raises:
            RequestError: It does not fit.
        """
        try:
            return self._checked(request)
        except (TypeError, ValueError, AttributeError, RequestError) as error:
            explain.refuse(self.signature, request, error)

    def _checked(self, request: Request) -> Result:
        if self._device_arrays and any(map(device_arrays.is_on_device, request.values())):
            return device_arrays.check(self.signature, request)
        return self._checker.check(dict(request))

    def work(self, request: Request) -> int:
        """The Request's size for the cost model: rows of a table, tokens of a batch of texts."""
        return self._checker.work(dict(request))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Saves the Plan with its packed weights, for `headrace.load_plan` to map.

        Args:
            folder: Gets the file ``plan.headrace``; made if need be. An older Plan is replaced atomically.

        Returns:
            The file's path.

        Raises:
            PlanError: The Plan's Backend cannot save its Plans.
            OSError: The file cannot be written.
        """
        return self.executable.save(
            Path(folder), name=self.name, sha256=self.sha256, signature=self.signature, options=self.options
        )

    def close(self) -> None:
        """Gives back what the Plan holds."""
        self.executable.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _other_mappings(requests: Sequence[Request]) -> bool:
    """Whether these are Requests that the extension module did not take, because some are mappings but no dicts."""
    return (
        isinstance(requests, Sequence)
        and all(isinstance(request, Mapping) for request in requests)
        and not all(isinstance(request, dict) for request in requests)
    )


def backends() -> dict[str, Backend]:
    """The installed backends by name, in the order `backend="auto"` tries them: native first.

    One that is broken is there too; its `probe` says why it cannot be used.
    """
    found = {name: discovery.load(name, source) for name, source in discovery.sources().items()}
    order = {"native": 0, "torch": 1, "reference": 99}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], 50), item[0])))


def backend_named(name: str) -> Backend:
    """The backend of that name. No other is imported.

    Raises:
        BackendUnavailable: None is installed under that name, or it does not work here.
    """
    sources = discovery.sources()
    if name not in sources:
        raise BackendUnavailable(f"got backend {name!r}, expected one of: auto, {', '.join(sorted(sources))}")
    backend = discovery.load(name, sources[name])
    availability = backend.usable()
    if not availability.ok:
        raise BackendUnavailable(f"backend {name!r} cannot be used here: {availability.reason}")
    return backend


def compile_model(
    model: Model,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    device: str | None = None,
    winograd: bool = False,
    samples: Sequence[Request] | None = None,
    tolerance: float | None = None,
    options: Mapping[str, str] | None = None,
    fallback: Sequence[str] = (),
) -> Engine:
    """Prepares `model` on one backend.

    Args:
        model: What to run.
        backend: A backend's name, or ``"auto"``: native where it can run the whole model, else the next installed
            backend that can. The plan's reasons say which and why.
        precision: ``"fp32"``, another that the backend offers, or ``"auto"``: the fastest whose error against fp32
            stays within `tolerance`, both measured on `samples`. The plan's reasons hold the figures.
        threads: Threads of the Plan; None for every core this process may use.
        device: A device of the backend, such as ``"cpu"`` or ``"cuda:0"``; None for its default.
        winograd: Whether 3x3 convolutions of stride 1 may run by Winograd's minimal filtering where that saves time: in
            fp32 only, and with rounding errors some two times those of the sums as they are written. The plan's
            reasons say how many do.
        samples: Requests to measure a lower precision on; None to generate some from the signature.
        tolerance: The largest error of a lower precision, as `headrace.parity.Parity` defines it; None for 0.02. Given
            with a named precision, it makes that precision an error where it exceeds it.
        options: Options that only some backends have, such as ``{"mode": "compile"}``; see `Capabilities.options`.
        fallback: Backends that may run the model, in this order, where the named one cannot: on their own default
            device, without `options`. The plan's reasons and ``details["fallback_from"]`` say so.

    Raises:
        ConfigError: An argument is of no use to any backend; none was asked.
        ParityError: The named precision's error is above the tolerance.
        UnsupportedOp: The named backend (or, for auto, every backend) lacks ops of the model.
        BackendUnavailable: The backend, precision, device or option is not there, or it has no Winograd
            convolutions.
        ExecutionError: A backend broke down while compiling. Neither ``"auto"`` nor `fallback` go on from that.
    """
    wanted = CompileOptions(precision, threads, device, winograd, dict(options or {}))
    _check_precision(precision)
    _check_comparison(samples, tolerance)
    if isinstance(fallback, str):
        raise ConfigError(f"compile: got fallback {fallback!r}, expected a list of backends' names: [{fallback!r}]")
    if backend != "auto":
        executable = _compile_named(model, backend, fallback, wanted, samples, tolerance)
        return Engine(model.signature, executable, model.name, model.sha256, wanted)
    _core.selected_isa()  # where HEADRACE_ISA is wrong, that is an error and no reason to take another backend
    refusals: list[tuple[str, HeadraceError]] = []
    for name, candidate in backends().items():
        availability = candidate.usable()
        if not availability.ok:
            refusals.append((name, BackendUnavailable(availability.reason)))
            continue
        if availability.for_tests:
            continue
        try:
            executable = compile_lowered(candidate, model, wanted, samples, tolerance)
        except (UnsupportedOp, BackendUnavailable) as error:
            refusals.append((name, error))
            continue
        executable.plan = _with_refusals(executable.plan, refusals)
        return Engine(model.signature, executable, model.name, model.sha256, wanted)
    if refusals and isinstance(refusals[0][1], UnsupportedOp):
        raise refusals[0][1]
    raise BackendUnavailable(
        f"no backend can run model {model.name!r}:\n" + "\n".join(f"  {name}: {error}" for name, error in refusals)
    )


def _check_precision(precision: str) -> None:
    """Refuses what no installed backend has.

    Raises:
        ConfigError: It is such.
    """
    from headrace.graph.precision import PRECISIONS  # a Model was loaded, so that it costs nothing more

    if precision in ("auto", *PRECISIONS):
        return
    others = {one for backend in backends().values() for one in backend.capabilities().precisions} - {*PRECISIONS}
    if precision not in others:
        known = ", ".join((*PRECISIONS, *sorted(others), "auto"))
        raise ConfigError(f"compile: got precision {precision!r}, expected one of {known}")


def _check_comparison(samples: Sequence[Request] | None, tolerance: float | None) -> None:
    """Refuses what no precision can be measured with.

    Raises:
        ConfigError: It is such.
    """
    if tolerance is not None and not (isinstance(tolerance, int | float | np.number) and tolerance >= 0):
        raise ConfigError(f"compile: got tolerance {tolerance!r}, expected a number of 0 or more, or None")
    if samples is None:
        return
    if isinstance(samples, str | Mapping) or not isinstance(samples, Sequence):
        raise ConfigError(f"compile: got a {type(samples).__name__} for samples, expected a list of requests, or None")
    if not samples:
        raise ConfigError("compile: got no samples, expected at least one request, or None to have some generated")


def _compile_named(
    model: Model,
    backend: str,
    fallback: Sequence[str],
    wanted: CompileOptions,
    samples: Sequence[Request] | None,
    tolerance: float | None,
) -> Executable:
    """Compiles on the named backend, or on the first of the fallbacks that can."""
    refusals: list[tuple[str, HeadraceError]] = []
    for name in (backend, *fallback):
        options = wanted if name == backend else replace(wanted, device=None, options={})
        try:
            executable = compile_lowered(backend_named(name), model, options, samples, tolerance)
        except (BackendUnavailable, UnsupportedOp) as error:
            refusals.append((name, error))
            continue
        if refusals:
            plan = executable.plan
            reasons = tuple(f"fallback: not {refused}: {error}" for refused, error in refusals)
            details = {**plan.details, "fallback_from": backend}
            executable.plan = replace(plan, reasons=(*plan.reasons, *reasons), details=details)
        return executable
    if len(refusals) == 1:
        raise refusals[0][1]
    raise BackendUnavailable(
        f"neither backend {backend!r} nor its fallbacks can run model {model.name!r}:\n"
        + "\n".join(f"  {name}: {error}" for name, error in refusals)
    )


def _with_refusals(plan: Plan, refusals: list[tuple[str, HeadraceError]]) -> Plan:
    reasons: tuple[Any, ...] = tuple(f"not {name}: {error}" for name, error in refusals)
    if not reasons:
        reasons = ("native can run the whole model",)
    return replace(plan, reasons=(*plan.reasons, *reasons))
