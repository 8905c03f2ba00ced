"""Runs the native backend's Programs on a CUDA device."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import _core
from headrace.backend import CompileOptions, Executable, Plan, Request, Result
from headrace.errors import BackendUnavailable, HeadraceError, PlanError, UnsupportedOp
from headrace.graph.edit import HEADRACE_DOMAIN
from headrace.graph.lower import lower
from headrace.graph.precision import assign
from headrace.hardware.cublaslt import cublaslt_libraries
from headrace.model import Model

if TYPE_CHECKING:
    import onnx_ir as ir

    from headrace.signature import Signature

PRECISIONS = ("fp32", "bf16")

# Option -> its values, the default first: whether cuBLASLt computes products with weights. Declared without them, since
# a planner that tried them on the CPU too would learn nothing.
OPTIONS = {"cublaslt": ("auto", "on", "off")}

# What the attention kernel holds of a head; csrc/ops/attention/attention_cuda.cu.
HEAD_DIMS_MAX = 256

# The extension modules by device; the second one only in builds for tests.
_MODULES = {"cuda": "headrace._cuda", "cuda-on-host": "headrace._cuda_on_host"}


def is_cuda(device: str | None) -> bool:
    """True for ``cuda``, ``cuda:1`` and the like, whether or not they are there."""
    return device is not None and device.partition(":")[0] in _MODULES


def usable_devices() -> tuple[tuple[str, ...], dict[str, str]]:
    """The devices beside the CPU (``cuda:0``, ...), and why there is no ``cuda`` among them, where there is none."""
    devices: list[str] = []
    reasons: list[str] = []
    try:
        count = _module("cuda").count_devices()
    except HeadraceError as error:
        count, reasons = 0, [str(error)]
    for device in (f"cuda:{index}" for index in range(count)):
        try:
            _open(device)
            devices.append(device)
        except HeadraceError as error:  # too old, or broken: the others may not be
            reasons.append(f"{device}: {error}")
    missing = {} if devices else {"cuda": "; ".join(reasons)}
    if importlib.util.find_spec(_MODULES["cuda-on-host"]) is not None:
        devices.append("cuda-on-host")
    return tuple(devices), missing


def _open(device: str) -> tuple[Any, int, dict[str, Any]]:
    """The module that runs `device`, its index and what it says of itself.

    Raises:
        BackendUnavailable: The build has no CUDA, or the machine no such device. Says what to do.
    """
    kind, _, index = device.partition(":")
    if index and not index.isdigit():
        raise BackendUnavailable(
            f"backend 'native': got device {device!r}, expected {kind!r} or {kind + ':<number>'!r}"
        )
    module = _module(kind)
    number = int(index or 0)
    return module, number, module.describe_device(number)


def _module(kind: str) -> Any:
    """The extension module for devices of this kind.

    Raises:
        BackendUnavailable: The build has none, or it cannot be loaded.
    """
    try:
        return importlib.import_module(_MODULES[kind])
    except ModuleNotFoundError as error:
        build = "build it with HEADRACE_CUDA=on where nvcc is on PATH, see docs/gpu.md"
        what = build if kind == "cuda" else "it is for tests alone, see make test-cuda-host"
        raise BackendUnavailable(f"this build of Headrace has no {kind}: {what}") from error
    except ImportError as error:
        raise BackendUnavailable(f"device {kind}: {_MODULES[kind]} cannot be loaded: {error}") from error


class CudaExecutable(Executable):
    """A Program on a CUDA device.

    Args:
        plan: What was chosen.
        core: The Program with its weights on the device.
    """

    def __init__(self, plan: Plan, core: Any) -> None:
        self.plan = plan
        self.core = core

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs Requests of any shapes together, in lockstep, without padding."""
        return self.core.run_batch(list(requests))  # type: ignore[no-any-return]  # the module has no stub

    def save(self, folder: Path, *, name: str, sha256: str, signature: Signature, options: CompileOptions) -> Path:
        """Refuses: what a saved Plan holds is packed for a CPU."""
        raise PlanError(f"a Plan on device {self.plan.device!r} cannot be saved, expected device 'cpu'")

    def close(self) -> None:
        """Gives the device's memory back, as soon as no Batch runs any more."""
        self.core = None


