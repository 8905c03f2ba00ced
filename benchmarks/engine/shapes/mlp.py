"""A small multilayer perceptron, 30-64-64-1: what a table of a few dozen columns is often scored with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.engine.shapes import exported

FEATURES = 30


def module() -> Any:
    """Rows ``[rows, 30]`` to probabilities ``[rows, 1]``."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Sigmoid()
    ).eval()


def path() -> Path:
    """The exported model."""
    import torch

    return exported("mlp", module, lambda: (torch.randn(2, FEATURES),), {"x": {0: "rows"}}, "probability")
