"""The adapter registry: immutable versions, the alias of each domain, and what the router must know about them."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal

import sqlalchemy as sa

from appliance.adapters.evidence import Link, record
from appliance.adapters.freshness import Freshness
from appliance.adapters.tuned_questions import Near
from appliance.engines.base import AdapterRef
from appliance.errors import AlteredFiles, ApplianceError, UsageError
from appliance.store import schema, tables_admin
from appliance.store.database import utcnow
from appliance.store.locks import WriterLock
from appliance.store.lookup import Lookup
from appliance.store.pointers import ROLLBACK, named
from appliance.workspace import Workspace
from finetune.settings import yields
from finetune.types import Task
from retrieval.types import DocumentKey, Evidence
from router.types import AdapterFacts

# Where model versions are, below the workspace.
MODELS = "models"
# What a version is called: domain and content hash.
VERSION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*@[0-9a-f]{8}")
_NAMED = Lookup(sa.select(schema.adapter).where(schema.adapter.c.name == sa.bindparam("name")))


def _doomed(folder: Path) -> Path:
    """What the folder of a version is called while it is deleted."""
    return folder.with_name(f".{folder.name}.removed.tmp")


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One registered adapter version."""

    name: str
    domain: str
    base: str
    base_hash: str
    method: str
    path: Path
    sha256: str
    dataset: str
    dataset_version: str
    parent: str | None
    labels: frozenset[str]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    created_at: datetime

    @property
    def kind(self) -> Literal["adapter", "model"]:
        """An adapter on its base, or a model that is used as the base of an engine."""
        return yields(self.method)

    @property
    def reference(self) -> str:
        """What names a model version as a base."""
        return f"path:{MODELS}/{self.name}"

    @property
    def ref(self) -> AdapterRef:
        return AdapterRef(self.name, self.path)

    @property
    def task(self) -> Task:
        """What its data set teaches, which picks the instruction it is asked with."""
        task: Task = self.config.get("task", "qa")
        return task


