"""Long work on the event loop's thread: a generator that yields where others may have their turn.

A thread would not help: what decodes strings or JSON holds the interpreter while it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

# Bodies up to this long are decoded at once; longer ones in parts that are about so long, of half a millisecond each.
PART_BYTES = 64 * 1024
# Strings in a part, of which each costs more than its bytes.
PART_STRINGS = 2000
# Numbers in a part of an answer.
PART_NUMBERS = 4000


def run_to_end(steps: Generator[None, None, T]) -> T:
    """What `steps` returns, with no turn for anybody else."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


async def in_turns(steps: Generator[None, None, T]) -> T:
    """What `steps` returns; the event loop answers others between the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        await asyncio.sleep(0)
