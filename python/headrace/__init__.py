"""Headrace: one model file in, the fastest safe way to run it on whatever machine is there.

    import headrace as hr

    model = hr.load("model.onnx")
    engine = model.compile()
    out = engine({"x": array})

Neither torch nor ray is imported unless you ask for what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace import errors
from headrace.backend import Plan
from headrace.errors import HeadraceError
from headrace.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from headrace import hardware, serve
    from headrace.batcher import Batcher
    from headrace.engine import Engine, backends
    from headrace.graph import load
    from headrace.model import Model
    from headrace.planner import plan
    from headrace.saved_plan import load_plan

__all__ = [
    "Batcher",
    "Engine",
    "HeadraceError",
    "Model",
    "Plan",
    "Signature",
    "TensorSpec",
    "backends",
    "errors",
    "hardware",
    "load",
    "load_plan",
    "plan",
    "serve",
]

__version__ = "0.1.0"

# Loaded on first use, so that `import headrace` stays fast: name -> (module, attribute or None for the module).
_LAZY: dict[str, tuple[str, str | None]] = {
    "Batcher": ("headrace.batcher", "Batcher"),
    "Engine": ("headrace.engine", "Engine"),
    "Model": ("headrace.model", "Model"),
    "backends": ("headrace.engine", "backends"),
    "hardware": ("headrace.hardware", None),
    "load": ("headrace.graph", "load"),
    "load_plan": ("headrace.saved_plan", "load_plan"),
    "plan": ("headrace.planner", "plan"),
    "serve": ("headrace.serve", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
