"""Between an Engine and a Backend: holds each to the contract of `headrace.backend`.

A Backend is given only what it declared: precisions, devices, ops, dtypes, Batches of one shape where it takes no
others, one call at a time where it bears no more. Its callers get Results that fit the signature, or an error of
`headrace.errors`, whatever the Backend raised. The native backend needs none of this at run time: its runtime checks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from headrace.backend import Backend, Capabilities, CompileOptions, Executable, Request, Result
from headrace.errors import BackendUnavailable, ExecutionError, HeadraceError, UnsupportedOp

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir

    from headrace.model import Model
    from headrace.signature import Signature


def compile_on(backend: Backend, model: Model, options: CompileOptions) -> Executable:
    """`Backend.compile`, with both sides held to the contract.

    Raises:
        UnsupportedOp: The Backend lacks ops or dtypes of the Model; all nodes are listed.
        BackendUnavailable: It has no such precision or device.
        ExecutionError: It failed in a way the contract does not know, which is a defect and no reason to take another.
    """
    capabilities = backend.capabilities()
    _check_options(backend, capabilities, options)
    if refused := undeclared(capabilities, model):
        raise UnsupportedOp(backend.name, refused)
    try:
        executable = backend.compile(model, options)
    except HeadraceError:
        raise
    except Exception as error:
        raise ExecutionError(
            f"backend {backend.name!r} failed to compile model {model.name!r}: {type(error).__name__}: {error}"
        ) from error
    if hasattr(executable, "run_one"):
        return executable
    return GuardedExecutable(executable, backend.name, capabilities, model.signature)


def undeclared(capabilities: Capabilities, model: Model) -> list[tuple[str, str, str]]:
    """The nodes of `model` with ops or dtypes that were not declared: ``(op type, node name, reason)``."""
    refused = []
    for node in model.graph.graph.all_nodes() if (capabilities.ops, capabilities.dtypes) != (None, None) else ():
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if capabilities.ops is not None and op not in capabilities.ops:
            refused.append((op, node.name or "", "the backend does not declare this op"))
        elif dtypes := _dtypes_of(node) - capabilities.dtypes if capabilities.dtypes is not None else None:
            expected = ", ".join(sorted(capabilities.dtypes or ()))
            reason = f"got a value of dtype {', '.join(sorted(dtypes))}, expected one of {expected}"
            refused.append((op, node.name or "", reason))
    return refused


def _dtypes_of(node: onnx_ir.Node) -> set[str]:
    from headrace.graph.signature import dtype_name

    dtypes = (value.dtype for value in (*node.inputs, *node.outputs) if value is not None)
    return {dtype_name(dtype) or dtype.name.lower() for dtype in dtypes if dtype is not None}


def _check_options(backend: Backend, capabilities: Capabilities, options: CompileOptions) -> None:
    def refuse(option: str, got: object, expected: Sequence[str], more: str = "") -> None:
        raise BackendUnavailable(
            f"backend {backend.name!r}: got {option} {got!r}, expected {'one of ' * (len(expected) > 1)}"
            f"{', '.join(expected)}{more}"
        )

    if options.precision not in capabilities.precisions:
        refuse("precision", options.precision, capabilities.precisions)
    if options.winograd and not capabilities.winograd:
        raise BackendUnavailable(f"backend {backend.name!r}: got winograd=True, expected False: it has no such kernels")
    for name, value in options.options.items():
        if name not in capabilities.options:
            refuse("option", name, sorted(capabilities.options) or ["none"])
        if capabilities.options[name] and value not in capabilities.options[name]:
            refuse(f"option {name!r}", value, capabilities.options[name])
    if options.device is None or options.device in backend.usable().devices:
        return
    available = backend.probe()
    if options.device not in {*available.devices, *(device.split(":")[0] for device in available.devices)}:
        missing = available.missing.get(options.device.split(":")[0], "")
        refuse("device", options.device, available.devices, f" ({missing})" if missing else "")


class GuardedExecutable(Executable):
    """An Executable whose Backend is held to what it declared.

    Args:
        inner: What the Backend made.
        backend: The Backend's name, for messages.
        capabilities: What it declared.
        signature: What its Results must fit.
    """

    def __init__(self, inner: Executable, backend: str, capabilities: Capabilities, signature: Signature) -> None:
        self.inner = inner
        self.plan = inner.plan
        self.device_arrays, self.device_results = inner.device_arrays, inner.device_results
        self._backend = backend
        self._ragged = capabilities.ragged
        self._outputs = [(spec.name, spec.numpy_dtype) for spec in signature.outputs]
        self._turn: AbstractContextManager[object] = nullcontext() if capabilities.concurrent else threading.Lock()
        self._closed = False

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs Requests in Batches as the Backend takes them.

        Raises:
            ExecutionError: The Backend failed, gave what does not fit the signature, or was closed.
        """
        if not requests:
            return []
        if self._ragged or len(requests) == 1:
            return self._run(requests)
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(tuple(array.shape for array in request.values()), []).append(index)
        if len(groups) == 1:
            return self._run(requests)
        results: list[Result] = [{}] * len(requests)
        for members in groups.values():
            for index, result in zip(members, self._run([requests[index] for index in members]), strict=True):
                results[index] = result
        return results

    def _run(self, requests: Sequence[Request]) -> list[Result]:
        with self._turn:
            if self._closed:
                raise ExecutionError(f"backend {self._backend!r}: got a Batch after close()")
            try:
                results = self.inner.run_batch(requests)
            except HeadraceError:
                raise
            except Exception as error:
                raise ExecutionError(f"backend {self._backend!r} failed: {type(error).__name__}: {error}") from error
        if len(results) != len(requests):
            raise ExecutionError(f"backend {self._backend!r}: got {len(results)} Results, expected {len(requests)}")
        for result in results:
            if not self._fits(result):
                got = {
                    name: str(array.dtype) if isinstance(array, np.ndarray) else str(type(array))
                    for name, array in result.items()
                }
                expected = {name: str(dtype) for name, dtype in self._outputs}
                raise ExecutionError(f"backend {self._backend!r}: got a Result {got}, expected {expected}")
        return results

    def _fits(self, result: Result) -> bool:
        if len(result) != len(self._outputs):
            return False
        for name, dtype in self._outputs:
            array = result.get(name)
            if self.device_results and hasattr(array, "__dlpack__"):
                continue
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                return False
        return True

    def save(self, folder: Path, *, name: str, sha256: str, signature: Signature, options: CompileOptions) -> Path:
        """As the Backend saves it, or says that it cannot."""
        return self.inner.save(folder, name=name, sha256=sha256, signature=signature, options=options)

    def close(self) -> None:
        """Closes it once. A Batch that is running ends first where the Backend takes one at a time."""
        with self._turn:
            if not self._closed:
                self._closed = True
                self.inner.close()
