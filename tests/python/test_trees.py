"""Tree ensembles on the native backend predict what the library that trained them predicts."""

from __future__ import annotations

import os
from typing import Any

# Beside other work, OpenMP threads that wait for each other make tiny trainings take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightgbm
import numpy as np
import onnxruntime
import pytest
import xgboost
from onnx import ModelProto, TensorProto, helper
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)

import headrace as hr
from headrace.errors import ShapeMismatch

ROWS, FEATURES, CATEGORY = 500, 6, 4

# float32 leaves and outputs against doubles.
PROBABILITY_TOLERANCE, VALUE_TOLERANCE = 1e-6, 1e-5

Table = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def data() -> Table:
    """Rows with NaNs, ties and a category in column CATEGORY; and a target."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    x[:, 3] = np.round(x[:, 3], 1)
    x[:, CATEGORY] = rng.integers(0, 40, ROWS)
    y = x[:, 0] + np.sin(3 * x[:, 1]) + 2 * (x[:, CATEGORY] % 7 == 3) + 0.1 * rng.normal(size=ROWS)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, y


def run(model: Any, x: np.ndarray, threads: int = 2) -> list[np.ndarray]:
    loaded = hr.load(model)
    engine = loaded.compile(backend="native", threads=threads)
    return list(engine({loaded.signature.inputs[0].name: x}).values())


@pytest.mark.parametrize("categorical", [[], [CATEGORY]])
@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_lightgbm(data: Table, objective: str, categorical: list[int]) -> None:
    x, y = data
    target = {"binary": (y > 0.5).astype(int), "multiclass": np.digitize(y, [-0.5, 0.5, 1.5]), "regression": y}
    parameters = {"objective": objective, "num_leaves": 31, "verbose": -1, "num_threads": 1, "min_data_per_group": 5}
    if objective == "multiclass":
        parameters["num_class"] = 4
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, target[objective], categorical_feature=categorical), 20)
    tolerance = VALUE_TOLERANCE if objective == "regression" else PROBABILITY_TOLERANCE
    np.testing.assert_allclose(run(booster, x)[0], booster.predict(x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("leaves", [8, 63, 300])
def test_lightgbm_trees_of_many_sizes(leaves: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 10)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + np.sin(5 * x[:, 2]) > 0).astype(int)
    parameters = {
        "objective": "binary",
        "num_leaves": leaves,
        "verbose": -1,
        "num_threads": 1,
        "min_data_in_leaf": 2,
    }
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, y), 10)
    np.testing.assert_allclose(run(booster, x)[0], booster.predict(x), rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("tree_method", ["hist", "exact"])
@pytest.mark.parametrize("classes", [2, 3])
def test_xgboost(data: Table, classes: int, tree_method: str) -> None:
    x, y = data
    target = np.digitize(y, [0.5] if classes == 2 else [-0.5, 1.0])
    classifier = xgboost.XGBClassifier(n_estimators=15, n_jobs=1, max_depth=7, tree_method=tree_method)
    classifier.fit(x, target)
    label, probabilities = run(classifier, x)
    np.testing.assert_array_equal(label, classifier.predict(x))
    np.testing.assert_allclose(probabilities, classifier.predict_proba(x), rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(n_estimators=12, random_state=0),
        GradientBoostingClassifier(n_estimators=10, random_state=0),
    ],
    ids=["forest", "boosting"],
)
@pytest.mark.parametrize("labels", [["no", "yes"], [3, 5, 8]], ids=["strings", "ints"])
def test_sklearn_classifiers(data: Table, estimator: Any, labels: list[Any]) -> None:
    x, y = np.nan_to_num(data[0]), data[1]
    target = np.array(labels)[np.digitize(y, [0.5] if len(labels) == 2 else [-0.5, 1.0])]
    estimator.fit(x, target)
    label, probabilities = run(estimator, x)
    want = estimator.predict_proba(x)
    np.testing.assert_allclose(probabilities, want, rtol=0, atol=PROBABILITY_TOLERANCE)
    clear = np.ptp(np.sort(want, axis=1)[:, -2:], axis=1) > 1e-5
    np.testing.assert_array_equal(np.asarray(label)[clear], estimator.predict(x)[clear])


@pytest.mark.parametrize(
    "estimator",
    [RandomForestRegressor(n_estimators=10, random_state=0), HistGradientBoostingRegressor(max_iter=15)],
    ids=["forest", "histograms"],
)
def test_sklearn_regressors(data: Table, estimator: Any) -> None:
    x, y = np.nan_to_num(data[0]), data[1]
    estimator.fit(x, y)
    np.testing.assert_allclose(run(estimator, x)[0].ravel(), estimator.predict(x), rtol=0, atol=VALUE_TOLERANCE)


def random_ensemble(seed: int, modes: list[str], post_transform: str, targets: int, double: bool) -> ModelProto:
    """A TreeEnsembleRegressor of random trees in which every branch may have another mode."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, list[Any]] = {
        key: []
        for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "tracks")
    }
    leaves: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(15):
        size = 2 * int(rng.integers(0, 40)) + 1
        children = iter(range(1, size))
        for node in range(size):
            branch = node < size // 2
            nodes["treeids"].append(tree)
            nodes["nodeids"].append(node)
            nodes["featureids"].append(int(rng.integers(FEATURES)))
            nodes["values"].append(float(np.float32(rng.integers(-6, 6) / 4)))
            nodes["modes"].append(str(rng.choice(modes)) if branch else "LEAF")
            nodes["truenodeids"].append(next(children) if branch else 0)
            nodes["falsenodeids"].append(next(children) if branch else 0)
            nodes["tracks"].append(int(rng.integers(2)))
            for target in [] if branch else range(targets):
                leaves["treeids"].append(tree)
                leaves["nodeids"].append(node)
                leaves["ids"].append(target)
                leaves["weights"].append(float(np.float32(rng.normal() / 15)))
    attributes: dict[str, Any] = {f"nodes_{key}": value for key, value in nodes.items() if key != "tracks"}
    attributes["nodes_missing_value_tracks_true"] = nodes["tracks"]
    attributes.update({f"target_{key}": value for key, value in leaves.items()})
    dtype = TensorProto.DOUBLE if double else TensorProto.FLOAT
    if double:
        for name in ("nodes_values", "target_weights"):
            values = attributes.pop(name)
            attributes[f"{name}_as_tensor"] = helper.make_tensor(name, dtype, [len(values)], values)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=targets,
        post_transform=post_transform,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", dtype, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", targets])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


