"""The team's own words and synonyms: read from files, used by segmentation, index terms and questions."""

from __future__ import annotations

from pathlib import Path

import pytest
from retrieval_support import Knowledge, write

from retrieval.fusion import Fusion
from retrieval.index import Ranking
from retrieval.staging import IngestSettings
from retrieval.text import Dictionary, content_words, index_terms, words
from retrieval.types import Evidence, RetrievalError, Scope
from retrieval.vocabulary import EXPANSION_WEIGHT, Vocabulary, ask, read_dictionary, read_synonyms

OWN = Dictionary({"瑞戈非尼": None, "在宥": 50, "WHO": None, "AIDS": None, "β受体阻滞剂": None})


def test_a_dictionary_is_known_to_the_segmentation() -> None:
    assert "瑞戈非尼" not in words("口服瑞戈非尼片的剂量")
    assert words("口服瑞戈非尼片的剂量", dictionary=OWN) == ["口服", "瑞戈非尼", "片", "的", "剂量"]
    assert content_words("瑞戈非尼的剂量是多少？", OWN) == ["瑞戈非尼", "剂量"]
    assert words("口服β受体阻滞剂", dictionary=OWN) == ["口服", "β", "受体阻滞剂"]


def test_own_words_are_indexed_whole_and_never_dropped_or_stemmed() -> None:
    terms = index_terms("WHO staff with AIDS: 口服瑞戈非尼片，在宥", dictionary=OWN)
    assert {"who", "aids", "瑞戈非尼", "瑞戈", "非尼", "在宥"} <= set(terms)
    assert not {"who", "aids", "瑞戈非尼", "在宥"} & set(index_terms("WHO staff with AIDS: 口服瑞戈非尼片，在宥"))
    assert content_words("What does WHO say about AIDS?", OWN) == ["say", "about", "who", "aids"]


def test_the_hash_is_that_of_the_words() -> None:
    same = Dictionary({"在宥": 50, "aids": None, "瑞戈非尼": None, "who": None, "β受体阻滞剂": None})
    assert same.hash == OWN.hash != Dictionary({"在宥": 51}).hash != Dictionary({"在宥": None}).hash


def test_a_dictionary_file(tmp_path: Path) -> None:
    file = write(tmp_path / "medical.txt", "\ufeff# 科室用语\n\n瑞戈非尼\n  在宥 50 \nWHO\n")
    assert read_dictionary(file).hash == Dictionary({"瑞戈非尼": None, "在宥": 50, "WHO": None}).hash
    assert read_dictionary(write(tmp_path / "empty.txt", "")).hash == Dictionary({}).hash


@pytest.mark.parametrize("line", ["power of attorney", "在宥 much", "在宥 -1", "在宥 0", "！？"])
def test_a_line_that_is_no_word(tmp_path: Path, line: str) -> None:
    with pytest.raises(RetrievalError, match=r"medical\.txt, line 2: expected a word"):
        read_dictionary(write(tmp_path / "medical.txt", f"瑞戈非尼\n{line}\n"))


def test_synonyms_of_a_question(tmp_path: Path) -> None:
    synonyms = read_synonyms(
        write(
            tmp_path / "medical.txt", "# 同义词\n心梗，心肌梗死、急性心肌梗塞\nMI => myocardial infarction, heart attack\nWHO => 世卫组织\n"
        )
    )
    assert [rule.found for rule in synonyms.of("心肌梗死后多久可以出院？")] == ["心肌梗死"]
    assert [rule.alternatives for rule in synonyms.of("What is the dose after an MI?")] == [("myocardial infarction", "heart attack")]
    assert synonyms.of("dose after a myocardial infarction") == [] == synonyms.of("")
    assert synonyms.of("Who may visit?") == [] and [rule.found for rule in synonyms.of("What does WHO say?")] == ["WHO"]


def test_english_synonyms_are_found_in_any_form_of_the_word(tmp_path: Path) -> None:
    synonyms = read_synonyms(write(tmp_path / "legal.txt", "termination notice, letter of termination\n"))
    assert [rule.found for rule in synonyms.of("Are Termination Notices sent by post?")] == ["termination notice"]
    assert synonyms.of("the notice of termination") == []


