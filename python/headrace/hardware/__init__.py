"""What this process may really use of the machine, what that can do, and what stands in its way.

Machines lie in layers: 96 cores online, 8 in the affinity mask, 2.0 CPUs in the cgroup's quota. A thread pool sized
by the first number is an accident under the last. `probe` reads all layers and takes the smallest.

    machine = hr.hardware.probe()          # some milliseconds; never raises
    figures = hr.hardware.measure()        # a second or two, then out of the cache
    for finding in hr.hardware.findings(machine):
        print(finding.what, finding.consequence, finding.remedy)

machine.py    cores, instruction sets, caches, memory: `Hardware`
topology.py   hyperthreads, NUMA nodes, fast and slow cores
cgroup.py     the limits of a container
gpus.py       GPUs, through NVML where there is a driver
cublaslt.py   where NVIDIA's library for matrix products is
figures.py    what was measured: products, copies, fork and join
findings.py   what is wrong with a machine, and what to do about it
files.py      reading /proc and /sys, which may lack anything
"""

from headrace.hardware.figures import Figures, measure, measured
from headrace.hardware.findings import Finding, findings
from headrace.hardware.gpus import Gpu
from headrace.hardware.machine import Hardware, probe, usable_cores
from headrace.hardware.topology import CoreClass, NumaNode

__all__ = [
    "CoreClass",
    "Figures",
    "Finding",
    "Gpu",
    "Hardware",
    "NumaNode",
    "findings",
    "measure",
    "measured",
    "probe",
    "usable_cores",
]