ALL_MODES = [f"BRANCH_{mode}" for mode in ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")]


@pytest.mark.parametrize("double", [False, True], ids=["float", "double"])
@pytest.mark.parametrize("post_transform", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("modes", [["BRANCH_LT"], ALL_MODES], ids=["lt", "mixed"])
def test_random_ensembles_as_onnx_runtime(modes: list[str], post_transform: str, double: bool) -> None:
    proto = random_ensemble(len(modes), modes, post_transform, 3, double)
    x = (np.random.default_rng(2).integers(-7, 7, size=(150, FEATURES)) / 4).astype(
        np.float64 if double else np.float32
    )
    x[np.random.default_rng(3).random(x.shape) < 0.1] = np.nan
    if "BRANCH_EQ" in modes:
        x = np.nan_to_num(x)  # ONNX Runtime's own EQ and NEQ disagree with the specification about NaN
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (want,) = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})
    np.testing.assert_allclose(run(proto, x)[0], want, rtol=0, atol=VALUE_TOLERANCE)


def test_a_row_gets_the_same_bits_in_any_batch(data: Table) -> None:
    x, y = data
    booster = lightgbm.train({"num_leaves": 63, "verbose": -1, "num_threads": 1}, lightgbm.Dataset(x, y), 30)
    model = hr.load(booster)
    alone = model.compile(backend="native", threads=1)
    want = np.concatenate([alone({"x": row[None]})["prediction"] for row in x])
    for threads in (1, 2, 4):
        engine = model.compile(backend="native", threads=threads)
        np.testing.assert_array_equal(engine({"x": x})["prediction"], want)
        parts = np.split(x, [1, 1, 6, 70, 71, 199, 330])
        results = engine.run_batch([{"x": part} for part in parts])
        np.testing.assert_array_equal(np.concatenate([result["prediction"] for result in results]), want)


def test_too_few_features_are_refused(data: Table) -> None:
    x, y = data
    booster = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(x, y), 2)
    with pytest.raises(ShapeMismatch, match="6"):
        run(booster, x[:, :3].copy())
