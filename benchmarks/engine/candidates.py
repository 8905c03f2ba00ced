"""The candidates that several families of models share: Headrace in each precision, ONNX peers, and torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr
from benchmarks.engine import quantize
from benchmarks.harness.cases import OURS, Entry
from headrace.backend import Request
from headrace.peers import PEERS, Run

PRECISIONS = ("fp32", "bf16", "int8")
# (precision, name of the variant, further options of Model.compile)
PLAIN: tuple[tuple[str, str, dict[str, Any]], ...] = tuple((precision, "", {}) for precision in PRECISIONS)


class Ours:
    """One Model and its Engines, each compiled when first asked for."""

    def __init__(self, source: Any, threads: int, **load_options: Any) -> None:
        self.model = hr.load(source, **load_options)
        self.threads = threads
        self._engines: dict[str, hr.Engine] = {}

    def engine(self, precision: str = "fp32", threads: int | None = None, **options: Any) -> hr.Engine:
        """The Engine of that precision and those options.

        Raises:
            HeadraceError: It cannot be compiled so.
        """
        key = repr((precision, threads, sorted(options.items())))
        if key not in self._engines:
            self._engines[key] = self.model.compile(
                backend="native", precision=precision, threads=threads or self.threads, **options
            )
        return self._engines[key]

    def entries(self, request: Request, plans: Iterable[tuple[str, str, dict[str, Any]]] = PLAIN) -> list[Entry]:
        """One entry per plan for a single Request; the answer compared is the first floating-point output."""

        def prepare(precision: str, options: dict[str, Any]) -> Callable[[], Any]:
            engine = self.engine(precision, **options)
            return lambda: engine(request)

        return [
            Entry(
                OURS, precision, functools.partial(prepare, precision, options), first_floating, variant,
                functools.partial(self._lowered, precision, options),
            )
            for precision, variant, options in plans
        ]  # fmt: skip

    def _lowered(self, precision: str, options: dict[str, Any]) -> str:
        """How much of a lowered Plan really is, in the Plan's own words: the rest stays in fp32."""
        if precision == "fp32":
            return ""
        return "; ".join(
            reason for reason in self.engine(precision, **options).plan.reasons if f" in {precision}" in reason
        )

    def ragged_entries(self, requests: Sequence[Request]) -> list[Entry]:
        """One entry per precision for a Batch of Requests of several shapes; the answers lie one below the other."""

        def prepare(precision: str) -> Callable[[], Any]:
            engine = self.engine(precision)
            return lambda: engine.run_batch(requests)

        def about(precision: str) -> str:
            return self._lowered(precision, {})

        def read(results: Any) -> np.ndarray:
            return np.concatenate([first_floating(result) for result in results])

        return [
            Entry(OURS, precision, functools.partial(prepare, precision), read, "", functools.partial(about, precision))
            for precision in PRECISIONS
        ]


def first_floating(result: dict[str, np.ndarray]) -> np.ndarray:
    """The first output that holds floating-point numbers."""
    return next(array for array in result.values() if array.dtype.kind == "f")


def onnx_entries(path: Path, request: Request, threads: int) -> list[Entry]:
    """Every peer in every precision it has, on the model file; one that is not installed is named as such."""
    return [
        Entry(name, precision, functools.partial(prepared, name, path, request, threads, precision), lambda out: out[0])
        for name, peer in PEERS.items()
        for precision in peer.precisions
    ]


def prepared(name: str, path: Path, request: Request, threads: int, precision: str) -> Run:
    """What runs this Request on that peer; a file quantised once serves every Request."""
    if (name, precision) == ("onnxruntime", "int8"):
        return PEERS[name].prepare(quantize.dynamic(path), request, threads)
    return PEERS[name].prepare(path, request, threads, precision)


def torch_entries(module: Callable[[], Any], request: Request, threads: int, compiled: bool) -> list[Entry]:
    """PyTorch in fp32 and under bf16 autocast, eager and, if asked for, compiled, which takes half a minute each.

    Call it once per case: it forgets what was compiled for the last one, or torch would take the next shape for a
    reason to compile for all shapes.
    """
    if compiled:
        import torch

        torch._dynamo.reset()

    def prepare(precision: str, compile_it: bool) -> Callable[[], Any]:
        import torch

        torch.set_num_threads(threads)
        network = torch.compile(module(), dynamic=False) if compile_it else module()
        inputs = [torch.from_numpy(array) for array in request.values()]

        def run() -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return network(*inputs)

        return run

    def read(output: Any) -> np.ndarray:
        return output.float().numpy()

    return [
        Entry(name, precision, lambda p=precision, c=compile_it: prepare(p, c), read)
        for name, compile_it in (("torch", False), ("torch.compile", True))
        if compiled or not compile_it
        for precision in ("fp32", "bf16")
    ]


def torch_reference(module: Callable[[], Any], request: Request) -> np.ndarray:
    """What torch computes in fp32."""
    import torch

    with torch.inference_mode():
        return module()(*(torch.from_numpy(array) for array in request.values())).numpy()
