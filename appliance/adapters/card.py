"""Everything known about an adapter version as plain data: what is shown, compared, and written into its folder as a card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from appliance.adapters.evidence import FORMER
from appliance.adapters.gate_checks import gates_of
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.datasets.registry import Datasets
from appliance.errors import ApplianceError
from appliance.files import write_whole
from appliance.store import schema

# Of version.json, beside what the database has.
_FILED = ("seed", "libraries", "data_hash", "template_hash")


def facts(registry: Registry, version: AdapterVersion) -> dict[str, Any]:
    """What `adapter show --json` prints, without gates and moves."""
    links = registry.links(version.name)
    filed = _filed(version)
    documents: dict[tuple[str, str, str], set[str]] = {}
    for link in links:
        if link.doc_id is not None and link.kind != FORMER:
            documents.setdefault((link.domain or "", link.doc_id, link.sha256 or ""), set()).add(link.pair_id)
    return {
        "version": version.name,
        "domain": version.domain,
        "base": version.base,
        "base_hash": version.base_hash,
        "method": version.method,
        "path": str(version.path),
        "sha256": version.sha256,
        "dataset": version.dataset,
        "dataset_version": version.dataset_version,
        "dataset_counts": _counts(registry, version),
        "parent": version.parent,
        "labels": sorted(version.labels),
        "config": dict(version.config),
        "metrics": dict(version.metrics),
        "created_at": version.created_at.isoformat(timespec="seconds"),
        **{key: filed.get(key) for key in _FILED},
        "evidence": {kind: len({link.pair_id for link in links if link.kind == kind}) for kind in ("declared", "inferred", "unlinked")},
        "documents": sorted({doc_id for _, doc_id, _ in documents}),
        "document_hashes": [
            {"domain": domain, "id": doc_id, "sha256": sha256, "pairs": len(pairs)}
            for (domain, doc_id, sha256), pairs in sorted(documents.items())
        ],
        "deleted_documents": [key.id for key in registry.deleted().get(version.name, ())],
        "curve": "loss.png" if (version.path / "loss.png").is_file() else None,
    }


def moves(registry: Registry, version: AdapterVersion) -> list[dict[str, Any]]:
    """When the version became live, in place of what, and why; oldest first."""
    table = schema.pointer_move
    query = sa.select(table).where(table.c.name == f"adapter:{version.domain}", table.c.new == version.name).order_by(table.c.id)
    with registry.workspace.db.read() as connection:
        return [{"at": row.moved_at.isoformat(timespec="seconds"), "old": row.old, "why": row.why} for row in connection.execute(query)]


def card_text(registry: Registry, version: AdapterVersion) -> str:
    """The version's card, in Markdown."""
    from finetune.card import card

    gates = [gate.to_json() for gate in gates_of(registry.workspace, version.name)]
    return card(facts(registry, version), gates, moves(registry, version))


def write_card(registry: Registry, version: AdapterVersion) -> None:
    """Write the card into the version's folder, whole or not at all; it is no part of what the version is named by."""
    from finetune.card import FILE

    write_whole(version.path / FILE, card_text(registry, version))


def differences(registry: Registry, one: AdapterVersion, two: AdapterVersion) -> list[dict[str, Any]]:
    """What differs between two versions, as {"what", "first", "second"}; settings and figures by their own names."""
    first, second = ({**_flat(facts(registry, version)), **_documents(registry, version)} for version in (one, two))
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    return [{"what": name, "first": first.get(name), "second": second.get(name)} for name in names]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names to values; what must differ (names, paths) and what is compared in another way is left out."""
    left_out = ("version", "path", "documents", "document_hashes", "curve")
    return dict(_leaves({name: value for name, value in values.items() if name not in left_out}))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _documents(registry: Registry, version: AdapterVersion) -> dict[str, str]:
    """`document DOMAIN/ID` -> the first 12 of the hashes it was trained on."""
    found: dict[str, set[str]] = {}
    for link in registry.links(version.name):
        if link.doc_id is not None and link.kind != FORMER:
            found.setdefault(f"document {link.domain}/{link.doc_id}", set()).add((link.sha256 or "")[:12])
    return {name: ", ".join(sorted(hashes)) for name, hashes in sorted(found.items())}


def _filed(version: AdapterVersion) -> dict[str, Any]:
    """What version.json says; nothing where the files are not there (any more)."""
    file = version.path / "version.json"
    values: Any = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return values if isinstance(values, dict) else {}


def _counts(registry: Registry, version: AdapterVersion) -> dict[str, Any] | None:
    try:
        return dict(Datasets(registry.workspace).state(version.dataset, version.dataset_version).counts)
    except ApplianceError:
        return None
