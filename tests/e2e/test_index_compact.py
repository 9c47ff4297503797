"""`appliance index compact`, and the merging that ingests do by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieval.compact import FANOUT


def test_compact_after_a_removal(appliance: Any, handbook: Path, tmp_path: Path) -> None:
    empty = appliance("index", "compact", "--json")
    assert empty.code == 0 and empty.json == {"generation": None, "before": 0, "after": 0, "purged": 0, "segments": []}
    appliance("ingest", handbook, "--domain", "medical")
    appliance("document", "remove", "parking.txt")
    done = appliance("index", "compact", "--json")
    assert done.code == 0 and done.json["generation"] == 3 and done.json["purged"] == 1
    assert done.json["segments"] == [{"rows": 2, "live": True, "search": {"method": "exact", "why": "fewer than 16384 rows"}}]
    assert appliance("index", "compact").out.startswith("generation 3: 1 segments before, 1 now, 0 rows purged")
    assert appliance("search", "探视时间", "--json").json["results"][0]["doc_id"] == "zh/visiting.md"
    assert appliance("index", "rollback", 1).code == 0 and appliance("index", "verify").code == 0


@pytest.mark.slow
def test_ingests_merge_by_themselves(appliance: Any, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(FANOUT):
        (folder / f"{number}.md").write_text(f"# Rule {number}\n\nRule {number} about the ward.\n", "utf-8")
        done = appliance("ingest", folder, "--domain", "medical", "--json")
        assert done.code == 0 and done.json["generation"] == number + 1 + (number == FANOUT - 1)
    assert len(list((tmp_path / "workspace" / "index" / "segments").iterdir())) == 1
