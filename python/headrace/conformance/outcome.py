"""What became of one thing that was checked, and the backend it was checked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headrace.backend import Backend, Capabilities, CompileOptions
from headrace.engine import Engine
from headrace.guard import compile_on

if TYPE_CHECKING:
    from headrace.model import Model

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one thing that was checked.

    Attributes:
        subject: What was checked: a node test, a case, a behaviour.
        status: "failed" stands for a wrong answer and for any failure after a model was accepted; "skipped" for what
            the backend does not declare, or refuses at load.
        reason: Why it failed or was skipped; empty if it passed.
        ops: The ops that took part, where it is about ops.
    """

    subject: str
    status: Status
    reason: str = ""
    ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """The backend under test.

    Attributes:
        backend: It.
        device: The device to run on; None for its default one.
    """

    backend: Backend
    device: str | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What it declares."""
        return self.backend.capabilities()

    def compile(self, model: Model, precision: str = "fp32", threads: int = 1) -> Engine:
        """The Engine that `headrace.Model.compile` would make of it."""
        options = CompileOptions(precision=precision, threads=threads, device=self.device)
        return Engine(model.signature, compile_on(self.backend, model, options), model.name, model.sha256, options)


@dataclass(frozen=True)
class Check:
    """One group of a certificate.

    Attributes:
        name: Its title.
        run: Yields an Outcome for everything it looks at; True as second argument asks for the short form.
        size: How many Outcomes those are, for a progress bar.
    """

    name: str
    run: Callable[[Subject, bool], Iterator[Outcome]]
    size: Callable[[bool], int]


def outcome_of(subject: str, check: Callable[[], str | None], ops: tuple[str, ...] = ()) -> Outcome:
    """Runs `check`: what it raises is a failure, what it returns the reason for which it was skipped."""
    try:
        skipped = check()
    except Exception as error:  # anything at all is a failure of this one, and of no other
        what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return Outcome(subject, "failed", " ".join(what.split())[:1000], ops)
    return Outcome(subject, "passed", "", ops) if skipped is None else Outcome(subject, "skipped", skipped, ops)
