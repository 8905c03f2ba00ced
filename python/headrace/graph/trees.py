"""Builds ONNX tree ensembles from the arrays that boosting libraries keep, deciding every split exactly as they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headrace.errors import ModelError
from headrace.graph._onnx_ir import ir
from headrace.graph.edit import add_constant

ML_DOMAIN = "ai.onnx.ml"
_OPSET, _ML_OPSET_PLAIN, _ML_OPSET_SETS = 18, 3, 5

# Splits that do not fit one comparison are written as several, and what lies below is then repeated.
_NODES_PER_TREE_MAX = 1 << 20

LEQ, LT, MEMBER = "BRANCH_LEQ", "BRANCH_LT", "BRANCH_MEMBER"
# nodes_modes of TreeEnsemble, from the ai.onnx.ml opset 5 specification.
_MODE_CODES = {LEQ: 0, LT: 1, MEMBER: 6}


@dataclass(frozen=True)
class Split:
    """One decision.

    Attributes:
        feature: The column it looks at.
        mode: `LEQ` (x <= threshold), `LT` (x < threshold) or `MEMBER` (x is one of `members`).
        threshold: A float32 number.
        yes: Where a true decision goes: another split's index, or ``~leaf``.
        no: Where a false decision goes, likewise.
        nan_is_yes: Where a NaN goes.
        members: For `MEMBER`, the categories.
    """

    feature: int
    mode: str
    threshold: float
    yes: int
    no: int
    nan_is_yes: bool
    members: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tree:
    """Splits (the first is the root; none for a tree that is one leaf), leaf values, and the output they add to.

    A leaf may have a sequence of values instead, for the outputs from `target` on.
    """

    splits: Sequence[Split]
    leaves: Sequence[float | Sequence[float]]
    target: int

    def weights(self, leaf: int) -> list[tuple[int, float]]:
        """(output, value) of a leaf, without values that change nothing."""
        values = self.leaves[leaf]
        if not isinstance(values, Sequence):
            return [(self.target, float(values))]
        kept = [(self.target + at, float(value)) for at, value in enumerate(values) if value != 0]
        return kept or [(self.target, 0.0)]


def round_down(thresholds: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The largest float32 at or below each threshold: ``x <= t`` is the same for it and any float32 x."""
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    return np.where(above, np.nextafter(rounded, np.float32(-np.inf)), rounded).astype(np.float32)


@dataclass
class _Columns:
    """The flattened nodes of all trees, a list per attribute."""

    tree: list[int] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    feature: list[int] = field(default_factory=list)
    mode: list[str] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    yes: list[int] = field(default_factory=list)
    no: list[int] = field(default_factory=list)
    nan_is_yes: list[int] = field(default_factory=list)
    leaf_tree: list[int] = field(default_factory=list)
    leaf_node: list[int] = field(default_factory=list)
    leaf_target: list[int] = field(default_factory=list)
    leaf_weight: list[float] = field(default_factory=list)


def _flatten(trees: Sequence[Tree]) -> _Columns:
    """Numbers each tree's nodes in pre-order, a true child right after its parent."""
    out = _Columns()
    for number, tree in enumerate(trees):
        next_id = 0
        # (split index or ~leaf, list to patch with the new node's id, position in that list)
        pending: list[tuple[int, list[int] | None, int]] = [(0 if tree.splits else ~0, None, 0)]
        while pending:
            at, patch, position = pending.pop()
            row, identity = len(out.tree), next_id
            next_id += 1
            if next_id > _NODES_PER_TREE_MAX:
                raise ModelError(
                    f"tree {number} has more than {_NODES_PER_TREE_MAX} nodes once its splits are written out"
                )
            if patch is not None:
                patch[position] = identity
            out.tree.append(number)
            out.node.append(identity)
            out.yes.append(0)
            out.no.append(0)
            if at < 0:
                out.feature.append(0)
                out.mode.append("LEAF")
                out.value.append(0.0)
                out.nan_is_yes.append(0)
                for target, weight in tree.weights(~at):
                    out.leaf_tree.append(number)
                    out.leaf_node.append(identity)
                    out.leaf_target.append(target)
                    out.leaf_weight.append(weight)
                continue
            split = tree.splits[at]
            out.feature.append(split.feature)
            out.mode.append(split.mode)
            out.value.append(float(split.threshold))
            out.nan_is_yes.append(int(split.nan_is_yes))
            pending.append((split.no, out.no, row))
            pending.append((split.yes, out.yes, row))
    return out


