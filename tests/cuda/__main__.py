"""Conformance, batch invariance and speed of the native backend on a real GPU: ``make gpu-test``.

Writes ``build/gpu-report.md`` and ``build/gpu-report.json``. Where there is no GPU the report says so, and why, and the
exit status is 0: nothing failed, and nothing was shown either. Exit status 1 means a failure on a GPU.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from headrace.backends.native.cuda import PRECISIONS, cublaslt_version, usable_devices
from tests.cuda.on_device import SAMPLES, OnCuda, Sample, differences, network, perceptron, transformer, trees

from headrace.conformance.certificate import certify
from headrace.engine import Engine
from headrace.errors import BackendUnavailable
from headrace.measure import Candidate, interleave

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = ROOT / "build" / "gpu-report.md"
JSON = ROOT / "build" / "gpu-report.json"

# Sizes at which a GPU is worth having. The names say what is run.
TIMED: dict[str, Callable[[], Sample]] = {
    "MiniLM's shape, 64 requests of 2 x 128 tokens": partial(transformer, 6, 384, 12, (128,) * 64),
    "MiniLM's shape, 1 request of 2 x 16 tokens": partial(transformer, 6, 384, 12, (16,)),
    "convolutional network, 6 images of 160 x 160": partial(network, 160, 64),
    "perceptron of width 1024, 74 rows": partial(perceptron, 1024),
    "LightGBM, 120 trees, 2000 rows": partial(trees, 40, (500, 500, 500, 500)),
}
BF16_TOLERANCE = 2e-2


def choices(device: str) -> tuple[str, list[str]]:
    """The version of cuBLASLt, or why it cannot be used; and what is therefore run, each beside the other."""
    try:
        return cublaslt_version(device), ["off", "on"]
    except BackendUnavailable as error:
        return str(error), ["off"]


def conformance(device: str, cublaslt: str) -> dict[str, Any]:
    """The whole suite of `headrace certify`."""
    certificate = certify(OnCuda(cublaslt), device=device)
    groups = {}
    for name, outcomes in certificate.outcomes.items():
        count = {status: sum(one.status == status for one in outcomes) for status in ("passed", "failed", "skipped")}
        failures = [f"{one.subject}: {one.reason}" for one in outcomes if one.status == "failed"]
        groups[name] = {**count, "failures": failures}
    return groups


def samples(device: str, kinds: list[str]) -> list[dict[str, Any]]:
    """Whole Models against the CPU, and the bits of every Request alone against those in its Batch."""
    rows = []
    for (name, make), precision, cublaslt in itertools.product(SAMPLES.items(), PRECISIONS, kinds):
        sample = make()
        allowed = sample.tolerance if precision == "fp32" else BF16_TOLERANCE
        worst, same = differences(sample, device, precision, cublaslt)
        row: dict[str, Any] = {"model": name, "precision": precision, "cublaslt": cublaslt}
        rows.append(row | {"worst": worst, "allowed": allowed, "invariant": same, "ok": worst <= allowed and same})
    return rows


def _engines(sample: Sample, device: str, kinds: list[str]) -> dict[str, Engine]:
    compiled = {"cpu fp32": sample.model.compile(backend="native")}
    for precision, cublaslt in itertools.product(PRECISIONS, kinds):
        compiled[f"{device} {precision} cuBLASLt {cublaslt}"] = sample.model.compile(
            backend="native", device=device, precision=precision, options={"cublaslt": cublaslt}
        )
    return compiled


def products(device: str) -> dict[str, list[str]]:
    """What the Plans of the timed Models say of their products: how many cuBLASLt takes, and why not the others."""
    said: dict[str, list[str]] = {}
    for (name, make), precision in itertools.product(TIMED.items(), PRECISIONS):
        with make().model.compile(backend="native", device=device, precision=precision) as engine:
            about = [reason for reason in engine.plan.reasons if reason.startswith(("products", "own kernels"))]
        said[f"{name}, {precision}"] = about
    return said


def speed(device: str, kinds: list[str]) -> list[dict[str, Any]]:
    """Milliseconds per Batch on the GPU and on this machine's CPU, in interleaved blocks."""
    rows = []
    for name, make in TIMED.items():
        sample = make()
        engines = _engines(sample, device, kinds)
        timings = interleave(
            [Candidate(label, partial(engine.run_batch, sample.requests)) for label, engine in engines.items()]
        )
        rows.append({"case": name, "ms": {one.name: one.median_s * 1e3 for one in timings}})
        for engine in engines.values():
            engine.close()
    return rows


