"""A day of load under each policy: Headrace's, Ray Serve's default, and one like Kubernetes' autoscaler.

Every policy runs over the same replicas with the same Batcher, balancer, arrivals and cold start; only the decisions
differ. Each gets its best target: the one that met the SLO for at least `MET` of the requests with the fewest
replica-hours, over the targets in `CANDIDATES`, on the same day at a twentieth of the size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import plots
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown
from headrace.serving.autoscaling import PolicyConfig
from headrace.simulate import HeadracePolicy, HpaPolicy, Outcome, Policy, RayPolicy, Service, Shape, diurnal, simulate
from headrace.simulate.plot import draw

# A model that takes 160 ms alone; four at a time, a replica sustains 7.7 requests per second within a second.
SERVICE = Service(0.04, 0.12, max_batch=8, slo_s=1.0, cold_start_s=10.0)
# What a burst at noon would need at a utilisation of 0.85. The seed's bursts miss noon: some 1000 is what it comes to.
REPLICAS_AT_NOON = 1200
REPLICAS_MAX = 3000
MET = 0.999
SMALL = 0.05
BURSTS = (0.0, 0.5, 1.0)
BURST = 0.5  # of the day at full size


def shape(burst: float, size: float, hours: float) -> Shape:
    """A day from 15 % of the peak at night to the peak at noon, with a burst of three minutes every half an hour."""
    peak = size * REPLICAS_AT_NOON * 0.85 * SERVICE.capacity_rps / (1 + burst)
    return Shape(3600 * hours, 0.15 * peak, peak, burst, burst_s=180, calm_s=1800, ramp_s=15, seed=1)


def headrace(target: float) -> Policy:
    config = PolicyConfig(
        1, REPLICAS_MAX, slo_s=SERVICE.slo_s / 2, target_utilisation=target, cold_start_s=SERVICE.cold_start_s
    )
    return HeadracePolicy(SERVICE, config)


def ray(target: float) -> Policy:
    return RayPolicy(1, REPLICAS_MAX, target, name="Ray, its delays")


def ray_quick(target: float) -> Policy:
    return RayPolicy(1, REPLICAS_MAX, target, 0.0, 60.0, 10.0, 1.0, name="Ray, short delays")


def hpa(target: float) -> Policy:
    return HpaPolicy(1, REPLICAS_MAX, target)


def hpa_hot(target: float) -> Policy:
    return HpaPolicy(1, REPLICAS_MAX, target, name="HPA-like, over 80 %")


CANDIDATES: dict[str, tuple[Callable[[float], Policy], tuple[float, ...]]] = {
    "headrace": (headrace, (0.85, 0.9, 0.95)),
    "ray": (ray, (0.6, 0.8, 0.9, 1.0, 1.1)),
    "ray_quick": (ray_quick, (0.6, 0.8, 0.9, 1.0, 1.1)),
    "hpa": (hpa, (0.5, 0.6, 0.7, 0.8)),
    # From 0.91 on it would never scale up: full utilisation is then within the tolerance.
    "hpa_hot": (hpa_hot, (0.85, 0.9)),
}


def best_targets(burst: float, hours: float, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Each policy's best target, with its outcome there; without one that met the SLO, the one that came closest."""
    trace, found = diurnal(shape(burst, SMALL, hours)), {}
    for name, (make, targets) in CANDIDATES.items():
        rows = []
        for target in targets:
            progress(f"bursts of {burst:.0%}: {name} at {target:g}")
            rows.append(row(simulate(trace, SERVICE, make(target)), target))
        met = [one for one in rows if one["attainment"] >= MET]
        found[name] = min(met, key=_hours) if met else max(rows, key=lambda one: float(one["attainment"]))
    return found


def _hours(one: dict[str, Any]) -> float:
    return float(one["replica_hours"])


def row(outcome: Outcome, target: float, seconds: float = 0.0) -> dict[str, Any]:
    """What the tables need of an outcome."""
    found = outcome.to_dict()
    del found["series"]
    return found | {"target": target, "replicas_max": max(outcome.series["target"]), "took_s": seconds}


def measure_bursts(options: Options) -> list[dict[str, Any]]:
    """Every policy at its best target, by the height of the bursts, at a twentieth of the size."""
    hours, bursts = (2.0, (0.5,)) if options.quick else (24.0, BURSTS)
    return [{"burst": burst, "rows": best_targets(burst, hours, options.progress)} for burst in bursts]


def bursts_table(results: list[dict[str, Any]]) -> str:
    """One line per height and policy."""
    lines = []
    for result in results:
        ours = _hours(result["rows"]["headrace"])
        for one in result["rows"].values():
            lines.append([f"{result['burst']:.0%}", *_cells(one, ours)])
    return markdown(["bursts", *_HEADINGS], lines)


def measure_day(options: Options) -> dict[str, Any]:
    """The day at full size, with the better of Ray's two; the outcomes' series go into the plot."""
    hours, size = (1.0, SMALL) if options.quick else (24.0, 1.0)
    found = best_targets(BURST, hours, options.progress)
    del found[max(("ray", "ray_quick"), key=lambda name: _hours(found[name]))]
    targets = {name: one["target"] for name, one in found.items()}
    trace, rows, outcomes = diurnal(shape(BURST, size, hours)), {}, []
    for name, target in targets.items():
        options.progress(f"full size: {name} at {target:g}")
        start = time.perf_counter()
        outcome = simulate(trace, SERVICE, CANDIDATES[name][0](target), series_s=300)
        rows[name] = row(outcome, target, time.perf_counter() - start)
        outcomes.append(outcome)
    return {"rows": rows, "series": [outcome.to_dict() for outcome in outcomes]}


def day_table(result: dict[str, Any]) -> str:
    """One line per policy, and the plot."""
    rows = result["rows"]
    ours = _hours(rows["headrace"])
    lines = [[*_cells(one, ours), f"{one['arrived'] / 1e6:.0f} M in {one['took_s']:.0f} s"] for one in rows.values()]
    return markdown([*_HEADINGS, "simulated"], lines) + "\n\n" + plots.link("autoscaling-day", "a day of load")


def draw_day(result: dict[str, Any]) -> None:
    """docs/images/autoscaling-day.svg."""
    outcomes = [
        Outcome(one["policy"], {}, one["replica_hours"], {}, one["series_s"], one["series"]) for one in result["series"]
    ]
    plots.save(draw(outcomes, "", SERVICE.slo_s), "autoscaling-day")


_HEADINGS = (
    "policy", "best target", "SLO met", "p50 ms", "p99 ms", "p99.9 ms", "replica-hours", "Headrace / this",
    "most replicas",
    "refused", "changes",
)  # fmt: skip


def _cells(one: dict[str, Any], ours: float) -> list[str]:
    times = [f"{1e3 * one[name]:.0f}" for name in ("p50_s", "p99_s", "p999_s")]
    return [
        one["policy"], f"{one['target']:g}", f"{one['attainment']:.3%}", *times, f"{one['replica_hours']:.0f}",
        f"**{ours / one['replica_hours']:.2f}**", f"{one['replicas_max']:.0f}", str(one["refused"] + one["expired"]),
        str(one["changes"]),
    ]  # fmt: skip


SECTIONS = [
    Section(
        "autoscaling-bursts", "A day with bursts of several heights, 50 replicas at peak", measure_bursts, bursts_table,
        page="autoscaling.md",
    ),
    Section(
        "autoscaling-day", "A day with bursts, 1000 replicas at peak", measure_day, day_table, draw_day,
        page="autoscaling.md",
    ),
]  # fmt: skip