class Registry:
    """Adapter versions of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.freshness = Freshness(workspace.db)

    def register(self, version: AdapterVersion, links: Sequence[Link], lock: WriterLock | None = None) -> None:
        """Record a finished version with its evidence, in one transaction. The same content again adds labels, and its evidence is
        what `links` say now (see `appliance.adapters.evidence`).

        Raises Locked, and records nothing, if `lock` is no longer ours.
        """
        with self.workspace.db.write() as connection:
            if lock is not None:
                lock.check(connection)
            same = schema.adapter.c.name == version.name
            facts = {"name": version.name, "domain": version.domain, "method": version.method, "dataset": version.dataset}
            known = connection.execute(sa.select(schema.adapter.c.labels).where(same)).scalar_one_or_none()
            if known is not None:
                connection.execute(schema.adapter.update().where(same).values(labels=sorted(version.labels.union(known))))
                if record(connection, version.name, links):
                    # Every process then looks anew at what is stale.
                    connection.execute(schema.adapter.update().where(same).values(created_at=utcnow()))
                    self.workspace.db.audit(connection, "adapter.train", {**facts, "again": True})
                return
            self.workspace.db.audit(connection, "adapter.train", facts)
            connection.execute(
                schema.adapter.insert().values(
                    name=version.name,
                    domain=version.domain,
                    base=version.base,
                    base_hash=version.base_hash,
                    method=version.method,
                    path=str(version.path.relative_to(self.workspace.root)),
                    sha256=version.sha256,
                    dataset=version.dataset,
                    dataset_version=version.dataset_version,
                    parent=version.parent,
                    labels=sorted(version.labels),
                    config=dict(version.config),
                    metrics=dict(version.metrics),
                    created_at=version.created_at,
                )
            )
            record(connection, version.name, links)

    def versions(self, domain: str | None = None) -> list[AdapterVersion]:
        """Every version, oldest first."""
        query = sa.select(schema.adapter).order_by(schema.adapter.c.created_at, schema.adapter.c.name)
        if domain is not None:
            query = query.where(schema.adapter.c.domain == domain)
        with self.workspace.db.read() as connection:
            return [self._version(row) for row in connection.execute(query)]

    def labels(self) -> frozenset[str]:
        """Every label that a version was trained with."""
        with self.workspace.db.read() as connection:
            return frozenset(label for labels in connection.execute(sa.select(schema.adapter.c.labels)).scalars() for label in labels)

    def get(self, name: str) -> AdapterVersion:
        """The version called `name`. Raises UsageError that lists what there is."""
        version = self.find(name)
        if version is None:
            known = ", ".join(other.name for other in self.versions())
            raise UsageError(f"no adapter version {name!r}; known: {known or 'none yet, train one with `appliance tune`'}")
        return version

    def find(self, name: str) -> AdapterVersion | None:
        """The version called `name`, None if there is none (any more)."""
        return next(map(self._version, self.workspace.db.rows(_NAMED, name=name)), None)

    def model_at(self, reference: str) -> AdapterVersion | None:
        """The model version that the base `reference` of the configuration names; its `labels` as in `current`."""
        ref = self.workspace.model(reference)
        folder = Path(ref.name)
        if ref.scheme != "path" or folder.parent != self.workspace.root / MODELS:
            return None
        version = self.find(folder.name)
        return None if version is None else self.current(version.name)

    def in_use(self) -> frozenset[str]:
        """The names of the adapters that are live in a domain, and of the models that are the base of an engine."""
        live = {self.workspace.db.pointer(f"adapter:{name}") for name in self.workspace.domains()}
        engines = self.workspace.config.engines.values()
        bases = [self.model_at(engine.base) for engine in engines if engine.has_base]
        return frozenset({name for name in live if name} | {version.name for version in bases if version})

    def live(self, domain: str) -> AdapterVersion | None:
        """The version the domain's alias points at; its `labels` are those it was trained with and those its documents have now."""
        name = self.workspace.db.pointer(f"adapter:{domain}")
        return self.current(name) if name else None

    def chosen(self, domain: str, named: str | None) -> AdapterVersion | None:
        """The live version, or the one that was named ('' for none). Raises UsageError for one that is unknown or another domain's."""
        if not named:
            return self.live(domain) if named is None else None
        version = self.current(named)
        if version.domain != domain:
            raise UsageError(f"{named} is an adapter of {version.domain}, the question is asked in {domain}")
        return version

    def current(self, name: str) -> AdapterVersion:
        """The version called `name`; its `labels` are those it was trained with and those its documents have now. Raises UsageError."""
        version = self.get(name)
        return replace(version, labels=version.labels | self.freshness.of(name).labels)

    def promote(self, name: str, why: str = "promoted", *, over: str | EllipsisType | None = ...) -> AdapterVersion:
        """Point the domain's alias at `name`, after checking the files; with `over` only while it points at that version (None: at none).

        Raises ApplianceError if the files are not what was registered, or the alias points elsewhere.
        """
        version = self.get(name)
        self.check_adapter(version)
        alias = f"adapter:{version.domain}"
        with self.workspace.db.write() as connection:
            if connection.execute(sa.select(schema.adapter.c.name).where(schema.adapter.c.name == name)).first() is None:
                raise UsageError(f"{name} was removed meanwhile; an alias points at no version that is gone")
            live = self.workspace.db.pointer(alias, connection)
            if over is not ... and live != over:
                raise ApplianceError(
                    f"{live or 'no adapter'} became live in {version.domain} while {name} was compared with {over or 'the base'}; "
                    "promote it again, it will be compared with what is live now"
                )
            self.workspace.db.move_pointer(connection, alias, name, why)
        return version

    def rollback(self, domain: str, fits: Callable[[AdapterVersion], None] | None = None) -> AdapterVersion | None:
        """Point the alias back at what was live before the live version was promoted; None if that was no adapter.

        A rollback is no promotion: the next one goes further back. The files are checked, and `fits` may raise what else is against the
        version; the alias moves only then. Raises UsageError (no promotion is left to take back, the version was removed), ApplianceError.
        """
        with self.workspace.db.read() as connection:
            stack = named(connection, f"adapter:{domain}")
        if len(stack) == 1:
            raise UsageError(f"{domain} has no promoted adapter to roll back; see `appliance adapter list`")
        before = stack[-2]
        if (version := self.find(before) if before else None) is None and before:
            raise UsageError(
                f"{before}, which was live before, was removed; promote another version (see `appliance adapter list`), "
                "or remove the live one with --force to go on without an adapter"
            )
        if version is not None:
            self.check_adapter(version)
            if fits is not None:
                fits(version)
        with self.workspace.db.write() as connection:
            if named(connection, f"adapter:{domain}") != stack:
                raise ApplianceError(f"{stack[-1] or 'no adapter'} is no longer live in {domain}; look at what is, and roll back again")
            self.workspace.db.move_pointer(connection, f"adapter:{domain}", before, ROLLBACK)
        return version

    def remove(self, name: str, *, force: bool = False) -> AdapterVersion:
        """Forget a version and delete its files; with `force` also one that is live (its domain is left without) or that others rest on.

        The row goes first, in one transaction with the alias, then the folder gives up its name: a crash leaves the whole version, or files
        that no reader lists and that removing it again deletes. Raises UsageError (unknown, live, on trial, named by a job that waits or
        runs, rested on, an engine's base), Locked while its domain is trained or a gate runs.
        """
        folders = [self.workspace.root / parent / name for parent in ("adapters", MODELS)]
        left = [folder for path in folders for folder in (path, _doomed(path)) if folder.is_dir()] if VERSION_NAME.fullmatch(name) else []
        if left and self.find(name) is None:
            # A training of the domain may be about to register it.
            with self.workspace.db.lock(f"tune:{name.split('@')[0]}"):
                if self.find(name) is None:
                    for folder in left:
                        shutil.rmtree(folder)
                    raise UsageError(f"no adapter version {name!r} is registered; the files that were left of it are deleted now")
        version = self.get(name)
        bases = {key: engine.base for key, engine in self.workspace.config.engines.items() if engine.has_base}
        engines = [key for key, base in bases.items() if Path(self.workspace.model(base).name) == version.path]
        if engines and not force:
            raise UsageError(f"{name} is the base of engine {', '.join(engines)}; give it another one first, or use --force")
        # Neither a training that goes on from it nor a gate that compares it may be running.
        with self.workspace.db.lock(f"tune:{version.domain}"), self.workspace.db.lock(f"gate:{version.domain}"):
            with self.workspace.db.write() as connection:
                alias = f"adapter:{version.domain}"
                is_live = self.workspace.db.pointer(alias, connection) == name
                if is_live and not force:
                    raise UsageError(f"{name} is live in {version.domain}; roll back or promote another first, or use --force")
                tried = tables_admin.canary
                trial = sa.select(tried.c.id).where(tried.c.candidate == name, tried.c.state == "running")
                if connection.execute(trial).first() is not None and not force:
                    raise UsageError(f"{name} is on trial in {version.domain}; `appliance adapter canary stop` ends that, or use --force")
                jobs = tables_admin.job
                open_ones = sa.select(jobs.c.id, jobs.c.arguments).where(jobs.c.state.in_(("queued", "running")))
                asked = [job.id for job in connection.execute(open_ones) if job.arguments.get("version") == name]
                if asked and not force:
                    raise UsageError(
                        f"{', '.join(asked)} is to promote or try {name}; `appliance job cancel ID` ends that, or use --force, and it fails"
                    )
                table = schema.adapter
                rests = sa.or_(table.c.parent == name, table.c.base == version.reference)
                children = list(connection.execute(sa.select(table.c.name).where(rests)).scalars())
                if children and not force:
                    raise UsageError(
                        f"{', '.join(children)} came after {name}: without it nobody can tell what they were trained on before; "
                        "remove them first, or use --force"
                    )
                if is_live:
                    self.workspace.db.move_pointer(connection, alias, None, f"{name} was removed")
                connection.execute(table.delete().where(table.c.name == name))
                self.workspace.db.audit(connection, "adapter.delete", {"name": name, "domain": version.domain})
            if version.path.exists():
                shutil.rmtree(version.path.rename(_doomed(version.path)))
        return version

    def check_adapter(self, version: AdapterVersion) -> None:
        """Raises UsageError for a model, which no alias points at, and ApplianceError as `check`."""
        if version.kind == "model":
            raise UsageError(
                f"{version.name} is a model, which no alias points at; use it as the base of an engine: "
                f'[engines.NAME] base = "{version.reference}"'
            )
        self.check(version)

    def check(self, version: AdapterVersion) -> None:
        """Raises AlteredFiles unless the version's files are complete and unaltered."""
        from finetune.version import version_hash

        if not version.path.is_dir():
            raise AlteredFiles(f"the files of {version.name} are missing ({version.path}); restore them or train again")
        # What is incomplete, or no JSON any more, was altered too.
        with suppress(OSError, ValueError):
            if version_hash(version.path) == version.sha256:
                return
        raise AlteredFiles(f"the files of {version.name} were altered after training ({version.path}); restore them or train again")

    def links(self, name: str) -> list[Link]:
        """The evidence of every pair the version was trained on."""
        table = schema.adapter_evidence
        with self.workspace.db.read() as connection:
            rows = connection.execute(sa.select(table).where(table.c.adapter == name).order_by(table.c.id))
            return [Link(row.pair_id, row.kind, row.doc_domain, row.doc_id, row.sha256, row.score) for row in rows]

    def trained_on(self, keys: Collection[DocumentKey]) -> list[dict[str, Any]]:
        """The versions with pairs that rest on one of the documents, and on which; `live` if it is in use."""
        links, wanted = schema.adapter_evidence, frozenset(keys)
        columns = (links.c.adapter, links.c.doc_domain, links.c.doc_id)
        query = sa.select(*columns, sa.func.count(links.c.pair_id.distinct()).label("pairs")).group_by(*columns).order_by(*columns)
        with self.workspace.db.read() as connection:
            rows = [row for row in connection.execute(query) if (row.doc_domain, row.doc_id) in wanted]
        found: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(row.adapter, []).append({"domain": row.doc_domain, "doc_id": row.doc_id, "pairs": row.pairs})
        live = self.in_use()
        return [{"version": name, "live": name in live, "documents": documents} for name, documents in found.items()]

    def deleted(self) -> dict[str, list[DocumentKey]]:
        """The versions that were trained on text which was deleted since, and the documents it was of: they contain deleted text."""
        links, ledger = schema.adapter_evidence, schema.deletion
        same = (ledger.c.domain == links.c.doc_domain, ledger.c.doc_id == links.c.doc_id, ledger.c.sha256 == links.c.sha256)
        query = sa.select(links.c.adapter, links.c.doc_domain, links.c.doc_id).join(ledger, sa.and_(*same)).distinct()
        found: defaultdict[str, list[DocumentKey]] = defaultdict(list)
        with self.workspace.db.read() as connection:
            for row in connection.execute(query.order_by(links.c.adapter, links.c.doc_id)):
                found[row.adapter].append(DocumentKey(row.doc_domain, row.doc_id))
        return dict(found)

    def facts(self, version: AdapterVersion, evidence: Evidence, near: Near | None) -> AdapterFacts:
        """What the router must know about `version` for one question; `near` as `appliance.adapters.tuned_questions` tells it."""
        stale = self.freshness.of(version.name)
        changed = {document.key for document in stale.documents}
        here = [passage.document.key for passage in evidence.passages if passage.document.key in changed]
        # A document that is gone is found by nobody; the questions that were learnt from it are.
        here += [key for pair in near.pairs for key in stale.pairs.get(pair, ())] if near is not None else []
        return AdapterFacts(
            version=version.name,
            pairs=int(version.metrics.get("train_examples", 0)),
            stale_share=stale.counts.share,
            unlinked=stale.counts.unlinked,
            nearest_question=None if near is None else near.best,
            near_questions=None if near is None else near.mean,
            sure_there=None if near is None else near.sure,
            stale_here=tuple(dict.fromkeys(key.id for key in here)),
        )

    def _version(self, row: sa.Row[Any]) -> AdapterVersion:
        return AdapterVersion(
            name=row.name,
            domain=row.domain,
            base=row.base,
            base_hash=row.base_hash,
            method=row.method,
            path=self.workspace.root / row.path,
            sha256=row.sha256,
            dataset=row.dataset,
            dataset_version=row.dataset_version,
            parent=row.parent,
            labels=frozenset(row.labels),
            config=row.config,
            metrics=row.metrics,
            created_at=row.created_at,
        )
