"""Material for the end-to-end tests."""

from __future__ import annotations

from pathlib import Path


def make_handbook(folder: Path) -> Path:
    """Three short documents of a ward, two English and one Chinese."""
    (folder / "zh").mkdir(parents=True)
    (folder / "visiting.md").write_text(
        "# Visiting rules\n\nVisitors may come from 14:00 to 20:00 every day. Children under 12 need an adult with them.\n", "utf-8"
    )
    (folder / "parking.txt").write_text("Parking in the north garage costs 3 crowns an hour and at most 18 crowns a day.\n", "utf-8")
    (folder / "zh" / "visiting.md").write_text(
        "# 探视规定\n\n第一条 探视时间为每日15:00至19:00。\n\n第二条 重症监护室每次最多两人探视。\n", "utf-8"
    )
    return folder
