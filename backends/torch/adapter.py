"""Runs Models with torch: each node of the optimised graph becomes one call of a torch function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan
from headrace.errors import BackendUnavailable, ExecutionError, UnsupportedOp
from headrace.graph import script
from headrace.graph.script import Script, Step
from headrace.model import Model

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from headrace.backends.torch.executable import TorchExecutable

# Option -> its values, the default first. Declared without them: nobody is to try them all, which compiles for minutes.
OPTIONS = {"mode": ("eager", "compile", "cudagraphs"), "outputs": ("host", "device")}

# Hardly any op of torch takes wider unsigned integers. Strings are declared since their ops are refused one by one.
_DTYPES = frozenset(["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "string"])


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
        return Availability(ok=True, devices=("cpu", *cuda), missing={} if cuda else {"cuda": why_no_cuda()})

    def capabilities(self) -> Capabilities:
        """Requests run one by one; torch chooses kernels by shape, so bits are promised only per shape."""
        return Capabilities(
            precisions=("fp32", "bf16"), dtypes=_DTYPES, ragged=True, batch_invariant=True, concurrent=True,
            options=dict.fromkeys(OPTIONS, ()),
        )  # fmt: skip

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """The nodes without a torch translation."""
        from headrace.backends.torch import ops

        return script.untranslated(model.graph, ops.translate)

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Translates every node and moves the weights to the device."""
        from headrace.backends.torch import ops

        if refused := self.unsupported(model):
            raise UnsupportedOp(self.name, refused)
        for name, value in options.options.items():
            if value not in OPTIONS[name]:
                expected = ", ".join(OPTIONS[name])
                raise BackendUnavailable(f"backend 'torch': got option {name!r} {value!r}, expected one of {expected}")
        device = device_named(self.name, options.device)
        mode = options.options.get("mode", "eager")
        if mode == "cudagraphs" and device.type != "cuda":
            raise BackendUnavailable("backend 'torch': got option mode='cudagraphs', expected a CUDA device for it")
        return build(self.name, model, options, device, ops.translate, mode)


def why_no_cuda() -> str:
    """Why torch has no CUDA device here, and what would help."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install a wheel with it"
    return f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no device; nvidia-smi tells more"


def device_named(backend: str, wanted: str | None) -> torch.device:
    """The device that was asked for.

    Raises:
        BackendUnavailable: It is not there.
    """
    import torch

    try:
        device = torch.device(wanted or "cpu")
    except RuntimeError as error:
        raise BackendUnavailable(f"backend {backend!r}: got device {wanted!r}, expected cpu or cuda[:N]") from error
    if device.type not in ("cpu", "cuda"):
        raise BackendUnavailable(f"backend {backend!r}: got device {wanted!r}, expected cpu or cuda[:N]")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(f"backend {backend!r}: got device {wanted!r}, expected another: {why_no_cuda()}")
    return device


def build(
    backend: str, model: Model, options: CompileOptions, device: torch.device,
    translate: Callable[[ir.Node, int], Step], mode: str,
) -> TorchExecutable:  # fmt: skip
    """Writes the graph as a function of torch calls, and what `mode` makes of it.

    Raises:
        BackendUnavailable: The weights do not fit on the device, or the mode's compiler fails.
    """
    import torch
    from headrace.backends.torch.executable import Mover, TorchExecutable, constant_on
    from headrace.backends.torch.lowered import lowering

    threads = options.resolved_threads()
    reasons = [f"torch {torch.__version__} runs each Request alone"]
    lowered, summary = lowering(model, options.precision, translate)
    mover = Mover(device)
    try:
        written = Script(model.graph, lowered, constant_on(device), mover if device.type != "cpu" else None)
    except torch.cuda.OutOfMemoryError as error:
        raise BackendUnavailable(f"backend {backend!r}: the weights do not fit on {device}: {error}") from error
    run: Callable[..., Any] | None = None
    if mode == "compile":
        run, reason = _compiled(model, written)
        reasons.append(reason)
    elif mode == "cudagraphs":
        from headrace.backends.torch.graphs import GRAPHS_MAX, Graphs, capture_on_cuda

        run = Graphs(written.run, capture_on_cuda(mover))
        reasons.append(f"CUDA graphs for the last {GRAPHS_MAX} shapes; the first Request of a shape is slower")
    plan = Plan(
        backend=backend, device=str(device), isa=_isa(device), precision=options.precision, threads=threads,
        reasons=(*reasons, *summary), details={"ops": written.ops, "mode": mode},
    )  # fmt: skip
    on_device = options.options.get("outputs", "host") == "device"
    executable = TorchExecutable(plan, model, written, device, run, on_device)
    if mode == "compile":
        _warm(model, executable)
    return executable


def _isa(device: torch.device) -> str:
    import torch

    if device.type == "cpu":
        return str(torch.backends.cpu.get_cpu_capability())
    return f"compute capability {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"


def _compiled(model: Model, written: Script) -> tuple[Callable[..., Any], str]:
    import torch

    # Said outright: left to torch, a second shape would make other kernels for the first one too, with other bits.
    dynamic = any(isinstance(dim, str) for spec in model.signature.inputs for dim in spec.dims)
    shapes = "of any shape" if dynamic else "of its one shape"
    return torch.compile(written.run, dynamic=dynamic), f"torch.compile made its kernels, for Requests {shapes}"


def _warm(model: Model, executable: TorchExecutable) -> None:
    """Compiles before the first Request comes, where Requests can be made up from the signature."""
    import torch

    from headrace.samples import sample_requests

    failures: list[ExecutionError] = []

    def run(requests: Any) -> None:
        try:
            executable.run_batch(requests)
        except ExecutionError as error:
            failures.append(error)
            raise

    ran = sample_requests(model.signature, run)
    # Made-up Requests may be none that the Model can run, which says nothing about the compiler.
    if not ran and failures and isinstance(failures[0].__cause__, torch._dynamo.exc.TorchDynamoException):
        raise BackendUnavailable(f"backend 'torch': torch.compile failed on model {model.name!r}: {failures[0]}")
