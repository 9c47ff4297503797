"""Documents with one text are indexed once and keep all their names; nearly the same ones are reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from retrieval_support import HashingEmbedder, Knowledge, write

from appliance.store import schema
from retrieval import duplicates
from retrieval.index import verify
from retrieval.maintain import rebuild, remove, rollback
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey, RetrievalError, Scope

SETTINGS = IngestSettings(40, 80)
DOSE = "The adult dose of gentamicin is 5 mg/kg once daily; the trough stays below 1 mg/L in every patient."
RULE = "甲方在收货后7个工作日内完成抽样检验，逾期未检验的视为合格。乙方逾期交货的，每日按货款的0.5%支付违约金。"


def _sources(knowledge: Knowledge, query: str, scope: Scope | None = None) -> list[list[str]]:
    return [[info.id for info in passage.sources] for passage in knowledge.search(query, scope, 50).passages]


def _remove(knowledge: Knowledge, *ids: str, domain: str = "medical") -> None:
    with knowledge.db.lock("index") as lock:
        keys = [DocumentKey(domain, id) for id in ids]
        remove(keys, store=knowledge.store, vectors=knowledge.vectors, lock=lock, embedder=lambda: knowledge.embedder, settings=SETTINGS)


def _counts(knowledge: Knowledge) -> tuple[int, int]:
    """Stored contents and chunks."""
    with knowledge.db.read() as connection:
        count = sa.select(sa.func.count())
        return (
            connection.execute(count.select_from(schema.content)).scalar_one(),
            connection.execute(count.select_from(schema.chunk)).scalar_one(),
        )


@pytest.mark.parametrize(("text", "query"), [(DOSE, "adult dose of gentamicin"), (RULE, "收货后几个工作日内检验")])
def test_copies_in_one_ingest_are_embedded_and_found_once(knowledge: Knowledge, tmp_path: Path, text: str, query: str) -> None:
    folder = tmp_path / "copies"
    for name in ("b.txt", "a.txt", "sub/c.md"):
        write(folder / name, text + "\n")
    report = knowledge.ingest(folder)
    assert (report.added, report.chunks, knowledge.embedder.passages) == (3, 1, 1)
    assert [copy.to_json() for copy in report.duplicates] == [
        {"domain": "medical", "doc_id": "b.txt", "same_as": "a.txt"},
        {"domain": "medical", "doc_id": "sub/c.md", "same_as": "a.txt"},
    ]
    assert report.near_duplicates == 0
    assert _sources(knowledge, query) == [["a.txt", "b.txt", "sub/c.md"]]
    found = knowledge.search(query).passages[0]
    assert (found.document.id, found.chunk.doc.id) == ("a.txt", "a.txt")
    assert knowledge.store.document(DocumentKey("medical", "b.txt")).text == text + "\n"  # type: ignore[union-attr]
    again = knowledge.ingest(folder)
    assert (again.unchanged, again.duplicates, knowledge.embedder.passages) == (3, [], 1)


def test_a_later_copy_is_not_embedded_again(knowledge: Knowledge, tmp_path: Path) -> None:
    write(tmp_path / "one" / "first.txt", DOSE)
    write(tmp_path / "two" / "second.txt", DOSE)
    knowledge.ingest(tmp_path / "one")
    report = knowledge.ingest(tmp_path / "two")
    assert (report.added, report.embedded, [copy.same_as.id for copy in report.duplicates]) == (1, 0, ["first.txt"])
    assert _sources(knowledge, "dose of gentamicin") == [["first.txt", "second.txt"]]
    first = knowledge.index(1).search("dose of gentamicin", Scope(), 5).passages
    assert [[info.id for info in passage.sources] for passage in first] == [["first.txt"]]


def test_removing_one_source_keeps_the_other_and_the_last_one_erases(knowledge: Knowledge, tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        write(tmp_path / "docs" / name, f"# Gentamicin\n\n{DOSE}\n")
    write(tmp_path / "docs" / "other.txt", "Visitors may come between 14:00 and 19:00.")
    knowledge.ingest(tmp_path / "docs")
    embedded = knowledge.embedder.passages
    pinned = knowledge.index()
    _remove(knowledge, "a.md")
    assert knowledge.embedder.passages == embedded, "the title is the same, so nothing is made anew"
    for index in (pinned, knowledge.index(), knowledge.index(1)):
        hits = [p for p in index.search("dose of gentamicin", Scope(), 50).passages if "gentamicin" in p.chunk.text]
        assert [(p.document.id, [info.id for info in p.sources]) for p in hits] == [("b.md", ["b.md"])]
    with knowledge.db.lock("index") as lock:
        rollback(1, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert {document.key.id for document in knowledge.store.live_documents()} == {"b.md", "other.txt"}
    _remove(knowledge, "b.md")
    assert not any("gentamicin" in p.chunk.text for p in pinned.search("dose of gentamicin", Scope(), 50).passages)
    assert _counts(knowledge) == (1, 1)
    assert verify(knowledge.store, knowledge.vectors) == []


def test_the_title_of_a_removed_copy_finds_nothing_any_more(knowledge: Knowledge, tmp_path: Path) -> None:
    write(tmp_path / "docs" / "miller-report.txt", DOSE + "\n")
    write(tmp_path / "docs" / "ward.txt", DOSE + "\n")
    knowledge.ingest(tmp_path / "docs")
    assert knowledge.embedder.passages == 1
    assert knowledge.search("miller").passages[0].lexical_rank == 0
    with knowledge.db.lock("index") as lock, pytest.raises(RetrievalError, match=r"ward\.txt has the same text"):
        remove([DocumentKey("medical", "miller-report.txt")], store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    _remove(knowledge, "miller-report.txt")
    found = knowledge.search("miller").passages
    assert [(p.document.id, p.lexical_rank) for p in found] == [("ward.txt", None)]
    assert knowledge.search("ward").passages[0].lexical_rank == 0


def test_pruning_and_changing_the_copy_that_gave_the_title(knowledge: Knowledge, tmp_path: Path) -> None:
    for name in ("alpha.txt", "beta.txt", "gamma.txt"):
        write(tmp_path / "docs" / name, DOSE + "\n")
    knowledge.ingest(tmp_path / "docs")
    write(tmp_path / "docs" / "alpha.txt", "Visitors may come between 14:00 and 19:00.\n")
    report = knowledge.ingest(tmp_path / "docs")
    assert (report.updated, report.unchanged, report.generation) == (3, 0, 2)
    assert _sources(knowledge, "dose of gentamicin")[0] == ["beta.txt", "gamma.txt"]
    assert [p.document.id for p in knowledge.search("alpha").passages if p.lexical_rank is not None] == ["alpha.txt"]
    (tmp_path / "docs" / "beta.txt").unlink()
    report = knowledge.ingest(tmp_path / "docs", prune=True)
    assert report.removed == 1
    assert _sources(knowledge, "dose of gentamicin")[0] == ["gamma.txt"]
    assert [p.document.id for p in knowledge.search("beta").passages if p.lexical_rank is not None] == []


def test_label_sets_do_not_share(knowledge: Knowledge, tmp_path: Path) -> None:
    write(tmp_path / "open" / "open.txt", DOSE)
    write(tmp_path / "closed" / "closed.txt", DOSE)
    knowledge.ingest(tmp_path / "open")
    report = knowledge.ingest(tmp_path / "closed", labels=frozenset({"board"}))
    assert (report.embedded, report.duplicates, report.near_duplicates) == (1, [], 1)
    assert _sources(knowledge, "dose of gentamicin") == [["open.txt"]]
    everything = Scope(labels=frozenset({"board"}))
    assert sorted(_sources(knowledge, "dose of gentamicin", everything)) == [["closed.txt"], ["open.txt"]]


@pytest.mark.parametrize("which", ["a.md", "b.md"])
def test_a_relabelled_copy_takes_nothing_from_its_twin(knowledge: Knowledge, tmp_path: Path, which: str) -> None:
    for name in ("a.md", "b.md"):
        write(tmp_path / "docs" / name, f"# 采购合同\n\n{RULE}\n")
    knowledge.ingest(tmp_path / "docs")
    other = {"a.md": "b.md", "b.md": "a.md"}[which]
    report = knowledge.ingest(tmp_path / "docs" / which, labels=frozenset({"法务"}))
    assert (report.updated, report.embedded) == (1, 0)
    for index in (knowledge.index(), knowledge.index(1)):
        for scope, expected in ((Scope(), [other]), (Scope(labels=frozenset({"法务"})), ["a.md", "b.md"])):
            passage = index.search("收货后几个工作日内检验", scope, 5).passages[0]
            assert [info.id for info in passage.sources] == expected and passage.document.id == expected[0]
    _remove(knowledge, other)
    assert knowledge.search("收货后几个工作日内检验").passages == ()
    assert _sources(knowledge, "收货后几个工作日内检验", Scope(labels=frozenset({"法务"}))) == [[which]]


def test_domains_do_not_share(knowledge: Knowledge, tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", DOSE)
    knowledge.ingest(file)
    report = knowledge.ingest(file, domain="legal")
    assert (report.embedded, report.duplicates, report.near_duplicates) == (1, [], 0)


def test_a_rebuild_keeps_copies_together_and_an_interrupted_one_goes_on(knowledge: Knowledge, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write(tmp_path / "docs" / name, DOSE)
    for number in range(6):
        write(tmp_path / "docs" / f"{number}.txt", f"Rule {number} says that room {number} opens at {number} o'clock.")
    knowledge.ingest(tmp_path / "docs")
    knowledge.embedder = HashingEmbedder("hashing-2")
    seen = 0

    class Killed(Exception):
        pass

    def step(name: str) -> None:
        nonlocal seen
        seen += name == "staged"
        if seen == 4:
            raise Killed

    def again(**options: object) -> dict[str, object]:
        with knowledge.db.lock("index") as lock:
            settings = IngestSettings(40, 80, segment_chunks=1)
            return rebuild(
                store=knowledge.store,
                vectors=knowledge.vectors,
                embedder=knowledge.embedder,
                lock=lock,
                settings=settings,
                **options,  # type: ignore[arg-type]
            )

    with pytest.raises(Killed):
        again(step=step)
    before = knowledge.embedder.passages
    assert knowledge.store.live_generation() == 1
    done = again()
    assert (done["documents"], done["chunks"]) == (8, 7)
    assert 0 < before < 7 and knowledge.embedder.passages == 7, "what the killed rebuild had embedded is used"
    assert ["a.txt", "b.txt"] in _sources(knowledge, "dose of gentamicin")
    again()
    assert knowledge.embedder.passages == 14, "a rebuild makes everything anew"


FEES = "# Fee list {year}\n\nA visit to the outpatient clinic costs {visit} dollars on working days. " + (
    "The fee is paid at the desk before the visit, in cash or by card, and the receipt is kept for the insurer. "
    "Patients who come by ambulance pay later. Children under six years pay nothing if a parent is insured with the hospital. "
    "A missed appointment is charged in full unless it was cancelled on the day before. Complaints go to the cashier's office. "
)
CHINESE_FEES = "# 收费标准（{year}年）\n\n普通门诊诊查费为每次{visit}元。" + (
    "费用在就诊前于收费窗口以现金或银行卡支付，票据请妥善保存以便报销。由救护车送来的患者可以后补缴费用。"
    "父母一方在本院参保的，六岁以下儿童免费就诊。预约后未到诊的，除前一日取消外，按全额收取。如有异议，请到财务科投诉处理。"
)


@pytest.mark.parametrize("text", [FEES, CHINESE_FEES])
def test_last_years_fee_list_is_reported_with_the_numbers_that_differ(knowledge: Knowledge, tmp_path: Path, text: str) -> None:
    write(tmp_path / "docs" / "old.md", text.format(year=2024, visit=20))
    knowledge.ingest(tmp_path / "docs")
    write(tmp_path / "docs" / "new.md", text.format(year=2025, visit=25))
    write(tmp_path / "docs" / "other.md", f"# Other\n\n{DOSE}\n")
    report = knowledge.ingest(tmp_path / "docs")
    assert (report.added, report.duplicates, report.near_duplicates) == (2, [], 1)
    near = report.near[0]
    assert ([near.first.id, near.second.id], near.difference.only_first, near.difference.only_second) == (
        ["old.md", "new.md"],
        ("2024", "20"),
        ("2025", "25"),
    )
    assert near.difference.jaccard >= 0.8 and abs(near.difference.jaccard - near.difference.estimated) < 0.15
    assert "numbers differ: 2024, 20 | 2025, 25" in str(near)
    assert len(_sources(knowledge, "fee 收费 clinic 门诊")) >= 2, "both stay in the index"


def test_signatures() -> None:
    assert duplicates.signature("") is None and duplicates.signature("？！ …") is None
    first = duplicates.signature(FEES)
    assert first is not None and len(first) == 4 * duplicates.PERMUTATIONS
    assert duplicates.estimate(first, first) == 1
    assert len(set(duplicates.bands(first))) == 20 and all(-(2**63) <= band < 2**63 for band in duplicates.bands(first))
    one, two = duplicates.signature("阿司匹林"), duplicates.signature("完全不同的句子，与上面没有关系")
    assert one is not None and two is not None and duplicates.estimate(one, two) < 0.1


def test_groups_are_transitive_and_cheap_in_a_crowd() -> None:
    texts = [FEES.format(year=2000 + number, visit=number) for number in range(300)] + [DOSE, CHINESE_FEES]
    signatures = {number: signature for number, text in enumerate(texts) if (signature := duplicates.signature(text)) is not None}
    [crowd] = duplicates.groups(signatures)
    assert len(crowd) > 280 and max(crowd) < 300, "the estimate misses the threshold now and then, by little"
    assert duplicates.groups({}) == []
