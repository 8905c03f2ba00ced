"""The gate in front of serving: a wrong kernel is found, and the right op is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import headrace as hr
from headrace import gate
from headrace.backend import CompileOptions, Executable
from headrace.conformance.cases import model_of
from headrace.conformance.models import loaded
from headrace.engine import backend_named
from headrace.errors import ParityError
from headrace.graph.edit import add_constant
from headrace.graph.probe import name_of
from headrace.guard import compile_on

ROOT = Path(__file__).resolve().parents[2]
PLANTED = ROOT / "build" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "planted"


def op_of(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}".lstrip(".")


def planted(model: hr.Model, op: str, fault: str, by: np.ndarray) -> hr.Model:
    """`model` with the first `op` of the graph followed by an op ``fault`` with the constant `by`."""
    graph = model.graph.clone()
    node = next((node for node in graph.graph if op_of(node) == op), None)
    if node is None:  # a part of the graph without it
        return model
    value = node.outputs[0]
    wrong = ir.node(fault, [value, add_constant(graph.graph, "fault", np.asarray(by))])
    made = wrong.outputs[0]
    made.type, made.shape = value.type, value.shape
    graph.graph.insert_after(node, wrong)
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    wrong.replace_input_with(0, value)
    value.name, made.name = f"{value.name}_right", value.name
    return replace(model, graph=graph)


def check(
    backend: str, model: hr.Model, requests: Sequence[dict[str, np.ndarray]], op: str, fault: str, by: np.ndarray
) -> gate.Verdict:
    """The gate on a backend with a fault planted through the contract alone."""
    options = CompileOptions(threads=1)

    def compile_(other: hr.Model) -> Executable:
        return compile_on(backend_named(backend), planted(other, op, fault, by), options)

    executable = compile_(model)
    return gate.check(model, executable.run_batch, requests, backend=backend, options=options, compile_=compile_)


FAULTS = [
    ("mlp", "headrace.Linear"),
    ("gelu_block", "LayerNormalization"),
    ("attention", "headrace.Attention"),
    ("convolution", "headrace.FusedConv"),
    ("convolution", "headrace.MaxPool"),
    ("pooled_embedding", "ReduceL2"),
    ("embedding_norm", "headrace.EmbeddingNorm"),
    ("softmaxes_and_reductions", "LogSoftmax"),
    ("softmaxes_and_reductions", "ReduceMean"),
]


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("case", "op"), FAULTS)
def test_a_wrong_op_of_any_backend_is_found_and_named(backend: str, case: str, op: str) -> None:
    example, model, _ = loaded(case)
    place = next(place for place, node in enumerate(model.graph.graph) if op_of(node) == op)
    with pytest.raises(ParityError) as caught:
        check(backend, model, example.requests, op, "Mul", np.float32(2))
    message = str(caught.value)
    assert f"first at op {place}, {op} (node " in message, message
    assert "wrong on the very inputs it had" in message
    assert "of sample" in message


def test_right_plans_pass_and_say_how_close() -> None:
    example, model, _ = loaded("gelu_block")
    verdict = check("native", model, example.requests, "Nothing", "Mul", np.float32(1))
    assert verdict.compared == 3
    assert "against the reference backend on 3 samples, 0.001 allowed" in str(verdict)


SCRIPT = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("headrace._core", next(p for p in sys.argv[2:]))
sys.modules["headrace._core"] = core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
from headrace import gate
from headrace.conformance.models import loaded
from headrace.errors import ParityError
found = []
for case, op in json.loads(sys.argv[1]):
    example, model, _ = loaded(case)
    os.environ["HEADRACE_PLANT_WRONG"] = op
    engine = model.compile(backend="native", threads=2)
    options = engine.options
    try:
        found.append(str(gate.check(model, engine.run_batch, example.requests, backend="native", options=options)))
    except ParityError as error:
        found.append(str(error))
print(json.dumps(found))
"""


@pytest.mark.skipif(
    not list(PLANTED.glob("_core*.so")), reason="make test-cpp builds the module with a wrong kernel in it"
)
def test_a_wrong_kernel_of_a_test_build_is_found_and_named() -> None:
    faults = [*FAULTS, ("mlp", "no such op")]
    (module,) = PLANTED.glob("_core*.so")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(faults), str(module)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *wrong, right = json.loads(done.stdout)
    for (case, op), message in zip(FAULTS, wrong, strict=True):
        place = next(place for place, node in enumerate(loaded(case)[1].graph.graph) if op_of(node) == op)
        assert f"first at op {place}, {op} (node " in message, (case, message)
        assert "wrong on the very inputs it had" in message
    assert right.startswith("error ")


def test_a_fault_that_needs_company_is_found_by_halving() -> None:
    example, model, _ = loaded("convolution")
    place = next(place for place, node in enumerate(model.graph.graph) if op_of(node) == "headrace.MaxPool")
    before = model.graph.graph[place].inputs[0]
    assert before is not None
    (hidden,) = (
        name_of(at, 0) for at, node in enumerate(model.graph.graph) if before in node.outputs
    )  # fmt: skip
    options = CompileOptions(threads=1)
    compiled: list[int] = []

    def compile_(other: hr.Model) -> Executable:
        """Wrong only where the value before the op is not kept, as ops fused at run time are."""
        compiled.append(len(other.graph.graph))
        kept = any(spec.name == hidden for spec in other.signature.outputs)
        wrong = other if kept else planted(other, "headrace.MaxPool", "Mul", np.float32(3))
        return compile_on(backend_named("native"), wrong, options)

    run_batch = compile_(model).run_batch
    with pytest.raises(ParityError, match=rf"first at op {place}, headrace.MaxPool \(node .*wrong in company"):
        gate.check(model, run_batch, example.requests, backend="native", options=options, compile_=compile_)
    assert len(compiled) <= 3 + np.ceil(np.log2(len(model.graph.graph)))


