"""Every split of scikit-learn's, LightGBM's and XGBoost's trees is decided as in the library, where it is hardest."""

from __future__ import annotations

import os
from typing import Any

# Beside other work, OpenMP threads that wait for each other make tiny trainings take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

import headrace as hr
from headrace.errors import ModelError

# float32 leaves and outputs against doubles; a wrong decision changes a value by far more.
TOLERANCE = 2e-6
FEATURES, CATEGORY = 5, 4
# All columns of a row have the same value: one, or a neighbour of one, that some split compares with.
NEIGHBOURS = (np.float32(-np.inf), np.float32(np.inf))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, FEATURES)).astype(np.float32)
    x[:, 3] = np.round(x[:, 3], 1)
    return x, x[:, 0] + np.sin(3 * x[:, 1]) + 0.1 * rng.normal(size=400)


def holes(x: np.ndarray, share: float = 0.15) -> np.ndarray:
    return np.where(np.random.default_rng(7).random(x.shape) < share, np.float32(np.nan), x)


def rows_at(thresholds: np.ndarray) -> np.ndarray:
    """Rows of the thresholds, rounded to float32, and of both neighbours of each."""
    near = np.unique(thresholds.astype(np.float32))
    near = near[np.isfinite(near)]
    near = np.concatenate([near, *(np.nextafter(near, towards) for towards in NEIGHBOURS)])
    return np.repeat(near[:: len(near) // 3000 + 1, None], FEATURES, axis=1)


def run(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    loaded = hr.load(model)
    return loaded.compile(backend="native", threads=2)({loaded.signature.inputs[0].name: x})


def check_probabilities(estimator: Any, rows: np.ndarray) -> None:
    got, want = run(estimator, rows), estimator.predict_proba(rows)
    np.testing.assert_allclose(got["probabilities"], want, rtol=0, atol=TOLERANCE)
    clear = np.ptp(np.sort(want, axis=1)[:, -2:], axis=1) > 1e-6  # where it is not, rounding decides
    np.testing.assert_array_equal(got["label"][clear], estimator.predict(rows)[clear])


CLASSIFIERS = {
    "tree": DecisionTreeClassifier(),
    "forest": RandomForestClassifier(8, random_state=0),
    "extra": ExtraTreesClassifier(8, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=8),
}
REGRESSORS = {
    "tree": DecisionTreeRegressor(),
    "forest": RandomForestRegressor(8, random_state=0),
    "extra": ExtraTreesRegressor(8, random_state=0),
    "boosting": GradientBoostingRegressor(n_estimators=8),
    "huber": GradientBoostingRegressor(n_estimators=8, loss="huber", init="zero"),
}
NO_NAN = ("boosting", "huber")


def thresholds_of(estimator: Any) -> np.ndarray:
    members = np.ravel(getattr(estimator, "estimators_", [estimator]))
    return np.concatenate([member.tree_.threshold[member.tree_.feature >= 0] for member in members])


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing"])
@pytest.mark.parametrize("classes", [np.array([3, 7]), np.array(["a", "b", "c"])], ids=["two", "three"])
@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_classifiers(data, name: str, classes: np.ndarray, missing: bool) -> None:
    if missing and name in NO_NAN:
        pytest.skip("scikit-learn's GradientBoosting takes no NaN")
    x, y = data
    estimator = CLASSIFIERS[name].fit(
        holes(x) if missing else x, classes[np.digitize(y, [-0.5, 0.5][-len(classes) + 1 :])]
    )
    rows = rows_at(thresholds_of(estimator))
    check_probabilities(estimator, holes(rows) if missing else rows)


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing"])
@pytest.mark.parametrize("name", list(REGRESSORS))
def test_regressors(data, name: str, missing: bool) -> None:
    if missing and name in NO_NAN:
        pytest.skip("scikit-learn's GradientBoosting takes no NaN")
    x, y = data
    estimator = REGRESSORS[name].fit(holes(x) if missing else x, y)
    rows = rows_at(thresholds_of(estimator))
    rows = holes(rows) if missing else rows
    np.testing.assert_allclose(run(estimator, rows)["prediction"], estimator.predict(rows), rtol=0, atol=TOLERANCE)


def test_an_exponential_loss_and_a_start_that_is_a_model(data) -> None:
    x, y = data
    check_probabilities(GradientBoostingClassifier(n_estimators=5, loss="exponential").fit(x, y > 0), x)
    # Through skl2onnx, which refuses it: it must not be taken for a constant.
    with pytest.raises(ModelError, match="GradientBoostingRegressor"):
        hr.load(GradientBoostingRegressor(n_estimators=3, init=Ridge()).fit(x, y))


@pytest.mark.parametrize(
    "estimator",
    [
        GradientBoostingClassifier(n_estimators=2, max_depth=1),
        GradientBoostingClassifier(n_estimators=2, max_depth=1, loss="exponential"),
        HistGradientBoostingClassifier(max_iter=2, max_depth=1, min_samples_leaf=1),
    ],
    ids=["log_loss", "exponential", "histogram"],
)
def test_a_tie_of_two_classes_goes_where_scikit_learn_sends_it(estimator: Any) -> None:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 10, dtype=np.float32)  # exclusive or: no split gains anything
    estimator.fit(x, np.array(["off", "on", "on", "off"] * 10))
    assert not estimator.decision_function(x).any()
    np.testing.assert_array_equal(run(estimator, x)["label"], estimator.predict(x))


@pytest.mark.parametrize("settings", [{}, {"max_features": 0.6}, {"contamination": 0.2}, {"max_samples": 1}], ids=str)
def test_isolation_forests(data, settings: dict[str, Any]) -> None:
    x, _ = data
    forest = IsolationForest(n_estimators=10, random_state=0, **settings).fit(x)
    thresholds = np.concatenate([member.tree_.threshold for member in forest.estimators_])
    rows = np.concatenate([rows_at(thresholds), holes(x)])
    got = run(forest, rows)
    decision = forest.decision_function(rows)
    np.testing.assert_allclose(got["score_samples"], forest.score_samples(rows), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(got["scores"], decision, rtol=0, atol=TOLERANCE)
    clear = np.abs(decision) > TOLERANCE
    np.testing.assert_array_equal(got["label"][clear], forest.predict(rows)[clear])


def with_categories(data: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows with a category in column CATEGORY, a target, and rows with unseen and broken categories."""
    x, y = data
    rng = np.random.default_rng(1)
    x = holes(x, 0.05)
    category = rng.integers(0, 30, len(x))
    x[:, CATEGORY] = np.where(category == 5, np.nan, 3 * category)
    rows = x.copy()
    rows[:, CATEGORY] = rng.integers(0, 100, len(x))
    for step, (column, value) in enumerate([(CATEGORY, np.nan), (CATEGORY, 1e9), (0, np.inf), (1, -np.inf)]):
        rows[step :: 11 + step, column] = value
    rows[::5, CATEGORY] += np.float32(0.5)
    return x, y + 2 * (category % 3 == 1), rows


@pytest.mark.parametrize("classes", [0, 2, 3], ids=["values", "two", "three"])
def test_histogram_boosting_with_categories(data, classes: int) -> None:
    x, y, rows = with_categories(data)
    rows[3::13, CATEGORY] = -7
    if classes:
        model = HistGradientBoostingClassifier(max_iter=8, categorical_features=[1, CATEGORY])
        rows[np.isinf(rows)] = 0  # scikit-learn's encoder of column 1 refuses it
        x[:, 1], rows[:, 1] = np.round(x[:, 1], 1), np.round(rows[:, 1], 1)
        check_probabilities(model.fit(x, np.digitize(y, [0.5, 1.5][: classes - 1])), rows)
    else:
        model = HistGradientBoostingRegressor(max_iter=8, categorical_features=[CATEGORY]).fit(x, y)
        np.testing.assert_allclose(run(model, rows)["prediction"], model.predict(rows), rtol=0, atol=TOLERANCE)


def test_lightgbm_with_categories_infinities_and_rows_at_its_thresholds(data) -> None:
    x, y, rows = with_categories(data)
    parameters = {"objective": "regression", "verbose": -1, "num_threads": 1, "min_data_per_group": 5}
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, y, categorical_feature=[CATEGORY]), 10)
    table = booster.trees_to_dataframe()
    thresholds = table.threshold[table.decision_type == "<="].to_numpy(dtype=float)
    for hard in (rows, rows_at(thresholds)):
        np.testing.assert_allclose(run(booster, hard)["prediction"], booster.predict(hard), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("base_score", [None, 0.3])
def test_xgboost_with_categories_and_rows_at_its_thresholds(data, base_score: float | None) -> None:
    x, y, rows = with_categories(data)
    rows = np.where(np.isinf(rows), np.float32(0), rows)  # which it refuses
    settings: dict[str, Any] = {"n_estimators": 10, "n_jobs": 1, "base_score": base_score}
    plain = xgboost.XGBRegressor(**settings).fit(x, y)
    table = plain.get_booster().trees_to_dataframe()
    hard = rows_at(table.Split[table.Feature != "Leaf"].to_numpy(dtype=float))
    np.testing.assert_allclose(run(plain, hard)["prediction"], plain.predict(hard), rtol=0, atol=TOLERANCE)
    kinds = ["c" if column == CATEGORY else "q" for column in range(FEATURES)]
    settings |= {"enable_categorical": True, "feature_types": kinds}
    sets = xgboost.XGBClassifier(**settings).fit(x, y > 0)
    got, want = run(sets, rows), sets.predict_proba(rows)
    np.testing.assert_allclose(got["probabilities"], want, rtol=0, atol=TOLERANCE)


PIPELINES = {
    "lightgbm": lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1),
    "xgboost": xgboost.XGBClassifier(n_estimators=5, n_jobs=1),
    "histograms": HistGradientBoostingClassifier(max_iter=5),
    "forest": RandomForestClassifier(5, random_state=0),
}


@pytest.mark.filterwarnings("ignore")  # about feature names that a pipeline does not hand on
@pytest.mark.parametrize("name", list(PIPELINES))
def test_trees_at_the_end_of_a_pipeline(data, name: str) -> None:
    x, y = data
    pipeline = make_pipeline(SimpleImputer(), StandardScaler(), PIPELINES[name]).fit(x, (y > 0).astype(int))
    outputs = "(label: int64[batch], probabilities: float32[batch, 2])"
    assert str(hr.load(pipeline).signature) == f"(x: float32[batch, {FEATURES}]) -> {outputs}"
    rows = np.random.default_rng(3).normal(size=(300, FEATURES)).astype(np.float32)
    got, want = run(pipeline, rows), pipeline.predict_proba(rows)
    # The two scale with roundings of their own, so that a rare value falls on the other side of a split.
    same = np.abs(got["probabilities"] - want).max(axis=1) < TOLERANCE
    assert same.mean() > 0.98
    check_probabilities(make_pipeline(PIPELINES[name]), holes(rows))
