"""Runs Models by Triton kernels over packed ragged Batches, with torch for what has no kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan, Request, Result
from headrace.errors import BackendUnavailable, ExecutionError, UnsupportedOp
from headrace.graph import script
from headrace.graph.script import Script
from headrace.model import Model

if TYPE_CHECKING:
    import torch

_DTYPES = frozenset(["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "string"])


class TritonExecutable(Executable):
    """A Script over `Ragged` values: each node runs once for the whole Batch, each Request at its own shape.

    Args:
        plan: What was chosen.
        model: What it was made of.
        written: The graph as a function of `Ragged` values.
        device: Where it runs.
    """

    def __init__(self, plan: Plan, model: Model, written: Script, device: torch.device) -> None:
        self.plan = plan
        self._script, self._device = written, device
        self._inputs = [spec.name for spec in model.signature.inputs]
        self._outputs = [spec.name for spec in model.signature.outputs]

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs all Requests together, without padding."""
        import torch
        from headrace.backends.torch.executable import current, tensor_of

        try:
            with current(self._device), torch.inference_mode():
                return self._run(requests, tensor_of)
        except torch.cuda.OutOfMemoryError as error:
            raise ExecutionError(f"the memory of {self._device} does not hold the Batch: {error}") from error
        except Exception as error:  # torch and Triton raise anything
            raise ExecutionError(
                f"node {self._script.node_of(error)} failed in triton: {type(error).__name__}: {error}"
            ) from error

    def _run(self, requests: Sequence[Request], tensor_of: Any) -> list[Result]:
        from headrace.backends.torch.executable import array_of
        from headrace.backends.triton.ragged import Ragged

        given = [Ragged([tensor_of(request[name], self._device) for request in requests]) for name in self._inputs]
        results: list[Result] = [{} for _ in requests]
        for name, value in zip(self._outputs, self._script.run(*given), strict=True):
            for index, result in enumerate(results):
                part = value.parts[index] if isinstance(value, Ragged) else value
                # Parts are views of one block, which no two Results may share.
                result[name] = array_of(part.contiguous().cpu()).copy()
        return results

    def close(self) -> None:
        """Lets go of the weights."""
        self._script.forget()


class TritonBackend(Backend):
    """Triton kernels on a CUDA device; in Triton's interpreter only where it is asked for."""

    name = "triton"
    contract = 1

    def probe(self) -> Availability:
        """A CUDA device, or ``TRITON_INTERPRET=1``."""
        for package in ("torch", "triton"):
            if find_spec(package) is None:
                return Availability(ok=False, reason=f"{package} is not installed; pip install {package}")
        try:
            import torch
        except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
            return Availability(ok=False, reason=f"torch cannot be imported ({error}); pip install torch")
        missing = {"cuda": "torch finds no CUDA device; headrace doctor shows what is missing"}
        if _interpreted():
            return Availability(ok=True, devices=("cpu",), missing=missing, for_tests=True)
        count = torch.cuda.device_count()
        if count:
            return Availability(ok=True, devices=tuple(f"cuda:{index}" for index in range(count)))
        reason = (
            "torch finds no CUDA device, which Triton's kernels need; backend 'torch' runs the same models on a CPU. "
            "TRITON_INTERPRET=1 runs the kernels in Triton's interpreter, to test their logic"
        )
        return Availability(ok=False, reason=reason, missing=missing)

    def capabilities(self) -> Capabilities:
        """Kernels sum each row by itself, in tiles of fixed sizes; torch runs what is left by Request.

        Triton's interpreter runs one kernel at a time.
        """
        return Capabilities(dtypes=_DTYPES, ragged=True, batch_invariant=True, concurrent=not _interpreted())

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """The nodes that neither Triton nor torch has a translation for."""
        from headrace.backends.triton import ops

        return script.untranslated(model.graph, ops.translate)

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Translates every node, moves the weights to the device, and on a GPU tunes the products' tiles."""
        if refused := self.unsupported(model):
            raise UnsupportedOp(self.name, refused)
        import torch
        import triton
        from headrace.backends.torch.executable import constant_on, current
        from headrace.backends.triton import kernels, ops
        from headrace.backends.triton.ragged import Ragged

        available = self.probe()
        if not available.ok or bool(triton.knobs.runtime.interpret) != kernels.INTERPRETED:
            raise BackendUnavailable(
                f"backend 'triton': {available.reason or 'TRITON_INTERPRET was changed after its kernels were loaded'}"
            )
        device = torch.device(options.device or available.devices[0])

        def move(value: Any) -> Any:
            return value.map(lambda part: part.to(device)) if isinstance(value, Ragged) else value.to(device)

        try:
            written = Script(model.graph, ops.translate, constant_on(device), move if device.type != "cpu" else None)
        except torch.cuda.OutOfMemoryError as error:
            raise BackendUnavailable(f"backend 'triton': the weights do not fit on {device}: {error}") from error
        own = sum(ops.runs_in_triton(node, script.opset_of(model.graph, node)) for node in model.graph.graph)
        reasons = [f"{own} of {written.ops} ops run in Triton's kernels, the others in torch {torch.__version__}"]
        if kernels.INTERPRETED:
            reasons.append("TRITON_INTERPRET=1: the kernels run in Triton's interpreter, to test their logic")
        else:
            with current(device):
                _tune(model, device)
        where = "interpreter" if kernels.INTERPRETED else "compute capability " + ".".join(
            map(str, torch.cuda.get_device_capability(device))
        )  # fmt: skip
        plan = Plan(
            backend=self.name, device=str(device), isa=f"triton {triton.__version__}, {where}", precision="fp32",
            threads=1, reasons=tuple(reasons), details={"ops": written.ops, "triton_ops": own},
        )  # fmt: skip
        return TritonExecutable(plan, model, written, device)


def _interpreted() -> bool:
    """Whether Triton will interpret kernels, as it reads the variable; importing it to ask takes over a second."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _tune(model: Model, device: torch.device) -> None:
    """Lets Triton choose the tiles of every product now, not while a Request waits."""
    import torch
    from headrace.backends.triton import kernels

    for node in model.graph.graph:
        weights = node.inputs[1].const_value if node.op_type == "Linear" and node.inputs[1] is not None else None
        if weights is not None and len(weights.shape) == 2:
            depth, width = (int(dim) for dim in weights.shape)
            x, w = torch.zeros((64, depth), device=device), torch.zeros((depth, width), device=device)
            kernels.linear(x, w, None, None)
