"""Time against threads, batch size and sequence length, as tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.engine import texts
from benchmarks.engine.candidates import Ours, onnx_entries, torch_reference
from benchmarks.harness.cases import OURS, Case, Entry, measure
from benchmarks.harness.plots import line_plot, link
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import case_table, markdown, number

WIDTH = 32  # tokens per text while the batch size grows


def _entries(ours: Ours, request: dict[str, Any], threads: int) -> list[Entry]:
    peers = onnx_entries(texts.minilm_path(), request, threads)
    return [*ours.entries(request), *(entry for entry in peers if entry.precision != "int8")]


def _measured(name: str, request: dict[str, Any], entries: Sequence[Entry], options: Options) -> dict[str, Any]:
    reference = torch_reference(texts.minilm_module, request)
    return measure(Case(name, reference, entries), options.effort, options.progress)


def run_curves(options: Options) -> dict[str, Any]:
    """MiniLM over batch sizes and over sequence lengths."""
    ours = Ours(str(texts.minilm_path()), options.threads)
    batches, lengths = ((1, 4), (8, 32)) if options.quick else ((1, 2, 4, 8, 16, 32), (8, 16, 32, 64, 128, 256))

    def sweep(shapes: Iterable[tuple[int, int]]) -> list[dict[str, Any]]:
        results = []
        for shape in shapes:
            request = texts.rectangle(*shape)
            entries = _entries(ours, request, options.threads)
            results.append(_measured(f"{shape[0]} x {shape[1]}", request, entries, options))
        return results

    return {
        "batch": {"at": batches, "results": sweep((batch, WIDTH) for batch in batches)},
        "length": {"at": lengths, "results": sweep((1, length) for length in lengths)},
    }


AXES = {"batch": ("texts in the batch", "text"), "length": ("tokens of the text", "token")}


def curves_table(result: dict[str, Any]) -> str:
    """Both plots and the numbers behind them."""
    parts = []
    for name, (label, unit) in AXES.items():
        parts.append(link(f"minilm-{name}", f"MiniLM: time per {unit} against {label}"))
        parts.append(case_table(result[name]["results"], "ms"))
    return "\n\n".join(parts)


def draw_curves(result: dict[str, Any]) -> None:
    """Time per text against the batch size, and time per token against the length."""
    for name, (label, unit) in AXES.items():
        sweep = result[name]
        lines = _series(sweep, lambda row, at: row["median_s"] * 1e6 / at)
        line_plot(f"minilm-{name}", label, f"us per {unit}", sweep["at"], lines)


def _series(sweep: dict[str, Any], value: Callable[[dict[str, Any], int], float]) -> dict[str, list[float | None]]:
    """Candidate -> one value per place, None where it did not run."""
    names = dict.fromkeys(_who(row) for result in sweep["results"] for row in result["rows"])
    return {
        name: [
            next((value(row, at) for row in result["rows"] if _who(row) == name), None)
            for at, result in zip(sweep["at"], sweep["results"], strict=True)
        ]
        for name in names
    }


def _who(row: dict[str, Any]) -> str:
    return f"{'Headrace' if row['name'] == OURS else row['name']} {row['precision']}"


def run_scaling(options: Options) -> dict[str, Any]:
    """MiniLM 8 x 128 on one thread, two, and so on up to all."""
    request = texts.rectangle(2 if options.quick else 8, 128)
    results = []
    threads = list(range(1, options.threads + 1)) if options.threads <= 4 else _doublings(options.threads)
    for count in threads:
        ours = Ours(str(texts.minilm_path()), count)
        name = f"{count} thread{'s' * (count > 1)}"
        results.append(_measured(name, request, _entries(ours, request, count), options))
    return {"at": threads, "results": results}


def _doublings(limit: int) -> list[int]:
    found = [1]
    while found[-1] * 2 < limit:
        found.append(found[-1] * 2)
    return [*found, limit]


def scaling_table(sweep: dict[str, Any]) -> str:
    """Times, and how many times faster than on one thread."""
    series = _series(sweep, lambda row, _: row["median_s"])
    headings = ["", *(f"{count} thread{'s' * (count > 1)}, ms" for count in sweep["at"]), "one thread / all"]
    rows = []
    for name, values in series.items():
        first, last = values[0], values[-1]
        gain = "" if first is None or last is None else f"{first / last:.2f}"
        rows.append([name, *("" if value is None else number(value * 1000) for value in values), gain])
    return markdown(headings, rows)


SECTIONS = [
    Section("scaling", "MiniLM 8 x 128 from one thread to all", run_scaling, scaling_table),
    Section("curves", "MiniLM against batch size and sequence length", run_curves, curves_table, draw_curves),
]
