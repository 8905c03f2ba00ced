"""Other runtimes, for comparison only: each gives a callable for one ONNX file and one Request.

Peers run the file as it is, on the same number of threads, in fp32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.backend import Request

# A function of a model file, a Request and a thread count; it returns what runs that Request once and gives
# the outputs in the Model's order.
Peer = Callable[[str, Request, int], Callable[[], list[np.ndarray]]]


def _onnxruntime(path: str, request: Request, threads: int) -> Callable[[], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = dict(request)
    return lambda: session.run(None, feed)


def _openvino(path: str, request: Request, threads: int) -> Callable[[], list[np.ndarray]]:
    import openvino

    config: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(path, "CPU", config)
    infer = compiled.create_infer_request()
    feed = dict(request)

    def run() -> list[np.ndarray]:
        results = infer.infer(feed, share_inputs=True)
        return [results[port] for port in compiled.outputs]

    return run


PEERS: dict[str, Peer] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def installed_peers() -> dict[str, Peer]:
    """The peers that can be imported here, by name."""
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(name) is not None}
