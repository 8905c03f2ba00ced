"""Which convolutions of a graph compute by Winograd's minimal filtering, in tiles of how many pixels.

It takes fewer multiplications than the sums as they are written, and rounds otherwise: a plan option, off by default.
"""

from __future__ import annotations

import math

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import HEADRACE_DOMAIN, attribute, dims, is_op, static_dims

TILES = (2, 4)

# With fewer channels than these the transforms take longer than the multiplications that they save.
_CHANNELS_MIN = 16

# What reading a weight from memory costs, in multiplications.
_WEIGHT_COST = 8


def assign_winograd(graph: ir.Graph) -> dict[ir.Node, int]:
    """The tile of every convolution of `graph` that gains by Winograd: m for m x m pixels.

    Args:
        graph: An optimised graph; it is not changed.
    """
    tiles = {node: _best_tile(node) for node in graph if is_op(node, "FusedConv", domain=HEADRACE_DOMAIN)}
    return {node: tile for node, tile in tiles.items() if tile is not None}


def _best_tile(node: ir.Node) -> int | None:
    weight = node.inputs[1]
    shape = static_dims(weight.const_value) if weight is not None and weight.const_value is not None else ()
    if len(shape) != 4 or shape[2:] != (3, 3) or min(shape[:2]) < _CHANNELS_MIN:
        return None
    if attribute(node, "layout", "nchw") != "nhwc" or attribute(node, "group", 1) != 1:
        return None
    if any(step != 1 for name in ("strides", "dilations") for step in attribute(node, name, ())):
        return None
    y = dims(node.outputs[0])
    if y is None or not all(isinstance(length, int) for length in y[1:3]):
        return max(TILES)
    height, width = int(y[1]), int(y[2])

    def cost(tile: int | None) -> int:
        """Multiplications of one image for a pair of channels, and its weights."""
        if tile is None:
            return 9 * (height * width + _WEIGHT_COST)
        points = (tile + 2) ** 2
        return points * (math.ceil(height / tile) * math.ceil(width / tile) + _WEIGHT_COST)

    candidates: tuple[int | None, ...] = (None, *TILES)
    return min(candidates, key=cost)
