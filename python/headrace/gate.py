"""The gate before a Plan may serve: its answers to some Requests are the reference backend's, within the tolerance.

Floats may differ by `headrace.parity.tolerance_of`, by the Plan's precision and the output's dtype. Integers, booleans
and strings must be equal, but for one case: a class or an index that rounding decides, since what it was decided on
lies within the tolerance of another decision. Such a one is let pass where all floats of the Results agree and the
reference, given the Plan's own values at every op, computes what the Plan did; the Verdict says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headrace.backend import CompileOptions, Request, Result
from headrace.errors import DeadlineExceeded, HeadraceError, ParityError
from headrace.guard import compile_on
from headrace.parity import beyond, compare, is_float, tolerance_of

if TYPE_CHECKING:
    from headrace.divergence import Compile, Search
    from headrace.model import Model


@dataclass(frozen=True)
class Verdict:
    """What the gate found of a Plan that it let pass.

    Attributes:
        compared: How many Requests' answers were compared; 0 where the reference could not say.
        text: What was found, or why nothing was, for people.
    """

    compared: int
    text: str

    def __str__(self) -> str:
        return self.text


def check(
    model: Model,
    run_batch: Callable[[Sequence[Request]], list[Result]],
    requests: Sequence[Request],
    *,
    backend: str,
    options: CompileOptions,
    tolerance: float | None = None,
    seconds_max: float = 5.0,
    compile_: Compile | None = None,
) -> Verdict:
    """Compares a Plan's answers with the reference backend's.

    Args:
        model: What the Plan was compiled from.
        run_batch: Runs Requests on it.
        requests: What to compare on, the most important first.
        backend: The Plan's backend.
        options: What it was compiled with.
        tolerance: Relative L2 error allowed of floats; None for `headrace.parity.tolerance_of`.
        seconds_max: How long the reference may take for all of them. Those it has not answered by then are left out.
        compile_: Compiles another Model as the Plan was, to find the op that is wrong; None asks `backend` with
            `options`.

    Raises:
        ParityError: The answers are too far apart. The message shows the worst element and the first wrong op.
        HeadraceError: The Plan failed at the first Request, which the reference answers.
    """
    if backend == "reference":
        return Verdict(0, "not checked: it runs on the reference backend")
    try:
        expected = _expected(model, requests, time.monotonic() + seconds_max)
    except HeadraceError as error:
        return Verdict(0, f"not checked: {str(error)[:200]}")
    if not expected:
        return Verdict(0, f"not checked: the reference backend took longer than parity_s_max = {seconds_max:g} s")
    got = _answers(run_batch, {index: requests[index] for index in expected})
    if not got:
        return Verdict(0, "not checked: the Plan answers none of the samples that the reference backend answers")
    return _compare(
        model, [requests[index] for index in got], list(got.values()), [expected[index] for index in got],
        backend, options, tolerance, compile_,
    )  # fmt: skip


def _answers(
    run_batch: Callable[[Sequence[Request]], list[Result]], requests: Mapping[int, Request]
) -> dict[int, Result]:
    """The Plan's Results; only the first Request must have one."""
    got: dict[int, Result] = {}
    for index, request in requests.items():
        try:
            (got[index],) = run_batch([request])
        except HeadraceError:
            # A made-up Request that the Plan refuses and numpy broadcasts its way through proves nothing.
            if index == 0:
                raise
    return got


def _compare(
    model: Model,
    compared: list[Request],
    got: list[Result],
    wanted: list[Result],
    backend: str,
    options: CompileOptions,
    tolerance: float | None,
    compile_: Compile | None,
) -> Verdict:
    from headrace.divergence import Search
    from headrace.engine import backend_named

    on = f" on {len(compared)} samples" if len(compared) > 1 else ""
    precision = "quantized" if options.precision == "fp32" and _is_quantized(model) else options.precision
    difference = beyond(got, wanted, tolerance, precision)
    if difference is None:
        allowed = tolerance_of(precision, np.dtype(np.float32)) if tolerance is None else tolerance
        found = f"error {compare(got, wanted).error:.2g} against the reference backend{on}, {allowed:g} allowed"
        return Verdict(len(compared), found)
    # A sample that is beyond the tolerance by itself, too.
    samples = (difference.sample, *range(len(got)))
    alone = (index for index in samples if beyond([got[index]], [wanted[index]], tolerance, precision) is not None)
    sample = next(alone, difference.sample)
    search = Search(
        model,
        compile_ or (lambda other: compile_on(backend_named(backend), other, options)),
        lambda other: compile_on(backend_named("reference"), other, CompileOptions()),
        compared[sample],
        tolerance,
        precision,
    )
    floats = [{name: array for name, array in one.items() if is_float(array.dtype)} for one in wanted]
    only_decisions = beyond(got, floats, tolerance, precision) is None
    where = _locate(search, got[sample], only_decisions)
    if where is None:
        return Verdict(
            len(compared), f"{difference}: let pass, since rounding decides it and every op agrees by itself"
        )
    raise ParityError(
        f"against the reference backend{on}: {difference} (parity_tolerance; parity = false serves it unchecked); "
        f"{where}"
    )


def _is_quantized(model: Model) -> bool:
    """Whether values are rounded to bytes on the way, by scales that the model brought."""
    return any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in model.graph.graph)


def _expected(model: Model, requests: Sequence[Request], deadline: float) -> dict[int, Result]:
    """The reference's Results by the place of their Request, as many as it has at the deadline.

    Raises:
        HeadraceError: It answers none of them, and the deadline is not why.
    """
    from headrace.engine import backend_named

    reference = cast(Any, compile_on(backend_named("reference"), model, CompileOptions())).inner
    expected: dict[int, Result] = {}
    failure: HeadraceError | None = None
    for index, request in enumerate(requests):
        try:
            expected[index] = reference.run_until(request, deadline)
        except DeadlineExceeded:
            return expected
        except HeadraceError as error:  # a made-up Request need not make sense to the Model
            failure = failure or error
    if not expected and failure is not None:
        raise failure
    return expected


def _locate(search: Search, got: Result, only_decisions: bool) -> str | None:
    """Which op is wrong, in words. None where no op is, and rounding explains the difference.

    Args:
        search: Where to look.
        got: The Plan's Result.
        only_decisions: Whether all floats agree, and only what is decided on floats differs.
    """
    try:
        divergence, results = search.wrong_op()
        if divergence is None:
            if only_decisions and all(_same(results.get(name), array) for name, array in got.items()):
                return None
            divergence = search.wrong_in_company()
    except Exception as error:  # what is looked for is a broken Plan: it may break in any way
        return f"the op could not be found: {type(error).__name__}: {str(error)[:200]}"
    return (
        "every op agrees by itself and in company: the error has grown on the way"
        if divergence is None
        else str(divergence)
    )


def _same(one: np.ndarray | None, other: np.ndarray) -> bool:
    return one is not None and one.shape == other.shape and bool(np.all(one == other))
