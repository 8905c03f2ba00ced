"""What could run a Model: every way to compile it that the installed backends offer, threads and Batch limits apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.backend import Backend
    from headrace.engine import Engine
    from headrace.model import Model

# Minutes per call of a real model: it says what is right, and is not meant to serve.
NOT_FOR_SERVING = ("reference",)


@dataclass(frozen=True)
class Candidate:
    """One way to compile a Model.

    Attributes:
        backend: The backend's name.
        device: One of its devices, such as "cpu" or "cuda:0".
        precision: One that it declares.
        threads: Of one replica.
        winograd: As `headrace.backend.CompileOptions.winograd`.
        options: What only this backend knows: (name, value) pairs.
    """

    backend: str
    device: str
    precision: str = "fp32"
    threads: int = 1
    winograd: bool = False
    options: tuple[tuple[str, str], ...] = ()

    @property
    def lowered(self) -> bool:
        """Whether it rounds more than fp32 as written does."""
        return self.precision != "fp32" or self.winograd

    @property
    def on_gpu(self) -> bool:
        """Whether it needs a device of its own."""
        return self.device != "cpu"

    @property
    def variant(self) -> Candidate:
        """The same on one thread: all thread counts of a variant compute the same."""
        return replace(self, threads=1)

    @property
    def plain(self) -> Candidate:
        """The same in fp32 as it is written."""
        return replace(self, precision="fp32", winograd=False)

    def compile(self, model: Model) -> Engine:
        """Compiles `model` this way.

        Raises:
            HeadraceError: It cannot be.
        """
        from headrace.engine import compile_model

        return compile_model(
            model,
            backend=self.backend,
            precision=self.precision,
            threads=self.threads,
            device=self.device,
            winograd=self.winograd,
            options=dict(self.options),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return {
            "backend": self.backend, "device": self.device, "precision": self.precision, "threads": self.threads,
            "winograd": self.winograd, "options": dict(self.options),
        }  # fmt: skip

    def __str__(self) -> str:
        device = "" if self.device == "cpu" else f" on {self.device}"
        winograd = " winograd" if self.winograd else ""
        options = "".join(f" {name}={value}" for name, value in self.options)
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.backend}{device} {self.precision}{winograd}{options}, {threads}"


def lowers(engine: Engine) -> bool:
    """Whether something in a lowered Plan rounds more than fp32 as written does, as far as its backend says."""
    details = engine.plan.details
    told = [details[name] for name in ("lowered_ops", "winograd_ops") if name in details]
    return not told or any(told)


@dataclass(frozen=True)
class Space:
    """The candidates, and why what is missing among them is.

    Attributes:
        candidates: In the order to be tried: exact ones first, one thread first.
        refused: Backend -> why it cannot run this Model here.
    """

    candidates: tuple[Candidate, ...]
    refused: dict[str, str]


def thread_counts(cores: int) -> tuple[int, ...]:
    """Powers of two, and all cores."""
    powers = itertools.takewhile(lambda count: count < cores, (1 << i for i in range(16)))
    return (*powers, cores)


def space_of(
    model: Model, cores: int, only: Sequence[str] = (), precisions: Sequence[str] = (), threads: Sequence[int] = ()
) -> Space:
    """Every candidate for a Model on this machine.

    Args:
        model: What is to run.
        cores: Threads of the largest replica.
        only: Backends to try; empty for all but the reference.
        precisions: Precisions to try; empty for all.
        threads: Threads per replica to try; empty for powers of two up to `cores`.
    """
    from headrace.engine import backends

    candidates: list[Candidate] = []
    refused: dict[str, str] = {}
    installed = backends()
    for name in only:
        if name not in installed:
            refused[name] = f"not installed; there are {', '.join(installed)}"
    for name, backend in installed.items():
        if (only and name not in only) or (not only and (name in NOT_FOR_SERVING or backend.probe().for_tests)):
            continue
        if why := _refusal(backend, model):
            refused[name] = why
            continue
        candidates += _of_backend(backend, name, model, threads or thread_counts(cores))
    if precisions:
        candidates = [one for one in candidates if one.precision in precisions]
    order = {precision: place for place, precision in enumerate(("fp32", "bf16", "int8"))}
    candidates.sort(key=lambda one: (one.threads, one.lowered, order.get(one.precision, len(order))))
    return Space(tuple(candidates), refused)


def _refusal(backend: Backend, model: Model) -> str:
    """Why a backend cannot run the Model here; empty if it can."""
    availability = backend.probe()
    if not availability.ok:
        return availability.reason
    missing = backend.unsupported(model)
    if not missing:
        return ""
    op, node, reason = missing[0]
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return f"cannot run op {op} (node {node!r}): {reason}{others}"


def _of_backend(backend: Backend, name: str, model: Model, threads: Sequence[int]) -> Iterator[Candidate]:
    able = backend.capabilities()
    choices = [[(option, value) for value in values] for option, values in able.options.items() if values]
    convolves = any(node.op_type in ("Conv", "FusedConv") for node in model.graph.graph)
    for device in backend.probe().devices:
        # A GPU is fed by one thread, whatever the machine has.
        counts = threads if device == "cpu" else (1,)
        for precision, count, options in itertools.product(able.precisions, counts, itertools.product(*choices)):
            yield Candidate(name, device, precision, count, False, tuple(options))
            if able.winograd and convolves and precision == "fp32":
                yield Candidate(name, device, precision, count, True, tuple(options))
