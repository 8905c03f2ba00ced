"""MobileNetV2, 224 x 224, random weights, real batch norms: 1x1 and depthwise 3x3 convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.engine.shapes import exported
from benchmarks.engine.shapes.batch_norm import settle

# (expansion, output channels, blocks, stride of the first block), table 2 of the paper (arXiv:1801.04381).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def module() -> Any:
    """Images ``[batch, 3, 224, 224]`` to logits ``[batch, 1000]``."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]

    class InvertedResidual(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = inputs * expansion
            widen = [*conv(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
            self.body = nn.Sequential(
                *widen, *conv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(), *conv(hidden, outputs, 1)
            )
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.body(x) if self.residual else self.body(x)

    torch.manual_seed(0)
    layers: list[nn.Module] = [*conv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(channels, outputs, stride if block == 0 else 1, expansion))
            channels = outputs
    layers += [*conv(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return settle(nn.Sequential(*layers))


def path() -> Path:
    """The exported model."""
    import torch

    return exported("mobilenetv2", module, lambda: (torch.randn(2, 3, 224, 224),), {"image": {0: "batch"}}, "logits")
