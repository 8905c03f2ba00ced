"""The columns of the table a fitted scikit-learn estimator takes, and the inputs of a graph that stand for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import fresh_name

# What a step does with a column: it computes with it, or tells its values apart, which are then of this dtype.
_NUMBER, _FLOATS, _INTS, _STRINGS = "number", "float32", "int64", "string"


_TYPES = {_FLOATS: ir.DataType.FLOAT, _INTS: ir.DataType.INT64, _STRINGS: ir.DataType.STRING}
_OPSET = 18


@dataclass(frozen=True)
class Column:
    """One column of the table that an estimator was fitted on.

    Attributes:
        name: Its name, and the input's.
        dtype: The input's: ``"float32"``, ``"int64"`` or ``"string"``.
        is_number: Whether some step computes with it; else its values are only told apart.
    """

    name: str
    dtype: str
    is_number: bool

    @property
    def dtype_inside(self) -> str:
        """What the steps are converted for."""
        return _FLOATS if self.is_number and self.dtype == _INTS else self.dtype


@dataclass(frozen=True)
class Table:
    """The columns of an estimator.

    Attributes:
        columns: In the order of the table.
        is_matrix: Whether they all are numbers that the first step takes by their positions, so that one float tensor
            of them side by side says it all.
    """

    columns: tuple[Column, ...]
    is_matrix: bool


def table_of(source: Any, example: Any) -> Table | None:
    """The columns of a fitted estimator, or None where one float tensor will do.

    Args:
        source: The estimator.
        example: A DataFrame with some rows, which says what the columns are; anything else says nothing.
    """
    has_frame = hasattr(example, "columns")
    names = [str(name) for name in (example.columns if has_frame else getattr(source, "feature_names_in_", ()))]
    if not names:
        return None
    uses: dict[str, set[str]] = defaultdict(set)
    for name, use in _uses(source, names):
        uses[name].add(use)
    if has_frame:
        dtypes = [_dtype(example[column]) for column in example.columns]
    else:
        dtypes = [_dtype_by_use(uses[name]) for name in names]
    columns = tuple(
        Column(name, dtype, dtype == _FLOATS or not uses[name] or _NUMBER in uses[name])
        for name, dtype in zip(names, dtypes, strict=True)
    )
    by_name = any(hasattr(part, "transformers_") for part in _inside(source))
    is_matrix = not by_name and all(column.is_number and column.dtype != _STRINGS for column in columns)
    is_plain = all(dtype == _FLOATS for dtype in dtypes) or not (has_frame or _STRINGS in dtypes)
    if not by_name and (is_plain or (is_matrix and not hasattr(source, "steps"))):
        return None
    return Table(columns, is_matrix)


def takes_texts(source: Any) -> bool:
    """Whether what `source` takes is one text per row and no table."""
    steps = getattr(source, "steps", None)
    return takes_texts(steps[0][1]) if steps else hasattr(source, "vocabulary_") and hasattr(source, "analyzer")


def side_by_side(columns: Sequence[Column]) -> ir.Model:
    """A graph that makes one float32 tensor [batch, columns] of columns of numbers."""
    inputs = [ir.Value(name=column.name, shape=ir.Shape(["batch", 1])) for column in columns]
    for value in inputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    node = ir.node("Concat", inputs, {"axis": 1})
    (joined,) = node.outputs
    joined.name, joined.shape = "columns", ir.Shape(["batch", len(columns)])
    joined.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [joined], nodes=[node], opset_imports={"": _OPSET}, name="columns")
    send_as(graph, columns)
    return ir.Model(graph, ir_version=10)


def send_as(graph: ir.Graph, columns: Sequence[Column]) -> None:
    """Gives a graph that was made for `dtype_inside` inputs of `dtype`, and takes away those that nothing looks at."""
    by_name = {column.name: column for column in columns}
    for value in list(graph.inputs):
        column = by_name[str(value.name)]
        if not value.uses() and len(graph.inputs) > 1:
            graph.inputs.remove(value)
        elif column.dtype != column.dtype_inside:
            users = tuple(value.uses())
            cast = ir.node("Cast", [value], {"to": _TYPES[column.dtype_inside].value})
            (inside,) = cast.outputs
            inside.name, inside.shape = fresh_name(graph, f"{column.name}_as_number"), value.shape
            inside.type = ir.TensorType(_TYPES[column.dtype_inside])
            for user, index in users:
                user.replace_input_with(index, inside)
            value.type = ir.TensorType(_TYPES[column.dtype])
            graph.insert_before(graph[0], [cast])


def _dtype(values: Any) -> str:
    """What a column of a DataFrame is sent as."""
    array = np.asarray(values)
    kind = array.dtype.kind
    if kind == "O":
        # A nullable column with a gap in it has the kind of its numbers, but they come as objects.
        kind = getattr(values.dtype, "kind", "O")
        if kind in "iufb":
            return _FLOATS
        kind = np.array(array.tolist()).dtype.kind
    if kind in "fb":
        return _FLOATS
    return _INTS if kind in "iu" else _STRINGS


def _dtype_by_use(uses: set[str]) -> str:
    """What a column is sent as where no example says it."""
    return next((dtype for dtype in (_STRINGS, _FLOATS, _INTS) if dtype in uses), _FLOATS)


def _uses(estimator: Any, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What `estimator` does with each of the columns it gets; some may come several times, or never."""
    if isinstance(estimator, str):
        yield from ((name, _NUMBER) for name in names if estimator != "drop")
    elif hasattr(estimator, "steps"):
        yield from _pipeline_uses([part for _, part in estimator.steps if part not in (None, "passthrough")], names)
    elif hasattr(estimator, "transformers_"):
        for _, part, columns in estimator.transformers_:
            yield from _uses(part, _chosen(columns, names))
    elif hasattr(estimator, "transformer_list"):
        for _, part in estimator.transformer_list:
            yield from _uses(part, names)
    else:
        yield from zip(names, _told_apart(estimator, len(names)) or [_NUMBER] * len(names), strict=True)


