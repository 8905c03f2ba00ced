"""``headrace inspect``, on a model small enough to know every number of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from headrace.cli.main import cli


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """Sigmoid(x W): nothing in it fuses into fewer weights."""
    weight = numpy_helper.from_array(np.ones((30, 2), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 30])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_json_has_signature_ops_and_sizes(model_file: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", "--json", str(model_file)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["name"] == "small"
    assert report["sha256"] == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert report["inputs"] == [{"name": "x", "dtype": "float32", "dims": ["n", 30]}]
    assert report["outputs"] == [{"name": "y", "dtype": "float32", "dims": ["n", 2]}]
    assert (report["parameters"], report["weight_bytes"]) == (60, 240)
    assert report["nodes"] == sum(report["ops"].values()) == 1, "the optimised graph is shown: one fused Linear"
    assert list(report["ops"]) == ["headrace.Linear"]


def test_the_table_is_for_people(model_file: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(model_file)])
    assert result.exit_code == 0, result.output
    for text in ("small", "float32", "[n, 30]", "headrace.Linear", "60 parameters"):
        assert text in result.output


def test_a_file_that_is_no_model_is_our_error(tmp_path: Path) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"junk")
    result = CliRunner().invoke(cli, ["inspect", str(path)])
    assert result.exit_code != 0
    assert type(result.exception).__name__ == "InvalidModel"
