"""scikit-learn estimators and pipelines, strings included, predict as they do in scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from headrace.errors import ModelError
from headrace.graph import load


def run(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.to_proto().SerializeToString(), options).run(None, feeds)


@pytest.fixture(scope="module")
def numbers() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    return x, x @ np.array([1.0, -2.0, 0.5, 3.0])


@pytest.fixture(scope="module")
def table() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "balance": rng.normal(1000, 500, 200),
            "income": rng.normal(4e4, 1e4, 200),
            "student": rng.choice(["Yes", "No"], 200),
            "region": rng.choice(["north", "süd", "east"], 200),
        }
    )
    return frame, ((frame.balance > 1200) ^ (frame.student == "Yes")).astype(int).to_numpy()


@pytest.mark.parametrize("with_rows", [True, False])
def test_a_pipeline_with_strings_takes_one_input_per_column(table, with_rows: bool) -> None:
    frame, y = table
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["balance", "income"]),
            ("words", OneHotEncoder(handle_unknown="ignore"), ["student", "region"]),
        ]
    )
    pipeline = Pipeline([("columns", columns), ("model", LogisticRegression())]).fit(frame, y)
    model = load(pipeline, example_inputs=frame.head(3) if with_rows else None)
    assert str(model.signature) == (
        "(balance: float32[batch, 1], income: float32[batch, 1], student: string[batch, 1], region: string[batch, 1])"
        " -> (label: int64[batch], probabilities: float32[batch, 2])"
    )
    unseen = frame.copy()
    unseen.loc[::5, "region"] = "elsewhere"
    feeds: dict[str, np.ndarray] = {name: unseen[[name]].to_numpy(np.float32) for name in ("balance", "income")}
    feeds |= {name: unseen[[name]].to_numpy(object) for name in ("student", "region")}
    label, probabilities = run(model, feeds)
    np.testing.assert_array_equal(label, pipeline.predict(unseen))
    np.testing.assert_allclose(probabilities, pipeline.predict_proba(unseen), rtol=0, atol=1e-5)


CLASSIFIERS = [
    LogisticRegression(),
    make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=30, random_state=0)),
    RandomForestClassifier(8, random_state=0),
    GradientBoostingClassifier(n_estimators=5),
    HistGradientBoostingClassifier(max_iter=5),
    DecisionTreeClassifier(),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array(["a", "b", "c"])], ids=["two", "three"])
def test_classifiers(numbers, estimator: Any, labels: np.ndarray) -> None:
    x, y = numbers
    estimator.fit(x, labels[np.digitize(y, [0, 2][: len(labels) - 1])])
    rows = np.random.default_rng(2).normal(size=(100, 4)).astype(np.float32)
    label, probabilities = run(load(estimator), {"x": rows})
    np.testing.assert_array_equal(label, estimator.predict(rows))
    np.testing.assert_allclose(probabilities, estimator.predict_proba(rows), rtol=0, atol=1e-5)


REGRESSORS = [
    LinearRegression(),
    make_pipeline(SimpleImputer(), MinMaxScaler(), Ridge()),
    ExtraTreesRegressor(8, random_state=0),
    HistGradientBoostingRegressor(max_iter=5),
    HistGradientBoostingRegressor(max_iter=5, loss="poisson"),
]


@pytest.mark.parametrize("estimator", REGRESSORS, ids=lambda e: type(e).__name__)
def test_regressors(numbers, estimator: Any) -> None:
    x, y = numbers
    estimator.fit(x, np.exp(y / 4))
    rows = np.random.default_rng(2).normal(size=(100, 4)).astype(np.float32)
    (prediction,) = run(load(estimator), {"x": rows})
    np.testing.assert_allclose(prediction.reshape(-1), estimator.predict(rows), rtol=1e-5, atol=1e-5)


def test_histogram_trees_treat_nan_as_scikit_learn_does(numbers) -> None:
    x, y = numbers
    x = x.copy()
    x[np.random.default_rng(5).random(x.shape) < 0.2] = np.nan
    estimator = HistGradientBoostingRegressor(max_iter=8).fit(x, y)
    np.testing.assert_allclose(run(load(estimator), {"x": x})[0], estimator.predict(x), rtol=1e-5, atol=1e-5)


def test_an_estimator_that_is_not_fitted_is_refused() -> None:
    for estimator in (LogisticRegression(), HistGradientBoostingRegressor()):
        with pytest.raises(ModelError, match="not fitted"):
            load(estimator)


@pytest.mark.parametrize(
    "last", [SVC(), LinearSVC(), SGDClassifier(random_state=0), RidgeClassifier(), SVC(probability=True)], ids=repr
)
@pytest.mark.filterwarnings("ignore")
def test_classifiers_without_probabilities_end_a_pipeline(numbers, last: Any) -> None:
    x, y = numbers
    fitted = make_pipeline(StandardScaler(), last).fit(x, np.digitize(y, [-1, 1]))
    np.testing.assert_array_equal(run(load(fitted, example_inputs=x[:20]), {"x": x})[0], fitted.predict(x))


@pytest.mark.parametrize("example", [True, False])
def test_texts_are_one_input_of_strings(example: bool) -> None:
    texts = ["good news", "bad news today", "good day", "bad bad"] * 3
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0] * 3)
    for rows in (texts[:2], np.array(texts[:2], dtype=object)) if example else (None,):
        model = load(fitted, example_inputs=rows)
        assert str(model.signature) == "(x: string[batch]) -> (label: int64[batch], probabilities: float32[batch, 2])"


def test_an_array_tells_how_many_features_there_are(numbers) -> None:
    x, y = numbers
    pipeline = Pipeline([("nothing", "passthrough"), ("model", RandomForestClassifier(3, random_state=0))])
    fitted = pipeline.fit(x, y > 0)
    for rows in (x[:2], None):
        assert str(load(fitted, example_inputs=rows).signature.inputs[0]) == "x: float32[batch, 4]"
    words = np.random.default_rng(0).choice(["red", "green", "blue"], (60, 2)).astype(object)
    fitted = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(words, words[:, 0] == "red")
    np.testing.assert_array_equal(run(load(fitted, example_inputs=words[:9]), {"x": words})[0], fitted.predict(words))


@pytest.mark.parametrize("estimator", [RandomForestRegressor(3), DecisionTreeRegressor(), LinearRegression()])
def test_regressors_of_several_targets_say_how_many(numbers, estimator: Any) -> None:
    x, y = numbers
    fitted = estimator.fit(x, np.stack([y, -y, y * y], axis=1))
    model = load(fitted, example_inputs=x[:5])
    assert str(model.signature.outputs[0]).endswith(": float32[batch, 3]")
    np.testing.assert_allclose(run(model, {"x": x})[0], fitted.predict(x), rtol=1e-5, atol=1e-5)


def test_classifiers_of_several_targets_say_which_dim_is_the_batch(numbers) -> None:
    x, y = numbers
    fitted = RandomForestClassifier(3, random_state=0).fit(x, np.stack([y > 0, x[:, 0] > 0, x[:, 1] > 0], axis=1))
    model = load(fitted, example_inputs=x[:5])
    assert [str(spec) for spec in model.signature.outputs] == [
        "label: int64[batch, 3]",
        "probabilities: float32[3, batch, 2]",
    ]
    label, probabilities = run(model, {"x": x})
    np.testing.assert_array_equal(label, fitted.predict(x))
    np.testing.assert_allclose(probabilities, fitted.predict_proba(x), rtol=0, atol=1e-6)
