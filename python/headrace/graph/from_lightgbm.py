"""Imports LightGBM boosters and estimators.

Written against LightGBM's text model format and the decisions in its ``include/LightGBM/tree.h``. LightGBM compares
doubles; a float32 input is compared here with the threshold rounded down to float32, which decides the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

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

if TYPE_CHECKING:
    from headrace.graph.importer import Hints

# |x| up to this counts as zero where zero means missing (kZeroThreshold in LightGBM's meta.h, a float there).
_ZERO = float(np.float32(1e-35))
_CATEGORICAL_BIT, _DEFAULT_LEFT_BIT = 1, 2
_MISSING_NONE, _MISSING_ZERO, _MISSING_NAN = 0, 1, 2

_IDENTITY = {
    "regression", "regression_l1", "l1", "l2", "huber", "fair", "quantile", "mape", "lambdarank",
    "rank_xendcg", "custom", "none",
}  # fmt: skip
_EXPONENTIAL = {"poisson", "gamma", "tweedie"}


def convert(source: Any, hints: Hints) -> ir.Model:
    """A Booster, or a fitted LGBMClassifier, LGBMRegressor or LGBMRanker, as IR.

    Boosters and regressors answer ``prediction`` as their ``predict`` does, classifiers ``label`` and
    ``probabilities``; classifiers with an objective of their own making ``prediction`` as well, the raw scores, since
    LightGBM has no probabilities for them either.

    Raises:
        ModelError: It is not fitted, or uses linear trees or an unknown objective.
    """
    estimator = source if hasattr(source, "booster_") or hasattr(source, "_Booster") else None
    if estimator is not None and getattr(estimator, "_Booster", None) is None:
        raise ModelError(f"got a {type(source).__name__} that is not fitted, expected a fitted one")
    booster = source if estimator is None else estimator.booster_
    header, blocks = _sections(booster.model_to_string())
    per_iteration = int(header.get("num_tree_per_iteration", "1"))
    trees = [_tree(block, number % per_iteration) for number, block in enumerate(blocks)]
    if "average_output" in header and trees:
        count = len(trees) // per_iteration
        trees = [Tree(tree.splits, [cast(float, leaf) / count for leaf in tree.leaves], tree.target) for tree in trees]
    features = int(header["max_feature_idx"]) + 1
    categorical = sorted({split.feature for tree in trees for split in tree.splits if split.mode == MEMBER})
    before = (lambda graph, x: _truncated(graph, x, features, categorical)) if categorical else None
    graph = TreeGraph(features, trees, per_iteration, before=before)
    result = _transformed(graph, header.get("objective", "custom"))
    if estimator is not None and hasattr(estimator, "classes_") and "objective" in header:
        outputs = two_class_outputs if per_iteration == 1 else class_outputs
        return outputs(graph, result, np.asarray(estimator.classes_))
    return float_output(graph, result, per_iteration)


def _sections(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The header and one dict per tree of LightGBM's text format."""
    header: dict[str, str] = {}
    blocks: list[dict[str, str]] = []
    current = header
    for line in text.splitlines():
        if line.startswith("end of trees"):
            break
        key, _, value = line.partition("=")
        if key == "Tree":
            current = {}
            blocks.append(current)
        if key:
            current[key] = value
    return header, blocks


def _numbers(block: dict[str, str], key: str, dtype: type) -> np.ndarray[Any, Any]:
    return np.array(block.get(key, "").split(), dtype=dtype)


