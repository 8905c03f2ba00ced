"""One version of one model as it is served, and where the requests to a model go."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from time import time_ns
from typing import Any

import numpy as np

from headrace._core import is_finite
from headrace.backend import Result
from headrace.config import ModelConfig
from headrace.errors import ExecutionError
from headrace.observe.histogram import Histogram
from headrace.serving import eager
from headrace.serving.decode import Decoder, InferCall
from headrace.serving.errors import outcome
from headrace.serving.opening import BatcherLike, EngineLike, max_batch_of
from headrace.serving.rollout import Trial
from headrace.signature import TensorSpec

# Leaves room above and below it, as Triton's own examples do.
DEFAULT_LEVEL = 10
LEVEL_MAX = 1_000_000


def scheduler_priority(level: int) -> int:
    """The Batcher's priority, in which larger goes first, of a protocol level, in which 1 is the highest.

    The protocol leaves to the server what a request without a level (0) counts as; here it is `DEFAULT_LEVEL`.
    """
    return DEFAULT_LEVEL - min(level, LEVEL_MAX) if level else 0


class Duration:
    """How many requests ended in a way, and how long they took together."""

    __slots__ = ("count", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.count += 1
        self.total_s += seconds


class ServedModel:
    """One version of one model, loaded, warmed and answering.

    Attributes:
        stages: Seconds by stage: decode, encode, total (the Batcher knows the rest). Written by the event loop only.
        max_batch: Requests that may run together.
        source: What it was made from: equal to another's where loading again would change nothing.
        succeeded: The requests that were answered with a Result.
        failed: Those that were answered with an error, the rejected ones apart.
        last_inference_ms: When the last Result was sent, in milliseconds of Unix time; 0 for never.
        users: Requests that have found this model and are not answered yet: they may still enter its queue.
        rejected: Requests that never reached the Batcher, because they were wrong.
        nonfinite: Results in which an output had NaN or Inf.
    """

    def __init__(
        self, config: ModelConfig, version: int, engine: EngineLike, batcher: BatcherLike, source: object = None
    ) -> None:
        self.name = config.name
        self.version = str(version)
        self.settings = config.settings
        self.engine = engine
        self.batcher = batcher
        self.max_batch = max_batch_of(engine, config.settings)
        self.source = source
        self.decoder = Decoder(engine.signature)
        self.stages = {stage: Histogram() for stage in ("decode", "encode", "total")}
        self.succeeded = Duration()
        self.failed = Duration()
        self.last_inference_ms = 0
        self.users = 0
        self.rejected = 0
        self.nonfinite = 0
        self._guarded = tuple(
            spec.name
            for spec in engine.signature.outputs
            if config.settings.nonfinite != "allow" and "float" in spec.dtype
        )

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def hangs(self) -> bool:
        """Whether a Batch of its has run for longer than `stall_s`."""
        return bool(self.batcher.stats().get("running_s", 0.0) > self.settings.stall_s)

    async def infer(self, call: InferCall, deadline_ms: float | None = None, caller: Hashable = None) -> Result:
        """Runs one decoded request through the Batcher and the guards.

        Args:
            call: The decoded request.
            deadline_ms: Milliseconds the answer is worth waiting for, beside what `call` says; the smaller counts.
            caller: Whose request it is, for fair shares; None for those without a name.

        Raises:
            HeadraceError: Whatever the Batcher answers with, or `ExecutionError` where a guard refuses the Result.
        """
        if call.timeout_us:
            own_ms = call.timeout_us / 1000
            deadline_ms = own_ms if deadline_ms is None else min(deadline_ms, own_ms)
        priority = scheduler_priority(call.priority)
        result = await self.batcher.infer(call.inputs, deadline_ms=deadline_ms, priority=priority, caller=caller)
        for name in self._guarded:
            if not is_finite(result[name]):
                self._found_nonfinite(name, result[name])
                break
        return result

    def ended(self, seconds: float, error: BaseException | None = None) -> None:
        """Counts one request of any protocol when it has its answer.

        Args:
            seconds: Since it arrived.
            error: What it was answered with; None for a Result.
        """
        self.stages["total"].observe(seconds)
        if error is None:
            self.succeeded.add(seconds)
            self.last_inference_ms = time_ns() // 1_000_000
        elif outcome(error) == "rejected":
            self.rejected += 1
        else:
            self.failed.add(seconds)

    def _found_nonfinite(self, name: str, array: np.ndarray) -> None:
        self.nonfinite += 1
        if self.settings.nonfinite == "error":
            count = array.size - np.count_nonzero(np.isfinite(array))
            raise ExecutionError(
                f"model {self.name!r} version {self.version}: got {count} NaN or Inf of {array.size} values "
                f"in output {name!r}, expected finite values (nonfinite = 'error')"
            )

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        """The protocol's model metadata; ``parameters`` says what really runs the model, and where."""
        plan = self.engine.plan
        signature = self.engine.signature
        fallback = plan.details.get("fallback_from")
        return {
            "name": self.name,
            "versions": list(versions),
            "platform": "headrace_onnx",
            "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
            "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
            "parameters": {
                "version": self.version,
                "backend": plan.backend,
                "device": plan.device,
                "isa": plan.isa,
                "precision": plan.precision,
                "threads": plan.threads,
                "parity": self.engine.parity,
                **({} if fallback is None else {"fallback_from": fallback}),
            },
        }

    def close(self) -> None:
        """Answers what was accepted, then gives the Batcher and the Engine back."""
        self.batcher.close()
        self.engine.close()


@dataclass(frozen=True, slots=True)
class Route:
    """Where the requests to one model go: to a version, or to two while a candidate is on trial."""

    served: ServedModel
    trial: Trial[ServedModel] | None = None

    async def infer(
        self, call: InferCall, deadline_ms: float | None = None, caller: Hashable = None
    ) -> tuple[ServedModel, Result]:
        """Runs one request as `ServedModel.infer` does, and says which version answered it."""
        if self.trial is None:
            return self.served, await self.served.infer(call, deadline_ms, caller)
        await eager.in_task()
        return await self.trial.infer(call, deadline_ms, caller)


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    """The protocol says -1 for a dim that may vary."""
    dims = [-1 if isinstance(dim, str) else dim for dim in spec.dims]
    return {"name": spec.name, "datatype": spec.oip_datatype, "shape": dims}
