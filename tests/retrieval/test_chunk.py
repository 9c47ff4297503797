"""Chunks: exact offsets, complete coverage, sizes, headings and pages."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest

from retrieval.chunk import ChunkSettings, Span, chunk
from retrieval.text import sentences

SMALL = ChunkSettings(target=30, maximum=45, minimum=8, overlap=10)


def count(texts: list[str]) -> list[int]:
    """Tokens about as an embedding model counts them."""
    return [len(re.findall(r"[a-zA-Z]{1,5}|\d|[^\sa-zA-Z\d]", text)) for text in texts]


def spans(text: str, settings: ChunkSettings = SMALL, pages: tuple[tuple[int, int, int], ...] = ()) -> list[Span]:
    return list(chunk(text, count, settings, pages))


def _random_text(seed: int) -> str:
    """A random mixture of everything a document may hold."""
    rng = random.Random(seed)
    pieces = [
        "# Heading {n}\n",
        "## 第{n}章 总则\n",
        "第{n}条　甲方应当在收到货物后及时验收；逾期视为合格。\n",
        "Article {n} – Premises\n",
        "{n}. Structure\n\n",
        "The dose of drug {n} is 5.5 mg/kg, e.g. twice daily. It is given slowly! Dr. Who agrees.\n",
        "本办法自2026年1月{n}日起施行。由行政部负责解释，咨询电话为分机6003。\n",
        "- item {n} of a list\n",
        "| a{n} | b | 价格 |\n|---|---|---|\n| 1 | 2 | 3 |\n",
        "key: value {n}; other: value; note: a. b. c\n",
        "\n\n \t\n",
        "word " * 200 + "\n",
        "长句" * 150 + "\n",
        "x" * 400 + "\n",
        "```\n# not a heading {n}\n```\n",
        "\u3000\u3000缩进的一行 {n}",
        "🙂 emoji and ﬁ ligature {n}\n",
    ]
    return "".join(rng.choice(pieces).replace("{n}", str(rng.randint(1, 20))) for _ in range(rng.randint(0, 40)))


@pytest.mark.parametrize("seed", range(60))
def test_every_character_is_covered_in_order_and_no_chunk_is_too_large(seed: int) -> None:
    text = _random_text(seed)
    found = spans(text)
    covered = bytearray(len(text))
    for before, after in pairwise(found):
        assert before.start < after.start and before.end <= after.end
    for span in found:
        piece = text[span.start : span.end]
        assert piece and piece == piece.strip()
        assert count([piece])[0] <= SMALL.maximum
        covered[span.start : span.end] = b"\x01" * (span.end - span.start)
    assert all(flag or char.isspace() for flag, char in zip(covered, text, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_sentence_is_cut_that_fits_a_chunk(seed: int) -> None:
    text = _random_text(seed)
    found = spans(text)
    for start, end in sentences(text):
        if count([text[start:end]])[0] <= SMALL.target:
            assert any(span.start <= start and end <= span.end for span in found), text[start:end]


def test_headings_are_a_path() -> None:
    text = "# Guide\n\nIntro text that is long enough to stand alone in a chunk, I think.\n\n## Part A\n\n" + "Body of part a. " * 8
    text += "\n\n### 第一条 范围\n\n" + "本条规定适用范围。" * 6 + "\n\n## Part B\n\n" + "Body of part b. " * 8
    paths = [span.heading for span in spans(text)]
    assert paths[0] == ("Guide",)
    assert ("Guide", "Part A") in paths and ("Guide", "Part A", "第一条 范围") in paths and paths[-1] == ("Guide", "Part B")


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("第三条　外来人员进入研发区域，须提前一个工作日登记，由接待人全程陪同，手机统一存放在门岗的储物柜内，并遵守规定。", "第三条"),
        ("§ 4 Business integrity", "§ 4 Business integrity"),
        ("Article 2 – Term and break", "Article 2 – Term and break"),
        ("一、存款继承", "一、存款继承"),
        ("2.1 Duties of the supplier", "2.1 Duties of the supplier"),
    ],
)
def test_clauses_are_headings(line: str, heading: str) -> None:
    text = f"{line}\n\n" + "Body text follows here and fills the chunk. " * 5
    assert spans(text)[0].heading == (heading,)


def test_a_reference_to_a_clause_is_no_heading() -> None:
    for line in ("第三条的规定不适用于本合同。", "Section 4, as amended, applies to all parties here."):
        assert spans(f"{line}\n\nMore text.")[0].heading == ()


def test_a_split_section_repeats_its_last_sentence_only() -> None:
    text = "# Rules\n\n" + " ".join(f"Rule number {n} says no." for n in range(30))
    found = spans(text)
    assert len(found) > 2
    for before, after in pairwise(found):
        shared = text[after.start : before.end]
        assert shared.strip().count(".") == 1


def test_small_sections_of_one_parent_join() -> None:
    text = "# A\n\n" + "\n\n".join(f"## S{n}\n\nOne." for n in range(4))
    assert len(spans(text, ChunkSettings())) == 1


def test_pages() -> None:
    first, second = "First page text. " * 10, "Second page text. " * 10
    text = f"{first}\n\n{second}"
    pages = ((0, len(first), 1), (len(first) + 2, len(text), 3))
    found = spans(text, pages=pages)
    assert found[0].page == 1 and found[-1].page == 3
    assert all(span.page == (1 if span.start < len(first) else 3) for span in found)


def test_nothing_to_chunk() -> None:
    assert spans("") == spans(" \n\n\t ") == []


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        ChunkSettings(target=20, maximum=10)
