"""CUDA graphs: a Request of a shape that was seen before is one launch, whatever the number of kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from headrace.backends.torch.executable import Mover

Tensor = torch.Tensor
Run = Callable[..., tuple[Tensor, ...]]

# Shapes whose graphs are held. A graph holds memory for all its intermediate values.
GRAPHS_MAX = 16


@dataclass(frozen=True)
class Captured:
    """A graph.

    Attributes:
        inputs: Read by `replay`; a Request is copied into them.
        outputs: Written by `replay`.
        replay: Runs it again.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class Graphs:
    """Runs a function by graphs, one for each set of shapes; those used longest ago are given up for new ones.

    Args:
        run: The function.
        capture: Makes a graph of it for inputs like the given ones; `capture_on_cuda`, but for tests.
    """

    def __init__(self, run: Run, capture: Callable[[Run, Sequence[Tensor]], Captured]) -> None:
        self._run, self._capture = run, capture
        self._graphs: OrderedDict[tuple[tuple[int, ...], ...], Captured] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs, in memory of their own. Not for several threads at once."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        graph = self._graphs.get(shapes)
        if graph is None:
            graph = self._graphs[shapes] = self._capture(self._run, inputs)
            if len(self._graphs) > GRAPHS_MAX:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shapes)
        for held, tensor in zip(graph.inputs, inputs, strict=True):
            held.copy_(tensor)
        graph.replay()
        return tuple(output.clone() for output in graph.outputs)

    def __len__(self) -> int:
        """How many graphs are held."""
        return len(self._graphs)


def capture_on_cuda(mover: Mover) -> Callable[[Run, Sequence[Tensor]], Captured]:
    """What captures for `Graphs`, for a function that moves its host values with `mover`."""

    def capture(run: Run, inputs: Sequence[Tensor]) -> Captured:
        held = tuple(tensor.clone() for tensor in inputs)
        mover.remember()
        try:
            # Libraries choose and load their kernels in a first run, on a stream of its own as torch's manual asks.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                run(*held)
            torch.cuda.current_stream().wait_stream(stream)
            moved = mover.repeat()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = run(*held)
        finally:
            mover.forget()

        def replay(kept: list[Tensor] = moved) -> None:  # the graph reads what was moved, so that must live as long
            graph.replay()

        return Captured(held, outputs, replay)

    return capture
