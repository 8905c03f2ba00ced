"""The contract between Headrace and what runs its Models.

A Backend turns a Model into an Executable on some hardware. Write one by subclassing `Backend`, put it in
``backends/<name>/adapter.py`` or name it in the ``headrace.backends`` entry-point group, and run the conformance
suite (``tests/conformance``) on it. A Backend sees only Models in and numpy arrays out: no server, no batcher.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import PlanError

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.model import Model
    from headrace.signature import Signature

Request = Mapping[str, np.ndarray]
Result = dict[str, np.ndarray]


@dataclass(frozen=True)
class Availability:
    """Whether a Backend can be used in this process, and if not, what is missing and what to do about it."""

    ok: bool
    reason: str = ""
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What a Backend declares about itself.

    Attributes:
        precisions: Those `CompileOptions.precision` may name.
        ragged: True if Requests of different shapes run together without padding.
        batch_invariant: True if a Result's bits never depend on who shared the Batch.
        winograd: True if `CompileOptions.winograd` may be set.
        options: The names that `CompileOptions.options` may have, and the values of each, the default first. No values:
            any text.
    """

    precisions: tuple[str, ...] = ("fp32",)
    ragged: bool = False
    batch_invariant: bool = False
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

    def resolved_threads(self) -> int:
        """How many threads that is, here."""
        if self.threads is not None:
            return self.threads
        from headrace.hardware import usable_cores

        return usable_cores()


@dataclass(frozen=True)
class Plan:
    """What was chosen for a Model, and why. `str(plan)` is for people, `to_dict()` for programs."""

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
    """A Model prepared by one Backend: what an `Engine` calls."""

    plan: Plan

    @abc.abstractmethod
    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs Requests together and returns their Results in the same order.

        Requests were checked against the signature: every input is there, C-contiguous, of the right dtype and
        of a fitting shape. Shapes may differ between Requests. Strings are object arrays of ``str``.

        Raises:
            ExecutionError: The Batch failed as a whole.
        """

    def save(self, folder: Path, *, name: str, sha256: str, signature: Signature, options: CompileOptions) -> Path:
        """Writes a file of which `headrace.load_plan` makes this again; see `Engine.save`.

        Raises:
            PlanError: This Backend's Plans cannot be saved.
        """
        raise PlanError(f"backend {self.plan.backend!r} cannot save its Plans, expected backend 'native'")

    def close(self) -> None:  # noqa: B027  (most executables hold nothing to give back)
        """Gives back threads and device memory. Calls after this are errors."""


class Backend(abc.ABC):
    """One way of running Models. Instances are stateless and cheap."""

    name: str

    @abc.abstractmethod
    def probe(self) -> Availability:
        """Says whether this Backend works in this process. Never raises, never imports what is not there."""

    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this Backend can do, independent of any Model."""

    @abc.abstractmethod
    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """The nodes of `model` this Backend cannot run: ``(op type, node name, reason)``, all of them."""

    @abc.abstractmethod
    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Prepares `model`.

        Raises:
            UnsupportedOp: `unsupported(model)` is not empty.
            BackendUnavailable: The asked-for device or precision is not there.
        """
