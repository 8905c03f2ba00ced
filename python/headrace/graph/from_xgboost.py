"""Imports XGBoost boosters and estimators, from the JSON model schema (doc/model.schema in XGBoost's sources)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import ModelError
from headrace.graph._onnx_ir import ir
from headrace.graph.trees import LT, MEMBER, Split, Tree, TreeGraph, class_outputs, float_output, two_class_outputs

if TYPE_CHECKING:
    from headrace.graph.importer import Hints

_LOGISTIC = {"reg:logistic", "binary:logistic"}
_EXPONENTIAL = {"count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"}
_IDENTITY = {
    "reg:squarederror", "reg:linear", "reg:absoluteerror", "reg:quantileerror", "reg:pseudohubererror",
    "reg:squaredlogerror", "rank:pairwise", "rank:ndcg", "rank:map", "binary:logitraw",
}  # fmt: skip
_SOFTMAX = {"multi:softprob", "multi:softmax"}


def convert(source: Any, hints: Hints) -> ir.Model:
    """A Booster, or a fitted XGBClassifier, XGBRegressor, XGBRanker or forest of them, as IR.

    Boosters and regressors answer ``prediction`` as their ``predict`` does, classifiers ``label`` and
    ``probabilities``; of several labels at once, both are [batch, labels], and a label is 1 where its probability is
    above one half.

    Raises:
        ModelError: It is not fitted, its booster is not made of trees or has none, or its objective is unknown.
    """
    estimator = source if hasattr(source, "get_booster") else None
    booster = source if estimator is None else _fitted_booster(estimator)
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective = learner["objective"]["name"]
    parameters = learner["learner_model_param"]
    labels = int(parameters.get("num_target", "1"))
    targets = max(1, int(parameters.get("num_class", "0")), labels)
    trees = _trees(learner["gradient_booster"])
    features = int(parameters["num_feature"])
    missing = getattr(estimator, "missing", math.nan)
    categorical = sorted({split.feature for tree in trees for split in tree.splits if split.mode == MEMBER})

    def before(graph: TreeGraph, x: ir.Value) -> ir.Value:
        return _prepared(graph, x, features, categorical, math.nan if missing is None else float(missing))

    graph = TreeGraph(features, trees, targets, _base(parameters["base_score"], objective, targets), before)
    classes = getattr(estimator, "classes_", None) if estimator is not None else None
    result = _transformed(graph, objective, labels_wanted=classes is None)
    if classes is not None and labels > 1:
        return _labels_outputs(graph, result, labels)
    if classes is not None:
        outputs = two_class_outputs if targets == 1 else class_outputs
        return outputs(graph, result, np.asarray(classes))
    return float_output(graph, result, 1 if objective == "multi:softmax" else targets)


def _fitted_booster(estimator: Any) -> Any:
    try:
        booster = estimator.get_booster()
    except Exception as error:
        raise ModelError(f"got a {type(estimator).__name__} that is not fitted, expected a fitted one") from error
    # Estimators predict with the best iteration of early stopping; bare boosters with all of them.
    try:
        best = estimator.best_iteration
    except AttributeError:
        return booster
    return booster[: best + 1]


def _trees(gradient_booster: dict[str, Any]) -> list[Tree]:
    name = gradient_booster["name"]
    if name == "dart":
        weights = gradient_booster["weight_drop"]
        model = gradient_booster["gbtree"]["model"]
    elif name == "gbtree":
        model = gradient_booster["model"]
        weights = [1.0] * len(model["trees"])
    else:
        raise ModelError(f"got an XGBoost model with booster {name!r}, expected gbtree or dart")
    if not model["trees"]:
        raise ModelError("got an XGBoost model without trees, expected at least one")
    triples = zip(model["trees"], model["tree_info"], weights, strict=True)
    return [_tree(tree, target, np.float32(weight)) for tree, target, weight in triples]


def _tree(tree: dict[str, Any], target: int, weight: np.float32) -> Tree:
    if int(tree["tree_param"].get("size_leaf_vector", "1")) > 1:
        raise ModelError(
            "got an XGBoost model with vector leaves (multi_strategy='multi_output_tree'), expected one_output_per_tree"
        )
    left, right = tree["left_children"], tree["right_children"]
    # Numbers of splits and of leaves, each counted on its own; a leaf is named ~number.
    names, counts = [], [0, 0]
    for child in left:
        leaf = int(child == -1)
        names.append(~counts[1] if leaf else counts[0])
        counts[leaf] += 1
    values = np.array(tree["split_conditions"], dtype=np.float32)
    sets = _category_sets(tree)
    splits, leaves = [], []
    for index, child in enumerate(left):
        if child == -1:
            leaves.append(float(values[index] * weight))
            continue
        feature, default_left = tree["split_indices"][index], bool(tree["default_left"][index])
        yes, no = names[child], names[right[index]]
        if index in sets:
            # XGBoost sends the categories of the set to the right, and everything else to the left.
            splits.append(Split(feature, MEMBER, 0.0, no, yes, not default_left, sets[index]))
        else:
            splits.append(Split(feature, LT, float(values[index]), yes, no, default_left))
    return Tree(splits, leaves, target)


def _category_sets(tree: dict[str, Any]) -> dict[int, tuple[float, ...]]:
    sets = {}
    categories = tree.get("categories", [])
    segments = zip(
        tree.get("categories_nodes", []),
        tree.get("categories_segments", []),
        tree.get("categories_sizes", []),
        strict=True,
    )
    for node, start, size in segments:
        sets[node] = tuple(float(category) for category in categories[start : start + size])
    return sets


def _base(text: str, objective: str, targets: int) -> list[float]:
    """The sums' start: base_score, which is kept as a prediction, taken back through the objective's link.

    In float32, as XGBoost does it. Where all training labels were of one class it is 0 or 1, which XGBoost moves by
    1e-6 before it takes the logit; of counts that were all 0 the logarithm is minus infinity there as well.
    """
    scores = np.atleast_1d(np.array(json.loads(text), dtype=np.float32))
    one = np.float32(1)
    if objective in _LOGISTIC:
        least = np.float32(1e-6)
        scores = -np.log(one / np.clip(scores, least, one - least) - one)
    elif objective in _EXPONENTIAL:
        with np.errstate(divide="ignore"):
            scores = np.log(scores)
    numbers: list[float] = scores.tolist()
    return numbers * targets if len(numbers) == 1 else numbers


def _labels_outputs(graph: TreeGraph, probabilities: ir.Value, labels: int) -> ir.Model:
    """Several labels at once, each of which a row has or has not."""
    likely = graph.op("Greater", probabilities, graph.const(np.array(0.5, dtype=np.float32)))
    label = graph.op("Cast", likely, to=ir.DataType.INT64.value)
    return graph.finish(
        {
            "label": (label, ir.DataType.INT64, ["batch", labels]),
            "probabilities": (probabilities, ir.DataType.FLOAT, ["batch", labels]),
        }
    )


def _prepared(graph: TreeGraph, x: ir.Value, features: int, categorical: list[int], missing: float) -> ir.Value:
    if not math.isnan(missing):
        gone = graph.op("Equal", x, graph.const(np.array(missing, dtype=np.float32)))
        x = graph.op("Where", gone, graph.const(np.array(np.nan, dtype=np.float32)), x)
    if not categorical:
        return x
    # XGBoost casts a category to int; what is below 0 belongs to no set.
    mask = np.zeros((1, features), dtype=bool)
    mask[0, categorical] = True
    return graph.op("Where", graph.const(mask), graph.op("Floor", x), x)


def _transformed(graph: TreeGraph, objective: str, *, labels_wanted: bool) -> ir.Value:
    """The sums as `predict` gives them."""
    x = graph.scores
    if objective in _IDENTITY:
        return x
    if objective in _LOGISTIC:
        return graph.op("Sigmoid", x)
    if objective in _EXPONENTIAL:
        return graph.op("Exp", x)
    if objective == "binary:hinge":
        positive = graph.op("Greater", x, graph.const(np.array(0, dtype=np.float32)))
        return graph.op("Cast", positive, to=ir.DataType.FLOAT.value)
    if objective in _SOFTMAX:
        if objective == "multi:softmax" and labels_wanted:
            return graph.op("Cast", graph.op("ArgMax", x, axis=1, keepdims=1), to=ir.DataType.FLOAT.value)
        return graph.op("Softmax", x, axis=1)
    raise ModelError(f"got an XGBoost model with objective {objective!r}, expected one whose output transform is known")
