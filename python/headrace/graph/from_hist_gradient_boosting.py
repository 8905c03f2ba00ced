"""Imports scikit-learn's HistGradientBoosting models, whose trees skl2onnx does not convert in every version."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.errors import ModelError
from headrace.graph._onnx_ir import ir
from headrace.graph.trees import LEQ, Split, Tree, TreeGraph, class_outputs, float_output, round_down

# By the loss's link: how raw sums become predictions (sklearn/_loss/link.py).
_IDENTITY, _LOG, _LOGIT, _MULTINOMIAL = "IdentityLink", "LogLink", "LogitLink", "MultinomialLogit"


def convert(source: Any) -> ir.Model:
    """A fitted HistGradientBoostingClassifier or Regressor as IR.

    Regressors answer ``prediction`` [batch]; classifiers ``label`` and ``probabilities``.

    Raises:
        ModelError: It is not fitted, or has categorical features.
    """
    name = type(source).__name__
    if not hasattr(source, "_predictors"):
        raise ModelError(f"got a {name} that is not fitted, expected a fitted one")
    if source.is_categorical_ is not None and np.any(source.is_categorical_):
        raise ModelError(f"got a {name} with categorical features, expected numerical ones (encode them before it)")
    targets = len(source._predictors[0]) if source._predictors else 1
    trees = [_tree(predictor.nodes, target) for step in source._predictors for target, predictor in enumerate(step)]
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
        return class_outputs(graph, result, np.asarray(source.classes_))
    return float_output(graph, result, targets)


def _tree(nodes: np.ndarray[Any, Any], target: int) -> Tree:
    """From the node table of one TreePredictor: children are row numbers, ``x <= num_threshold`` goes left."""
    is_leaf = nodes["is_leaf"].astype(bool)
    # Splits and leaves are each numbered in the table's order; a leaf is named ~number.
    names = np.where(is_leaf, ~(np.cumsum(is_leaf) - 1), np.cumsum(~is_leaf) - 1).tolist()
    thresholds = round_down(nodes["num_threshold"].astype(np.float64)).tolist()
    splits = [
        Split(
            int(node["feature_idx"]),
            LEQ,
            thresholds[row],
            names[int(node["left"])],
            names[int(node["right"])],
            bool(node["missing_go_to_left"]),
        )
        for row, node in enumerate(nodes)
        if not is_leaf[row]
    ]
    return Tree(splits, nodes["value"][is_leaf].tolist(), target)
