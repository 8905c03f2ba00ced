"""Autoscaling policies on simulated replicas: what they cost, and whom they keep waiting.

trace = diurnal(Shape(peak_rps=20_000, base_rps=2_000))
service = Service(fixed_s=0.02, per_request_s=0.03, max_batch=16, slo_s=0.5, cold_start_s=10)
policy = HeadracePolicy(service, PolicyConfig(max_replicas=2000, slo_s=0.25))
outcome = simulate(trace, service, policy)
outcome.attainment, outcome.replica_hours, outcome.quantiles_s["p99"]

traces.py     arrivals, read from CSV or made
policies.py   Headrace's policy, Ray Serve's, and one like Kubernetes' autoscaler
world.py      a policy, a trace and replicas, tick by tick; the replicas themselves are C++ (csrc/simulate)
plot.py       replicas, latency and cost over time
"""

from headrace.simulate.policies import HeadracePolicy, HpaPolicy, RayPolicy
from headrace.simulate.traces import KINDS, Shape, Trace, diurnal, mmpp, read, spike, step
from headrace.simulate.world import Outcome, Policy, Sample, Service, simulate

__all__ = [
    "KINDS",
    "HeadracePolicy",
    "HpaPolicy",
    "Outcome",
    "Policy",
    "RayPolicy",
    "Sample",
    "Service",
    "Shape",
    "Trace",
    "diurnal",
    "mmpp",
    "read",
    "simulate",
    "spike",
    "step",
]
