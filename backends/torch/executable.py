"""A Script of torch calls as an Executable: arrays in, arrays out, on the host or where they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from headrace.backend import Executable, Plan, Request, Result
from headrace.errors import ExecutionError
from headrace.graph.script import Script
from headrace.model import Model

Tensor = torch.Tensor

# Places of weights: column by column, as torch.nn.Linear holds them, which products with them are fastest with; and
# likewise as bfloat16.
COLUMNS, BF16 = "columns", "bf16"


class Mover:
    """Brings values from the host to the device.

    What it moves depends on the shapes of a Request alone. So it can remember, while one Request runs, what it moved,
    and hand out the same tensors again in the same order: a CUDA graph that is being captured may copy nothing from
    ordinary memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._remembered: list[Tensor] | None = None
        self._next: int | None = None

    def __call__(self, value: Tensor) -> Tensor:
        """`value` on the device."""
        if self._next is not None and self._remembered is not None:
            self._next += 1
            return self._remembered[self._next - 1]
        moved = value.to(self._device)
        if self._remembered is not None:
            self._remembered.append(moved)
        return moved

    def remember(self) -> None:
        """Remembers what is moved from now on."""
        self._remembered, self._next = [], None

    def repeat(self) -> list[Tensor]:
        """Hands out what was remembered, which the caller keeps alive."""
        self._next = 0
        return self._remembered or []

    def forget(self) -> None:
        """Moves afresh again."""
        self._remembered = self._next = None


class TorchExecutable(Executable):
    """Runs a Script. Each Request runs alone, so shapes may differ freely.

    Args:
        plan: What was chosen.
        model: What it was made of.
        written: The graph as a function of tensors.
        device: Where its weights are.
        run: What to call with a Request's tensors: the Script's function, or something made of it.
        on_device: Whether Results stay on the device, as tensors.
    """

    device_arrays = True

    def __init__(
        self, plan: Plan, model: Model, written: Script, device: torch.device,
        run: Callable[..., tuple[Tensor, ...]] | None = None, on_device: bool = False,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.device_results = on_device
        self._script, self._device = written, device
        self._run_script = run or written.run
        self._weights = {_storage(value) for value in written.constants() if isinstance(value, Tensor)}
        self._inputs = [spec.name for spec in model.signature.inputs]
        self._outputs = [spec.name for spec in model.signature.outputs]
        # Captured graphs have one set of inputs and outputs.
        self._turn: AbstractContextManager[object] = nullcontext() if run is None else threading.Lock()

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs each Request alone, in order, without autograd."""
        if self._device.type == "cpu" and torch.get_num_threads() != self.plan.threads:
            torch.set_num_threads(self.plan.threads)  # what this thread ran last was another Plan
        # Tensors of inference mode can never be written to outside of it, so none may leave.
        grad = torch.no_grad() if self.device_results else torch.inference_mode()
        with current(self._device), grad, self._turn:
            return [self._run(request) for request in requests]

    def _run(self, request: Request) -> Result:
        try:
            given = [tensor_of(request[name], self._device) for name in self._inputs]
            values = self._run_script(*given)
            places = {_storage(value) for value in given}
            return {name: self._own(value, places) for name, value in zip(self._outputs, values, strict=True)}
        except torch.cuda.OutOfMemoryError as error:
            raise ExecutionError(f"the memory of {self._device} does not hold the Request: {error}") from error
        except Exception as error:  # torch raises anything
            raise ExecutionError(
                f"node {self._script.node_of(error)} failed in torch: {type(error).__name__}: {error}"
            ) from error

    def _own(self, value: Tensor, given: Set[int]) -> Any:
        """An output in memory of its own: no weight's, and no input's, which begin at the places `given`."""
        value = value.contiguous()
        if not self.device_results and not value.is_cpu:
            return array_of(value.cpu())
        start = _storage(value)  # by that, because ops give views of what they read, too
        if start in given or start in self._weights:
            value = value.clone()
        return value if self.device_results else array_of(value)

    def close(self) -> None:
        """Lets go of the weights, and of the device memory they were in."""
        self._script.forget()
        self._run_script = self._script.run
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the thread's current one, on which streams, captured graphs and Triton's kernels run."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _storage(tensor: Tensor) -> int:
    """Where the memory begins that it is part of."""
    return tensor.untyped_storage().data_ptr()


def tensor_of(value: Any, device: torch.device) -> Tensor:
    """An input on `device`: numpy's, torch's own, or anything else that has DLPack."""
    if isinstance(value, np.ndarray):
        if not value.flags.writeable:  # torch warns about memory it must not write to, and never does here
            value = value.copy()
        if value.dtype.kind == "V" and value.dtype.name == "bfloat16":  # a name is made each time one asks for it
            tensor = torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(value)
        return tensor if device.type == "cpu" else tensor.to(device)
    if not isinstance(value, Tensor):
        value = torch.from_dlpack(value)
    tensor = value.detach().to(device)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor on the host as numpy, which has bfloat16 from ml_dtypes."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


def constant_on(device: torch.device) -> Callable[[np.ndarray[Any, Any], str], Tensor]:
    """What places constants for a Script: on the host, or on `device`, plainly, by `COLUMNS` or in `BF16`."""

    def place(array: np.ndarray[Any, Any], where: str) -> Tensor:
        # In memory of torch's own, which is aligned as its kernels like it.
        tensor = tensor_of(np.array(array), torch.device("cpu")).clone()
        if where == "host":
            return tensor
        if where != "device" and tensor.dim() == 2:
            tensor = tensor.t().contiguous().t()
        return tensor.to(device, torch.bfloat16) if where == BF16 else tensor.to(device)

    return place
