"""The demo's models, the requests it sends, and the answers the frameworks themselves give to them."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
from client import Body, encode

import headrace as hr

EXAMPLES = Path(__file__).resolve().parents[1]
BUILD = EXAMPLES.parent / "build" / "models"
# Enough different requests that no batch repeats itself, few enough to compute all expected answers beforehand.
POOL = 96
SEED = 11
# One credit request is a block of customers that keeps one thread busy for about this long, on any machine.
BLOCK_S = 0.008
BLOCK_ROWS_MAX = 10_000
# More than the credit example trains, so that a block of few bytes is some work.
TREES = 600


@dataclass(frozen=True)
class DemoModel:
    """One model of the demo.

    Attributes:
        name: Its name.
        file: The ONNX file.
        bodies: Requests with their expected answers.
        error_max: How far an answer may be from the expected one.
        what: What one request is, for people.
    """

    name: str
    file: Path
    bodies: list[Body]
    error_max: float
    what: str


def example(folder: str, script: str) -> ModuleType:
    """Imports another example's script."""
    path = EXAMPLES / folder / f"{script}.py"
    name = f"headrace_example_{folder}_{script}"
    if name not in sys.modules:
        spec = util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def build(tell: Callable[[str], None]) -> list[DemoModel]:
    """Trains and exports what is not there yet; computes the expected answers."""
    return [tickets(tell), credit(tell)]


def tickets(tell: Callable[[str], None]) -> DemoModel:
    """Whole messages of a few sentences each, as a customer would write them."""
    module = example("tickets", "run")
    tell("tickets: exporting MiniLM (about 20 s the first time)")
    file = module.ensure_model()
    chance = random.Random(SEED)
    texts = [text for _, text in module.tickets()]
    messages = [" ".join(chance.sample(texts, chance.randint(3, 9))) for _ in range(POOL)]
    tell(f"tickets: asking torch for {POOL} expected answers")
    expected = _cached(BUILD / "minilm_expected.npz", messages, module.torch_embeddings)
    tokenizer = module.Tokenizer()
    bodies = [encode(tokenizer(text), "embedding", row[None]) for text, row in zip(messages, expected, strict=True)]
    return DemoModel("tickets", file, bodies, module.PARITY_MAX, "one message of 3 to 9 sentences")


def _cached(path: Path, messages: list[str], compute: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """The expected answers from `path`, where it holds those for exactly these messages."""
    if path.is_file():
        with np.load(path, allow_pickle=False) as saved:
            if saved["messages"].tolist() == messages:
                return np.asarray(saved["expected"])
    expected = compute(messages)
    np.savez(path, messages=np.array(messages), expected=expected)
    return expected


def credit(tell: Callable[[str], None]) -> DemoModel:
    """Blocks of customers, as a bank would re-score a portfolio."""
    module = example("credit", "run")
    tell("credit: training LightGBM")
    data = module.customers()
    train, _ = module.split(data)
    trees = module.train_trees(train, TREES)
    file = module.save(hr.load(trees), BUILD / "credit_demo" / "1" / "model.onnx")
    rows = _block_rows(file, data.features())
    chance = np.random.default_rng(SEED)
    features, bodies = data.features(), []
    for _ in range(POOL // 4):
        block = features[chance.integers(0, len(features), rows)]
        bodies.append(encode({"x": block}, "probabilities", trees.predict_proba(block).astype(np.float32)))
    return DemoModel("credit", file, bodies, module.PARITY_MAX, f"one block of {rows:,} customers")


def _block_rows(file: Path, features: np.ndarray) -> int:
    """How many rows one thread scores in `BLOCK_S`."""
    engine = hr.load(file).compile(threads=1)
    engine({"x": features})
    start = time.perf_counter()
    engine({"x": features})
    per_row_s = (time.perf_counter() - start) / len(features)
    return int(np.clip(round(BLOCK_S / per_row_s, -2), 100, BLOCK_ROWS_MAX))
