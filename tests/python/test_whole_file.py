"""Files that appear whole, whoever else writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.whole_file import replace_text, replacing


def test_two_that_write_at_a_time_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            assert path.read_bytes() == b"old"
            second.write(b"the second one")
        assert path.read_bytes() == b"the second one"
        first.write(b", to the end")
    assert path.read_bytes() == b"first, to the end"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_text(path, "größer\n")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half of", None])  # type: ignore[list-item]
    assert path.read_text(encoding="utf-8") == "größer\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "nowhere" / "file", "")
