"""Replicas, latency and cost over time, drawn with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.errors import ConfigError
from headrace.extras import how_to_install
from headrace.simulate.world import Outcome


def draw(outcomes: Sequence[Outcome], title: str, slo_s: float) -> Any:
    """A figure of three panels that share the time: replicas with the load, p99 per interval, and cost so far.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(f"plot: got no matplotlib, expected it: {how_to_install('plot')}") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "headrace"  # else every file gets other ids
    from matplotlib import pyplot

    drawn, (replicas, latency, cost) = pyplot.subplots(
        3, 1, figsize=(8, 7.5), sharex=True, layout="constrained", height_ratios=(2, 1.2, 1.2)
    )
    seconds = max(outcome.series["at_s"][-1] for outcome in outcomes)
    unit, divisor = ("h", 3600.0) if seconds > 7200 else ("min", 60.0) if seconds > 300 else ("s", 1.0)
    load = replicas.twinx()
    first = outcomes[0].series
    load.fill_between(np.array(first["at_s"]) / divisor, first["rate_rps"], color="0.9", step="post", zorder=0)
    load.set_ylabel("requests/s (grey)")
    load.set_ylim(bottom=0)
    replicas.set_zorder(load.get_zorder() + 1)
    replicas.patch.set_visible(False)
    for place, outcome in enumerate(outcomes):
        at = np.array(outcome.series["at_s"]) / divisor
        style = {"label": outcome.policy, "linewidth": 1.6 if place == 0 else 1.0, "color": f"C{place}"}
        replicas.plot(at, outcome.series["target"], drawstyle="steps-post", **style)
        latency.plot(at, 1e3 * np.array(outcome.series["p99_s"]), **style)
        cost.plot(at, np.cumsum(outcome.series["replica_hours"]), **style)
    latency.axhline(1e3 * slo_s, color="0.3", linewidth=0.8, linestyle="--")
    for axes, label in ((replicas, "replicas"), (latency, "p99, ms"), (cost, "replica-hours")):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    replicas.set_title(title)
    replicas.legend(loc="upper left")
    cost.set_xlabel(f"time, {unit}")
    return drawn


def save(drawn: Any, path: Path) -> None:
    """Writes a figure; the file's ending says as what (.svg, .png, .pdf).

    Raises:
        ConfigError: The file cannot be written, or matplotlib does not know its ending.
    """
    from matplotlib import pyplot

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: got {error}, expected a file to write, such as out.svg") from error
    finally:
        pyplot.close(drawn)
