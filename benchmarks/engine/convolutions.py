"""ResNet-50 and MobileNetV2 shapes, batch 1 and 8."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import quantize
from benchmarks.engine.candidates import PLAIN, Ours, first_floating, onnx_entries, torch_entries, torch_reference
from benchmarks.engine.shapes import mobilenet, resnet
from benchmarks.harness.cases import OURS, Case, Entry, measure
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import case_table
from headrace.backend import Request
from headrace.peers import PEERS

WINOGRAD = ("fp32", "winograd", {"winograd": True})


def images(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """One Request of noise."""
    return {"image": np.random.default_rng(seed).standard_normal((batch, 3, 224, 224)).astype(np.float32)}


def quantized_entries(path: Path, request: Request, threads: int) -> list[Entry]:
    """Everybody on one statically quantised file: ONNX Runtime's dynamic quantisation has no use for convolutions."""

    def file() -> Path:
        return quantize.static(path, [images(2, seed) for seed in range(1, 4)])

    def ours() -> Callable[[], Any]:
        engine = Ours(str(file()), threads).engine()  # the file says what is int8
        return lambda: engine(request)

    def peer(name: str) -> Callable[[], Any]:
        return PEERS[name].prepare(file(), request, threads)

    return [
        Entry(OURS, "int8", ours, first_floating, "QDQ file"),
        *(Entry(name, "int8", functools.partial(peer, name), lambda outputs: outputs[0], "QDQ file") for name in PEERS),
    ]


def _run(network: Any, plans: tuple[Any, ...], options: Options) -> list[dict[str, Any]]:
    path, module = network.path(), functools.cache(network.module)
    ours = Ours(str(path), options.threads)
    results = []
    for batch in (1,) if options.quick else (1, 8):
        request = images(batch)
        entries = [
            *ours.entries(request, plans),
            *(entry for entry in onnx_entries(path, request, options.threads) if entry.precision != "int8"),
            *quantized_entries(path, request, options.threads),
            *torch_entries(module, request, options.threads, options.compiled),
        ]
        case = Case(f"batch {batch}", torch_reference(module, request), entries)
        results.append(measure(case, options.effort, options.progress))
    return results


def run_resnet(options: Options) -> list[dict[str, Any]]:
    """ResNet-50, also with Winograd convolutions, which round differently and are asked for by name."""
    return _run(resnet, (PLAIN[0], WINOGRAD, *PLAIN[1:]), options)


def run_mobilenet(options: Options) -> list[dict[str, Any]]:
    """MobileNetV2."""
    return _run(mobilenet, PLAIN, options)


_TABLE = functools.partial(case_table, unit="ms")
SECTIONS = [
    Section("resnet50", "ResNet-50's shape, 224 x 224", run_resnet, _TABLE),
    Section("mobilenetv2", "MobileNetV2's shape, 224 x 224", run_mobilenet, _TABLE),
]