def either_way() -> hr.Model:
    """Twice a product, or what its tangent gives."""
    spec = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["n", 4])
    branches = {
        "then_branch": helper.make_graph([helper.make_node("Add", ["p", "p"], ["chosen"])], "then", [], [spec]),
        "else_branch": helper.make_graph([helper.make_node("Tanh", ["p"], ["chosen"])], "else", [], [spec]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("If", ["flag"], ["c"], name="either", **branches),
        helper.make_node("Abs", ["c"], ["y"]),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["n", 4]), "flag": (TensorProto.BOOL, [])}
    return hr.load(model_of(nodes, inputs, {"y": (TensorProto.FLOAT, ["n", 4])}, {"w": np.eye(4, dtype=np.float32)}))  # type: ignore[arg-type]


def test_a_fault_in_a_subgraph_is_laid_on_the_op_around_it() -> None:
    def compile_(other: hr.Model) -> Executable:
        return compile_on(backend_named("reference"), planted(other, "If", "Mul", np.float32(2)), CompileOptions())

    model = either_way()
    request = {"x": np.ones((2, 4), np.float32), "flag": np.array(True)}
    with pytest.raises(
        ParityError, match=r"first at op 1, If \(node 'either'\), wrong somewhere in .* \(Add, Tanh\): "
    ):
        gate.check(
            model, compile_(model).run_batch, [request], backend="x", options=CompileOptions(), compile_=compile_
        )


def two_close_classes() -> hr.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    w = np.array([[0.5, 0.5 - 1e-6, 0.1]] * 4, np.float32)
    outputs = {"label": (TensorProto.INT64, ["n"])}
    return hr.load(model_of(nodes, {"x": (TensorProto.FLOAT, ["n", 4])}, outputs, {"w": w}))  # type: ignore[arg-type]


def test_a_class_that_rounding_decides_is_let_pass_and_said_so() -> None:
    requests = [{"x": np.ones((2, 4), np.float32)}]
    verdict = check(
        "native", two_close_classes(), requests, "headrace.Linear", "Add", np.array([0, 1e-5, 0], np.float32)
    )
    assert "output 'label' of sample 0 at [0]: got 1, expected 0" in str(verdict)
    assert "let pass, since rounding decides it" in str(verdict)


def test_a_class_that_is_simply_wrong_is_not() -> None:
    requests = [{"x": np.ones((2, 4), np.float32)}]
    with pytest.raises(ParityError, match=r"first at op 1, ArgMax \(node"):
        check("native", two_close_classes(), requests, "ArgMax", "Add", np.array([1], np.int64))
    with pytest.raises(ParityError, match=r"first at op 0, headrace.Linear \(node"):
        check("native", two_close_classes(), requests, "headrace.Linear", "Add", np.array([0, 0.1, 0], np.float32))


def test_labels_beside_their_scores_may_differ_where_the_scores_tie() -> None:
    node = helper.make_node(
        "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"],
        coefficients=[0.5] * 4 + [0.5 - 1e-7] * 4 + [0.1] * 4, intercepts=[0.0, 0.0, 0.0], post_transform="NONE",
    )  # fmt: skip
    outputs = {"label": (TensorProto.STRING, ["n"]), "scores": (TensorProto.FLOAT, ["n", 3])}
    model = hr.load(model_of([node], {"x": (TensorProto.FLOAT, ["n", 4])}, outputs))  # type: ignore[arg-type]
    request = {"x": np.ones((2, 4), np.float32)}
    executable = compile_on(backend_named("native"), model, CompileOptions(threads=1))

    class Other(Executable):
        def __init__(self, labels: list[str]) -> None:
            self.plan = executable.plan
            self.labels = np.array(labels, dtype=object)

        def run_batch(self, requests):  # type: ignore[no-untyped-def]
            results = executable.run_batch(requests)
            labels = next(name for name, array in results[0].items() if array.dtype == object)
            return [result | {labels: self.labels} for result in results]

    def verdict(labels: list[str]) -> gate.Verdict:
        def compile_(other: hr.Model) -> Executable:
            nonlocal executable
            executable = compile_on(backend_named("native"), other, CompileOptions(threads=1))
            return Other(labels)

        run_batch = compile_(model).run_batch
        return gate.check(model, run_batch, [request], backend="x", options=CompileOptions(), compile_=compile_)

    assert "let pass" in str(verdict(["a", "b"]))
    with pytest.raises(ParityError, match=r"first at op 0, ai.onnx.ml.LinearClassifier .* got c, expected a"):
        verdict(["a", "c"])


def test_quantised_models_may_round_between_two_steps() -> None:
    example, model, _ = loaded("quantized_sum")
    assert "0.03 allowed" in str(check("native", model, example.requests, "Nothing", "Mul", np.float32(1)))
    with pytest.raises(ParityError, match=r"DequantizeLinear \(node"):
        check("native", model, example.requests, "DequantizeLinear", "Mul", np.float32(1.1))


def test_what_the_reference_cannot_say_is_said() -> None:
    example, model, _ = loaded("mlp")
    options = CompileOptions()
    late = gate.check(model, lambda _: [], example.requests, backend="native", options=options, seconds_max=0)
    assert (late.compared, "longer than parity_s_max" in late.text) == (0, True)
    itself = gate.check(model, lambda _: [], example.requests, backend="reference", options=options)
    assert itself.text == "not checked: it runs on the reference backend"
