"""scikit-learn pipelines of tables whose columns are of several dtypes predict as they do in scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import OneClassSVM

from headrace.errors import DtypeMismatch, ModelError
from headrace.graph import load

ROWS = 80


def request(model: Any, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The columns that the signature names, or all as the one that it has, as it wants them."""
    if [spec.name for spec in model.signature.inputs] == ["x"]:
        return {"x": frame.to_numpy(np.float32)}
    return {spec.name: frame[[spec.name]].to_numpy().astype(spec.numpy_dtype) for spec in model.signature.inputs}


def assert_agrees(fitted: Any, frame: pd.DataFrame, example: Any) -> Any:
    """Compares probabilities and labels on all rows with scikit-learn's own."""
    model = load(fitted, example_inputs=example)
    got = model.compile(backend="native", threads=1)(request(model, frame))
    np.testing.assert_allclose(got["probabilities"], fitted.predict_proba(frame), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got["label"], fitted.predict(frame))
    return model


@pytest.fixture(scope="module")
def floats() -> tuple[pd.DataFrame, np.ndarray]:
    x = np.random.default_rng(0).random((ROWS, 4))
    return pd.DataFrame(x, columns=list("abcd")), (x[:, 0] + x[:, 1] > 1).astype(int)


MADE_OF = {
    "int": lambda column: (column * 10).astype(int),
    "int8": lambda column: (column * 10).astype(np.int8),
    "bool": lambda column: column > 0.5,
    "nullable": lambda column: (column * 10).astype(int).astype("Int64"),
    "category": lambda column: (column * 3).astype(int).astype("category"),
    "object": lambda column: (column * 10).astype(int).astype(object),
}
FIRST = [StandardScaler(), MinMaxScaler(), RobustScaler(), MaxAbsScaler(), SimpleImputer(), PolynomialFeatures(2)]
FIRST.append(make_union(StandardScaler(), MinMaxScaler()))


@pytest.mark.parametrize("where", ["a", "d", "ac", "abcd"])
@pytest.mark.parametrize("first", FIRST, ids=lambda first: type(first).__name__)
def test_columns_of_ints_beside_floats_are_not_cut_off(floats, first: Any, where: str) -> None:
    frame, y = floats
    mixed = frame.assign(**{name: MADE_OF["int"](frame[name]) for name in where})
    model = assert_agrees(make_pipeline(first, LogisticRegression(max_iter=500)).fit(mixed, y), mixed, mixed[:2])
    assert {spec.name for spec in model.signature.inputs if spec.dtype == "int64"} == set(where)


@pytest.mark.parametrize("last", [LogisticRegression(), RandomForestClassifier(5, random_state=0)], ids=["skl", "own"])
@pytest.mark.parametrize("made", list(MADE_OF))
def test_columns_of_other_dtypes_beside_floats(floats, made: str, last: Any) -> None:
    frame, y = floats
    mixed = frame.assign(a=MADE_OF[made](frame.a), c=MADE_OF[made](frame.c))
    assert_agrees(make_pipeline(StandardScaler(), last).fit(mixed, y), mixed, mixed[:3])


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("encoder", [OneHotEncoder(), OrdinalEncoder()], ids=["one-hot", "ordinal"])
def test_ints_that_are_categories_and_numbers_at_once(floats, encoder: Any, example: bool) -> None:
    frame, y = floats
    mixed = frame.assign(a=(frame.a * 4).astype(int), b=(frame.b * 4).astype(int) + (1 << 40), c=frame.c.round())
    columns = make_column_transformer(
        (StandardScaler(), ["a", "d"]), (encoder, ["a", "b"]), (MinMaxScaler(), ["a", "c"]), remainder="drop"
    )
    assert_agrees(make_pipeline(columns, LogisticRegression()).fit(mixed, y), mixed, mixed[:9] if example else None)


@pytest.mark.parametrize("example", [True, False])
def test_columns_that_are_dropped_are_no_inputs(floats, example: bool) -> None:
    frame, y = floats
    mixed = frame.assign(b=np.where(frame.b > 0.5, "yes", "no"), d=np.where(frame.d > 0.5, "left", "right"))
    columns = ColumnTransformer([("scale", StandardScaler(), ["c", "a"])], remainder="drop")
    fitted = make_pipeline(columns, LogisticRegression()).fit(mixed, y)
    model = assert_agrees(fitted, mixed, mixed[:3] if example else None)
    assert [spec.name for spec in model.signature.inputs] == ["a", "c"]


