"""What a team wants to know about its documents: everything about one, which are alike, and what a removal reaches besides the index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.adapters.registry import Registry
from appliance.answers.verified import VerifiedAnswers
from appliance.datasets.erasing import Touched
from appliance.errors import UsageError
from appliance.knowledge.knowledge import Knowledge
from retrieval.types import DocumentInfo, DocumentKey


def listed(info: DocumentInfo, chunks: int) -> dict[str, Any]:
    """A live document as a row of a list."""
    return {
        "domain": info.domain,
        "doc_id": info.id,
        "title": info.title,
        "lang": info.lang,
        "labels": sorted(info.labels),
        "chunks": chunks,
        "sha256": info.sha256,
        "updated_at": info.updated_at.isoformat(timespec="seconds"),
    }


def show(knowledge: Knowledge, key: DocumentKey) -> dict[str, Any]:
    """Everything about a live document. Raises UsageError if there is none of this name.

    `sources` are the documents with exactly this text, which are indexed once; `versions` what the generations of the index hold of it;
    `adapters` those with training pairs that rest on it.
    """
    documents = knowledge.documents
    info, seen = documents.current(key), documents.seen(key)
    if info is None or seen is None:
        raise UsageError(f"no document {key.id} in {key.domain}; see: appliance document list --domain {key.domain}")
    chunks = documents.chunks(key)
    [*copies] = knowledge.store.copies([key])
    return {
        "domain": info.domain,
        "doc_id": info.id,
        "title": info.title,
        "uri": info.uri,
        "lang": info.lang,
        "labels": sorted(info.labels),
        "sha256": info.sha256,
        "updated_at": info.updated_at.isoformat(timespec="seconds"),
        **seen,
        "pages": len(info.meta.get("pages", ())) or None,
        "meta": {name: value for name, value in info.meta.items() if name != "pages"},
        "sources": [other.id for group in copies for other in group] or [info.id],
        "versions": documents.history(key),
        "adapters": Registry(knowledge.workspace).trained_on([key]),
        "chunks": [
            {
                "chunk_id": chunk.id,
                "start": chunk.start,
                "end": chunk.end,
                "page": chunk.page,
                "heading": list(chunk.heading),
                "lang": chunk.lang,
                "flags": list(chunk.flags),
                "text": chunk.text,
            }
            for chunk in chunks
        ],
    }


def remove(knowledge: Knowledge, keys: Sequence[DocumentKey]) -> dict[str, Any]:
    """Delete documents for good; see `Knowledge.remove`. Besides {"removed", "generation"}: the `adapters` that were trained on them, which
    contain deleted text until they are trained again, the verified answers that are `suspended` because they cite them, and the ids of
    documents whose files are `still_there`; and the `datasets` that lost pairs or have some which name them (see `Touched`)."""
    adapters = Registry(knowledge.workspace).trained_on(keys)
    wanted = frozenset(keys)
    cited = {
        answer.id
        for answer in VerifiedAnswers(knowledge).all()
        if any((citation.domain, citation.doc_id) in wanted for citation in answer.citations)
    }
    left = sorted(key.id for key in wanted if _has_file(knowledge, key))
    touched = Touched(knowledge.workspace, keys)
    done = {**knowledge.remove(keys), "adapters": adapters, "suspended": sorted(cited), "still_there": left}
    return {**done, "datasets": touched.to_json()}


def _has_file(knowledge: Knowledge, key: DocumentKey) -> bool:
    """Whether a live document's own file is where it was last seen: in a folder, or as the one file that was ingested."""
    seen = knowledge.documents.seen(key)
    root = Path(seen["root"]) if seen is not None else None
    return root is not None and ((root / key.id).is_file() or (root.name == key.id and root.is_file()))


def duplicates(knowledge: Knowledge, domain: str | None, threshold: float, limit: int) -> dict[str, Any]:
    """Live documents with the same text (`exact`, groups) and with nearly the same (`near`, the first `limit` pairs of `near_pairs`).

    `threshold` is the Jaccard similarity of the shingles, in (0, 1]. In a group that is alike, each is compared with the first.
    """
    from retrieval import duplicates as alike

    signatures = knowledge.documents.signatures(domain)
    by_domain: dict[str, dict[int, bytes]] = {}
    for id, (key, signature) in signatures.items():
        by_domain.setdefault(key.domain, {})[id] = signature
    pairs = [
        (signatures[group[0]][0], signatures[other][0])
        for some in by_domain.values()
        for group in alike.groups(some, threshold)
        for other in group[1:]
    ]
    compared = (alike.compare(first, second, knowledge.store.document) for first, second in pairs[:limit])
    return {
        "threshold": threshold,
        "exact": [[{"domain": key.domain, "doc_id": key.id} for key in group] for group in knowledge.documents.copies(domain)],
        "near_pairs": len(pairs),
        "near": [{**near.to_json(), "said": str(near)} for near in compared if near is not None],
    }
