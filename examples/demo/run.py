"""Headrace on Ray Serve, under load that rises and falls: what `make demo` runs.

    python examples/demo/run.py                 # about three minutes, report in reports/demo/index.html
    python examples/demo/run.py --scale 0.5     # the same in half the time

Two real models are deployed, each with 1 to 2 replicas, one of them down to zero. Requests arrive as a Poisson process;
every answer is compared with the framework the model came from. The exit code is 0 only if no request was lost, every
answer was right, both models scaled up and down again, and no process was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
from models import DemoModel, build
from progress import Progress
from report import Check, ModelReport, write
from rich.console import Console
from traffic import Profile, Record, Sender, http_session
from watch import Sample, Watch, balances

from headrace.config import AutoscalingConfig, DeployConfig, DeployedModel, HttpConfig, ModelConfig, ModelSettings
from headrace.serve import Deployment, deploy

ROOT = Path(__file__).resolve().parents[2]
# A replica is planned to carry this share of what it can, so the peak below needs two of them. On a small machine the
# clients and Ray Serve's proxy share the cores with the replicas: the peak leaves them room.
TARGET_UTILISATION = 0.4
PEAK_SHARE = 0.65
# Beyond this the proxy is what is measured.
PEAK_RPS_MAX = 100.0
# The peak stays below this share of what the calibration really got through everything, where that is still enough
# to need two replicas.
PEAK_SHARE_OF_CALLERS = 0.8
PEAK_SHARE_MIN = 1.15 * TARGET_UTILISATION
LOW_SHARE = 0.12
CALIBRATE_S = 4.0
CALLERS = 4
# Per replica. Both models' two replicas must fit on one core, so that the demo runs anywhere.
CPUS_PER_REPLICA = 0.2


@dataclass
class Run:
    """What is known about one model while the demo runs.

    Attributes:
        profile: Pieces of (seconds, share of the peak at their start, share at their end).
        phases: Which seconds of the profile the report sums up.
    """

    model: DemoModel
    autoscaling: AutoscalingConfig
    profile: tuple[tuple[float, float, float], ...]
    phases: dict[str, tuple[float, float]]
    capacity_rps: float = 0.0
    through_rps: float = 0.0
    peak_rps: float = 0.0
    plan: str = ""
    warm: Record = field(default_factory=Record)
    record: Record = field(default_factory=Record)

    def peak(self, watch: Watch) -> float:
        """The rate at the peak by what a replica can do now, in requests per second."""
        self.capacity_rps = watch.capacity(self.model.name) or self.capacity_rps
        comfortable = min(PEAK_SHARE * self.capacity_rps, PEAK_SHARE_OF_CALLERS * self.through_rps)
        self.peak_rps = min(PEAK_RPS_MAX, max(comfortable, PEAK_SHARE_MIN * self.capacity_rps))
        return self.peak_rps


def plan_runs(models: list[DemoModel], scale: float) -> list[Run]:
    """The load of each model: one peak each, one after the other; tickets falls silent and comes back."""
    low = LOW_SHARE
    tickets = ((8, low, low), (12, low, 1), (22, 1, 1), (8, 1, low), (22, low, low), (32, 0, 0), (22, low, low))
    credit = ((46, low, low), (10, low, 1), (22, 1, 1), (8, 1, low), (40, low, low))
    phases = {
        "tickets": {"at low rate": (0, 8), "at the peak": (20, 42), "after it": (52, 72), "from zero": (104, 126)},
        "credit": {"at low rate": (0, 46), "at the peak": (56, 78), "after it": (88, 126)},
    }
    runs = []
    for model, profile in zip(models, (tickets, credit), strict=True):
        autoscaling = AutoscalingConfig(
            min_replicas=0 if model.name == "tickets" else 1,
            max_replicas=2,
            cpus_per_replica=CPUS_PER_REPLICA,
            target_utilisation=TARGET_UTILISATION,
            down_hold_s=6 * scale,
            idle_s=8 * scale,
        )
        pieces = tuple((seconds * scale, first, last) for seconds, first, last in profile)
        spans = {name: (first * scale, last * scale) for name, (first, last) in phases[model.name].items()}
        runs.append(Run(model, autoscaling, pieces, spans))
    return runs


def deploy_config(runs: list[Run]) -> DeployConfig:
    """Both models, on a free port of this machine; one thread per replica, so that two do the work of two."""
    return DeployConfig(
        http=HttpConfig(port=0),
        models=[
            DeployedModel(
                model=ModelConfig(name=run.model.name, files={1: run.model.file}, settings=ModelSettings(threads=1)),
                autoscaling=run.autoscaling,
            )
            for run in runs
        ],
    )


async def calibrate(runs: list[Run], watch: Watch, session: aiohttp.ClientSession, seconds: float) -> None:
    """Lets a few callers press each model in turn, and asks its replica what it found out about itself."""
    # The first model last: it may go to zero, and is not to be idle for long before its load begins.
    for run in reversed(runs):
        url = f"{watch.deployment.url}/v2/models/{run.model.name}"
        async with session.get(url) as response:
            about = (await response.json())["parameters"]
        run.plan = "{backend} on {device} ({isa}), {precision}, {threads} thread".format(**about)
        sender = Sender(session, f"{url}/infer", run.model.bodies, watch.clock_s)
        await sender.closed_loop(CALLERS, seconds)
        await asyncio.sleep(1.0)  # until the last report has arrived
        run.warm = sender.record
        await asyncio.to_thread(watch.look)
        run.capacity_rps = watch.capacity(run.model.name)
        if run.capacity_rps <= 0:
            raise RuntimeError(f"{run.model.name}: got no measured capacity after {seconds:g} s of load, expected one")
        run.through_rps = sender.record.outcomes["ok"] / seconds


async def drive(deployment: Deployment, runs: list[Run], console: Console) -> Watch:
    """Calibrates, then follows the profiles. Returns the samples, on a clock that starts with the profiles."""
    watch = Watch(deployment, perf_counter())
    async with http_session() as session:
        console.print(f"calibrating: {CALLERS} callers, {CALIBRATE_S:g} s each")
        await calibrate(runs, watch, session, CALIBRATE_S)
        for run in runs:
            console.print(
                f"  {run.model.name}: one replica can do {run.capacity_rps:.0f}/s on {run.plan}; "
                f"peak will be {run.peak(watch):.0f}/s",
                highlight=False,
                soft_wrap=True,
            )
        start_s = perf_counter()
        watch.clock_s = start_s
        watch.samples.clear()
        jobs = []
        for seed, run in enumerate(runs):
            sender = Sender(session, f"{deployment.url}/v2/models/{run.model.name}/infer", run.model.bodies, start_s)
            run.record = sender.record
            jobs.append(sender.open_loop(Profile(run.profile), partial(run.peak, watch), seed))
        seconds = max(sum(piece[0] for piece in run.profile) for run in runs)
        progress = Progress(console, watch, {run.model.name: run.record for run in runs}, seconds)
        await _beside(asyncio.gather(*jobs), watch.forever(), progress.forever())
        await asyncio.sleep(1.5)  # until the replicas' last reports have arrived
        await asyncio.to_thread(watch.look)
    return watch


async def _beside(main: Awaitable[Any], *others: Coroutine[Any, Any, None]) -> None:
    """Waits for `main` while `others` run, and fails with the first of them that fails."""
    side = [asyncio.create_task(other) for other in others]
    whole = asyncio.ensure_future(main)
    done, _ = await asyncio.wait([whole, *side], return_when=asyncio.FIRST_COMPLETED)
    for task in (*side, whole):
        if task not in done:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    for task in done:
        task.result()


def scaling_checks(run: Run, samples: list[Sample]) -> list[Check]:
    """Whether one model's replicas followed its load."""
    name, counts = run.model.name, [sample.running for sample in samples]
    most = max(counts, default=0)
    top = counts.index(most) if counts else 0
    checks = [
        Check(f"{name}: scaled up under load (most replicas: {most})", most >= 2),
        Check(f"{name}: scaled down after it", bool(counts) and min(counts[top:]) <= 1),
    ]
    if run.autoscaling.min_replicas == 0:
        zero = next((index for index in range(top, len(counts)) if counts[index] == 0), None)
        back = zero is not None and max(counts[zero:]) >= 1
        checks.append(Check(f"{name}: went to zero when idle, and came back for the next request", back))
    return checks


