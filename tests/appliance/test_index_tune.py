"""`appliance index tune`, and what searches rank with, on a small knowledge base with the real embedding model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import run
from appliance.errors import ApplianceError
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.store.schema import setting
from appliance.workspace import Workspace
from retrieval.fusion import Fusion
from retrieval.types import RetrievalError, Scope

WARDS = ["cardiology", "oncology", "paediatrics", "surgery", "neurology", "urology", "dermatology", "radiology", "geriatrics", "maternity"]
ROOMS = ["心内科", "肿瘤科", "儿科", "外科", "神经内科", "泌尿科", "皮肤科", "放射科", "老年科", "产科"]
HASH = "the model of these tests"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with twenty documents and 24 development questions."""
    root = tmp_path_factory.mktemp("made")
    documents = [{"id": f"en{n}", "title": ward, "text": f"The {ward} ward has telephone 55{n}0."} for n, ward in enumerate(WARDS)]
    documents += [{"id": f"zh{n}", "title": room, "text": f"{room}病区的电话是66{n}0。"} for n, room in enumerate(ROOMS)]
    _write(root / "corpus.jsonl", documents)
    shared = {"domain": "medical", "split": "dev"}
    pairs = [
        {"question": f"What is the telephone of {w}?", "answer": f"55{n}0", "doc_ids": [f"en{n}"], **shared} for n, w in enumerate(WARDS)
    ]
    pairs += [{"question": f"{r}的电话是多少？", "answer": f"66{n}0", "doc_ids": [f"zh{n}"], **shared} for n, r in enumerate(ROOMS)]
    pairs += [
        {"question": "What is the fax number?", "answer": "There is none.", "answerable": False, **shared},
        {"question": "Where is the ward of yesterday?", "answer": "Gone.", "doc_ids": ["gone"], **shared},
        {"question": "Who is on duty?", "answer": "Unknown.", **shared},
        {"question": "Is there a train?", "answer": "No.", "doc_ids": ["en1"], "domain": "medical", "split": "train"},
    ]
    _write(root / "pairs.jsonl", pairs)
    _write(root / "few.jsonl", pairs[:9])
    commands: list[list[object]] = [
        ["ingest", root / "corpus.jsonl", "--domain", "medical"],
        ["dataset", "add", root / "pairs.jsonl", "--domain", "medical"],
    ]
    assert run(["init", str(root / "workspace")]) == 0
    for command in commands:
        assert run(["--workspace", str(root / "workspace"), *map(str, command)]) == 0
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "workspace", tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def appliance(copy: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    def call(*arguments: object) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = run(["--workspace", str(copy), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if "--json" in arguments and captured.out else captured.out, captured.err

    return call


@pytest.fixture
def knowledge(copy: Path) -> Iterator[Knowledge]:
    with Workspace(copy) as workspace:
        yield Knowledge(workspace, ModelStore.default())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def test_it_measures_keeps_and_forgets(appliance: Callable[..., tuple[int, Any, str]], knowledge: Knowledge) -> None:
    code, tried, _ = appliance("index", "tune", "--dry-run", "--json")
    assert code == 0 and not tried["kept"] and knowledge.rankings.tuned() == {}
    code, data, err = appliance("index", "tune", "--json")
    assert code == 0 and data["kept"] and data["questions"] == 20 and data["languages"] == {"en": 10, "zh": 10}
    assert data["left_out"] == {"of another split": 1, "unanswerable": 1, "without doc_ids": 1, "whose documents are not live": 1}
    figures = {row["name"]: row for row in data["figures"]}
    assert set(figures) == {"dense", "lexical", "rrf", "convex", "chosen"}
    assert figures["chosen"]["all"] >= max(figures["dense"]["all"], figures["lexical"]["all"]) and "zh" in figures["chosen"]
    assert "from now on" in err
    stored = knowledge.rankings.tuned()["medical"]
    assert stored["evidence"]["dataset"] == data["dataset"] and stored["evidence"]["generation"] == data["generation"] == 1
    assert appliance("index", "status", "--json")[1]["fusion"]["medical"]["kind"] == stored["kind"]
    assert appliance("index", "tune", "--reset", "--json")[1] == {"domain": "medical", "reset": True}
    assert appliance("index", "tune", "--reset", "--json")[1]["reset"] is False and knowledge.rankings.tuned() == {}


def test_too_few_questions_are_refused(appliance: Callable[..., tuple[int, Any, str]], made: Path) -> None:
    assert appliance("dataset", "add", made / "few.jsonl", "--domain", "medical")[0] == 0
    code, _, err = appliance("index", "tune", "--dataset", "few")
    assert code == 1 and "9 usable questions in its dev split, at least 20" in err
    code, _, err = appliance("index", "tune", "--dataset", "pairs", "--split", "train")
    assert code == 1 and "1 usable questions in its train split" in err


def test_each_question_counts_once_and_only_for_documents_that_are_there(
    appliance: Callable[..., tuple[int, Any, str]], made: Path, tmp_path: Path
) -> None:
    shared = {"answer": "–", "split": "dev", "domain": "medical"}
    repeated = [{"question": f"{ROOMS[n % 10]}的电话是多少{'？' * (n // 10 + 1)}", "doc_ids": [f"zh{n % 10}"], **shared} for n in range(30)]
    _write(tmp_path / "repeated.jsonl", repeated)
    assert appliance("dataset", "add", tmp_path / "repeated.jsonl", "--domain", "medical")[0] == 0
    code, _, err = appliance("index", "tune", "--dataset", "repeated")
    assert code == 1 and "10 usable questions in its dev split, at least 20" in err and "20 asked before" in err
    # A document that is gone cannot be found and takes nothing off the figures.
    partly = [{"question": f"What is the telephone of {w}?", "doc_ids": [f"en{n}", f"gone{n}"], **shared} for n, w in enumerate(WARDS)]
    partly += [{"question": f"{r}的电话是多少？", "doc_ids": [f"zh{n}", f"gone{n}"], **shared} for n, r in enumerate(ROOMS)]
    _write(tmp_path / "partly.jsonl", partly)
    assert appliance("dataset", "add", tmp_path / "partly.jsonl", "--domain", "medical")[0] == 0
    figures = [appliance("index", "tune", "--dataset", name, "--dry-run", "--json")[1]["figures"] for name in ("partly", "pairs")]
    assert figures[0] == figures[1]


def test_questions_that_nothing_answers_are_no_ground_for_a_choice(
    appliance: Callable[..., tuple[int, Any, str]], tmp_path: Path, knowledge: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    unanswerable = [{"question": f"{n}号病房的传真是多少？", "answer": "没有。", "answerable": False, "split": "dev"} for n in range(25)]
    _write(tmp_path / "unanswerable.jsonl", unanswerable)
    assert appliance("dataset", "add", tmp_path / "unanswerable.jsonl", "--domain", "medical")[0] == 0
    code, _, err = appliance("index", "tune", "--dataset", "unanswerable")
    assert code == 1 and "0 usable questions in its dev split" in err and "25 unanswerable" in err
    # As where the documents are there and never found.
    monkeypatch.setattr("appliance.knowledge.index_tuning.ndcg_at", lambda *_: 0.0)
    code, _, err = appliance("index", "tune", "--dataset", "pairs")
    assert code == 1 and "none of the 20 questions finds a document of its doc_ids" in err and knowledge.rankings.tuned() == {}


def test_usage(appliance: Callable[..., tuple[int, Any, str]], made: Path) -> None:
    assert appliance("index", "tune", "--dataset", "unknown")[0] == 2
    assert appliance("index", "tune", "--domain", "unknown")[0] == 2
    assert appliance("index", "tune", "--reset", "--dry-run")[0] == 2
    appliance("dataset", "add", made / "few.jsonl", "--domain", "medical")
    code, _, err = appliance("index", "tune")
    assert code == 2 and "few, pairs" in err


def test_a_search_uses_the_tuned_fusion_at_once(knowledge: Knowledge) -> None:
    scope = Scope(frozenset({"medical"}))
    query = "电话 telephone 5520"
    default = knowledge.search(query, scope)
    knowledge.rankings.keep("medical", Fusion("convex", 1.0, 1.0), knowledge.embedder.hash, {})
    dense = knowledge.search(query, scope)
    assert all(passage.lexical_rank is None for passage in dense.passages)
    assert any(passage.lexical_rank is not None for passage in default.passages)
    assert [p.chunk.id for p in knowledge.search(query, Scope()).passages] == [p.chunk.id for p in dense.passages]
    knowledge.rankings.forget("medical")
    assert [p.chunk.id for p in knowledge.search(query, scope).passages] == [p.chunk.id for p in default.passages]


def test_several_domains_share_a_mean_of_what_can_be_compared(knowledge: Knowledge) -> None:
    rankings = knowledge.rankings
    rankings.keep("a", Fusion("convex", 0.2, 0.3), HASH, {})
    rankings.keep("b", Fusion("convex", 0.8, 0.3), HASH, {})
    rankings.keep("c", Fusion("rrf", 0.5, 0.0), HASH, {})
    assert rankings.fusion(["a"], HASH) == Fusion("convex", 0.2, 0.3) and rankings.fusion(["c"], HASH) == Fusion("rrf", 0.5, 0.0)
    assert rankings.fusion(["a", "b"], HASH) == Fusion("convex", 0.5, 0.3)
    half = rankings.fusion(["a", "untuned"], HASH)
    assert (half.kind, half.weight, half.floor) == ("convex", pytest.approx((0.2 + Fusion().weight) / 2), None)
    assert rankings.fusion(["a", "c"], HASH) == Fusion() == rankings.fusion([], HASH)
    assert rankings.fusion(["a"], "another model") == Fusion()


def test_settings_of_others_are_left_alone(knowledge: Knowledge) -> None:
    with knowledge.workspace.db.write() as connection:
        connection.execute(setting.insert().values(key="fusion_other", value="not JSON"))
    assert knowledge.rankings.tuned() == {} and not knowledge.rankings.forget("medical")


def test_a_changed_vocabulary_file_is_noticed(knowledge: Knowledge, copy: Path, made: Path) -> None:
    scope, hash = Scope(frozenset({"medical"})), knowledge.embedder.hash
    assert knowledge.rankings.of(scope, hash).vocabularies == ()
    for folder, line in (("synonyms", "心梗, 心肌梗死\n"), ("dictionaries", "心内科\n")):
        (copy / folder).mkdir()
        (copy / folder / "medical.txt").write_text(line, "utf-8")
    first, again = (knowledge.rankings.of(scope, hash).vocabularies[0] for _ in range(2))
    assert first == again and first.synonyms is not None and first.dictionary is not None and "心内科" in first.dictionary
    report = knowledge.ingest([made / "corpus.jsonl"], domain="medical")
    assert report.updated == 20 and knowledge.search("心内科 电话", scope).passages[0].document.title == "心内科"
    (copy / "synonyms" / "medical.txt").write_text("心梗\n", "utf-8")
    with pytest.raises(RetrievalError, match=r"medical\.txt, line 1"):
        knowledge.search("心梗", scope)


def test_a_missing_reranker_is_an_error_that_says_so(copy: Path) -> None:
    with Workspace(copy, {"retrieval.reranker": "path:nowhere"}) as workspace, pytest.raises(ApplianceError, match="nowhere"):
        Knowledge(workspace, ModelStore.default()).search("telephone", Scope())
