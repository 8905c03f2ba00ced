"""Reads a Model's signature off its graph."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import ModelError
from headrace.graph._onnx_ir import ir
from headrace.graph.dims import names
from headrace.signature import Dim, Signature, TensorSpec

_DTYPES = {
    ir.DataType.BOOL: "bool",
    ir.DataType.UINT8: "uint8",
    ir.DataType.UINT16: "uint16",
    ir.DataType.UINT32: "uint32",
    ir.DataType.UINT64: "uint64",
    ir.DataType.INT8: "int8",
    ir.DataType.INT16: "int16",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.STRING: "string",
}

# The one dim of an output whose rank is not known before it is computed.
UNKNOWN_RANK = "..."


def dtype_name(dtype: ir.DataType) -> str | None:
    """Headrace's name of an ONNX dtype, or None where a Request cannot hold it."""
    return _DTYPES.get(dtype)


def name_dims(graph: ir.Graph) -> None:
    """Names every unnamed dim of the graph's inputs ``<input>_<axis>``, so that each symbolic dim has a stable name."""
    taken = {dim.value for value in graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)}
    for value in graph.inputs:
        if value.shape is None:
            continue
        shape: list[int | str | None] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                # A negative dim_value is how some exporters say "any".
                shape.append(dim if dim >= 0 else _free(f"{value.name}_{axis}", taken))
            else:
                shape.append(dim.value if dim.value else _free(f"{value.name}_{axis}", taken))
        value.shape = ir.Shape(shape)


def _free(stem: str, taken: set[str | None]) -> str:
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def signature_of(graph: ir.Graph, where: str, declared: Sequence[ir.Shape | None] = ()) -> Signature:
    """The signature of `graph`, naming `where` in errors.

    `declared` are the shapes that the model stated of its outputs. They fill in what its ops do not tell.

    Raises:
        ModelError: An input or output is not a tensor of known rank and of a dtype that Requests can hold.
    """
    taken: set[str | None] = set()
    inputs = tuple(_spec(value, "input", where, taken) for value in graph.inputs)
    taken |= {dim for spec in inputs for dim in spec.dims if isinstance(dim, str)}
    known = set(taken)
    for value, stated in zip(graph.outputs, declared, strict=False):
        if value.producer() is not None:
            value.shape = _told(value.shape, stated, known)
    return Signature(inputs, tuple(_spec(value, "output", where, taken) for value in graph.outputs))


def _told(found: ir.Shape | None, stated: ir.Shape | None, known: set[str | None]) -> ir.Shape | None:
    """Per axis what was found, if a number or in the inputs' names, else what the model states, else either."""
    if found is None or stated is None or len(found) != len(stated):
        return stated if found is None else found

    def dim(axis: int) -> int | str | None:
        ours, theirs = found[axis], stated[axis]
        if isinstance(ours, int) or (ours.value is not None and names(ours.value) <= known):
            return ours if isinstance(ours, int) else ours.value
        if isinstance(theirs, int):
            # A name that is not of the inputs tells more than a number that the ops do not confirm.
            return theirs if theirs >= 0 and _is_blank(ours) else ours.value
        return ours.value if _is_blank(theirs) else theirs.value

    return ir.Shape([dim(axis) for axis in range(len(found))])


def _is_blank(dim: ir.SymbolicDim) -> bool:
    return not dim.value or dim.value.startswith("unk__")


def _spec(value: ir.Value, kind: str, where: str, taken: set[str | None]) -> TensorSpec:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise ModelError(f"{where}: {kind} {value.name!r} is a {value.type}, expected a dense tensor")
    name = dtype_name(value.dtype) if value.dtype is not None else None
    if name is None:
        got = "no dtype" if value.dtype is None else f"dtype {value.dtype.name}"
        raise ModelError(f"{where}: {kind} {value.name!r} has {got}, expected one of {', '.join(_DTYPES.values())}")
    if value.shape is None:
        if kind == "input":
            raise ModelError(f"{where}: input {value.name!r} has no shape, expected one of known rank")
        return TensorSpec(str(value.name), name, (UNKNOWN_RANK,))
    dims: list[Dim] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            dims.append(dim)
        elif dim.value and not _is_blank(dim):
            dims.append(dim.value)
        else:
            dims.append(_free(f"{value.name}_{axis}", taken))
    return TensorSpec(str(value.name), name, tuple(dims))
