"""Files that appear whole: written under a name of their own, flushed to the disk, and renamed over the old one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end, unless the block raises.

    Any number of threads and processes may write one `path` at a time, each to a file of its own: the last to end wins.
    Whoever has the old one open or mapped keeps it. A process that is killed leaves a file ``.NAME.*`` behind.

    Args:
        path: Where the file is to be, in a folder that is there.

    Yields:
        The new file, empty. Its `name` is where it is meanwhile.

    Raises:
        OSError: It cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with open(str(draft), "xb") as file:  # "x": nobody else's, not even by accident
        try:
            yield file
            file.flush()
            # Or else a machine that dies soon may come back with the new name and nothing in it.
            os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def replace_text(path: Path, text: str) -> None:
    """Writes `text`, in UTF-8, in place of what `path` holds; see `replacing`.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())
