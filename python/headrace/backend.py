"""The contract between Headrace and what runs its Models.

A Backend turns a Model into an Executable on some hardware. It is five methods: `Backend.probe`, `capabilities`,
`unsupported` and `compile`, and `Executable.run_batch`; `Executable.close` and `save` have defaults. A Batch of
Requests goes in, Results or one error of `headrace.errors` come out: no server, no batcher, no wire format.

Put an adapter into ``backends/<name>/adapter.py`` or name it in the ``headrace.backends`` entry-point group.

What a Backend declares in `Capabilities` is all that it is given: `headrace.guard` stands between it and its callers,
refuses what it did not declare, and turns whatever it raises into an error of Headrace's.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import ConfigError, PlanError
from headrace.threads import checked_threads

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.model import Model
    from headrace.signature import Signature

# The version of this contract. It rises when a Backend written to the text before could no longer be used, or would be
# used otherwise: a method is added, taken away or means something else, or a default of `Capabilities` changes. It does
# not rise for new fields of `Capabilities`, `CompileOptions`, `Availability` or `Plan` whose defaults mean what was so
# before, nor for new ops: the ops of a graph change with the ONNX opsets and with our passes, and `unsupported` answers
# for those. A Backend of another version is listed as unavailable, with both numbers.
CONTRACT = 1

Request = Mapping[str, np.ndarray]
Result = dict[str, np.ndarray]


@dataclass(frozen=True)
class Availability:
    """Whether a Backend can be used in this process, and if not, what is missing and what to do about it.

    Attributes:
        ok: Whether it can.
        reason: Why not, and what would help.
        devices: Those that `CompileOptions.device` may name, the default one first: ``"cpu"``, ``"cuda:0"``.
        missing: Kind of device (``"cuda"``) -> why it is not among them, and what would help. For messages.
        for_tests: True if it works here only to be tested: whoever does not name it does not get it.
    """

    ok: bool
    reason: str = ""
    devices: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    for_tests: bool = False


@dataclass(frozen=True)
class Capabilities:
    """What a Backend declares about itself. The defaults promise least; it is given nothing beyond what it declares.

    Attributes:
        precisions: Those `CompileOptions.precision` may name.
        ops: The ops it may be given, such as ``"Relu"``, ``"ai.onnx.ml.Scaler"`` or ``"headrace.Linear"``; None asks
            `Backend.unsupported` alone, which decides about variants of an op in any case.
        dtypes: Those that values of a Model may have (names as in `headrace.signature.TensorSpec`); None for any.
        ragged: True if one `run_batch` takes Requests of different shapes. To a Backend without it, Batches come in
            groups of equal shapes: nobody pads for it, since only the Backend knows what a Model does with padding. One
            that pads and masks by itself declares True.
        batch_invariant: True if a Result's bits never depend on who shared the Batch.
        concurrent: True if several threads may be in `run_batch` of one Executable. Others are called one by one.
        winograd: True if `CompileOptions.winograd` may be set.
        options: The names that `CompileOptions.options` may have, and the values of each, the default first. No values:
            any text.
    """

    precisions: tuple[str, ...] = ("fp32",)
    ops: frozenset[str] | None = None
    dtypes: frozenset[str] | None = None
    ragged: bool = False
    batch_invariant: bool = False
    concurrent: bool = False
    winograd: bool = False
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class CompileOptions:
    """What the caller asked for.

    Attributes:
        precision: One of those the Backend declares.
        threads: How many to run on; None for every core this process may use.
        device: One of the Backend's; None for its default.
        winograd: Whether 3x3 convolutions may run by Winograd's minimal filtering, which rounds otherwise than the sums
            as they are written.
        options: What only this Backend knows, by the names it declares in `Capabilities.options`.
    """

    precision: str = "fp32"
    threads: int | None = None
    device: str | None = None
    winograd: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what means nothing to any Backend, so that none is asked and "auto" takes none because of it.

        Raises:
            ConfigError: A value is of the wrong type, or so many threads would take the machine down.
        """
        if self.threads is not None:
            object.__setattr__(self, "threads", checked_threads(self.threads, "compile: threads"))
        kinds = (("precision", str, "text"), ("device", str | None, "text or None"), ("winograd", bool, "a bool"))
        for name, kind, expected in kinds:
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ConfigError(f"compile: {name}: got {value!r}, expected {expected}")
        for name, value in self.options.items():
            if not isinstance(value, str):
                raise ConfigError(f"compile: options[{name!r}]: got {value!r}, expected text")

    def resolved_threads(self) -> int:
        """How many threads that is, here."""
        if self.threads is not None:
            return self.threads
        from headrace.hardware import usable_cores

        return usable_cores()


