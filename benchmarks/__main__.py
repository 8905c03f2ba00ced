"""Everything docs/performance.md and docs/autoscaling.md quote, measured by one command.

    .venv/bin/python -m benchmarks                      # all of it: an hour or less on two quiet cores
    .venv/bin/python -m benchmarks --only minilm,bert   # these sections
    .venv/bin/python -m benchmarks --quick              # minutes: does everything work?
    .venv/bin/python -m benchmarks --only planner --case MiniLM   # one case; the section's others stay as they are

Each section writes benchmarks/results/NAME.json and, in a run that is not quick, its tables into its page in docs/.
Run it on a quiet machine, from the repository's root.
"""

from __future__ import annotations

import argparse
import compileall
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import headrace
from benchmarks.autoscaling import days, reaction, validation
from benchmarks.engine import (
    adapters,
    convolutions,
    curves,
    kernels,
    planner,
    processes,
    replay,
    roofline,
    scheduler,
    tabular,
    transformers,
)
from benchmarks.harness import machine, tables
from benchmarks.harness.cases import Effort
from benchmarks.harness.section import Options, Section
from benchmarks.serving import embedded, grpc, ingress, on_ray
from headrace import hardware

RESULTS = machine.ROOT / "benchmarks" / "results"
DOCS = machine.ROOT / "docs"
ROUNDS = 5
ROOMS = (
    transformers,
    convolutions,
    tabular,
    kernels,
    roofline,
    processes,
    curves,
    scheduler,
    adapters,
    planner,
    replay,
    days,
    validation,
    reaction,
    embedded,
    grpc,
    ingress,
    on_ray,
)
SECTIONS: dict[str, Section] = {section.name: section for room in ROOMS for section in room.SECTIONS}


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parse(arguments)
    chosen = [SECTIONS[name] for name in args.only] or list(SECTIONS.values())
    if not args.write_docs_only:
        # As pip leaves what it installs. Of a checkout, every process may compile its modules anew.
        compileall.compile_dir(Path(headrace.__file__).parent, quiet=2)
        for number, section in enumerate(chosen, start=1):
            _measure(section, f"[{number}/{len(chosen)}] {section.name}", args)
    saved = {section.name: _saved(section) for section in chosen}
    if args.json:
        print(json.dumps({name: result for name, result in saved.items() if result is not None}, indent=2))
    if args.write_docs_only or not args.quick:
        for section in chosen:
            if (result := saved[section.name]) is not None and not result["quick"]:
                section.draw(result["result"])
                tables.write_between(DOCS / section.page, section.name, text(section, result))


def text(section: Section, result: dict[str, Any]) -> str:
    """What stands between a section's markers."""
    command = f".venv/bin/python -m benchmarks --only {section.name}{result['options']}"
    return f"{machine.sentence(result['machine'], command)}\n\n{section.table(result['result'])}"


def _measure(section: Section, label: str, args: argparse.Namespace) -> None:
    progress = progress_line(label)
    effort = Effort(rounds=2, block_s=0.02) if args.quick else Effort(rounds=args.rounds)
    options = Options(
        threads=args.threads, effort=effort, quick=args.quick, compiled=args.compiled and not args.quick,
        progress=progress, case=args.case,
    )  # fmt: skip
    start = time.monotonic()
    result = section.run(options)
    if args.case:
        result = _merged(section, result, args.quick)
    progress(f"done in {time.monotonic() - start:.0f} s\n")
    saved = {
        "section": section.name, "title": section.title, "quick": args.quick, "options": _options(args),
        "threads": args.threads, "rounds": effort.rounds,
        "machine": machine.describe(), "result": result,
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{section.name}.json").write_text(json.dumps(saved, indent=2) + "\n")
    if not args.json:
        print(f"\n{section.title}\n\n{section.table(result)}\n", flush=True)


def _merged(section: Section, found: list[dict[str, Any]], quick: bool) -> list[dict[str, Any]]:
    """What was measured now in the place of what there is of those cases, the others as they were."""
    if not found:
        raise SystemExit(f"section {section.name}: got --case for which it has no case")
    new = {row["case"]: row for row in found}
    saved = _saved(section)
    old = [] if saved is None or saved["quick"] != quick else saved["result"]
    return [new.pop(row["case"], row) for row in old] + list(new.values())


def _options(args: argparse.Namespace) -> str:
    """The options that bear on the figures and are not what they would be by themselves."""
    text = "" if args.rounds == ROUNDS else f" --rounds {args.rounds}"
    text += "" if args.threads == hardware.probe().cores else f" --threads {args.threads}"
    return text if args.compiled else f"{text} --no-compiled"


def _saved(section: Section) -> dict[str, Any] | None:
    path = RESULTS / f"{section.name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def progress_line(label: str) -> Callable[[str], None]:
    """One line on stderr that is written over, or a line per message where nobody watches."""

    def show(words: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{label}: {words}", end="", file=sys.stderr, flush=True)
        elif "timed block" not in words:
            print(f"{label}: {words}", file=sys.stderr, flush=True)

    return show


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(SECTIONS)
    parser.add_argument("--only", type=_names, default=[], metavar="NAME,...", help=f"some of: {names}")
    parser.add_argument("--case", default="", metavar="TEXT", help="of these sections, the cases named like this")
    parser.add_argument("--quick", action="store_true", help="few small cases, little time each, the docs left alone")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--threads", type=int, default=hardware.probe().cores, help="for every candidate")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved blocks per candidate")
    parser.add_argument("--no-compiled", dest="compiled", action="store_false", help="leave torch.compile out")
    parser.add_argument(
        "--write-docs-only", action="store_true", help="measure nothing; write the saved results' tables"
    )
    args = parser.parse_args(arguments)
    if args.case and not (args.only and all(SECTIONS[name].by_case for name in args.only)):
        able = ", ".join(name for name, section in SECTIONS.items() if section.by_case)
        parser.error(f"got --case, expected it with --only and some of {able}")
    return args


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    main()
