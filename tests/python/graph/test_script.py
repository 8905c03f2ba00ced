"""Graphs written out as Python functions: what they compute, where values are, and when they are let go."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import headrace as hr
from headrace.graph.script import DEVICE, HOST, Script, Step, Untranslated, host_values, untranslated

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: Number(a.value + b.value),
    "Mul": lambda a, b: Number(a.value * b.value),
    "Shape": lambda x: np.array(np.shape(x.value)),
    "Reshape": lambda x, shape: Number(np.reshape(x.value, shape)),
    "Concat": lambda *parts: np.concatenate(parts),
    "Gather": lambda x, at: x[at],
}


class Number:
    """Stands for an array on a device; can be referred to weakly."""

    def __init__(self, value: Any) -> None:
        self.value = value


def translate(node: ir.Node, _opset: int) -> Step:
    if node.op_type not in FUNCTIONS:
        raise Untranslated("no function")
    return Step(FUNCTIONS[node.op_type])


def written(model: hr.Model) -> Script:
    def place(array: np.ndarray, where: str) -> Any:
        return array if where == HOST else Number(array)

    return Script(model.graph, translate, place, move=Number)


def model_of(*nodes: Any, constants: dict[str, np.ndarray] | None = None) -> hr.Model:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def shapes_model() -> hr.Model:
    return model_of(
        helper.make_node("Shape", ["x"], ["dims"]),
        helper.make_node("Gather", ["dims", "last"], ["columns"]),
        helper.make_node("Concat", ["columns", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
        constants={"last": np.array([1]), "minus": np.array([-1])},
    )


def test_shape_arithmetic_stays_with_the_host() -> None:
    model = shapes_model()
    assert {value.name for value in host_values(model.graph.graph)} == {"dims", "columns", "target"}
    (y,) = written(model).run(Number(np.ones((2, 5))))
    assert y.value.shape == (5, 2)


def test_constants_go_where_they_are_read() -> None:
    places: list[tuple[list[Any], str]] = []

    def place(array: np.ndarray, where: str) -> Any:
        places.append((array.tolist(), where))
        return array if where == HOST else Number(array)

    script = Script(shapes_model().graph, translate, place, move=Number)
    assert sorted(places) == [([-1], HOST), ([1], HOST)]
    assert script.ops == 4
    places.clear()
    weighed = model_of(helper.make_node("Mul", ["x", "w"], ["y"]), constants={"w": np.ones((1, 3), np.float32)})
    Script(weighed.graph, translate, place, move=Number)
    assert places == [([[1, 1, 1]], DEVICE)]


def test_values_are_let_go_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Number]] = []

    def add(a: Number, b: Number) -> Number:
        alive = sum(ref() is not None for ref in made)
        assert alive <= 1  # the operand
        number = Number(a.value + b.value)
        made.append(weakref.ref(number))
        return number

    monkeypatch.setitem(FUNCTIONS, "Add", add)
    constants = {f"w{i}": np.full((1, 3), i, np.float32) for i in range(4)}
    chain = [helper.make_node("Add", [f"v{i}" if i else "x", f"w{i}"], [f"v{i + 1}"]) for i in range(3)]
    model = model_of(*chain, helper.make_node("Add", ["v3", "w3"], ["y"]), constants=constants)
    (y,) = written(model).run(Number(np.zeros((1, 3))))
    assert y.value.tolist() == [[6, 6, 6]]


def test_an_error_names_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "Mul", lambda a, b: 1 / 0)
    nodes = [("Add", ["x", "x"], "s", "sum"), ("Mul", ["s", "x"], "y", "product")]
    made = [helper.make_node(op, inputs, [output], name=name) for op, inputs, output, name in nodes]
    script = written(model_of(*made))
    with pytest.raises(ZeroDivisionError) as caught:
        script.run(Number(np.ones((1, 1))))
    assert script.node_of(caught.value) == "Mul 'product'"
    assert script.node_of(ValueError()) == "?"


def test_all_nodes_without_a_function_are_listed() -> None:
    model = model_of(helper.make_node("Sin", ["x"], ["s"], name="a"), helper.make_node("Cos", ["s"], ["y"], name="b"))
    assert untranslated(model.graph, translate) == [("Sin", "a", "no function"), ("Cos", "b", "no function")]
