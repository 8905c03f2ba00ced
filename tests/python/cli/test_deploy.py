"""``headrace deploy`` as users run it: a real process, a real model, the real scheduler, a real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

pytest.importorskip("ray", reason="the Ray extra is not installed")
pytestmark = pytest.mark.ray

DEPLOY = [sys.executable, "-c", "from headrace.cli.main import main; main()", "deploy"]


def save_model(path: Path, seed: int = 3) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.random.default_rng(seed).standard_normal((6, 2)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["p"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return model


def environment() -> dict[str, str]:
    """This process's, with import paths that hold in other folders too."""
    paths = os.pathsep.join(
        os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path
    )
    return {**os.environ, "PYTHONPATH": paths}


def infer(url: str, rows: np.ndarray) -> np.ndarray:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    request = urllib.request.Request(f"{url}/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        (output,) = json.load(response)["outputs"]
    return np.array(output["data"], dtype=np.float32).reshape(output["shape"])


def test_it_answers_like_the_reference_and_leaves_nothing_behind(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny.onnx")
    (tmp_path / "app.yaml").write_text(
        "models:\n- name: tiny\n  path: tiny.onnx\n  autoscaling: {cpus_per_replica: 0.1}\n", encoding="utf-8"
    )
    process = subprocess.Popen(
        [*DEPLOY, "app.yaml", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        events: list[dict[str, Any]] = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "ready":
                break
        url = events[-1]["value"]
        assert {"event": "progress", "value": "tiny is ready"} in events

        rows = np.random.default_rng(4).standard_normal((5, 6)).astype(np.float32)
        (expected,) = ReferenceEvaluator(model).run(None, {"x": rows})
        np.testing.assert_allclose(infer(url, rows), expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(urllib.error.HTTPError) as wrong:
            infer(url, rows[:, :3])
        assert wrong.value.code == 400
        assert "3" in json.load(wrong.value)["error"]

        assert json.loads(process.stdout.readline()) == {"event": "replicas", "value": {"tiny": {"RUNNING": 1}}}

        # A changed file is brought in by the replica that runs.
        model = save_model(tmp_path / "tiny.onnx", seed=5)
        process.send_signal(signal.SIGHUP)
        for line in process.stdout:
            event = json.loads(line)
            assert event["event"] in ("progress", "updated", "rollout"), event
            if event["event"] == "rollout" and "candidate" not in event["value"]:
                break
        assert event["value"] == {"model": "tiny", "generation": 3, "running": "1"}
        (changed,) = ReferenceEvaluator(model).run(None, {"x": rows})
        assert not np.allclose(changed, expected, rtol=1e-2)
        np.testing.assert_allclose(infer(url, rows), changed, rtol=1e-5, atol=1e-6)

        # One that cannot be read is an error, and what runs goes on.
        (tmp_path / "app.yaml").write_text("models: 7")
        process.send_signal(signal.SIGHUP)
        event = json.loads(process.stdout.readline())
        assert event["event"] == "error"
        assert "app.yaml" in event["value"]
        assert infer(url, rows).shape == (5, 2)

        process.send_signal(signal.SIGTERM)
        assert [json.loads(line)["event"] for line in process.stdout] == ["progress", "stopped"]
        assert process.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=5)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_a_wrong_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("models:\n- name: tiny\n  path: nowhere.onnx\n", encoding="utf-8")
    done = subprocess.run(
        [*DEPLOY, "app.yaml"], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 1
    assert "nowhere.onnx: got nothing there" in done.stderr
