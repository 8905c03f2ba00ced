"""What the demo shows while it runs: a live table on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from traffic import Record
from watch import Watch, now

LINE_EVERY_S = 5.0
TABLE_EVERY_S = 0.5


class Progress:
    """Follows the records and samples of a run.

    Args:
        console: Where to write.
        watch: Samples of the deployment.
        records: What happened to the requests, by model.
        seconds: How long the run lasts.
    """

    def __init__(self, console: Console, watch: Watch, records: Mapping[str, Record], seconds: float) -> None:
        self._console = console
        self._watch = watch
        self._records = records
        self._seconds = seconds
        self._start_s = perf_counter()

    async def forever(self) -> None:
        """Shows progress until cancelled."""
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(LINE_EVERY_S)
                for line in self._lines():
                    self._console.print(line, highlight=False, soft_wrap=True)
        with Live(self._table(), console=self._console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(TABLE_EVERY_S)
                live.update(self._table(), refresh=True)

    def _lines(self) -> list[str]:
        elapsed_s = perf_counter() - self._start_s
        lines = []
        for name, record in self._records.items():
            at = now(record, self._watch.samples.get(name, []), perf_counter() - self._watch.clock_s)
            lines.append(
                f"{elapsed_s:5.0f} s  {name:<8} {_replicas(at.running, at.starting):<12} "
                f"offered {at.offered_rps:5.1f}/s  served {at.served_rps:5.1f}/s  "
                f"p50 {at.p50_ms:6.1f} ms  p99 {at.p99_ms:6.1f} ms  batch {at.batch:4.1f}  {_ended(record)}"
            )
        return lines

    def _table(self) -> Group:
        elapsed_s = min(self._seconds, perf_counter() - self._start_s)
        table = Table(box=None, pad_edge=False)
        columns = ("model", "replicas", "offered/s", "served/s", "p50 ms", "p99 ms", "batch")
        for column in columns:
            table.add_column(column, justify="left" if column in ("model", "replicas") else "right", min_width=8)
        table.add_column("requests")
        for name, record in self._records.items():
            at = now(record, self._watch.samples.get(name, []), perf_counter() - self._watch.clock_s)
            figures = (at.offered_rps, at.served_rps, at.p50_ms, at.p99_ms, at.batch)
            table.add_row(
                name, _replicas(at.running, at.starting), *(f"{figure:.1f}" for figure in figures), _ended(record)
            )
        bar = ProgressBar(total=self._seconds, completed=elapsed_s, width=60)
        return Group(table, bar, Text(f"{elapsed_s:.0f} of about {self._seconds:.0f} s", style="dim"))


def _replicas(running: int, starting: int) -> str:
    return "▮" * running + "▯" * starting + f" {running}" + (f"+{starting}" if starting else "")


def _ended(record: Record) -> str:
    ended = " ".join(f"{count} {outcome}" for outcome, count in sorted(record.outcomes.items()))
    return f"sent {record.sent}: {ended or 'none answered yet'}"
