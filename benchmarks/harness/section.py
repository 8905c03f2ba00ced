"""A section: a part of the benchmark that can be run alone, with its own JSON file and place in the docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.cases import Effort


@dataclass(frozen=True)
class Options:
    """What to measure with.

    Attributes:
        quick: Few and small cases: does everything work?
        compiled: torch.compile too, which compiles for up to a minute per case.
        case: Only the cases with this in their name, of a section that is measured by case; empty for all.
        progress: Called with a few words at every step.
    """

    threads: int
    effort: Effort
    quick: bool
    compiled: bool
    progress: Callable[[str], None]
    case: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the benchmark.

    Attributes:
        name: Of its JSON file and of its markers in the docs.
        title: What it measures, in a line.
        run: Measures; what it returns is plain JSON-able values.
        table: The Markdown of what `run` returned.
        draw: Draws the plots that the Markdown links to.
        page: The page in docs/ that has its markers.
        by_case: Whether its cases can be measured one at a time. Then it honours `Options.case`, and what `run` returns
            is a list of objects, each with its ``case``.
    """

    name: str
    title: str
    run: Callable[[Options], Any]
    table: Callable[[Any], str]
    draw: Callable[[Any], None] = lambda _: None
    page: str = "performance.md"
    by_case: bool = False
