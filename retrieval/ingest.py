"""Bringing documents in and refreshing them.

Everything new is staged beside the live generation; one final transaction makes it live. A run that is killed anywhere leaves the
old generation or the new one, and the next run takes up what was staged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrieval import parsers
from retrieval.commit import check_model, collect, commit, full_disk
from retrieval.embed import Embedder
from retrieval.parsers import Parsed, ParseError
from retrieval.scan import Skipped, Source, scan
from retrieval.segments import hash_file
from retrieval.staging import IngestSettings, Progress, Recipe, Staging, language, same_recipe, stored_meta, text_hash
from retrieval.store import DocumentStore, GenerationInfo, LiveDocument, Lock
from retrieval.types import DocumentKey, RetrievalError
from retrieval.vectors import Step, VectorStore, no_step

# A file changed within this time may change again without its size and time showing it, so its time is not trusted.
_SETTLED_NS = 2_000_000_000
_MAX_ID = 1000
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A file or a row that could not be read; its previous version, if any, stays live."""

    path: str
    error: str


@dataclass(slots=True)
class IngestReport:
    """What an ingest did. `chunks` is the size of the live generation afterwards, `embedded` how many of them were embedded now."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: list[Failure] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0
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
            "chunks": self.chunks,
            "embedded": self.embedded,
            "generation": self.generation,
            "seconds": round(self.seconds, 3),
        }


def ingest(
    paths: Sequence[Path],
    *,
    store: DocumentStore,
    vectors: VectorStore,
    embedder: Embedder,
    lock: Lock,
    domain: str | None = None,
    known_domains: Collection[str] = (),
    create_domain: Callable[[str], object] = lambda name: None,
    labels: frozenset[str] = frozenset(),
    prune: bool = False,
    settings: IngestSettings | None = None,
    progress: Progress | None = None,
    step: Step = no_step,
) -> IngestReport:
    """Make the documents of files, folders and JSONL corpora live, in one new generation; none if nothing changed.

    `vectors` holds the segments, `lock` the held writer's lock. Documents go to `domain`, which is created if it is
    new; without it to the row's own domain, else to the only known one. `labels` are those of every document of this call.
    `prune` removes documents last seen under the same roots (and domain) that are gone. One broken file or row is reported and the
    others go on; what cannot be right as a whole (a missing path, an empty folder, no domain, another embedding model, a full
    disk) raises RetrievalError and changes nothing.
    """
    began = time.monotonic()
    settings = settings or IngestSettings()
    sources, skipped = scan(paths)
    live = {document.key: document for document in store.live_documents()}
    check_model(store, embedder)
    run = _Run(
        live=live,
        staging=Staging(vectors, embedder, store.writer(lock), settings, step),
        recipe=Recipe.of(settings.chunk, embedder.hash),
        domain=domain,
        default=domain or (next(iter(known_domains)) if len(known_domains) == 1 else None),
        domains=set(known_domains),
        create_domain=create_domain,
        labels=labels,
        report=IngestReport(skipped=skipped),
        progress=progress or (lambda what, done, total, **facts: None),
        total=sum(_documents_in(source) for source in sources),
    )
    with full_disk(vectors.location):
        if domain is not None:
            run.know(domain)
        elif run.default is None and not all(parsers.is_corpus(source.path) for source in sources):
            raise RetrievalError(_no_domain(run.domains))
        for source in sources:
            run.read(source)
        run.staging.flush()
        run.show()
        _finish(run, store, prune, {source.root for source in sources}, step)
    run.report.seconds = time.monotonic() - began
    return run.report


@dataclass(slots=True)
class _Run:
    """The state of one ingest."""

    live: Mapping[DocumentKey, LiveDocument]
    staging: Staging
    recipe: Recipe
    domain: str | None
    default: str | None
    domains: set[str]
    create_domain: Callable[[str], object]
    labels: frozenset[str]
    report: IngestReport
    progress: Progress
    total: int
    handled: int = 0
    seen: set[DocumentKey] = field(default_factory=set)
    # Documents whose content is stored already but whose labels or root are new, and those whose file only looks different.
    relabelled: dict[DocumentKey, LiveDocument] = field(default_factory=dict)
    touched: dict[DocumentKey, LiveDocument] = field(default_factory=dict)
    # Roots with rows that failed: which document such a row is cannot be known, so none of their rows is pruned.
    doubtful: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.staging.on_done = self.show

    def show(self, encoded: int = 0) -> None:
        waiting, chunks = self.staging.waiting_documents, self.staging.waiting_chunks
        finished = self.handled - waiting + (waiting * encoded // chunks if chunks else 0)
        self.progress("ingest", finished, max(self.total, finished), chunks=self.staging.chunks + encoded)

    def know(self, name: str) -> str:
        """Create the domain if it is new. Raises what `create_domain` raises for a name that cannot be one."""
        if name not in self.domains:
            self.create_domain(name)
            self.domains.add(name)
        return name

    def read(self, source: Source) -> None:
        """Stage the documents of one file; what cannot be read goes to the report."""
        self.staging.writer.beat()
        corpus = parsers.is_corpus(source.path)
        self.handled += not corpus
        try:
            state = None if corpus else self._file_state(source)
            if state is not None and self._is_unchanged(source, state):
                return
            for parsed in parsers.parse(source.path, source.name):
                self.handled += corpus
                if isinstance(parsed, ParseError):
                    self._fail(source, parsed)
                else:
                    self._take(source, parsed, state or {})
        except (ParseError, FileNotFoundError, PermissionError) as error:
            self._fail(source, error)
        finally:
            self.show()

    def _fail(self, source: Source, error: Exception) -> None:
        self.report.failed.append(Failure(source.name, str(error)))
        if parsers.is_corpus(source.path):
            self.doubtful.add(source.root)
        elif self.default is not None:
            self.seen.add(DocumentKey(self.default, source.name))

    def _file_state(self, source: Source) -> dict[str, Any]:
        facts = source.path.stat()
        settled = time.time_ns() - facts.st_mtime_ns > _SETTLED_NS
        known = self.live.get(DocumentKey(self.default or "", source.name))
        same = (
            known is not None
            and known.root == source.root
            and known.file_mtime_ns == str(facts.st_mtime_ns)
            and known.file_size == facts.st_size
        )
        sha256 = known.file_sha256 if known is not None and same else hash_file(source.path)
        return {"file_size": facts.st_size, "file_mtime_ns": str(facts.st_mtime_ns) if settled else None, "file_sha256": sha256}

    def _is_unchanged(self, source: Source, state: Mapping[str, Any]) -> bool:
        """Whether the file is as it was when its live version was made; then its document is dealt with here, unparsed."""
        key = DocumentKey(self.default or "", source.name)
        known = self.live.get(key)
        if known is None or known.file_sha256 != state["file_sha256"] or not self.recipe.made(known.recipe):
            return False
        self._settle(known, replace(known, labels=self.labels, root=source.root, **state))
        return True

    def _take(self, source: Source, parsed: Parsed, state: Mapping[str, Any]) -> None:
        """One parsed document: unchanged, changed in labels or place only, or to be staged."""
        try:
            key = self._key(source, parsed)
        except ParseError as error:
            self._fail(source, error)
            return
        self.report.warnings.extend(parsed.warnings)
        lang = language(parsed)
        recipe = self.recipe.full(parsed.title, parsed.uri, lang, stored_meta(parsed))
        new = LiveDocument(key, 0, text_hash(parsed.text), recipe, self.labels, source.root, **state)
        known = self.live.get(key)
        if known is not None and known.sha256 == new.sha256 and same_recipe(known.recipe, recipe):
            self._settle(known, replace(new, version_id=known.version_id, recipe=known.recipe))
            return
        self.staging.step("parsed")
        self._forget(key)
        self.staging.add(new, parsed, lang)
        self.seen.add(key)
        self.show()

    def _settle(self, known: LiveDocument, new: LiveDocument) -> None:
        self._forget(new.key)
        self.seen.add(new.key)
        if (known.labels, known.root) != (new.labels, new.root):
            self.relabelled[new.key] = new
        elif known != new:
            self.touched[new.key] = new

    def _forget(self, key: DocumentKey) -> None:
        """Of two documents with one key in a run, the later counts."""
        self.staging.drop(key)
        self.relabelled.pop(key, None)
        self.touched.pop(key, None)

    def _key(self, source: Source, parsed: Parsed) -> DocumentKey:
        id = parsed.id if parsed.id is not None else source.name
        where = source.name if parsed.id is None else f"{source.name}: document {id[:80]!r}"
        if len(id) > _MAX_ID:
            raise ParseError(f"{where}: the id has {len(id)} characters, at most {_MAX_ID} are possible; give it a shorter one")
        name = self.domain or parsed.domain or self.default
        if name is None:
            raise RetrievalError(f"{where}: {_no_domain(self.domains)}")
        if name not in self.domains and not _DOMAIN.fullmatch(name):
            raise ParseError(f'{where}, field "domain": {name[:80]!r} is no domain name; use lower-case letters, digits, - and _')
        return DocumentKey(self.know(name), id)


def _finish(run: _Run, store: DocumentStore, prune: bool, roots: set[str], step: Step) -> None:
    """Commit what the run found, and fill in the report."""
    report, staging = run.report, run.staging
    put = {**staging.done, **run.relabelled}
    gone: list[DocumentKey] = []
    if prune:
        gone = [
            document.key
            for document in run.live.values()
            if document.root in roots
            and document.key not in run.seen
            and (run.domain is None or document.key.domain == run.domain)
            and not (document.root in run.doubtful and document.file_sha256 is None)
        ]
    report.added = sum(key not in run.live for key in put)
    report.updated = len(put) - report.added
    failed = {DocumentKey(run.default or "", failure.path) for failure in report.failed}
    report.unchanged = len((run.seen & run.live.keys()) - put.keys() - failed)
    report.removed = len(gone)
    report.embedded = staging.chunks
    staging.writer.touch(run.touched.values())
    current = store.live_generation()
    if put or gone:
        why = f"ingest: {report.added} added, {report.updated} updated, {report.removed} removed"
        info: GenerationInfo | None = commit(
            store, staging.writer, staging.vectors, staging.embedder.hash, staging.hashes, list(put.values()), gone, why, step
        )
    else:
        info = store.generation(current) if current is not None else None
    collect(staging.writer, staging.vectors)
    step("collected")
    report.generation = info.id if info else None
    report.chunks = info.chunks if info else 0


def _documents_in(source: Source) -> int:
    """Files count one, corpora their lines."""
    if not parsers.is_corpus(source.path):
        return 1
    with source.path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _no_domain(known: Collection[str]) -> str:
    listed = ", ".join(sorted(known)) or "none yet"
    return f"which domain the documents belong to is not said; give --domain NAME (known: {listed})"
