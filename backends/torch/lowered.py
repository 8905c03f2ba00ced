"""Lower precision: products of matrices in bfloat16, everything between them in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from headrace.backends.torch.executable import BF16

from headrace.graph.precision import assign
from headrace.graph.script import Step
from headrace.model import Model

Translate = Callable[[ir.Node, int], Step]

# The inputs of each op that a product in bfloat16 reads; what is added to it afterwards stays as it is.
_READS: dict[str, tuple[int, ...]] = {"Linear": (0, 1), "FusedConv": (0, 1, 2), "Attention": (0, 1, 2)}


def lowering(model: Model, precision: str, translate: Translate) -> tuple[Translate, list[str]]:
    """`translate`, with the nodes in bfloat16 that a Plan of `precision` lowers, and what the plan should say of it.

    Which nodes these are, and which values are held as bfloat16, is as on the native backend.
    """
    if precision == "fp32":
        return translate, []
    precisions = assign(model.graph.graph, precision)

    def lowered(node: ir.Node, opset: int) -> Step:
        step = translate(node, opset)
        if node not in precisions.nodes:
            return step
        dtype = torch.bfloat16 if node.outputs[0] in precisions.narrow else torch.float32
        reads = _READS[node.op_type]
        constants = {at: BF16 for at in reads if at < len(node.inputs) and _is_constant(node.inputs[at])}
        return Step(_in_bfloat16(step.function, reads, dtype), step.reads | constants)

    return lowered, [precisions.summary(len(list(model.graph.graph)))]


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _in_bfloat16(function: Callable[..., Any], reads: tuple[int, ...], dtype: torch.dtype) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        narrowed = (x.to(torch.bfloat16) if x is not None and at in reads else x for at, x in enumerate(inputs))
        return function(*narrowed).to(dtype)

    return run
