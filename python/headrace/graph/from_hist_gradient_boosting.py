"""Imports scikit-learn's HistGradientBoosting models, whose trees skl2onnx does not convert in every version."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.errors import ModelError
from headrace.graph._onnx_ir import ir
from headrace.graph.trees import (
    LEQ,
    MEMBER,
    Split,
    Tree,
    TreeGraph,
    class_outputs,
    float_output,
    round_down,
    two_class_outputs,
)

# By the loss's link: how raw sums become predictions (sklearn/_loss/link.py).
_IDENTITY, _LOG, _LOGIT, _MULTINOMIAL = "IdentityLink", "LogLink", "LogitLink", "MultinomialLogit"


def convert(source: Any) -> ir.Model:
    """A fitted HistGradientBoostingClassifier or Regressor as IR.

    Regressors answer ``prediction`` [batch]; classifiers ``label`` and ``probabilities``.

    Raises:
        ModelError: It is not fitted, or has categories that are not numbers.
    """
    name = type(source).__name__
    if not hasattr(source, "_predictors"):
        raise ModelError(f"got a {name} that is not fitted, expected a fitted one")
    columns, categories = _columns(source)
    targets = len(source._predictors[0]) if source._predictors else 1
    trees = [
        _tree(predictor, target, columns, categories)
        for step in source._predictors
        for target, predictor in enumerate(step)
    ]
    base = np.broadcast_to(np.asarray(source._baseline_prediction, dtype=float).reshape(-1), (targets,)).tolist()
    graph = TreeGraph(int(source.n_features_in_), trees, targets, base)
    link = type(source._loss.link).__name__
    if link == _IDENTITY:
        result = graph.scores
    elif link == _LOG:
        result = graph.op("Exp", graph.scores)
    elif link == _LOGIT:
        result = graph.op("Sigmoid", graph.scores)
    elif link == _MULTINOMIAL:
        result = graph.op("Softmax", graph.scores, axis=1)
    else:
        raise ModelError(f"got a {name} with link {link}, expected one of {(_IDENTITY, _LOG, _LOGIT, _MULTINOMIAL)}")
    if hasattr(source, "classes_"):
        classes = np.asarray(source.classes_)
        if link == _MULTINOMIAL:
            return class_outputs(graph, result, classes)
        is_second = graph.op("Greater", graph.scores, graph.const(np.array(0, dtype=np.float32)))
        return two_class_outputs(graph, result, classes, is_second)
    return float_output(graph, result, targets)


def _columns(source: Any) -> tuple[list[int], dict[int, list[float]]]:
    """For each feature of the trees, its column in the input; and the categories of those that have some.

    With categories, a preprocessor puts the categorical columns first and numbers the values of each in their order.
    """
    if source.is_categorical_ is None or not np.any(source.is_categorical_):
        return list(range(int(source.n_features_in_))), {}
    is_categorical = np.asarray(source.is_categorical_, dtype=bool)
    columns = [*np.flatnonzero(is_categorical).tolist(), *np.flatnonzero(~is_categorical).tolist()]
    encoder = source._preprocessor.named_transformers_["encoder"]
    categories = {}
    for feature, known in enumerate(encoder.categories_):
        values = np.asarray(known)
        if values.dtype.kind not in "iufb":
            raise ModelError(
                f"got a {type(source).__name__} with categories of dtype {values.dtype} in column {columns[feature]}, "
                "expected numbers (encode them before it)"
            )
        categories[feature] = values.astype(float).tolist()
    return columns, categories


def _tree(predictor: Any, target: int, columns: list[int], categories: dict[int, list[float]]) -> Tree:
    """From the node table of one TreePredictor: children are row numbers, ``x <= num_threshold`` goes left."""
    nodes = predictor.nodes
    is_leaf = nodes["is_leaf"].astype(bool)
    # Splits and leaves are each numbered in the table's order; a leaf is named ~number.
    names = np.where(is_leaf, ~(np.cumsum(is_leaf) - 1), np.cumsum(~is_leaf) - 1).tolist()
    thresholds = round_down(nodes["num_threshold"].astype(np.float64)).tolist()
    splits = []
    for row, node in enumerate(nodes):
        if is_leaf[row]:
            continue
        feature, nan_left = int(node["feature_idx"]), bool(node["missing_go_to_left"])
        left, right = names[int(node["left"])], names[int(node["right"])]
        if not node["is_categorical"]:
            splits.append(Split(columns[feature], LEQ, thresholds[row], left, right, nan_left))
            continue
        words = predictor.raw_left_cat_bitsets[int(node["bitset_idx"])]
        goes_left = [bool(words[code // 32] >> (code % 32) & 1) for code in range(len(categories[feature]))]
        # What is no category is missing, so the set is made of the categories on the other side.
        members = tuple(
            value
            for value, is_left in zip(categories[feature], goes_left, strict=True)
            if is_left != nan_left and float(np.float32(value)) == value
        )
        yes, no = (right, left) if nan_left else (left, right)
        splits.append(Split(columns[feature], MEMBER, 0.0, yes, no, False, members))
    return Tree(splits, nodes["value"][is_leaf].tolist(), target)
