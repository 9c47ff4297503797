"""Incremental text: what leaves the stream is whole and final."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from appliance.engines.text_stream import TextStream

TEXTS = [
    "",
    "plain text",
    "胰岛素的起始剂量为每日10单位。",
    "mixed 中文 and English，费用：1,250.50元",
    "emoji 👩‍⚕️ 🏥 and accents é ü",
]


def decode(tokens: Sequence[int]) -> str:
    """Each token is one byte: the hardest case, every Chinese character comes in three pieces."""
    return bytes(tokens).decode("utf-8", errors="replace")


def run(text: bytes, stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    stream = TextStream(decode, stop)
    pieces = []
    for token in text:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_lost_and_no_character_is_split(text: str) -> None:
    pieces, stopped = run(text.encode())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert not stopped


@pytest.mark.parametrize("text", TEXTS[1:])
def test_an_answer_cut_inside_a_character_ends_before_it(text: str) -> None:
    for cut in range(len(text.encode())):
        pieces, _ = run(text.encode()[:cut])
        assert text.startswith("".join(pieces))
        assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("Answer: 5\n\nQuestion: 6", ["\n\nQuestion"], "Answer: 5"),
        ("aaab", ["aab"], "a"),
        ("答案：二十元。问题：", ["问题"], "答案：二十元。"),
        ("one STOP two END", ["END", "STOP"], "one "),
        ("END", ["END"], ""),
        ("almost EN", ["END"], "almost EN"),
        ("empty stops do nothing", [""], "empty stops do nothing"),
    ],
)
def test_stop_strings_are_never_shown(text: str, stop: list[str], expected: str) -> None:
    pieces, stopped = run(text.encode(), stop)
    assert "".join(pieces) == expected
    assert stopped == (expected != text)


def test_random_texts_and_stops_agree_with_a_plain_search() -> None:
    chance = random.Random(5)
    for _ in range(500):
        text = "".join(chance.choice("ab费\n") for _ in range(12))
        stop = ["".join(chance.choice("ab费\n") for _ in range(chance.randint(1, 4))) for _ in range(2)]
        at = min((found for found in (text.find(s) for s in stop) if found >= 0), default=len(text))
        ends = [text.find(s) + len(s) for s in stop if s in text]
        # With two stops the one that is complete first ends the answer.
        if ends:
            first = min(ends)
            at = min(text[:first].find(s) for s in stop if s in text[:first])
        assert "".join(run(text.encode(), stop)[0]) == text[:at]
