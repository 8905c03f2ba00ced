"""Runs Models op by op over the Python array API: with cupy on a CUDA device, with numpy where there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan, Request, Result
from headrace.errors import BackendUnavailable, ExecutionError, UnsupportedOp
from headrace.graph import script
from headrace.graph.script import HOST, Script
from headrace.model import Model


class ArrayExecutable(Executable):
    """A Script over arrays. Each Request runs alone, so shapes may differ freely.

    Args:
        plan: What was chosen.
        written: The graph as a function.
        names: The names of its inputs, and of its outputs.
        put: Brings a numpy array to the device; None where numpy computes.
        get: Brings an array back.
        device: Made the current one, in a ``with``, around every Batch; None where there is but the host.
    """

    def __init__(
        self, plan: Plan, written: Script, names: tuple[list[str], list[str]], put: Callable[[Any], Any] | None,
        get: Callable[[Any], np.ndarray[Any, Any]], device: Any = None,
    ) -> None:  # fmt: skip
        self.plan = plan
        self._script = written
        self._inputs, self._outputs = names
        self._put, self._get, self._device = put, get, device

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs each Request alone, in order."""
        if self._device is None:
            _limit_blas(self.plan.threads)  # other Plans of this process may have other limits
            with np.errstate(all="ignore"):  # NaN and infinity are results
                return [self._run(request) for request in requests]
        with self._device:
            return [self._run(request) for request in requests]

    def _run(self, request: Request) -> Result:
        given = [self._put_in(request[name]) for name in self._inputs]
        try:
            values = self._script.run(*given)
            return {name: self._own(value, given) for name, value in zip(self._outputs, values, strict=True)}
        except Exception as error:  # numpy and cupy raise anything
            raise ExecutionError(
                f"node {self._script.node_of(error)} failed in {self.plan.isa}: {type(error).__name__}: {error}"
            ) from error

    def _put_in(self, array: np.ndarray[Any, Any]) -> Any:
        return array if self._put is None or array.dtype == object else self._put(array)

    def _own(self, value: Any, given: list[Any]) -> np.ndarray[Any, Any]:
        """The output in memory of its own: not an input's, not a constant's, and not a view of anything."""
        array = self._get(value)
        if array is value and (not array.flags.owndata or not array.flags.c_contiguous):
            return np.array(array)
        shared = array is value and (any(array is other for other in given) or self._script.is_constant(array))
        return array.copy() if shared else array

    def close(self) -> None:
        """Lets go of the weights."""
        self._script.forget()


class CupyBackend(Backend):
    """The Python array API: cupy on CUDA devices, else numpy."""

    name = "cupy"
    contract = 1

    def probe(self) -> Availability:
        """The host is always there, computed on with numpy; a CUDA device only where cupy finds one."""
        if find_spec("array_api_compat") is None:
            return Availability(ok=False, reason="array_api_compat is not installed; pip install array-api-compat")
        devices, missing = _devices()
        return Availability(ok=True, devices=(*devices, "cpu"), missing={"cuda": missing} if missing else {})

    def capabilities(self) -> Capabilities:
        """Requests run one by one; a library may choose its product's kernels by shape, so bits depend on shapes."""
        return Capabilities(precisions=("fp32",), ragged=True, batch_invariant=True, concurrent=True)

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """The nodes without a translation."""
        from headrace.backends.cupy import ops

        return script.untranslated(model.graph, ops.translate)

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Translates every node and moves the weights to the device."""
        if refused := self.unsupported(model):
            raise UnsupportedOp(self.name, refused)
        devices, missing = _devices()
        wanted = options.device or (devices[0] if devices else "cpu")
        if wanted.split(":")[0] == "cuda" and not devices:
            raise BackendUnavailable(f"backend 'cupy': got device {wanted!r}, expected 'cpu': {missing}")
        if wanted == "cpu":
            return _on_numpy(model, options)
        return _on_cupy(model, "cuda:0" if wanted == "cuda" else wanted, options)


def _devices() -> tuple[list[str], str]:
    """The CUDA devices that cupy sees, or why it sees none."""
    if find_spec("cupy") is None:
        return [], "cupy is not installed; pip install cupy-cuda12x (or the one for your CUDA)"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a missing driver or library shows in many ways
        return [], f"cupy is installed but finds no CUDA device ({type(error).__name__}: {error})"
    return [f"cuda:{index}" for index in range(count)], "" if count else "cupy finds no CUDA device"


def _names(model: Model) -> tuple[list[str], list[str]]:
    return [spec.name for spec in model.signature.inputs], [spec.name for spec in model.signature.outputs]


_BLAS_LOCK = threading.Lock()


@cache
def _blas() -> list[Any] | None:
    """The libraries that run numpy's products, to be told their number of threads; None if they cannot be."""
    try:
        import threadpoolctl
    except ImportError:
        return None
    return list(threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers)


def _limit_blas(threads: int) -> None:
    """Sets the number of threads of numpy's products, for the whole process, if it is another."""
    with _BLAS_LOCK:
        for library in _blas() or ():
            if library.num_threads != threads:
                library.set_num_threads(threads)


def _about_blas(threads: int) -> str:
    if _blas() is None:
        return "numpy's products run on as many threads as its BLAS likes; pip install threadpoolctl to say how many"
    return f"numpy's products run on {threads} threads, everything else on one"


def _on_numpy(model: Model, options: CompileOptions) -> ArrayExecutable:
    from headrace.backends.cupy import ops

    threads = options.resolved_threads()
    written = Script(model.graph, ops.translate, lambda array, _where: np.array(array, order="C"))
    plan = Plan(
        backend="cupy", device="cpu", isa=f"numpy {np.__version__}", precision="fp32", threads=threads,
        reasons=("array backend on numpy: no GPU and no kernel of its own takes part", _about_blas(threads)),
        details={"ops": written.ops},
    )  # fmt: skip
    return ArrayExecutable(plan, written, _names(model), None, np.asarray)


def _on_cupy(model: Model, wanted: str, options: CompileOptions) -> ArrayExecutable:
    import cupy
    from headrace.backends.cupy import ops
    from headrace.backends.cupy.arrays import to_numpy

    device = cupy.cuda.Device(int(wanted.split(":")[1]))
    try:
        with device:
            written = Script(
                model.graph, ops.translate, lambda array, where: array if where == HOST else _put(array), move=_put
            )
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise BackendUnavailable(f"backend 'cupy': the weights do not fit on {wanted}: {error}") from error
    plan = Plan(
        backend="cupy", device=wanted, isa=f"cupy {cupy.__version__}, compute capability {device.compute_capability}",
        precision="fp32", threads=1, reasons=("raw kernels run the fused ops, cupy everything else",),
        details={"ops": written.ops},
    )  # fmt: skip
    return ArrayExecutable(plan, written, _names(model), _put, to_numpy, device)


def _put(array: Any) -> Any:
    """A numpy array on the current device; texts stay with the host."""
    import cupy

    return array if isinstance(array, np.ndarray) and array.dtype == object else cupy.asarray(array)
