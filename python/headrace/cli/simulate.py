"""``headrace simulate``."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from headrace.simulate import Outcome, Policy, Service, Trace

COLUMNS = ("policy", "SLO met", "p50 ms", "p99", "p99.9", "hours", "cost", "refused", "held")
POLICIES = ("headrace", "ray", "hpa")
Share = click.FloatRange(min=0, max=1, min_open=True)
Positive = click.FloatRange(min=0, min_open=True)
NotNegative = click.FloatRange(min=0)


@click.command("simulate")
@click.option(
    "--trace",
    "file",
    type=click.Path(path_type=Path),
    help="CSV: arrival_s, or start_s,rate_rps (the last lasts as long as the one before).",
)
@click.option("--make", "kind", type=click.Choice(["diurnal", "mmpp", "step", "spike"]), help="Make a trace instead.")
@click.option("--hours", default=24.0, show_default=True, type=Positive, help="Of a made trace.")
@click.option("--peak-rps", default=1000.0, show_default=True, type=Positive, help="Of a made trace, bursts left out.")
@click.option("--base-rps", default=100.0, show_default=True, type=NotNegative, help="Of a made trace: its least rate.")
@click.option("--burst", default=0.3, show_default=True, type=NotNegative, help="Bursts raise the rate by this share.")
@click.option("--burst-s", default=120.0, show_default=True, type=Positive, help="Mean length of a burst.")
@click.option("--calm-s", default=1800.0, show_default=True, type=Positive, help="Mean time between two.")
@click.option("--ramp-s", default=15.0, show_default=True, type=NotNegative, help="How long bursts and steps rise.")
@click.option("--service-ms", default=30.0, show_default=True, type=NotNegative, help="A Batch: per Request.")
@click.option("--batch-ms", default=20.0, show_default=True, type=NotNegative, help="A Batch: whatever its size.")
@click.option("--max-batch", default=16, show_default=True, type=click.IntRange(min=1), help="Requests per Batch.")
@click.option("--max-queue", default=1024, show_default=True, type=click.IntRange(min=1), help="Waiting, per replica.")
@click.option("--slo-ms", default=500.0, show_default=True, type=Positive, help="Deadline of a request.")
@click.option(
    "--cold-start-s", default=10.0, show_default=True, type=NotNegative, help="Until a replica takes requests."
)
@click.option("--min-replicas", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--max-replicas", default=5000, show_default=True, type=click.IntRange(min=1))
@click.option("--policy", "names", default="headrace,ray,hpa", show_default=True, help="Which, with commas between.")
@click.option(
    "--target-utilisation",
    default=0.85,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Of Headrace's policy.",
)
@click.option("--ray-target", default=2.0, show_default=True, type=Positive, help="Ray's target_ongoing_requests.")
@click.option("--hpa-target", default=0.7, show_default=True, type=Share, help="CPU utilisation.")
@click.option("--replica-cost", default=1.0, show_default=True, type=NotNegative, help="Price of a replica-hour.")
@click.option("--tick-s", default=1.0, show_default=True, type=Positive, help="Time between decisions.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Same seed, same numbers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, series over time included.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw replicas, p99, cost.")
@click.option("--progress/--no-progress", default=None, help="Show a bar; by default where somebody watches.")
def command(
    file: Path | None, kind: str | None, names: str, replica_cost: float, tick_s: float, seed: int, as_json: bool,
    plot: Path | None, progress: bool | None, **options: Any,
) -> None:  # fmt: skip
    """Replay a day of arrivals on simulated replicas, under Headrace's autoscaling policy and others.

    Every request and every Batch is simulated: queues, batching, admission by deadline, cold starts, and a balancer
    that picks the shorter of two queues. The service time comes from a model's cost (`cost_fixed_s` and
    `cost_per_work_s` in its statistics). Example: headrace simulate --make diurnal --peak-rps 2000 --plot day.svg
    """
    from headrace.simulate import Service, simulate

    if (file is None) == (kind is None):
        raise click.UsageError("got both --trace and --make, or neither; expected one of them")
    service = Service(
        fixed_s=options["batch_ms"] / 1e3, per_request_s=options["service_ms"] / 1e3, max_batch=options["max_batch"],
        max_queue=options["max_queue"], slo_s=options["slo_ms"] / 1e3, cold_start_s=options["cold_start_s"],
    )  # fmt: skip
    trace = _trace(file, kind, options, seed)
    policies = [_policy(name.strip(), service, options) for name in names.split(",")]
    series_s = max(tick_s, min(60.0, trace.seconds / 100))
    outcomes = []
    with _Bar(progress, len(policies)) as bar:
        for place, policy in enumerate(policies):
            show = partial(bar, place, policy.name)
            outcomes.append(
                simulate(trace, service, policy, tick_s=tick_s, seed=seed, series_s=series_s, progress=show)
            )
    if plot is not None:
        from headrace.simulate import plot as plots

        plots.save(plots.draw(outcomes, f"{trace.name}, {trace.seconds / 3600:g} h", service.slo_s), plot)
    if as_json:
        click.echo(json.dumps(_report(trace, service, outcomes, replica_cost, seed), indent=1))
    else:
        _print(trace, service, outcomes, replica_cost)


def _trace(file: Path | None, kind: str | None, options: dict[str, Any], seed: int) -> Trace:
    from headrace.simulate import KINDS, Shape, read

    if file is not None:
        return read(file)
    assert kind is not None
    names = ("base_rps", "peak_rps", "burst", "burst_s", "calm_s", "ramp_s")
    shape = Shape(seconds=3600 * options["hours"], seed=seed, **{name: options[name] for name in names})
    return KINDS[kind](shape)


def _policy(name: str, service: Service, options: dict[str, Any]) -> Policy:
    from headrace.serving.autoscaling import PolicyConfig
    from headrace.simulate import HeadracePolicy, HpaPolicy, RayPolicy

    low, high = options["min_replicas"], options["max_replicas"]
    if low > high:
        raise click.UsageError(f"got --min-replicas {low}, expected at most --max-replicas {high}")
    if name == "headrace":
        config = PolicyConfig(
            low, high, slo_s=service.slo_s / 2, target_utilisation=options["target_utilisation"],
            cold_start_s=service.cold_start_s,
        )  # fmt: skip
        return HeadracePolicy(service, config)
    if name == "ray":
        return RayPolicy(low, high, options["ray_target"])
    if name == "hpa":
        return HpaPolicy(low, high, options["hpa_target"])
    raise click.BadParameter(f"got {name!r}, expected some of {', '.join(POLICIES)}", param_hint="--policy")


class _Bar:
    """A progress bar over all policies, or nothing where nobody watches."""

    def __init__(self, wanted: bool | None, policies: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True, force_terminal=wanted or None)
        self._progress = Progress(console=console, transient=True, disable=wanted is False)
        self._task = self._progress.add_task("simulating", total=policies)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __call__(self, policies_done: int, name: str, share: float) -> None:
        self._progress.update(self._task, completed=policies_done + share, description=name)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def _report(trace: Trace, service: Service, outcomes: list[Outcome], replica_cost: float, seed: int) -> dict[str, Any]:
    import msgspec

    rows = [_without_nan(outcome.to_dict() | {"cost": outcome.replica_hours * replica_cost}) for outcome in outcomes]
    return {
        "trace": {"name": trace.name, "seconds": trace.seconds, "requests_per_s_peak": float(trace.rates.max())},
        "service": msgspec.to_builtins(service),
        "seed": seed,
        "policies": rows,
    }


def _without_nan(value: Any) -> Any:
    """None for NaN, which JSON does not have: an interval without answers has no p99."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _print(trace: Trace, service: Service, outcomes: list[Outcome], replica_cost: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{trace.name}: {trace.seconds / 3600:.3g} h, peak {trace.rates.max():.0f}/s; a replica sustains "
        f"{service.capacity_rps:.1f}/s within {service.slo_s * 1e3:g} ms",
        caption="hours: replicas paid for; refused: or expired; held: came while no replica ran",
        box=box.SIMPLE, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for outcome in outcomes:
        counts, cost = outcome.counts, outcome.replica_hours * replica_cost
        times = [f"{1e3 * outcome.quantiles_s[name]:.0f}" for name in ("p50", "p99", "p999")]
        numbers = map(str, (counts["refused"] + counts["expired"], counts["held"]))
        hours = f"{outcome.replica_hours:.1f}"
        table.add_row(outcome.policy, f"{outcome.attainment:.3%}", *times, hours, f"{cost:.2f}", *numbers)
    Console().print(table)