def test_a_search_is_the_best_it_found(floats) -> None:
    frame, y = floats
    mixed = frame.assign(a=(frame.a * 10).astype(int), b=np.where(frame.b > 0.5, "yes", "no"))
    columns = make_column_transformer((OneHotEncoder(), ["b"]), (StandardScaler(), ["a", "c"]))
    search = GridSearchCV(make_pipeline(columns, LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=2)
    assert_agrees(search.fit(mixed, y), mixed, mixed[:3])


def test_a_lone_estimator_takes_columns_of_numbers_as_one_input(floats) -> None:
    frame, y = floats
    mixed = frame.assign(a=(frame.a * 10).astype(int))
    for estimator in (LogisticRegression(), RandomForestClassifier(3, random_state=0)):
        fitted = estimator.fit(mixed, y)
        model = load(fitted, example_inputs=mixed[:2])
        got = model.compile(backend="native", threads=1)({"x": mixed.to_numpy(np.float32)})
        np.testing.assert_allclose(got["probabilities"], fitted.predict_proba(mixed), rtol=0, atol=1e-5)


def test_inputs_may_have_the_names_of_outputs(floats) -> None:
    frame, y = floats
    mixed = frame.rename(columns={"a": "label", "b": "probabilities", "c": "variable"})
    mixed = mixed.assign(label=(mixed.label * 10).astype(int))
    for last in (LogisticRegression(), RandomForestClassifier(3, random_state=0)):
        fitted = make_pipeline(StandardScaler(), last).fit(mixed, y)
        model = load(fitted, example_inputs=mixed[:2])
        label, probabilities = model.compile(backend="native", threads=1)(request(model, mixed)).values()
        np.testing.assert_allclose(probabilities, fitted.predict_proba(mixed), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(label, fitted.predict(mixed))


def test_an_import_that_disagrees_with_the_estimator_is_refused(floats) -> None:
    frame, y = floats
    times = frame.assign(a=1e12 + 1e4 * frame.a)  # all of which are one float32
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(times, y)
    with pytest.raises(ModelError, match=r"disagrees with it on .* rows of example_inputs. Row .*: got .*, expected"):
        load(fitted, example_inputs=times)


def test_one_row_of_few_may_lie_where_rounding_decides() -> None:
    rows = load_iris().data
    fitted = OneClassSVM(nu=0.3).fit(rows)
    label = load(fitted, example_inputs=rows[:3]).compile(backend="native", threads=1)({"x": rows.astype(np.float32)})
    wrong = next(iter(label.values())).ravel() != fitted.predict(rows)
    assert wrong.sum() <= 3


def test_rows_that_are_only_there_for_their_dtypes_are_not_compared(floats) -> None:
    frame, y = floats
    mixed = frame.assign(b=np.where(frame.b > 0.5, "yes", "no"))
    columns = make_column_transformer((OneHotEncoder(), ["b"]), (StandardScaler(), ["a", "c", "d"]))
    fitted = make_pipeline(columns, LogisticRegression()).fit(mixed, y)
    for stranger in ("maybe", None):  # which scikit-learn refuses too
        assert len(load(fitted, example_inputs=mixed[:1].assign(b=stranger)).signature.inputs) == 4


def test_what_cannot_be_converted_says_so(floats) -> None:
    frame, y = floats
    fitted = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(frame, y)
    with pytest.raises(ModelError, match="cannot convert Pipeline"):
        load(fitted, example_inputs=frame[:2])


def test_a_gap_in_a_column_of_strings_is_told_with_its_place(floats) -> None:
    frame, y = floats
    mixed = frame.assign(b=np.where(frame.b > 0.5, "yes", "no"))
    columns = make_column_transformer((OneHotEncoder(), ["b"]), (StandardScaler(), ["a"]))
    model = load(make_pipeline(columns, LogisticRegression()).fit(mixed, y))
    for gap in (None, np.nan):
        feeds = request(model, mixed)
        feeds["b"][7, 0] = gap
        with pytest.raises(DtypeMismatch, match=r"input 'b': got (None|nan) .* at \[7, 0\], expected str"):
            model.compile(backend="native", threads=1)(feeds)
