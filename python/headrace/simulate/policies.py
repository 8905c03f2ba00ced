"""The policies that are compared: Headrace's own, Ray Serve's default, and one like Kubernetes' autoscaler."""

from __future__ import annotations

import math
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

from headrace.errors import ConfigError
from headrace.extras import how_to_install
from headrace.serving.autoscaling import Observation, PolicyConfig, PolicyState, ReplicaReport, decide
from headrace.serving.load import RATE_TAU_S
from headrace.simulate.world import Sample, Service


class HeadracePolicy:
    """`headrace.serving.autoscaling.decide`, given what replicas would have reported.

    Every replica's report is the mean over replicas, but for the delay, where it is what one in ten exceeds: the policy
    sums and sorts, so that comes to the same.

    Args:
        service: The replicas.
        config: What the policy aims for; its bounds included.
        report_s: Age of the reports when a decision is made.
        name: For tables and plots.
    """

    def __init__(self, service: Service, config: PolicyConfig, report_s: float = 0.5, name: str = "Headrace") -> None:
        self.name = name
        self.config = config
        self.bounds = (config.min_replicas, config.max_replicas)
        self.reasons: Counter[str] = Counter()
        self._capacity_rps = service.capacity_rps
        self._state = PolicyState()
        self._report_s = report_s
        self._offered_rps = 0.0
        self._arrived_s = -math.inf
        self._reports: deque[tuple[float, ReplicaReport]] = deque()

    def __call__(self, sample: Sample) -> int:
        """The target from now on."""
        seen = self._report(sample)
        obs = Observation(
            now_s=sample.now_s,
            running=sample.running,
            target=sample.target,
            reports=(seen,) * sample.running if seen is not None else (),
            ongoing=sample.ongoing if sample.running == 0 else 0.0,
        )
        decision, self._state = decide(self.config, self._state, obs)
        if decision.replicas != sample.target:
            self.reasons[decision.reason] += 1
        return decision.replicas

    def _report(self, sample: Sample) -> ReplicaReport | None:
        """The last report that has arrived. Reckons as `headrace.serving.load.LoadMeter` does."""
        share = -math.expm1(-sample.tick_s / RATE_TAU_S)
        self._offered_rps += share * (sample.arrived / sample.tick_s - self._offered_rps)
        if sample.arrived:
            self._arrived_s = sample.now_s
        idle = sample.ongoing == 0 and sample.now_s - self._arrived_s > RATE_TAU_S
        if sample.running:
            count = sample.running
            report = ReplicaReport(
                0.0 if idle else self._offered_rps / count,
                self._capacity_rps,
                0.0 if idle else sample.queue_delay_s,
                sample.ongoing / count,
            )
            self._reports.append((sample.now_s, report))
        while len(self._reports) > 1 and self._reports[1][0] <= sample.now_s - self._report_s + 1e-9:
            self._reports.popleft()
        if not self._reports or sample.now_s - self._reports[0][0] > 5.0:
            return None
        return self._reports[0][1]


