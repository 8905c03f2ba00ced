"""Imports fitted scikit-learn estimators and pipelines: trees by our own importers, the rest through skl2onnx."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import ModelError
from headrace.extras import needs
from headrace.graph._onnx_ir import ir
from headrace.graph.join import join
from headrace.graph.onnx_file import from_proto

if TYPE_CHECKING:
    from headrace.graph.importer import Hints

# The newest opsets skl2onnx's converters are written for that every runtime has.
_TARGET_OPSET = {"": 18, "ai.onnx.ml": 3}


def convert(source: Any, hints: Hints) -> ir.Model:
    """A fitted estimator or pipeline as IR. Classifiers answer ``label`` and ``probabilities`` (no ZipMap).

    One float32 input ``x`` [batch, features] where all columns are numbers and the model takes them by position;
    otherwise one input per column, [batch, 1], named after it: float32, int64 or string.

    Args:
        source: The estimator.
        hints: `example_inputs`, a few rows, tell the columns and their dtypes where the estimator does not.

    Raises:
        ModelError: It is not fitted, or skl2onnx lacks a converter for one of its parts.
        BackendUnavailable: skl2onnx is needed, and not installed.
    """
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(source).__name__
    try:
        check_is_fitted(source)
    except NotFittedError as error:
        raise ModelError(f"got a {name} that is not fitted, expected a fitted one") from error
    steps = list(getattr(source, "steps", ()))
    last = steps[-1][1] if steps else source
    own = _own_converter(last, hints)
    if own is None:
        return _through_skl2onnx(source, _inputs(source, hints), source)
    if len(steps) > 1:
        from sklearn.pipeline import Pipeline

        return join(_through_skl2onnx(Pipeline(steps[:-1]), _inputs(source, hints), source), own(last))
    if not steps and _columns(source, hints.example_inputs) is not None:
        # Columns of their own dtypes, which skl2onnx's graph puts together.
        return _through_skl2onnx(source, _inputs(source, hints), source)
    return own(last)


def _own_converter(estimator: Any, hints: Hints) -> Callable[[Any], ir.Model] | None:
    """The importer of ours for this kind of estimator, or None."""
    from headrace.graph import from_hist_gradient_boosting, from_lightgbm, from_sklearn_trees, from_xgboost

    kind = type(estimator)
    if kind.__module__.startswith("sklearn.") and kind.__name__.startswith("HistGradientBoosting"):
        return from_hist_gradient_boosting.convert
    bases = {(base.__module__.split(".")[0], base.__name__) for base in kind.__mro__}
    if ("lightgbm", "LGBMModel") in bases:
        return lambda fitted: from_lightgbm.convert(fitted, hints)
    if ("xgboost", "XGBModel") in bases:
        return lambda fitted: from_xgboost.convert(fitted, hints)
    return from_sklearn_trees.converter(estimator)


def _through_skl2onnx(source: Any, inputs: list[tuple[str, Any]], whole: Any) -> ir.Model:
    """`source`, all of `whole` or its first steps, with these inputs."""
    with needs("sklearn", f"headrace.load: a {type(whole).__name__} of scikit-learn"):
        from skl2onnx import convert_sklearn

    name = type(whole).__name__
    options = {id(part): {"zipmap": False} for part in _parts(source) if hasattr(part, "predict_proba")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proto = convert_sklearn(source, initial_types=inputs, options=options, target_opset=_TARGET_OPSET)
    except Exception as error:
        raise ModelError(
            f"skl2onnx cannot convert {name}: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    model = from_proto(proto, f"sklearn {name}")
    _name_outputs(model.graph)
    _name_batch(model.graph, source)
    return model


def _parts(estimator: Any) -> Iterator[Any]:
    """`estimator` and the last steps inside it that may answer probabilities."""
    yield estimator
    for step in getattr(estimator, "steps", ()):
        yield from _parts(step[1])


def _inputs(source: Any, hints: Hints) -> list[tuple[str, Any]]:
    with needs("sklearn", f"headrace.load: a {type(source).__name__} of scikit-learn"):
        from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    kinds = {"float": FloatTensorType, "int": Int64TensorType, "string": StringTensorType}
    columns = _columns(source, hints.example_inputs)
    if columns is None:
        features = getattr(source, "n_features_in_", None)
        if features is None:
            raise ModelError(
                f"got a {type(source).__name__} that does not say how many features it takes, "
                "expected example_inputs as well"
            )
        return [("x", FloatTensorType([None, int(features)]))]
    return [(name, kinds[kind]([None, 1])) for name, kind in columns]


def _columns(source: Any, example: Any) -> list[tuple[str, str]] | None:
    """Name and kind ("float", "int", "string") of each column, or None where one float tensor will do."""
    names = getattr(source, "feature_names_in_", None)
    by_name = _has_column_transformer(source)
    if example is not None and hasattr(example, "columns"):
        found = [(str(column), _kind(example[column].to_numpy())) for column in example.columns]
        return found if by_name or any(kind != "float" for _, kind in found) else None
    if names is None or not by_name:
        return None
    categories = dict(_encoded_columns(source))
    return [(str(name), categories.get(str(name), "float")) for name in names]


def _kind(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.kind in "fb":
        return "float"
    return "int" if array.dtype.kind in "iu" else "string"


def _has_column_transformer(estimator: Any) -> bool:
    return any(hasattr(part, "transformers_") for part in _parts(estimator))


def _encoded_columns(estimator: Any) -> Iterator[tuple[str, str]]:
    """The columns a fitted encoder saw as categories, and the kind of those."""
    for part in _parts(estimator):
        for _, transformer, columns in getattr(part, "transformers_", ()):
            for step in _parts(transformer):
                categories = getattr(step, "categories_", None)
                if categories is not None and not isinstance(columns, str) and len(categories) == len(columns):
                    yield from ((str(c), _kind(np.asarray(cats))) for c, cats in zip(columns, categories, strict=True))


def _name_outputs(graph: ir.Graph) -> None:
    """``output_label`` and ``output_probability`` are what skl2onnx calls them without ZipMap."""
    short = {"output_label": "label", "output_probability": "probabilities", "variable": "prediction"}
    taken = {value.name for value in (*graph.inputs, *(output for node in graph for output in node.outputs))}
    for value in graph.outputs:
        name = short.get(str(value.name))
        if name is not None and name not in taken:
            value.name = name


def _name_batch(graph: ir.Graph, source: Any) -> None:
    """Every input and output has one row per row asked for; skl2onnx does not always say so."""
    classes = getattr(source, "classes_", None)
    ranks: dict[str, list[int | str] | None] = {
        "label": ["batch"],
        "probabilities": ["batch", len(classes)] if classes is not None else None,
    }
    for value in (*graph.inputs, *graph.outputs):
        shape = ranks.get(str(value.name))
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(["batch", *value.shape[1:]])
        if value in graph.outputs and value.shape is None and shape is not None:
            value.shape = ir.Shape(shape)
