"""Draft pairs: a JSONL file that people review, written so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, UsageError
from appliance.files import write_whole
from finetune.dataset import REVIEWS
from finetune.fields import nearest
from finetune.reading import Excluded, kind, parse_json, read_text
from finetune.types import DatasetError

ALL = "all"


@dataclass(slots=True)
class Unfinished:
    """A draft being written: the rows are in ``FILE.part``, how far it is in ``FILE.state``; `finish` gives the file its name.

    `made_by` is what decides the rows; `position` is how many passages were looked at, `thrown_away` counts by reason.
    """

    file: Path
    made_by: Mapping[str, Any]
    position: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    thrown_away: dict[str, int] = field(default_factory=dict)
    _bytes: int = 0

    @classmethod
    def open(cls, file: Path, made_by: Mapping[str, Any]) -> Unfinished:
        """A new draft, or the one that an interrupted run of the same settings left. Raises UsageError if there is another in the way."""
        check_new(file)
        draft = cls(file, made_by)
        if not draft._state.is_file() or not draft._part.is_file():
            return draft
        state = json.loads(draft._state.read_text("utf-8"))
        different = [name for name, value in made_by.items() if state["made_by"].get(name) != value]
        if different:
            changes = ", ".join(f"{name} {state['made_by'].get(name)!r}, now {made_by[name]!r}" for name in different)
            raise UsageError(
                f"{draft._part} was begun with other settings ({changes}); go on with those, name another file with --out, "
                f"or delete {draft._part} and {draft._state}"
            )
        draft.position, draft.thrown_away, draft._bytes = state["position"], state["thrown_away"], state["bytes"]
        content = draft._part.read_bytes()[: draft._bytes]
        if len(content) < draft._bytes:
            raise ApplianceError(f"{draft._part} is shorter than it was; delete it and {draft._state} to begin anew")
        draft.rows = [json.loads(line) for line in content.splitlines()]
        return draft

    def add(self, rows: Sequence[dict[str, Any]], thrown_away: Iterable[str], position: int) -> None:
        """Keep `rows` and the reasons of what was thrown away; everything up to `position` is done once this returns."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with self._part.open("r+b" if self._part.exists() else "wb") as file:
            # Rows after the last known state are of a run that was killed between the two files.
            file.seek(self._bytes)
            file.truncate()
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(lines)
        self.rows += rows
        self.position = position
        for reason in thrown_away:
            self.thrown_away[reason] = self.thrown_away.get(reason, 0) + 1
        state = {"made_by": dict(self.made_by), "position": position, "thrown_away": self.thrown_away, "bytes": self._bytes}
        write_whole(self._state, json.dumps(state, ensure_ascii=False))

    def finish(self) -> None:
        """Give the draft its name."""
        self._part.replace(self.file)
        self._state.unlink()

    @property
    def _part(self) -> Path:
        return self.file.with_name(self.file.name + ".part")

    @property
    def _state(self) -> Path:
        return self.file.with_name(self.file.name + ".state")


def check_new(file: Path) -> None:
    """Raises UsageError where a draft cannot be written: there is one, or no folder for it."""
    if file.exists():
        raise UsageError(f"{file} is there already; review it with `appliance dataset review {file}`, or name another with --out")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent} is not a folder; make it, or name another file with --out")


def write_draft(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a whole draft. Raises UsageError as `check_new`."""
    check_new(file)
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_draft(file: Path) -> list[dict[str, Any]]:
    """The rows of a draft. Raises UsageError if there is no such file, ApplianceError for a text or a row that is none."""
    if not file.is_file():
        raise UsageError(f"{file} is not a file; `appliance dataset from-documents` writes one")
    try:
        text = read_text(file)
    except DatasetError as error:
        raise ApplianceError(str(error)) from error
    rows: list[dict[str, Any]] = []
    # At line feeds only: a text may hold other separators of lines, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise ApplianceError(f"{file} row {number}: not valid JSON ({error}); correct the line") from error
        fault = _fault(row)
        if fault is not None:
            raise ApplianceError(f"{Excluded(str(file), number, *fault)}; correct the line")
        rows.append(row)
    return rows


def _fault(row: Any) -> tuple[str, str] | None:
    """The field of a draft's row that cannot be looked at, and why; None if all is well."""
    if not isinstance(row, dict):
        return "", f'expected an object with "id" and "review", found {kind(row)}'
    id, verdict, quotes = row.get("id"), row.get("review"), row.get("quotes")
    if not isinstance(id, str):
        return "id", f"expected a text, found {kind(id)}"
    if not isinstance(verdict, str) or verdict not in REVIEWS:
        return "review", f"expected {', '.join(REVIEWS)}, found {kind(verdict)}"
    if quotes is None:
        return None
    if not isinstance(quotes, list):
        return "quotes", f"expected a list, found {kind(quotes)}"
    places = (quote for quote in quotes if not isinstance(quote, dict) or not {"text", "doc_id", "start", "end"} <= quote.keys())
    return next((("quotes", f'expected objects with "text", "doc_id", "start" and "end", found {kind(one)}') for one in places), None)


def review(file: Path, accept: Sequence[str], reject: Sequence[str]) -> list[dict[str, Any]]:
    """Write verdicts into a draft and return its rows; "all" means every row that is still pending.

    Raises UsageError for an id that is not there, or that is to be both accepted and rejected.
    """
    rows = read_draft(file)
    known = {row["id"] for row in rows}
    for name in (*accept, *reject):
        if name != ALL and name not in known:
            raise UsageError(f"{file} has no pair {name!r}{nearest(name, known)}")
    both = set(accept) & set(reject)
    if both:
        raise UsageError(f"{min(both)!r} is to be both accepted and rejected; name it once")
    for row in rows:
        for verdict, named in (("accepted", accept), ("rejected", reject)):
            if row["id"] in named or (ALL in named and row["review"] == "pending" and row["id"] not in (*accept, *reject)):
                row["review"] = verdict
    if accept or reject:
        write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows
