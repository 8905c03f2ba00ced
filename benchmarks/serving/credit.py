"""The credit model as a file, and a request to it in the forms that servers take."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.machine import ROOT
from benchmarks.serving.load import Post

NAME = "credit"
# A student, a balance and an income, of islp's Default.csv.
ROW = np.array([[1.0, 1487.0, 18021.5]], np.float32)


def repository() -> Path:
    """A folder with the model in it, trained now if it is not there."""
    folder = ROOT / "build" / "models" / NAME
    if not (folder / "1" / "model.onnx").exists():
        spec = importlib.util.spec_from_file_location("credit_run", ROOT / "examples" / "credit" / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        train, _ = module.split(module.customers())
        module.save(module.train_trees(train), folder)
    return folder


def file() -> Path:
    """The model's file."""
    return repository() / "1" / "model.onnx"


def input_name() -> str:
    """What the model calls its input."""
    import headrace as hr

    return hr.load(file()).signature.inputs[0].name


def is_right(answer: bytes, post: Post) -> bool:
    """Whether an answer has the probability that LightGBM's file says, in whichever form it came."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file()), providers=["CPUExecutionProvider"])
    expected = float(session.run(["probabilities"], {"x": ROW})[0][0, 1])
    if b"binary_data_size" in post.body:
        values = [float(np.frombuffer(answer[-4:], np.float32)[0])]
    else:
        values = [float(text) for text in re.findall(rb"0\.\d+", answer)]
    return any(abs(value - expected) < 1e-5 for value in values)


def oip_json(url: str, name: str = NAME) -> Post:
    """The request in the Open Inference Protocol, as JSON."""
    tensor = {"name": input_name(), "datatype": "FP32", "shape": [1, 3], "data": ROW.ravel().tolist()}
    return Post(f"{url}/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode())


def oip_binary(url: str, name: str = NAME) -> Post:
    """The request with the binary tensor extension, which asks for a binary answer."""
    data = ROW.tobytes()
    tensor: dict[str, Any] = {"name": input_name(), "datatype": "FP32", "shape": [1, 3]}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Post(f"{url}/v2/models/{name}/infer", head + data, headers)


def plain_json(url: str) -> Post:
    """The request as servers without a protocol of their own would have it."""
    return Post(url, json.dumps({"x": ROW.ravel().tolist()}).encode())
