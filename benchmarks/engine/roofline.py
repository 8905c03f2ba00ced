"""Where each op of MiniLM, BERT's shape and ResNet-50 lies under the machine's measured roof.

The roof is the lesser of the multiply-add peak and memory bandwidth x intensity, both measured by headrace_bench_peak
on as many threads. An op's operations are counted from the shapes it really ran on, its bytes are those of its inputs,
weights and outputs, each once; what a cache keeps between ops lifts memory-bound ops above the memory's bandwidth.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import texts
from benchmarks.engine.candidates import PRECISIONS, Ours
from benchmarks.engine.convolutions import images
from benchmarks.engine.shapes import bert, resnet
from benchmarks.harness.machine import ROOT
from benchmarks.harness.plots import figure, link, save
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from headrace.errors import HeadraceError

# The models in the plots, with their markers.
_DRAWN = {"MiniLM 8 x 128": "o", "ResNet-50 batch 1": "s"}
PEAKS = {"fp32": "fp32_gflops", "bf16": "bf16_gflops", "int8": "int8_gops"}
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
# Operations per element of the output, where it is not a product: rounded counts of what the formula needs.
PER_ELEMENT = {"LayerNormalization": 8, "SkipLayerNormalization": 9, "Softmax": 5, "ReduceMean": 1}


def binary(name: str) -> Path:
    """A C++ benchmark.

    Raises:
        FileNotFoundError: It has not been built.
    """
    path = ROOT / "build" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / f"headrace_bench_{name}"
    if not path.exists():
        raise FileNotFoundError(f"got no {path}; `make bench` builds it")
    return path


def peaks(threads: int) -> dict[str, float]:
    """Giga-operations per second by precision, and GB/s, on so many threads."""
    done = subprocess.run([binary("peak"), str(threads)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)["threads"][str(threads)]
    return found


def operations(step: Any) -> float:
    """Floating-point operations of one profiled op, a multiply-add counted as two."""
    inputs = [value.shape for value in step.inputs]
    output = step.outputs[0].shape
    size = math.prod(output)
    if "Attention" in step.op:
        return 4.0 * size * output[1]  # queries x keys, twice, where every token sees every token
    if "Conv" in step.op:
        return 2.0 * size * math.prod(inputs[1][1:])
    if any(word in step.op for word in ("Linear", "MatMul", "Gemm")):
        return 2.0 * size * inputs[0][-1]
    return float(size * PER_ELEMENT.get(step.op.removeprefix("headrace."), 1))


def traffic(step: Any, precision: str) -> int:
    """Bytes of an op's inputs, weights and outputs, each once; weights of products as the precision stores them."""
    total = 0
    for value in [*step.inputs, *step.outputs]:
        if value.dtype == "none":
            continue
        width = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2}.get(value.dtype, 1)
        if value.constant and len(value.shape) > 1:
            width = min(width, WEIGHT_BYTES[precision])
        total += math.prod(value.shape) * width
    return total


def profiled(engine: Any, request: Any, precision: str, rounds: int) -> list[dict[str, Any]]:
    """Each op's least time over some runs, with its operations and bytes."""
    runs = [engine.executable.core.profile([request]) for _ in range(rounds + 2)][2:]
    ops = []
    for same in zip(*runs, strict=True):
        step = same[0]
        if not step.outputs or step.outputs[0].dtype == "none":
            continue
        ops.append(
            {
                "op": step.op.removeprefix("headrace."),
                "name": step.name,
                "ns": min(one.ns for one in same),
                "operations": operations(step),
                "bytes": traffic(step, precision),
            }
        )
    return ops


def run(options: Options) -> dict[str, Any]:
    """Peaks, and the ops of all models in every precision that compiles."""
    options.progress("measuring peaks")
    result: dict[str, Any] = {"peaks": peaks(options.threads), "models": [], "refused": {}}
    models = {
        "MiniLM 8 x 128": (texts.minilm_path(), texts.rectangle(8, 128)),
        "ResNet-50 batch 1": (resnet.path(), images(1)),
        "MiniLM 1 x 128": (texts.minilm_path(), texts.rectangle(1, 128)),
        "MiniLM 32 x 128": (texts.minilm_path(), texts.rectangle(32, 128)),
        "BERT-base 1 x 128": (bert.path(), texts.rectangle(1, 128)),
        "BERT-base 8 x 128": (bert.path(), texts.rectangle(8, 128)),
        "ResNet-50 batch 8": (resnet.path(), images(8)),
    }
    for name, (path, request) in list(models.items())[: len(_DRAWN) if options.quick else None]:
        ours = Ours(str(path), options.threads)
        for precision in PRECISIONS:
            options.progress(f"{name} in {precision}")
            try:
                engine = ours.engine(precision)
            except HeadraceError as error:
                result["refused"][f"{name} {precision}"] = str(error).splitlines()[0]
                continue
            ops = profiled(engine, request, precision, 3 if options.quick else 20)
            result["models"].append({"model": name, "precision": precision, "ops": ops})
    return result