def _cublaslt_wanted(options: CompileOptions) -> str:
    """``auto``, ``on`` or ``off``.

    Raises:
        BackendUnavailable: Another value was got.
    """
    wanted = options.options.get("cublaslt", OPTIONS["cublaslt"][0])
    if wanted not in OPTIONS["cublaslt"]:
        expected = ", ".join(OPTIONS["cublaslt"])
        raise BackendUnavailable(f"backend 'native': got option 'cublaslt' {wanted!r}, expected one of {expected}")
    return wanted


def _libraries(device: str) -> tuple[str, ...]:
    """Where to look for cuBLASLt; nowhere for the emulated device, whose memory and streams are none for a GPU."""
    return cublaslt_libraries() if device.partition(":")[0] == "cuda" else ()


def cublaslt_version(device: str) -> str:
    """The version of the cuBLASLt that Plans on `device` use where it is not turned off.

    Raises:
        BackendUnavailable: There is no such device, or no cuBLASLt that can be used on it.
    """
    module, index, _ = _open(device)
    return str(module.cublaslt_version(index, _libraries(device)))


def _about_products(products: dict[str, Any]) -> list[str]:
    """Who computes products with weights, as reasons of a Plan. Nothing where there are none."""
    by_library, by_own = products["by_cublaslt"], products["by_own_kernels"]
    if by_library + by_own == 0:
        return []
    library = f"cuBLASLt {products['cublaslt']}" if by_library else "cuBLASLt"
    about = [f"products with weights: {by_library} by {library}, {by_own} by own kernels"]
    return about + [f"own kernels: {reason}" for reason in products["reasons"]]


def too_wide_heads(graph: ir.Graph) -> list[tuple[str, str, str]]:
    """The attention nodes with larger heads than there are kernels for, as `UnsupportedOp` lists them.

    Those whose size the Model does not fix are found when a Request shows it.
    """
    refused = []
    for node in graph.all_nodes():
        shape = node.inputs[0].shape if node.op_type == "Attention" and node.inputs[0] is not None else None
        width = shape[-1] if shape is not None and node.domain == HEADRACE_DOMAIN else None
        if not isinstance(width, int):
            continue
        layout = node.attributes.get_string("layout", "bsd")
        heads = 1 if layout == "bhsd" else node.attributes.get_int("num_heads", 1)
        dims = width // (3 * heads if layout == "qkv" else heads)
        if dims > HEAD_DIMS_MAX:
            reason = f"device cuda: got heads of {dims} dims, expected at most {HEAD_DIMS_MAX}"
            refused.append((f"{node.domain}.{node.op_type}", node.name or "", reason))
    return refused


def compile_cuda(model: Model, options: CompileOptions, device: str) -> CudaExecutable:
    """Prepares `model` on a CUDA device.

    Raises:
        BackendUnavailable: The device, the precision on it, or a cuBLASLt that was asked for, is not there.
        UnsupportedOp: Ops of the model have no CUDA kernel; all of them are listed.
    """
    module, index, info = _open(device)
    if options.precision not in PRECISIONS:
        raise BackendUnavailable(
            f"backend 'native' on device {device!r}: got precision {options.precision!r}, "
            f"expected one of {', '.join(PRECISIONS)}"
        )
    if options.winograd:
        raise BackendUnavailable(f"backend 'native' on device {device!r}: got winograd=True, expected False")
    cublaslt = _cublaslt_wanted(options)
    if refused := too_wide_heads(model.graph.graph):
        raise UnsupportedOp("native", refused)
    isa = _core.selected_isa()
    program = lower(model.graph, model.signature, isa, options.precision, keep_constants=True)
    core = module.CudaPlan(program, index, cublaslt, _libraries(device))
    on_device = core.ops_on_device
    reasons = [f"device {device!r} was asked for: {info['name']}", f"{len(on_device)} ops run there"]
    reasons += _about_products(core.products)
    if options.precision != "fp32":
        reasons.append(assign(model.graph.graph, options.precision).summary(len(on_device)))
    plan = Plan(
        backend="native",
        device=device,
        isa=f"sm_{info['major']}{info['minor']}" if device.startswith("cuda:") or device == "cuda" else "host",
        precision=options.precision,
        threads=1,
        reasons=tuple(reasons),
        details={
            "ops": len(on_device),
            "device_name": info["name"],
            "device_memory_bytes": info["memory_bytes"],
            "weight_bytes": core.weight_bytes,
            "products": core.products,
        },
    )
    return CudaExecutable(plan, core)
