"""Compares an imported estimator with what it was imported from, on a few rows.

Converters are many, and written by many: one that mistakes a column's dtype gives a graph that runs, and is wrong. What
a rounding to float32 decides (the side of a tree's split, the class in a tie) is no mistake, so that a row may differ
here and there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.errors import BackendUnavailable, HeadraceError, ModelError, UnsupportedOp
from headrace.model import Model
from headrace.signature import TensorSpec

# More rows tell little more, and the reference may be slow.
_ROWS_MAX = 100
# A row may lie where rounding decides, and of two or more one always may.
_ROWS_OFF_MAX = 0.05
# A value is off by more than these shares of the values' standard deviation and of their root mean square together;
# the second is what the probabilities of scikit-learn's own SVC vary by.
_OF_DEVIATION, _OF_MAGNITUDE = 1e-2, 2e-3


def check_agreement(source: Any, example: Any, model: Model, columns: Sequence[str]) -> None:
    """Runs `model` on rows that `source` predicts too.

    Nothing is checked where the estimator itself cannot predict these rows, where none of them can be sent (a string
    column with gaps), or where no backend here runs the model.

    Args:
        source: The fitted estimator.
        example: Rows for it: a DataFrame, an array or a list of texts.
        model: What was made of it.
        columns: The names of the model's inputs as the estimator knows them, in their order.

    Raises:
        ModelError: They disagree, or the model fails at the rows.
    """
    found = _expected(source, example)
    if found is None:
        return
    rows, expected = found
    sendable, request = _request(rows, model.signature.inputs, columns)
    if not sendable.any():
        return
    try:
        engine = model.compile(backend="native", threads=1, fallback=["reference"])
    except (UnsupportedOp, BackendUnavailable):
        return
    name = type(source).__name__
    with engine:
        try:
            got = engine({key: array[sendable] for key, array in request.items()})
        except HeadraceError as error:
            raise ModelError(f"{name}: the imported model fails at example_inputs: {error}") from error
    for spec in model.signature.outputs:
        shape = got[spec.name].shape
        is_fixed = len(shape) == len(spec.dims) and all(
            isinstance(dim, str) or dim == length for dim, length in zip(spec.dims, shape, strict=True)
        )
        if not is_fixed:
            raise ModelError(
                f"{name}: the imported model answers {spec.name!r} of shape {list(shape)}, expected {spec}"
            )
    _compare(name, list(got.values()), [values[sendable] for values in expected])


def _request(
    rows: Any, specs: Sequence[TensorSpec], columns: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which rows can be sent, and all of them as one Request."""
    frame = {str(column): column for column in getattr(rows, "columns", ())}
    by_column = all(column in frame for column in columns) and all(spec.dims[1:] == (1,) for spec in specs)
    matrix = rows.toarray() if hasattr(rows, "toarray") else rows
    request, sendable = {}, np.ones(len(matrix), dtype=bool)
    for spec, column in zip(specs, columns, strict=True):
        values = np.asarray(rows[frame[column]])[:, None] if by_column else np.asarray(matrix)
        if spec.dtype == "string":
            values = values.astype(object)
            fits = np.vectorize(lambda value: isinstance(value, str), otypes=[bool])(values)
        else:
            floats = np.array([[_number(value) for value in row] for row in values])
            fits = np.isfinite(floats) if spec.dtype == "int64" else np.ones(floats.shape, dtype=bool)
            values = values if spec.dtype == "int64" and fits.all() else np.where(fits, floats, 0)
            values = values.astype(spec.numpy_dtype)
        sendable &= fits.reshape(len(fits), -1).all(axis=1)
        request[spec.name] = values
    return sendable, request


def _number(value: Any) -> float:
    """A cell of a table; pandas has a missing value of its own, which no number is."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _expected(source: Any, example: Any) -> tuple[Any, list[np.ndarray]] | None:
    """Some rows, and what the estimator makes of them: predictions and probabilities, or transformed rows."""
    try:
        rows = example[:_ROWS_MAX]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not hasattr(source, "predict"):
                transformed = source.transform(rows)
                return rows, [np.asarray(transformed.toarray() if hasattr(transformed, "toarray") else transformed)]
            found = [np.asarray(source.predict(rows))]
            if hasattr(source, "predict_proba"):
                probabilities = source.predict_proba(rows)
                if isinstance(probabilities, np.ndarray):
                    found.append(probabilities)
            return rows, found
    except Exception:  # an estimator may raise anything at rows that are only there for their dtypes
        return None


def _compare(name: str, got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Raises ModelError if more rows differ than rounding explains."""
    rows = len(expected[0])
    off = np.zeros(rows, dtype=bool)
    for index, (one, want) in enumerate(zip(got, expected, strict=False)):
        if one.size != want.size:
            shapes = f"got shape {list(one.shape)}, expected {list(want.shape)}"
            raise ModelError(f"{name}: the imported model disagrees with it on example_inputs: {shapes}")
        differs = _off(one.reshape(rows, -1), want.reshape(rows, -1))
        if index == 0 and want.dtype.kind != "f" and len(expected) > 1:
            differs &= ~_is_tie(expected[1])
        off |= differs
        if off.sum() > max(min(1, rows - 1), _ROWS_OFF_MAX * rows):
            row = int(np.argmax(off))
            raise ModelError(
                f"{name}: the imported model disagrees with it on {int(off.sum())} of {rows} rows of example_inputs. "
                f"Row {row}: got {one[row].tolist()}, expected {want[row].tolist()}. Either its conversion to ONNX is "
                "wrong, or float32, which the model takes, is too coarse for a column's values"
            )


def _off(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Which rows differ by more than rounding explains. Both are [rows, values]."""
    if expected.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
        return np.asarray((got.astype(str) != expected.astype(str)).any(axis=1))
    if expected.dtype.kind != "f":
        return np.asarray((got != expected).any(axis=1))
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    finite = expected[np.isfinite(expected)]
    limit = 0.0
    if finite.size:
        deviation = np.nan_to_num(np.nanstd(np.where(np.isfinite(expected), expected, np.nan), axis=0))
        limit = _OF_DEVIATION * deviation + _OF_MAGNITUDE * np.sqrt(np.mean(np.square(finite)))
    with np.errstate(invalid="ignore"):
        close = np.abs(got - expected) <= limit
    return np.asarray(~(close | (got == expected) | (np.isnan(got) & np.isnan(expected))).all(axis=1))


def _is_tie(probabilities: np.ndarray) -> np.ndarray:
    """Rows whose two likeliest classes rounding may swap."""
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        return np.zeros(len(probabilities), dtype=bool)
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return np.asarray(first - second <= 2 * _OF_MAGNITUDE)
