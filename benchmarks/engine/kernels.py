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


def run_gemm(options: Options) -> str:
    """What headrace_bench_gemm prints."""
    if options.quick:
        return f"not run: {binary('gemm')} takes a minute and has no shorter way"
    options.progress("running headrace_bench_gemm")
    return subprocess.run([binary("gemm")], capture_output=True, text=True, check=True).stdout


def gemm_table(output: str) -> str:
    """The same in a block."""
    return f"```\n{output.strip()}\n```"


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
