"""onnxruntime as a backend of Headrace: the whole of it, for ``model.compile(backend="onnxruntime")``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan, Request, Result
from headrace.errors import ExecutionError, UnsupportedOp

if TYPE_CHECKING:
    import onnx_ir
    import onnxruntime

    from headrace.model import Model

# bfloat16 is left out: onnxruntime takes no numpy arrays of it.
_INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
DTYPES = frozenset(["bool", *_INTEGERS, "float16", "float32", "float64", "string"])


def _wrong(node: onnx_ir.Node) -> str | None:
    """Why a node that onnxruntime 1.32 takes is not to be trusted to it, as ``headrace certify`` found."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    match node.op_type:
        case "Attention" if node.domain == "" and (len(node.outputs) > 3 or len(node.inputs) > 6):
            return "wrong with the scores as output, fails with nonpad_kv_seqlen"
        case "ConvInteger" if any(attributes.get("pads") or ()):
            return "fails with padding"
        case "MaxUnpool" if len(node.inputs) > 2:
            return "wrong with output_shape"
        case "ReduceMax" if node.inputs[0] is not None and node.inputs[0].dtype == 9:  # ONNX's number for bool
            return "fails on empty bool"
        case "Resize" if attributes.get("coordinate_transformation_mode") == "align_corners":
            return "wrong where it shrinks with align_corners"
    return None


class OnnxRuntimeExecutable(Executable):
    """One session, which runs each Request alone: so their shapes may differ, and their bits depend on no other."""

    def __init__(self, plan: Plan, session: onnxruntime.InferenceSession) -> None:
        self.plan = plan
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs the Requests in order."""
        return [self._run(request) for request in requests]

    def _run(self, request: Request) -> Result:
        try:
            values = self._session.run(self._outputs, dict(request))
        except Exception as error:  # its errors have no base class of their own
            raise ExecutionError(f"onnxruntime failed: {error}") from error
        return dict(zip(self._outputs, map(np.asarray, values), strict=True))

    def close(self) -> None:
        """Gives the session's threads and memory back."""
        del self._session


class OnnxRuntimeBackend(Backend):
    """Runs the optimised graph, its fused ops written out as functions, in an InferenceSession."""

    name = "onnxruntime"
    contract = 1

    def probe(self) -> Availability:
        """Imports onnxruntime and asks it which of its providers work here."""
        try:
            import onnxruntime
        except ImportError as error:
            return Availability(ok=False, reason=f"onnxruntime cannot be imported ({error}); pip install onnxruntime")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return Availability(ok=True, devices=("cpu", "cuda:0"))
        missing = "this onnxruntime has no CUDA provider; pip install onnxruntime-gpu"
        return Availability(ok=True, devices=("cpu",), missing={"cuda": missing})

    def capabilities(self) -> Capabilities:
        """Requests of any shapes; calls may overlap, since sessions are safe to share."""
        return Capabilities(dtypes=DTYPES, ragged=True, batch_invariant=True, concurrent=True)

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """What version 1.32 gets wrong; then what it refuses itself: it names the first node it lacks."""
        try:
            self._session(model, CompileOptions())
        except UnsupportedOp as error:
            return error.nodes
        return []

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Makes the session."""
        import onnxruntime

        session = self._session(model, options)
        provider = session.get_providers()[0]
        plan = Plan(
            backend=self.name,
            device="cuda:0" if provider == "CUDAExecutionProvider" else "cpu",
            isa=provider,
            precision="fp32",
            threads=options.resolved_threads(),
            reasons=(f"onnxruntime {onnxruntime.__version__} runs each Request alone",),
        )
        return OnnxRuntimeExecutable(plan, session)

    def _session(self, model: Model, options: CompileOptions) -> onnxruntime.InferenceSession:
        import onnxruntime

        if wrong := [(node.op_type, node.name or "", why) for node in model.graph.graph if (why := _wrong(node))]:
            raise UnsupportedOp(self.name, wrong)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.resolved_threads()
        settings.log_severity_level = 4  # what goes wrong is raised
        cuda = (options.device or "cpu").startswith("cuda")
        provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
        try:
            return onnxruntime.InferenceSession(model.to_proto().SerializeToString(), settings, providers=[provider])
        except Exception as error:  # its errors have no base class of their own
            raise UnsupportedOp(self.name, [("?", model.name, f"onnxruntime refuses it: {error}")]) from error