@dataclass(frozen=True)
class Plan:
    """What was chosen for a Model, and why. `str(plan)` is for people, `to_dict()` for programs.

    Of the `details`, which are each backend's own, the planner reads two where they are there: ``lowered_ops``, how
    many ops run in less than fp32, and ``winograd_ops``, how many convolutions by Winograd's filtering. A Plan that was
    to have some and has none is the same as one in fp32.
    """

    backend: str
    device: str
    isa: str
    precision: str
    threads: int
    reasons: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON-able values."""
        return {
            "backend": self.backend,
            "device": self.device,
            "isa": self.isa,
            "precision": self.precision,
            "threads": self.threads,
            "reasons": list(self.reasons),
            "details": self.details,
        }

    def __str__(self) -> str:
        head = f"{self.backend} on {self.device} ({self.isa}), {self.precision}, {self.threads} threads"
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])


class Executable(abc.ABC):
    """A Model prepared by one Backend: what an `Engine` calls.

    Attributes:
        plan: What was chosen.
        device_arrays: True if inputs may also be arrays with DLPack that lie on a device. Else all are numpy arrays.
        device_results: True if outputs stay on the Plan's device, as arrays with DLPack instead of numpy's. Only where
            the caller asked for it by one of the Backend's options.
    """

    plan: Plan
    device_arrays: bool = False
    device_results: bool = False

    @abc.abstractmethod
    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs Requests together and returns their Results in the same order.

        Requests were checked against the signature: every input is there, C-contiguous, of the right dtype and
        of a fitting shape, and must not be written to. Shapes differ between Requests only where the Backend declares
        that they may. Strings are object arrays of ``str``.

        A Result holds every output of the signature with its dtype, in memory that belongs to the caller: it shares
        none with an input, another Result or a later call. bfloat16 is ``ml_dtypes.bfloat16``.

        Raises:
            ExecutionError: The Batch failed as a whole. Any other exception is passed on as one.
        """

    def save(self, folder: Path, *, name: str, sha256: str, signature: Signature, options: CompileOptions) -> Path:
        """Writes a file of which `headrace.load_plan` makes this again; see `Engine.save`.

        Raises:
            PlanError: This Backend's Plans cannot be saved.
        """
        raise PlanError(f"backend {self.plan.backend!r} cannot save its Plans, expected backend 'native'")

    def close(self) -> None:  # noqa: B027  (most executables hold nothing to give back)
        """Gives back threads and device memory. Nothing is called after it."""


class Backend(abc.ABC):
    """One way of running Models. Instances are stateless and cheap: the class is called without arguments.

    Attributes:
        name: What `compile(backend=...)` calls it: the folder's or the entry point's name.
        contract: The version of this contract that it was written to, as a literal number. See `CONTRACT`.
    """

    name: str
    contract: int

    @abc.abstractmethod
    def probe(self) -> Availability:
        """Says whether this Backend works in this process. Never raises, never imports what is not there."""

    def usable(self) -> Availability:
        """As `probe`, but that devices beside the default one may be left out: asked whenever a Model is compiled."""
        return self.probe()

    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this Backend can do, independent of any Model."""

    @abc.abstractmethod
    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """The nodes of `model` this Backend cannot run: ``(op type, node name, reason)``, all of them.

        The graph holds standard ONNX ops, ai.onnx.ml ops and the fused ops of domain "headrace". A Backend that runs
        ONNX files may take `Model.to_proto`, where the fused ops are functions of standard ones.
        """

    @abc.abstractmethod
    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Prepares `model`.

        Raises:
            UnsupportedOp: `unsupported(model)` is not empty.
            BackendUnavailable: The device or precision cannot be had after all. (Those that were not declared never
                get here.)
        """
