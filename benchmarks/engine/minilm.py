"""MiniLM-L6 against ONNX Runtime and OpenVINO: fixed shapes, and a ragged batch that peers must pad.

    .venv/bin/python benchmarks/engine/minilm.py [--threads 2] [--rounds 5] [--json FILE]

Every row is one interleaved run. The ratio is the best peer's median over Headrace's: above 1 is faster than the peer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr
from headrace import _core, hardware
from headrace.measure import Candidate, interleave
from headrace.peers import installed_peers

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(1, 16), (1, 128), (8, 128), (32, 128)]


def minilm_path() -> Path:
    """The exported model, exported now if it is not there."""
    sys.path.insert(0, str(ROOT / "examples" / "minilm"))
    import export

    path = ROOT / "build" / "models" / "minilm.onnx"
    if not path.exists():
        export.export(path)
    return path


def texts(lengths: list[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """One Request of made-up token ids per length."""
    rng = np.random.default_rng(seed)
    return [
        {"input_ids": rng.integers(1000, 20000, (1, n)), "attention_mask": np.ones((1, n), np.int64)} for n in lengths
    ]


def padded(requests: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The Requests as one rectangular batch, as peers need it."""
    longest = max(request["input_ids"].shape[1] for request in requests)
    return {
        name: np.concatenate([np.pad(r[name], ((0, 0), (0, longest - r[name].shape[1]))) for r in requests])
        for name in requests[0]
    }


def lognormal_lengths(count: int = 32, median: float = 28, sigma: float = 0.6, seed: int = 4) -> list[int]:
    """Token counts as real text has them: most short, a few long."""
    rng = np.random.default_rng(seed)
    return [int(n) for n in np.clip(rng.lognormal(np.log(median), sigma, count), 3, 256)]


def row(name: str, ours: Any, peers: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times one case and returns its row, times in ms."""
    timings = interleave(
        [Candidate("headrace", ours), *(Candidate(peer, run) for peer, run in peers.items())], rounds=rounds
    )
    medians = {timing.name: timing.median_s * 1000 for timing in timings}
    best = min(peers, key=lambda peer: medians[peer])
    return {
        "case": name,
        "median_ms": medians,
        "best_peer": best,
        "ratio": medians[best] / medians["headrace"],
        "ratio_onnxruntime": medians.get("onnxruntime", float("nan")) / medians["headrace"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=hardware.probe().cores)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    path = str(minilm_path())
    engine = hr.load(path).compile(backend="native", threads=args.threads)
    rows = []
    for batch, tokens in SHAPES:
        request = padded(texts([tokens] * batch))
        peers = {name: peer(path, request, args.threads) for name, peer in installed_peers().items()}
        rows.append(row(f"{batch}x{tokens}", lambda request=request: engine(request), peers, args.rounds))
        _print(rows[-1])
    lengths = lognormal_lengths()
    requests = texts(lengths)
    rectangle = padded(requests)
    peers = {name: peer(path, rectangle, args.threads) for name, peer in installed_peers().items()}
    name = f"ragged 32 ({sum(lengths)} tokens, {rectangle['input_ids'].size} padded)"
    rows.append(row(name, lambda: engine.run_batch(requests), peers, args.rounds))
    _print(rows[-1])
    mean = statistics.geometric_mean([r["ratio_onnxruntime"] for r in rows[: len(SHAPES)]])
    print(f"geometric mean over the fixed shapes against onnxruntime: {mean:.2f}")
    if args.json:
        machine = {"cpu": hardware.probe().cpu, "isa": _core.selected_isa(), "threads": args.threads}
        args.json.write_text(json.dumps({"machine": machine, "rows": rows, "geomean_onnxruntime": mean}, indent=2))


def _print(result: dict[str, Any]) -> None:
    times = "  ".join(f"{name} {ms:.2f}" for name, ms in result["median_ms"].items())
    print(f"{result['ratio']:.2f}x  {result['case']:<44} ms: {times}", flush=True)


if __name__ == "__main__":
    main()
