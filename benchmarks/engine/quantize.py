"""Models that ONNX Runtime's tools have quantised, kept under build/models/quantized."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness.machine import ROOT
from headrace.backend import Request
from headrace.peers import quantize_dynamically


def dynamic(path: Path) -> Path:
    """Products with constant weights in int8, activations quantised at run time."""
    return _made(path, "dynamic", lambda target: quantize_dynamically(str(path), str(target)))


def static(path: Path, samples: Sequence[Request]) -> Path:
    """All that can be in int8, with scales found on `samples`: QuantizeLinear and DequantizeLinear around each op.

    The form that ONNX Runtime and OpenVINO both run on integer kernels: activations uint8, weights int8 per channel.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [dict(sample) for sample in samples]

        def get_next(self) -> Request | None:
            return self.left.pop() if self.left else None

    def make(target: Path) -> None:
        folded = target.with_suffix(".folded")  # batch norms become part of their convolutions first
        quant_pre_process(str(path), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded), str(target), Samples(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        folded.unlink()

    return _made(path, "static", make)


def _made(path: Path, kind: str, make: Callable[[Path], None]) -> Path:
    """The quantised file, made once per content of the model's."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    target = ROOT / "build" / "models" / "quantized" / f"{path.stem}-{kind}-{digest}.onnx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        logging.disable(logging.WARNING)  # advice about preparation, and one line per node left as it is
        try:
            make(partial)
        finally:
            logging.disable(logging.NOTSET)
        partial.rename(target)
    return target
