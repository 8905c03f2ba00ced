"""Interleaved timing and sample Requests."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, save

import headrace as hr
from headrace.cli.main import cli
from headrace.errors import RequestError
from headrace.measure import Candidate, interleave
from headrace.samples import make_request, read_request
from headrace.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec("ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "sequence")),
        TensorSpec("x", "float32", ("batch", 3)),
        TensorSpec("kind", "string", ("batch",)),
    ),
    outputs=(),
)


def test_candidates_take_turns_block_by_block() -> None:
    order: list[str] = []
    candidates = [Candidate(name, lambda name=name: order.append(name) or time.sleep(0.002)) for name in "ab"]
    timings = interleave(candidates, rounds=2, block_s=0.01, warmup_calls=1, pause_s=0)
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert turns == ["a", "b", "a", "b"]
    assert [timing.name for timing in timings] == ["a", "b"]
    assert all(timing.best_s <= timing.median_s <= timing.p90_s for timing in timings)
    assert all(timing.median_s >= 0.002 for timing in timings)


def test_a_slower_candidate_is_seen_as_slower() -> None:
    slow, fast = interleave(
        [Candidate("slow", lambda: time.sleep(0.004)), Candidate("fast", lambda: time.sleep(0.001))],
        rounds=2, block_s=0.02, pause_s=0,
    )  # fmt: skip
    assert slow.median_s > 2 * fast.median_s


def test_made_requests_fit_their_signature() -> None:
    request = make_request(SIGNATURE, {"batch": 2, "sequence": 5})
    assert {name: array.shape for name, array in request.items()} == {
        "ids": (2, 5), "attention_mask": (2, 5), "x": (2, 3), "kind": (2,),
    }  # fmt: skip
    assert request["ids"].dtype == np.int64
    assert set(np.unique(request["ids"])) <= {0, 1}
    assert request["attention_mask"].all()
    assert request["kind"].tolist() == ["a", "a"]


def test_unknown_dims_are_refused() -> None:
    with pytest.raises(RequestError, match=r"got dims \['rows'\], expected some of \['batch', 'sequence'\]"):
        make_request(SIGNATURE, {"rows": 2})


def test_requests_are_read_from_npz(tmp_path: Path) -> None:
    signature = Signature(inputs=(TensorSpec("x", "float32", (2,)),), outputs=())
    np.savez(tmp_path / "good.npz", x=np.ones(2, np.float32))
    np.testing.assert_array_equal(read_request(tmp_path / "good.npz", signature)["x"], np.ones(2))
    np.savez(tmp_path / "bad.npz", y=np.ones(2, np.float32))
    with pytest.raises(RequestError, match=r"bad\.npz: .* expected an \.npz with one array for each of"):
        read_request(tmp_path / "bad.npz", signature)


def test_bench_compares_backends_and_peers(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
    )
    path = tmp_path / "relu.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    arguments = ["bench", str(path), "--dim", "n=4", "--rounds", "1", "--block-ms", "5", "--threads", "1"]
    done = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    rows = {row["name"]: row for row in report["rows"]}
    assert {"native", "torch", "onnxruntime"} <= set(rows)
    assert rows["native"]["ratio"] == 1.0
    assert report["inputs"] == {"x": [4, 8]}
    assert all(row["max_abs_diff"] == 0 for row in report["rows"])
    table = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "onnxruntime" in table.stdout
    assert hr.load(str(path)).name == "relu"
