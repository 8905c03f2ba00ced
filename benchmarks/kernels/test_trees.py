"""Tree ensembles next to ONNX Runtime on the same graph: 300 trees of 63 leaves on 30 features, grown by LightGBM.

.venv/bin/python -m pytest benchmarks/kernels/test_trees.py --benchmark-only --benchmark-group-by=param:rows
"""

from __future__ import annotations

import os
import time

# Beside other work, OpenMP threads that wait for each other make trainings take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightgbm
import numpy as np
import onnxruntime
import pytest

import headrace as hr

TREES, LEAVES, FEATURES, THREADS = 300, 63, 30, 2


@pytest.fixture(scope="module")
def model() -> hr.Model:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, FEATURES)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.5 * x[:, 4:10].sum(1) > 0).astype(int)
    parameters = {"objective": "binary", "num_leaves": LEAVES, "verbose": -1, "num_threads": 1}
    return hr.load(lightgbm.train(parameters, lightgbm.Dataset(x, y), TREES))


@pytest.mark.parametrize("rows", [1, 32, 1000, 10000])
@pytest.mark.parametrize("runtime", ["headrace", "onnxruntime"])
def test_trees(benchmark: object, model: hr.Model, runtime: str, rows: int) -> None:
    feeds = {"x": np.random.default_rng(1).normal(size=(rows, FEATURES)).astype(np.float32)}
    if runtime == "headrace":
        engine = model.compile(backend="native", threads=THREADS)
        time.sleep(0.2)  # the peer's threads spin for a while after its last call
        benchmark(engine, feeds)
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(model.to_proto().SerializeToString(), options)
        benchmark(session.run, None, feeds)
