"""The protocol's statistics of a served model, in the fields of Triton's statistics extension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.serving.served import ServedModel


def statistics(served: ServedModel) -> dict[str, Any]:
    """One entry of ``model_stats``.

    ``queue`` counts requests by their wait, ``compute_input`` and ``compute_output`` by decoding and encoding. As in
    Triton, ``compute_infer`` counts the whole run of a Batch for every request in it, ``execution_count`` the Batches,
    and ``batch_stats`` each size of them. ``fail`` leaves out the requests that were wrong.
    """
    stats = served.batcher.stats()
    sizes: list[int] = stats["batch_sizes"]
    seconds: list[float] = stats["batch_seconds"]
    requests = sum(size * count for size, count in enumerate(sizes))
    compute_s = sum(size * total_s for size, total_s in enumerate(seconds))
    stages = served.stages
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": served.last_inference_ms,
        "inference_count": requests,
        "execution_count": sum(sizes),
        "inference_stats": {
            "success": _duration(served.succeeded.count, served.succeeded.total_s),
            "fail": _duration(served.failed.count, served.failed.total_s),
            "queue": _duration(stats["queue_delay"]["count"], stats["queue_delay"]["total_s"]),
            "compute_input": _duration(sum(stages["decode"].counts), stages["decode"].total),
            "compute_infer": _duration(requests, compute_s),
            "compute_output": _duration(sum(stages["encode"].counts), stages["encode"].total),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                # Requests are decoded and encoded one by one, whatever Batch they are in.
                "compute_input": _duration(0, 0),
                "compute_infer": _duration(count, total_s),
                "compute_output": _duration(0, 0),
            }
            for size, (count, total_s) in enumerate(zip(sizes, seconds, strict=True))
            if count
        ],
    }


def merged(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The statistics of models from those of their replicas: one entry for each version, by name and version."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in entries:
        key = (entry["name"], int(entry["version"]))
        found[key] = _sum(found[key], entry) if key in found else entry
    return [found[key] for key in sorted(found)]


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for key, value in one.items():
        if key == "batch_stats":
            sizes: dict[int, dict[str, Any]] = {}
            for batch in (*value, *other[key]):
                size = batch["batch_size"]
                sizes[size] = {**_sum(sizes[size], batch), "batch_size": size} if size in sizes else batch
            total[key] = [sizes[size] for size in sorted(sizes)]
        elif isinstance(value, dict):
            total[key] = _sum(value, other[key])
        elif isinstance(value, str):
            total[key] = value
        else:
            total[key] = max(value, other[key]) if key == "last_inference" else value + other[key]
    return total


def _duration(count: int, total_s: float) -> dict[str, int]:
    return {"count": count, "ns": round(total_s * 1e9)}
