"""A LightGBM model of 300 trees x 63 leaves on 30 features, against ONNX Runtime and LightGBM itself.

    .venv/bin/python benchmarks/engine/trees.py [--threads 2] [--rounds 5] [--json FILE]

The ratio is ONNX Runtime's median over Headrace's: above 1 is faster. Parity is against LightGBM's own predict.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lightgbm
import numpy as np
import onnxruntime
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

import headrace as hr
from headrace import hardware
from headrace.measure import Candidate, interleave

FEATURES = 30


def train() -> lightgbm.Booster:
    """A booster of 300 trees of 63 leaves on made-up data."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20000, FEATURES)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + 0.3 * rng.standard_normal(len(x)) > 0).astype(int)
    params = {"objective": "binary", "num_leaves": 63, "learning_rate": 0.05, "verbose": -1, "num_threads": 2}
    return lightgbm.train(params, lightgbm.Dataset(x, y), 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=hardware.probe().cores)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    booster = train()
    engine = hr.load(booster).compile(backend="native", threads=args.threads)
    (name,) = (spec.name for spec in engine.signature.inputs)
    proto = convert_lightgbm(booster, initial_types=[("x", FloatTensorType([None, FEATURES]))], zipmap=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.log_severity_level = 3  # it would write a warning at every call: the converter declares one row
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    rng = np.random.default_rng(1)
    rows = []
    for count in (1, 32, 1000, 10000):
        x = rng.standard_normal((count, FEATURES)).astype(np.float32)
        got = next(value for value in engine({name: x}).values() if value.dtype.kind == "f")
        probability = got[:, 1] if got.ndim == 2 and got.shape[1] == 2 else got.reshape(-1)
        timings = interleave(
            [
                Candidate("headrace", lambda x=x: engine({name: x})),
                Candidate("onnxruntime", lambda x=x: session.run(None, {"x": x})),
                Candidate("lightgbm", lambda x=x: booster.predict(x, num_threads=args.threads)),
            ],
            rounds=args.rounds,
        )
        medians = {timing.name: timing.median_s * 1e6 for timing in timings}
        result = {
            "rows": count,
            "median_us": medians,
            "ratio_onnxruntime": medians["onnxruntime"] / medians["headrace"],
            "max_abs_diff_lightgbm": float(np.abs(probability - booster.predict(x)).max()),
        }
        rows.append(result)
        times = "  ".join(f"{runtime} {us:.1f}" for runtime, us in medians.items())
        print(
            f"{result['ratio_onnxruntime']:.2f}x  {count:>6} rows  us: {times}  "
            f"difference from lightgbm {result['max_abs_diff_lightgbm']:.1e}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "cpu": hardware.probe().cpu, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
