"""The section [ingest]: its settings reach the parsers, and wrong ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import Config, load
from appliance.config_template import template
from appliance.errors import UsageError


def _load(folder: Path, text: str) -> Config:
    (folder / "appliance.toml").write_text(text, "utf-8")
    return load(folder / "appliance.toml", environ={})[0]


def test_defaults_and_settings(tmp_path: Path) -> None:
    default = _load(tmp_path, template()).ingest
    assert (default.parse_seconds, default.parse_memory_mb, default.ocr, default.archives) == (60, 1024, False, False)
    given = _load(
        tmp_path, '[ingest]\nparse_seconds = 5\nparse_memory_mb = 512\nocr = true\nocr_languages = "eng"\narchives = true\n'
    ).ingest
    assert (given.parse_seconds, given.parse_memory_mb, given.ocr, given.ocr_languages, given.archives) == (5, 512, True, "eng", True)


@pytest.mark.parametrize("line", ['ocr_languages = "eng; rm"', "parse_seconds = 0", "parse_memory_mb = 10", "archive = true"])
def test_wrong_settings_are_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match=f"ingest.{line.split()[0]}"):
        _load(tmp_path, f"[ingest]\n{line}\n")
