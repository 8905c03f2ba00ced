"""Other runtimes, for comparison only: each gives a callable for one ONNX file and one Request.

Peers run on the same number of threads and in the same precision. onnxruntime's int8 is its dynamic quantisation,
openvino's bf16 its inference precision hint; each is set up for the least latency of one call.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.backend import Request
from headrace.errors import BackendUnavailable

# Runs one Request and gives the outputs in the Model's order.
Run = Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Peer:
    """Another runtime.

    Attributes:
        module: What must be importable for it.
        precisions: Those `prepare` takes.
        prepare_file: Of a model file, a Request, a thread count and a precision.
    """

    name: str
    module: str
    precisions: tuple[str, ...]
    prepare_file: Callable[[str, Request, int, str], Run]

    def prepare(self, path: str | Path, request: Request, threads: int, precision: str = "fp32") -> Run:
        """What runs `request` on the model file once per call.

        Raises:
            BackendUnavailable: The peer has no such precision.
        """
        if precision not in self.precisions:
            expected = ", ".join(self.precisions)
            raise BackendUnavailable(f"peer {self.name!r}: got precision {precision!r}, expected one of {expected}")
        return self.prepare_file(str(path), request, threads, precision)


def _onnxruntime(path: str, request: Request, threads: int, precision: str) -> Run:
    if precision == "int8":
        with tempfile.TemporaryDirectory() as folder:
            quantized = str(Path(folder) / "model.onnx")
            quantize_dynamically(path, quantized)
            return _session(quantized, request, threads)
    return _session(path, request, threads)


def _session(path: str, request: Request, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # some converters declare wrong shapes, and it would warn at every call
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = dict(request)
    return lambda: session.run(None, feed)


def quantize_dynamically(path: str, quantized: str) -> None:
    """Writes the model with int8 weights, one scale per column, and activations quantised at run time.

    Only products with constant weights are changed; ONNX Runtime's integer convolutions are slower than its others.
    """
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it advises a preparation step that changes nothing here
    try:
        quantize_dynamic(
            path, quantized, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        logging.disable(logging.NOTSET)


def _openvino(path: str, request: Request, threads: int, precision: str) -> Run:
    import openvino

    config: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    compiled = openvino.Core().compile_model(path, "CPU", config)
    infer = compiled.create_infer_request()
    feed = dict(request)

    def run() -> list[np.ndarray]:
        results = infer.infer(feed, share_inputs=True)
        return [results[port] for port in compiled.outputs]

    return run


PEERS: dict[str, Peer] = {
    "onnxruntime": Peer("onnxruntime", "onnxruntime", ("fp32", "int8"), _onnxruntime),
    "openvino": Peer("openvino", "openvino", ("fp32", "bf16"), _openvino),
}


def installed_peers() -> dict[str, Peer]:
    """The peers that can be imported here, by name."""
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer.module) is not None}
