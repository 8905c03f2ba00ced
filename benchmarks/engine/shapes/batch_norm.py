"""Batch norms with the statistics of real activations, so that random networks neither explode nor fade."""

from __future__ import annotations

from typing import Any


def settle(module: Any) -> Any:
    """Sets the running statistics from one batch of noise, and returns the module for inference.

    Scales and shifts get random values too, or the optimisers that fold them would have less to do than in real models.
    """
    import torch
    from torch import nn

    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.7, 1.3)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            norm.momentum = None  # a plain mean over the batches seen: here, the one batch
    with torch.no_grad():
        module.train()(torch.randn(4, 3, 224, 224))
    return module.eval()
