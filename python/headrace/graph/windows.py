"""The windows that a convolution or a pool lays over its input, as ONNX's attributes describe them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class _Attributes(Protocol):
    def get(self, name: str, default: Any = None) -> Any: ...


@dataclass(frozen=True)
class Windows:
    """One entry per spatial axis in each.

    Attributes:
        kernel: Elements of a window.
        strides: From one window to the next.
        dilations: From one element of a window to the next.
        begins: Padding before the input.
        ends: Padding after it, with what rounding up the number of windows needs.
        given_begins: The padding that the node asks for, before.
        given_ends: And after.
        outputs: How many windows there are.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    given_begins: tuple[int, ...]
    given_ends: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, attributes: _Attributes, dims: Sequence[int], kernel: Sequence[int]) -> Windows:
        """The windows of a node over an input of spatial `dims`."""
        axes = len(dims)
        strides = attributes.get("strides") or [1] * axes
        dilations = attributes.get("dilations") or [1] * axes
        auto_pad = attributes.get("auto_pad", "NOTSET")
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            begins, ends = same_padding(dims, kernel, strides, dilations, upper=auto_pad == "SAME_UPPER")
        else:
            pads = attributes.get("pads") if auto_pad == "NOTSET" else None
            pads = pads or [0] * 2 * axes
            begins, ends = pads[:axes], pads[axes:]
        round_up = bool(attributes.get("ceil_mode", 0))
        outputs, more = [], []
        for dim, size, stride, dilation, begin, end in zip(dims, kernel, strides, dilations, begins, ends, strict=True):
            room = dim + begin + end - (size - 1) * dilation - 1
            count = (-(-room // stride) if round_up else room // stride) + 1
            if round_up and (count - 1) * stride >= dim + begin:
                count -= 1  # a window that lies in the padding at the end alone
            count = max(count, 0)
            outputs.append(count)
            more.append(max(0, (count - 1) * stride - room))
        return cls(
            tuple(kernel), tuple(strides), tuple(dilations), tuple(begins),
            tuple(end + extra for end, extra in zip(ends, more, strict=True)), tuple(begins), tuple(ends),
            tuple(outputs),
        )  # fmt: skip


def same_padding(
    dims: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, upper: bool
) -> tuple[list[int], list[int]]:
    """ONNX's SAME_UPPER or SAME_LOWER padding of spatial `dims`: before each axis, and after it."""
    begins, ends = [], []
    for dim, size, stride, dilation in zip(dims, kernel, strides, dilations, strict=True):
        total = max((-(-dim // stride) - 1) * stride + (size - 1) * dilation + 1 - dim, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins, ends
