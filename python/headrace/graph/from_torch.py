"""Imports torch modules through ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidModel, ModelError
from headrace.graph._onnx_ir import ir

if TYPE_CHECKING:
    from headrace.graph.importer import Hints


def convert(source: Any, hints: Hints) -> ir.Model:
    """Exports a ``torch.nn.Module`` in inference mode; `source` itself is left in the mode it was in.

    Args:
        source: The module.
        hints: Needs `example_inputs`: one tensor, a tuple of positional arguments, or a dict of keyword arguments.

    Raises:
        TypeError: There are no example inputs.
        ModelError: torch cannot export the module.
    """
    import torch

    if hints.example_inputs is None:
        raise TypeError(
            f"headrace.load: got a torch module {type(source).__name__} without example_inputs, "
            "expected the arguments of one call, e.g. example_inputs=(torch.zeros(2, 3),)"
        )
    args, kwargs = _arguments(hints.example_inputs)
    shapes = hints.dynamic_shapes
    if shapes is None:
        shapes = _first_dims_dynamic(args, kwargs)
    training = source.training
    source.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                source,
                args,
                kwargs=kwargs or None,
                dynamo=True,
                dynamic_shapes=shapes,
                verbose=False,
                external_data=False,
            )
    except Exception as error:
        raise ModelError(f"torch cannot export {type(source).__name__}: {_reason(error)}") from error
    finally:
        source.train(training)
    if program is None:
        raise ModelError(f"torch cannot export {type(source).__name__}: the exporter gave no program")
    model: ir.Model = program.model
    _name_inputs(model, kwargs)
    _unclash_outputs(model.graph)
    return model


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (tuple(example), {}) if isinstance(example, list | tuple) else ((example,), {})


def _first_dims_dynamic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first dim of every tensor varies; all share one name, since a batch is what they have in common."""
    import torch

    batch = torch.export.Dim("batch")

    def spec(value: Any) -> dict[int, Any] | None:
        return {0: batch} if isinstance(value, torch.Tensor) and value.ndim else None

    sizes = {value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim}
    if len(sizes) != 1:
        raise InvalidModel(
            f"torch example_inputs have first dims {sorted(sizes)}, expected one common batch size; "
            "give dynamic_shapes instead"
        )
    return {name: spec(value) for name, value in kwargs.items()} if kwargs else tuple(spec(value) for value in args)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _name_inputs(model: ir.Model, kwargs: dict[str, Any]) -> None:
    """Keyword arguments name the inputs, whatever the exporter called them."""
    if kwargs and len(kwargs) == len(model.graph.inputs):
        _unclash(model.graph, model.graph.inputs, list(kwargs))


def _unclash_outputs(graph: ir.Graph) -> None:
    """The exporter may give an inner value the name of an output; the inner one gets another."""
    _unclash(graph, graph.outputs, [str(value.name) for value in graph.outputs])


def _unclash(graph: ir.Graph, values: Sequence[ir.Value], names: list[str]) -> None:
    keep = set(values)
    every = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    taken = {str(value.name) for value in every} | set(names)
    for value in every:
        if value not in keep and value.name in names:
            number = 1
            while f"{value.name}_{number}" in taken:
                number += 1
            value.name = f"{value.name}_{number}"
            taken.add(value.name)
    for value, name in zip(values, names, strict=True):
        value.name = name
