"""Fixtures of the retrieval tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from retrieval_support import Knowledge, write


@pytest.fixture
def knowledge(tmp_path: Path) -> Iterator[Knowledge]:
    made = Knowledge(tmp_path / "workspace")
    yield made
    made.db.close()


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with a few English and Chinese documents."""
    folder = tmp_path / "docs"
    gentamicin = "# Gentamicin\n\nThe adult dose of gentamicin is 5 mg/kg once daily.\n\n## Levels\n\nThe trough is below 1 mg/L.\n"
    contract = "采购合同\n\n第一条　甲方在收货后7个工作日内完成抽样检验。\n\n第二条　乙方逾期交货的，按日支付违约金。\n"
    write(folder / "gentamicin.md", gentamicin)
    write(folder / "visits.txt", "VISITING RULES\n\nVisitors may come between 14:00 and 19:00. Two visitors per patient.\n")
    write(folder / "zh" / "fees.md", "# 收费标准\n\n普通门诊诊查费为每次20元。\n\n## 床位费\n\n三人间每床每日50元。\n")
    write(folder / "zh" / "contract.txt", contract)
    return folder
