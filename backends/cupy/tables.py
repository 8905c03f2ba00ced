"""The ops of ai.onnx.ml that prepare tables and score them linearly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from headrace.backends.cupy.arithmetic import plain, sigmoid
from headrace.backends.cupy.arrays import Array, Placed, is_float, library, same_place, to_numpy
from headrace.backends.cupy.networks import softmax
from headrace.backends.cupy.ops import Maker

from headrace.graph.script import Attributes, Untranslated

POST_TRANSFORMS: dict[str, Callable[[Array], Array]] = {
    "NONE": lambda scores: scores,
    "LOGISTIC": sigmoid,
    "SOFTMAX": lambda scores: softmax(scores, -1),
}


def post_transform(name: Any) -> Callable[[Array], Array]:
    """What turns scores into results.

    Raises:
        Untranslated: It is none of `POST_TRANSFORMS`.
    """
    if name not in POST_TRANSFORMS:
        raise Untranslated(f"got post_transform {name!r}, expected one of {', '.join(POST_TRANSFORMS)}")
    return POST_TRANSFORMS[name]


def class_labels(attributes: Attributes, ints: str, texts: str) -> np.ndarray[Any, Any]:
    """The labels of a classifier: int64, or objects where they are texts."""
    strings = attributes.get(texts)
    if strings:
        return np.array([item.decode() if isinstance(item, bytes) else item for item in strings], dtype=object)
    return np.array(attributes.get(ints) or [], dtype=np.int64)


def chosen_labels(scores: Array, labels: np.ndarray[Any, Any]) -> Array:
    """The label of each row's highest score, the first of equal ones. Texts are on the host, whatever `scores` are."""
    xp = library(scores)
    best = xp.argmax(scores, axis=-1)
    if labels.dtype == object:
        return labels[to_numpy(best)]
    return xp.take(same_place(labels, scores), best, axis=0)


def as_float(x: Array) -> Array:
    """`x`, as float32 unless it is already of a floating dtype."""
    xp = library(x)
    return x if is_float(x) else xp.astype(x, xp.float32)


def _linear(attributes: Attributes, rows: int) -> Callable[[Array], Array]:
    coefficients = Placed(np.array(attributes.get("coefficients"), np.float32).reshape(rows, -1).T)
    intercepts = attributes.get("intercepts")
    offsets = None if not intercepts else Placed(np.array(intercepts, np.float32))

    def run(x: Array) -> Array:
        x = as_float(x)
        xp = library(x)
        if x.ndim == 1:
            x = xp.reshape(x, (1, -1))
        scores = xp.matmul(x, xp.astype(coefficients.like(x), x.dtype))
        return scores if offsets is None else scores + xp.astype(offsets.like(x), x.dtype)

    return run


def _linear_regressor(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    score, finish = _linear(attributes, attributes.get("targets", 1)), post_transform(
        attributes.get("post_transform", "NONE")
    )  # fmt: skip
    return lambda x: finish(score(x))


def _linear_classifier(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    labels = class_labels(attributes, "classlabels_ints", "classlabels_strings")
    transform = attributes.get("post_transform", "NONE")
    finish = post_transform(transform)
    intercepts = attributes.get("intercepts") or []
    if len(labels) < 2:
        raise Untranslated(f"got {len(labels)} class labels, expected at least 2")
    one_score = len(labels) == 2 and len(intercepts) == 1
    score = _linear(attributes, 1 if one_score else len(labels))

    def run(x: Array) -> tuple[Array, Array]:
        scores = score(x)
        xp = library(scores)
        if one_score:
            scores = xp.concat((-scores, scores), axis=1)
        results = finish(scores)
        return chosen_labels(results, labels), xp.astype(results, xp.float32)

    return run


def _scaler(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    offset = Placed(np.array(attributes.get("offset") or [0.0], np.float32))
    scale = Placed(np.array(attributes.get("scale") or [1.0], np.float32))

    def run(x: Array) -> Array:
        xp = library(x)
        return (xp.astype(x, xp.float32) - offset.like(x)) * scale.like(x)

    return run


def _one_hot(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    texts, ints, zeros = attributes.get("cats_strings"), attributes.get("cats_int64s"), attributes.get("zeros", 1)
    categories = class_labels(attributes, "cats_int64s", "cats_strings")
    if bool(texts) == bool(ints):
        raise Untranslated("OneHotEncoder needs either cats_strings or cats_int64s")

    def run(x: Array) -> Array:
        if x.dtype == object:
            found = x[..., None] == categories
        else:
            xp = library(x)
            found = xp.expand_dims(xp.astype(x, xp.int64), axis=-1) == same_place(categories, x)
        if not zeros and not library(found).all(library(found).any(found, axis=-1)):
            raise ValueError(f"got a value that is none of the {len(categories)} categories, expected one of them")
        return library(found).astype(found, library(found).float32)

    return run


def _normalizer(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    norm = attributes.get("norm", "MAX")
    if norm not in ("MAX", "L1", "L2"):
        raise Untranslated(f"got norm {norm!r}, expected MAX, L1 or L2")

    def run(x: Array) -> Array:
        x = as_float(x)
        xp = library(x)
        if norm == "MAX":
            size = xp.max(xp.abs(x), axis=-1, keepdims=True)
        elif norm == "L1":
            size = xp.sum(xp.abs(x), axis=-1, keepdims=True)
        else:
            size = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))
        return xp.astype(x / xp.maximum(size, xp.full_like(size, 1e-30)), xp.float32)

    return run


def _imputer(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    floats, ints = attributes.get("imputed_value_floats"), attributes.get("imputed_value_int64s")
    values = np.array(floats, np.float32) if floats else np.array(ints or [], np.int64)
    replaced = attributes.get("replaced_value_float", 0.0) if floats else attributes.get("replaced_value_int64", 0)
    if not len(values):
        raise Untranslated("Imputer without values")

    def run(x: Array) -> Array:
        xp = library(x)
        missing = xp.isnan(x) if floats and math.isnan(replaced) else x == replaced
        return xp.where(missing, xp.astype(same_place(values, x), x.dtype), x)

    return run


def _binarizer(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    threshold = attributes.get("threshold", 0.0)
    return lambda x: library(x).astype(x > threshold, x.dtype)


def _extract(x: Array, indices: Array) -> Array:
    xp = library(x)
    if x.ndim == 1:
        x = xp.reshape(x, (1, -1))
    flat = indices.reshape(-1) if x.dtype == object else xp.reshape(indices, (-1,))
    return np.take(x, flat, -1) if x.dtype == object else xp.take(x, flat, axis=x.ndim - 1)


OPS: dict[str, Maker] = {
    "ai.onnx.ml.LinearClassifier": _linear_classifier,
    "ai.onnx.ml.LinearRegressor": _linear_regressor,
    "ai.onnx.ml.Scaler": _scaler,
    "ai.onnx.ml.OneHotEncoder": _one_hot,
    "ai.onnx.ml.Normalizer": _normalizer,
    "ai.onnx.ml.Imputer": _imputer,
    "ai.onnx.ml.Binarizer": _binarizer,
    "ai.onnx.ml.ArrayFeatureExtractor": plain(_extract),
}
