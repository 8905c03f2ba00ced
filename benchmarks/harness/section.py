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
        progress: Called with a few words at every step.
    """

    threads: int
    effort: Effort
    quick: bool
    compiled: bool
    progress: Callable[[str], None]


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
    """

    name: str
    title: str
    run: Callable[[Options], Any]
    table: Callable[[Any], str]
    draw: Callable[[Any], None] = lambda _: None
    page: str = "performance.md"
