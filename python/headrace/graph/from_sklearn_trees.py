"""Imports scikit-learn's decision trees and what is made of them, deciding every split as scikit-learn does.

scikit-learn takes rows as float32 and compares them with double thresholds; here the thresholds are rounded down to
float32, which decides the same. NaN goes where the fitted tree says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headrace.errors import ModelError
from headrace.graph._onnx_ir import ir
from headrace.graph.trees import LEQ, Split, Tree, TreeGraph, class_outputs, float_output, round_down, two_class_outputs

_LEAF = -1  # a leaf's children in sklearn.tree._tree
_EULER_GAMMA = float(np.euler_gamma)

Array = np.ndarray[Any, np.dtype[np.float64]]


def converter(estimator: Any) -> Callable[[Any], ir.Model] | None:
    """What converts `estimator`, or None where it is of another kind (or has several targets)."""
    from sklearn import ensemble, tree

    forests = (
        tree.DecisionTreeClassifier, tree.DecisionTreeRegressor, tree.ExtraTreeClassifier, tree.ExtraTreeRegressor,
        ensemble.RandomForestClassifier, ensemble.RandomForestRegressor,
        ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor,
    )  # fmt: skip
    kind = type(estimator)  # a subclass may predict in its own way
    if kind in forests:
        single = getattr(estimator, "n_outputs_", 1) == 1
        return _forest if single and _has_plain_classes(estimator) else None
    if kind in (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor):
        from sklearn.dummy import DummyClassifier, DummyRegressor

        constant = getattr(estimator, "init_", None)
        starts_flat = constant == "zero" or isinstance(constant, DummyClassifier | DummyRegressor)
        return _boosting if starts_flat and _has_plain_classes(estimator) else None
    return _isolation if kind is ensemble.IsolationForest else None


def _has_plain_classes(estimator: Any) -> bool:
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return True
    kind = np.asarray(classes).dtype.kind
    return kind in "iubUS" or (kind == "O" and all(isinstance(label, str) for label in classes))


def _forest(source: Any) -> ir.Model:
    """The mean over the trees of their leaves: class shares, or values."""
    trees = [member.tree_ for member in getattr(source, "estimators_", [source])]
    classes = getattr(source, "classes_", None)

    def leaves(tree: Any) -> list[Any]:
        values: Array = tree.value[:, 0, :]
        if classes is None:
            return _rows_of(tree, values[:, 0])
        shares = values / values.sum(axis=1, keepdims=True)  # counts before scikit-learn 1.3
        return _rows_of(tree, shares[:, 1] if len(classes) == 2 else shares)

    targets = 1 if classes is None or len(classes) == 2 else len(classes)
    graph = TreeGraph(
        int(source.n_features_in_), [_tree(tree, leaves(tree), 0) for tree in trees], targets, aggregate="AVERAGE"
    )
    if classes is None:
        return float_output(graph, graph.scores, 1)
    outputs = two_class_outputs if len(classes) == 2 else class_outputs
    return outputs(graph, graph.scores, np.asarray(classes))


def _boosting(source: Any) -> ir.Model:
    """A start plus the learning rate times every tree, through the loss's link."""
    members = np.asarray(source.estimators_)
    rate, targets = float(source.learning_rate), members.shape[1]
    features = int(source.n_features_in_)
    start = np.asarray(source._raw_predict_init(np.zeros((1, features), dtype=np.float32)), dtype=float).reshape(-1)
    trees = [
        _tree(member.tree_, _rows_of(member.tree_, rate * member.tree_.value[:, 0, 0]), target)
        for stage in members
        for target, member in enumerate(stage)
    ]
    graph = TreeGraph(features, trees, targets, start.tolist())
    classes = getattr(source, "classes_", None)
    if classes is None:
        return float_output(graph, graph.scores, targets)
    if targets > 1:
        return class_outputs(graph, graph.op("Softmax", graph.scores, axis=1), np.asarray(classes))
    is_second = graph.op("GreaterOrEqual", graph.scores, graph.const(np.array(0, dtype=np.float32)))
    scores = graph.scores
    if source.loss == "exponential":
        scores = graph.op("Mul", scores, graph.const(np.array(2, dtype=np.float32)))
    return two_class_outputs(graph, graph.op("Sigmoid", scores), np.asarray(classes), is_second)


