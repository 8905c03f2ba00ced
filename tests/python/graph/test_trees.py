"""LightGBM, XGBoost and scikit-learn's trees decide and predict exactly as their own libraries do."""

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

from headrace.errors import ModelError
from headrace.graph import load
from headrace.graph.trees import round_down

ROWS, CATEGORY = 600, 4

# float32 leaves and sums against doubles.
PROBABILITY_TOLERANCE, VALUE_TOLERANCE = 1e-6, 1e-5


def run(model: Any, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.to_proto().SerializeToString(), options)
    return session.run(None, {"x": x})


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Training rows with NaNs, exact zeros, ties, and a category in column CATEGORY; and a target."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 6)).astype(np.float32)
    x[:, 3] = np.round(x[:, 3], 1)
    x[:, CATEGORY] = rng.integers(0, 40, ROWS)
    x[:, 5] = np.where(rng.random(ROWS) < 0.5, 0, x[:, 5])
    y = x[:, 0] + np.sin(3 * x[:, 1]) + 2 * (x[:, CATEGORY] % 7 == 3) + x[:, 5] + 0.1 * rng.normal(size=ROWS)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, y


@pytest.fixture(scope="module")
def hard() -> np.ndarray:
    """Rows that look for trouble: unseen and broken categories, zeros of every kind, NaN."""
    rng = np.random.default_rng(4)
    x = (1.5 * rng.normal(size=(700, 6))).astype(np.float32)
    x[:, 3] = np.round(x[:, 3], 1)
    for value in (0.0, -0.0, 1e-36, -1e-36, 1e-35, 2e-35, 1e30, -1e30, np.nan):
        x[rng.random(x.shape) < 0.03] = value
    x[:, CATEGORY] = rng.integers(-2, 60, 700)
    x[::7, CATEGORY] += np.float32(0.6)
    x[::11, CATEGORY] = np.nan
    return x


TARGETS = {
    "binary": lambda y: (y > 0.5).astype(int),
    "cross_entropy": lambda y: (y > 0.5).astype(int),
    "multiclass": lambda y: np.digitize(y, [-0.5, 0.5, 1.5]),
    "regression": lambda y: y,
    "poisson": lambda y: np.exp(y / 3),
}


@pytest.mark.parametrize("categorical", [[], [CATEGORY]])
@pytest.mark.parametrize("missing", [{}, {"zero_as_missing": True}, {"use_missing": False}])
@pytest.mark.parametrize("objective", list(TARGETS))
def test_lightgbm_boosters(data, hard, categorical: list[int], missing: dict[str, bool], objective: str) -> None:
    x, y = data
    parameters = {
        "objective": objective,
        "num_leaves": 15,
        "verbose": -1,
        "num_threads": 1,
        "min_data_per_group": 5,
        **missing,
    }
    if objective == "multiclass":
        parameters["num_class"] = 4
    train = lightgbm.Dataset(x, TARGETS[objective](y), categorical_feature=categorical)
    booster = lightgbm.train(parameters, train, 12)
    model = load(booster)
    (prediction,) = run(model, hard)
    probability = objective in ("binary", "cross_entropy", "multiclass")
    tolerance = PROBABILITY_TOLERANCE if probability else VALUE_TOLERANCE
    np.testing.assert_allclose(prediction, booster.predict(hard), rtol=0, atol=tolerance)


def test_lightgbm_thresholds_fall_on_float32_inputs_as_on_doubles(data) -> None:
    x, y = data
    booster = lightgbm.train(
        {"objective": "regression", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(x.astype(np.float64), y), 10
    )
    text = booster.model_to_string()
    lines = [line for line in text.splitlines() if line.startswith("threshold=")]
    thresholds = np.unique(np.concatenate([np.array(line[10:].split(), dtype=np.float64) for line in lines]))
    near = np.concatenate([thresholds.astype(np.float32), round_down(thresholds)])
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    rows = np.repeat(near[:, None], 6, axis=1)
    np.testing.assert_allclose(run(load(booster), rows)[0], booster.predict(rows), rtol=0, atol=VALUE_TOLERANCE)


def test_rounding_down_keeps_every_comparison() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=1000).astype(np.float32)
    thresholds = np.concatenate(
        [exact.astype(np.float64), np.nextafter(exact.astype(np.float64), -1e9), [1e300, -1e300, 1e-320]]
    )
    down = round_down(thresholds)
    near = np.concatenate([exact, np.nextafter(exact, np.float32(9)), np.float32([np.inf, -np.inf, 0, 1e-45, 3.4e38])])
    want = near[:, None].astype(np.float64) <= thresholds[None, :]
    np.testing.assert_array_equal(near[:, None] <= down[None, :], want)


