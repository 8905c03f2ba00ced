"""The report as one HTML page: figures, two plots as inline SVG, and why each loser lost. It loads nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.planner.report import Report, Row

_WIDTH, _HEIGHT, _MARGIN = 640, 340, 58
_COLOURS = ("#0b6e4f", "#c8553d", "#3d5a98", "#8f6c00", "#7b3f8c", "#557b83", "#9a3b5b", "#4f772d")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .5rem; text-align: right; vertical-align: top }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
tr.chosen { background: #e6f4ee; font-weight: 600 } tr.frontier { background: #f6f6ee }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto } figure { display: inline-block; margin: 0 1rem 1rem 0 }
figcaption { font-size: 13px; color: #555 } svg text { font: 11px system-ui, sans-serif; fill: #333 }
"""
_HEADINGS = (
    "candidate", "status", "replicas", "cores", "p50 ms", "p99 ms", "busy", "capacity /s", "highest rate /s",
    "fixed ms", "per request ms", "error", "why",
)  # fmt: skip


def page(report: Report) -> str:
    """The whole page."""
    title = escape(f"Plan of {report.model}")
    refused = "".join(f"<li>{escape(backend)}: {escape(why)}</li>" for backend, why in report.refused.items())
    about = (
        f"{report.machine} (fingerprint {report.fingerprint}); {report.made_at}. Measured on {report.samples}, "
        f"compared with {report.reference}. Took {report.wall_s:.1f} s; Batches ran in {report.measured_s:.1f} of them."
    )
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
            f"<pre>{escape(report.answer())}</pre>",
            _latencies(report),
            _costs(report),
            _table(report.rows),
            f"<h2>Not tried</h2><ul>{refused}</ul>" if refused else "",
            f"<p>{escape(about)}</p></body></html>",
        ]
    )


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    body = "".join(
        f'<tr class="{row.status}">{"".join(f"<td>{escape(cell)}</td>" for cell in _cells(row))}</tr>' for row in rows
    )
    return f"<h2>Candidates</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: Row) -> list[str]:
    found = row.prediction
    cells = [str(row.candidate), row.status]
    if found is None or row.cores is None:
        cells += [""] * 6
    else:
        cells += [str(found.replicas), f"{row.cores:g}", _ms(found.p50_s), _ms(found.p99_s)]
        cells += [f"{found.utilisation:.0%}", f"{found.capacity_rps:.4g}"]
    cells.append("" if row.rate_max_rps is None else f"{row.rate_max_rps:.4g}")
    cells += [_ms(row.fixed_s), _ms(row.per_request_s), "" if row.error is None else f"{row.error:.1e}", row.why]
    return cells


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


class _Axes:
    """A frame with logarithmic axes.

    Args:
        xs: Values that must fit along x; positive.
        ys: And along y.
    """

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self._x = self._span(xs)
        self._y = self._span(ys)

    @staticmethod
    def _span(values: Sequence[float]) -> tuple[float, float]:
        low, high = math.log10(min(values)), math.log10(max(values))
        room = max(0.05, 0.06 * (high - low))
        return low - room, high + room

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        across = (math.log10(x) - self._x[0]) / (self._x[1] - self._x[0])
        up = (math.log10(y) - self._y[0]) / (self._y[1] - self._y[0])
        return (
            _MARGIN + across * (_WIDTH - _MARGIN - 15),
            _HEIGHT - _MARGIN + 10 - up * (_HEIGHT - _MARGIN - 10),
        )

    def frame(self, x_label: str, y_label: str) -> str:
        """Axes with labels, and lines at round numbers."""
        left, bottom = _MARGIN, _HEIGHT - _MARGIN + 10
        parts = [f'<path d="M{left} 10V{bottom}H{_WIDTH - 15}" fill="none" stroke="#333"/>']
        for value in _round_numbers(*self._x):
            x, _ = self.at(value, 10 ** self._y[0])
            parts.append(f'<path d="M{x:.1f} 10V{bottom}" stroke="#eee"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>')
        for value in _round_numbers(*self._y):
            _, y = self.at(10 ** self._x[0], value)
            parts.append(f'<path d="M{left} {y:.1f}H{_WIDTH - 15}" stroke="#eee"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        middle = (left + _WIDTH) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>')
        turned = f"rotate(-90 14 {_HEIGHT / 2})"
        parts.append(
            f'<text x="14" y="{_HEIGHT / 2}" text-anchor="middle" transform="{turned}">{escape(y_label)}</text>'
        )
        return "".join(parts)


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two logarithms; powers of ten alone where there would be too many."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps: tuple[int, ...] = (1, 2, 5) if high - low < 3 else (1,)
    values = [step * 10.0**decade for decade in decades for step in steps]
    return [value for value in values if low <= math.log10(value) <= high]


def _figure(drawn: str, caption: str) -> str:
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">{drawn}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _latencies(report: Report) -> str:
    """p99 over the rate of one replica, a line per candidate."""
    shown = [row for row in report.rows if len(row.curve) > 1][: len(_COLOURS)]
    points = [(rate, 1e3 * p99) for row in shown for rate, _, p99 in row.curve if math.isfinite(p99)]
    if not points:
        return ""
    slo_ms = None if report.question.slo_s is None else 1e3 * report.question.slo_s
    axes = _Axes([x for x, _ in points], [y for _, y in points] + ([] if slo_ms is None else [slo_ms]))
    parts = [axes.frame("requests/s at one replica", "p99, ms")]
    if slo_ms is not None:
        (left, y), (right, _) = (axes.at(x, slo_ms) for x in (min(points)[0], max(points)[0]))
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#b00" stroke-dasharray="5 4"/>')
    for place, (row, colour) in enumerate(zip(shown, _COLOURS, strict=False)):
        line = [axes.at(rate, 1e3 * p99) for rate, _, p99 in row.curve if math.isfinite(p99)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in line)
        width = 3 if row.status == "chosen" else 1.5
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        y = 22 + 15 * place
        parts.append(f'<path d="M{_MARGIN + 10} {y - 4}h18" stroke="{colour}" stroke-width="{width}"/>')
        parts.append(f'<text x="{_MARGIN + 34}" y="{y}">{escape(str(row.candidate))}</text>')
    return _figure("".join(parts), "Expected p99 by rate; dashed: the SLO.")


def _costs(report: Report) -> str:
    """p99 over what a request costs, a dot per candidate."""
    dots = [
        (row, 1e3 * row.cores / row.prediction.rate_rps, 1e3 * row.prediction.p99_s)
        for row in report.rows
        if row.prediction is not None and row.cores is not None and math.isfinite(row.prediction.p99_s)
    ]
    if not dots:
        return ""
    axes = _Axes([x for _, x, _ in dots], [y for _, _, y in dots])
    parts = [axes.frame("cores for 1000 requests/s", "p99, ms")]
    for row, cost, p99 in dots:
        x, y = axes.at(cost, p99)
        fill = {"chosen": _COLOURS[0], "frontier": _COLOURS[2]}.get(row.status, "#999")
        anchor, shift = ("end", -8) if x > _WIDTH / 2 else ("start", 8)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}"/>')
        label = escape(str(row.candidate))
        parts.append(f'<text x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{label}</text>')
    return _figure("".join(parts), "Cost and latency at the rate: green was chosen, blue is on the frontier.")
