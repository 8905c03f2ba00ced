"""Loading: weights stay in the file until asked for, broken models are refused with the reason, imports stay light."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
from onnx.reference import ReferenceEvaluator

from headrace.errors import InvalidModel, ModelError
from headrace.graph import load

WEIGHT = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) / 64


def proto(
    text: str = "g (float[batch, 64] x) => (float[batch, 64] y) { y = MatMul(x, w) }", opset: int = 18
) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {text}')
    if " w)" in text:
        model.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "w"))
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(proto(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def weight_of(model: object) -> np.ndarray:
    (node,) = model.graph.graph  # type: ignore[attr-defined]
    return node.inputs[1].const_value.numpy()


def test_a_file_is_described_by_its_name_digest_and_signature(path: Path) -> None:
    model = load(path)
    assert (model.name, model.source) == ("small", str(path))
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(model) == "small(x: float32[batch, 64]) -> (y: float32[batch, 64])"
    assert load(str(path), name="other").name == "other"


def test_weights_are_read_from_the_file_only_when_asked_for(path: Path) -> None:
    model = load(path)
    (node,) = model.graph.graph
    tensor = node.inputs[1].const_value
    assert type(tensor).__name__ == "LazyTensor"
    first, second = tensor.numpy(), tensor.numpy()
    np.testing.assert_array_equal(first, WEIGHT)
    assert first is not second
    assert first.flags.aligned


def test_replacing_the_file_does_not_change_a_loaded_model(path: Path, tmp_path: Path) -> None:
    model = load(path)
    (tmp_path / "new").write_bytes(b"something else")
    os.replace(tmp_path / "new", path)
    np.testing.assert_array_equal(weight_of(model), WEIGHT)


def test_external_data_is_read_from_beside_the_model(tmp_path: Path) -> None:
    onnx.save(proto(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    np.testing.assert_array_equal(weight_of(load(tmp_path / "m.onnx")), WEIGHT)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "m.bin").unlink(), "does not exist"),
        (lambda folder: (folder / "m.bin").write_bytes(b"short"), "which has 5"),
    ],
)
def test_external_data_that_is_not_there(tmp_path: Path, break_it: Callable[[Path], None], said: str) -> None:
    onnx.save(proto(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    break_it(tmp_path)
    with pytest.raises(InvalidModel, match=said):
        load(tmp_path / "m.onnx")


def test_external_data_must_lie_in_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    model = proto()
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "inside" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="expected a file in"):
        load(tmp_path / "inside" / "m.onnx")


def test_typed_and_raw_tensor_fields_are_both_read(tmp_path: Path) -> None:
    model = proto()
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [64, 64], WEIGHT.reshape(-1)))
    onnx.save(model, tmp_path / "m.onnx")
    np.testing.assert_array_equal(weight_of(load(tmp_path / "m.onnx")), WEIGHT)


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 8000, -1])
def test_a_file_cut_short_is_refused(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InvalidModel, match=str(path)):
        load(path)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", bytes(range(256)) * 8, b"\x3a\xff\xff\xff\xff\x7f"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InvalidModel, match="not an ONNX file"):
        load(tmp_path / "m.onnx")


def test_an_initializer_whose_bytes_do_not_fit_its_shape_is_refused(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"'w' holds 16380 bytes, expected 16384"):
        load(tmp_path / "m.onnx")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("g (float[n] x) => (float[n] y) { y = NoSuchOp(x) }", "NoSuchOp"),
        ("g (float[n] x) => (float[n] y) { y = Relu(z) }", "z"),
        ("g (float[n, 3] x, float[4, 5] k) => (float[n, 5] y) { y = MatMul(x, k) }", "[Ii]ncompatible dim"),
        ("g (float[n] x, int64[n] k) => (float[n] y) { y = Add(x, k) }", "type"),
        ("g (float[n] x) => (float[n] y) { y = Relu(x) y = Abs(x) }", "y"),
        ("g (float[n] x) => (float[n] y) { y = Transpose<perm = 3>(x) }", "perm"),
    ],
)
def test_a_model_that_breaks_onnx_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(InvalidModel, match=said):
        load(proto(text))


def test_an_input_that_no_request_can_hold_is_refused() -> None:
    with pytest.raises(ModelError, match="'x' has dtype FLOAT8E4M3FN, expected one of bool"):
        load(proto("g (float8e4m3fn[n] x) => (float[n] y) { y = Cast<to = 1>(x) }", opset=19))


def test_something_that_is_no_model_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"got a builtins\.dict, expected a path"):
        load({"a": 1})


def test_unnamed_dims_get_stable_names_of_their_own() -> None:
    model = proto("g (float[x_0, 2] x, float[2, 2] z) => (float[p, 2] y) { y = Relu(x) }")
    for value in model.graph.input:
        if value.name == "z":
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_value")
    assert str(load(model).signature) == "(x: float32[x_0, 2], z: float32[z_0, z_1]) -> (y: float32[x_0, 2])"


def test_inputs_and_outputs_can_be_renamed() -> None:
    model = load(
        proto("g (float[n] x) => (float[n] y) { t = Abs(x) y = Relu(t) }"), input_names=["t"], output_names=["x"]
    )
    assert str(model.signature) == "(t: float32[n]) -> (x: float32[n])"
    (y,) = ReferenceEvaluator(model.to_proto()).run(None, {"t": np.float32([-2, 3])})
    assert y.tolist() == [2, 3]
    with pytest.raises(InvalidModel, match=r"got input_names \['a', 'b'\], expected 1"):
        load(proto(), input_names=["a", "b"])


def test_the_callers_model_is_not_changed() -> None:
    source = proto()
    before = source.SerializeToString()
    load(source)
    assert source.SerializeToString() == before
    as_ir = onnx_ir.serde.deserialize_model(source)
    first, second = load(as_ir), load(as_ir)
    assert [node.op_type for node in as_ir.graph] == ["MatMul"]
    assert first.sha256 == second.sha256 == load(source).sha256


def test_functions_are_inlined() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    g (float[n] x) => (float[n] y) { y = local.twice (x) }
    <domain: "local", opset_import: ["" : 18]> twice (a) => (b) { c = Abs(a) b = Add(c, c) }"""
    model = load(onnx.parser.parse_model(text))
    assert [node.op_type for node in model.graph.graph] == ["Abs", "Add"]
    assert model.signature.outputs[0].dtype == "float32"


