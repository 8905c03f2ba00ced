"""What a measured candidate would do for the question: its price, why one loses to another, and the frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.planner.cost import Cost
from headrace.planner.predict import Prediction, alone, fewest_replicas, highest_rate, simulate
from headrace.planner.report import Question, Row
from headrace.planner.space import Candidate

# Batch limits that are compared, and Batch sizes that are timed.
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# A plan must meet the SLO even if Batches take so much longer than they were measured to.
HEADROOM = 1.1
# The largest Batch limit whose p99 is within that of the best is taken: it is there for the rush that was not foreseen.
_P99_ALIKE = 1.05
# A lower precision must gain as much where cost is a matter of degree, not of whole cores.
_MIN_GAIN = 1.1


@dataclass(frozen=True)
class Offer:
    """What a candidate would do: with its best Batch limit, at the rate that was asked for or at its highest.

    Attributes:
        prediction: The figures.
        cores: What all replicas take together.
        key: Less is better.
    """

    prediction: Prediction
    cores: float
    key: tuple[float, ...]


def offer_of(
    question: Question, candidate: Candidate, cost: Cost, limits: Sequence[int], *, final: bool = False
) -> Offer | None:
    """The best of a candidate's Batch limits; None if it cannot meet the SLO.

    Args:
        question: What was asked.
        candidate: Who is asked.
        cost: What its Batches cost.
        limits: Requests per Batch at most: those to compare.
        final: Whether to simulate longer, for figures that are shown.
    """
    offers = [offer for limit in limits if (offer := _with_limit(question, candidate, cost, limit)) is not None]
    if not offers:
        return None
    best = min(offers, key=lambda offer: offer.key)
    p99_s_max = _P99_ALIKE * best.prediction.p99_s
    alike = [offer for offer in offers if offer.key[:-1] == best.key[:-1] and offer.prediction.p99_s <= p99_s_max]
    best = max(alike, key=lambda offer: offer.prediction.max_batch)
    if not final:
        return best
    found = best.prediction
    exact = simulate(cost, found.max_batch, found.replicas, found.rate_rps, question.slo_s, final=True)
    return replace(best, prediction=exact)


def _with_limit(question: Question, candidate: Candidate, cost: Cost, limit: int) -> Offer | None:
    per_replica = question.gpu_cores if candidate.on_gpu else float(candidate.threads)
    if question.rate_rps is None:
        rate = highest_rate(cost.scaled(HEADROOM), limit, question.slo_s)
        if rate == 0:
            return None
        found = simulate(cost, limit, 1, rate, question.slo_s)
        price = per_replica / rate * (_MIN_GAIN if candidate.lowered else 1.0)
        return Offer(found, per_replica, (price, found.p99_s))
    replicas = fewest_replicas(cost.scaled(HEADROOM), limit, question.rate_rps, question.slo_s)
    if replicas is None:
        return None
    found = simulate(cost, limit, replicas, question.rate_rps, question.slo_s)
    cores = replicas * per_replica
    return Offer(found, cores, (cores, float(candidate.lowered), found.p99_s))


def too_slow(question: Question, cost: Cost) -> str:
    """Why one that makes no offer makes none."""
    slo_s = question.slo_s
    if slo_s is None:
        return "no number of replicas keeps up with the rate"
    alone_s = alone(cost)
    if alone_s > slo_s:
        return f"too slow: p99 of a request alone is {1e3 * alone_s:.3g} ms, the SLO {1e3 * slo_s:g} ms"
    return f"no number of replicas keeps p99 within {1e3 * slo_s:g} ms at the rate with {HEADROOM - 1:.0%} to spare"


def worse(
    question: Question, candidate: Candidate, mine: Offer, best: Candidate, theirs: Offer, off: float = 0.0
) -> str:
    """Why one that could serve is not the one.

    Args:
        question: What was asked.
        candidate: The one that loses.
        mine: Its offer.
        best: The one it loses to.
        theirs: And that one's offer.
        off: By how much its measurement may be off, where that is not enough for it.
    """
    even = f", even if it were {off:.0%} faster than measured" if off > 0 else ""
    if question.rate_rps is None:
        share = mine.cores / mine.prediction.rate_rps / (theirs.cores / theirs.prediction.rate_rps)
        if share < 1:
            return f"{1 / share:.2f} times as cheap as {best}, too little for its lower precision{even}"
        return f"slower: {share:.2f} times the cost per request of {best}{even}"
    if mine.cores > theirs.cores:
        return f"slower: takes {mine.cores:g} cores, {best} takes {theirs.cores:g}{even}"
    p99 = f"p99 {1e3 * mine.prediction.p99_s:.3g} ms against {1e3 * theirs.prediction.p99_s:.3g} ms"
    if candidate.lowered and not best.lowered:
        return f"its lower precision saves no core ({p99})"
    return f"slower: as many cores as {best}, and {p99}{even}"


def mark_frontier(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, best first, with those marked that no other is better than in price, p99 and error at once."""

    def figures(row: Row) -> tuple[float, float, float]:
        found = row.prediction
        if found is None or row.cores is None:
            return math.inf, math.inf, math.inf
        return row.cores / found.rate_rps, found.p99_s, math.inf if row.error is None else row.error

    def dominated(row: Row) -> bool:
        mine = figures(row)
        return math.isinf(mine[0]) or any(
            all(a <= b for a, b in zip(figures(other), mine, strict=True)) and figures(other) != mine for other in rows
        )

    marked = [row if row.status == "chosen" or dominated(row) else replace(row, status="frontier") for row in rows]
    places = {"chosen": 0, "frontier": 1, "lost": 2}
    return tuple(sorted(marked, key=lambda row: (places[row.status], *figures(row))))
