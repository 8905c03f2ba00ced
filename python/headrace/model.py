"""The Model: a graph with weights and a signature, ready for any Backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.signature import Signature

if TYPE_CHECKING:
    import onnx
    import onnx_ir

    from headrace.engine import Engine


@dataclass(frozen=True, eq=False)
class Model:
    """What `headrace.load` returns. Immutable; safe to share between threads.

    Attributes:
        name: A short name: the file's stem, the class of the object it came from, or what the caller said.
        signature: Its named inputs and outputs.
        graph: The optimised graph, with weights that are read when asked for. All Backends get this same graph:
            standard ONNX ops, ai.onnx.ml ops, and the fused ops of domain "headrace"
            (`headrace.graph.functions` gives their meaning in standard ops).
        source: Where it came from, for people: a path or the kind of object.
        sha256: Of the file it came from, or of the serialized graph with its weights, in hex.
    """

    name: str
    signature: Signature
    graph: onnx_ir.Model
    source: str
    sha256: str

    def compile(
        self, backend: str = "auto", precision: str = "fp32", threads: int | None = None, **options: Any
    ) -> Engine:
        """Prepares this Model to be called.

        Args:
            backend: A Backend's name, or "auto" for the first installed one that can run the whole Model.
            precision: "fp32", "bf16", "int8" or "auto".
            threads: How many threads to run on; None for every core this process may use.
            **options: Further options of `headrace.engine.compile_model`.

        Raises:
            UnsupportedOp: The Backend lacks ops of this Model.
            BackendUnavailable: The Backend, its device or the precision is not there.
        """
        from headrace.engine import compile_model

        return compile_model(self, backend=backend, precision=precision, threads=threads, **options)

    def to_proto(self) -> onnx.ModelProto:
        """The optimised graph as a ModelProto that any ONNX runtime can run.

        The fused ops become calls of model-local functions made of standard ops. Weights are copied into the proto.
        """
        from headrace.graph.functions import to_proto

        return to_proto(self.graph)

    def __str__(self) -> str:
        return f"{self.name}{self.signature}"
