"""A small real knowledge base (real embedding model, real FAISS), ingested once for the session and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.workspace import Workspace
from retrieval.embed import Embedder
from tests.retrieval.retrieval_support import HashingEmbedder

DOCUMENTS = {
    "visiting.md": (
        "# Visiting rules\n\nVisitors may come from 14:00 to 20:00 every day. Children under 12 need an adult with them. "
        "In the intensive care unit at most two visitors are allowed at the same time.\n"
    ),
    "parking.md": (
        "# Parking\n\nParking in the north garage costs 3 crowns an hour and at most 18 crowns a day. "
        "Staff park in the south garage free of charge.\n"
    ),
    "zh/registration.md": (
        "# 门诊挂号\n\n第一条 普通门诊挂号费为20元。\n\n第二条 专家门诊挂号费为50元，须提前七天预约。\n\n"
        "第三条 取消预约应在就诊前一日17:00以前办理。\n"
    ),
}
SECRET = "# Pay scales\n\nThe head nurse receives 5400 crowns a month.\n"


@pytest.fixture(scope="session")
def models() -> ModelStore:
    return ModelStore.default()


def _prepare(root: Path, models: ModelStore, embedder: Embedder | None) -> Path:
    for name, text in DOCUMENTS.items():
        (root / "documents" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "documents" / name).write_text(text, "utf-8")
    (root / "secret").mkdir()
    (root / "secret" / "pay.md").write_text(SECRET, "utf-8")
    with Workspace.create(root / "workspace") as workspace:
        knowledge = Knowledge(workspace, models, embedder=embedder)
        knowledge.ingest([root / "documents"], domain="medical")
        knowledge.ingest([root / "secret"], domain="medical", labels=frozenset({"management"}))
    return root


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, models: ModelStore) -> Path:
    return _prepare(tmp_path_factory.mktemp("prepared"), models, None)


@pytest.fixture(scope="session")
def prepared_light(tmp_path_factory: pytest.TempPathFactory, models: ModelStore) -> Path:
    return _prepare(tmp_path_factory.mktemp("light"), models, HashingEmbedder())


@pytest.fixture
def light(prepared_light: Path, tmp_path: Path, models: ModelStore) -> Iterator[Knowledge]:
    """As `knowledge`, with hashes of words for vectors: for tests of what has nothing to do with the model."""
    shutil.copytree(prepared_light, tmp_path / "copy")
    with Workspace(tmp_path / "copy" / "workspace") as workspace:
        yield Knowledge(workspace, models, embedder=HashingEmbedder())


@pytest.fixture
def knowledge(prepared: Path, tmp_path: Path, models: ModelStore) -> Iterator[Knowledge]:
    """A copy of the prepared workspace; its documents are beside it in `documents` and `secret`."""
    shutil.copytree(prepared, tmp_path / "copy")
    with Workspace(tmp_path / "copy" / "workspace") as workspace:
        yield Knowledge(workspace, models)
