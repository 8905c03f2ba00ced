"""Engines and Requests for the Batcher's tests."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

import headrace as hr
from headrace.backend import Executable, Plan, Request, Result
from headrace.engine import Engine
from headrace.signature import Signature, TensorSpec

WAIT_S = 20.0


class GatedExecutable(Executable):
    """Doubles x; can be held inside a Batch; fails for Requests in which x[0] is negative."""

    plan = Plan(backend="gated", device="cpu", isa="python", precision="fp32", threads=1)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[float]] = []

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        self.batches.append([float(request["x"][0]) for request in requests])
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        for request in requests:
            if request["x"][0] < 0:
                raise ValueError(f"got x[0]={request['x'][0]}, expected at least 0")
        return [{"y": request["x"] * 2} for request in requests]


VECTOR = Signature((TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))


class Gated:
    """A Batcher on a GatedExecutable."""

    def __init__(self, **options: Any) -> None:
        self.executable = GatedExecutable()
        self.batcher = hr.Batcher(Engine(VECTOR, self.executable, "gated"), **options)
        self.executable.batches.clear()  # the warm-up
        while self.executable.entered.acquire(blocking=False):
            pass

    def occupy(self) -> concurrent.futures.Future[Result]:
        """Submits a Request and holds the Engine in it, so that later ones gather."""
        self.executable.gate.clear()
        future = self.batcher.submit(vector(0))
        assert self.executable.entered.acquire(timeout=WAIT_S)
        return future

    def release(self) -> None:
        self.executable.gate.set()


def identities(**dtypes: int) -> Engine:
    """The inputs, of these ONNX dtypes and one dim each, as outputs: x as x_out."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in dtypes],
        "identities",
        [helper.make_tensor_value_info(name, dtype, [f"n_{name}"]) for name, dtype in dtypes.items()],
        [helper.make_tensor_value_info(f"{name}_out", dtype, [f"n_{name}"]) for name, dtype in dtypes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return hr.load(model).compile(backend="native", threads=1)


def vector(first: float, length: int = 1) -> Request:
    return {"x": np.full(length, first, np.float32)}


def gather(first: float, index: int = 0, length: int = 1) -> Request:
    return {"x": np.arange(first, first + length, dtype=np.float32), "i": np.array([index])}


def check_balance(stats: dict[str, Any]) -> None:
    ended = stats["ok"] + stats["failed"] + stats["expired"] + stats["cancelled"]
    assert stats["accepted"] == ended + stats["queued"]
    assert stats["queued"] == stats["waiting"] + stats["running"]
