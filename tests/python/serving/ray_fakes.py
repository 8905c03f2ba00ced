"""A model for tests on a real Ray, whose replicas cannot import the tests: it takes time, and no CPU."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="the Ray extra is not installed")

from ray import cloudpickle

from headrace.backend import Plan, Request, Result
from headrace.config import AutoscalingConfig, DeployedModel, ModelConfig, ModelSettings
from headrace.errors import ExecutionError, InvalidModel
from headrace.signature import Signature, TensorSpec

SERVICE_S = 0.025  # of the fake model: one replica answers 40 requests per second


class FakeEngine:
    """Doubles its input."""

    signature = Signature((TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
    plan = Plan("fake", "cpu", "none", "fp32", 1)
    parity = "not checked: a fake"

    def __init__(self, broken: bool) -> None:
        self.broken, self.warm = broken, False

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        if self.broken and self.warm:
            raise ExecutionError("got a request, expected none but to warm up")
        self.warm = True
        return [{"y": np.asarray(request["x"]) * 2} for request in requests]

    def close(self) -> None:
        pass


class FakeBatcher:
    """One request at a time, each taking `SERVICE_S` of waiting and no CPU, with an honest ledger."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.lock: asyncio.Lock | None = None
        self.count: Counter[str] = Counter()

    async def infer(
        self, req: Request, *, deadline_ms: float | None = None, priority: int = 0, caller: Hashable = None
    ) -> Result:
        self.lock = self.lock or asyncio.Lock()
        self.count["accepted"] += 1
        try:
            async with self.lock:
                await asyncio.sleep(SERVICE_S)
                result = self.engine.run_batch([req])[0]
                self.count["ok"] += 1
                return result
        except asyncio.CancelledError:
            self.count["cancelled"] += 1
            raise
        except ExecutionError:
            self.count["failed"] += 1
            raise

    def stats(self) -> dict[str, Any]:
        waiting = self.count["accepted"] - sum(self.count[end] for end in ("ok", "failed", "cancelled"))
        zero = dict.fromkeys(("expired", "refused", "batches", "offered_rps"), 0)
        return {
            **zero,
            "accepted": self.count["accepted"],
            "ok": self.count["ok"],
            "failed": self.count["failed"],
            "cancelled": self.count["cancelled"],
            "queued": waiting,
            "queue_delay_s": max(0, waiting - 1) * SERVICE_S,
            "capacity_rps": 1 / SERVICE_S,
            "batch_sizes": [0, self.count["ok"]],
            "batch_seconds": [0.0, self.count["ok"] * SERVICE_S],
            "queue_delay": {"count": self.count["accepted"], "total_s": 0.0},
        }

    def close(self) -> None:
        pass


def open_fake_engine(path: Path, settings: ModelSettings) -> FakeEngine:
    if "broken" in str(path):
        raise InvalidModel(f"{path}: got rubbish, expected a model")
    return FakeEngine(broken=path.is_file() and path.read_text() == "failing")


def open_fake_batcher(engine: FakeEngine, settings: ModelSettings) -> FakeBatcher:
    return FakeBatcher(engine)


cloudpickle.register_pickle_by_value(sys.modules[__name__])
FAKES: dict[str, Any] = {"engine_opener": open_fake_engine, "batcher_opener": open_fake_batcher}


def model(name: str, **scaling: Any) -> DeployedModel:
    config = ModelConfig(name=name, files={1: Path(f"{name}.onnx")}, settings=ModelSettings(slo_ms=2000))
    return DeployedModel(model=config, autoscaling=AutoscalingConfig(cpus_per_replica=0.1, **scaling))


# A model in the folder "mixed" with two groups of replicas: plain ones, and ones that need what not every node has.
GROUPS = """
models:
  - name: mixed
    path: mixed
    settings: {slo_ms: 400}
    groups:
      - {name: plain, autoscaling: {cpus_per_replica: 0.1}}
      - name: accelerated
        settings: {threads: 1}
        autoscaling: {min_replicas: 0, cpus_per_replica: 0.1, idle_s: 3, resources: {accel: 1}}
http: {port: 0}
"""
