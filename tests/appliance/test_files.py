"""A file is written whole or not at all, also by several writers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.files import whole_file, write_whole


def test_many_writers_leave_one_whole_text(tmp_path: Path) -> None:
    file = tmp_path / "记录.json"
    texts = [str(number) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_whole(file, text), texts * 4))
    assert file.read_text("utf-8") in texts
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "before\n")
    with pytest.raises(ValueError, match="half"), whole_file(file) as text:
        text.write("aft")
        raise ValueError("half")
    assert file.read_bytes() == b"before\n"
    assert list(tmp_path.iterdir()) == [file]
