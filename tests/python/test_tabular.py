"""Tabular models on the native backend predict what scikit-learn and ONNX Runtime predict, strings included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Binarizer, MinMaxScaler, Normalizer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC, SVR, OneClassSVM

import headrace as hr

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def numbers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4)).astype(np.float32)
    return x, x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.2 * rng.normal(size=160)


@pytest.fixture(scope="module")
def table() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "balance": np.where(rng.random(200) < 0.1, np.nan, rng.normal(1000, 500, 200)),
            "student": rng.choice(["Yes", "No"], 200),
            "region": rng.choice(["north", "süd", "east", ""], 200),
        }
    )
    return frame, np.where((frame.balance > 1200) ^ (frame.student == "Yes"), "default", "paid")


def native(model: hr.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(model.compile(backend="native", threads=2)(feeds).values())


def both(proto: Any, feeds: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the native backend and what ONNX Runtime make of a ModelProto."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return native(hr.load(proto), feeds), session.run(None, feeds)


@pytest.mark.parametrize(
    "encoder", [OneHotEncoder(handle_unknown="ignore"), OrdinalEncoder()], ids=["one-hot", "ordinal"]
)
def test_a_pipeline_with_strings_and_missing_values(table, encoder: Any) -> None:
    frame, y = table
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["balance"]),
            ("strings", encoder, ["student", "region"]),
        ]
    )
    pipeline = make_pipeline(columns, LogisticRegression()).fit(frame, y)
    proto = to_onnx(pipeline, frame[:1], options={"zipmap": False})
    feeds = {name: frame[[name]].to_numpy(object if name != "balance" else np.float64) for name in frame.columns}
    model = hr.load(proto)
    feeds = {
        spec.name: feeds[spec.name].astype(spec.dtype if spec.name == "balance" else object)
        for spec in model.signature.inputs
    }
    label, probabilities = native(model, feeds)
    np.testing.assert_allclose(probabilities, pipeline.predict_proba(frame), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(label, pipeline.predict(frame))


@pytest.mark.parametrize(
    "transform",
    [
        SimpleImputer(strategy="mean"),
        StandardScaler(),
        MinMaxScaler(),
        Normalizer("l1"),
        Normalizer("l2"),
        Normalizer("max"),
        Binarizer(threshold=0.2),
        SelectKBest(f_classif, k=2),
    ],
    ids=lambda transform: type(transform).__name__ + str(getattr(transform, "norm", "")),
)
def test_sklearn_transforms(numbers, transform: Any) -> None:
    x, y = numbers
    transform.fit(x, y > 0)
    rows = x.copy()
    if isinstance(transform, SimpleImputer):
        rows[::5, 1] = np.nan
    (got,) = native(hr.load(to_onnx(transform, x[:1])), {"X": rows})
    np.testing.assert_allclose(got, transform.transform(rows), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("labels", [["no", "yes"], [1, 4, 9]], ids=["strings", "ints"])
@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf", "sigmoid"])
@pytest.mark.parametrize("probability", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_support_vector_classifiers(numbers, kernel: str, probability: bool, labels: list[Any]) -> None:
    x, y = numbers
    target = np.array(labels)[np.digitize(y, [0] if len(labels) == 2 else [-0.5, 0.5])]
    svc = SVC(kernel=kernel, probability=probability, random_state=0).fit(x, target)
    got, want = both(to_onnx(svc, x[:1], options={"zipmap": False}), {"X": x})
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=TOLERANCE)
    if probability:
        np.testing.assert_allclose(got[1], svc.predict_proba(x), rtol=0, atol=1e-3)  # an iteration that stops early
    np.testing.assert_array_equal(got[0], svc.predict(x))


@pytest.mark.parametrize("estimator", [SVR(), SVR(kernel="poly"), OneClassSVM(), LinearRegression()], ids=repr)
def test_regressors_and_outlier_detectors(numbers, estimator: Any) -> None:
    x, y = numbers
    estimator.fit(x, y)
    got = native(hr.load(to_onnx(estimator, x[:1])), {"X": x})[0]
    np.testing.assert_allclose(got.ravel(), estimator.predict(x), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("post_transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("scores", [1, 2, 3])
def test_linear_classifiers_as_onnx_runtime(numbers, scores: int, post_transform: str) -> None:
    x, _ = numbers
    rng = np.random.default_rng(scores)
    node = helper.make_node(
        "LinearClassifier",
        ["X"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        coefficients=rng.normal(size=4 * scores).tolist(),
        intercepts=rng.normal(size=scores).tolist(),
        classlabels_ints=list(range(max(scores, 2))),
        post_transform=post_transform,
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", max(scores, 2)]),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    got, want = both(proto, {"X": x})
    np.testing.assert_array_equal(got[0], want[0])
    if scores == 1 and post_transform != "LOGISTIC":
        # ONNX Runtime gives (1 - s, s) here; ONNX's own evaluator starts from (-s, s).
        want = ReferenceEvaluator(proto).run(None, {"X": x})
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=TOLERANCE)


KEYS = {
    "strings": (["a", "süd", ""], TensorProto.STRING, np.array(["süd", "zzz", "a", ""], dtype=object)),
    "int64s": ([5, -3, 7], TensorProto.INT64, np.array([-3, 8, 5, 7])),
    "floats": ([0.5, float("nan"), 2.0], TensorProto.FLOAT, np.array([np.nan, 9, 0.5, 2], dtype=np.float32)),
}


@pytest.mark.parametrize("values", list(KEYS))
@pytest.mark.parametrize("keys", list(KEYS))
def test_label_encoders_as_onnx_runtime(keys: str, values: str) -> None:
    known, key_type, x = KEYS[keys]
    node = helper.make_node(
        "LabelEncoder",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        **{f"keys_{keys}": known, f"values_{values}": KEYS[values][0]},
    )
    graph = helper.make_graph(
        [node],
        "encoder",
        [helper.make_tensor_value_info("x", key_type, ["n"])],
        [helper.make_tensor_value_info("y", KEYS[values][1], ["n"])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 4)]
    got, want = both(helper.make_model(graph, opset_imports=opsets, ir_version=9), {"x": x})
    np.testing.assert_array_equal(got[0], want[0])