class RayPolicy:
    """Ray Serve's default policy: the very functions of the installed Ray, called as its controller calls them.

    Args:
        min_replicas: Lower bound.
        max_replicas: Upper bound.
        target_ongoing: Ongoing requests per replica; Ray's default is 2.
        upscale_delay_s: More must have been wanted for so long.
        downscale_delay_s: Fewer must have been wanted for so long.
        look_back_s: Window over which ongoing requests are averaged.
        push_s: How often the counts reach the controller (RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S).
        name: For tables and plots.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(
        self,
        min_replicas: int,
        max_replicas: int,
        target_ongoing: float = 2.0,
        upscale_delay_s: float = 30.0,
        downscale_delay_s: float = 600.0,
        look_back_s: float = 30.0,
        push_s: float = 10.0,
        name: str = "Ray Serve",
    ) -> None:
        try:
            from ray.serve import autoscaling_policy
            from ray.serve.config import AutoscalingConfig
        except ImportError as error:
            raise ConfigError(
                f"policy ray: got {error}, expected Ray to be installed: {how_to_install('ray')}"
            ) from error
        self.name = name
        self._ray = autoscaling_policy
        self._config = AutoscalingConfig(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            target_ongoing_requests=target_ongoing,
            upscale_delay_s=upscale_delay_s,
            downscale_delay_s=downscale_delay_s,
            look_back_period_s=max(look_back_s, 10.001),  # Ray wants more than its metrics_interval_s, which it ignores
        )
        self.bounds = (min_replicas, max_replicas)
        self._look_back_s, self._push_s = look_back_s, push_s
        self._recent: deque[tuple[float, float]] = deque()
        self._pushed_s = -math.inf
        self._mean = 0.0
        self._state: dict[str, Any] = {}

    def __call__(self, sample: Sample) -> int:
        """The target from now on."""
        self._recent.append((sample.now_s, sample.ongoing))
        while self._recent[0][0] <= sample.now_s - self._look_back_s:
            self._recent.popleft()
        # With no replica a caller reports at once; else at its interval.
        waking = sample.running == 0 and sample.ongoing > 0
        if waking or sample.now_s - self._pushed_s >= self._push_s - 1e-9:
            self._pushed_s = sample.now_s
            self._mean = sum(ongoing for _, ongoing in self._recent) / len(self._recent)
        ctx: Any = SimpleNamespace(
            current_num_replicas=sample.running,
            target_num_replicas=sample.target,
            total_num_requests=self._mean,
            config=self._config,
        )
        wanted = self._decide(ctx, sample.now_s)
        return max(self.bounds[0], min(self.bounds[1], wanted))

    def _decide(self, ctx: Any, now_s: float) -> int:
        """As `_apply_autoscaling_config` does, which cannot be told the time."""
        ray = self._ray
        cold = ray._get_cold_start_scale_up_replicas(ctx)
        if cold is not None:
            return int(cold)
        desired, _ = ray._core_replica_queue_length_policy(ctx)
        scaled = ray._apply_scaling_factors(desired, ctx.current_num_replicas, ctx.config)
        if ctx.current_num_replicas == 0 and scaled > 0:
            return int(scaled)
        decided, self._state = ray._apply_delay_logic(
            max(0, scaled), ctx.target_num_replicas, ctx.config, self._state, _now=now_s
        )
        return int(decided)  # a number of replicas already: the scaling factors round up


class HpaPolicy:
    """Like Kubernetes' horizontal pod autoscaler on CPU utilisation.

    Every `sync_s`: desired = ceil(replicas * utilisation / target), unless the ratio is within the tolerance; pods that
    are not ready count as idle on the way up; at most twice as many, or four more, per 15 s; on the way down the
    largest wish of the last `down_s` counts. Utilisation is the share of a metrics window (15 s, the metrics server's)
    in which the Engine ran, known when the window is over. It never goes to zero.

    Source: kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale, defaults of autoscaling/v2.

    Args:
        min_replicas: Lower bound; taken as 1 where it is 0.
        max_replicas: Upper bound.
        target: Utilisation to keep.
        sync_s: Time between two decisions.
        window_s: Length of a metrics window.
        down_s: Stabilisation window on the way down.
        tolerance: Ratios this close to 1 change nothing.
        name: For tables and plots.
    """

    def __init__(
        self,
        min_replicas: int,
        max_replicas: int,
        target: float = 0.7,
        sync_s: float = 15.0,
        window_s: float = 15.0,
        down_s: float = 300.0,
        tolerance: float = 0.1,
        name: str = "HPA-like",
    ) -> None:
        if not 0 < target <= 1:
            raise ConfigError(f"policy hpa: got target={target:g}, expected 0 < it <= 1")
        self.name = name
        self.bounds = (max(1, min_replicas), max_replicas)
        self._target, self._sync_s, self._window_s = target, sync_s, window_s
        self._down_s, self._tolerance = down_s, tolerance
        self._busy_s = self._ready_s = 0.0
        self._window_from_s = self._synced_s = 0.0
        self._utilisation: float | None = None
        self._wishes: deque[tuple[float, int]] = deque()

    def __call__(self, sample: Sample) -> int:
        """The target from now on."""
        self._busy_s += sample.busy_s
        self._ready_s += sample.running * sample.tick_s
        if sample.now_s - self._window_from_s >= self._window_s - 1e-9:
            self._utilisation = min(1.0, self._busy_s / self._ready_s) if self._ready_s else None
            self._busy_s = self._ready_s = 0.0
            self._window_from_s = sample.now_s
        if sample.now_s - self._synced_s < self._sync_s - 1e-9:
            return max(self.bounds[0], sample.target)
        self._synced_s = sample.now_s
        return self._sync(sample)

    def _sync(self, sample: Sample) -> int:
        low, high = self.bounds
        wish = max(low, min(high, self._wish(sample)))
        self._wishes.append((sample.now_s, wish))
        while self._wishes[0][0] < sample.now_s - self._down_s:
            self._wishes.popleft()
        if wish >= sample.target:
            return min(wish, max(2 * sample.target, sample.target + 4))
        return min(max(sample.target, low), max(wish for _, wish in self._wishes))

    def _wish(self, sample: Sample) -> int:
        if self._utilisation is None or sample.running == 0:
            return sample.target
        ratio = self._utilisation / self._target
        if abs(ratio - 1) <= self._tolerance:
            return sample.target
        starting = sample.target - sample.running
        if ratio < 1 or starting <= 0:
            return math.ceil(ratio * sample.running - 1e-9)
        damped = ratio * sample.running / sample.target
        if damped <= 1 + self._tolerance:
            return sample.target
        return math.ceil(damped * sample.target - 1e-9)