@pytest.mark.parametrize("labels", [np.array(["low", "high"]), np.array([3, 7])])
def test_lightgbm_classifiers_give_labels_and_probabilities(data, hard, labels: np.ndarray) -> None:
    x, y = data
    classifier = lightgbm.LGBMClassifier(n_estimators=8, verbose=-1, n_jobs=1).fit(x, labels[(y > 0.5).astype(int)])
    model = load(classifier)
    assert [spec.name for spec in model.signature.outputs] == ["label", "probabilities"]
    label, probabilities = run(model, hard)
    np.testing.assert_array_equal(label, classifier.predict(hard))
    np.testing.assert_allclose(probabilities, classifier.predict_proba(hard), rtol=0, atol=PROBABILITY_TOLERANCE)


def test_a_lightgbm_random_forest_is_averaged(data, hard) -> None:
    x, y = data
    parameters = {
        "objective": "regression",
        "boosting": "rf",
        "bagging_freq": 1,
        "bagging_fraction": 0.6,
        "verbose": -1,
    }
    booster = lightgbm.train({**parameters, "num_threads": 1}, lightgbm.Dataset(x, y), 8)
    np.testing.assert_allclose(run(load(booster), hard)[0], booster.predict(hard), rtol=0, atol=VALUE_TOLERANCE)


def test_what_lightgbm_cannot_be_imported_says_why(data) -> None:
    x, y = data
    with pytest.raises(ModelError, match="LGBMRegressor that is not fitted"):
        load(lightgbm.LGBMRegressor())
    parameters = {"objective": "regression", "linear_tree": True, "verbose": -1, "num_threads": 1}
    linear = lightgbm.train(parameters, lightgbm.Dataset(np.nan_to_num(x), y, params=parameters), 3)
    with pytest.raises(ModelError, match="linear trees"):
        load(linear)


XGB_TARGETS = {
    "binary:logistic": "binary",
    "binary:hinge": "binary",
    "multi:softprob": "multiclass",
    "multi:softmax": "multiclass",
    "reg:squarederror": "regression",
    "count:poisson": "poisson",
}


