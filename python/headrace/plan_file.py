"""The file a saved Plan lies in: a header, a manifest, and blocks of memory that are mapped as they are.

    byte 0      16 bytes  magic
         16     uint32    version of this format
         20     uint32    0
         24     uint64    bytes of the whole file
         32     uint64    bytes of the manifest, which follows the header
         40     uint64    hash of the manifest
         48     uint64    hash of everything behind the manifest
         56     uint64    hash of the header before this field
         64               the manifest: JSON in UTF-8, with NaN and Infinity where numbers are such
         ...              blocks, each at a multiple of 64 bytes, the first at a multiple of 4096

Integers are little-endian, hashes those of csrc/core/hash.h. A file is written under another name, flushed, and renamed
over the old one, so whoever opens it sees a whole file, and whoever has the old one mapped keeps it.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from headrace import _core
from headrace.errors import InvalidPlan, StalePlan
from headrace.whole_file import replacing

PLAN_FILE = "plan.headrace"
FORMAT_VERSION = 1

_MAGIC = b"HEADRACE PLAN\r\n\x1a"
_HEADER = struct.Struct("<16sIIQQQQQ")
_HASH_BYTES = 8
_ALIGNMENT = 64  # kPackAlignment of csrc/ops/pack.h
_PAGE = 4096


class Blocks:
    """Collects the blocks of a file to be written. Offsets count from the first block."""

    def __init__(self) -> None:
        self._blocks: list[tuple[int, np.ndarray[Any, np.dtype[np.uint8]]]] = []
        self._end = 0

    def add(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
        """Keeps `data` (one dim, bytes) for `write` and returns the offset it will have."""
        offset = _aligned(self._end, _ALIGNMENT)
        self._blocks.append((offset, data))
        self._end = offset + data.nbytes
        return offset

    def write(self, folder: Path, manifest: dict[str, Any]) -> Path:
        """Writes ``plan.headrace`` into `folder`, which is made if need be, in place of an older one.

        Returns:
            The file's path.
        """
        text = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False).encode()
        start = _aligned(_HEADER.size + len(text), _PAGE)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PLAN_FILE
        with replacing(path) as file:
            for offset, block in self._blocks:
                file.seek(start + offset)
                file.write(block.data)
            file.truncate(start + self._end)
            file.flush()
            end = _HEADER.size + len(text)
            blocks_hash = _core.MappedFile(file.name).hash(end, start + self._end - end)
            file.seek(0)
            file.write(_header(text, start + self._end, blocks_hash) + text)
            file.flush()
            os.fsync(file.fileno())
            # What is written piece by piece is cached in small pages. Let go, and read anew by whoever maps it, it
            # comes in huge ones where the system has them.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return path


class PlanFile:
    """A saved Plan's file, mapped.

    Args:
        folder: The folder with ``plan.headrace`` in it.

    Attributes:
        path: The file.
        mapped: Its memory, for `_core.ProgramBuilder`.
        manifest: What the blocks are.
        start: Where the first block is.
        digest: A hash of all of it, in hex: that of the header, which holds those of the rest.

    Raises:
        InvalidPlan: There is no such file, or it is truncated, damaged or something else.
        StalePlan: It has another version of this format.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PLAN_FILE
        self.mapped = _core.MappedFile(str(self.path))
        text = self._read_manifest()
        self._behind = _HEADER.size + len(text)
        self.start = _aligned(self._behind, _PAGE)
        try:
            self.manifest: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise InvalidPlan(f"{self.path}: the manifest is not JSON: {error}") from error

    def _read_manifest(self) -> bytes:
        size = self.mapped.size
        if size < _HEADER.size:
            raise InvalidPlan(f"{self.path}: got {size} bytes, expected a header of {_HEADER.size}")
        header = self.mapped.read(0, _HEADER.size)
        magic, version, _, file_bytes, manifest_bytes, manifest_hash, self._blocks_hash, own = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise InvalidPlan(f"{self.path}: got a file that starts with {magic!r}, expected {_MAGIC!r}")
        if version != FORMAT_VERSION:
            raise StalePlan(f"{self.path}: got format version {version}, expected {FORMAT_VERSION}: save the Plan anew")
        self._compare_hash("header", _core.hash_bytes(header[:-_HASH_BYTES]), own)
        self.digest = f"{own:016x}"
        if file_bytes != size:
            raise InvalidPlan(f"{self.path}: got {size} bytes, expected {file_bytes}: it is truncated or extended")
        manifest = self.mapped.read(_HEADER.size, manifest_bytes)
        self._compare_hash("manifest", _core.hash_bytes(manifest), manifest_hash)
        return manifest

    def verify(self) -> None:
        """Reads all blocks and compares their hash.

        Raises:
            InvalidPlan: They are not what was written.
        """
        got = self.mapped.hash(self._behind, self.mapped.size - self._behind)
        self._compare_hash("weights", got, self._blocks_hash)

    def _compare_hash(self, part: str, got: int, expected: int) -> None:
        if got != expected:
            raise InvalidPlan(f"{self.path}: damaged {part}: got hash {got:016x}, expected {expected:016x}")


def _header(manifest: bytes, file_bytes: int, blocks_hash: int) -> bytes:
    fields = (_MAGIC, FORMAT_VERSION, 0, file_bytes, len(manifest), _core.hash_bytes(manifest), blocks_hash)
    head = _HEADER.pack(*fields, 0)[:-_HASH_BYTES]
    return _HEADER.pack(*fields, _core.hash_bytes(head))


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
