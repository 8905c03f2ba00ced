"""How far a Plan's answers are from another's: the one place where answers are compared.

Floats are compared by the norm of the difference, and element by element with what is near zero seen against the whole
tensor. Integers, booleans and strings must be equal; see `headrace.gate` for the one exception, values that rounding
decides. Bytes are equal to within one step: they stand for rounded floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.backend import Result
from headrace.errors import ParityError

# Of the norm of the outputs. bfloat16 keeps 8 bits, which leaves transformers and CNNs at some 0.005.
DEFAULT_TOLERANCE = 0.02

# What the gate allows where the caller names nothing, by the Plan's precision: fp32 differs from the reference by the
# order of its sums; "quantized" stands for a model with int8 scales of its own in fp32, where a sum that falls between
# two steps may be rounded to either; a lowered precision differs by its rounding, and must only not be broken.
TOLERANCES = {"fp32": 1e-3, "quantized": 0.03}
TOLERANCE_LOWERED = 0.1
# Outputs of short floats are rounded to these shares of themselves whatever the precision.
TOLERANCES_OF_DTYPE = {"float16": 4e-3, "bfloat16": 0.03}
# A single element may be off by so much more than the whole, of itself or of the tensor's root mean square.
ELEMENT_FACTOR = 10.0


def tolerance_of(precision: str, dtype: np.dtype[Any]) -> float:
    """What the gate allows of an output, by the Plan's precision and the output's dtype."""
    return max(TOLERANCES.get(precision, TOLERANCE_LOWERED), TOLERANCES_OF_DTYPE.get(dtype.name, 0.0))


@dataclass(frozen=True)
class Difference:
    """The worst element of an output that is beyond its tolerance.

    Attributes:
        output: The output's name.
        sample: Which of the Requests.
        index: Where in the output.
        got: The element.
        expected: What it should be.
        error: Of floats, the element's difference over the larger of the expected element and the root mean square of
            the expected output. Of bytes, the steps. Of anything else, 1.
        tolerance: What was allowed of `error`.
        norm_error: Of floats, the norm of the difference over the norm of the expected values, for the whole output.
        norm_tolerance: What was allowed of it.
    """

    output: str
    sample: int
    index: tuple[int, ...]
    got: Any
    expected: Any
    error: float
    tolerance: float
    norm_error: float = 0.0
    norm_tolerance: float = 0.0

    def __str__(self) -> str:
        where = f"output {self.output!r} of sample {self.sample} at {list(self.index)}"
        whole = ""
        if self.norm_tolerance:
            whole = f"; the whole output an error of {self.norm_error:.3g}, expected at most {self.norm_tolerance:g}"
        return (
            f"{where}: got {self.got}, expected {self.expected}: an error of {self.error:.3g}, expected at most "
            f"{self.tolerance:g}{whole}"
        )


@dataclass(frozen=True)
class Parity:
    """The difference between two Plans' answers to the same Requests.

    Attributes:
        error: The worst output's error. Of floats, the norm of the difference over the norm of the expected values,
            over all Requests together (relative L2). Of integers, booleans and strings, the share of elements that
            differ. Infinite where one is NaN or infinite and the other is not.
        output: The name of that output.
    """

    error: float
    output: str


def compare(got: Sequence[Result], expected: Sequence[Result]) -> Parity:
    """Compares the answers to the same Requests, output by output.

    Raises:
        ParityError: An output's shape or dtype differs.
    """
    worst = Parity(0.0, "")
    for name in expected[0]:
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            if one[name].shape != other[name].shape or one[name].dtype != other[name].dtype:
                raise ParityError(
                    f"output {name!r} of sample {index}: got {one[name].dtype} {list(one[name].shape)}, "
                    f"expected {other[name].dtype} {list(other[name].shape)}"
                )
        error = _error(*(np.concatenate([result[name].ravel() for result in results]) for results in (got, expected)))
        if error > worst.error or not worst.output:
            worst = Parity(error, name)
    return worst


def beyond(
    got: Sequence[Result], expected: Sequence[Result], tolerance: float | None, precision: str = "fp32"
) -> Difference | None:
    """The worst element of the first output that differs by more than it may, or None.

    Args:
        got: Answers to some Requests.
        expected: What they should be; only the outputs named here are compared.
        tolerance: The norm of an output's difference over that of what is expected; None for `tolerance_of`.
        precision: What the answers were computed in.

    Raises:
        ParityError: An output's shape or dtype differs.
    """
    compare(got, expected)
    for name, first in expected[0].items():
        limit = tolerance_of(precision, first.dtype) if tolerance is None else tolerance
        found = _beyond(name, [one[name] for one in got], [one[name] for one in expected], limit)
        if found is not None:
            return found
    return None


def _beyond(name: str, got: list[np.ndarray], expected: list[np.ndarray], limit: float) -> Difference | None:
    kind = expected[0].dtype
    if not is_float(kind):
        steps = 1.0 if kind in (np.int8, np.uint8) else 0.0
        errors = [_steps(one, want) for one, want in zip(got, expected, strict=True)]
        if all(error.max(initial=0) <= steps for error in errors):
            return None
        return _worst(name, got, expected, errors, steps)
    norm_error = _error(*(np.concatenate([array.ravel() for array in arrays]) for arrays in (got, expected)))
    errors = [_element_errors(one, want) for one, want in zip(got, expected, strict=True)]
    limit_of_one = ELEMENT_FACTOR * limit
    if norm_error <= limit and all(error.max(initial=0) <= limit_of_one for error in errors):
        return None
    return replace(_worst(name, got, expected, errors, limit_of_one), norm_error=norm_error, norm_tolerance=limit)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether elements are floats, bfloat16 included, which numpy does not know as such."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _steps(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    if expected.dtype in (np.int8, np.uint8):
        return np.asarray(np.abs(got.astype(np.float64) - expected.astype(np.float64)))
    return np.asarray(got != expected, dtype=np.float64)


def _element_errors(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Per element; infinite where only one of the two is a number, or both are other infinities."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    scale = float(np.sqrt(np.mean(np.square(expected[finite])))) if finite.any() else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.abs(got - expected) / np.maximum(np.abs(expected), scale)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return np.where(same, 0.0, np.nan_to_num(errors, nan=np.inf, posinf=np.inf))


def _worst(
    name: str, got: list[np.ndarray], expected: list[np.ndarray], errors: list[np.ndarray], limit: float
) -> Difference:
    sample = int(np.argmax([error.max(initial=-1) for error in errors]))
    index = tuple(int(at) for at in np.unravel_index(np.argmax(errors[sample]), errors[sample].shape))
    one, want = got[sample][index], expected[sample][index]
    return Difference(name, sample, index, one, want, float(errors[sample][index]), limit)


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    if expected.size == 0:
        return 0.0
    if not is_float(expected.dtype):
        return float(np.mean(got != expected))
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    distance = float(np.linalg.norm(got[finite] - expected[finite]))
    norm = float(np.linalg.norm(expected[finite]))
    return distance / norm if norm > 0 else (0.0 if distance == 0 else float("inf"))
