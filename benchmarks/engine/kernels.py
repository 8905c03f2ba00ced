"""The C++ benchmarks whose output the docs quote, and what batch invariance gives and costs."""

from __future__ import annotations

import functools
import json
import subprocess
from typing import Any

import numpy as np

from benchmarks.engine import texts
from benchmarks.engine.candidates import PRECISIONS, Ours, first_floating, prepared
from benchmarks.engine.roofline import binary
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from headrace.errors import HeadraceError
from headrace.peers import installed_peers

# What the products of a batch are wanted to reach of the peak, and from how many rows on.
GEMM_BARS = {"fp32": 0.90, "bf16": 0.85, "int8": 0.80}
GEMM_BATCH_ROWS = 128


def run_gemm(options: Options) -> list[dict[str, Any]]:
    """What headrace_bench_gemm prints."""
    command = [binary("gemm"), *(["fp32"] if options.quick else [])]
    options.progress("running headrace_bench_gemm")
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def gemm_table(result: list[dict[str, Any]]) -> str:
    """One line per shape, and what batches reach at least."""
    measured = {(row["precision"], row["m"], row["k"], row["n"]): row for row in result}
    precisions = list(dict.fromkeys(row["precision"] for row in result))
    rows = []
    for shape in dict.fromkeys((row["m"], row["k"], row["n"]) for row in result):
        cells = [" x ".join(map(str, shape))]
        for precision in precisions:
            row = measured[precision, *shape]
            cells += [number(row["one"]), f"{row['one'] / row['peak']:.0%}", f"{row['two'] / 2 / row['peak']:.0%}"]
        rows.append(cells)
    headings = ["rows x inputs x outputs"]
    for precision in precisions:
        headings += [f"{precision}, G/s", "of the peak", "two cores, of two peaks"]
    lines = []
    for precision in precisions:
        batches = [row for row in result if row["precision"] == precision and row["m"] >= GEMM_BATCH_ROWS]
        least = min(batches, key=lambda row: row["one"] / row["peak"])
        shape = f"{least['m']} x {least['k']} x {least['n']}"
        lines.append(
            f"- {precision}, {GEMM_BATCH_ROWS} rows and more: at least **{least['one'] / least['peak']:.0%}** of the "
            f"peak of one core, {least['peak']:.0f} G/s (wanted: {GEMM_BARS[precision]:.0%}), at {shape}"
        )
    return "\n\n".join([markdown(headings, rows), "\n".join(lines)])


def run_invariance(options: Options) -> dict[str, Any]:
    """Whose answers change with the company, and how much time splitting sums between threads would save."""
    result: dict[str, Any] = {"bits": _bits(options), "costs": []}
    if options.threads > 1:
        options.progress("running headrace_bench_invariance")
        command = [binary("invariance"), str(options.threads)]
        result["costs"] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def _bits(options: Options) -> list[dict[str, Any]]:
    """For everybody: how many texts get other bits in a batch of several lengths than alone."""
    path = texts.minilm_path()
    singles = texts.ragged(8)
    together = texts.padded(singles)
    rows = []

    def compare(who: str, batch: np.ndarray, alone: list[np.ndarray]) -> None:
        differ = sum(row.tobytes() != single[0].tobytes() for row, single in zip(batch, alone, strict=True))
        largest = max(float(np.abs(row - single[0]).max()) for row, single in zip(batch, alone, strict=True))
        rows.append({"who": who, "texts": len(alone), "differ": differ, "largest": largest})

    ours = Ours(str(path), options.threads)
    for precision in PRECISIONS:
        options.progress(f"bits of headrace {precision}")
        try:
            engine = ours.engine(precision)
        except HeadraceError:
            continue
        batch = np.concatenate([first_floating(one) for one in engine.run_batch(singles)])
        compare(f"Headrace {precision}", batch, [first_floating(engine(single)) for single in singles])
    for name, peer in installed_peers().items():
        for precision in peer.precisions:
            options.progress(f"bits of {name} {precision}")
            prepare = functools.partial(prepared, name, path, threads=options.threads, precision=precision)
            compare(f"{name} {precision}", prepare(together)()[0], [prepare(single)()[0].copy() for single in singles])
    return rows


def invariance_table(result: dict[str, Any]) -> str:
    """Both tables."""
    bits = [[row["who"], f"{row['differ']} of {row['texts']}", f"{row['largest']:.1e}"] for row in result["bits"]]
    times = ("plan_us", "kept_us", "split_us")
    costs = [
        [row["what"], str(row["rows"]), *(number(row[key]) for key in times), f"{row['kept_us'] / row['split_us']:.2f}"]
        for row in result["costs"]
    ]
    company = ["MiniLM, texts of several lengths", "texts with other bits in a batch than alone", "largest change"]
    headings = ["", "rows", "Plan, us", "order kept, us", "sums split by threads, us", "cost of the order"]
    return "\n\n".join([markdown(company, bits), markdown(headings, costs)])


SECTIONS = [
    Section("gemm", "Products on one core, as a share of the measured peak", run_gemm, gemm_table),
    Section("invariance", "What batch invariance gives and costs", run_invariance, invariance_table),
]