@pytest.mark.parametrize("line", ["心梗", "a => b => c", "=> b", "a =>", "a, , b", "a, ？", "MI =>,"])
def test_a_line_that_is_no_rule(tmp_path: Path, line: str) -> None:
    with pytest.raises(RetrievalError, match=r"medical\.txt, line 3: expected terms"):
        read_synonyms(write(tmp_path / "medical.txt", f"a, b\n\n{line}\n"))


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "medical.txt").write_bytes("心梗,心肌梗死".encode("gb18030"))
    with pytest.raises(RetrievalError, match=r"medical\.txt: cannot be read as UTF-8"):
        read_synonyms(tmp_path / "medical.txt")


def test_what_synonyms_add_weighs_less_than_the_question(tmp_path: Path) -> None:
    synonyms = read_synonyms(write(tmp_path / "medical.txt", "心梗, 心肌梗死\n"))
    asked = ask("心梗的治疗", [Vocabulary(None, synonyms)])
    assert asked.terms["心梗"] == asked.terms["治疗"] == asked.terms["心"] == 1.0
    assert asked.terms["心肌"] == asked.terms["梗死"] == EXPANSION_WEIGHT < 1
    assert ask("心梗的治疗").terms == dict.fromkeys(index_terms("心梗的治疗"), 1.0)
    both = ask("WHO 心梗", [Vocabulary(None, synonyms), Vocabulary(OWN, None)])
    assert both.terms["who"] == 1.0 and both.rules == asked.rules


SICK = {"a": "急性心肌梗塞患者绝对卧床二十四小时。", "b": "骨折患者卧床休息三周。", "c": "心理门诊每周三开放。"}
MISSED = {"d": "After a myocardial infarction the patient rests for one day.", "e": "After a fracture the patient rests for three weeks."}


def _search(knowledge: Knowledge, query: str, *vocabularies: Vocabulary) -> Evidence:
    return knowledge.index().search(query, Scope(), 3, ranking=Ranking(Fusion(floor=0.0), vocabularies))


def test_a_synonym_is_found_and_counts_as_covered(knowledge: Knowledge, tmp_path: Path) -> None:
    for name, text in {**SICK, **MISSED}.items():
        write(tmp_path / "docs" / f"{name}.txt", text)
    knowledge.ingest(tmp_path / "docs")
    rules = "心梗, 急性心肌梗塞\nMI => myocardial infarction\n"
    own = Vocabulary(None, read_synonyms(write(tmp_path / "synonyms.txt", rules)))
    for query, wanted in (("心梗要卧床多久？", "a.txt"), ("How long is rest after MI?", "d.txt")):
        plain, expanded = _search(knowledge, query), _search(knowledge, query, own)
        assert expanded.passages[0].document.id == wanted
        assert expanded.signals["term_coverage"] > plain.signals["term_coverage"]
        scores = {passage.document.id: passage.lexical_score or 0.0 for passage in plain.passages}
        assert (expanded.passages[0].lexical_score or 0.0) > scores.get(wanted, 0.0)


def test_own_words_count_as_covered(knowledge: Knowledge, tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.txt", "WHO staff treat AIDS with 瑞戈非尼片.")
    settings = IngestSettings(chunk_tokens=40, chunk_max_tokens=80, dictionaries={"medical": OWN})
    knowledge.ingest(tmp_path / "docs", settings=settings)
    for query in ("Does WHO treat AIDS?", "瑞戈非尼"):
        assert _search(knowledge, query, Vocabulary(OWN)).signals["term_coverage"] == pytest.approx(1.0)


def test_a_changed_dictionary_is_noticed_at_the_next_ingest(knowledge: Knowledge, tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.txt", "口服瑞戈非尼片，每日一次。")
    write(tmp_path / "docs" / "b.txt", "Visitors come at noon.")
    first = knowledge.ingest(tmp_path / "docs")
    with_own = IngestSettings(chunk_tokens=40, chunk_max_tokens=80, dictionaries={"medical": OWN, "legal": Dictionary({"甲方": 9})})
    changed, again = (knowledge.ingest(tmp_path / "docs", settings=with_own) for _ in range(2))
    assert (first.added, changed.updated, again.unchanged) == (2, 2, 2)
    assert knowledge.search("瑞戈非尼").passages[0].lexical_score is not None
    alone = knowledge.index().candidates("瑞戈非尼", Scope(), 10, [Vocabulary(OWN)])[0]
    assert alone.bm25[0] > knowledge.index().candidates("瑞戈非尼", Scope(), 10)[0].bm25[0]
    other = IngestSettings(chunk_tokens=40, chunk_max_tokens=80, dictionaries={"medical": OWN})
    assert knowledge.ingest(tmp_path / "docs", settings=other).unchanged == 2, "another domain's dictionary changes nothing here"
