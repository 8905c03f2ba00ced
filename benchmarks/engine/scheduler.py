"""What the scheduler adds to a Request: from submit to the result, with an empty model.

The model is one Identity on four floats. Each way of calling is timed in blocks that alternate, so that all of them
see the same machine; the figures are microseconds per Request.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

import headrace as hr
from benchmarks.harness.section import Section
from benchmarks.harness.tables import markdown, number
from headrace.backend import Request
from headrace.engine import Engine

REQUEST: Request = {"x": np.arange(4, dtype=np.float32)}
BLOCKS = 10


def empty_engine() -> Engine:
    """An Engine that hands its input back."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "empty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return hr.load(model).compile(backend="native", threads=1)


def timed(call: Callable[[], object], calls: int) -> list[float]:
    """Microseconds of each call."""
    times_us = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times_us.append((time.perf_counter() - start) * 1e6)
    return times_us


async def timed_infer(batcher: hr.Batcher, calls: int) -> list[float]:
    """Microseconds of each awaited Request, one at a time."""
    times_us = []
    for _ in range(calls):
        start = time.perf_counter()
        await batcher.infer(REQUEST)
        times_us.append((time.perf_counter() - start) * 1e6)
    return times_us


async def timed_tasks(batcher: hr.Batcher, calls: int, tasks: int) -> list[float]:
    """Microseconds per Request while so many tasks keep one Request each in flight."""

    async def task() -> None:
        for _ in range(calls // tasks):
            await batcher.infer(REQUEST)

    start = time.perf_counter()
    await asyncio.gather(*(task() for _ in range(tasks)))
    return [(time.perf_counter() - start) * 1e6 / (calls // tasks * tasks)]


def submitted(batcher: hr.Batcher, count: int) -> None:
    """Submits `count` Requests, then takes their results."""
    for future in [batcher.submit(REQUEST) for _ in range(count)]:
        future.result()


def measure(calls: int) -> dict[str, dict[str, float]]:
    """Name -> p50, p99 and min, in microseconds per Request."""
    engine = empty_engine()
    each = calls // BLOCKS
    times: dict[str, list[float]] = {}
    with hr.Batcher(engine) as batcher:
        blocks: dict[str, Callable[[], list[float]]] = {
            "engine(request)": lambda: timed(lambda: engine(REQUEST), each),
            "submit + result": lambda: timed(lambda: batcher.submit(REQUEST).result(), each),
            "submit 32, then results": lambda: [us / 32 for us in timed(lambda: submitted(batcher, 32), each // 32)],
            "await infer": lambda: asyncio.run(timed_infer(batcher, each)),
            "await infer in 32 tasks": lambda: asyncio.run(timed_tasks(batcher, each, 32)),
        }
        for _ in range(BLOCKS):
            for name, block in blocks.items():
                times.setdefault(name, []).extend(block())
    return {
        name: {
            "p50_us": statistics.median(all_us),
            "p99_us": sorted(all_us)[len(all_us) * 99 // 100],
            "min_us": min(all_us),
        }
        for name, all_us in times.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """One line per way of calling."""
    rows = [
        [f"`{name}`", *(number(result[key]) for key in ("p50_us", "p99_us", "min_us"))]
        for name, result in results.items()
    ]
    return markdown(["us per Request", "p50", "p99", "least"], rows)


SECTIONS = [
    Section(
        "scheduler",
        "What the scheduler adds to a Request, with an empty model",
        lambda options: measure(2000 if options.quick else 20_000),
        table,
    )
]
