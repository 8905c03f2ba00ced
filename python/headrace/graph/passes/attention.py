"""Fuses MatMul - scale - mask - Softmax - MatMul, and the head split and merge around it, into Attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim
from headrace.graph.edit import (
    HEADRACE_DOMAIN,
    add_constant,
    attribute,
    constant,
    derived_tensor,
    dims,
    fused,
    input_at,
    insert_before,
    ints,
    is_constant,
    is_op,
    is_used,
    producer,
    replace_node,
    same_rank,
    scalar,
    single_use,
)


@dataclass
class _Scores:
    """What the Softmax is taken of: ``(q @ k^T) * scale``, masked."""

    query: ir.Value
    key_t: ir.Value
    scale: float
    mask: ir.Value | None = None
    inverted: bool = False  # the mask says True where a key is excluded


def fuse_attention(graph: ir.Graph) -> bool:
    """Makes Attention nodes, in the layout that leaves the fewest Transposes.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if is_op(node, "Softmax") and node.outputs[0].uses() and node.outputs[0].dtype == ir.DataType.FLOAT:
            changed |= _fuse(graph, node)
        elif is_op(node, "Attention") and is_used(node) and node.outputs[0].dtype == ir.DataType.FLOAT:
            changed |= _map_onnx_attention(graph, node)
    return changed


def _map_onnx_attention(graph: ir.Graph, node: ir.Node) -> bool:
    """ONNX's own Attention (opset 23), where it has no cache, no causal mask, no softcap and one output."""
    if any(value is not None for value in node.inputs[4:]) or any(output.uses() for output in node.outputs[1:]):
        return False
    if any(output.is_graph_output() for output in node.outputs[1:]):
        return False
    plain = {"is_causal": 0, "softcap": 0.0, "softmax_precision": 1, "left_window_size": -1, "right_window_size": -1}
    if any(attribute(node, name, default) != default for name, default in plain.items()):
        return False
    if not set(node.attributes) <= {*plain, "scale", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode"}:
        return False
    query, key, value = (dims(x) for x in node.inputs[:3])
    if query is None or key is None or key != value or len(query) != len(key):
        return False
    if len(query) == 4:
        layout, heads, kv_heads, depth = "bhsd", query[1], key[1], query[3]
        rows, keys, same = query[2], key[2], query[3] == key[3]
    else:
        layout, heads, kv_heads = "bsd", attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
        if len(query) != 3 or not isinstance(query[2], int) or not isinstance(key[2], int) or not heads or not kv_heads:
            return False
        rows, keys, depth = query[1], key[1], query[2] // heads
        same = query[2] * kv_heads == key[2] * heads
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or not isinstance(depth, int) or heads % kv_heads:
        return False
    mask = input_at(node, 3)
    shape = dims(mask) if mask is not None else ()
    if not same or query[0] != key[0] or shape is None or not _broadcasts(shape, (query[0], heads, rows, keys)):
        return False
    if shape and shape[-1] != keys:  # ONNX fills a short mask up, it does not broadcast its last axis
        return False
    scale = attribute(node, "scale")
    attributes = {
        "num_heads": heads,
        "kv_heads": kv_heads,
        "scale": float(scale if scale is not None else 1.0 / math.sqrt(depth)),
        "guard_nan": int(mask is not None),  # by its specification a row without keys is 0
        "layout": layout,
    }
    replace_node(graph, node.outputs[0], fused("Attention", [*node.inputs[:3], mask], attributes))
    return True


def _broadcasts(mask: tuple[Dim, ...], full: tuple[Dim, ...]) -> bool:
    if len(mask) > 4:
        return False
    return all(dim in (1, whole) for dim, whole in zip(reversed(mask), reversed(full), strict=False))


def _fuse(graph: ir.Graph, softmax: ir.Node) -> bool:
    shape = softmax.outputs[0].shape
    if shape is None or len(shape) != 4 or attribute(softmax, "axis", -1) not in (-1, 3):
        return False
    scores = _scores(softmax.inputs[0])
    weights, guarded = _nan_guard(softmax.outputs[0])
    product = single_use(weights)
    if scores is None or product is None or not is_op(product, "MatMul") or product.inputs[0] is not weights:
        return False
    value = product.inputs[1]
    query_dims, key_dims, value_dims = dims(scores.query), dims(scores.key_t), dims(value)
    if value is None or query_dims is None or key_dims is None or value_dims is None:
        return False
    if not _fits(query_dims, key_dims, value_dims, dims(scores.mask) if scores.mask is not None else ()):
        return False
    mask = scores.mask
    if mask is not None and scores.inverted:
        negated = ir.node("Not", [mask])
        negated.outputs[0].type, negated.outputs[0].shape = mask.type, mask.shape
        insert_before(graph, product.outputs[0], [negated])
        mask = negated.outputs[0]
    _emit(graph, product.outputs[0], scores, value, mask, guarded)
    return True


def _fits(query: tuple[Dim, ...], key_t: tuple[Dim, ...], value: tuple[Dim, ...], mask: tuple[Dim, ...] | None) -> bool:
    """Whether these are [B,H,Sq,D], [B,H,D,Sk], [B,H,Sk,D] and a mask that broadcasts to [B,H,Sq,Sk]."""
    if not len(query) == len(key_t) == len(value) == 4 or mask is None:
        return False
    batch, heads, rows, depth = query
    keys = key_t[3]
    if not isinstance(heads, int) or not isinstance(depth, int):
        return False
    if key_t[:3] != (batch, heads, depth) or value != (batch, heads, keys, depth):
        return False
    return _broadcasts(mask, (batch, heads, rows, keys))


def _scores(value: ir.Value | None) -> _Scores | None:
    if value is None or single_use(value) is None:
        return None
    add, where = producer(value, "Add"), producer(value, "Where")
    if add is not None:
        for score, mask in ((add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0])):
            found = _scaled_product(score)
            if found is not None and mask is not None and mask.dtype == ir.DataType.FLOAT:
                found.mask = mask
                return found
        return None
    if where is not None:
        condition, kept, other = where.inputs
        for score, fill, inverted in ((kept, other, False), (other, kept, True)):
            found = _scaled_product(score)
            # Only -inf makes a bool mask the same thing: a finite fill still counts where every key is excluded.
            if found is not None and condition is not None and scalar(fill) == -math.inf:
                found.mask, found.inverted = condition, inverted
                return found
        return None
    return _scaled_product(value)


