"""What only fresh processes show: time to the first answer, and peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr
from benchmarks.engine import texts
from benchmarks.harness.cases import OURS
from benchmarks.harness.machine import ROOT
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from headrace.backend import Request
from headrace.peers import installed_peers

CHILD = ROOT / "benchmarks" / "engine" / "child.py"


def child(folder: Path, job: dict[str, Any], requests: Sequence[Request]) -> dict[str, Any]:
    """What child.py reports for this job; with ``refused`` alone where the runtime cannot do it."""
    npz = folder / "requests.npz"
    np.savez(npz, **{f"{index}/{name}": array for index, one in enumerate(requests) for name, array in one.items()})
    file = folder / "job.json"
    file.write_text(json.dumps({"precision": "fp32", "plan": None, "calls": 1} | job | {"npz": str(npz)}))
    env = dict(os.environ, STARTED=str(time.time()))
    done = subprocess.run([sys.executable, "-P", str(CHILD), str(file)], capture_output=True, text=True, env=env)
    if done.returncode:
        return {"refused": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def run_startup(options: Options) -> list[dict[str, Any]]:
    """MiniLM, one text of 16 tokens, fresh processes that alternate."""
    path = str(texts.minilm_path())
    request = texts.rectangle(1, 16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = {"model": path, "threads": options.threads}
        jobs: dict[str, dict[str, Any]] = {"Headrace, from ONNX": common | {"runtime": OURS}}
        if hasattr(hr, "load_plan"):
            saved = folder / "plan"
            hr.load(path).compile(backend="native", threads=options.threads).save(saved)
            jobs["Headrace, from a saved plan"] = common | {"runtime": OURS, "plan": str(saved)}
        jobs |= {peer: common | {"runtime": peer} for peer in installed_peers()}
        reports: dict[str, list[dict[str, Any]]] = {who: [] for who in jobs}
        for turn in range(2 if options.quick else 2 * options.effort.rounds):
            for who, job in jobs.items():
                options.progress(f"process {turn + 1} of {who}")
                reports[who].append(child(folder, job, [request]))
    return [_medians(who, many) for who, many in reports.items()]


def _medians(who: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    for report in reports:
        if "refused" in report:
            return {"who": who} | report
    return {"who": who} | {key: statistics.median(report[key] for report in reports) for key in reports[0]}


def startup_table(rows: list[dict[str, Any]]) -> str:
    """One line per way to start."""
    session = next((row["ready_s"] for row in rows if row["who"] == "onnxruntime" and "ready_s" in row), None)
    headings = ["", "import, ms", "model ready, ms", "first answer after that, ms", "process start to answer, ms"]
    headings += ["peak memory, MiB", "ONNX Runtime's session / model ready"]
    lines = []
    for row in rows:
        if "refused" in row:
            lines.append([row["who"], row["refused"], *[""] * 5])
            continue
        ratio = "" if session is None else f"{session / row['ready_s']:.2f}"
        times = [number(row[key] * 1000) for key in ("import_s", "ready_s", "first_s", "total_s")]
        lines.append([row["who"], *times, number(row["peak_mib"]), ratio])
    return markdown(headings, lines)


def run_memory(options: Options) -> list[dict[str, Any]]:
    """Peak memory of processes that load MiniLM and answer three times."""
    path = str(texts.minilm_path())
    ragged = texts.ragged()
    cases = {"ragged 32": (ragged, [texts.padded(ragged)])}
    if not options.quick:
        rectangle = [texts.rectangle(32, 128)]
        cases = {"32 x 128": (rectangle, rectangle)} | cases
    whos = [(OURS, "fp32"), (OURS, "bf16"), (OURS, "int8")]
    whos += [(name, p) for name in installed_peers() for p in ("fp32", "bf16") if (name, p) != ("onnxruntime", "bf16")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, (ours, theirs) in cases.items():
            for runtime, precision in whos:
                options.progress(f"{case}: {runtime} {precision}")
                job = {
                    "runtime": runtime,
                    "precision": precision,
                    "model": path,
                    "threads": options.threads,
                    "calls": 3,
                }
                report = child(Path(folder), job, ours if runtime == OURS else theirs)
                rows.append({"case": case, "runtime": runtime, "precision": precision} | report)
    return rows


def memory_table(rows: list[dict[str, Any]]) -> str:
    """One line per runtime and precision, one column per case."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cell = f"{row['peak_mib']:.0f}" if "peak_mib" in row else f"not run: {row['refused']}"
        lines.setdefault((row["runtime"], row["precision"]), []).append(cell)
    return markdown(
        ["", "precision", *(f"{case}, MiB" for case in cases)],
        [["Headrace" if who == OURS else who, precision, *cells] for (who, precision), cells in lines.items()],
    )


SECTIONS = [
    Section("startup", "MiniLM in a fresh process: time to the first answer", run_startup, startup_table),
    Section("memory", "MiniLM in a fresh process: peak resident memory", run_memory, memory_table),
]
