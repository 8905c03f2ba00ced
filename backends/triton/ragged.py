"""Values of a running Batch: one tensor per Request, and all of them as one block of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

Tensor = torch.Tensor


class Ragged:
    """One tensor per Request, each of its own shape; whichever of its two forms is asked for is made of the other.

    Args:
        parts: The tensors.
        rows: Or the rows of all of them, one after the other: [all rows, width].
        shapes: With `rows`: the tensors' shapes.
    """

    def __init__(
        self, parts: list[Tensor] | None = None, rows: Tensor | None = None, shapes: Sequence[torch.Size] = ()
    ) -> None:
        self._parts, self._rows = parts, rows
        self.shapes = list(shapes) if parts is None else [part.shape for part in parts]

    def __len__(self) -> int:
        """How many Requests there are."""
        return len(self.shapes)

    @property
    def parts(self) -> list[Tensor]:
        """The Requests' tensors."""
        if self._parts is None:
            assert self._rows is not None
            counts = [prod(shape[:-1]) for shape in self.shapes]
            blocks = self._rows.split(counts)
            self._parts = [block.reshape(shape) for block, shape in zip(blocks, self.shapes, strict=True)]
        return self._parts

    @property
    def rows(self) -> Tensor:
        """All rows along the last axis, contiguous. The widths must be equal."""
        if self._rows is None:
            assert self._parts is not None
            blocks = [part.reshape(-1, part.shape[-1]) for part in self._parts]
            self._rows = blocks[0].contiguous() if len(blocks) == 1 else torch.cat(blocks)
        return self._rows

    def map(self, function: Callable[[Tensor], Tensor]) -> Ragged:
        """`function` of each Request's tensor."""
        return Ragged([function(part) for part in self.parts])


def each(function: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """A function of one Request's tensors as one of a Batch's values; what is not `Ragged` is the same for all."""

    def run(*values: Any) -> Any:
        count = max((len(value) for value in values if isinstance(value, Ragged)), default=0)
        if not count:
            return function(*values)
        results = [
            function(*(value.parts[index] if isinstance(value, Ragged) else value for value in values))
            for index in range(count)
        ]
        if outputs == 1:
            return Ragged(results)
        return tuple(Ragged(list(parts)) for parts in zip(*results, strict=True))

    return run
