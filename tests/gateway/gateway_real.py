"""The real answering over a small real knowledge base, whose vectors are hashes of words so that no model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appliance.adapters.registry import Registry
from appliance.answers.answering import Answering
from appliance.answers.verified import VerifiedAnswers
from appliance.engines.pool import EnginePool
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.routing.costs import CostBook
from appliance.workspace import Workspace
from retrieval.text import index_terms, words
from router.policy import RulePolicy

DOCUMENTS = {
    "zh/registration.md": "# 门诊挂号\n\n普通门诊挂号费为20元。\n\n专家门诊挂号费为50元，须提前七天预约。\n",
    "visiting.md": "# Visiting\n\nVisitors may come from 14:00 to 20:00 every day.\n",
}
SECRET = "# Pay scales\n\nThe head nurse receives 5400 crowns a month.\n"
APPROVED = ("夜间急诊怎么挂号？", "夜间急诊在一楼挂号。")


class HashedWords:
    """A bag of words projected by signs of hashes: equal words give equal directions."""

    hash = hashlib.sha256(b"hashed words").hexdigest()
    dim = 64

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(words(text)) for text in texts]

    def encode_queries(self, texts: Sequence[str]) -> Any:
        vectors = np.full((len(texts), self.dim), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for term in index_terms(text):
                bits = np.unpackbits(np.frombuffer(hashlib.blake2b(term.encode(), digest_size=8).digest(), dtype=np.uint8))
                vectors[row] += bits.astype(np.float32) * 2 - 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_passages = encode_queries


def make_knowledge(root: Path, engine_url: str = "", **settings: str) -> Knowledge:
    """A new workspace in `root` with `DOCUMENTS`, `SECRET` (label management) and one approved answer."""
    for folder, files in (("documents", DOCUMENTS), ("secret", {"pay.md": SECRET})):
        for name, text in files.items():
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_text(text, "utf-8")
    elsewhere = {"kind": "openai", "url": engine_url or "http://127.0.0.1:9/v1", "model": "m"}
    engine = {"languages": '["en", "zh"]'} | (elsewhere if settings.get("kind", "openai") == "openai" else {})
    Workspace.create(root / "workspace").close()
    flags = {f"engines.default.{name}": value for name, value in {**engine, **settings}.items()}
    workspace = Workspace(root / "workspace", flags)
    knowledge = Knowledge(workspace, ModelStore.default(), embedder=HashedWords())  # type: ignore[arg-type]
    knowledge.ingest([root / "documents"], domain="medical")
    knowledge.ingest([root / "secret"], domain="medical", labels=frozenset({"management"}))
    VerifiedAnswers(knowledge).add("medical", *APPROVED, [], "王医生", 0.7)
    return knowledge


def real_answering(knowledge: Knowledge) -> Answering:
    pool = EnginePool(knowledge.workspace, knowledge.models)
    return Answering(knowledge, pool, Registry(knowledge.workspace), VerifiedAnswers(knowledge), RulePolicy(), CostBook())