def _scaled_product(value: ir.Value | None) -> _Scores | None:
    if value is None or single_use(value) is None:
        return None
    value, scale = _unscaled(value)
    product = producer(value, "MatMul")
    if product is None or single_use(value) is None or product.inputs[0] is None or product.inputs[1] is None:
        return None
    query, query_scale = _unscaled(product.inputs[0])
    key_t, key_scale = _unscaled(product.inputs[1])
    return _Scores(query, key_t, scale * query_scale * key_scale)


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """`value` without the multiplication or division by one number that made it, and that factor."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    left, right = node.inputs
    if node.op_type == "Mul" and left is not None and right is not None:
        for operand, factor in ((left, right), (right, left)):
            number = scalar(factor)
            if number is not None and _rank_at_most(factor, operand):
                return operand, number
    if node.op_type == "Div" and left is not None and right is not None:
        number = scalar(right)
        if number and _rank_at_most(right, left):
            return left, 1.0 / number
    return value, 1.0


def _rank_at_most(factor: ir.Value, operand: ir.Value) -> bool:
    return factor.shape is not None and operand.shape is not None and len(factor.shape) <= len(operand.shape)


def _nan_guard(weights: ir.Value) -> tuple[ir.Value, bool]:
    """Looks for ``Where(IsNaN(p), 0, p)`` after the Softmax: what the guard gives, or `weights` itself."""
    uses = [use.node for use in weights.uses()]
    test = next((node for node in uses if is_op(node, "IsNaN")), None)
    where = next((node for node in uses if is_op(node, "Where")), None)
    if len(uses) != 2 or test is None or where is None or weights.is_graph_output():
        return weights, False
    same = where.inputs[0] is test.outputs[0] and where.inputs[2] is weights and scalar(where.inputs[1]) == 0.0
    same = same and same_rank(where.outputs[0], weights)
    return (where.outputs[0], True) if same and single_use(test.outputs[0]) is where else (weights, False)


# ---- heads ----


def _split_source(value: ir.Value | None, perm: list[int]) -> ir.Value | None:
    """The [B, S, H*D] that `value` is a head-split view of: Transpose(Reshape(source, [B, S, H, D]), perm)."""
    transpose = producer(value, "Transpose")
    if transpose is None or list(attribute(transpose, "perm", ())) != perm:
        return None
    return _unsplit(transpose.inputs[0])


def _unsplit(value: ir.Value | None) -> ir.Value | None:
    reshape = producer(value, "Reshape")
    source = reshape.inputs[0] if reshape is not None else None
    split, whole = dims(value), dims(source)
    if source is None or split is None or whole is None or len(split) != 4 or len(whole) != 3:
        return None
    heads, depth = split[2:]
    if not isinstance(heads, int) or not isinstance(depth, int) or whole != (*split[:2], heads * depth):
        return None
    return source


def _key_source(key_t: ir.Value) -> ir.Value | None:
    """The [B, S, H*D] behind a transposed key, however the two Transposes were merged."""
    source = _split_source(key_t, [0, 2, 3, 1])
    if source is not None:
        return source
    swap = producer(key_t, "Transpose")
    if swap is None or list(attribute(swap, "perm", ())) != [0, 1, 3, 2]:
        return None
    return _split_source(swap.inputs[0], [0, 2, 1, 3])


def _merge_output(output: ir.Value) -> ir.Value | None:
    """The [B, S, H*D] that `output` [B, H, S, D] is merged into, if that is all it is used for."""
    transpose = single_use(output)
    if not is_op(transpose, "Transpose") or transpose is None or list(attribute(transpose, "perm", ())) != [0, 2, 1, 3]:
        return None
    reshape = single_use(transpose.outputs[0])
    if not is_op(reshape, "Reshape") or reshape is None:
        return None
    split, merged = dims(transpose.outputs[0]), dims(reshape.outputs[0])
    if split is None or merged is None or not isinstance(split[2], int) or not isinstance(split[3], int):
        return None
    return reshape.outputs[0] if merged == (*split[:2], split[2] * split[3]) else None


def _emit(
    graph: ir.Graph, output: ir.Value, scores: _Scores, value: ir.Value, mask: ir.Value | None, guarded: bool
) -> None:
    shape = dims(scores.query)
    assert shape is not None
    attributes = {
        "num_heads": shape[1],
        "kv_heads": shape[1],
        "scale": float(scores.scale),
        "guard_nan": int(guarded),
    }
    query, key, val = (
        _split_source(scores.query, [0, 2, 1, 3]),
        _key_source(scores.key_t),
        _split_source(value, [0, 2, 1, 3]),
    )
    merged = _merge_output(output)
    if query is not None and key is not None and val is not None and merged is not None:
        node = fused("Attention", [query, key, val, mask], {**attributes, "layout": "bsd"})
        replace_node(graph, merged, node)
        return
    key_heads = _key_heads(graph, output, scores.key_t)
    node = fused("Attention", [scores.query, key_heads, value, mask], {**attributes, "layout": "bhsd"})
    replace_node(graph, output, node)


def _key_heads(graph: ir.Graph, before: ir.Value, key_t: ir.Value) -> ir.Value:
    """The key as [B, H, S, D]: from before its Transpose where there is one, else transposed back."""
    swap = producer(key_t, "Transpose")
    if swap is not None and swap.inputs[0] is not None and list(attribute(swap, "perm", ())) == [0, 1, 3, 2]:
        return swap.inputs[0]
    source, perm = key_t, [0, 1, 3, 2]
    if swap is not None and swap.inputs[0] is not None and list(attribute(swap, "perm", ())) == [0, 2, 3, 1]:
        source, perm = swap.inputs[0], [0, 2, 1, 3]
    back = ir.node("Transpose", [source], {"perm": perm})
    shape = dims(key_t)
    assert shape is not None
    back.outputs[0].type, back.outputs[0].shape = key_t.type, ir.Shape([shape[0], shape[1], shape[3], shape[2]])
    insert_before(graph, before, [back])
    return back.outputs[0]


# ---- one projection for query, key and value ----


def merge_qkv(graph: ir.Graph) -> bool:
    """Gives Attention its query, key and value as one tensor where one Linear can make all three.

    Three Linears of the same input become one with concatenated weights; a Split of one tensor is undone.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if is_op(node, "Attention", domain=HEADRACE_DOMAIN) and attribute(node, "layout") == "bsd":
            changed |= _merge_split(graph, node) or _merge_linears(graph, node)
    return changed