def test_an_old_opset_is_brought_up_to_date() -> None:
    text = """<ir_version: 6, opset_import: ["" : 11]>
    g (float[n, 1, 4] x) => (float[n, 4] y) { s = Squeeze<axes = [1]>(x) y = Softmax<axis = 1>(s) }"""
    source = onnx.parser.parse_model(text)
    model = load(source)
    assert model.graph.opset_imports[""] >= 13
    x = np.float32([[[1, 2, 3, 4]]])
    want = ReferenceEvaluator(source).run(None, {"x": x})
    np.testing.assert_allclose(ReferenceEvaluator(model.to_proto()).run(None, {"x": x})[0], want[0], rtol=1e-6)


def test_every_value_has_a_dtype(path: Path) -> None:
    text = "g (float[n] x) => (int64[n] y) { t = Shape(x) u = Abs(x) y = Cast<to = 7>(u) }"
    for model in (load(path), load(proto(text))):
        for node in model.graph.graph:
            assert all(output.dtype is not None for output in node.outputs)


def test_loading_imports_nothing_heavy(path: Path) -> None:
    code = (
        "import sys, headrace.graph; headrace.graph.load(sys.argv[1]); "
        "heavy = {'torch', 'ray', 'sklearn', 'lightgbm', 'xgboost', 'skl2onnx', 'onnxmltools', 'onnxruntime', "
        "'onnxscript', 'transformers', 'pandas', 'scipy', 'sympy'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_sympy_is_there_once_something_asks_for_it() -> None:
    code = (
        "import headrace.graph, sys, onnx_ir; assert 'sympy' not in sys.modules; "
        "print(onnx_ir.SymbolicDim('n') + 1, onnx_ir.SymbolicDim('max(n, 2)').evaluate({'n': 5})); "
        "import sympy; print(sympy.Integer(3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["n", "+", "1", "5", "3"]


def test_an_output_may_have_no_shape_and_an_input_may_not() -> None:
    model = proto("g (float[n, 4] x) => (float[n, 4] y) { y = Abs(x) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert str(load(model)) == "g(x: float32[n, 4]) -> (y: float32[n, 4])"
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' has no shape, expected one of known rank"):
        load(model)
