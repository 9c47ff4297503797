"""The data set registry: immutable, validated states of a team's question/answer files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from appliance.datasets.adding import differences, domain_of, read_back, version_of
from appliance.datasets.deleted import gone, without_quotations
from appliance.errors import ApplianceError, UsageError
from appliance.files import beside
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.workspace import Workspace
from finetune.dataset import ReadResult, bad_rows, read_pairs, write_pairs
from finetune.formats import META
from finetune.llama_factory import REGISTRY, Unusable, read_entry, read_registry
from finetune.reading import FORMATS, Excluded
from finetune.types import DatasetError, Pair, Task

# Letters of any script; the length leaves room for the version in a file name of 255 bytes.
_NAME = re.compile(r"\w[\w.-]{0,99}")
_NAME_BYTES = 200
# Of each version where several data sets are taken together, and how long their names and versions may be then.
_SHORT_CHARS, _NAMES_CHARS, _VERSIONS_CHARS = 8, 100, 64
_AGAIN = "register it again with `appliance dataset add`, or remove it with `appliance dataset remove"
# Among the counts: the version that what a deletion left would have.
LEFT = "version_after_deletions"


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A registered state of a data set, or of several. `path` holds the normalised pairs as JSONL."""

    name: str
    version: str
    domain: str | None
    path: Path
    source: str
    mapping: Mapping[str, str]
    counts: Mapping[str, Any]
    created_at: datetime
    task: Task
    # The data sets that are taken together under this name, none for a registered one.
    parts: tuple[DatasetInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Added:
    """What `add` did. `changed` is False when the same content was there already; `notes` say what was taken for granted."""

    info: DatasetInfo
    changed: bool
    excluded: tuple[Excluded, ...]
    preview: tuple[Pair, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """What became of one entry of a folder: `unusable` ones are right but not for us, `failed` ones can be corrected."""

    name: str
    status: Literal["registered", "unchanged", "unusable", "failed"]
    added: Added | None = None
    reason: str = ""


class Datasets:
    """Data sets of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def add(
        self,
        file: Path,
        *,
        name: str | None = None,
        domain: str | None = None,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        task: Task | None = None,
    ) -> Added:
        """Validate and register `file`; `domain` None is the one it was registered for before, else the only one its rows name.

        `task` None is the one its rows name, else that of before, else "qa". The domain is created once the rows are found good.
        A pair that the appliance wrote and whose document was deleted since is a bad row. Raises UsageError (name, missing file) and
        ApplianceError listing every bad row; nothing is registered then.
        """
        name = name or file.stem
        _check_name(name)
        if not file.is_file():
            raise UsageError(f"{file} is not a file; give one of question/answer rows ({', '.join(FORMATS)})")
        if domain is not None:
            self.workspace.check_name(domain)
        try:
            read = read_pairs(file, mapping=mapping, skip_bad=skip_bad, task=task)
            unused = ", ".join(column for column in read.unused if column != META)
            notes = (*read.notes, *([f"not read, kept beside the pair: {unused}"] if unused else []))
            read = self._without_deleted(file, replace(read, notes=notes), domain, skip_bad)
            return self._register(name, domain, task, read, str(file.resolve()))
        except DatasetError as error:
            raise ApplianceError(str(error)) from error

    def add_folder(
        self, folder: Path, *, domain: str | None = None, only: Collection[str] = (), skip_bad: bool = False, task: Task | None = None
    ) -> list[FolderEntry]:
        """Register every entry of a LLaMA-Factory folder, or those in `only`; one that cannot be registered stops no other.

        Raises UsageError for a name in `only` that is not there, ApplianceError where the registry itself cannot be read.
        """
        try:
            registry = read_registry(folder)
        except DatasetError as error:
            raise ApplianceError(str(error)) from error
        unknown = [name for name in only if name not in registry]
        if unknown:
            raise UsageError(f"{folder / REGISTRY} has no entry {unknown[0]!r}; it has {', '.join(registry)}")
        if domain is not None:
            self.workspace.check_name(domain)
        found: list[FolderEntry] = []
        hub = True
        for name, raw in registry.items():
            if only and name not in only:
                continue
            ours = re.sub(r"[^\w.-]+", "-", name).strip("-.")
            try:
                _check_name(ours)
                if any(entry.added is not None and entry.added.info.name == ours for entry in found):
                    raise DatasetError(f'entry "{name}": another entry is registered as {ours} already; rename one of them')
                read = read_entry(folder, name, raw, skip_bad=skip_bad, task=task, hub=hub)
            except Unusable as error:
                hub = hub and not error.no_hub
                found.append(FolderEntry(name, "unusable", reason=str(error)))
                continue
            except (DatasetError, UsageError) as error:
                found.append(FolderEntry(name, "failed", reason=str(error)))
                continue
            except OSError as error:
                file = Path(error.filename).name if isinstance(error.filename, str | Path) else "its file"
                reason = f'entry "{name}": file_name: {file}: {error.strerror}; make it readable'
                found.append(FolderEntry(name, "failed", reason=reason))
                continue
            notes = (*read.notes, *([f'"{name}" is registered as {ours}'] if ours != name else []))
            try:
                added = self._register(ours, domain, task, replace(read, notes=notes), f"{(folder / REGISTRY).resolve()}#{name}")
            except DatasetError as error:
                found.append(FolderEntry(name, "failed", reason=f'entry "{name}": {error}'))
                continue
            found.append(FolderEntry(name, "registered" if added.changed else "unchanged", added))
        return found

    def _without_deleted(self, file: Path, read: ReadResult, domain: str | None, skip_bad: bool) -> ReadResult:
        lost = gone(self.workspace.db, read.pairs, domain)
        bad = [
            Excluded(file.name, pair.row, why.field, f'was written from "{why.document}", which was deleted since; reject it')
            for pair in read.pairs
            if (why := lost.get(pair.id)) is not None
        ]
        if bad and (not skip_bad or len(bad) == len(read.pairs)):
            raise ApplianceError(bad_rows(str(file), bad))
        kept = [without_quotations(pair) for pair in read.pairs if pair.id not in lost]
        return replace(read, pairs=kept, excluded=[*read.excluded, *bad])

    def _register(self, name: str, domain: str | None, task: Task | None, read: ReadResult, source: str) -> Added:
        """Raises DatasetError, and registers nothing, where the file that was written is not read back as it was."""
        live = self.workspace.db.pointer(f"dataset:{name}")
        before = self._row(name, live) if live else None
        pairs = read.pairs
        if before is not None and task is None and "task" not in read.mapping:
            # What neither the caller nor the rows say stays as it was.
            pairs = [replace(pair, task=before.task) for pair in pairs]
        version = version_of(pairs)
        info = DatasetInfo(
            name=name,
            version=version,
            domain=domain or domain_of(pairs, before),
            path=self.workspace.folder("datasets") / f"{name}@{version}.jsonl",
            source=source,
            mapping=dict(read.mapping),
            counts=counts_of(pairs, len(read.excluded)),
            created_at=utcnow(),
            task=pairs[0].task,
        )
        excluded, preview, notes = tuple(read.excluded), tuple(pairs[:3]), (*read.notes, *differences(info, pairs, before))
        if before is not None and (before.version, before.domain) == (info.version, info.domain) and self._is_whole(before):
            return Added(before, False, excluded, preview, notes)
        with beside(info.path) as place:
            write_pairs(pairs, place)
            read_back(place, pairs)
        if domain is not None:
            self.workspace.create_domain(domain)
        self._save(info)
        return Added(info, True, excluded, preview, notes)

    def _is_whole(self, info: DatasetInfo) -> bool:
        try:
            self.pairs(info)
        except ApplianceError:
            return False
        return LEFT not in info.counts

    def all(self) -> list[DatasetInfo]:
        """The live version of every data set."""
        table, pointer = schema.dataset, schema.pointer
        live = sa.and_(pointer.c.name == sa.literal("dataset:") + table.c.name, pointer.c.value == table.c.version)
        with self.workspace.db.read() as connection:
            return [
                self._info(row)
                for row in connection.execute(sa.select(table).select_from(table.join(pointer, live)).order_by(table.c.name))
            ]

    def get(self, name: str) -> DatasetInfo:
        """The live version of `name`, or of several, "a, b", taken together. Raises UsageError that lists what there is, or says
        why they do not go together."""
        if len(names := several(name)) > 1:
            return _together([self.get(one) for one in names])
        version = self.workspace.db.pointer(f"dataset:{name}")
        info = self._row(name, version) if version else None
        if info is None:
            known = ", ".join(other.name for other in self.all())
            raise UsageError(f"no data set {name!r}; known: {known or 'none yet, register one with `appliance dataset add FILE`'}")
        return info

    def state(self, name: str, version: str) -> DatasetInfo:
        """One registered state of `name` (of several: as `get` names and numbers it), live or not. Raises ApplianceError if it is gone."""
        if len(names := several(name)) > 1:
            return _together([self.state(one, short) for one, short in zip(names, version.split(","), strict=True)])
        info = self._row(name, version)
        if info is None:
            raise ApplianceError(f"data set {name}@{version} is not registered any more; add its file again with `appliance dataset add`")
        return info

    def pairs(self, info: DatasetInfo) -> list[Pair]:
        """The pairs of a registered state, without those a deletion took. Raises ApplianceError if the file was altered."""
        if info.parts:
            return [pair for pairs in self.by_name(info).values() for pair in pairs]
        if info.counts["pairs"] == 0:
            return []
        try:
            read = read_pairs(info.path, mapping=None, skip_bad=False)
        except (DatasetError, OSError) as error:
            raise ApplianceError(f"data set {info.name}: {error}; {_AGAIN} {info.name}`") from error
        if version_of(read.pairs) != info.counts.get(LEFT, info.version):
            raise ApplianceError(f"data set {info.name}: {info.path} was altered after it was registered; {_AGAIN} {info.name}`")
        # The domain a data set was registered for is the domain of its rows, whatever they call themselves.
        return [replace(pair, domain=info.domain) for pair in read.pairs] if info.domain else read.pairs

    def by_name(self, info: DatasetInfo) -> dict[str, list[Pair]]:
        """The pairs of each data set in `info`; where it is several, they have its name before their ids. Raises as `pairs`."""
        if not info.parts:
            return {info.name: self.pairs(info)}
        return {part.name: [replace(pair, id=f"{part.name}/{pair.id}") for pair in self.pairs(part)] for part in info.parts}

    def _save(self, info: DatasetInfo) -> None:
        values = {
            "domain": info.domain,
            "task": info.task,
            "path": str(info.path.relative_to(self.workspace.root)),
            "source": info.source,
            "mapping": dict(info.mapping),
            "counts": dict(info.counts),
            "created_at": info.created_at,
        }
        table = schema.dataset
        with self.workspace.db.write() as connection:
            same = sa.and_(table.c.name == info.name, table.c.version == info.version)
            if connection.execute(table.update().where(same).values(**values)).rowcount == 0:
                connection.execute(table.insert().values(name=info.name, version=info.version, **values))
            self.workspace.db.move_pointer(connection, f"dataset:{info.name}", info.version, "dataset add")

    def _row(self, name: str, version: str) -> DatasetInfo | None:
        """The state with this version, or whose version begins with the half of it that `_together` keeps."""
        table = schema.dataset
        same = table.c.version.startswith(version) if len(version) == _SHORT_CHARS else table.c.version == version
        with self.workspace.db.read() as connection:
            row = connection.execute(sa.select(table).where(table.c.name == name, same)).first()
        return self._info(row) if row is not None else None

    def _info(self, row: sa.Row[Any]) -> DatasetInfo:
        return DatasetInfo(
            row.name, row.version, row.domain, self.workspace.root / row.path, row.source, row.mapping, row.counts, row.created_at, row.task
        )


def several(names: str) -> list[str]:
    """The data sets that a text like "a, b" names, each once."""
    return list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def _together(parts: list[DatasetInfo]) -> DatasetInfo:
    name, version = ",".join(part.name for part in parts), ",".join(part.version[:_SHORT_CHARS] for part in parts)
    if len(tasks := {part.task for part in parts}) > 1:
        raise UsageError(f"{name}: data sets of different tasks ({', '.join(sorted(tasks))}) do not go together; write [[stages]]")
    if len(name) > _NAMES_CHARS or len(version) > _VERSIONS_CHARS:
        raise UsageError(f"{name}: these are too many data sets, or too long names; bring their rows into one file and add that")
    domains = {part.domain for part in parts}
    counts: dict[str, Any] = {}
    for part in parts:
        for key, value in part.counts.items():
            if isinstance(value, dict):
                counts[key] = dict(Counter(counts.get(key, {})) + Counter(value))
            elif isinstance(value, int):
                counts[key] = counts.get(key, 0) + value
    return DatasetInfo(
        name=name,
        version=version,
        domain=domains.pop() if len(domains) == 1 else None,
        path=parts[0].path.parent,
        source=", ".join(part.source for part in parts),
        mapping={},
        counts=counts,
        created_at=max(part.created_at for part in parts),
        task=parts[0].task,
        parts=tuple(parts),
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name.encode()) > _NAME_BYTES:
        raise UsageError(
            f"{name!r} cannot be a data set's name; use letters, digits, . _ - "
            f"(at most 100, and {_NAME_BYTES} bytes), for example --name pairs"
        )


def counts_of(pairs: list[Pair], excluded: int) -> dict[str, Any]:
    """What is counted of a state with `pairs`, when `excluded` rows were not taken."""
    return {
        "pairs": len(pairs),
        "excluded": excluded,
        "unanswerable": sum(not pair.answerable for pair in pairs),
        "preferences": sum(pair.rejected is not None for pair in pairs),
        "conversations": len({pair.conversation for pair in pairs} - {None}),
        "splits": dict(Counter(pair.split or "unsplit" for pair in pairs)),
        "languages": dict(Counter(pair.lang for pair in pairs)),
    }
