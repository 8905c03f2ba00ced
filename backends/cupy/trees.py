"""Tree ensembles: all rows go through all trees in step, one level at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from headrace.backends.cupy.arrays import Array, Placed, library
from headrace.backends.cupy.ops import Maker
from headrace.backends.cupy.tables import as_float, chosen_labels, class_labels, post_transform

from headrace.graph.script import Attributes, Untranslated

# Paths (a row in a tree) and leaf values that are in work at once.
_PATHS_MAX = 1 << 20

_LEAF, _MEMBER = -1, 6
_MODES = {
    "LEAF": _LEAF, "BRANCH_LEQ": 0, "BRANCH_LT": 1, "BRANCH_GTE": 2, "BRANCH_GT": 3, "BRANCH_EQ": 4, "BRANCH_NEQ": 5,
}  # fmt: skip
_COMPARE: dict[int, Callable[[Array, Array], Array]] = {
    0: lambda x, at: x <= at, 1: lambda x, at: x < at, 2: lambda x, at: x >= at, 3: lambda x, at: x > at,
    4: lambda x, at: x == at, 5: lambda x, at: x != at,
}  # fmt: skip
_NEQ = 5


@dataclass(frozen=True)
class Forest:
    """Trees as arrays over their nodes; a leaf leads to itself.

    Attributes:
        features: The column each node looks at, [nodes].
        modes: How it compares: keys of `_COMPARE`, `_MEMBER` or `_LEAF`, [nodes].
        thresholds: What it compares with, [nodes].
        nan_yes: Where a NaN goes, [nodes].
        yes: The node a true comparison leads to, [nodes].
        no: And a false one, [nodes].
        values: What a leaf adds to each target, [nodes, targets]; NaN for nothing.
        roots: The first node of each tree, [trees].
        members: What `_MEMBER` nodes compare with, [nodes, most members], filled up with NaN; None without such nodes.
        depth: The most comparisons from a root to a leaf.
    """

    features: np.ndarray[Any, Any]
    modes: np.ndarray[Any, Any]
    thresholds: np.ndarray[Any, Any]
    nan_yes: np.ndarray[Any, Any]
    yes: np.ndarray[Any, Any]
    no: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    roots: np.ndarray[Any, Any]
    members: np.ndarray[Any, Any] | None
    depth: int


def _depth(yes: Sequence[int], no: Sequence[int], roots: Sequence[int]) -> int:
    level, depth = set(map(int, roots)), 0
    while True:
        below = {int(child) for at in level for child in (yes[at], no[at]) if child != at}
        if not below:
            return depth
        level, depth = below, depth + 1
        if depth > len(yes):
            raise Untranslated("the nodes of a tree form a circle")


def _numbers(attributes: Attributes, name: str) -> np.ndarray[Any, Any]:
    """A float attribute, which may also be given as a tensor."""
    tensor = attributes.get(f"{name}_as_tensor")
    return np.array(attributes.get(name) or [], np.float32) if tensor is None else np.asarray(tensor)


def _parse(attributes: Attributes, prefix: str, targets: int) -> Forest:
    """The attributes of TreeEnsembleRegressor (`prefix` "target") or TreeEnsembleClassifier ("class")."""
    trees, numbers = attributes.get("nodes_treeids"), attributes.get("nodes_nodeids")
    index = {key: at for at, key in enumerate(zip(trees, numbers, strict=True))}
    names = [item.decode() if isinstance(item, bytes) else item for item in attributes.get("nodes_modes")]
    if unknown := sorted(set(names) - set(_MODES)):
        raise Untranslated(f"got nodes_modes {', '.join(unknown)}")
    modes = np.array([_MODES[name] for name in names])

    def children(name: str) -> np.ndarray[Any, Any]:
        given = attributes.get(f"nodes_{name}nodeids")
        places = enumerate(zip(trees, given, strict=True))
        return np.array([at if modes[at] == _LEAF else index[tree, child] for at, (tree, child) in places])

    yes, no = children("true"), children("false")
    roots = {}
    for at, tree in enumerate(trees):
        roots.setdefault(tree, at)
    weights = _numbers(attributes, f"{prefix}_weights")
    values = np.full((len(trees), targets), np.nan)
    ids = (attributes.get(f"{prefix}_{name}") for name in ("treeids", "nodeids", "ids"))
    for tree, node, target, weight in zip(*ids, weights, strict=True):
        at = index[tree, node], target
        values[at] = weight if np.isnan(values[at]) else values[at] + weight
    roots_of = [roots[tree] for tree in sorted(roots)]
    nan_yes = attributes.get("nodes_missing_value_tracks_true") or [0] * len(trees)
    return Forest(
        np.array(attributes.get("nodes_featureids")), modes, _numbers(attributes, "nodes_values"),
        np.array(nan_yes, bool), yes, no, values, np.array(roots_of), None, _depth(yes, no, roots_of),
    )  # fmt: skip


def _parse_v5(attributes: Attributes, targets: int) -> Forest:
    """The attributes of TreeEnsemble."""
    modes = np.asarray(attributes.get("nodes_modes")).astype(np.int64)
    splits, nodes = np.asarray(attributes.get("nodes_splits")), len(modes)
    weights, targets_of = np.asarray(attributes.get("leaf_weights")), attributes.get("leaf_targetids")

    def children(name: str) -> np.ndarray[Any, Any]:
        leaf = np.array(attributes.get(f"nodes_{name}leafs"), bool)
        return np.array(attributes.get(f"nodes_{name}nodeids")) + np.where(leaf, nodes, 0)

    leaves = np.arange(nodes, nodes + len(weights))
    yes, no = np.concatenate([children("true"), leaves]), np.concatenate([children("false"), leaves])
    values = np.full((nodes + len(weights), targets), np.nan)
    values[leaves, targets_of] = weights
    # A root that is a leaf is a node both of whose branches are that leaf.
    roots = np.array(attributes.get("tree_roots"))
    nan_yes = np.array(attributes.get("nodes_missing_value_tracks_true") or [0] * nodes, bool)
    nan_yes |= modes == _NEQ  # a NaN is no number's equal
    members = _members(attributes, modes, splits.dtype, len(yes), yes, no, roots)
    rest = len(weights)
    return Forest(
        np.concatenate([attributes.get("nodes_featureids"), np.zeros(rest, np.int64)]),
        np.concatenate([modes, np.full(rest, _LEAF)]), np.concatenate([splits, np.zeros(rest, splits.dtype)]),
        np.concatenate([nan_yes, np.zeros(rest, bool)]), yes, no, values, roots, members, _depth(yes, no, roots),
    )  # fmt: skip


def _members(
    attributes: Attributes, modes: np.ndarray[Any, Any], dtype: Any, nodes: int,
    yes: np.ndarray[Any, Any], no: np.ndarray[Any, Any], roots: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any] | None:  # fmt: skip
    """The sets of the `_MEMBER` nodes, which the attribute lists one after the other, each ended by a NaN."""
    given = attributes.get("membership_values")
    if given is None or not (modes == _MEMBER).any():
        return None
    sets: list[list[float]] = [[]]
    for value in np.asarray(given).tolist():
        sets.append([]) if np.isnan(value) else sets[-1].append(value)
    holders = np.flatnonzero(modes == _MEMBER)
    if len(sets) - 1 != len(holders):
        raise Untranslated(f"got {len(sets) - 1} sets of membership_values, expected {len(holders)}")
    table = np.full((nodes, max(1, max(map(len, sets)))), np.nan, dtype)
    for at, members in zip(_in_order(modes, yes, no, roots, holders), sets, strict=False):
        table[at, : len(members)] = members
    return table


def _in_order(
    modes: np.ndarray[Any, Any], yes: np.ndarray[Any, Any], no: np.ndarray[Any, Any], roots: np.ndarray[Any, Any],
    holders: np.ndarray[Any, Any],
) -> list[int]:  # fmt: skip
    """The `_MEMBER` nodes in the order of their sets: that of the nodes, unless walking the trees visits another."""
    walked, waiting = [], [int(root) for root in roots[::-1]]
    while waiting:
        at = waiting.pop()
        if at >= len(modes):
            continue
        if modes[at] == _MEMBER:
            walked.append(at)
        waiting += [int(child) for child in {int(no[at]), int(yes[at])} if child != at] if yes[at] == no[at] else (
            [int(no[at]), int(yes[at])]
        )  # fmt: skip
    if walked != holders.tolist():
        raise Untranslated("sets of membership_values whose order the nodes and the trees do not agree on")
    return walked


class _Walk:
    """Takes rows through a Forest."""

    def __init__(self, forest: Forest, average: bool, extreme: str | None, base: np.ndarray[Any, Any] | None) -> None:
        self._forest, self._extreme = forest, extreme
        self._base = None if base is None else Placed(base)
        missing = {"min": np.inf, "max": -np.inf}.get(extreme or "", 0.0)
        values = np.where(np.isnan(forest.values), missing, forest.values)
        self._targets = values.shape[1]
        self._tables = {
            "features": Placed(forest.features), "modes": Placed(forest.modes), "yes": Placed(forest.yes),
            "no": Placed(forest.no), "nan_yes": Placed(forest.nan_yes), "thresholds": Placed(forest.thresholds),
            "roots": Placed(forest.roots), "values": Placed(values / len(forest.roots) if average else values),
        }  # fmt: skip
        self._members = None if forest.members is None else Placed(forest.members)
        self._comparisons = sorted({int(mode) for mode in forest.modes} - {_LEAF, _MEMBER})

    def scores(self, x: Array) -> Array:
        """[rows, targets] in float64."""
        xp = library(x)
        tables = {name: table.like(x) for name, table in self._tables.items()}
        at_once = max(1, _PATHS_MAX // max(1, len(self._forest.roots) * self._targets))
        starts = range(0, x.shape[0], at_once)
        parts = [self._block(xp, x[at : min(at + at_once, x.shape[0]), :], tables) for at in starts]
        if not parts:
            return xp.zeros((0, self._targets), dtype=xp.float64)
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)

    def _block(self, xp: Any, x: Array, tables: dict[str, Array]) -> Array:
        rows, trees = x.shape[0], len(self._forest.roots)

        def of(name: str, at: Array) -> Array:
            return xp.reshape(xp.take(tables[name], xp.reshape(at, (-1,)), axis=0), (rows, trees))

        at = xp.broadcast_to(tables["roots"], (rows, trees))
        for _ in range(self._forest.depth):
            value = xp.take_along_axis(x, of("features", at), axis=1)
            verdict = self._verdict(xp, value, of("thresholds", at), of("modes", at), at)
            verdict = xp.where(xp.isnan(value), of("nan_yes", at), verdict)
            at = xp.where(verdict, of("yes", at), of("no", at))
        values = xp.reshape(xp.take(tables["values"], xp.reshape(at, (-1,)), axis=0), (rows, trees, -1))
        total = getattr(xp, self._extreme or "sum")(values, axis=1)
        return total if self._base is None else total + self._base.like(total)

    def _verdict(self, xp: Any, value: Array, threshold: Array, mode: Array, at: Array) -> Array:
        verdict = None
        for code in self._comparisons:
            found = _COMPARE[code](value, threshold)
            verdict = found if verdict is None else xp.where(mode == code, found, verdict)
        if self._members is not None:
            wanted = xp.reshape(xp.take(self._members.like(value), xp.reshape(at, (-1,)), axis=0), (*at.shape, -1))
            found = xp.any(xp.expand_dims(value, axis=-1) == wanted, axis=-1)
            verdict = found if verdict is None else xp.where(mode == _MEMBER, found, verdict)
        return xp.zeros(at.shape, dtype=xp.bool) if verdict is None else verdict


def _walker(forest: Forest, aggregate: Any, base: np.ndarray[Any, Any] | None) -> _Walk:
    if aggregate not in ("SUM", "AVERAGE", "MIN", "MAX"):
        raise Untranslated(f"got aggregate_function {aggregate!r}, expected SUM, AVERAGE, MIN or MAX")
    extreme = aggregate.lower() if aggregate in ("MIN", "MAX") else None
    return _Walk(forest, aggregate == "AVERAGE", extreme, base)


def _base_values(attributes: Attributes, targets: int) -> np.ndarray[Any, Any] | None:
    base = _numbers(attributes, "base_values")
    if base.size not in (0, targets):
        raise Untranslated(f"got {base.size} base_values, expected {targets}")
    return base.astype(np.float64).reshape(1, -1) if base.size else None


def _table(x: Array) -> Array:
    x = as_float(x)
    return library(x).reshape(x, (1, -1)) if x.ndim == 1 else x


def _regressor(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    targets = attributes.get("n_targets", 1)
    finish = post_transform(attributes.get("post_transform", "NONE"))
    base = _base_values(attributes, targets)
    walk = _walker(_parse(attributes, "target", targets), attributes.get("aggregate_function", "SUM"), base)

    def run(x: Array) -> Array:
        xp = library(x)
        return xp.astype(finish(walk.scores(_table(x))), xp.float32)

    return run


def _ensemble(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    names = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
    finish = post_transform(names[attributes.get("post_transform", 0)])
    aggregate = {0: "AVERAGE", 1: "SUM", 2: "MIN", 3: "MAX"}.get(attributes.get("aggregate_function", 1))
    walk = _walker(_parse_v5(attributes, attributes.get("n_targets", 1)), aggregate, None)

    def run(x: Array) -> Array:
        return library(x).astype(finish(walk.scores(_table(x))), x.dtype)

    return run


def _classifier(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    labels = class_labels(attributes, "classlabels_int64s", "classlabels_strings")
    transform = attributes.get("post_transform", "NONE")
    finish = post_transform(transform)
    if len(labels) < 2:
        raise Untranslated(f"got {len(labels)} class labels, expected at least 2")
    forest = _parse(attributes, "class", len(labels))
    classes = set(attributes.get("class_ids"))
    one_score = len(labels) == 2 and len(classes) == 1
    if one_score and transform != "LOGISTIC":
        # ONNX does not say what the other class's score is.
        raise Untranslated(f"two classes with weights for one of them only, and post_transform {transform}")
    walk = _walker(forest, "SUM", None if one_score else _base_values(attributes, len(labels)))
    base = _numbers(attributes, "base_values").reshape(-1)[:1] if one_score else None
    column = classes.pop() if one_score else 0

    def run(x: Array) -> tuple[Array, Array]:
        scores = walk.scores(_table(x))
        xp = library(scores)
        if one_score:
            only = scores[:, column : column + 1]
            only = only + float(base[0]) if base is not None and base.size else only
            scores = xp.concat((-only, only), axis=1)
        results = finish(scores)
        return chosen_labels(results, labels), xp.astype(results, xp.float32)

    return run


OPS: dict[str, Maker] = {
    "ai.onnx.ml.TreeEnsembleRegressor": _regressor,
    "ai.onnx.ml.TreeEnsembleClassifier": _classifier,
    "ai.onnx.ml.TreeEnsemble": _ensemble,
}