def soak(device: str, precision: str, seconds: float = 10.0) -> dict[str, Any]:
    """Random Batches for some seconds: every Request must give the bits it gave alone."""
    sample = transformer(lengths=(1, 2, 5, 17, 33, 64))
    random = np.random.default_rng(1)
    batches = wrong = 0
    with sample.model.compile(backend="native", device=device, precision=precision) as engine:
        alone = [engine(request) for request in sample.requests]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            members = random.integers(0, len(alone), random.integers(1, 33)).tolist()
            results = engine.run_batch([sample.requests[member] for member in members])
            batches += 1
            for member, result in zip(members, results, strict=True):
                wrong += any(result[key].tobytes() != alone[member][key].tobytes() for key in result)
    return {"batches": batches, "wrong": wrong}


def report(device: str) -> dict[str, Any]:
    """Everything there is to say about one device."""
    import headrace._cuda as cuda

    version, kinds = choices(device)
    return {
        "device": cuda.describe_device(int(device.partition(":")[2] or 0)),
        "cublaslt": version,
        "products": products(device),
        "conformance": {cublaslt: conformance(device, cublaslt) for cublaslt in kinds},
        "models": samples(device, kinds),
        "soak": {precision: soak(device, precision) for precision in PRECISIONS},
        "speed": speed(device, kinds),
    }


def failed(found: dict[str, Any]) -> bool:
    """Whether anything on the device was wrong."""
    wrong = any(group["failed"] for groups in found["conformance"].values() for group in groups.values())
    soaked = any(one["wrong"] > 0 for one in found["soak"].values())
    return wrong or soaked or not all(row["ok"] for row in found["models"])


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["# The native backend on a GPU", "", f"Made on {found['made']} on {found['machine']}.", ""]
    if "device" not in found:
        return "\n".join([*lines, f"**Nothing ran on a GPU**: {found['missing']}", ""])
    device = found["device"]
    lines += [f"{device['name']}, compute capability {device['major']}.{device['minor']}.", ""]
    lines += [f"cuBLASLt: {found['cublaslt']}", "", "## Products", ""]
    lines += [f"- {name}: {'; '.join(said) or 'none with weights'}" for name, said in found["products"].items()]
    lines += ["", "## Conformance", "", "| cuBLASLt | group | passed | failed | skipped |", "|---|---|---|---|---|"]
    groups = [(kind, *group) for kind, groups in found["conformance"].items() for group in groups.items()]
    for kind, name, group in groups:
        lines.append(f"| {kind} | {name} | {group['passed']} | {group['failed']} | {group['skipped']} |")
    for kind, name, group in groups:
        if group["failures"]:
            lines += [f"\nFailed in {name}, cuBLASLt {kind}:\n", *(f"- {text}" for text in group["failures"])]
    lines += ["", "## Whole models against the CPU", ""]
    lines += ["| model | precision | cuBLASLt | worst | allowed | same bits alone |", "|---|---|---|---|---|---|"]
    for row in found["models"]:
        same = "yes" if row["invariant"] else "NO"
        what = f"{row['model']} | {row['precision']} | {row['cublaslt']}"
        lines.append(f"| {what} | {row['worst']:.2g} | {row['allowed']:.2g} | {same} |")
    for precision, soaked in found["soak"].items():
        batches, wrong = soaked["batches"], soaked["wrong"]
        lines += ["", f"Random batches in {precision}: {batches}, requests with other bits: {wrong}."]
    lines += ["", "## Milliseconds per batch", ""]
    for row in found["speed"]:
        lines.append(f"- {row['case']}: " + ", ".join(f"{name} {ms:.3g}" for name, ms in row["ms"].items()))
    return "\n".join([*lines, ""])


def main() -> int:
    """Writes the report; returns the exit status."""
    devices, missing = usable_devices()
    found: dict[str, Any] = {"made": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.node()}
    gpus = [device for device in devices if device.startswith("cuda:")]
    found |= report(gpus[0]) if gpus else {"missing": missing["cuda"]}
    JSON.parent.mkdir(parents=True, exist_ok=True)
    JSON.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    MARKDOWN.write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
    return int("device" in found and failed(found))


if __name__ == "__main__":
    sys.exit(main())
