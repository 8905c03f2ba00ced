"""MiniLM, BERT-base's shape, and the Requests they are measured with."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine.shapes import bert
from benchmarks.harness.machine import ROOT
from headrace.backend import Request

RAGGED = 32


@functools.cache
def minilm() -> Any:
    """The module of examples/minilm that exports the model and tokenizes; examples are not a package."""
    spec = importlib.util.spec_from_file_location("minilm_export", ROOT / "examples" / "minilm" / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def minilm_path() -> Path:
    """The exported MiniLM-L6, exported now if it is not there."""
    path = ROOT / "build" / "models" / "minilm.onnx"
    if not path.exists():
        minilm().export(path)
    return path


@functools.cache
def minilm_module() -> Any:
    """MiniLM-L6 in torch."""
    return minilm().torch_model()


@functools.cache
def bert_module() -> Any:
    """The BERT-base shape in torch."""
    return bert.module()


def rectangle(batch: int, tokens: int, seed: int = 0) -> Request:
    """One Request of `batch` texts of equal length, of made-up token ids."""
    ids = np.random.default_rng(seed).integers(1000, bert.VOCABULARY, (batch, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def ragged(count: int = RAGGED, median: float = 28, sigma: float = 0.6, seed: int = 4) -> list[Request]:
    """Requests of one text each, with lengths as real text has them: most short, a few long."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(median), sigma, count), 3, 256).astype(int)
    return [rectangle(1, int(tokens), seed + index) for index, tokens in enumerate(lengths)]


def padded(requests: list[Request]) -> Request:
    """The Requests as one rectangle, as peers need it."""
    longest = max(request["input_ids"].shape[1] for request in requests)
    return {
        name: np.concatenate([np.pad(r[name], ((0, 0), (0, longest - r[name].shape[1]))) for r in requests])
        for name in requests[0]
    }


def sentences(count: int = 1000) -> list[str]:
    """English prose that every Python brings along: sentences of its language reference."""
    import re
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    found = [s for s in re.split(r"(?<=[.!?]) (?=[A-Z])", text) if 5 <= len(s.split()) <= 60 and "**" not in s]
    unique = list(dict.fromkeys(found))
    if len(unique) < count:
        raise RuntimeError(f"got {len(unique)} sentences from pydoc_data, expected at least {count}")
    step = len(unique) / count
    return [unique[int(index * step)] for index in range(count)]
