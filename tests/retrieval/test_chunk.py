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
    # Sentences between the target and the limit of a chunk, and a little over it: whole as long as they fit.
    for length in range(25, 50, 2):
        pieces += [
            f"The {'word ' * length}{{n}}. ",
            f"- {'word ' * length}ends.\n",
            f"第{{n}}款规定{'字' * length}。",
            f"{{n}}. {'款' * length}。\n",
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


@pytest.mark.parametrize("seed", range(40))
def test_no_sentence_is_cut_that_fits_a_chunk(seed: int) -> None:
    text = _random_text(seed)
    found = spans(text)
    for start, end in sentences(text):
        # The mark of a list item is not left alone.
        start -= 2 * (text[:start].endswith("\n- ") or text[:start] == "- ")
        if count([text[start:end]])[0] <= SMALL.maximum:
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
        ("附　则", "附　则"),
    ],
)
def test_clauses_are_headings(line: str, heading: str) -> None:
    text = f"{line}\n\n" + "Body text follows here and fills the chunk. " * 5
    assert spans(text)[0].heading == (heading,)


def test_a_reference_to_a_clause_is_no_heading() -> None:
    for line in ("第三条的规定不适用于本合同。", "Section 4, as amended, applies to all parties here."):
        assert spans(f"{line}\n\nMore text.")[0].heading == ()


def test_the_parts_of_a_contract_are_a_tree() -> None:
    body = "The supplier delivers the goods in time and in the agreed quality. " * 2
    text = f"ARTICLE II\n\nSection 2.1 Scope\n\n{body}\n\nSection 2.2 Care\n\n{body}\n\nARTICLE III\n\n{body}\n"
    assert [span.heading for span in spans(text)] == [
        ("ARTICLE II", "Section 2.1 Scope"),
        ("ARTICLE II", "Section 2.2 Care"),
        ("ARTICLE III",),
    ]


def test_the_parts_of_a_statute_are_a_tree() -> None:
    body = "当事人应当遵循公平原则确定各方的权利和义务，不得损害他人的合法权益。" * 2
    text = f"第一章 总则\n\n第一条　{body}\n\n第二章 订立\n\n第一节 一般规定\n\n第九条　{body}\n（一）标的；\n（二）数量。\n\n"
    text += f"附则\n\n第十条　{body}\n"
    assert [span.heading for span in spans(text, ChunkSettings(target=100, maximum=140, minimum=8, overlap=0))] == [
        ("第一章 总则", "第一条"),
        ("第二章 订立", "第一节 一般规定", "第九条"),
        ("附则", "第十条"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "\t" * 300_000 + "x",
        "--" + " " * 300_000 + "x",
        "| " * 150_000,
        "- " * 150_000 + "x",
        "1." * 150_000,
        "a: " + "; " * 150_000,
        "#" * 300_000,
    ],
    ids=lambda line: repr(line[:3]),
)
def test_a_line_that_matches_in_many_ways_takes_no_longer(line: str) -> None:
    # With a pattern that tries every way to share a run of white space, this would not end.
    for start, end in ((span.start, span.end) for span in spans(line)):
        assert line[start:end].strip()


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


@pytest.mark.parametrize(
    "text",
    [
        "采购合同甲方在收货后个工作日内完成抽样检验" * 2000,
        "甲方在收货后7个工作日内完成检验。" * 3000,
        "a" * 40_000,
        "Hello" + " " * 40_000 + "world.",
        "the dose for adults is five milligrams per kilogram of weight and\n" * 600,
        "| a | b " * 5000,
        "# 标题 heading\n" * 3000,
        "- a\n" * 10_000,
    ],
)
def test_what_is_counted_at_one_time_is_bounded(text: str) -> None:
    seen: list[tuple[int, int]] = []

    def watched(texts: list[str]) -> list[int]:
        seen.append((len(texts), max(map(len, texts))))
        return count(texts)

    made = list(chunk(text, watched, SMALL))
    assert max(number for number, _ in seen) <= 256 and max(length for _, length in seen) <= 20 * SMALL.maximum
    assert max(span.end - span.start for span in made) <= 20 * SMALL.maximum
    assert max(span.tokens for span in made) <= SMALL.maximum
    covered = 0
    for span in made:
        assert not text[covered : span.start].strip()
        covered = span.end
    assert not text[covered:].strip()


def test_chunks_come_one_by_one() -> None:
    counted = 0

    def watched(texts: list[str]) -> list[int]:
        nonlocal counted
        counted += len(texts)
        return count(texts)

    first = next(chunk("The dose is 5 mg. 剂量为每日五毫克。\n\n" * 10_000, watched, SMALL))
    assert first.start == 0 and 0 < first.tokens <= SMALL.maximum and counted <= 600


@pytest.mark.parametrize("seed", range(3))
def test_the_tokens_of_a_chunk_are_about_those_of_its_text(seed: int) -> None:
    text = _random_text(seed)
    assert all(abs(span.tokens - count([text[span.start : span.end]])[0]) <= 5 for span in spans(text))


def test_nothing_to_chunk() -> None:
    assert spans("") == spans(" \n\n\t ") == []


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        ChunkSettings(target=20, maximum=10)