def _isolation(source: Any) -> ir.Model:
    """``label`` (1 inside, -1 outside), ``scores`` as decision_function gives them, and ``score_samples``."""
    trees = []
    for member, features in zip(source.estimators_, source.estimators_features_, strict=True):
        tree = member.tree_
        depths = _edges_above(tree) + np.array([_mean_path(int(count)) for count in tree.n_node_samples])
        trees.append(_tree(tree, _rows_of(tree, depths), 0, features))
    graph = TreeGraph(int(source.n_features_in_), trees, 1)
    # scikit-learn: score = -2 ** -(depth / normal), or -1/2 where there was one sample to learn from.
    normal = len(trees) * _mean_path(int(source.max_samples_))
    slope, shift = (-math.log(2) / normal, 0.0) if normal else (0.0, -math.log(2))
    depth = graph.op("Squeeze", graph.scores, graph.const(np.array([1], dtype=np.int64)))
    exponent = graph.op("Mul", depth, graph.const(np.array(slope, dtype=np.float32)))
    if shift:
        exponent = graph.op("Add", exponent, graph.const(np.array(shift, dtype=np.float32)))
    samples = graph.op("Neg", graph.op("Exp", exponent))
    scores = graph.op("Sub", samples, graph.const(np.array(source.offset_, dtype=np.float32)))
    outside = graph.op("Less", scores, graph.const(np.array(0, dtype=np.float32)))
    sides = [graph.const(np.array(side, dtype=np.int64)) for side in (-1, 1)]
    label = graph.op("Where", outside, *sides)
    return graph.finish(
        {
            "label": (label, ir.DataType.INT64, ["batch"]),
            "scores": (scores, ir.DataType.FLOAT, ["batch"]),
            "score_samples": (samples, ir.DataType.FLOAT, ["batch"]),
        }
    )


def _mean_path(samples: int) -> float:
    """The mean path length in an isolation tree of so many samples (Liu, Ting, Zhou 2008, equation 1)."""
    if samples <= 2:
        return float(samples == 2)
    return 2.0 * (math.log(samples - 1.0) + _EULER_GAMMA) - 2.0 * (samples - 1.0) / samples


def _edges_above(tree: Any) -> Array:
    """How many edges lie above each node; children come after their parents."""
    edges = np.zeros(tree.node_count)
    for node in np.flatnonzero(tree.children_left != _LEAF):
        edges[[tree.children_left[node], tree.children_right[node]]] = edges[node] + 1
    return edges


def _rows_of(tree: Any, values: Array) -> list[Any]:
    """The values of the leaves, in the order of the nodes."""
    rows: list[Any] = values[tree.children_left == _LEAF].tolist()
    return rows


def _tree(tree: Any, leaves: Sequence[Any], target: int, features: Any = None) -> Tree:
    """From the node arrays: ``x <= threshold`` goes left. `features` are the columns the tree was fitted on."""
    is_leaf = tree.children_left == _LEAF
    # Splits and leaves are each numbered in the arrays' order; a leaf is named ~number.
    names = np.where(is_leaf, ~(np.cumsum(is_leaf) - 1), np.cumsum(~is_leaf) - 1)
    columns = tree.feature if features is None else np.where(is_leaf, 0, np.asarray(features)[tree.feature])
    inner = np.flatnonzero(~is_leaf)
    if not len(leaves):
        raise ModelError("got a tree without leaves, expected at least one")
    parts = (
        columns[inner].tolist(),
        round_down(tree.threshold[inner].astype(np.float64)).tolist(),
        names[tree.children_left[inner]].tolist(),
        names[tree.children_right[inner]].tolist(),
        np.asarray(tree.missing_go_to_left)[inner].astype(bool).tolist(),
    )
    splits = [
        Split(feature, LEQ, threshold, left, right, nan_left)
        for feature, threshold, left, right, nan_left in zip(*parts, strict=True)
    ]
    return Tree(splits, leaves, target)
