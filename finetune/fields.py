"""One value of one row: checked, or refused with what was expected and what to do."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from finetune.reading import kind
from finetune.types import PassageRef, Split, Task, Turn

SPLITS: Mapping[str, Split] = {"train": "train", "dev": "dev", "test": "test", "validation": "dev", "valid": "dev", "val": "dev"}
TASKS: Mapping[str, Task] = {"qa": "qa", "summary": "summary", "classify": "classify", "extract": "extract"}
LANGS = {"en": "en", "english": "en", "zh": "zh", "chinese": "zh", "中文": "zh"}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
MAX_TEXT = 200_000
MAX_IDENTIFIER = 200
_AS_TEXT: Mapping[type, str] = {**dict.fromkeys((bool, int, float), "put it in quotes"), **dict.fromkeys((list, dict), "write one text")}

Choice = TypeVar("Choice", bound=str)


class BadField(Exception):
    """One problem of one row: the column at fault, and the reason with its remedy."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean "x"?)' with the most similar of `known`, or ''."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def string(field: str, value: Any) -> str:
    """A text without surrounding white space. Raises BadField."""
    if not isinstance(value, str):
        remedy = "write it or remove the row" if value is None else _AS_TEXT.get(type(value), "write it as text")
        raise BadField(field, f"expected text, found {kind(value)}; {remedy}")
    if "\0" in value:
        raise BadField(field, "contains a NUL character; remove it")
    if len(value) > MAX_TEXT:
        raise BadField(field, f"has {len(value):,} characters, at most {MAX_TEXT:,} are allowed; shorten it or split the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadField(field, f"contains half of a surrogate pair at character {error.start}; export the text again") from error
    return value.strip()


def text(row: Mapping[str, Any], field: str, column: str, empty: bool = False) -> str:
    """The text of `column`, where "a+b" joins two by a line feed and either may be missing. Raises BadField."""
    columns = column.split("+")
    first = columns[0]
    said = {name: row[name] for name in columns if row.get(name) is not None}
    if not said and first not in row:
        raise BadField(first, f"the {field} is missing; every row needs it")
    if not said and empty:
        return ""
    texts = [string(name, value) for name, value in (said or {first: None}).items()]
    joined = "\n".join(part for part in texts if part)
    if not joined and not empty:
        remedy = ', or set "answerable": false if there is no answer' if field == "answer" else ""
        raise BadField(first, f"the {field} is empty; write it{remedy}")
    return joined


def identifier(value: Any, field: str) -> str:
    """A short text or a whole number; '' for none. Raises BadField."""
    if value is None:
        return ""
    found = str(value) if isinstance(value, int) and not isinstance(value, bool) else string(field, value)
    if len(found) > MAX_IDENTIFIER:
        remedy = "shorten it, or rename the column if it holds something else"
        raise BadField(field, f"has {len(found)} characters, at most {MAX_IDENTIFIER} are allowed; {remedy}")
    return found


def choice(field: str, value: Any, known: Mapping[str, Choice]) -> Choice | None:
    """One of `known`, in any case; None for none. Raises BadField with the nearest."""
    if value is None or value == "":
        return None
    said = string(field, value).lower()
    # zh-CN, en_US: the region does not matter here.
    found = known.get(said) or (known.get(said.replace("_", "-").split("-")[0]) if known is LANGS else None)
    if found is None:
        names = " or ".join(dict.fromkeys(known.values()))
        raise BadField(field, f"expected {names}, found {value!r}{nearest(said, known)}; correct it or leave it out")
    return found


def truth(field: str, value: Any, default: bool) -> bool:
    """True or false, also spelt out as CSV does. Raises BadField."""
    if value is None or value == "":
        return default
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    raise BadField(field, f"expected true or false, found {kind(value)}")


def listed(field: str, value: Any, example: str) -> list[Any]:
    """A list, or the JSON of one in a text (CSV cells). Raises BadField."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadField(field, f"not a valid JSON list ({error}); expected {example}") from error
    if not isinstance(value, list):
        raise BadField(field, f"expected a list like {example}, found {kind(value)}")
    return value


def names(field: str, value: Any) -> tuple[str, ...]:
    """Document ids: a list, or a text with semicolons between them. Raises BadField."""
    if value is None or value == "":
        return ()
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.split(";")
    found = [identifier(item, field) for item in listed(field, value, '["guide.md"]')]
    return tuple(dict.fromkeys(name for name in found if name))


ROLES: Mapping[str, Literal["gold", "negative", "withheld"]] = {"gold": "gold", "negative": "negative", "withheld": "withheld"}


def passages(field: str, value: Any) -> tuple[PassageRef, ...]:
    """References to passages, as `appliance dataset from-documents` writes them. Raises BadField."""
    if value is None or value == "":
        return ()
    example = '[{"doc_id": "guide.md", "sha256": "...", "start": 0, "end": 90, "role": "gold"}]'
    found: list[PassageRef] = []
    for number, item in enumerate(listed(field, value, example), 1):
        if not isinstance(item, dict) or not {"doc_id", "sha256", "start", "end", "role"} <= item.keys():
            raise BadField(field, f"passage {number}: expected {example[1:-1]}, found {kind(item)} without all of these")
        start, end = item["start"], item["end"]
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end):
            raise BadField(field, f"passage {number}: expected 0 <= start < end, found {start!r} and {end!r}")
        role = choice(field, item["role"], ROLES)
        if role is None:
            raise BadField(field, f"passage {number}: the role is missing; it is one of {', '.join(ROLES)}")
        heading = tuple(string(field, part) for part in listed(field, item.get("heading") or [], '["Fees"]'))
        found.append(PassageRef(string(field, item["doc_id"]), string(field, item["sha256"]), start, end, role, heading))
    if all(passage.role == "withheld" for passage in found):
        raise BadField(field, "no passage is shown with the question; at least one must be gold or negative")
    return tuple(found)


def history(field: str, value: Any) -> tuple[str | None, tuple[Turn, ...]]:
    """(system message, turns before the question) of messages or [question, answer] lists. Raises BadField."""
    if value is None or value == "":
        return None, ()
    turns: list[Turn] = []
    example = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    for number, item in enumerate(listed(field, value, example), 1):
        if isinstance(item, list) and len(item) == 2:
            turns += [Turn("user", string(field, item[0])), Turn("assistant", string(field, item[1]))]
        elif isinstance(item, dict) and {"role", "content"} <= item.keys():
            if item["role"] not in ("system", "user", "assistant"):
                raise BadField(field, f"turn {number}: expected the role system, user or assistant, found {item['role']!r}")
            turns.append(Turn(item["role"], string(field, item["content"])))
        else:
            raise BadField(field, f'turn {number}: expected {{"role": ..., "content": ...}} or [question, answer], found {kind(item)}')
    system, spoken = alternating(field, turns, "turn")
    if len(spoken) % 2:
        raise BadField(field, "ends with the user; the last turn before the question must be the assistant's")
    return system, spoken


def alternating(field: str, turns: list[Turn], what: str) -> tuple[str | None, tuple[Turn, ...]]:
    """(system message of the first turn, the others), which are user and assistant in turn. Raises BadField."""
    first = 1 if turns and turns[0].role == "system" else 0
    for number, turn in enumerate(turns[first:]):
        expected, place = "assistant" if number % 2 else "user", f"{what} {number + first + 1}"
        if turn.role != expected:
            raise BadField(field, f"{place}: expected the role {expected}, found {turn.role}; user and assistant alternate")
        if not turn.content:
            raise BadField(field, f"{place}: the content is empty; write it or leave out the turn")
    return (turns[0].content or None) if first else None, tuple(turns[first:])
