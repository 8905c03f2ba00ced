"""Measured results as Markdown, and its place in a page between two markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.cases import compared

UNITS = {"ms": 1e3, "us": 1e6}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def case_table(results: Sequence[dict[str, Any]], unit: str) -> str:
    """One line per case and precision of ours, with its peers' times, and notes below."""
    lines = [(result["case"], row) for result in results for row in compared(result)]
    peers = list(dict.fromkeys(name for _, row in lines for name in row["peers"]))
    cosine = any("cosine" in row for _, row in lines)
    headings = ["case", "precision", f"Headrace, {unit}", "least", "spread", *peers, "best peer / Headrace"]
    lowered = any(row["precision"] != "fp32" or row["variant"] for _, row in lines)
    headings += [*(["own fp32 / this"] if lowered else []), "max error", *(["least cosine"] if cosine else [])]
    rows = []
    for name, row in lines:
        cells = [name, f"{row['precision']} {row['variant']}".rstrip()]
        cells += [number(row[key] * UNITS[unit]) for key in ("median_s", "best_s")] + [f"{row['spread']:.0%}"]
        for peer in peers:
            cells.append(number(row["peers"][peer]["median_s"] * UNITS[unit]) if peer in row["peers"] else "")
        cells.append("" if row["ratio"] is None else f"**{row['ratio']:.2f}**")
        if lowered:
            cells.append("" if row["own_fp32"] is None else f"{row['own_fp32']:.2f}")
        cells.append(f"{row['max_abs_error']:.1e}")
        if cosine:
            cells.append(f"{row['cosine']:.5f}" if "cosine" in row else "")
        rows.append(cells)
    return "\n\n".join(filter(None, [markdown(headings, rows), notes(results)]))


def notes(results: Sequence[dict[str, Any]]) -> str:
    """What is to be known about candidates, and who did not run and why; each thing once, with its cases."""
    found: dict[str, list[str]] = {}
    for result in results:
        for row in result["rows"]:
            if row.get("about"):
                found.setdefault(f"{_who(row)}: {row['about']}", []).append(result["case"])
        for row in result["refused"]:
            found.setdefault(f"not timed: {_who(row)}: {row['reason']}", []).append(result["case"])
    everywhere = len(results)
    return "\n".join(
        f"- {note}" if len(cases) == everywhere else f"- {note} ({', '.join(cases)})" for note, cases in found.items()
    )


def _who(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["name"], row["precision"], row["variant"])))


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def write_between(page: Path, name: str, text: str) -> None:
    """Replaces what lies between the page's markers of that name; writing the same text again changes nothing.

    Raises:
        ValueError: The page does not have both markers, once each.
    """
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    before = page.read_text()
    if before.count(begin) != 1 or before.count(end) != 1:
        raise ValueError(f"{page}: got {before.count(begin)} x '{begin}' and {before.count(end)} x '{end}', expected 1")
    inside = text.strip("\n")  # not spaces: the first line may be indented code
    after = re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{inside}\n\n{end}", before, flags=re.DOTALL
    )
    if after != before:
        page.write_text(after)