def _with_qkv(graph: ir.Graph, node: ir.Node, whole: ir.Value) -> bool:
    attributes = {**node.attributes, "layout": ir.AttrString("layout", "qkv")}
    replace_node(graph, node.outputs[0], fused("Attention", [whole, None, None, input_at(node, 3)], attributes))
    return True


def _merge_split(graph: ir.Graph, node: ir.Node) -> bool:
    split = producer(node.inputs[0], "Split")
    if split is None or len(split.outputs) != 3 or list(node.inputs[:3]) != list(split.outputs):
        return False
    whole, part = dims(split.inputs[0]), [dims(output) for output in split.outputs]
    if split.inputs[0] is None or whole is None or attribute(split, "axis", 0) not in (-1, len(whole) - 1):
        return False
    if any(shape is None or shape != part[0] for shape in part):
        return False
    sizes = ints(input_at(split, 1))
    return (sizes is None or len(set(sizes)) == 1) and _with_qkv(graph, node, split.inputs[0])


def _merge_linears(graph: ir.Graph, node: ir.Node) -> bool:
    linears = [producer(value, "Linear", domain=HEADRACE_DOMAIN) for value in node.inputs[:3]]
    parts = [linear for linear in linears if linear is not None]
    if len(parts) != 3 or len({linear.inputs[0] for linear in parts}) != 1 or len(set(parts)) != 3:
        return False
    for linear in parts:
        if attribute(linear, "activation") != "none" or input_at(linear, 3) is not None:
            return False
        if single_use(linear.outputs[0]) is not node:
            return False
    weights = [linear.inputs[1] for linear in parts if linear.inputs[1] is not None]
    shapes = [weight.shape.numpy() for weight in weights if weight.shape is not None]
    biases = [input_at(linear, 2) for linear in parts]
    if len(shapes) != 3 or len(set(shapes)) != 1 or len({bias is None for bias in biases}) != 1:
        return False
    if not all(is_constant(bias) for bias in biases if bias is not None):
        return False
    rows, columns = shapes[0]
    packed = derived_tensor(ir.DataType.FLOAT, [rows, 3 * columns], weights, lambda *w: np.concatenate(w, axis=1))
    weight = add_constant(graph, f"{weights[0].name}_qkv", packed)
    bias = None
    kept = [bias_part for bias_part in biases if bias_part is not None]
    if kept:
        together = np.concatenate([np.asarray(constant(part, 1 << 30)) for part in kept])
        bias = add_constant(graph, f"{kept[0].name}_qkv", together)
    whole = fused("Linear", [parts[0].inputs[0], weight, bias], {"activation": "none"})
    output, shape = whole.outputs[0], dims(parts[0].outputs[0])
    output.type = parts[0].outputs[0].type
    output.shape = None if shape is None else ir.Shape([*shape[:-1], 3 * columns])
    graph.insert_before(node, whole)
    return _with_qkv(graph, node, output)
