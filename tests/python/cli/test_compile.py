"""``headrace compile``, and ``headrace bench`` on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import headrace as hr
from headrace.cli.main import cli
from headrace.errors import ConfigError
from headrace.plan_file import PLAN_FILE


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_compile_saves_a_plan_that_loads(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plans" / "relu"
    result = CliRunner().invoke(cli, ["compile", str(model_file), "-o", str(folder), "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["path"] == str(folder / PLAN_FILE)
    assert report["bytes"] == (folder / PLAN_FILE).stat().st_size
    engine = hr.load_plan(folder, model=model_file, threads=1, precision="fp32")
    assert report["plan"]["isa"] == engine.plan.isa
    np.testing.assert_array_equal(engine({"x": np.array([[-1, 0, 2]], np.float32)})["y"], [[0, 0, 2]])


def test_bench_times_a_saved_plan_beside_the_backends(model_file: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(cli, ["compile", str(model_file), "-o", str(tmp_path)]).exit_code == 0
    arguments = ["bench", str(model_file), "--plan", str(tmp_path), "--backend", "native", "--no-peers", "--json"]
    result = runner.invoke(cli, [*arguments, "--rounds", "1", "--block-ms", "1"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert set(rows) == {"native", "saved plan"}
    assert rows["saved plan"]["max_abs_diff"] == 0


def test_bench_starts_no_threads_that_nobody_has(model_file: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", str(model_file), "--threads", "100000"])
    assert isinstance(done.exception, ConfigError)
    assert "bench: threads: got 100000, expected an integer from 1 to" in str(done.exception)
