"""How far a Plan's answers are from another's: the gate that a lower precision must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.backend import Result
from headrace.errors import ParityError

# Of the norm of the outputs. bfloat16 keeps 8 bits, which leaves transformers and CNNs at some 0.005.
DEFAULT_TOLERANCE = 0.02


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


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.mean(got != expected))
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    distance = float(np.linalg.norm(got[finite] - expected[finite]))
    norm = float(np.linalg.norm(expected[finite]))
    return distance / norm if norm > 0 else (0.0 if distance == 0 else float("inf"))