def _unshared(splits: Sequence[Split]) -> list[Split]:
    """`splits` in pre-order, with a copy of every split that has more than one parent."""
    out: list[Split] = []
    pending: list[tuple[int, int, str]] = [(0, -1, "")] if splits else []
    while pending:
        at, parent, side = pending.pop()
        if parent >= 0:
            child = len(out)
            out[parent] = replace(out[parent], yes=child) if side == "yes" else replace(out[parent], no=child)
        position = len(out)
        if position >= _NODES_PER_TREE_MAX:
            raise ModelError(f"a tree has more than {_NODES_PER_TREE_MAX} splits once they are written out")
        out.append(splits[at])
        pending += [
            (child, position, side) for child, side in ((splits[at].no, "no"), (splits[at].yes, "yes")) if child >= 0
        ]
    return out


class TreeGraph:
    """A graph of one float32 input ``x`` [batch, features] and a tree ensemble, to which post-processing is added.

    Args:
        features: How many columns the input has.
        trees: The trees, whose leaves are summed per target.
        targets: How many sums there are.
        base: What each sum starts from, or one number for all.
        before: Makes, from the input, what the trees look at.
        aggregate: "SUM", or "AVERAGE" of trees without sets.

    Attributes:
        scores: The sums, float32 [batch, targets].
    """

    def __init__(
        self,
        features: int,
        trees: Sequence[Tree],
        targets: int,
        base: Sequence[float] | None = None,
        before: Callable[[TreeGraph, ir.Value], ir.Value] | None = None,
        aggregate: str = "SUM",
    ) -> None:
        self.input = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", features]))
        sets = any(split.mode == MEMBER for tree in trees for split in tree.splits)
        trees = trees or [Tree([], [0.0], target) for target in range(targets)]  # an ensemble has to have one
        opsets = {"": _OPSET, ML_DOMAIN: _ML_OPSET_SETS if sets else _ML_OPSET_PLAIN}
        self.graph = ir.Graph([self.input], [], nodes=[], opset_imports=opsets, name="trees")
        x = self.input if before is None else before(self, self.input)
        if sets:
            assert aggregate == "SUM", "sets come from boosting, which sums"
            self.scores = self._with_sets(x, trees, targets, base)
        else:
            self.scores = self._plain(x, trees, targets, base, aggregate)

    def _plain(
        self, x: ir.Value, trees: Sequence[Tree], targets: int, base: Sequence[float] | None, aggregate: str
    ) -> ir.Value:
        columns = _flatten(trees)
        attributes: dict[str, Any] = {
            "n_targets": targets,
            "nodes_treeids": columns.tree,
            "nodes_nodeids": columns.node,
            "nodes_featureids": columns.feature,
            "nodes_modes": columns.mode,
            "nodes_values": columns.value,
            "nodes_truenodeids": columns.yes,
            "nodes_falsenodeids": columns.no,
            "nodes_missing_value_tracks_true": columns.nan_is_yes,
            "target_treeids": columns.leaf_tree,
            "target_nodeids": columns.leaf_node,
            "target_ids": columns.leaf_target,
            "target_weights": columns.leaf_weight,
            "post_transform": "NONE",
            "aggregate_function": aggregate,
        }
        if base is not None and any(base):
            attributes["base_values"] = [float(number) for number in base]
        return self.op("TreeEnsembleRegressor", x, domain=ML_DOMAIN, **attributes)

    def _with_sets(self, x: ir.Value, trees: Sequence[Tree], targets: int, base: Sequence[float] | None) -> ir.Value:
        """As TreeEnsemble of ai.onnx.ml 5, the first whose splits can test for membership in a set."""
        splits: list[Split] = []
        roots: list[int] = []
        leaf_weights: list[float] = []
        leaf_targets: list[int] = []
        children: list[tuple[tuple[int, int], ...]] = []
        for tree in trees:
            # A tree that is one leaf still needs a split: one whose two sides are that leaf.
            own = _unshared(tree.splits) or [Split(0, LEQ, 0.0, ~0, ~0, False)]
            first, first_leaf = len(splits), len(leaf_weights)
            roots.append(first)
            splits += own
            for leaf in range(len(tree.leaves)):
                ((target, weight),) = tree.weights(leaf)  # TreeEnsemble has one per leaf
                leaf_weights.append(weight)
                leaf_targets.append(target)
            children += [
                tuple((first_leaf + ~child, 1) if child < 0 else (first + child, 0) for child in (split.yes, split.no))
                for split in own
            ]
        members: list[float] = []
        for split in splits:
            if split.mode == MEMBER:
                members += [*split.members, float("nan")]
        scores = self.op(
            "TreeEnsemble",
            x,
            domain=ML_DOMAIN,
            n_targets=targets,
            aggregate_function=1,
            post_transform=0,
            tree_roots=roots,
            nodes_featureids=[split.feature for split in splits],
            nodes_modes=ir.tensor(np.array([_MODE_CODES[split.mode] for split in splits], dtype=np.uint8)),
            nodes_splits=ir.tensor(np.array([split.threshold for split in splits], dtype=np.float32)),
            nodes_truenodeids=[yes[0] for yes, _ in children],
            nodes_trueleafs=[yes[1] for yes, _ in children],
            nodes_falsenodeids=[no[0] for _, no in children],
            nodes_falseleafs=[no[1] for _, no in children],
            nodes_missing_value_tracks_true=[int(split.nan_is_yes) for split in splits],
            leaf_targetids=leaf_targets,
            leaf_weights=ir.tensor(np.array(leaf_weights, dtype=np.float32)),
            membership_values=ir.tensor(np.array(members, dtype=np.float32)),
        )
        if base is None or not any(base):
            return scores
        return self.op("Add", scores, self.const(np.array(base, dtype=np.float32)))

    def op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        """Appends a node and returns its output."""
        node = ir.node(op_type, list(inputs), attributes, domain=domain)
        self.graph.append(node)
        return node.outputs[0]

    def const(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """A constant."""
        return add_constant(self.graph, "const", array)

    def labels(self, index: ir.Value, classes: np.ndarray[Any, Any]) -> ir.Value:
        """The classes of these indices: int64 or string [batch]."""
        if classes.dtype.kind in "iub":
            table = self.const(classes.astype(np.int64))
        elif classes.dtype.kind in "OUS":
            texts = [str(label).encode() for label in classes]
            table = add_constant(self.graph, "classes", ir.StringTensor(texts, shape=ir.Shape([len(texts)])))
        else:
            raise ModelError(f"got classes of dtype {classes.dtype}, expected integers or strings")
        return self.op("Gather", table, index, axis=0)

    def finish(self, outputs: dict[str, tuple[ir.Value, ir.DataType, Sequence[int | str]]]) -> ir.Model:
        """The model with these outputs: name -> (value, dtype, dims)."""
        for name, (value, dtype, shape) in outputs.items():
            if value.is_graph_output():
                value = self.op("Identity", value)
            value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
            self.graph.outputs.append(value)
        return ir.Model(self.graph, ir_version=10)


def float_output(graph: TreeGraph, value: ir.Value, targets: int) -> ir.Model:
    """The model with one output ``prediction``: float32 [batch], or [batch, targets] where there are several."""
    if targets == 1:
        squeezed = graph.op("Squeeze", value, graph.const(np.array([1], dtype=np.int64)))
        return graph.finish({"prediction": (squeezed, ir.DataType.FLOAT, ["batch"])})
    return graph.finish({"prediction": (value, ir.DataType.FLOAT, ["batch", targets])})


def class_outputs(graph: TreeGraph, probabilities: ir.Value, classes: np.ndarray[Any, Any]) -> ir.Model:
    """The model with outputs ``label`` [batch] and ``probabilities`` float32 [batch, classes].

    The label is the class of the highest probability, the first of equals.

    Args:
        graph: What `probabilities` is part of.
        probabilities: [batch, classes].
        classes: The labels, in the order of the probabilities.
    """
    return _class_outputs(graph, graph.op("ArgMax", probabilities, axis=1, keepdims=0), probabilities, classes)


def two_class_outputs(
    graph: TreeGraph, second: ir.Value, classes: np.ndarray[Any, Any], is_second: ir.Value | None = None
) -> ir.Model:
    """The model with outputs ``label`` [batch] and ``probabilities`` float32 [batch, 2].

    Args:
        graph: What `second` is part of.
        second: [batch, 1], the probability of the second class.
        classes: The two labels, or one, where the training data had no other: then every label is that.
        is_second: bool [batch, 1], which rows are of the second class; None for those where it is the more probable.
    """
    first = graph.op("Sub", graph.const(np.array(1, dtype=np.float32)), second)
    if is_second is None:
        is_second = graph.op("Greater", second, first)
    index = graph.op("Squeeze", is_second, graph.const(np.array([1], dtype=np.int64)))
    index = graph.op("Cast", index, to=ir.DataType.INT64.value)
    return _class_outputs(graph, index, graph.op("Concat", first, second, axis=1), np.resize(classes, 2))


def _class_outputs(
    graph: TreeGraph, index: ir.Value, probabilities: ir.Value, classes: np.ndarray[Any, Any]
) -> ir.Model:
    dtype = ir.DataType.STRING if classes.dtype.kind in "OUS" else ir.DataType.INT64
    return graph.finish(
        {
            "label": (graph.labels(index, classes), dtype, ["batch"]),
            "probabilities": (probabilities, ir.DataType.FLOAT, ["batch", len(classes)]),
        }
    )