def traffic_checks(run: Run, samples: list[Sample]) -> list[Check]:
    """Whether every request of one model got its answer, and the right one."""
    name, record, warm = run.model.name, run.record, run.warm
    ended = sum(record.outcomes.values())
    bad = record.outcomes["lost"] + record.outcomes["failed"] + warm.outcomes["lost"] + warm.outcomes["failed"]
    counts = samples[-1].counts
    ok = record.outcomes["ok"] + warm.outcomes["ok"]
    error = max(record.error_max, warm.error_max)
    answered = f"{name}: {record.sent} requests sent, {ended} ended, none lost, none failed"
    agree = f"{name}: the servers' ledgers balance and agree: {counts['ok']} ok there, {ok} ok here"
    equal = f"{name}: answers equal the framework's (max abs error {error:.1e}, at most {run.model.error_max:g})"
    return [
        Check(answered, ended == record.sent and not bad),
        Check(agree, balances(counts) and counts["ok"] == ok),
        Check(equal, error <= run.model.error_max),
    ]


def main() -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="Headrace on Ray Serve under load that rises and falls.")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches the load profile; 1 is about two minutes")
    parser.add_argument("--report", type=Path, default=ROOT / "reports" / "demo" / "index.html")
    args = parser.parse_args()
    console, begun = Console(), time.monotonic()

    def tell(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.0f} s[/dim]  {step}", highlight=False, soft_wrap=True)

    runs = plan_runs(build(tell), args.scale)
    deployment = deploy(deploy_config(runs), progress=tell)
    try:
        tell(f"serving at {deployment.url}")
        watch = asyncio.run(drive(deployment, runs, console))
        ledgers = deployment.ledgers()
    finally:
        started = deployment.processes()
        tell(f"draining and stopping {len(started)} processes")
        left = deployment.shutdown()
    checks = [check for run in runs for check in scaling_checks(run, watch.samples[run.model.name])]
    checks += [check for run in runs for check in traffic_checks(run, watch.samples[run.model.name])]
    gone = f"everything it started is gone: {len(started)} processes, {len(left)} left"
    checks.append(Check(gone + (f" {left}" if left else ""), not left))
    reports = [
        ModelReport(
            name=run.model.name,
            what=run.model.what,
            plan=run.plan,
            peak_rps=run.peak_rps,
            capacity_rps=run.capacity_rps,
            record=run.record,
            samples=watch.samples[run.model.name],
            ledgers=ledgers[run.model.name],
            phases=run.phases,
        )
        for run in runs
    ]
    path = write(args.report, reports, checks, f"{os.cpu_count()} cores")
    for check in checks:
        mark = "[green]yes[/green]" if check.ok else "[red]NO [/red]"
        console.print(f"  {mark}  {check.text}", highlight=False, soft_wrap=True)
    tell(f"report: {path}")
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
