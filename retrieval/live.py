"""The live documents that an ingest meets, looked up in as few queries as possible, and none for the rest of the base."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from retrieval.store import DocumentStore, LiveDocument
from retrieval.types import DocumentKey


@dataclass(slots=True)
class Live:
    """The state of the live documents before an ingest; what was looked up is remembered."""

    store: DocumentStore
    _known: dict[DocumentKey, LiveDocument | None] = field(default_factory=dict)
    _roots: set[str] = field(default_factory=set)
    _empty: bool = field(init=False)

    def __post_init__(self) -> None:
        self._empty = self.store.live_generation() is None

    def look_up(self, keys: Collection[DocumentKey]) -> None:
        """Read these documents at once."""
        missing = [key for key in keys if key not in self._known]
        self._known.update(dict.fromkeys(missing))
        if not self._empty:
            self._known.update((document.key, document) for document in self.store.live(missing))

    def look_under(self, root: str) -> None:
        """Read the documents last seen under a root at once."""
        if root not in self._roots:
            self._roots.add(root)
            self._known.update((document.key, document) for document in self.store.live_under(root))

    def under(self, root: str) -> list[LiveDocument]:
        """The documents last seen under a root."""
        self.look_under(root)
        return [document for document in self._known.values() if document is not None and document.root == root]

    def get(self, key: DocumentKey) -> LiveDocument | None:
        if key not in self._known:
            self.look_up([key])
        return self._known[key]

    def among(self, keys: Iterable[DocumentKey]) -> set[DocumentKey]:
        """Those of `keys` that are live."""
        return {key for key in keys if self.get(key) is not None}