def _tree(block: dict[str, str], target: int) -> Tree:
    if int(block.get("is_linear", "0")):
        raise ModelError("got a LightGBM model with linear trees (linear_tree=true), expected constant leaves")
    leaves = _numbers(block, "leaf_value", float).tolist()
    if int(block["num_leaves"]) <= 1:
        return Tree([], leaves or [0.0], target)
    features = _numbers(block, "split_feature", int).tolist()
    thresholds = _numbers(block, "threshold", float)
    rounded = round_down(thresholds).tolist()
    kinds = _numbers(block, "decision_type", int).tolist()
    left, right = _numbers(block, "left_child", int).tolist(), _numbers(block, "right_child", int).tolist()
    boundaries = _numbers(block, "cat_boundaries", int).tolist()
    words = _numbers(block, "cat_threshold", int).tolist()
    splits: list[Split] = []
    extra: list[Split] = []
    for index, (feature, kind) in enumerate(zip(features, kinds, strict=True)):
        yes, no = left[index], right[index]
        if kind & _CATEGORICAL_BIT:
            which = int(thresholds[index])
            members = _members(words[boundaries[which] : boundaries[which + 1]])
            splits.append(Split(feature, MEMBER, 0.0, yes, no, False, members))
            continue
        default_left, missing = bool(kind & _DEFAULT_LEFT_BIT), kind >> 2 & 3
        if missing == _MISSING_ZERO:
            chain = _zero_is_missing(feature, rounded[index], yes, no, default_left, len(features) + len(extra))
            splits.append(chain[0])
            extra += chain[1:]
            continue
        # Without a missing type, NaN is taken for 0.
        nan_left = default_left if missing == _MISSING_NAN else bool(thresholds[index] >= 0.0)
        splits.append(Split(feature, LEQ, rounded[index], yes, no, nan_left))
    return Tree(splits + extra, leaves, target)


def _members(words: list[int]) -> tuple[float, ...]:
    return tuple(float(32 * at + bit) for at, word in enumerate(words) for bit in range(32) if word >> bit & 1)


def _zero_is_missing(feature: int, threshold: float, yes: int, no: int, default_left: bool, free: int) -> list[Split]:
    """Splits that send NaN and |x| <= 1e-35 the default way and compare the rest; the second is to get index `free`."""
    below_zero = float(np.nextafter(np.float32(-_ZERO), np.float32(-np.inf)))
    bounds = sorted({below_zero, _ZERO, threshold})

    def goes_left(x: float) -> bool:
        return default_left if abs(x) <= _ZERO else x <= threshold

    # The answer is constant up to and including each bound, and after the last one.
    after = float(np.nextafter(np.float32(bounds[-1]), np.float32(np.inf)))
    answers = [goes_left(bound) for bound in bounds] + [goes_left(after)]
    steps = [
        (bound, answer)
        for bound, answer, follower in zip(bounds, answers, answers[1:], strict=False)
        if answer != follower
    ]
    if not steps:
        target = yes if answers[0] else no
        return [Split(feature, LEQ, 0.0, target, target, False)]
    chain = []
    for position, (bound, answer) in enumerate(steps):
        last = position == len(steps) - 1
        rest = (no if answer else yes) if last else free + position
        chain.append(Split(feature, LEQ, bound, yes if answer else no, rest, answer == default_left))
    return chain


def _truncated(graph: TreeGraph, x: ir.Value, features: int, categorical: list[int]) -> ir.Value:
    """`x` with its categorical columns cut to whole numbers, as LightGBM's cast to int does."""
    mask = np.zeros((1, features), dtype=bool)
    mask[0, categorical] = True
    whole = graph.op("Mul", graph.op("Sign", x), graph.op("Floor", graph.op("Abs", x)))
    return graph.op("Where", graph.const(mask), whole, x)


def _transformed(graph: TreeGraph, objective: str) -> ir.Value:
    """The sums as `predict` gives them: ``ConvertOutput`` of the objective."""
    name, *options = objective.split() or ["custom"]
    settings = dict(option.split(":", 1) for option in options if ":" in option)
    x = graph.scores
    if name in ("binary", "multiclassova", "cross_entropy", "xentropy"):
        slope = float(settings.get("sigmoid", "1"))
        return graph.op(
            "Sigmoid", x if slope == 1.0 else graph.op("Mul", x, graph.const(np.array(slope, dtype=np.float32)))
        )
    if name in ("multiclass", "softmax"):
        return graph.op("Softmax", x, axis=1)
    if name in ("cross_entropy_lambda", "xentlambda"):
        return graph.op("Softplus", x)
    if name in _EXPONENTIAL:
        return graph.op("Exp", x)
    if name in _IDENTITY:
        if "sqrt" in options:
            return graph.op("Mul", graph.op("Sign", x), graph.op("Mul", x, x))
        return x
    raise ModelError(f"got a LightGBM model with objective {objective!r}, expected one whose output transform is known")
