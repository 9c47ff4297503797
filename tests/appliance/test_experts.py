"""Blind scoring by several experts: tasks, files, agreement, and what the scores become."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from expert_support import ARMS, FEE, ITEMS, OUTCOMES, command, make_run

from appliance.admin.keys import Keys
from appliance.answers.feedback import Feedback
from appliance.experts.review import ReviewQueue, share_answered
from appliance.experts.review_entry import Entry, enter
from appliance.experts.tasks import ExpertTasks, NoSuchTask, expert_utilities, prepare
from appliance.knowledge.forgetting import forget
from appliance.knowledge.knowledge import Knowledge
from appliance.settings import FeedbackConfig
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.store.tables_experts import expert_task, expert_work
from appliance.workspace import Workspace
from eval.experts import BadScore, blind_tasks, judgement_of, utility_of
from eval.types import EvalError
from finetune.dataset import read_pairs
from retrieval.embed import Embedder
from retrieval.types import DocumentKey, Scope
from tests.retrieval.retrieval_support import HashingEmbedder

ALL = Scope(None, frozenset({"management"}))
NONE = Scope(None, frozenset())
GOOD = {"correctness": 5, "completeness": 4, "citation": 5, "harm": 5}
BAD = {"correctness": 1, "completeness": 2, "harm": 4}


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def light(self: Knowledge, reference: str) -> Embedder:
        return HashingEmbedder()

    monkeypatch.setattr(Knowledge, "_open_model", light)


def everything(knowledge: Knowledge) -> str:
    with knowledge.workspace.db.read() as connection:
        return str([connection.execute(sa.select(table)).all() for table in (expert_task, expert_work)])


# --- tasks


def test_tasks_are_blind_random_and_of_answers_only() -> None:
    made = blind_tasks(ITEMS, OUTCOMES, ("single", "pair"), None, None, seed=1)
    singles = {(task.item.id, task.sides[0].arms) for task in made if task.kind == "single"}
    # Equal answers of two arms are one task; refusals, failures and unavailable arms are none.
    assert singles == {
        *(("q1", arms) for arms in (("base",), ("quote", "rag"))),
        *(("q2", (arm,)) for arm in ARMS),
        ("q3", ("quote",)),
        *(("q4", (arm,)) for arm in ("base", "quote")),
    }
    pairs = [task for task in made if task.kind == "pair"]
    assert Counter(task.item.id for task in pairs) == {"q1": 1, "q2": 3, "q4": 1}
    assert blind_tasks(ITEMS, OUTCOMES, ("single", "pair"), None, None, seed=1) == made
    orders = {tuple(task.item.id for task in blind_tasks(ITEMS, OUTCOMES, ("single",), None, None, seed)) for seed in range(5)}
    assert len(orders) > 1
    firsts = {blind_tasks(ITEMS, OUTCOMES, ("pair",), ["base", "quote"], None, seed)[0].sides[0].arms for seed in range(10)}
    assert firsts == {("base",), ("quote",)} or len(firsts) > 1
    assert len({task.item.id for task in blind_tasks(ITEMS, OUTCOMES, ("single",), None, 2, 0)}) == 2
    with pytest.raises(EvalError, match="the run has no hybrid; it has base, quote, rag"):
        blind_tasks(ITEMS, OUTCOMES, ("single",), ["hybrid"], None, 0)


def test_what_an_expert_is_shown_names_no_arm(light: Knowledge) -> None:
    run = make_run(light)
    prepare(light.workspace, run, kinds=("single", "pair"), overlap=1)
    shown = ExpertTasks(light.workspace.db).take("wang", ALL, run.id, None)
    assert len(shown) == 13 and {task["kind"] for task in shown} == {"single", "pair"}
    assert {name for task in shown for name in task} == {"task", "kind", "lang", "domain", "question", "answers"}
    assert {name for task in shown for side in task["answers"] for name in side} == {"name", "answer", "sources"}
    assert not re.findall(r"\b(?:base|quote|rag|unavailable|latency\w*)\b", json.dumps(shown))


def test_tasks_are_given_out_evenly_once_each(light: Knowledge) -> None:
    run = make_run(light)
    people = dict.fromkeys(("wang", "li", "zhao"), ALL)
    done = prepare(light.workspace, run, overlap=2, experts=people)
    assert (done.made, done.known) == (8, 0) and sorted(done.assigned.values()) == [5, 5, 6]
    again = prepare(light.workspace, run, overlap=2, experts=people, seed=9)
    assert (again.made, again.known) == (0, 8) and again.assigned == done.assigned
    more = prepare(light.workspace, run, kinds=("pair",), overlap=2, experts=people)
    assert more.made == 5 and max(more.assigned.values()) - min(more.assigned.values()) <= 1
    with pytest.raises(Exception, match="overlap: 4 experts for each task; give 1 to 3"):
        prepare(light.workspace, run, overlap=4, experts=people)


def test_whoever_asks_gets_what_too_few_have(light: Knowledge) -> None:
    run = make_run(light)
    prepare(light.workspace, run, overlap=1)
    tasks = ExpertTasks(light.workspace.db)
    first = tasks.next("wang", ALL)
    assert first is not None and tasks.next("wang", ALL) == first
    others = tasks.take("li", ALL, run.id, None)
    assert len(others) == 7 and first["task"] not in {task["task"] for task in others}
    assert tasks.next("zhao", ALL) is None
    tasks.skip("wang", ALL, first["task"])
    assert tasks.next("wang", ALL) is None
    taken = tasks.next("zhao", ALL)
    assert taken == first
    with pytest.raises(NoSuchTask):
        tasks.submit("sun", ALL, first["task"], BAD)
    assert tasks.progress("wang", ALL) == {"open": 0, "done": 0, "cannot": 0, "skipped": 1}
    assert tasks.progress("li", ALL, run.id)["open"] == 7


# --- judgements


@pytest.mark.parametrize(
    ("kind", "row", "field"),
    [
        ("single", {**BAD, "correctness": 6}, "correctness"),
        ("single", {**BAD, "correctness": "很好"}, "correctness"),
        ("single", {**BAD, "correctness": True}, "correctness"),
        ("single", {"correctness": 5}, "completeness"),
        ("single", {**BAD, "citation": 3}, "citation"),
        ("single", {**BAD, "preference": "a"}, "preference"),
        ("single", {**BAD, "cannot_judge": "太难"}, "cannot_judge"),
        ("single", {"correction": "x"}, "correctness"),
        ("single", {**BAD, "comment": 3}, "comment"),
        ("single", {**BAD, "comment": "a\0"}, "comment"),
        ("pair", {"preference": "left"}, "preference"),
        ("pair", {"correctness": 3}, "correctness"),
        ("pair", {"comment": "两个都不好"}, "preference"),
    ],
)
def test_a_bad_judgement_names_its_field(kind: Any, row: dict[str, Any], field: str) -> None:
    with pytest.raises(BadScore) as error:
        judgement_of(kind, False, row)
    assert error.value.field == field and error.value.reason


def test_judgements_as_people_write_them() -> None:
    made = judgement_of("single", True, {"correctness": " 5 ", "completeness": "4.0", "citation": 3, "harm": 5.0, "comment": " 好 "})
    assert (
        made is not None and dict(made.scores) == {"correctness": 5, "completeness": 4, "citation": 3, "harm": 5} and made.comment == "好"
    )
    assert judgement_of("pair", False, {"preference": " TIE "}) is not None
    assert judgement_of("single", False, {"correctness": "", "comment": "  "}) is judgement_of("pair", False, {}) is None
    cannot = judgement_of("single", True, {"cannot_judge": "不是我的专业"})
    assert cannot is not None and cannot.cannot_judge == "不是我的专业" and not cannot.scores


@pytest.mark.parametrize(
    ("scores", "worth"),
    [
        ({"correctness": 5, "completeness": 5, "citation": 5, "harm": 5}, 1.0),
        ({"correctness": 5, "completeness": 5, "harm": 5}, 1.0),
        ({"correctness": 3, "completeness": 1, "citation": 1, "harm": 5}, 0.3),
        ({"correctness": 4, "completeness": 3, "harm": 3}, (0.6 * 0.75 + 0.3 * 0.5) / 0.9),
        ({"correctness": 2, "completeness": 5, "harm": 5}, -0.5),
        ({"correctness": 5, "completeness": 5, "harm": 2}, -0.5),
        ({"correctness": 5, "completeness": 5, "harm": 1}, -1.0),
    ],
)
def test_scores_become_utility(scores: dict[str, int], worth: float) -> None:
    assert utility_of(scores) == pytest.approx(worth)


# --- labels and deletion


def test_an_expert_sees_only_what_their_key_may_see(light: Knowledge, tmp_path: Path) -> None:
    make_run(light)
    plain, _ = Keys(light.workspace.db).create("plain", domains=["medical"])
    chief, _ = Keys(light.workspace.db).create("chief", labels=["management"])
    done = command(light, "eval", "expert", "prepare", "run-1", "--overlap", "2", "-e", "plain", "-e", "chief")
    assert done["assigned"] == {"plain": 7, "chief": 8}
    tasks = ExpertTasks(light.workspace.db)
    assert "5400" not in json.dumps(tasks.take(plain.id, plain.scope, None, None))
    assert "5400" in json.dumps(tasks.take(chief.id, chief.scope, None, None))
    secret = next(task["task"] for task in tasks.take(chief.id, chief.scope, None, None) if "5400" in task["answers"][0]["answer"])
    for act in (lambda: tasks.submit(plain.id, plain.scope, secret, GOOD, claim=True), lambda: tasks.skip(plain.id, plain.scope, secret)):
        with pytest.raises(NoSuchTask):
            act()
    assert tasks.take("x", Scope(frozenset({"legal"}), frozenset({"management"})), None, None) == []
    file = tmp_path / "seen.csv"
    command(light, "eval", "expert", "export", "run-1", file, "-e", "plain")
    assert "5400" not in file.read_text("utf-8")


def test_a_deletion_takes_the_texts_and_leaves_the_numbers(light: Knowledge) -> None:
    run = make_run(light)
    prepare(light.workspace, run, kinds=("single", "pair"), overlap=1)
    tasks = ExpertTasks(light.workspace.db)
    for task in tasks.take("wang", ALL, run.id, None):
        cites = any(side["sources"] for side in task["answers"])
        row = {"preference": "a"} if task["kind"] == "pair" else GOOD if cites else BAD
        correction = FEE if task["lang"] == "zh" and cites else ""
        tasks.submit("wang", ALL, task["task"], {**row, "correction": correction, "comment": "见原文"})
    assert FEE in everything(light) and ("q1", FEE) in expert_utilities(light.workspace.db, run.id, ITEMS)
    light.remove([DocumentKey("medical", "zh/registration.md")])
    assert ("q1", FEE) not in expert_utilities(light.workspace.db, run.id, ITEMS)
    assert FEE not in everything(light)
    status = tasks.status(run.id)
    assert status["withheld"] == 2 and status["experts"]["wang"]["done"] == 13
    found = command(light, "eval", "expert", "report", "run-1")
    assert found["arms"]["quote"]["correctness"]["n"] == 4
    # A later task of the same run has no text of it either.
    assert prepare(light.workspace, run, kinds=("single", "pair"), overlap=1).made == 0


# --- what the scores become


@pytest.fixture
def scored(light: Knowledge) -> Knowledge:
    """A run judged by two experts who nearly agree, and a third who cannot judge."""
    run = make_run(light)
    prepare(light.workspace, run, kinds=("single", "pair"), overlap=2)
    tasks = ExpertTasks(light.workspace.db)
    for expert in ("wang", "li"):
        for task in tasks.take(expert, ALL, run.id, None):
            first = task["answers"][0]
            if task["kind"] == "pair":
                cites = [bool(side["sources"]) for side in task["answers"]]
                row: dict[str, Any] = {"preference": "tie" if cites[0] == cites[1] else "a" if cites[0] else "b"}
            else:
                row = {**GOOD, "completeness": 4 if expert == "li" else 5} if first["sources"] else dict(BAD)
                row |= {"correction": "更正：50元。"} if first["answer"] == "=免费" and expert == "li" else {}
            tasks.submit(expert, ALL, task["task"], row)
    tasks.submit("zhao", ALL, task["task"], {"cannot_judge": "看不懂"}, claim=True)
    return light


def test_the_report_names_arms_and_agreement(scored: Knowledge) -> None:
    found = command(scored, "eval", "expert", "report", "run-1")
    assert (found["judgements"], found["cannot_judge"]) == (26, 1)
    quote, base = found["arms"]["quote"], found["arms"]["base"]
    assert quote["correctness"]["mean"] == 5 and quote["correctness"]["n"] == 4 and "citation" not in base
    assert base["utility"]["mean"] == -0.5 and quote["utility"]["mean"] == pytest.approx((1 + 0.6 + 0.3 * 0.75 + 0.1) / 2)
    (pair,) = [row for row in found["pairs"] if (row["first"], row["second"]) == ("base", "quote")]
    assert pair["first_preferred"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 3}
    assert pair["preferred"] == "no difference shown (fewer than 10 questions)"
    agreement = command(scored, "eval", "expert", "agreement", "run-1")
    assert agreement == {"run": "run-1", **found["agreement"]} and "quote" not in json.dumps(agreement)
    assert agreement["alpha"]["correctness"]["value"] == 1 and agreement["alpha"]["preference"]["value"] == 1
    assert agreement["alpha"]["completeness"]["value"] < 1 and agreement["alpha"]["harm"]["value"] == 1
    kappas = {(row["first"], row["second"], row["criterion"]): row for row in agreement["kappa"]}
    assert kappas["li", "wang", "correctness"]["value"] == 1 and 0 < kappas["li", "wang", "completeness"]["value"] < 1


def test_scores_are_labels_for_the_router(scored: Knowledge) -> None:
    found = expert_utilities(scored.workspace.db, "run-1", ITEMS)
    assert found["q1", FEE] == pytest.approx(0.9625) and found["q1", OUTCOMES["q1", "base"].text] == -0.5
    assert set(found) == {(item, outcome.text) for (item, _), outcome in OUTCOMES.items() if outcome.text}


def test_good_answers_are_approved_once(scored: Knowledge) -> None:
    planned = command(scored, "eval", "expert", "approve", "run-1", "--dry-run")
    assert len(planned["approved"]) == 4 and all(row["verified"] is None for row in planned["approved"])
    done = command(scored, "eval", "expert", "approve", "run-1")
    assert {row["question"] for row in done["approved"]} == {item.question for item in ITEMS}
    assert done["left_out"] == {"not good enough for all of them": 3, "the question has an approved answer": 1}
    approved = command(scored, "verified", "list")
    assert {row["answer"] for row in approved if row["question"] == ITEMS[0].question} == {FEE} and approved[0]["approved_by"] == "li, wang"
    assert command(scored, "eval", "expert", "approve", "run-1")["approved"] == []
    assert command(scored, "eval", "expert", "approve", "run-1", "--experts", "3")["left_out"]["scored by fewer than 3 experts"] == 8


def test_preferences_become_training_pairs(scored: Knowledge, tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl"
    done = command(scored, "dataset", "from-expert", "run-1", "--out", file)
    assert done["by_method"] == {"expert preference": 4, "expert correction": 1} and done["pairs"] == 5
    assert done["left_out"] == {"no preference and no correction": 8}
    made = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    (corrected,) = [row for row in made if row["method"] == "expert correction"]
    assert (corrected["answer"], corrected["rejected"], corrected["lang"]) == ("更正：50元。", "=免费", "zh")
    chosen = next(row for row in made if row["question"] == ITEMS[0].question and row["method"] == "expert preference")
    assert (chosen["answer"], chosen["doc_ids"], chosen["review"]) == (FEE, ["zh/registration.md"], "pending")
    assert next(row for row in made if "5400" in row["answer"])["labels"] == ["management"]
    command(scored, "dataset", "review", file, "--accept", "all")
    pairs = read_pairs(file).pairs
    assert len(pairs) == 5 and all(pair.rejected for pair in pairs)


def test_on_postgresql(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_DATABASE__URL", postgres_url)
    with Workspace.create(tmp_path / "workspace") as workspace:
        run = make_run(SimpleNamespace(workspace=workspace))  # type: ignore[arg-type]
        assert prepare(workspace, run, kinds=("single", "pair"), overlap=2, experts={"wang": ALL, "li": ALL}).made == 13
        tasks = ExpertTasks(workspace.db)
        for expert in ("wang", "li"):
            for task in tasks.take(expert, ALL, run.id, None):
                row = {"preference": "a"} if task["kind"] == "pair" else GOOD if task["answers"][0]["sources"] else BAD
                assert tasks.submit(expert, ALL, task["task"], {**row, "comment": "好"}) == "new"
        assert tasks.status(run.id)["complete"] == 13 and expert_utilities(workspace.db, run.id, ITEMS)["q1", FEE] > 0.9
        with workspace.db.write() as connection:
            moment = {"domain": "medical", "doc_id": "zh/registration.md", "sha256": "x", "deleted_at": utcnow()}
            connection.execute(schema.deletion.insert().values(moment))
        forget(workspace.db, workspace.root)
        assert tasks.status(run.id)["withheld"] == 2
        with workspace.db.read() as connection:
            assert FEE not in str(connection.execute(sa.select(expert_task)).all())
        entry = Entry("medical", "hash", "挂号费？", "refused", "rule", "refuse", "ans-1", [["medical", "a.md"]], [], utcnow())
        with workspace.db.write() as connection:
            enter(connection, [entry, replace(entry, cause="rated_down", answer_id="ans-2")])
        (found,) = ReviewQueue(workspace.db, Feedback(workspace.db, FeedbackConfig())).questions(ALL)
        assert (found.refused, found.rated_down, found.answers) == (1, 1, ("ans-1", "ans-2"))
        assert share_answered(workspace.db).share is None


def test_two_experts_at_once_get_different_tasks(light: Knowledge) -> None:
    run = make_run(light)
    prepare(light.workspace, run, overlap=1)
    tasks = ExpertTasks(light.workspace.db)
    with ThreadPoolExecutor(4) as pool:
        shown = list(pool.map(lambda name: tasks.take(name, ALL, run.id, 2), ("a", "b", "c", "d")))
    assert sorted(map(len, shown)) == [2, 2, 2, 2] and len({task["task"] for each in shown for task in each}) == 8
