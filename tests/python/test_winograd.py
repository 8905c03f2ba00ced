"""Winograd convolutions: a plan option, asked for by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import headrace as hr
from headrace.errors import BackendUnavailable, StalePlan
from headrace.graph.winograd import assign_winograd

CHANNELS = 32


def network(height: int | str = 30, width: int | str = 29) -> onnx.ModelProto:
    """Convolutions of which only some gain: the second has strides, the third one tap, the last few channels."""
    rng = np.random.default_rng(0)
    convs = [(CHANNELS, CHANNELS, 3, 1), (CHANNELS, CHANNELS, 3, 2), (CHANNELS, CHANNELS, 1, 1), (4, CHANNELS, 3, 1)]
    nodes, weights, value = [], [], "x"
    for i, (outputs, inputs, taps, stride) in enumerate(convs):
        array = rng.standard_normal((outputs, inputs, taps, taps)) / np.sqrt(inputs * taps * taps)
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{i}"))
        pads, name = [taps // 2] * 4, f"c{i}"
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [name], pads=pads, strides=[stride, stride]))
        nodes.append(helper.make_node("Relu", [name], [f"r{i}"]))
        value = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, height, width])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 4, "p", "q"])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def images(count: int, seed: int = 1, height: int = 30, width: int = 29) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, CHANNELS, height, width)).astype(np.float32)}


def test_it_answers_like_the_onnx_reference_and_says_what_it_did() -> None:
    proto = network()
    engine = hr.load(proto).compile(backend="native", winograd=True)
    assert any("1 convolutions run by Winograd" in reason for reason in engine.plan.reasons)
    assert engine.plan.details["winograd_ops"] == 1
    (expected,) = ReferenceEvaluator(proto).run(None, images(2))
    (got,) = engine(images(2)).values()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    plain = hr.load(proto).compile(backend="native")
    assert not any("Winograd" in reason for reason in plain.plan.reasons)
    assert not np.array_equal(next(iter(plain(images(2)).values())), got)


@pytest.mark.parametrize(("side", "tile"), [(56, 4), (28, 4), (3, None), ("h", 4)])
def test_the_tile_follows_the_map(side: int | str, tile: int | None) -> None:
    found = assign_winograd(hr.load(network(side, side)).graph.graph)
    assert list(found.values()) == ([] if tile is None else [tile])


def test_a_result_does_not_depend_on_the_batch() -> None:
    engine = hr.load(network("h", "w")).compile(backend="native", winograd=True)
    requests = [images(1), images(3, 2), images(2, 3, 17, 22), images(1, 4)]
    for request, result in zip(requests, engine.run_batch(requests), strict=True):
        (alone,), (together,) = engine(request).values(), result.values()
        assert np.array_equal(alone, together)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_backends_without_it_refuse(backend: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"backend '{backend}': got winograd=True, expected False"):
        hr.load(network()).compile(backend=backend, winograd=True)


@pytest.mark.parametrize("precision", ["bf16", "int8", "auto"])
def test_other_precisions_refuse(precision: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"got winograd=True with precision '{precision}', expected fp32"):
        hr.load(network()).compile(backend="native", precision=precision, winograd=True)


def test_a_saved_plan_is_keyed_by_it(tmp_path: Path) -> None:
    engine = hr.load(network()).compile(backend="native", winograd=True)
    engine.save(tmp_path)
    with pytest.raises(StalePlan, match=r"option 'winograd': got True in the saved Plan, expected False"):
        hr.load_plan(tmp_path, winograd=False)
    loaded = hr.load_plan(tmp_path, winograd=True)
    assert np.array_equal(*(next(iter(e(images(1)).values())) for e in (engine, loaded)))
