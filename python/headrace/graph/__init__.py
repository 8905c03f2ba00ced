"""Importers and graph passes: any supported model in, one optimised ONNX graph out.

`load` reads a model and prepares it; `headrace.graph.passes` holds the optimisations, `headrace.graph.functions` the
meaning of the fused ops.
"""

from headrace.graph.importer import load

__all__ = ["load"]
