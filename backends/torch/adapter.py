"""Runs Models with torch: each node of the optimised graph becomes one call of a torch function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from headrace import hardware
from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan, Request, Result
from headrace.errors import BackendUnavailable, ExecutionError, UnsupportedOp
from headrace.graph.lower import tensor_array
from headrace.model import Model

if TYPE_CHECKING:
    import torch


# Hardly any op of torch takes wider unsigned integers. Strings are declared since their ops are refused one by one.
_DTYPES = frozenset(["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "string"])


@dataclass(frozen=True)
class _Call:
    """One node: where its inputs come from, what it does, where its outputs go."""

    name: str
    run: Callable[..., Any]
    inputs: tuple[int, ...]  # slots; -1 for an absent optional input
    outputs: tuple[int, ...]
    dead: tuple[int, ...]  # slots nobody reads after this call


class TorchExecutable(Executable):
    """A list of torch calls over numbered slots. Each Request runs alone, so shapes may differ freely."""

    def __init__(
        self, plan: Plan, device: torch.device, calls: list[_Call], constants: dict[int, torch.Tensor],
        inputs: dict[str, int], outputs: dict[str, int], slots: int,
    ) -> None:  # fmt: skip
        self.plan = plan
        self._device = device
        self._calls = calls
        self._constants = constants
        self._inputs = inputs
        self._outputs = outputs
        self._slots = slots

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs each Request alone, in order, without autograd."""
        import torch

        with torch.inference_mode():
            return [self._run(request) for request in requests]

    def _run(self, request: Request) -> Result:
        import torch

        slots: list[Any] = [None] * (self._slots + 1)  # the last one stays None: absent inputs are -1
        for slot, constant in self._constants.items():
            slots[slot] = constant
        for name, slot in self._inputs.items():
            array = np.asarray(request[name])
            if not array.flags.writeable:  # torch warns about memory it must not write to, and never does here
                array = array.copy()
            slots[slot] = torch.from_numpy(array).to(self._device)
        for call in self._calls:
            try:
                results = call.run(*(slots[slot] for slot in call.inputs))
            except Exception as error:
                raise ExecutionError(f"node {call.name!r} failed in torch: {type(error).__name__}: {error}") from error
            if not isinstance(results, tuple):
                results = (results,)
            for slot, result in zip(call.outputs, results, strict=False):
                slots[slot] = result
            for slot in call.dead:
                slots[slot] = None
        return {name: slots[slot].contiguous().cpu().numpy() for name, slot in self._outputs.items()}


class TorchBackend(Backend):
    """Torch ops on the CPU or on a CUDA device."""

    name = "torch"
    contract = 1

    def probe(self) -> Availability:
        """Imports torch, and asks it which devices it really sees."""
        try:
            import torch
        except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
            return Availability(ok=False, reason=f"torch cannot be imported ({error}); pip install torch")
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        return Availability(ok=True, devices=("cpu", *cuda))

    def capabilities(self) -> Capabilities:
        """Requests run one by one; torch chooses kernels by shape, so bits are promised only per shape."""
        return Capabilities(precisions=("fp32",), dtypes=_DTYPES, ragged=True, batch_invariant=True, concurrent=True)

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """The nodes without a torch translation."""
        from headrace.backends.torch import ops

        refused = []
        for node in model.graph.graph:
            try:
                ops.translate(node, _opset_of(model.graph, node))
            except ops.Untranslated as error:
                refused.append((ops.key_of(node), node.name or "", str(error)))
        return refused

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Translates every node and moves the weights to the device."""
        refused = self.unsupported(model)
        if refused:
            raise UnsupportedOp(self.name, refused)
        device = _device(options.device)
        if options.precision != "fp32":
            raise BackendUnavailable(f"backend 'torch': got precision {options.precision!r}, expected 'fp32'")
        import torch

        threads = options.threads if options.threads is not None else hardware.probe().cores
        if device.type == "cpu":
            torch.set_num_threads(threads)  # torch has one pool per process
        plan = Plan(
            backend=self.name,
            device=str(device),
            isa=torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "cuda",
            precision="fp32",
            threads=threads,
            reasons=(f"torch {torch.__version__} runs each Request alone",),
        )
        return _build(model, device, plan)


def _device(wanted: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(wanted or "cpu")
    except RuntimeError as error:
        raise BackendUnavailable(f"backend 'torch': got device {wanted!r}, expected cpu or cuda[:N]") from error
    if device.type not in ("cpu", "cuda"):
        raise BackendUnavailable(f"backend 'torch': got device {wanted!r}, expected cpu or cuda[:N]")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"backend 'torch': got device {wanted!r}, but torch finds no CUDA device here")
    return device


def _opset_of(model: ir.Model, node: ir.Node) -> int:
    return node.version or model.graph.opset_imports.get(node.domain, 1)


def _build(model: Model, device: torch.device, plan: Plan) -> TorchExecutable:
    import torch
    from headrace.backends.torch import ops

    slots: dict[ir.Value, int] = {}
    constants: dict[int, torch.Tensor] = {}

    def slot_of(value: ir.Value | None) -> int:
        if value is None:
            return -1
        if value not in slots:
            slots[value] = len(slots)
            if value.const_value is not None:
                array = np.array(tensor_array(value.const_value))
                constants[slots[value]] = torch.from_numpy(array).to(device)
        return slots[value]

    graph = model.graph.graph
    inputs = {spec.name: slot_of(value) for value, spec in zip(graph.inputs, model.signature.inputs, strict=True)}
    nodes = list(graph)
    last_use: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for value in (*node.inputs, *node.outputs):
            last_use[slot_of(value)] = index
    outputs = {spec.name: slot_of(value) for value, spec in zip(graph.outputs, model.signature.outputs, strict=True)}
    kept = {-1, *constants, *outputs.values()}
    calls = []
    for index, node in enumerate(nodes):
        touched = {slot_of(value) for value in (*node.inputs, *node.outputs)}
        calls.append(
            _Call(
                name=node.name or node.op_type,
                run=ops.translate(node, _opset_of(model.graph, node)),
                inputs=tuple(slot_of(value) for value in node.inputs),
                outputs=tuple(slot_of(value) for value in node.outputs),
                dead=tuple(slot for slot in touched - kept if last_use[slot] == index),
            )
        )
    return TorchExecutable(plan, device, calls, constants, inputs, outputs, len(slots))
