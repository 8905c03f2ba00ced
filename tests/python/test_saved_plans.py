"""Saved Plans: what is loaded answers bit for bit like what was saved, and whatever does not fit is refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier

import headrace as hr
from headrace import _core
from headrace.errors import ConfigError, InvalidPlan, PlanError, StalePlan
from headrace.plan_file import FORMAT_VERSION, PLAN_FILE
from headrace.samples import make_request

F32, I64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
HEADER_BYTES = 64


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def floats(*shape: int) -> np.ndarray:
    return rng().standard_normal(shape).astype(np.float32)


def proto(
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, np.ndarray],
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "saved",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def mlp() -> ModelProto:
    """Linear with a bias and a clip to infinity, Gemm with alpha and beta, and a constant read at run time."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Clip", ["c", "low"], ["d"]),
        helper.make_node("Gemm", ["d", "v", "u"], ["e"], alpha=0.5, beta=2.0, transB=1),
        helper.make_node("Mul", ["e", "factor"], ["y"]),
    ]
    constants = {"w": floats(12, 40), "b": floats(40), "low": np.float32(0), "v": floats(7, 40), "u": floats(7)}
    constants["factor"] = floats(7)
    return proto(nodes, {"x": (F32, ["n", 12])}, {"y": (F32, ["n", 7])}, constants)


def convolution() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["d"], group=8, kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["d", "s", "o", "m", "q"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["y"]),
    ]
    constants = {"w": floats(8, 3, 3, 3), "b": floats(8), "v": floats(8, 1, 3, 3), "s": floats(8), "o": floats(8)}
    constants |= {"m": floats(8), "q": np.abs(floats(8)) + 1}
    return proto(nodes, {"x": (F32, ["n", 3, 9, "w"])}, {"y": (F32, ["n", 8])}, constants)


def lone_batch_norm() -> ModelProto:
    nodes = [helper.make_node("BatchNormalization", ["x", "s", "o", "m", "q"], ["y"])]
    constants = {name: np.abs(floats(5)) + index for index, name in enumerate("somq")}
    return proto(nodes, {"x": (F32, ["n", 5, 4])}, {"y": (F32, ["n", 5, 4])}, constants)


def strings() -> ModelProto:
    """Strings as attributes and as a constant that is an output, and NaN among the attributes."""
    texts = helper.make_tensor("texts", STRING, [2], [b"no", "ja \N{SNOWMAN}".encode()])
    nodes = [
        helper.make_node("Constant", [], ["labels"], value=texts),
        helper.make_node(
            "LabelEncoder", ["x"], ["code"], domain="ai.onnx.ml", keys_strings=["a", "b"],
            values_floats=[1.5, float("nan")], default_float=float("-inf"),
        ),
        helper.make_node("Gather", ["labels", "which"], ["y"]),
    ]  # fmt: skip
    outputs = {"code": (F32, ["n"]), "y": (STRING, ["k"])}
    return proto(nodes, {"x": (STRING, ["n"]), "which": (I64, ["k"])}, outputs, {})


def bfloat16() -> ModelProto:
    """A constant of a dtype that numpy lacks."""
    ml_dtypes = pytest.importorskip("ml_dtypes")  # a dependency of headrace
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["y"], to=F32),
    ]
    table = floats(6, 3).astype(ml_dtypes.bfloat16)
    return proto(nodes, {"x": (I64, ["n"])}, {"y": (F32, ["n", 3])}, {"table": table})


def trees() -> Any:
    x = rng().normal(size=(200, 5))
    y = (x[:, 0] > x[:, 1]).astype(int)
    return lightgbm.LGBMClassifier(n_estimators=20, num_leaves=15, num_threads=1, verbose=-1).fit(x, y)


def network() -> Any:
    x = floats(60, 30)
    return MLPClassifier((16, 16), solver="lbfgs", max_iter=500, random_state=0).fit(x, (x[:, 0] > 0).astype(int))


