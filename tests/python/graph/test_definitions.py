"""Ops that ONNX defines by a function and that no backend has a kernel for."""

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import headrace as hr


def rotary_model() -> onnx.ModelProto:
    node = helper.make_node("RotaryEmbedding", ["x", "cos", "sin", "positions"], ["y"], num_heads=2, interleaved=1)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 16]),
        helper.make_tensor_value_info("cos", TensorProto.FLOAT, [50, 4]),
        helper.make_tensor_value_info("sin", TensorProto.FLOAT, [50, 4]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["batch", "tokens"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", 16])]
    graph = helper.make_graph([node], "rotary", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def test_an_op_becomes_the_ops_onnx_defines_it_by() -> None:
    model = hr.load(rotary_model())
    ops = {node.op_type for node in model.graph.graph}
    assert "RotaryEmbedding" not in ops
    assert {"Gather", "Mul"} <= ops
    assert not model.graph.functions


def test_the_definition_computes_what_the_op_does_for_any_lengths() -> None:
    proto = rotary_model()
    engine = hr.load(proto).compile("native", threads=1)
    rng = np.random.default_rng(0)
    for batch, tokens in ((1, 1), (2, 7)):
        request = {
            "x": rng.standard_normal((batch, tokens, 16), dtype=np.float32),
            "cos": rng.standard_normal((50, 4), dtype=np.float32),
            "sin": rng.standard_normal((50, 4), dtype=np.float32),
            "positions": rng.integers(0, 50, (batch, tokens)),
        }
        (expected,) = ReferenceEvaluator(proto).run(None, request)
        np.testing.assert_allclose(engine(request)["y"], expected, rtol=1e-5, atol=1e-6)
