"""Reads what QuantizeLinear and DequantizeLinear say: scales, zero points, and the integers behind constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import add_constant, attribute, constant, derived_tensor, input_at, producer, static_dims

Array = np.ndarray[Any, Any]

BYTES = (ir.DataType.UINT8, ir.DataType.INT8)

# Scales and zero points: one per channel at most.
_VECTOR_BYTES_MAX = 1 << 22


@dataclass(frozen=True)
class Quantization:
    """How a tensor of bytes stands for real numbers: ``real = (byte - zero) * scale``, one scale for all of it."""

    scale: float
    zero: int
    dtype: ir.DataType

    def attributes(self, prefix: str) -> dict[str, ir.Attr]:
        """The attributes ``<prefix>_scale``, ``<prefix>_zero_point`` and ``<prefix>_dtype``."""
        return {
            f"{prefix}_scale": ir.AttrFloat32(f"{prefix}_scale", self.scale),
            f"{prefix}_zero_point": ir.AttrInt64(f"{prefix}_zero_point", self.zero),
            f"{prefix}_dtype": ir.AttrString(f"{prefix}_dtype", self.dtype.name.lower()),
        }


@dataclass(frozen=True)
class QuantizedConstant:
    """A constant of integers less their zero points.

    Attributes:
        value: The integers: int8, or int16 where int8 cannot hold them.
        scales: float32, one per index of `axis`, or a single one.
        axis: The axis that the scales run along; None for a single scale.
    """

    value: ir.Value
    scales: Array
    axis: int | None


def quantization_of(node: ir.Node, dtype: ir.DataType | None, at: int = 1) -> Quantization | None:
    """What a QuantizeLinear, DequantizeLinear or QLinear op says of a tensor of bytes, or None where it is another.

    Args:
        node: The op.
        dtype: The tensor's dtype.
        at: Which of its inputs is the scale; the zero point follows.
    """
    scale, zero = constant(node.inputs[at]), input_at(node, at + 1)
    if dtype not in BYTES or scale is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    zeros = constant(zero)
    if zero is not None and (zeros is None or zeros.size != 1):
        return None
    step = float(scale.reshape(()))
    if not (np.isfinite(step) and step > 0) or attribute(node, "block_size", 0):
        return None
    return Quantization(step, 0 if zeros is None else int(zeros.reshape(())), dtype)


def dequantized(value: ir.Value | None) -> tuple[ir.Value, Quantization] | None:
    """The bytes that `value` is made of by a DequantizeLinear, or None."""
    node = producer(value, "DequantizeLinear")
    if node is None or node.inputs[0] is None or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    found = quantization_of(node, node.inputs[0].dtype)
    return None if found is None else (node.inputs[0], found)


def quantized_as(node: ir.Node | None) -> Quantization | None:
    """What a QuantizeLinear of float32 turns it into, or None for any other node."""
    if node is None or node.domain != "" or node.op_type != "QuantizeLinear":
        return None
    if node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT:
        return None
    return quantization_of(node, node.outputs[0].dtype)


def quantized_constant(graph: ir.Graph, value: ir.Value | None) -> QuantizedConstant | None:
    """The integers that the constant `value` is made of by a DequantizeLinear, or None."""
    node = producer(value, "DequantizeLinear")
    if node is None or attribute(node, "block_size", 0):
        return None
    stored = _stored(graph, node.inputs[0])
    return constant_integers(graph, stored, node.inputs[1], input_at(node, 2), attribute(node, "axis", 1))


def constant_integers(
    graph: ir.Graph, stored: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None, axis: int
) -> QuantizedConstant | None:
    """The constant `stored` less its zero points; `axis` is the one that several scales run along."""
    scales, zeros = constant(scale, _VECTOR_BYTES_MAX), constant(zero, _VECTOR_BYTES_MAX)
    if stored is None or stored.const_value is None or scales is None or scales.dtype != np.float32:
        return None
    if (zero is not None and zeros is None) or not (np.isfinite(scales).all() and (scales > 0).all()):
        return None
    shape = static_dims(stored.const_value)
    along = None if scales.size == 1 else axis % max(len(shape), 1)
    if along is not None and (scales.ndim != 1 or not shape or scales.size != shape[along]):
        return None
    zeros = np.zeros(1, dtype=np.int64) if zeros is None else zeros.reshape(-1).astype(np.int64)
    centred = _centred(graph, stored, zeros, along)
    return None if centred is None else QuantizedConstant(centred, scales.reshape(-1), along)


def _stored(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    """The constant integers that `value` is, or that a QuantizeLinear makes of constant floats."""
    if value is None:
        return None
    if value.const_value is not None:
        return value
    node = producer(value, "QuantizeLinear")
    if node is None or node.inputs[0] is None or node.inputs[0].const_value is None or value.dtype not in BYTES:
        return None
    scales, zeros = constant(node.inputs[1], _VECTOR_BYTES_MAX), constant(input_at(node, 2), _VECTOR_BYTES_MAX)
    floats = node.inputs[0].const_value
    if scales is None or floats.dtype != ir.DataType.FLOAT or attribute(node, "block_size", 0):
        return None
    shape = static_dims(floats)
    spread = [1] * len(shape)
    if scales.size > 1:
        spread[attribute(node, "axis", 1) % len(shape)] = scales.size
    step = scales.reshape(spread)
    zero: Array = np.zeros(1, dtype=np.int64) if zeros is None else zeros.astype(np.int64)
    offset = zero.reshape(spread) if zero.size > 1 else zero.reshape(())
    numpy_dtype = value.dtype.numpy()
    limits = np.iinfo(numpy_dtype)

    def quantize(array: Array) -> Array:
        return np.asarray(np.clip(np.rint(array / step) + offset, limits.min, limits.max), dtype=numpy_dtype)

    tensor = derived_tensor(value.dtype, shape, [node.inputs[0]], quantize)
    return add_constant(graph, f"{value.name}_quantized", tensor)


def _centred(graph: ir.Graph, stored: ir.Value, zeros: Array, axis: int | None) -> ir.Value | None:
    """`stored` less its zero points, as int8 where that holds it, else as int16; None where not even that does."""
    tensor = stored.const_value
    assert tensor is not None
    if tensor.dtype == ir.DataType.INT8 and not zeros.any():
        return stored
    if tensor.dtype not in BYTES:
        return None
    shape = static_dims(tensor)
    spread = [1] * len(shape)
    if zeros.size > 1:
        if axis is None or zeros.size != shape[axis]:
            return None
        spread[axis] = zeros.size
    offset = zeros.reshape(spread).astype(np.int16) if shape else zeros.reshape(()).astype(np.int16)
    middle = 128 if tensor.dtype == ir.DataType.UINT8 else 0
    fits = bool((zeros == middle).all())
    if not fits:
        numbers = tensor.numpy().astype(np.int16) - offset
        fits = numbers.size == 0 or (int(numbers.min()) >= -128 and int(numbers.max()) <= 127)
    dtype, kept = (ir.DataType.INT8, np.int8) if fits else (ir.DataType.INT16, np.int16)
    return add_constant(
        graph,
        f"{stored.name}_centred",
        derived_tensor(dtype, shape, [stored], lambda array: (array.astype(np.int16) - offset).astype(kept)),
    )


def turned(graph: ir.Graph, found: QuantizedConstant) -> QuantizedConstant:
    """A constant matrix and its scales transposed."""
    tensor = found.value.const_value
    assert tensor is not None
    rows, columns = static_dims(tensor)
    transposed: Callable[[Array], Array] = lambda array: array.T  # noqa: E731
    value = add_constant(
        graph, f"{found.value.name}_t", derived_tensor(tensor.dtype, [columns, rows], [found.value], transposed)
    )
    return QuantizedConstant(value, found.scales, None if found.axis is None else 1 - found.axis)


def bias_in_steps(
    graph: ir.Graph, value: ir.Value | None, x_scale: float, scales: Array, width: int
) -> ir.Value | None:
    """A constant bias of shape [width] as int32 in steps of ``x_scale * scales``, or as float32; None for any other."""
    if value is None:
        return None
    if value.const_value is not None:
        tensor = value.const_value
        return value if tensor.dtype == ir.DataType.FLOAT and static_dims(tensor) == (width,) else None
    node = producer(value, "DequantizeLinear")
    if node is None:
        return None
    stored, steps, zeros = constant(node.inputs[0], _VECTOR_BYTES_MAX), constant(node.inputs[1]), input_at(node, 2)
    if stored is None or stored.shape != (width,) or steps is None or steps.size not in (1, width):
        return None
    offsets = constant(zeros)
    if zeros is not None and (offsets is None or offsets.size not in (1, width)):
        return None
    numbers = stored.astype(np.int64) - (0 if offsets is None else offsets.reshape(-1).astype(np.int64))
    expected = x_scale * scales.astype(np.float64)
    steps = steps.reshape(-1).astype(np.float64)
    name = f"{value.name}_bias"
    # Whoever wrote the model rounded the product of the scales to float32.
    if stored.dtype == np.int32 and np.allclose(steps, expected, rtol=3e-7, atol=0.0):
        return add_constant(graph, name, np.clip(numbers, -(2**31), 2**31 - 1).astype(np.int32))
    return add_constant(graph, name, (numbers * steps).astype(np.float32))