REQUESTS: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "strings": lambda: {"x": np.array(["b", "a", "z"], dtype=object), "which": np.array([1, 0, 1])},
    "bfloat16": lambda: {"x": np.array([5, 0, 3])},
}
MODELS: dict[str, Callable[[], Any]] = {
    build.__name__: build for build in (mlp, convolution, lone_batch_norm, strings, bfloat16, trees, network)
}


def request_of(name: str, engine: hr.Engine) -> dict[str, np.ndarray]:
    if name in REQUESTS:
        return REQUESTS[name]()
    dims = {dim: 11 for spec in engine.signature.inputs for dim in spec.dims if isinstance(dim, str)}
    request = make_request(engine.signature, dims)
    return {key: floats(*array.shape) if array.dtype == np.float32 else array for key, array in request.items()}


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    def equal(left: np.ndarray, right: np.ndarray) -> bool:
        if left.dtype == object:
            return left.tolist() == right.tolist()
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()

    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved Plan."""
    folder = tmp_path_factory.mktemp("saved")
    hr.load(mlp(), name="mlp").compile(backend="native", threads=2).save(folder)
    return folder


def changed(saved: Path, folder: Path, change: Callable[[bytearray], None]) -> Path:
    """A copy of the saved Plan after `change`."""
    data = bytearray((saved / PLAN_FILE).read_bytes())
    change(data)
    (folder / PLAN_FILE).write_bytes(data)
    return folder


def rewritten(saved: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the saved Plan with another manifest, and all hashes right."""

    def rewrite(data: bytearray) -> None:
        fields = list(struct.unpack_from("<16sIIQQQQQ", data))
        end = HEADER_BYTES + fields[4]
        manifest = json.loads(data[HEADER_BYTES:end])
        change(manifest)
        text = json.dumps(manifest).encode()
        assert end // 4096 == (HEADER_BYTES + len(text)) // 4096, "the blocks would have to move"
        first = -(-end // 4096) * 4096
        data[HEADER_BYTES:first] = text.ljust(first - HEADER_BYTES, b"\0")
        fields[4], fields[5] = len(text), _core.hash_bytes(text)
        fields[6] = _core.hash_bytes(bytes(data[HEADER_BYTES + len(text) :]))
        head = struct.pack("<16sIIQQQQ", *fields[:7])
        data[:HEADER_BYTES] = head + struct.pack("<Q", _core.hash_bytes(head))

    return changed(saved, folder, rewrite)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_loaded_plan_answers_bit_for_bit_like_the_saved_one(name: str, tmp_path: Path) -> None:
    engine = hr.load(MODELS[name](), name=name).compile(backend="native", threads=2)
    path = engine.save(tmp_path)
    loaded = hr.load_plan(tmp_path / "plan.headrace")  # as its folder
    request = request_of(name, engine)
    assert same_bits(engine(request), loaded(request))
    for a, b in zip(engine.run_batch([request] * 3), loaded.run_batch([request] * 3), strict=True):
        assert same_bits(a, b)
    assert (loaded.name, loaded.sha256, loaded.signature) == (engine.name, engine.sha256, engine.signature)
    assert loaded.plan.details == engine.plan.details
    assert loaded.plan.reasons == (*engine.plan.reasons, f"mapped from {path}")


def test_a_loaded_plan_is_saved_as_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    hr.load_plan(saved).save(tmp_path)
    first, again = (json.loads(_manifest(folder)) for folder in (saved, tmp_path))
    assert again["plan"].pop("reasons")[:-1] == first["plan"].pop("reasons")
    assert again == first
    assert _blocks(tmp_path) == _blocks(saved)


def test_a_plan_is_saved_as_the_same_bytes_every_time(saved: Path, tmp_path: Path) -> None:
    hr.load(mlp(), name="mlp").compile(backend="native", threads=2).save(tmp_path)
    assert (tmp_path / PLAN_FILE).read_bytes() == (saved / PLAN_FILE).read_bytes()


def _manifest(folder: Path) -> bytes:
    data = (folder / PLAN_FILE).read_bytes()
    return data[HEADER_BYTES : HEADER_BYTES + struct.unpack_from("<Q", data, 32)[0]]


def _blocks(folder: Path) -> bytes:
    end = HEADER_BYTES + len(_manifest(folder))
    return (folder / PLAN_FILE).read_bytes()[-(-end // 4096) * 4096 :]


@pytest.mark.parametrize("precision", ["bf16", "int8", "auto"])
def test_every_precision_is_saved(precision: str, tmp_path: Path) -> None:
    model = hr.load(mlp())
    engine = model.compile(backend="native", precision=precision)
    engine.save(tmp_path)
    first = (tmp_path / PLAN_FILE).read_bytes()
    loaded = hr.load_plan(tmp_path, precision=precision)
    assert loaded.plan.precision == engine.plan.precision
    request = {"x": floats(3, 12)}
    assert same_bits(engine(request), loaded(request))
    if precision != "auto":  # whose reasons hold what it measured
        model.compile(backend="native", precision=precision).save(tmp_path)
        assert (tmp_path / PLAN_FILE).read_bytes() == first


def test_packed_weights_are_in_the_file_once(tmp_path: Path) -> None:
    weights = floats(256, 512)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = proto(nodes, {"x": (F32, ["n", 256])}, {"y": (F32, ["n", 512])}, {"w": weights})
    path = hr.load(model).compile(backend="native").save(tmp_path)
    assert path.stat().st_size < weights.nbytes + 8192


def test_loading_imports_none_of_the_compiler(saved: Path) -> None:
    code = (
        "import sys, numpy as np, headrace as hr\n"
        f"engine = hr.load_plan({str(saved)!r})\n"
        "engine({'x': np.ones((2, 12), np.float32)})\n"
        "heavy = ('onnx', 'onnx_ir', 'ml_dtypes', 'msgspec', 'importlib.metadata', 'torch')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_loaded_plan_is_read_where_it_is_mapped(saved: Path) -> None:
    engine = hr.load_plan(saved)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(saved / PLAN_FILE) in line]
    assert [line.split()[1] for line in lines] == ["r--s"]
    start, end = (int(part, 16) for part in lines[0].split()[0].split("-"))
    data = engine.executable.core.describe()  # type: ignore[attr-defined]
    blocks = [block for node in data["nodes"] for block in node["packs"]]
    blocks += [constant["data"] for constant in data["constants"] if isinstance(constant["data"], np.ndarray)]
    assert len(blocks) >= 5
    for block in blocks:
        assert start <= block.ctypes.data < end


def test_a_loaded_plan_outlives_its_file(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path, lambda data: None)
    engine = hr.load_plan(folder)
    request = {"x": floats(3, 12)}
    before = engine(request)
    hr.load(lone_batch_norm()).compile(backend="native").save(folder)  # a rename over it
    assert same_bits(engine(request), before)
    (folder / PLAN_FILE).unlink()
    assert same_bits(engine(request), before)


def test_a_failed_save_leaves_the_old_plan(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(saved, tmp_path, lambda data: None)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        hr.load_plan(folder).save(folder)
    assert [path.name for path in folder.iterdir()] == [PLAN_FILE]
    assert (folder / PLAN_FILE).read_bytes() == (saved / PLAN_FILE).read_bytes()


def test_saves_of_two_threads_into_one_folder_leave_a_whole_plan(tmp_path: Path) -> None:
    engines = [hr.load(model()).compile(backend="native") for model in (mlp, lone_batch_norm)]
    failures: list[Exception] = []

    def save(engine: Any) -> None:
        try:
            for _ in range(8):
                engine.save(tmp_path)
                hr.load_plan(tmp_path).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in tmp_path.iterdir()] == [PLAN_FILE]


def test_a_backend_that_cannot_save_says_so(tmp_path: Path) -> None:
    engine = hr.load(mlp()).compile(backend="reference")
    with pytest.raises(PlanError, match="backend 'reference' cannot save its Plans, expected backend 'native'"):
        engine.save(tmp_path)


def test_threads_are_resolved_where_the_plan_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hr.load(mlp()).compile(backend="native").save(tmp_path)
    monkeypatch.setattr("headrace.hardware.usable_cores", lambda: 3)
    assert hr.load_plan(tmp_path).plan.threads == 3


# ---- refusals ----


@pytest.mark.parametrize(
    ("key", "value"),
    [("isa", "avx1024"), ("arch", "vax"), ("build", "0" * 64), ("backend", "torch")],
)
def test_a_foreign_plan_is_refused(saved: Path, tmp_path: Path, key: str, value: str) -> None:
    folder = rewritten(saved, tmp_path, lambda manifest: manifest["made_for"].update({key: value}))
    with pytest.raises(StalePlan, match=rf"plan\.headrace: {key}: got '{value}' in the saved Plan, expected '"):
        hr.load_plan(folder)


def test_a_plan_for_another_isa_is_refused_by_a_process_that_chose_it(saved: Path) -> None:
    code = f"import headrace as hr\ntry:\n  hr.load_plan({str(saved)!r})\nexcept hr.errors.StalePlan as e:\n  print(e)"
    env = os.environ | {"HEADRACE_ISA": "reference"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    if _core.selected_isa() == "reference":  # then it is not another one
        assert done.stdout == ""
    else:
        assert f"isa: got '{_core.selected_isa()}' in the saved Plan, expected 'reference'" in done.stdout


def test_a_plan_of_another_format_version_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path, lambda data: struct.pack_into("<I", data, 16, FORMAT_VERSION + 1))
    with pytest.raises(StalePlan, match=f"got format version {FORMAT_VERSION + 1}, expected {FORMAT_VERSION}"):
        hr.load_plan(folder)


def test_a_plan_of_another_model_or_other_options_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(mlp().SerializeToString())
    hr.load(path).compile(backend="native", threads=1).save(tmp_path)
    assert hr.load_plan(tmp_path, model=path, threads=1, precision="fp32").plan.threads == 1
    assert hr.load_plan(tmp_path, model=hr.load(path)).name == "model"
    with pytest.raises(StalePlan, match=r"option 'threads': got 1 in the saved Plan, expected 2"):
        hr.load_plan(tmp_path, threads=2)
    with pytest.raises(StalePlan, match=r"option 'precision': got 'fp32' in the saved Plan, expected 'bf16'"):
        hr.load_plan(tmp_path, precision="bf16")
    path.write_bytes(lone_batch_norm().SerializeToString())
    with pytest.raises(StalePlan, match="model sha256: got "):
        hr.load_plan(tmp_path, model=path)


def test_weights_in_another_file_are_part_of_the_model(tmp_path: Path) -> None:
    path, beside = tmp_path / "model.onnx", tmp_path / "weights.bin"
    model = mlp()
    onnx.save(model, path, save_as_external_data=True, location=beside.name, size_threshold=0)
    loaded = hr.load(path)
    loaded.compile(backend="native").save(tmp_path)
    assert hr.load_plan(tmp_path, model=path)(request := {"x": floats(3, 12)})["y"].shape == (3, 7)
    data = bytearray(beside.read_bytes())
    data[2:4] = data[6:8]  # the upper half of a float: another weight in the same graph
    beside.write_bytes(data)
    assert hr.load(path).sha256 != loaded.sha256
    assert not same_bits(hr.load(path).compile(backend="native")(request), hr.load_plan(tmp_path)(request))
    for other in (path, hr.load(path)):
        with pytest.raises(StalePlan, match="model sha256: got "):
            hr.load_plan(tmp_path, model=other)


def test_a_plan_of_a_model_with_other_names_or_another_order_is_refused(tmp_path: Path) -> None:
    def halves(*outputs: str, x: str = "x") -> hr.Model:
        nodes = [helper.make_node("Neg", [x], ["y"]), helper.make_node("Abs", [x], ["z"])]
        return hr.load(proto(nodes, {x: (F32, ["n", 2])}, {name: (F32, ["n", 2]) for name in outputs}, {}))

    halves("y", "z").compile(backend="native").save(tmp_path)
    assert list(hr.load_plan(tmp_path, model=halves("y", "z"))({"x": floats(1, 2)})) == ["y", "z"]
    for other in (halves("z", "y"), halves("y", "z", x="w"), halves("y")):
        with pytest.raises(StalePlan, match="model"):
            hr.load_plan(tmp_path, model=other)


def test_an_option_that_does_not_exist_is_named(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"got options \['thread'\], expected some of \[.*'threads'"):
        hr.load_plan(saved, thread=2)


def test_a_plan_with_options_this_version_lacks_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = rewritten(saved, tmp_path, lambda manifest: manifest["options"].update(magic=True))
    with pytest.raises(StalePlan, match="magic"):
        hr.load_plan(folder)


def test_no_plan_and_no_file_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan, match=r"plan\.headrace: cannot be opened: No such file"):
        hr.load_plan(tmp_path)
    (tmp_path / PLAN_FILE).write_bytes(b"")
    with pytest.raises(InvalidPlan, match="got 0 bytes, expected a header of 64"):
        hr.load_plan(tmp_path)
    (tmp_path / PLAN_FILE).write_bytes(mlp().SerializeToString())
    with pytest.raises(InvalidPlan, match=r"got a file that starts with .*, expected b'HEADRACE PLAN"):
        hr.load_plan(tmp_path)


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.pop(key)


def _first_pack(change: Callable[[list[int]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: change(next(node for node in manifest["nodes"] if node["packs"])["packs"][0])


def _grow(pack: list[int]) -> None:
    pack[1] += 64


def _misalign(pack: list[int]) -> None:
    pack[0] += 4


def _move_out(pack: list[int]) -> None:
    pack[0] = 1 << 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((_drop(key), "is not one of a Plan: KeyError") for key in ("made_for", "model", "options", "plan")),
        *((_drop(key), "is not one of a Plan: KeyError") for key in ("signature", "constants", "nodes", "outputs")),
        (lambda manifest: manifest["nodes"].pop(), "output 'y': nothing computes it"),
        (lambda manifest: manifest["nodes"].reverse(), "not defined before"),
        (lambda manifest: manifest["outputs"].clear(), "is not one of a Plan"),
        (lambda manifest: manifest["nodes"][0].update(packs=[]), "not in the saved Plan"),
        (lambda manifest: manifest["nodes"][0].update(op="Nothing"), "no kernel for this op"),
        (_first_pack(_grow), "bytes in packed block 0, expected"),
        (_first_pack(_misalign), "expected a multiple of 64"),
        (_first_pack(_move_out), "expected them within the file's"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(InvalidPlan, match=message):
        hr.load_plan(rewritten(saved, tmp_path, change))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_truncated_plan_is_refused(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    size = (saved / PLAN_FILE).stat().st_size
    left = data.draw(st.integers(0, size - 1))
    folder = changed(saved, tmp_path_factory.mktemp("cut"), lambda content: content.__delitem__(slice(left, None)))
    with pytest.raises(InvalidPlan):
        hr.load_plan(folder, verify=False)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_plan_is_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    size = (saved / PLAN_FILE).stat().st_size
    at = data.draw(st.integers(0, size - 1) | st.integers(0, HEADER_BYTES - 1))
    flip = data.draw(st.integers(1, 255))

    def damage(content: bytearray) -> None:
        content[at] ^= flip

    with pytest.raises(PlanError):
        hr.load_plan(changed(saved, tmp_path_factory.mktemp("flip"), damage))


def test_verify_false_skips_the_weights_alone(saved: Path, tmp_path: Path) -> None:
    def damage(content: bytearray) -> None:
        content[-1] ^= 1

    folder = changed(saved, tmp_path, damage)
    assert hr.load_plan(folder, verify=False).name == "mlp"
    with pytest.raises(InvalidPlan, match=r"damaged weights: got hash [0-9a-f]{16}, expected [0-9a-f]{16}"):
        hr.load_plan(folder)
