"""Imports onnx_ir without paying for sympy.

onnx_ir imports sympy for arithmetic on symbolic dims, which costs about 0.3 s and 30 MB in every process that loads a
Model. Headrace does that arithmetic itself (`headrace.graph.dims`), so sympy is put off until something asks for it.
Every module of this package takes onnx_ir from here: ``from headrace.graph._onnx_ir import ir``.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _DeferredFunction:
    """A sympy function that is looked up when first called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module("sympy"), self._name)(*args, **kwargs)


class _DeferredSympy(types.ModuleType):
    """Stands in for sympy inside onnx_ir: hands out deferred functions during its import, the real thing after it."""

    importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _DeferredFunction(name) if self.importing else getattr(importlib.import_module("sympy"), name)


def _import_onnx_ir() -> types.ModuleType:
    if "onnx_ir" in sys.modules or "sympy" in sys.modules:
        return importlib.import_module("onnx_ir")
    deferred = _DeferredSympy("sympy")
    sys.modules["sympy"] = deferred
    try:
        return importlib.import_module("onnx_ir")
    finally:
        # Only onnx_ir keeps the stand-in: whoever imports sympy from here on gets sympy.
        if sys.modules.get("sympy") is deferred:
            del sys.modules["sympy"]
        deferred.importing = False


_import_onnx_ir()

import onnx_ir as ir  # noqa: E402  (only after the import above has set sympy aside)

__all__ = ["ir"]
