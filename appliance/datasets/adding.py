"""What is decided, checked and said while a data set is added."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.dataset import dataset_version, read_pairs
from finetune.types import DatasetError, Pair

if TYPE_CHECKING:
    from appliance.datasets.registry import DatasetInfo

_VERSION_CHARS = 16


def version_of(pairs: list[Pair]) -> str:
    """What a state with these pairs is called."""
    return dataset_version(pairs)[:_VERSION_CHARS]


def read_back(path: Path, pairs: list[Pair]) -> None:
    """Raises DatasetError naming the first of `pairs` that is not read from `path` as it was written there."""
    try:
        back = read_pairs(path, skip_bad=True)
    except DatasetError as error:
        raise DatasetError(f"{pairs[0].file}: cannot be stored, so nothing was registered ({error})") from error
    if version_of(back.pairs) == version_of(pairs):
        return
    bad = {fault.row: f'field "{fault.field}": {fault.reason}' if fault.field else fault.reason for fault in back.excluded}
    there = {pair.row: pair for pair in back.pairs}
    row, lost = next((row, pair) for row, pair in enumerate(pairs, 1) if row not in there or version_of([there[row]]) != version_of([pair]))
    reason = bad.get(row, "it reads otherwise than it was written")
    raise DatasetError(f"{lost.file} row {lost.row}: cannot be stored ({reason}); nothing was registered, correct the row or remove it")


def domain_of(pairs: list[Pair], before: DatasetInfo | None) -> str | None:
    """The domain of a data set that is added without one: the one it was given before, else the only one that its rows name."""
    said = {pair.domain for pair in pairs if pair.domain}
    if before is not None and before.domain and (not said or not _by_its_rows(before)):
        return before.domain
    return said.pop() if len(said) == 1 else None


def _by_its_rows(info: DatasetInfo) -> bool:
    try:
        return {pair.domain for pair in read_pairs(info.path).pairs if pair.domain} == {info.domain}
    except (DatasetError, OSError):
        return False


def differences(info: DatasetInfo, pairs: list[Pair], before: DatasetInfo | None) -> list[str]:
    """What somebody who adds `info` may not have meant: beside what its rows name, and beside the version before."""
    notes: list[str] = []
    others = Counter(pair.domain for pair in pairs if pair.domain not in (None, info.domain)) if info.domain else Counter()
    if others:
        named = ", ".join(f"{name} {number}" for name, number in others.most_common())
        notes.append(f"{others.total()} pairs name another domain ({named}) and count as {info.domain}")
    for what, now, then in (("domain", info.domain, before.domain), ("task", info.task, before.task)) if before is not None else ():
        if now != then:
            notes.append(f"its {what} is {now or 'none'} now and was {then or 'none'} before; --{what} names it")
    if before is not None and before.source != info.source:
        notes.append(f"{info.name} was registered from {before.source} before")
    return notes
