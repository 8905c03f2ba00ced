"""Who else runs LightGBM and XGBoost models: the libraries themselves, ONNX Runtime, and the tree compilers.

treelite, tl2cgen and lleaves come from benchmarks/requirements.lock; without them their rows say so. What tl2cgen and
lleaves compile, for half a minute each, is kept under build/models/trees.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.cases import Entry
from benchmarks.harness.machine import ROOT
from headrace.peers import PEERS

COMPILED = ROOT / "build" / "models" / "trees"
Predict = Callable[[], Any]


def lightgbm_entries(booster: Any, x: np.ndarray, threads: int) -> list[Entry]:
    """LightGBM, ONNX Runtime, treelite's interpreter, tl2cgen and lleaves."""

    def own() -> Predict:
        return lambda: booster.predict(x, num_threads=threads)

    def onnx() -> Predict:
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [("x", FloatTensorType([None, x.shape[1]]))]
        return _onnxruntime(convert_lightgbm(booster, initial_types=types, zipmap=False), x, threads)

    def treelite() -> Any:
        import treelite

        return treelite.frontend.load_lightgbm_model(str(_text(booster)))

    def lleaves() -> Predict:
        import lleaves

        text = _text(booster)
        model = lleaves.Model(model_file=str(text))
        model.compile(cache=str(text.with_suffix(".lleaves")))
        return lambda: model.predict(x, n_jobs=threads)

    return [
        _entry("lightgbm", own),
        _entry("onnxruntime", onnx),
        *_treelite_entries(treelite, x, threads),
        _entry("lleaves", lleaves),
    ]


def xgboost_entries(booster: Any, x: np.ndarray, threads: int) -> list[Entry]:
    """XGBoost, ONNX Runtime, treelite's interpreter and tl2cgen."""

    def own() -> Predict:
        booster.set_param({"nthread": threads})
        return lambda: booster.inplace_predict(x)

    def onnx() -> Predict:
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        return _onnxruntime(
            convert_xgboost(booster, initial_types=[("x", FloatTensorType([None, x.shape[1]]))]), x, threads
        )

    def treelite() -> Any:
        import treelite

        return treelite.frontend.from_xgboost(booster)

    return [_entry("xgboost", own), _entry("onnxruntime", onnx), *_treelite_entries(treelite, x, threads)]


def _treelite_entries(load: Callable[[], Any], x: np.ndarray, threads: int) -> list[Entry]:
    def interpreter() -> Predict:
        import treelite

        model = load()
        return lambda: treelite.gtil.predict(model, x, nthread=threads)

    def compiled() -> Predict:
        import tl2cgen

        model = load()
        library = COMPILED / f"{hashlib.sha256(model.serialize_bytes()).hexdigest()[:12]}.so"
        if not library.exists():
            COMPILED.mkdir(parents=True, exist_ok=True)
            tl2cgen.export_lib(
                model, toolchain="gcc", libpath=str(library), params={"parallel_comp": os.cpu_count() or 1}, nthread=2
            )
        predictor = tl2cgen.Predictor(str(library), nthread=threads)
        matrix = tl2cgen.DMatrix(x)
        return lambda: predictor.predict(matrix)

    return [_entry("treelite GTIL", interpreter), _entry("tl2cgen", compiled)]


def _entry(name: str, prepare: Callable[[], Predict]) -> Entry:
    return Entry(name, "fp32", prepare, _probability)


def _probability(answer: Any) -> np.ndarray:
    """The positive class's probability, whichever shape the library gives it."""
    if isinstance(answer, list):  # ONNX Runtime: labels, then probabilities by class
        answer = answer[-1]
    answer = np.asarray(answer)
    return answer.reshape(len(answer), -1)[:, -1]


def _onnxruntime(proto: Any, x: np.ndarray, threads: int) -> Predict:
    digest = hashlib.sha256(proto.SerializeToString()).hexdigest()[:12]
    path = COMPILED / f"{digest}.onnx"
    COMPILED.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return PEERS["onnxruntime"].prepare(path, {"x": x}, threads)


def _text(booster: Any) -> Path:
    """The booster in LightGBM's own format, in a file named after its content."""
    text = booster.model_to_string()
    path = COMPILED / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    COMPILED.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
