"""Chooses a Plan's precision: the fastest whose answers stay within the tolerance, by measuring both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.backend import Backend, CompileOptions, Executable, Request, Result
from headrace.errors import BackendUnavailable, ParityError, RequestError, UnsupportedOp
from headrace.guard import compile_on
from headrace.parity import DEFAULT_TOLERANCE, compare
from headrace.samples import sample_requests

if TYPE_CHECKING:
    from headrace.model import Model

# A lower precision must gain this much: it always costs accuracy, and times vary by a few percent.
_MIN_GAIN = 1.1
# Calls as short as that differ by their places in the caches.
_MIN_GAIN_S = 1e-6

# For each of two that are compared.
_TIMED_S = 0.05


def compile_lowered(
    backend: Backend,
    model: Model,
    options: CompileOptions,
    samples: Sequence[Request] | None = None,
    tolerance: float | None = None,
) -> Executable:
    """Compiles `model` in ``options.precision``; "auto" measures every precision of `backend` and takes the best.

    Args:
        backend: What to compile on.
        model: What to compile.
        options: As for `Backend.compile`, with precision "auto" allowed.
        samples: Requests that errors and times are measured on; None to generate some from the signature.
        tolerance: The largest error against fp32 (see `headrace.parity.Parity`); None for `DEFAULT_TOLERANCE`. A named
            precision is checked only where `samples` or a tolerance is given.

    Raises:
        RequestError: A sample does not fit the signature; it says which.
        ParityError: The precision was named and its error is above the tolerance.
        BackendUnavailable: Winograd convolutions were asked for, and `backend` has none, or the precision is not fp32;
            or it does not have one of ``options.options``, or not with that value.
    """
    if options.winograd and options.precision != "fp32":
        raise BackendUnavailable(
            f"got winograd=True with precision {options.precision!r}, expected fp32: there alone are such kernels"
        )
    named = options.precision != "auto"
    if named and (options.precision == "fp32" or (samples is None and tolerance is None)):
        return compile_on(backend, model, options)
    candidates = [options.precision] if named else [p for p in backend.capabilities().precisions if p != "fp32"]
    if not candidates:
        only = compile_on(backend, model, replace(options, precision="fp32"))
        return _with_reasons(only, [f"precision auto chose fp32: backend {backend.name!r} has no other"])
    limit = DEFAULT_TOLERANCE if tolerance is None else tolerance
    origin = f"{len(samples)} given samples" if samples else "generated samples"
    requests: list[Request] = list(samples or [])
    best = compile_on(backend, model, replace(options, precision="fp32"))
    if not requests:
        from headrace.graph.index_ranges import index_ranges

        requests = sample_requests(model.signature, best.run_batch, index_ranges(model.graph.graph))
    if not requests:
        raise ParityError(
            f"model {model.name!r} in {options.precision}: got no samples, and it runs none of those made from its "
            f"signature {model.signature}; expected samples to compare precisions on"
        )
    expected = _answers(best, requests, are_given=bool(samples))
    reasons: list[str] = []
    gained = 1.0
    for precision in candidates:
        try:
            candidate = compile_on(backend, model, replace(options, precision=precision))
        except UnsupportedOp as error:
            if named:
                raise
            reasons.append(f"not {precision}: {error}")
            continue
        parity = compare(candidate.run_batch(requests), expected)
        measured = f"error {parity.error:.2g} in output {parity.output!r} on {origin}, tolerance {limit:g}"
        if not parity.error <= limit:
            if named:
                raise ParityError(f"model {model.name!r} in {precision} against fp32: got {measured}")
            reasons.append(f"not {precision}: {measured}")
            continue
        if named:
            return _with_reasons(candidate, [f"{precision}: {measured}"])
        best_s, seconds = _times((best, candidate), requests)
        reason = f"{precision}: {gained * best_s / seconds:.2f} times the speed of fp32, {measured}"
        if seconds * _MIN_GAIN > best_s or best_s - seconds < _MIN_GAIN_S:
            candidate.close()
            reasons.append(f"not {reason}")
            continue
        best.close()
        best, gained = candidate, gained * best_s / seconds
        reasons.append(reason)
    return _with_reasons(best, [f"precision auto chose {best.plan.precision}", *reasons])


def _answers(executable: Executable, requests: Sequence[Request], *, are_given: bool) -> list[Result]:
    """What it answers; a refusal names the sample, where the caller gave them."""
    try:
        return executable.run_batch(requests)
    except RequestError:
        for index, request in enumerate(requests if are_given else ()):
            try:
                executable.run_batch([request])
            except RequestError as error:
                raise type(error)(f"compile: samples[{index}]: {error}") from error
        raise


def _times(executables: Sequence[Executable], requests: Sequence[Request]) -> list[float]:
    """Seconds of each one's fastest run over all of `requests`, by turns: other work on the machine only adds time."""
    best, end = [float("inf")] * len(executables), time.perf_counter() + _TIMED_S * len(executables)
    for executable in executables:
        executable.run_batch(requests)
    while time.perf_counter() < end or float("inf") in best:
        for index, executable in enumerate(executables):
            start = time.perf_counter()
            executable.run_batch(requests)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def _with_reasons(executable: Executable, reasons: list[str]) -> Executable:
    executable.plan = replace(executable.plan, reasons=(*executable.plan.reasons, *reasons))
    return executable
