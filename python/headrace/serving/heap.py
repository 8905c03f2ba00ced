"""Keeps Python's garbage collector from stopping a server."""

from __future__ import annotations

import gc


def settle() -> None:
    """Takes everything that lives now out of the collector's sight, but for what is garbage already.

    A process that has imported onnx or Ray has some 100,000 objects that live as long as it does. Looking through them
    takes 30 ms and more, every few thousand requests, in which nobody is answered. Call this when models have been
    loaded, and again when some have been closed, because what is out of sight is not collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
