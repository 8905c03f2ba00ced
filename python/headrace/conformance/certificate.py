"""Certificates: what a backend was checked for, on which machine, and what came of it."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import headrace
from headrace.backend import CONTRACT, Backend
from headrace.conformance.behaviour import BEHAVIOUR
from headrace.conformance.models import loaded, model_checks, of_files
from headrace.conformance.node_tests import NODE_TESTS
from headrace.conformance.outcome import Check, Outcome, Subject
from headrace.errors import BackendUnavailable


@dataclass(frozen=True)
class Certificate:
    """What came of every check of one backend.

    Attributes:
        backend: Its name.
        about: Versions, device, machine and date, for people.
        short: Whether it is the short form: every so manieth node test, few cycles.
        outcomes: Title of a group -> what came of what it looked at.
    """

    backend: str
    about: dict[str, str]
    short: bool
    outcomes: dict[str, list[Outcome]]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def failed(self) -> list[Outcome]:
        """All that failed."""
        return [outcome for group in self.outcomes.values() for outcome in group if outcome.status == "failed"]

    def counts(self) -> dict[str, dict[str, int]]:
        """Group -> how many passed, failed and were skipped, and the ops among those that passed."""
        table = {}
        for name, group in self.outcomes.items():
            found = Counter(outcome.status for outcome in group)
            table[name] = {status: found[status] for status in ("passed", "failed", "skipped")}
            table[name]["ops"] = len({op for outcome in group if outcome.status == "passed" for op in outcome.ops})
        return table

    def reasons(self) -> list[tuple[int, str, str]]:
        """Why things were skipped: ``(how many, reason, one of them)``, the most frequent first."""
        found: dict[str, list[str]] = {}
        for group in self.outcomes.values():
            for outcome in group:
                if outcome.status == "skipped":
                    found.setdefault(short_reason(outcome.reason), []).append(outcome.subject)
        return sorted(
            ((len(names), reason, names[0]) for reason, names in found.items()), key=lambda it: (-it[0], it[1])
        )

    def to_dict(self) -> dict[str, Any]:
        """The certificate as plain JSON-able values."""
        outcomes = {name: [asdict(outcome) for outcome in group] for name, group in self.outcomes.items()}
        return {
            "backend": self.backend, "ok": self.ok, "short": self.short, "about": self.about,
            "counts": self.counts(), "outcomes": outcomes,
        }  # fmt: skip


def short_reason(reason: str) -> str:
    """The first reason, without what differs from one node to the next."""
    text = " ".join(reason.split(";")[0].split())
    if "has dtype" in text:
        return f"an input or output of dtype {text.split('has dtype ')[1].split(',')[0]}"
    if "expected a dense tensor" in text:
        return "a sequence or an optional as input or output"
    return text[:100]


def certify(
    backend: Backend,
    *,
    device: str | None = None,
    short: bool = False,
    models: Sequence[Path] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Certificate:
    """Holds `backend` to its word.

    Args:
        backend: What to check.
        device: The device to run on; None for its default one.
        short: Whether to do with a part of the node tests and few cycles of the leak check: seconds, not a minute.
        models: Model files to compare with the reference backend as well.
        progress: Called with a group's title, how many of its parts are done, and how many there are.

    Raises:
        BackendUnavailable: The backend cannot be used here, or has no such device.
    """
    availability = backend.probe()
    if not availability.ok:
        raise BackendUnavailable(f"backend {backend.name!r} cannot be used here: {availability.reason}")
    subject = Subject(backend, device)
    with subject.compile(loaded("mlp")[1]) as engine:  # a device that is not there ends it here
        plan = engine.plan
    outcomes: dict[str, list[Outcome]] = {}
    for check in _checks(subject, list(models)):
        group = outcomes.setdefault(check.name, [])
        size = check.size(short)
        for outcome in check.run(subject, short):
            group.append(outcome)
            if progress is not None:
                progress(check.name, len(group), size)
    return Certificate(backend.name, _about(plan.device, plan.isa), short, outcomes)


def _checks(subject: Subject, models: list[Path]) -> list[Check]:
    checks = [BEHAVIOUR, *model_checks(subject), NODE_TESTS]
    return [*checks, of_files(models)] if models else checks


def _about(device: str, isa: str) -> dict[str, str]:
    import onnx

    from headrace.hardware import probe

    hardware = probe()
    return {
        "contract": str(CONTRACT),
        "headrace": headrace.__version__,
        "onnx": onnx.__version__,
        "python": platform.python_version(),
        "device": f"{device} ({isa})",
        "machine": f"{hardware.cpu} ({hardware.arch}), {hardware.cores} cores",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