def _pipeline_uses(parts: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What the first of some steps does, and strings where it only fills gaps for an encoder of strings."""
    first = list(_uses(parts[0], names)) if parts else [(name, _NUMBER) for name in names]
    if all(use == _NUMBER for _, use in first):
        for part in parts[1:]:
            later = _told_apart(part, len(names))
            if later:
                first = [
                    (name, _STRINGS if use == _STRINGS else _NUMBER) for name, use in zip(names, later, strict=True)
                ]
                break
    yield from first


def _told_apart(estimator: Any, columns: int) -> list[str] | None:
    """The dtypes of the values that an encoder, a filler of gaps or a vectorizer knows; None for anything else."""
    if takes_texts(estimator):
        return [_STRINGS] * columns
    categories = getattr(estimator, "categories_", None)
    if categories is not None and len(categories) == columns:
        return [_dtype(np.asarray(values)) for values in categories]
    fillers = np.asarray(getattr(estimator, "statistics_", ()))
    if fillers.dtype.kind == "O" and any(isinstance(value, str) for value in fillers):
        return [_STRINGS] * columns
    return None


def _chosen(columns: Any, names: Sequence[str]) -> list[str]:
    """The names of what an entry of a fitted ColumnTransformer takes."""
    if isinstance(columns, str):
        return [columns]
    if isinstance(columns, slice):
        bounds = [names.index(bound) if isinstance(bound, str) else bound for bound in (columns.start, columns.stop)]
        if isinstance(columns.stop, str):
            bounds[1] += 1  # scikit-learn takes the last one too where it is named
        return list(names[slice(bounds[0], bounds[1], columns.step)])
    array = np.atleast_1d(np.asarray(columns))
    if array.dtype.kind == "b":
        array = np.flatnonzero(array)
    return [names[int(column)] if array.dtype.kind in "iu" else str(column) for column in array]


def _inside(estimator: Any) -> Iterator[Any]:
    """`estimator` and all estimators that it holds."""
    yield estimator
    pending = list(vars(estimator).values())
    while pending:
        value = pending.pop()
        if isinstance(value, list | tuple):
            pending.extend(value)
        elif hasattr(value, "get_params") and not isinstance(value, type):
            yield from _inside(value)
