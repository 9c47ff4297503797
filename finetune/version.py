"""Immutable versions of adapters and models: a folder named by domain and content, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from finetune.curve import draw
from finetune.disk import sync
from finetune.lint import CONFIG, MAX_RANK, WEIGHTS, EngineKind, lint_files
from finetune.runs import CURVE, EVENTS
from finetune.settings import yields
from finetune.tokens import load_tokenizer, template_hash
from finetune.train import TrainResult
from finetune.types import TrainingError

FACTS, LOG = "version.json", "log.jsonl"
_MODEL_FILES = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """A finished version as its version.json tells it; `kind` says whether it is an adapter or a whole model.

    `sha256` is over weights and config, `settings` are the hyperparameters, `base_ref` and `base_hash` name what it was trained from.
    """

    name: str
    domain: str
    path: Path
    sha256: str
    base_ref: str
    base_hash: str
    method: str
    dataset: str
    dataset_version: str
    data_hash: str
    template_hash: str
    settings: Mapping[str, Any]
    libraries: Mapping[str, str]
    seed: int
    metrics: Mapping[str, Any]
    created_at: datetime
    parent: str | None
    labels: tuple[str, ...]
    evidence: tuple[Mapping[str, Any], ...]

    @property
    def kind(self) -> Literal["adapter", "model"]:
        return yields(self.method)


def finish_version(
    result: TrainResult,
    target_root: Path,
    domain: str,
    *,
    dataset: str,
    dataset_version: str,
    parent: str | None = None,
    labels: Iterable[str] = (),
    evidence: Iterable[Mapping[str, Any]] = (),
) -> AdapterVersion:
    """Write the version into ``target_root/<domain>@<first 8 of its sha256>``: beside, fsync, rename.

    The folder holds peft's two files (`adapter_model.safetensors`, `adapter_config.json`), or a complete model with tokenizer
    and chat template, and `version.json`, `log.jsonl`, `loss.png` and TensorBoard's files. `evidence` says for each trained pair
    what it rests on, as plain data. Content that is there already is returned as it is. Raises TrainingError if the domain
    cannot name a folder or the disk fails; nothing is left behind then, and after a kill only a ``.tmp`` folder that no reader lists.
    """
    if not _NAME.fullmatch(domain):
        raise TrainingError(f"domain {domain!r}: expected letters, digits, '_', '.' or '-', at most 64")
    staging = target_root / f"{domain}@{uuid.uuid4().hex[:8]}.tmp"
    try:
        target_root.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        if yields(result.settings.method) == "model":
            for file in result.adapter.iterdir():
                shutil.copyfile(file, staging / file.name)
        else:
            shutil.copyfile(result.adapter / WEIGHTS, staging / WEIGHTS)
            _write(staging / CONFIG, _canonical(result.adapter / CONFIG, result.base_ref))
        sha256 = version_hash(staging)
        name = f"{domain}@{sha256[:8]}"
        target = target_root / name
        if target.exists():
            known = read_version(target)
            if known.sha256 == sha256:
                return known
            raise TrainingError(f"{target}: another version has the same short hash; train with another seed")
        facts = {"name": name, "domain": domain, "sha256": sha256, "dataset": dataset, "dataset_version": dataset_version}
        more = {"parent": parent, "labels": sorted(labels), "evidence": [dict(link) for link in evidence]}
        _write(staging / FACTS, json.dumps(facts | more | _facts(result), ensure_ascii=False, indent=2) + "\n")
        _write(staging / LOG, "".join(json.dumps(event) + "\n" for event in result.log))
        draw(result.log, name, staging / CURVE)
        events = result.adapter.parent / EVENTS
        if events.is_dir():
            shutil.copytree(events, staging / EVENTS)
        for file in staging.iterdir():
            sync(file)
        sync(staging)
        staging.rename(target)
        sync(target_root)
    except OSError as error:
        raise TrainingError(f"{target_root}: the version could not be written ({error}); check the space and the rights there") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read_version(target)


def clear_unfinished(target_root: Path, domain: str) -> None:
    """Remove what kills left of versions of `domain`. Only while nobody writes one."""
    for folder in target_root.glob(f"{domain}@*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def version_hash(path: Path) -> str:
    """The sha256 (hex) that a version is named by. Raises OSError.

    For an adapter it is over the config in canonical form and the weights; for a model over the names and bytes of all its files.
    """
    if not (path / CONFIG).exists() and (path / "config.json").exists():
        digest = hashlib.sha256()
        for file in sorted(file for file in path.iterdir() if file.suffix in _MODEL_FILES and file.name not in (FACTS, LOG)):
            digest.update(f"{file.name}\0{_file_hash(file)}\n".encode())
        return digest.hexdigest()
    digest = hashlib.sha256(_canonical(path / CONFIG).encode())
    with (path / WEIGHTS).open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_version(path: Path) -> AdapterVersion:
    """The version in `path`. Raises TrainingError if it is incomplete, altered, or not named by its content."""
    try:
        values = json.loads((path / FACTS).read_text(encoding="utf-8"))
        version = AdapterVersion(
            path=path,
            created_at=datetime.fromisoformat(values.pop("created_at")),
            labels=tuple(values.pop("labels")),
            evidence=tuple(values.pop("evidence")),
            **values,
        )
        found = version_hash(path)
    except OSError as error:
        raise TrainingError(f"{path}: not a complete version ({error}); restore the folder or train again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path / FACTS}: not the facts of a version ({error!r}); restore the file or train again") from error
    if found != version.sha256 or path.name != f"{version.domain}@{found[:8]}" or version.name != path.name:
        raise TrainingError(f"{path}: the files are not what was trained (content hash {found[:8]}); restore the folder or train again")
    return version


def rank_of(path: Path) -> int | None:
    """The rank of the LoRA adapter in `path`; None if it has none. PiSSA doubles that of its settings, and a stage after it keeps that.

    Raises OSError.
    """
    rank = json.loads((path / CONFIG).read_text(encoding="utf-8")).get("r") if (path / CONFIG).exists() else None
    return int(rank) if rank else None


def lint_adapter(
    path: Path,
    base: Path,
    *,
    base_hash: str = "",
    engine: EngineKind = "local",
    max_rank: int = MAX_RANK,
    chat_template: str | None = None,
) -> list[str]:
    """What keeps the adapter in `path` from being served on the model in the folder `base`, in plain words; empty if nothing does.

    Safetensors only, no bias, no modules_to_save, tensors that fit the base, a variant that the `engine` can serve (see
    `finetune.lint.lint_files`), files as trained, trained with the template that the engine uses (`chat_template`, None for
    the model's own), and (unless '') for the base with `base_hash`. A folder without version.json, made elsewhere, is judged
    by its files alone. Raises TrainingError if `base` itself holds no model.
    """
    problems = lint_files(path, base, engine, max_rank)
    if not (path / FACTS).exists():
        return problems
    try:
        version = read_version(path)
    except TrainingError as error:
        return [*problems, str(error)]
    if base_hash and version.base_hash != base_hash:
        problems.append(
            f"trained for another base: {version.base_ref} ({version.base_hash[:8]}), this one is {base_hash[:8]}; train for it"
        )
    if version.template_hash != template_hash(load_tokenizer(base, chat_template)):
        problems.append(
            f"trained with another chat template ({version.template_hash[:8]}) than the engine uses; "
            "set the engine's chat_template to the one of the training, or train again"
        )
    return problems


def list_versions(root: Path) -> list[AdapterVersion]:
    """Every complete, unaltered version in `root`, oldest first; anything else there is passed over."""
    found: list[AdapterVersion] = []
    for path in sorted(root.glob("*@*")):
        if path.suffix == ".tmp" or not path.is_dir():
            continue
        try:
            found.append(read_version(path))
        except TrainingError:
            continue
    return sorted(found, key=lambda version: (version.created_at, version.name))


def _facts(result: TrainResult) -> dict[str, Any]:
    return {
        "base_ref": result.base_ref,
        "base_hash": result.base_hash,
        "method": result.settings.method,
        "data_hash": result.data_hash,
        "template_hash": result.template_hash,
        "settings": result.settings.to_json(),
        "libraries": dict(result.libraries),
        "seed": result.settings.seed,
        "metrics": result.metrics(),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _canonical(path: Path, base_ref: str | None = None) -> str:
    """peft's config with sorted keys and lists (it writes sets, in any order), naming the base by reference and not by folder."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if base_ref is not None:
        values["base_model_name_or_path"] = base_ref
    for key, value in values.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[key] = sorted(value)
    return json.dumps(values, ensure_ascii=False, sort_keys=True, indent=2) + "\n"


def _file_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
