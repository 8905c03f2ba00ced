"""Runs Models on Headrace's own C++ runtime."""

from __future__ import annotations

from headrace.backends.native.cuda import OPTIONS, compile_cuda, is_cuda, usable_devices

from headrace import _core
from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan
from headrace.errors import BackendUnavailable, UnsupportedOp
from headrace.graph.edit import HEADRACE_DOMAIN
from headrace.graph.lower import lower
from headrace.graph.precision import PRECISIONS, assign
from headrace.graph.winograd import TILES, assign_winograd
from headrace.model import Model
from headrace.native import NativeExecutable


class NativeBackend(Backend):
    """Ragged lockstep execution on the CPU, with kernels for the ISA that was found."""

    name = "native"
    contract = 1

    def probe(self) -> Availability:
        """Always there: the extension module is part of the package."""
        devices, missing = usable_devices()
        return Availability(ok=True, devices=("cpu", *devices), missing=missing)

    def usable(self) -> Availability:
        """On the CPU in any case: no driver of a GPU is asked, which takes its time and cannot be undone by a fork."""
        return Availability(ok=True, devices=("cpu",))

    def capabilities(self) -> Capabilities:
        """Ragged and batch-invariant, in every precision on every ISA: where instructions lack, in emulation."""
        return Capabilities(
            precisions=PRECISIONS, ragged=True, batch_invariant=True, concurrent=True, winograd=True,
            options=dict.fromkeys(OPTIONS, ()),
        )  # fmt: skip

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """Tries to lower the model: kernels decide for themselves which variants they run."""
        try:
            lower(model.graph, model.signature, _core.selected_isa())
        except UnsupportedOp as error:
            return error.nodes
        return []

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Packs the weights for the selected ISA (`HEADRACE_ISA` overrides it)."""
        if is_cuda(options.device):
            return compile_cuda(model, options, str(options.device))
        if options.device not in (None, "cpu"):
            raise BackendUnavailable(f"backend 'native': got device {options.device!r}, expected 'cpu' or 'cuda'")
        if options.options:
            got = dict(options.options)
            raise BackendUnavailable(f"backend 'native': got options {got} on a CPU, expected a CUDA device for them")
        if options.precision not in self.capabilities().precisions:
            raise BackendUnavailable(
                f"backend 'native': got precision {options.precision!r}, expected one of "
                f"{', '.join(self.capabilities().precisions)}"
            )
        isa = _core.selected_isa()
        graph = model.graph.graph
        threads = options.resolved_threads()
        tiles = assign_winograd(graph) if options.winograd else {}
        core = _core.NativePlan(lower(model.graph, model.signature, isa, options.precision, tiles), threads)
        reasons = [f"{isa} is the {'selected' if isa != _core.available_isas()[-1] else 'fastest'} ISA of this CPU"]
        changed = {}
        if options.precision != "fp32":
            precisions = assign(graph, options.precision)
            reasons.append(precisions.summary(len(core.ops)))
            changed["lowered_ops"] = len(precisions.nodes)
        quantized = sum(node.domain == HEADRACE_DOMAIN and node.op_type.startswith("Quantized") for node in graph)
        if quantized:
            reasons.append(f"{quantized} of {len(core.ops)} ops run in int8 (static, from the model)")
        if options.winograd:
            sizes = [f"{list(tiles.values()).count(tile)} in tiles of {tile} x {tile}" for tile in TILES]
            reasons.append(f"{len(tiles)} convolutions run by Winograd: {', '.join(sizes)} pixels")
            changed["winograd_ops"] = len(tiles)
        plan = Plan(
            backend=self.name,
            device="cpu",
            isa=isa,
            precision=options.precision,
            threads=threads,
            reasons=tuple(reasons),
            details={
                "ops": len(core.ops),
                "packed_bytes": core.packed_bytes,
                "constant_bytes": core.constant_bytes,
                **changed,
            },
        )
        return NativeExecutable(plan, core)
