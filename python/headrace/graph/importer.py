"""The one way into Headrace: `load` takes a model in any supported form and returns a `headrace.model.Model`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import InvalidModel
from headrace.graph._onnx_ir import ir
from headrace.graph.check import prepare
from headrace.graph.passes import optimise
from headrace.graph.signature import name_dims, signature_of
from headrace.model import Model


@dataclass(frozen=True)
class Hints:
    """What the caller said about a source that does not say it itself.

    Attributes:
        example_inputs: For torch: the arguments of one call. For sklearn: a few rows, for their columns and dtypes.
        input_names: Names for the inputs, in order.
        output_names: Names for the outputs, in order.
        dynamic_shapes: For torch: as torch.export takes it; None makes every first dim dynamic.
    """

    example_inputs: Any = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_shapes: Any = None


def load(
    source: Any,
    *,
    example_inputs: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> Model:
    """Loads a model and optimises its graph.

    Args:
        source: A path to an ``.onnx`` file, an ``onnx.ModelProto``, an ``onnx_ir.Model``, a ``torch.nn.Module``, a
            fitted scikit-learn estimator or pipeline, or a LightGBM or XGBoost booster or estimator.
        example_inputs: For torch, the arguments of one call (a tensor, a tuple, or a dict of keyword arguments): needed
            to trace it. For scikit-learn, a few rows of training data, needed where columns are not all float32: what
            the estimator predicts for the first 100 is compared with what the Model answers.
        input_names: Names for the inputs, in order; the source's own by default.
        output_names: Names for the outputs, in order; the source's own by default.
        dynamic_shapes: For torch, what may vary, as ``torch.export.export`` takes it; by default the first dim of each
            input.
        name: What to call the Model; by default the file's stem or the object's class.

    Raises:
        InvalidModel: It breaks the rules of its format.
        ModelError: It cannot be converted, or the conversion disagrees with it on `example_inputs`.
        FileNotFoundError: The path does not exist.
        TypeError: `source` is none of the above.
    """
    hints = Hints(example_inputs, input_names, output_names, dynamic_shapes)
    graph, where, default_name, sha256 = _import(source, hints)
    columns = [str(value.name) for value in graph.graph.inputs]
    _rename(graph.graph, "input", graph.graph.inputs, input_names, where)
    _rename(graph.graph, "output", graph.graph.outputs, output_names, where)
    name_dims(graph.graph)
    declared = [value.shape for value in graph.graph.outputs]
    graph = prepare(graph, where)
    optimise(graph)
    signature = signature_of(graph.graph, where, declared)
    model = Model(name or default_name, signature, graph, where, sha256 or _digest(graph))
    if example_inputs is not None and _kind(source) == "sklearn":
        from headrace.graph.agreement import check_agreement

        check_agreement(source, example_inputs, model, columns)
    return model


def _import(source: Any, hints: Hints) -> tuple[ir.Model, str, str, str | None]:
    """The source as IR, with where it came from, its default name, and its digest where that is cheap."""
    if isinstance(source, str | os.PathLike):
        from headrace.graph.onnx_file import read

        path = Path(source)
        model, sha256 = read(path)
        return model, str(path), path.stem, sha256
    kind, cls = _kind(source), type(source).__name__
    if kind == "onnx":
        from headrace.graph.onnx_file import from_proto

        return from_proto(source, cls), cls, source.graph.name or "model", None
    if kind == "onnx_ir":
        return source.clone(), "onnx_ir.Model", source.graph.name or "model", None
    if kind is None:
        raise TypeError(
            f"headrace.load: got a {type(source).__module__}.{cls}, expected a path, an onnx.ModelProto, "
            "an onnx_ir.Model, a torch.nn.Module, or a fitted scikit-learn, LightGBM or XGBoost model"
        )
    import importlib

    module = importlib.import_module(f"headrace.graph.from_{kind}")
    return module.convert(source, hints), f"{kind} {cls}", cls, None


# Class that marks a source's kind, as "module prefix", "class name" in the source's method resolution order. Looking at
# names keeps torch, scikit-learn and the rest unimported unless the source itself comes from them.
_KINDS = (
    ("onnx", "ModelProto", "onnx"),
    ("onnx_ir", "Model", "onnx_ir"),
    ("torch", "Module", "torch"),
    ("lightgbm", "Booster", "lightgbm"),
    ("lightgbm", "LGBMModel", "lightgbm"),
    ("xgboost", "Booster", "xgboost"),
    ("xgboost", "XGBModel", "xgboost"),
    ("sklearn", "BaseEstimator", "sklearn"),
)


def _kind(source: Any) -> str | None:
    for prefix, cls, kind in _KINDS:
        for base in type(source).__mro__:
            if base.__name__ == cls and base.__module__.split(".")[0] == prefix:
                return kind
    return None


def _rename(graph: ir.Graph, kind: str, values: Sequence[ir.Value], names: Sequence[str] | None, where: str) -> None:
    if names is None:
        return
    if len(names) != len(values) or len(set(names)) != len(names):
        raise InvalidModel(f"{where}: got {kind}_names {list(names)}, expected {len(values)} different names")
    taken = {value.name: value for node in graph for value in node.outputs}
    taken.update({value.name: value for value in (*graph.inputs, *graph.initializers.values())})
    for value, name in zip(values, names, strict=True):
        holder = taken.get(name)
        if holder is not None and holder is not value:
            number = 1
            while f"{name}_{number}" in taken:
                number += 1
            holder.name = f"{name}_{number}"
            taken[holder.name] = holder
        value.name = name


def _digest(model: ir.Model) -> str:
    """SHA-256 over the graph's structure and the bytes of its constants."""
    import hashlib

    digest = hashlib.sha256()
    for graph in model.graphs():
        ends = [value.name for value in graph.inputs], [value.name for value in graph.outputs]
        digest.update(repr(ends).encode())
        for node in graph:
            parts = (
                node.domain,
                node.op_type,
                *(value.name if value else "" for value in (*node.inputs, *node.outputs)),
            )
            digest.update(repr(parts).encode())
            for key, attr in sorted(node.attributes.items()):
                value = attr.value
                if attr.type == ir.AttributeType.TENSOR:
                    value = _contents(attr.as_tensor())
                elif attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    value = ""  # its own graph is digested by the outer loop
                digest.update(repr((key, value)).encode())
        for name, constant in graph.initializers.items():
            digest.update(str(name).encode())
            if constant.const_value is not None:
                digest.update(_contents(constant.const_value))
    return digest.hexdigest()


def _contents(tensor: ir.TensorProtocol) -> bytes:
    head = repr((tensor.dtype.name, list(tensor.shape))).encode()
    if tensor.dtype == ir.DataType.STRING:
        return head + repr(tensor.numpy().tolist()).encode()
    return head + tensor.tobytes()