def roof(found: dict[str, float], precision: str, intensity: float) -> float:
    """Giga-operations per second that the machine allows at so many operations per byte."""
    return min(found[PEAKS[precision]] or math.inf, found["read_gbs"] * intensity)


def table(result: dict[str, Any]) -> str:
    """The plots, and one line per kind of op that takes 1 % of the time or more."""
    found = result["peaks"]
    parts = [
        "Measured peaks: "
        + ", ".join(f"{precision} {found[key]:.0f} G/s" for precision, key in PEAKS.items() if found[key])
        + f"; memory reads {found['read_gbs']:.0f} GB/s, copies {found['copy_gbs']:.0f} GB/s."
    ]
    rows = []
    for model in result["models"]:
        total = sum(op["ns"] for op in model["ops"])
        kinds: dict[str, list[dict[str, Any]]] = {}
        for op in model["ops"]:
            kinds.setdefault(op["op"], []).append(op)
        for kind, ops in sorted(kinds.items(), key=lambda item: -sum(op["ns"] for op in item[1])):
            ns, work, moved = (sum(op[key] for op in ops) for key in ("ns", "operations", "bytes"))
            if ns < 0.01 * total:
                continue
            limit = sum(
                op["operations"] / roof(found, model["precision"], op["operations"] / op["bytes"]) for op in ops
            )
            who = f"{model['model']} {model['precision']}"
            rates = (number(work / ns), number(work / moved), f"{limit / ns:.0%}")
            rows.append([who, kind, str(len(ops)), f"{ns / total:.0%}", *rates])
    headings = ["", "op", "number", "share of the time", "G operations/s", "operations per byte", "share of the roof"]
    parts += [link(_file(precision), f"Roofline, {precision}") for precision in _precisions(result)]
    parts.append(markdown(headings, rows))
    parts.append("\n".join(f"- {who}: {reason}" for who, reason in result["refused"].items()))
    return "\n\n".join(filter(None, parts))


def draw(result: dict[str, Any]) -> None:
    """One plot per precision: every op a dot, as large as its share of the time."""
    found = result["peaks"]
    for precision in _precisions(result):
        drawn, axes = figure()
        at = [2 ** (power / 4) for power in range(-16, 49)]
        axes.plot(at, [roof(found, precision, x) for x in at], color="black", linewidth=1.5, label="measured roof")
        for model in result["models"]:
            if model["precision"] == precision and model["model"] in _DRAWN:
                _dots(axes, model, _DRAWN[model["model"]])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("operations per byte of inputs, weights and outputs")
        axes.set_ylabel("giga-operations per second")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        save(drawn, _file(precision))


def _dots(axes: Any, model: dict[str, Any], marker: str) -> None:
    total = sum(op["ns"] for op in model["ops"])
    kinds: dict[str, float] = {}
    for op in model["ops"]:
        kinds[op["op"]] = kinds.get(op["op"], 0) + op["ns"] / total
    for kind, share in sorted(kinds.items(), key=lambda item: -item[1]):
        if share < 0.01:
            continue
        ops = [op for op in model["ops"] if op["op"] == kind]
        axes.scatter(
            [op["operations"] / op["bytes"] for op in ops],
            [op["operations"] / op["ns"] for op in ops],
            s=[20 + 800 * op["ns"] / total for op in ops],
            marker=marker,
            alpha=0.6,
            label=f"{model['model']}: {kind} ({share:.0%})",
        )


def _precisions(result: dict[str, Any]) -> Sequence[str]:
    return list(dict.fromkeys(model["precision"] for model in result["models"]))


def _file(precision: str) -> str:
    return f"roofline-{precision}"


SECTIONS = [Section("roofline", "MiniLM's, BERT's and ResNet-50's ops under the measured roof", run, table, draw)]
