"""Imports fitted scikit-learn estimators and pipelines: trees by our own importers, the rest through skl2onnx."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import ModelError
from headrace.extras import needs
from headrace.graph._onnx_ir import ir
from headrace.graph.join import join
from headrace.graph.onnx_file import from_proto
from headrace.graph.sklearn_columns import Table, send_as, side_by_side, table_of, takes_texts

if TYPE_CHECKING:
    from headrace.graph.importer import Hints

# The newest opsets skl2onnx's converters are written for that every runtime has.
_TARGET_OPSET = {"": 18, "ai.onnx.ml": 3}


def convert(source: Any, hints: Hints) -> ir.Model:
    """A fitted estimator or pipeline as IR. Classifiers answer ``label`` and ``probabilities`` (no ZipMap).

    One float32 input ``x`` [batch, features] where a lone estimator takes numbers, or a pipeline numbers that all are
    floats, by position; for texts, one string input ``x`` [batch]. Otherwise one input per column, [batch, 1], named
    after it: float32, int64 or string. Columns that nothing looks at are left out.

    Args:
        source: The estimator. A finished search over parameters stands for the best it found.
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
    source = _found_by_search(source)
    steps = [step for step in getattr(source, "steps", ()) if step[1] not in (None, "passthrough")]
    last = steps[-1][1] if steps else source
    own = _own_converter(last, hints)
    table = table_of(source, hints.example_inputs)
    if own is None:
        model = _through_skl2onnx(source, _inputs(source, table, hints), name)
    elif len(steps) > 1:
        from sklearn.pipeline import Pipeline

        model = join(_through_skl2onnx(Pipeline(steps[:-1]), _inputs(source, table, hints), name), own(last))
    else:
        model = own(last)
        if table is not None and not table.is_matrix:
            described = ", ".join(f"{column.name}: {column.dtype}" for column in table.columns)
            raise ModelError(f"got a {name} with columns {described}, expected numbers")
    if table is not None and table.is_matrix:
        model = join(side_by_side(table.columns), model)
    elif table is not None:
        send_as(model.graph, table.columns)
    _name_outputs(model.graph)
    return model


def _found_by_search(source: Any) -> Any:
    """The best estimator of a search such as GridSearchCV, which predicts for it; anything else itself."""
    from sklearn.model_selection._search import BaseSearchCV

    return _found_by_search(source.best_estimator_) if isinstance(source, BaseSearchCV) else source


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


def _through_skl2onnx(source: Any, inputs: list[tuple[str, Any]], name: str) -> ir.Model:
    """`source`, all of an estimator of that class or its first steps, with these inputs."""
    from skl2onnx import convert_sklearn

    options = {id(part): _plain_outputs(part) for part in _parts(source) if _is_classifier(part)}
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


def _is_classifier(part: Any) -> bool:
    from sklearn.base import is_classifier

    return not isinstance(part, str | None) and not hasattr(part, "steps") and bool(is_classifier(part))


def _plain_outputs(classifier: Any) -> dict[str, bool]:
    """The options that keep a classifier's outputs tensors. Those that have none want to be named all the same."""
    from skl2onnx._supported_operators import _get_sklearn_operator_name
    from skl2onnx.common._registration import get_converter

    try:
        allowed = get_converter(_get_sklearn_operator_name(type(classifier))).get_allowed_options()
    except (RuntimeError, ValueError):  # there is no converter, which convert_sklearn says better
        return {}
    return {"zipmap": False} if "zipmap" in (allowed or ()) else {}


def _inputs(source: Any, table: Table | None, hints: Hints) -> list[tuple[str, Any]]:
    """What skl2onnx is told of the inputs.

    It makes all columns that a step takes together what the first of them is, so that floats behind an int column would
    be cut off: what is computed with is a float to it, whatever is sent.
    """
    with needs("sklearn", f"headrace.load: a {type(source).__name__} of scikit-learn"):
        from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    types = {"float32": FloatTensorType, "int64": Int64TensorType, "string": StringTensorType}
    if table is not None and not table.is_matrix:
        return [(column.name, types[column.dtype_inside]([None, 1])) for column in table.columns]
    if table is not None:
        return [("x", FloatTensorType([None, len(table.columns)]))]
    if takes_texts(source):
        return [("x", StringTensorType([None]))]
    example = hints.example_inputs
    shape: tuple[int, ...] = np.shape(example) if example is not None else ()
    is_words = len(shape) == 2 and not hasattr(example, "columns") and np.asarray(example[:1]).dtype.kind in "OUS"
    if is_words:
        return [("x", StringTensorType([None, shape[1]]))]
    features = _feature_count(source, shape)
    if features is None:
        got = f"example_inputs of shape {list(shape)}" if example is not None else "no example_inputs"
        raise ModelError(
            f"got a {type(source).__name__} that does not say how many features it takes, and {got}, expected "
            "example_inputs: a DataFrame, or an array [rows, features]"
        )
    return [("x", FloatTensorType([None, features]))]


def _feature_count(source: Any, example_shape: Sequence[int]) -> int | None:
    """How many features `source` takes, or its first step that does anything, or an example has; None: unknown."""
    first = next((part for _, part in getattr(source, "steps", ()) if part not in (None, "passthrough")), source)
    for part in (source, first):
        features = getattr(part, "n_features_in_", None)
        if features is not None:
            return int(features)
    return example_shape[1] if len(example_shape) == 2 else None


def _name_outputs(graph: ir.Graph) -> None:
    """``output_label`` and ``output_probability`` are what skl2onnx calls them without ZipMap."""
    short = {"output_label": "label", "output_probability": "probabilities", "variable": "prediction"}
    taken = {value.name for value in (*graph.inputs, *(output for node in graph for output in node.outputs))}
    for value in graph.outputs:
        name = short.get(str(value.name))
        if name is not None and name not in taken:
            value.name = name


def _name_batch(graph: ir.Graph, source: Any) -> None:
    """Every input and output has one row per row asked for; skl2onnx does not always say so, nor how many targets."""
    last = source.steps[-1][1] if hasattr(source, "steps") else source
    classes = getattr(last, "classes_", None)
    # Of a neural network that classifies, n_outputs_ are classes and no targets.
    targets = getattr(last, "n_outputs_", 1) if classes is None else len(classes) if isinstance(classes, list) else 1
    shapes: dict[str, list[int | str]] = {"label": ["batch"]}
    if isinstance(classes, np.ndarray):
        shapes["probabilities"] = ["batch", len(classes)]
    for value in (*graph.inputs, *graph.outputs):
        if not isinstance(value.type, ir.TensorType):
            continue
        shape, name = value.shape, str(value.name)
        if value not in graph.outputs:
            value.shape = ir.Shape(["batch", *shape[1:]]) if shape else shape
        elif targets > 1 and name == "probabilities":
            value.shape = ir.Shape([targets, "batch", shape[2] if shape and len(shape) == 3 else None])
        elif targets > 1 and name == "prediction":
            value.shape = ir.Shape(["batch", targets])
        elif shape:
            value.shape = ir.Shape(["batch", *shape[1:]])
        elif shape is None and name in shapes:
            value.shape = ir.Shape(shapes[name])
