"""What an ingest did, for whoever ordered it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retrieval.duplicates import Copy, Near
from retrieval.parsers import Skipped


@dataclass(frozen=True, slots=True)
class Failure:
    """A file or a row that could not be read; its previous version, if any, stays live."""

    path: str
    error: str


@dataclass(slots=True)
class IngestReport:
    """What an ingest did. `chunks` is the size of the live generation afterwards, `embedded` how many of them were embedded now.

    Of the documents that came, `duplicates` have exactly the text of another one and `near_duplicates` nearly that (`near` are the first).
    `merged` are the segments made by merging smaller ones afterwards, as `retrieval.compact.compact` lists them, their recall with them.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: list[Failure] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duplicates: list[Copy] = field(default_factory=list)
    near_duplicates: int = 0
    near: list[Near] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0
    merged: list[dict[str, Any]] = field(default_factory=list)
    generation: int | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The JSON of `appliance ingest --json`."""
        return {
            "added": self.added,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "failed": [{"path": failure.path, "error": failure.error} for failure in self.failed],
            "skipped": [{"path": skipped.path, "reason": skipped.reason} for skipped in self.skipped],
            "warnings": self.warnings,
            "duplicates": [copy.to_json() for copy in self.duplicates],
            "near_duplicates": {"count": self.near_duplicates, "first": [near.to_json() for near in self.near]},
            "chunks": self.chunks,
            "embedded": self.embedded,
            "merged": self.merged,
            "generation": self.generation,
            "seconds": round(self.seconds, 3),
        }
