"""Plots for the docs, drawn the same way each time, so that the same numbers give the same file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import ROOT

IMAGES = ROOT / "docs" / "images"


def figure(width: float = 7.5, height: float = 4.5) -> tuple[Any, Any]:
    """An empty figure and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "headrace"  # else every file gets other ids
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def link(name: str, description: str) -> str:
    """The Markdown that shows a plot in the docs."""
    return f"![{description}](images/{name}.svg)"


def save(drawn: Any, name: str) -> None:
    """Writes docs/images/NAME.svg."""
    from matplotlib import pyplot

    IMAGES.mkdir(parents=True, exist_ok=True)
    path: Path = IMAGES / f"{name}.svg"
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)


def line_plot(
    name: str, x_label: str, y_label: str, at: Sequence[int], lines: Mapping[str, Sequence[float | None]]
) -> None:
    """Lines over a logarithmic x axis, ours thicker."""
    drawn, axes = figure()
    for label, values in lines.items():
        points = [(x, y) for x, y in zip(at, values, strict=True) if y is not None]
        ours = label.startswith("Headrace")
        axes.plot(*zip(*points, strict=True), marker="o", label=label, linewidth=2.5 if ours else 1.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(at), [str(x) for x in at])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    save(drawn, name)
