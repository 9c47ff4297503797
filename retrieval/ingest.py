"""Bringing documents in and refreshing them.

Everything new is staged beside the live generation; one final transaction makes it live. A run that is killed anywhere leaves the
old generation or the new one, and the next run takes up what was staged.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from retrieval import duplicates, parsers
from retrieval.commit import check_model, collect, commit, full_disk
from retrieval.embed import Embedder
from retrieval.isolation import Parsers
from retrieval.live import Live
from retrieval.parsers import Parsed, ParseError, Skipped
from retrieval.report import Failure, IngestReport
from retrieval.scan import Source, scan
from retrieval.segments import hash_file
from retrieval.staging import IngestSettings, Progress, Recipe, Staging, add_again, language, show, stored_meta, text_hash
from retrieval.store import DocumentStore, GenerationInfo, LiveDocument, Lock, Warned
from retrieval.types import DocumentKey, RetrievalError
from retrieval.vectors import Step, VectorStore, no_step

# A file changed within this time may change again without its size and time showing it, so its time is not trusted.
_SETTLED_NS = 2_000_000_000
# Characters; and twice as many bytes, as an index entry of PostgreSQL holds no more than 2,700.
_MAX_ID = 1000
# Near duplicates that are compared in the report.
_SHOWN = 5
_EMPTY = text_hash("")
_NO_TEXT = "there is no text, so nothing of it can be found; ingest a version with text if it shows any"
_REMOVED = "was removed; ingest it by hand to bring it back"
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


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
    revive: bool = True,
    settings: IngestSettings | None = None,
    progress: Progress | None = None,
    step: Step = no_step,
) -> IngestReport:
    """Make the documents of files, folders and JSONL corpora live, in one new generation; none if nothing changed.

    `vectors` holds the segments, `lock` the held writer's lock. Documents go to `domain`, which is created if it is
    new; without it to the row's own domain, else to the only known one. `labels` are those of every document of this call.
    `prune` removes documents last seen under the same roots (and domain) that are gone. Without `revive`, documents that were removed with
    the text they come with, or whose files have not changed since they were removed, are skipped: nobody asked for them. One broken file or
    row is reported and the others go on; what cannot be right as a whole (a missing path, an empty folder, no domain, another embedding
    model, a full disk) raises RetrievalError and changes nothing.
    """
    began = time.monotonic()
    settings = settings or IngestSettings()
    sources, skipped = scan(paths, archives=settings.archives)
    check_model(store, embedder)
    writer = store.writer(lock)
    readers = Parsers(settings.limits, settings.options, waiting=writer.beat)
    run = _Run(
        live=Live(store),
        parsers=readers,
        staging=Staging(vectors, embedder, writer, settings, step),
        recipe=Recipe.of(settings, embedder.hash),
        domain=domain,
        default=domain or (next(iter(known_domains)) if len(known_domains) == 1 else None),
        domains=set(known_domains),
        create_domain=create_domain,
        labels=labels,
        revive=revive,
        report=IngestReport(skipped=skipped),
        progress=progress or (lambda what, done, total, **facts: None),
    )
    with readers, full_disk(vectors.location):
        if domain is not None:
            run.know(domain)
        elif run.default is None and not all(parsers.is_corpus(source.path) for source in sources):
            raise RetrievalError(_no_domain(run.domains))
        run.live.look_up([DocumentKey(run.default or "", source.name) for source in sources if not parsers.is_corpus(source.path)])
        work = [run.work_of(source) for source in sources]
        run.documents, run.bytes = sum(one.documents for one in work), sum(one.bytes for one in work)
        for source, one in zip(sources, work, strict=True):
            run.read(source, one)
        run.staging.flush()
        run.show()
        _finish(run, store, prune, {source.root for source in sources}, step)
    run.report.seconds = time.monotonic() - began
    return run.report


class _Work(NamedTuple):
    """How much there is to read in a file; of a corpus, every line counts as a document."""

    documents: int
    bytes: int


_NOTHING = _Work(1, 0)


@dataclass(slots=True)
class _Run:
    """The state of one ingest.

    `documents` and `bytes` are what all files together have, `handled` and `read_bytes` what is read of them; of the `present` file, `rows`
    documents are.
    """

    live: Live
    parsers: Parsers
    staging: Staging
    recipe: Recipe
    domain: str | None
    default: str | None
    domains: set[str]
    create_domain: Callable[[str], object]
    labels: frozenset[str]
    revive: bool
    report: IngestReport
    progress: Progress
    documents: int = 0
    bytes: int = 0
    handled: int = 0
    read_bytes: int = 0
    present: _Work = _NOTHING
    rows: int = 0
    seen: set[DocumentKey] = field(default_factory=set)
    # Documents whose content is stored already but whose labels or root are new, and those whose file only looks different.
    relabelled: dict[DocumentKey, LiveDocument] = field(default_factory=dict)
    touched: dict[DocumentKey, LiveDocument] = field(default_factory=dict)
    # Roots with rows that failed, or with a file that may have had rows and is empty: which ones cannot be known, so no row is pruned.
    doubtful: set[str] = field(default_factory=set)
    # Roots under which there is any text, or a failure.
    filled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.staging.on_done = self.show

    def show(self) -> None:
        read = self.read_bytes + self.present.bytes * min(1.0, (self.rows + self.staging.cut) / self.present.documents)
        share = read / self.bytes if self.bytes else 1.0
        show(self.progress, "ingest", self.staging, share, documents=self.handled, documents_total=self.documents)

    def work_of(self, source: Source) -> _Work:
        """What reading a file will be: nothing if it looks as it did when it was read last."""
        try:
            if parsers.is_corpus(source.path) and not parsers.is_archive(source.path):
                return _work_in(source.path)
            facts = source.path.stat()
        except OSError:
            return _NOTHING  # Reading it will say what is wrong.
        return _Work(1, 0 if self._looks_unchanged(source, facts) else facts.st_size)

    def know(self, name: str) -> str:
        """Create the domain if it is new. Raises what `create_domain` raises for a name that cannot be one."""
        if name not in self.domains:
            self.create_domain(name)
            self.domains.add(name)
        return name

    def read(self, source: Source, work: _Work) -> None:
        """Stage the documents of one file, and show how far that is."""
        self.staging.writer.beat()
        self.present = work
        self._stage(source)
        self.handled += not self.rows
        self.read_bytes += work.bytes
        self.present, self.rows = _NOTHING, 0
        self.show()

    def _stage(self, source: Source) -> None:
        """Stage the documents of one file; what cannot be read goes to the report."""
        corpus = parsers.is_corpus(source.path)
        if corpus:
            self.live.look_under(source.root)
        try:
            state = None if corpus else self._file_state(source)
            if state is not None and self._is_unchanged(source, state):
                return
            empty, blank = True, 0
            for parsed in self.parsers.parse(source.path, source.name):
                if isinstance(parsed, ParseError):
                    self._fail(source, parsed)
                elif isinstance(parsed, Skipped):
                    self.report.skipped.append(parsed)
                else:
                    self._take(source, parsed, state or {})
                empty = empty and isinstance(parsed, Skipped)
                blank += corpus and isinstance(parsed, Parsed) and _is_blank(parsed)
                if corpus:
                    self.rows += 1
                    self.handled += 1
                    self.show()
            if empty:
                self._note(source, empty)
                self.report.warnings.append(f"{source.name}: there is no document in it")
            if blank:
                self.report.warnings.append(f"{source.name}: in {blank} of its documents {_NO_TEXT}")
        except (ParseError, FileNotFoundError, PermissionError) as error:
            self._fail(source, error)

    def _fail(self, source: Source, error: Exception) -> None:
        self.report.failed.append(Failure(source.name, str(error)))
        self.filled.add(source.root)
        if parsers.is_corpus(source.path):
            self.doubtful.add(source.root)
        elif self.default is not None:
            self.seen.add(DocumentKey(self.default, source.name))

    def _note(self, source: Source, empty: bool) -> None:
        """Remember whether the root has anything."""
        (self.doubtful if empty else self.filled).add(source.root)

    def _file_state(self, source: Source) -> dict[str, Any]:
        facts = source.path.stat()
        settled = time.time_ns() - facts.st_mtime_ns > _SETTLED_NS
        known = self._looks_unchanged(source, facts)
        sha256 = known.file_sha256 if known is not None else hash_file(source.path)
        return {"file_size": facts.st_size, "file_mtime_ns": str(facts.st_mtime_ns) if settled else None, "file_sha256": sha256}

    def _looks_unchanged(self, source: Source, facts: os.stat_result) -> LiveDocument | None:
        """The live document of a file, if it is from this file as it was when it was read: same place, size and time."""
        known = self.live.get(DocumentKey(self.default or "", source.name))
        if known is None or (known.root, known.file_size) != (source.root, facts.st_size) or known.file_mtime_ns != str(facts.st_mtime_ns):
            return None
        return known

    def _is_unchanged(self, source: Source, state: Mapping[str, Any]) -> bool:
        """Whether the file is as it was when its live version was made; then its document is dealt with here, unparsed."""
        key = DocumentKey(self.default or "", source.name)
        known = self.live.get(key)
        if known is None or known.file_sha256 != state["file_sha256"] or not self.recipe.made(known.recipe, key.domain):
            return False
        if known.file_warned is not None:
            if known.file_warned.options != self.staging.settings.options.key:
                return False
            self.report.warnings.extend(known.file_warned.warnings)
        self._note(source, known.sha256 == _EMPTY)
        self._settle(known, replace(known, labels=self.labels, root=source.root, **state))
        return True

    def _take(self, source: Source, parsed: Parsed, state: Mapping[str, Any]) -> None:
        """One parsed document: unchanged, changed in labels or place only, or to be staged."""
        try:
            key = self._key(source, parsed)
        except ParseError as error:
            self._fail(source, error)
            return
        warnings = parsed.warnings
        if parsed.id is None and _is_blank(parsed):
            warnings += (f"{source.name}: {_NO_TEXT}",)
        self.report.warnings.extend(warnings)
        lang = language(parsed)
        recipe = self.recipe.full(key.domain, parsed.title, parsed.uri, lang, stored_meta(parsed))
        warned = Warned(warnings, self.staging.settings.options.key) if warnings and state else None
        new = LiveDocument(key, 0, text_hash(parsed.text), recipe, self.labels, source.root, **state, file_warned=warned)
        self._note(source, new.sha256 == _EMPTY and parsed.id is None)
        known = self.live.get(key)
        if known is not None and (known.sha256, known.recipe) == (new.sha256, recipe):
            self._settle(known, replace(new, version_id=known.version_id))
            return
        if not self.revive and self._was_removed(new):
            self.report.skipped.append(Skipped(source.name if parsed.id is None else f"{source.name}: document {key.id!r}", _REMOVED))
            self.seen.add(key)
            return
        self.staging.step("parsed")
        self._forget(key)
        self.staging.add(new, parsed, lang)
        self.seen.add(key)

    def _was_removed(self, new: LiveDocument) -> bool:
        """Whether a document was removed with this text, or its file has not changed since it was removed."""
        removals = self.live.store.removals(new.key)
        if new.sha256 in removals or not removals:
            return bool(removals)
        last = max(removals.values()).timestamp() * 1e9
        return new.file_mtime_ns is not None and int(new.file_mtime_ns) < last and self.live.get(new.key) is None

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
        if len(id) > _MAX_ID or len(id.encode("utf-8")) > 2 * _MAX_ID:
            raise ParseError(
                f"{where}: the id has {len(id)} characters in {len(id.encode('utf-8'))} bytes, at most {_MAX_ID} characters and "
                f"{2 * _MAX_ID} bytes are possible; give it a shorter one"
            )
        name = self.domain or parsed.domain or self.default
        if name is None:
            raise RetrievalError(f"{where}: {_no_domain(self.domains)}")
        if name not in self.domains and not _DOMAIN.fullmatch(name):
            raise ParseError(f'{where}, field "domain": {name[:80]!r} is no domain name; use lower-case letters, digits, - and _')
        return DocumentKey(self.know(name), id)


def _finish(run: _Run, store: DocumentStore, prune: bool, roots: set[str], step: Step) -> None:
    """Commit what the run found, and fill in the report."""
    report, staging = run.report, run.staging
    gone: list[DocumentKey] = []
    if prune:
        known = {root: [one for one in run.live.under(root) if run.domain in (None, one.key.domain)] for root in roots}
        for root in sorted(roots - run.filled):
            if lost := sum(document.key not in run.seen for document in known[root]):
                raise RetrievalError(
                    f"{root}: there is nothing in it, and {lost} documents came from it before; nothing was changed: "
                    "put the right file there, or name what is to go with `appliance document remove`"
                )
        gone = [
            document.key
            for root, documents in known.items()
            for document in documents
            if document.key not in run.seen and not (root in run.doubtful and document.file_sha256 is None)
        ]
    add_again(staging, staging.writer.strays([*staging.done.values(), *run.relabelled.values()], gone))
    put = {**run.relabelled, **staging.done}
    report.added = len(put) - len(run.live.among(put))
    report.updated = len(put) - report.added
    failed = {DocumentKey(run.default or "", failure.path) for failure in report.failed}
    report.unchanged = len(run.live.among(run.seen) - put.keys() - failed)
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
    collect(staging.writer, staging.vectors, step)
    report.generation = info.id if info else None
    report.chunks = info.chunks if info else 0
    _look_for_copies(report, store, staging.done)


def _look_for_copies(report: IngestReport, store: DocumentStore, new: Collection[DocumentKey]) -> None:
    """Report which of the new documents have the text of another one, or nearly."""
    report.duplicates = duplicates.copies(store.copies(new), new)
    pairs = [(first, second) for first, second, *signed in store.alike(new) if duplicates.estimate(*signed) >= duplicates.THRESHOLD]
    report.near_duplicates = len({second for _, second in pairs})
    found = (duplicates.compare(first, second, store.document) for first, second in pairs[:_SHOWN])
    report.near = [near for near in found if near is not None]


def _is_blank(parsed: Parsed) -> bool:
    return not parsed.text or parsed.text.isspace()


def _work_in(path: Path) -> _Work:
    """What there is in a corpus."""
    with path.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        return _Work(max(1, lines), file.tell())


def _no_domain(known: Collection[str]) -> str:
    listed = ", ".join(sorted(known)) or "none yet"
    return f"which domain the documents belong to is not said; give --domain NAME (known: {listed})"
