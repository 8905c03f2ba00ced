"""Time to the first answer and peak memory of a fresh process that loads and runs MiniLM, against ONNX Runtime.

    .venv/bin/python benchmarks/engine/startup.py [--rounds 5]

Each runtime gets fresh processes, alternating. Time is from exec to the first answer; memory is the peak resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from minilm import minilm_path

COMMON = """
import json, os, resource, sys, time
import numpy as np
ids = np.arange(16, dtype=np.int64).reshape(1, 16) + 1000
request = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
"""
HEADRACE = """
import headrace
engine = headrace.load(PATH).compile(backend="native", threads=2)
engine(request)
"""
ONNXRUNTIME = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
onnxruntime.InferenceSession(PATH, options, providers=["CPUExecutionProvider"]).run(None, request)
"""
REPORT = """
heavy = [name for name in ("torch", "ray") if name in sys.modules]
print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "heavy": heavy,
                  "s": time.time() - float(os.environ["STARTED"])}))
"""


def run(body: str, path: str) -> dict[str, Any]:
    """One fresh process."""
    code = COMMON + body.replace("PATH", repr(path)) + REPORT
    env = dict(os.environ, STARTED=str(time.time()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    path = str(minilm_path())
    results: dict[str, list[dict[str, Any]]] = {"headrace": [], "onnxruntime": []}
    for _ in range(args.rounds):
        results["headrace"].append(run(HEADRACE, path))
        results["onnxruntime"].append(run(ONNXRUNTIME, path))
    medians = {
        name: {key: statistics.median(one[key] for one in many) for key in ("s", "peak_mib")}
        for name, many in results.items()
    }
    for name, median in medians.items():
        print(f"{name:<12} first answer {median['s']:.2f} s, peak {median['peak_mib']:.0f} MiB")
    print(f"memory, headrace / onnxruntime: {medians['headrace']['peak_mib'] / medians['onnxruntime']['peak_mib']:.2f}")
    print(f"heavy modules that headrace imported: {', '.join(results['headrace'][0]['heavy']) or 'none'}")


if __name__ == "__main__":
    main()
