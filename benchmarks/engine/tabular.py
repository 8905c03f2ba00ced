"""Models of tables: gradient-boosted trees from LightGBM and XGBoost, and a small multilayer perceptron."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import tree_peers
from benchmarks.engine.candidates import PLAIN, Ours, onnx_entries, torch_entries, torch_reference
from benchmarks.engine.shapes import mlp
from benchmarks.harness.cases import OURS, Case, Entry, measure
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import case_table

FEATURES = 30
ROWS = (1, 32, 1000, 10000)


def data(rows: int, seed: int) -> np.ndarray:
    """Made-up rows."""
    return np.random.default_rng(seed).standard_normal((rows, FEATURES)).astype(np.float32)


def labelled() -> tuple[np.ndarray, np.ndarray]:
    """20,000 rows and a label with enough structure that trees grow to their limit."""
    x = data(20000, 0)
    noise = np.random.default_rng(1).standard_normal(len(x))
    return x, (x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + 0.3 * noise > 0).astype(int)


def train_lightgbm(trees: int, leaves: int) -> Any:
    """A binary classifier."""
    import lightgbm

    params = {"objective": "binary", "num_leaves": leaves, "learning_rate": 0.05, "verbose": -1, "num_threads": 2}
    x, y = labelled()
    return lightgbm.train(params, lightgbm.Dataset(x, y), trees)


def train_xgboost(trees: int, leaves: int) -> Any:
    """A binary classifier grown leaf by leaf."""
    import xgboost

    params = {
        "objective": "binary:logistic", "max_leaves": leaves, "max_depth": 0, "grow_policy": "lossguide", "eta": 0.05,
        "tree_method": "hist", "nthread": 2,
    }  # fmt: skip
    x, y = labelled()
    return xgboost.train(params, xgboost.DMatrix(x, y), trees)


def probability(result: dict[str, np.ndarray]) -> np.ndarray:
    """The positive class's column."""
    array = next(value for value in result.values() if value.dtype.kind == "f")
    return array[:, 1] if array.ndim == 2 and array.shape[1] == 2 else array.reshape(-1)


def _run(
    train: Callable[[], Any], predict: Callable[[Any, np.ndarray], np.ndarray],
    peers: Callable[[Any, np.ndarray, int], list[Entry]], options: Options,
) -> list[dict[str, Any]]:  # fmt: skip
    options.progress("training")
    booster = train()
    engine = Ours(booster, options.threads).engine()
    (name,) = (spec.name for spec in engine.signature.inputs)
    results = []
    for rows in (1, 1000) if options.quick else ROWS:
        request = {name: data(rows, 2)}
        ours = Entry(OURS, "fp32", lambda request=request: lambda: engine(request), probability)
        entries = [ours, *peers(booster, request[name], options.threads)]
        case = Case(f"{rows} row{'s' * (rows > 1)}", predict(booster, request[name]), entries)
        results.append(measure(case, options.effort, options.progress))
    return results


def run_lightgbm(trees: int, leaves: int, options: Options) -> list[dict[str, Any]]:
    """LightGBM against itself and whatever runs its models."""
    train = functools.partial(train_lightgbm, trees, leaves)
    return _run(train, lambda booster, x: booster.predict(x), tree_peers.lightgbm_entries, options)


def run_xgboost(options: Options) -> list[dict[str, Any]]:
    """XGBoost against itself and whatever runs its models."""
    train = functools.partial(train_xgboost, 300, 63)
    return _run(train, lambda booster, x: booster.inplace_predict(x), tree_peers.xgboost_entries, options)


def run_mlp(options: Options) -> list[dict[str, Any]]:
    """One row, as a Python program scores it: the time of the whole call."""
    path: Path = mlp.path()
    module = functools.cache(mlp.module)
    request = {"x": data(1, 2)}
    entries = [
        *Ours(str(path), options.threads).entries(request, PLAIN),
        *onnx_entries(path, request, options.threads),
        *torch_entries(module, request, options.threads, options.compiled),
    ]
    return [measure(Case("1 row", torch_reference(module, request), entries), options.effort, options.progress)]


_TABLE = functools.partial(case_table, unit="us")
SECTIONS = [
    Section(
        "lightgbm-small", "LightGBM, 100 trees x 15 leaves, 30 features", lambda o: run_lightgbm(100, 15, o), _TABLE
    ),
    Section("lightgbm", "LightGBM, 300 trees x 63 leaves, 30 features", lambda o: run_lightgbm(300, 63, o), _TABLE),
    Section("xgboost", "XGBoost, 300 trees x 63 leaves, 30 features", run_xgboost, _TABLE),
    Section("mlp", "A 30-64-64-1 perceptron, one row, the whole Python call", run_mlp, _TABLE),
]
