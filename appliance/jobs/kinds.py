"""What a job can do: each kind is a command of the command line, with what it may not run beside, and what is kept of its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.files import write_whole

Arguments = Mapping[str, Any]
# Entries kept of a list in a result.
_LISTED = 50


@dataclass(frozen=True, slots=True)
class Kind:
    """`command` makes the command's arguments from the job's, in a folder of its own; jobs of one `resource` run one after the other.

    `locks` are those the command takes (``{domain}`` is the job's): while somebody else holds one, the job waits.
    `keep` are the fields of the command's JSON that are kept, None for all: a job holds no text of questions, answers or documents.
    """

    command: Callable[[Arguments, Path], list[str]]
    resource: str
    locks: Sequence[str] = ()
    keep: Sequence[str] | None = None


def _option(name: str, value: object) -> list[str]:
    """``--name=value``, so that no value is taken for an option; nothing for None."""
    return [] if value is None else [f"--{name}={value}"]


def _flag(name: str, on: object) -> list[str]:
    return [f"--{name}"] if on else []


def _ingest(given: Arguments, folder: Path) -> list[str]:
    labels = [part for label in given["labels"] for part in _option("label", label)]
    options = [*_option("domain", given["domain"]), *labels, *_flag("archives", given["archives"])]
    return ["ingest", "--json", *options, "--", *given["paths"]]


def _dataset(given: Arguments, folder: Path) -> list[str]:
    mapping = ",".join(f"{ours}={theirs}" for ours, theirs in (given["mapping"] or {}).items())
    options = [_option(name, given[name]) for name in ("name", "domain", "task")]
    flags = [*_option("map", mapping or None), *_flag("skip-bad", given["skip_bad"])]
    return ["dataset", "add", "--json", *(part for option in options for part in option), *flags, "--", given["path"]]


def _tune(given: Arguments, folder: Path) -> list[str]:
    options = [part for name in ("domain", "dataset", "method") for part in _option(name, given[name])]
    if given["settings"]:
        # JSON is YAML.
        file = folder / "settings.yaml"
        write_whole(file, json.dumps(given["settings"], ensure_ascii=False))
        options += _option("config", file)
    return ["tune", "--json", *options, *_flag("promote", given["promote"])]


def _eval(given: Arguments, folder: Path) -> list[str]:
    names = {"dataset": "dataset", "arms": "arms", "split": "split", "limit": "limit", "max-tokens": "max_tokens"}
    return ["eval", "run", "--json", *(part for option, name in names.items() for part in _option(option, given[name]))]


def _version(*command: str) -> Callable[[Arguments, Path], list[str]]:
    def made(given: Arguments, folder: Path) -> list[str]:
        forced = [*_flag("force", given["why"]), *_option("why", given["why"])]
        return [*command, "--json", *_option("share", given.get("share")), *forced, "--", given["version"]]

    return made


_COUNTS = ("added", "updated", "unchanged", "removed", "duplicates", "chunks", "generation", "seconds")
# Not the folder on the server.
_TRAINED = (
    *("domain", "version", "kind", "method", "train_examples", "dropped", "train_loss", "eval_loss", "tokens_per_second"),
    *("shortcuts_not_taken", "seconds", "estimated_mib", "peak_mib", "promoted", "why", "gate"),
)

KINDS: Mapping[str, Kind] = {
    "ingest": Kind(_ingest, "index", ("index",), (*_COUNTS, "failed", "skipped", "warnings")),
    "document-remove": Kind(
        lambda given, folder: ["document", "remove", "--json", *_option("domain", given["domain"]), "--", *given["documents"]],
        "index",
        ("index",),
    ),
    "index-rollback": Kind(lambda given, folder: ["index", "rollback", "--json", "--", str(given["generation"])], "index", ("index",)),
    "index-rebuild": Kind(lambda given, folder: ["index", "rebuild", "--json"], "index", ("index",)),
    "index-compact": Kind(lambda given, folder: ["index", "compact", "--json"], "index", ("index",)),
    "dataset-add": Kind(
        _dataset, "datasets", (), ("name", "version", "domain", "task", "changed", "mapping", "counts", "notes", "excluded")
    ),
    "dataset-check": Kind(
        lambda given, folder: ["dataset", "check", "--json", "--", given["dataset"]],
        "datasets",
        (),
        ("name", "version", "excluded", "reasons", "warnings", "notes"),
    ),
    "tune": Kind(_tune, "models", ("tune:{domain}",), _TRAINED),
    "retrain": Kind(
        lambda given, folder: ["adapter", "retrain", "--json", *_option("domain", given["domain"])], "models", ("tune:{domain}",)
    ),
    "adapter-promote": Kind(_version("adapter", "promote"), "models", ("gate:{domain}",)),
    "canary-start": Kind(_version("adapter", "canary", "start"), "models", ("gate:{domain}",)),
    "eval-run": Kind(_eval, "models", (), ("run_id", "dataset", "n", "errors", "first_error")),
}


def kept(kind: str, data: Any) -> Any:
    """What is kept of the JSON that the command of a job printed."""
    keep = KINDS[kind].keep
    if not isinstance(data, dict):
        return data
    chosen = data if keep is None else {name: data[name] for name in keep if name in data}
    return {name: value[:_LISTED] if isinstance(value, list) else value for name, value in chosen.items()}
