"""How the searches of a workspace rank: the fusion tuned for a domain, the team's vocabulary, the reranker.

A domain's vocabulary is in the workspace folder: ``dictionaries/DOMAIN.txt`` and ``synonyms/DOMAIN.txt`` (see `retrieval.vocabulary`).
A tuned fusion is in the database, under the setting ``fusion:DOMAIN``. Changes of both are noticed at the next search.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from appliance.models.store import ModelStore
from appliance.store.schema import setting
from appliance.workspace import Workspace
from retrieval.fusion import Fusion
from retrieval.types import Scope
from retrieval.vocabulary import Vocabulary, read_dictionary, read_synonyms

if TYPE_CHECKING:
    from retrieval.index import Ranking
    from retrieval.rerank import Reranker
    from retrieval.text import Dictionary

_PREFIX = "fusion:"
T = TypeVar("T")


class Rankings:
    """What a workspace's searches rank with. Thread-safe."""

    def __init__(self, workspace: Workspace, models: ModelStore) -> None:
        self._workspace = workspace
        self._models = models
        # By file: its state when it was read, and what was in it.
        self._read: dict[Path, tuple[tuple[int, int], Any]] = {}
        self._reranker: Reranker | None = None
        self._lock = threading.Lock()

    def of(self, scope: Scope, embedding_hash: str) -> Ranking:
        """How a search within `scope` ranks. Raises RetrievalError naming the bad line of a vocabulary file."""
        from retrieval.index import Ranking

        domains = sorted(scope.domains if scope.domains is not None else self._workspace.domains())
        vocabularies = tuple(self.vocabulary(domain) for domain in domains)
        spoken = vocabularies if any(v.dictionary or v.synonyms for v in vocabularies) else ()
        return Ranking(self.fusion(domains, embedding_hash), spoken, self.reranker(), self._workspace.config.retrieval.rerank)

    def fusion(self, domains: Sequence[str], embedding_hash: str) -> Fusion:
        """The fusion of a search over `domains`: the tuned one of each with this embedding model, else the default.

        Of several, scores must be comparable across domains: their mean weight if all are convex (and their floor if all have the same),
        else the default.
        """
        known = self.tuned()
        found = [_fusion(known[name]) if name in known and known[name]["embedding"] == embedding_hash else Fusion() for name in domains]
        if not found or any(one.kind != "convex" for one in found):
            return found[0] if len(set(found)) == 1 else Fusion()
        floors = {one.floor for one in found}
        return Fusion("convex", fmean(one.weight for one in found), floors.pop() if len(floors) == 1 else None)

    def tuned(self) -> dict[str, dict[str, Any]]:
        """The stored tuning of each domain that has one: kind, weight, floor, embedding, and the evidence."""
        query = sa.select(setting.c.key, setting.c.value).where(setting.c.key.startswith(_PREFIX, autoescape=True))
        with self._workspace.db.read() as connection:
            rows = connection.execute(query).all()
        return {key.removeprefix(_PREFIX): json.loads(value) for key, value in rows}

    def keep(self, domain: str, fusion: Fusion, embedding_hash: str, evidence: Mapping[str, Any]) -> None:
        """Store a domain's fusion with what it rests on; the next search uses it."""
        value = json.dumps({**asdict(fusion), "embedding": embedding_hash, "evidence": dict(evidence)}, ensure_ascii=False)
        with self._workspace.db.write() as connection:
            if connection.execute(setting.update().where(setting.c.key == _PREFIX + domain).values(value=value)).rowcount == 0:
                connection.execute(setting.insert().values(key=_PREFIX + domain, value=value))

    def forget(self, domain: str) -> bool:
        """Go back to the default fusion; whether there was another."""
        with self._workspace.db.write() as connection:
            return connection.execute(setting.delete().where(setting.c.key == _PREFIX + domain)).rowcount > 0

    def vocabulary(self, domain: str) -> Vocabulary:
        """The words and synonyms of a domain."""
        return Vocabulary(self.dictionary(domain), self._file("synonyms", domain, read_synonyms))

    def dictionary(self, domain: str) -> Dictionary | None:
        """The words of a domain."""
        return self._file("dictionaries", domain, read_dictionary)

    def reranker(self) -> Reranker | None:
        """The configured cross-encoder; its weights are loaded when it first reads."""
        wanted = self._workspace.config.retrieval.reranker
        if wanted is None:
            return None
        with self._lock:
            if self._reranker is None:
                from retrieval.rerank import CrossEncoderReranker

                self._reranker = CrossEncoderReranker(partial(self._models.path, self._workspace.model(wanted)))
            return self._reranker

    def _file(self, folder: str, domain: str, read: Callable[[Path], T]) -> T | None:
        path = self._workspace.root / folder / f"{domain}.txt"
        try:
            facts = path.stat()
        except FileNotFoundError:
            return None
        state = (facts.st_mtime_ns, facts.st_size)
        with self._lock:
            known = self._read.get(path)
        if known is None or known[0] != state:
            known = state, read(path)
            with self._lock:
                self._read[path] = known
        found: T = known[1]
        return found


def _fusion(stored: Mapping[str, Any]) -> Fusion:
    return Fusion(stored["kind"], stored["weight"], stored["floor"])