def xgb_input(x: np.ndarray, categorical: bool) -> np.ndarray:
    """XGBoost refuses negative categories."""
    if categorical:
        x = x.copy()
        x[:, CATEGORY] = np.where(x[:, CATEGORY] < 0, np.nan, x[:, CATEGORY])
    return x


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize("booster", ["gbtree", "dart"])
@pytest.mark.parametrize("objective", list(XGB_TARGETS))
def test_xgboost_boosters(data, hard, categorical: bool, booster: str, objective: str) -> None:
    x, y = data
    kinds = ["c" if categorical and column == CATEGORY else "q" for column in range(6)]
    parameters: dict[str, Any] = {"objective": objective, "booster": booster, "max_depth": 5, "nthread": 1}
    if booster == "dart":
        parameters["rate_drop"] = 0.3
    if objective.startswith("multi"):
        parameters["num_class"] = 4
    target = TARGETS[XGB_TARGETS[objective]](y)
    train = xgboost.DMatrix(x, target, feature_types=kinds, enable_categorical=True, nthread=1)
    trained = xgboost.train(parameters, train, 8)
    rows = xgb_input(hard, categorical)
    want = trained.predict(xgboost.DMatrix(rows, feature_types=kinds, enable_categorical=True, nthread=1))
    tolerance = PROBABILITY_TOLERANCE if objective in ("binary:logistic", "multi:softprob") else VALUE_TOLERANCE
    np.testing.assert_allclose(run(load(trained), rows)[0], want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("classes", [2, 4])
def test_xgboost_classifiers_give_labels_and_probabilities(data, hard, classes: int) -> None:
    x, y = data
    target = TARGETS["binary" if classes == 2 else "multiclass"](y)
    classifier = xgboost.XGBClassifier(n_estimators=6, n_jobs=1).fit(x, target)
    label, probabilities = run(load(classifier), hard)
    np.testing.assert_array_equal(label, classifier.predict(hard))
    np.testing.assert_allclose(probabilities, classifier.predict_proba(hard), rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("base_score", [None, 0.1, 0.5, 1e-7], ids=str)
@pytest.mark.parametrize("objective", ["binary:logistic", "binary:logitraw", "reg:logistic"])
def test_xgboost_takes_its_start_back_through_the_link(data, hard, objective: str, base_score: float | None) -> None:
    x, y = data
    parameters = {"objective": objective, "nthread": 1} | ({} if base_score is None else {"base_score": base_score})
    trained = xgboost.train(parameters, xgboost.DMatrix(x, TARGETS["binary"](y), nthread=1), 3)
    want = trained.predict(xgboost.DMatrix(hard, nthread=1))
    np.testing.assert_allclose(run(load(trained), hard)[0], want, rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize(
    ("objective", "target"), [("binary:logistic", 0), ("binary:logistic", 1), ("count:poisson", 0)]
)
def test_xgboost_trained_on_one_value(data, objective: str, target: int) -> None:
    x, _ = data
    trained = xgboost.train({"objective": objective, "nthread": 1}, xgboost.DMatrix(x, np.full(ROWS, target)), 2)
    want = trained.predict(xgboost.DMatrix(x[:5], nthread=1))
    np.testing.assert_allclose(run(load(trained), x[:5])[0], want, rtol=0, atol=1e-7)


def test_classifiers_of_two_columns_of_one_class_and_of_raw_scores(data, hard) -> None:
    x, y = data
    target = TARGETS["binary"](y)
    small: dict[str, Any] = {"n_estimators": 3, "n_jobs": 1}
    two_columns = xgboost.XGBClassifier(objective="multi:softprob", num_class=2, **small).fit(x, target)
    raw = xgboost.XGBClassifier(objective="binary:logitraw", **small).fit(x, target)
    one_class = lightgbm.LGBMClassifier(verbose=-1, **small).fit(x, 0 * target)
    softmax = lightgbm.LGBMClassifier(objective="multiclass", num_class=2, verbose=-1, **small).fit(x, target)
    for classifier in (two_columns, raw, one_class, softmax):
        label, probabilities = run(load(classifier), hard)
        want = classifier.predict_proba(hard)
        np.testing.assert_allclose(probabilities, want, rtol=0, atol=PROBABILITY_TOLERANCE)
        np.testing.assert_array_equal(label, want.argmax(axis=1))
    labels = np.stack([target, x[:, 1] > 0, x[:, 5] == 0], axis=1).astype(int)
    several = xgboost.XGBClassifier(**small).fit(x, labels)
    label, probabilities = run(load(several), hard)
    np.testing.assert_array_equal(label, several.predict(hard))
    np.testing.assert_allclose(probabilities, several.predict_proba(hard), rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.filterwarnings("ignore:.*customized objective function")
def test_a_lightgbm_classifier_with_an_objective_of_its_own_answers_raw_scores(data, hard) -> None:
    x, y = data

    def objective(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return scores - target, np.ones_like(scores)

    classifier = lightgbm.LGBMClassifier(objective=objective, n_estimators=3, n_jobs=1, verbose=-1)
    classifier.fit(x, TARGETS["binary"](y))
    (prediction,) = run(load(classifier), hard)
    np.testing.assert_allclose(prediction, classifier.predict_proba(hard), rtol=0, atol=VALUE_TOLERANCE)


def test_xgboost_estimators_use_their_best_iteration_and_their_missing_value(data, hard) -> None:
    x, y = data
    early = xgboost.XGBRegressor(n_estimators=60, early_stopping_rounds=2, n_jobs=1)
    early.fit(x[:400], y[:400], eval_set=[(x[400:], y[400:])], verbose=0)
    assert early.best_iteration < 59
    other = xgboost.XGBRegressor(n_estimators=6, missing=0, n_jobs=1).fit(np.nan_to_num(x, nan=0.0), y)
    rows = np.nan_to_num(hard, nan=0.0)
    np.testing.assert_allclose(run(load(early), hard)[0], early.predict(hard), rtol=0, atol=VALUE_TOLERANCE)
    np.testing.assert_allclose(run(load(other), rows)[0], other.predict(rows), rtol=0, atol=VALUE_TOLERANCE)


def test_what_xgboost_cannot_be_imported_says_why(data) -> None:
    x, y = data
    with pytest.raises(ModelError, match="XGBRegressor that is not fitted"):
        load(xgboost.XGBRegressor())
    linear = xgboost.train({"booster": "gblinear", "nthread": 1}, xgboost.DMatrix(np.nan_to_num(x), y, nthread=1), 3)
    with pytest.raises(ModelError, match="gblinear"):
        load(linear)
    with pytest.raises(ModelError, match="without trees"):
        load(xgboost.train({"nthread": 1}, xgboost.DMatrix(x, y, nthread=1), 0))
