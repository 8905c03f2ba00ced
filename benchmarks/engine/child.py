"""One fresh process with one runtime: how long it takes to get ready, and how much memory it ever held.

Run by processes.py as ``python -P benchmarks/engine/child.py JOB.json``, and imports nothing but what its
runtime's users would import. The job: runtime, precision, threads, model, plan (a saved one, or null), npz (Requests,
arrays named INDEX/INPUT), calls. It prints one JSON object: import_s, ready_s, first_s, total_s, peak_mib.
"""

import json
import os
import sys
import time

STARTED = float(os.environ["STARTED"])  # the parent's clock when it started this process


def headrace(job, requests):
    """Returns ready() and, from what that returns, a call."""
    import headrace as hr

    def ready():
        if job["plan"]:
            return hr.load_plan(job["plan"])
        return hr.load(job["model"]).compile(backend="native", precision=job["precision"], threads=job["threads"])

    if len(requests) == 1:
        return ready, lambda engine: engine(requests[0])
    return ready, lambda engine: engine.run_batch(requests)


def onnxruntime(job, requests):
    """The same for ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    (request,) = requests
    providers = ["CPUExecutionProvider"]
    return (
        lambda: onnxruntime.InferenceSession(job["model"], options, providers=providers),
        lambda session: session.run(None, request),
    )


def openvino(job, requests):
    """The same for OpenVINO."""
    import openvino

    config = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[job["precision"]],
    }
    (request,) = requests
    return (
        lambda: openvino.Core().compile_model(job["model"], "CPU", config).create_infer_request(),
        lambda infer: infer.infer(request, share_inputs=True),
    )


def peak_mib():
    """The most memory this process ever held; the kernel counts it anew from exec on, unlike getrusage."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main():
    """Runs the job."""
    with open(sys.argv[1]) as file:
        job = json.load(file)
    import numpy as np

    requests = {}
    with np.load(job["npz"]) as arrays:
        for key in arrays:
            index, name = key.split("/")
            requests.setdefault(int(index), {})[name] = arrays[key]
    requests = [requests[index] for index in sorted(requests)]
    start = time.perf_counter()
    ready, call = {"headrace": headrace, "onnxruntime": onnxruntime, "openvino": openvino}[job["runtime"]](
        job, requests
    )
    imported = time.perf_counter()
    engine = ready()
    prepared = time.perf_counter()
    call(engine)
    answered = time.perf_counter()
    total_s = time.time() - STARTED
    for _ in range(job["calls"] - 1):
        call(engine)
    report = {
        "import_s": imported - start, "ready_s": prepared - imported, "first_s": answered - prepared,
        "total_s": total_s, "peak_mib": peak_mib(),
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
