"""A case: the same work done by several candidates, whose answers are checked before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.measure import Candidate, interleave

OURS = "headrace"

# How far a candidate's answer may lie from the fp32 reference, as a share of the reference's largest magnitude. Beyond
# it the candidate computes something else, and its speed means nothing. The limits catch wrong answers, not poor ones
# (the error has its own column): random networks magnify rounding, and torch's bf16 MobileNetV2 lies 14 % off.
LIMITS = {"fp32": 1e-3, "bf16": 0.25, "int8": 0.4}


@dataclass(frozen=True)
class Entry:
    """One candidate of a case.

    Attributes:
        name: "headrace" or the peer's.
        precision: Entries are compared with those of the same precision.
        prepare: Makes the call that is timed; raises where the candidate cannot do this work.
        read: Turns what the call returned into the array that is compared with the reference.
        variant: Which of several ways of one candidate this is, such as "winograd".
        about: Says, once prepared, what the reader of its row should know, such as how much really runs in bf16.
    """

    name: str
    precision: str
    prepare: Callable[[], Callable[[], Any]]
    read: Callable[[Any], np.ndarray]
    variant: str = ""
    about: Callable[[], str] = lambda: ""

    @property
    def key(self) -> dict[str, str]:
        """What tells this entry from the others of its case."""
        return {"name": self.name, "precision": self.precision, "variant": self.variant}


@dataclass(frozen=True)
class Case:
    """The same work for every entry.

    Attributes:
        reference: The answer in fp32, from the library the model comes from.
        cosine: True if rows are embeddings, for which the least cosine with the reference is reported too.
    """

    name: str
    reference: np.ndarray
    entries: Sequence[Entry]
    cosine: bool = False


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    rounds: int = 5
    block_s: float = 0.25


def measure(case: Case, effort: Effort, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Checks every entry's answer, then times those that are right, in interleaved blocks.

    Args:
        case: What to measure.
        effort: Rounds and seconds per block.
        progress: Called with a few words at every step.

    Returns:
        ``case``, ``rows`` (name, precision, variant, about, times in seconds, max_abs_error, and cosine where asked
        for) and ``refused`` (name, precision, variant, reason).
    """
    refused: list[dict[str, Any]] = []
    checked: list[dict[str, Any]] = []
    runs: list[Candidate] = []
    for entry in case.entries:
        progress(f"{case.name}: preparing {entry.name} {entry.precision} {entry.variant}".rstrip())
        try:
            run = entry.prepare()
            errors = compare(entry.read(run()), case.reference, LIMITS[entry.precision], case.cosine)
        except Exception as error:  # whatever stops a candidate is what its row says
            reason = (str(error).splitlines() or [""])[0]
            refused.append(entry.key | {"reason": f"{type(error).__name__}: {reason}"})
            continue
        runs.append(Candidate(entry.name, run))
        checked.append(entry.key | errors | {"about": entry.about()})
    done = iter(range(1, effort.rounds * len(runs) + 1))
    timings = interleave(
        runs,
        rounds=effort.rounds,
        block_s=effort.block_s,
        progress=lambda: progress(f"{case.name}: timed block {next(done)} of {effort.rounds * len(runs)}"),
    )
    rows = [row | timing.to_dict() for row, timing in zip(checked, timings, strict=True)]
    return {"case": case.name, "rows": rows, "refused": refused}


class WrongAnswer(Exception):
    """A candidate's answer is not the reference's."""


def compare(got: np.ndarray, reference: np.ndarray, limit: float, cosine: bool) -> dict[str, float]:
    """The largest absolute error, and the least cosine over rows if asked for.

    Raises:
        WrongAnswer: Another shape, not finite, or further off than `limit` times the largest reference.
    """
    got = np.asarray(got, dtype=np.float64)
    if got.shape != reference.shape:
        raise WrongAnswer(f"got shape {got.shape}, expected {reference.shape}")
    error = float(np.abs(got - reference).max())
    scale = float(np.abs(reference).max())
    if not error <= limit * scale:  # true for NaN as well
        raise WrongAnswer(f"got an error of {error:.2g}, expected at most {limit:g} of the largest value, {scale:.2g}")
    found = {"max_abs_error": error}
    if cosine:
        found["cosine"] = least_cosine(got, reference)
    return found


def least_cosine(got: np.ndarray, reference: np.ndarray) -> float:
    """The smallest cosine between rows of the two."""
    a, b = (np.asarray(x, dtype=np.float64).reshape(-1, x.shape[-1]) for x in (got, reference))
    return float(np.min((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def compared(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Our rows of one measured case, each with its peers of the same precision.

    Returns:
        Our rows with ``peers`` (name -> row), ``best_peer`` and ``ratio`` (its median over ours: above 1 is faster than
        the peer; both None without a peer), and ``own_fp32`` (our plain fp32 median over this row's, or None).
    """
    ours = [row for row in result["rows"] if row["name"] == OURS]
    plain = next((row["median_s"] for row in ours if row["precision"] == "fp32" and not row["variant"]), None)
    found = []
    for row in ours:
        peers = {
            f"{peer['name']} {peer['variant']}".rstrip(): peer
            for peer in result["rows"]
            if peer["name"] != OURS and peer["precision"] == row["precision"]
        }
        best = min(peers, key=lambda name: peers[name]["median_s"], default=None)
        found.append(
            row
            | {
                "peers": peers,
                "best_peer": best,
                "ratio": None if best is None else peers[best]["median_s"] / row["median_s"],
                "own_fp32": None if plain is None else plain / row["median_s"],
            }
        )
    return found
