"""BERT-base: 12 layers of width 768 with 12 heads; a small vocabulary, since a lookup's cost does not depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.engine.shapes import exported

VOCABULARY = 2048


def module() -> Any:
    """The encoder, from ids and mask ``[batch, sequence]`` to hidden states ``[batch, sequence, 768]``."""
    import torch
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(vocab_size=VOCABULARY), add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    torch.manual_seed(0)
    return Encoder().eval()


def path() -> Path:
    """The exported model."""
    import torch

    ids = torch.randint(0, VOCABULARY, (2, 9))
    dims = {0: "batch", 1: "sequence"}
    return exported(
        "bert-base", module, lambda: (ids, torch.ones_like(ids)), {"input_ids": dims, "attention_mask": dims}, "hidden"
    )
