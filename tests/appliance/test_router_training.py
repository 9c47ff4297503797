"""A router learnt from a run: gated, live, explained, rolled back, watched for drift, and flipped by a changed document."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from gate_support import Bench, right, rows, wrong

from appliance.adapters import tuned_questions
from appliance.adapters.evidence import Link
from appliance.cli.main import cli
from appliance.errors import ApplianceError, UsageError
from appliance.evaluation.runs import evaluate
from appliance.experts.review import Share
from appliance.knowledge.knowledge import Knowledge
from appliance.routing.adoption import newest
from appliance.routing.drift import drift
from appliance.routing.gate import decided_now, measure
from appliance.routing.labels import labels_of, without_rare_languages
from appliance.routing.log import RouteLog, rows_since
from appliance.routing.routers import Routers, RouterVersion, Routing, loaded
from appliance.routing.training import train_router
from appliance.service import Service, router_of
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.store.tables_router import router as router_table
from appliance.types import Answer, Caller, Request
from eval.groups import groups_of
from eval.run import load
from eval.types import UNAVAILABLE, Item, Outcome
from retrieval.types import DocumentKey, Scope
from router.features import NAMES
from router.fit import Labelled, families, train

ARMS = ("base", "quote", "finetuned", "rag")


class Tuned:
    """A domain whose adapter answers English questions right and Chinese ones wrong, while the base does the reverse."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        content = [*rows(0, 4, "train"), *rows(20, 16, "test"), *rows(20, 16, "test", "zh")]
        self.info = bench.dataset("rooms", content)
        self.version = bench.adapter(self.info, self._speak)
        bench.script[None] = lambda gold: gold if "护士长" in gold else wrong(gold)
        bench.registry.promote(self.version.name)

    @staticmethod
    def _speak(gold: str) -> str:
        return wrong(gold) if "护士长" in gold else right(gold)

    def service(self) -> Service:
        service = self.bench.service()
        service.answering.router = router_of(self.bench.workspace)
        return service

    def run(self, limit: int | None = None) -> str:
        summary = asyncio.run(evaluate(self.service(), self.info, ARMS, limit=limit, max_tokens=32))
        return str(summary["run_id"])

    def ask(self, question: str, **rest: Any) -> Answer:
        caller = Caller(Scope(None, frozenset()))
        return asyncio.run(self.service().answering.ask(Request(question, domain="medical", **rest), caller))


@pytest.fixture(autouse=True)
def simple(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is linear is tried, which is quick, except where training itself is tested."""
    if request.function is not test_from_a_run_to_a_live_router_and_back:
        monkeypatch.setattr("router.fit.families", lambda: families()[:2])


@pytest.fixture
def tuned(light: Knowledge, tmp_path: Path) -> Tuned:
    return Tuned(Bench(light, tmp_path))


def invoke(tuned: Tuned, *words: str) -> tuple[int, Any]:
    result = CliRunner().invoke(cli, ["--workspace", str(tuned.bench.workspace.root), "router", *words, "--json"], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, json.loads(result.stdout)


def test_from_a_run_to_a_live_router_and_back(tuned: Tuned) -> None:
    run = tuned.run()
    trained = train_router(tuned.service(), [run])
    gate = trained.version.gate
    assert trained.live and gate["passed"] and gate["gain"]["low"] > 0 and gate["mean"] > max(gate["arms"].values())
    assert gate["questions"] == 32 and 0 < gate["oracle_share"] <= 1 and trained.version.training["runs"] == [run]
    assert trained.version.training["adapters"] == {run: tuned.version.name}
    assert router_of(tuned.bench.workspace).version.endswith(f"+{trained.version.name}")

    english, chinese = tuned.ask("Which nurse keeps the key of the birchC cabinet?"), tuned.ask("丙丁21号药柜的钥匙由谁保管？")
    assert (english.arm, chinese.arm) == ("finetuned", "base")
    assert english.decision.rule == "learned" and english.decision.router_version == trained.version.name
    assert "32 evaluated questions" in english.decision.reasons[0] and "32 个已评测的问题" in chinese.decision.reasons[0]
    cited = tuned.ask("Which nurse keeps the key of the birchC cabinet?", arm="quote")
    assert cited.decision.rule == "forced"

    status, listed = invoke(tuned, "list")
    assert status == 0 and [(row["name"], row["live"]) for row in listed] == [(trained.version.name, True)]
    assert not {"bins", "learnt"} & set(listed[0]["training"]) and "model" not in listed[0]
    assert invoke(tuned, "show")[1]["domains"] == {"medical": trained.version.name}
    assert invoke(tuned, "rollback")[1] == {"domain": "medical", "live": None}
    assert tuned.ask("Which nurse keeps the key of the birchC cabinet?").decision.rule != "learned"
    assert invoke(tuned, "promote", trained.version.name)[1]["promoted"]
    with pytest.raises(UsageError, match="no router 'medical@00000000'"):
        Routers(tuned.bench.workspace.db).promote("medical@00000000", "x")


def test_a_router_that_wins_nothing_does_not_go_live(tuned: Tuned) -> None:
    tuned.bench.script[None] = tuned.bench.script[tuned.version.name] = right
    run = tuned.run()
    status, told = invoke(tuned, "train", "--run", run)
    assert status == 4 and not told["live"] and not told["gate"]["passed"]
    assert "the rule policy stays" in told["why"] and told["gate"]["best_single"] in told["why"]
    assert Routers(tuned.bench.workspace.db).live("medical") is None
    status, told = invoke(tuned, "promote", told["name"])
    assert status == 4 and not told["promoted"]
    status, told = invoke(tuned, "promote", told["router"], "--force", "a trial")
    assert status == 0 and Routers(tuned.bench.workspace.db).live("medical") == told["router"]


def test_what_decides_now_is_compared_on_questions_it_did_not_learn(tuned: Tuned) -> None:
    run = tuned.run()
    labels = labels_of(tuned.service(), [run])
    assert set(labels.ruled) == {question.id for question in labels.questions}
    first = train_router(tuned.service(), [run])
    assert first.live and first.version.gate["over_live"]["questions"] == 32
    # It knows all of these, so that it would seem better than it is.
    assert train_router(tuned.service(), [run]).version.gate["over_live"] is None
    routers, service = Routers(tuned.bench.workspace.db), tuned.service()
    learnt = sorted(labels.words[question.id] for question in labels.questions if question.lang == "en")
    halved = routers.save("medical", loaded(first.version), {**first.version.training, "learnt": learnt}, first.version.gate)
    routers.promote(halved.name, "for the test")
    now = decided_now(labels, routers, router_of(tuned.bench.workspace))
    assert set(now) == {question.id for question in labels.questions if question.lang == "zh"}
    # Every Chinese question is left to the base there, which answers all of them right.
    assert set(now.values()) == {1.0}
    assert labels_of(service, [tuned.run()]).ruled == {}


def test_an_approved_answer_proves_nothing_about_the_rules(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tuned.run()
    whole = load(tuned.bench.workspace.root / "runs" / run)
    first = whole.items[0].id
    outcomes = {**whole.outcomes, (first, "auto"): replace(whole.outcomes[first, "auto"], arm="verified", answer=whole.items[0].answer)}
    monkeypatch.setattr("appliance.evaluation.runs.load", lambda _: replace(whole, outcomes=outcomes))
    labels = labels_of(tuned.service(), [run])
    called = {question.id.split()[0] for question in labels.questions}
    assert first in called and {id.split()[0] for id in labels.ruled} == {item.id for item in whole.items} - {first}


def test_rows_of_two_sets_may_be_called_the_same(tuned: Tuned) -> None:
    alone = labels_of(tuned.service(), [tuned.run()])
    first = tuned.run(limit=10)
    others = [{**row, "question": f"On the new ward: {row['question']}"} for row in rows(20, 10, "test")]
    tuned.info = tuned.bench.dataset("wards", others)
    labels = labels_of(tuned.service(), [first, tuned.run()])
    ids = [question.id.split()[0] for question in labels.questions]
    assert len(ids) == 20 and len(set(ids)) == 10 and len(labels.words) == 20
    # A question that both runs asked counts once.
    assert len(labels_of(tuned.service(), list(alone.runs) * 2).questions) == len(alone.questions)


def test_nothing_is_learnt_from_the_features_of_another_release(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tuned.run()
    monkeypatch.setattr("appliance.routing.labels.FEATURE_VERSION", 10_000)
    with pytest.raises(ApplianceError, match=f"run {run} was made by a release that found other features .* `appliance eval run` again"):
        labels_of(tuned.service(), [run])


def test_the_best_single_arm_decides_where_no_router_beats_it(tuned: Tuned) -> None:
    tuned.bench.script[None] = right
    tuned.bench.script[tuned.version.name] = wrong
    run = tuned.run()
    status, told = invoke(tuned, "train", "--run", run)
    assert (
        status == 4 and told["gate"]["best_single"] == "base" and told["why"].endswith(f"appliance router train --run {run} --best-single")
    )
    status, told = invoke(tuned, "train", "--run", run, "--best-single")
    assert status == 0 and told["live"] and told["kind"] == "mean" and told["gate"]["over_live"]["difference"] > 0
    assert "no router" not in told["why"] and "the best arm on average decides" in told["why"]
    assert tuned.ask("Which nurse keeps the key of the birchC cabinet?").arm == "base"
    # What decides now is the best single arm; there is nothing to gain.
    assert invoke(tuned, "train", "--run", run, "--best-single")[0] == 4


def test_a_router_that_takes_more_risk_than_is_allowed_misses_its_gate(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_of(tuned.service(), [tuned.run()])
    # No arm is right more often than every other time, which a threshold chosen for no risk at all would not let through.
    unsure = tuple(
        replace(question, utility={"base": 1.0 if number % 2 else -0.5, "rag": -0.5, "refuse": 0.0})
        for number, question in enumerate(labels.questions)
    )
    routing = router_of(tuned.bench.workspace)
    routing.target_risk = 0.1
    monkeypatch.setattr("appliance.routing.gate.train", lambda questions, among, _: train(questions, families()[:1], None))
    gate = measure(replace(labels, questions=unsure, ruled={}), routing, {})
    assert gate["risk"] == 0.5 and gate["too_risky"] and not gate["passed"] and "50% of the answers given are wrong, 10%" in gate["why"]


def test_an_arm_that_declines_has_given_no_answer(tuned: Tuned) -> None:
    tuned.bench.script[None] = lambda gold: wrong(gold) if "护士长" not in gold else "I don't know."
    labels = labels_of(tuned.service(), [tuned.run()])
    assert {question.lang for question in labels.questions if "base" in question.declined} == {"zh"}
    routers, routing = Routers(tuned.bench.workspace.db), router_of(tuned.bench.workspace)
    now = decided_now(labels, routers, routing)
    gate = measure(labels, routing, now)
    silent = tuple(replace(question, declined=frozenset(question.utility)) for question in labels.questions)
    nothing = measure(replace(labels, questions=silent), routing, now)
    assert gate["answered"] > 0 and (nothing["answered"], nothing["risk"]) == (0, 0) and nothing["mix"] == gate["mix"]


def test_the_risk_allowed_now_decides(tuned: Tuned) -> None:
    version = saved(tuned)
    workspace = tuned.bench.workspace
    unsure = [
        Labelled(str(n), str(n), "en", (0.0,) * len(NAMES), {"base": 1.0 if n % 2 else -0.5, "refuse": 0.0}) for n in range(30)
    ]  # fmt: skip
    routers = Routers(workspace.db)
    version = routers.save("medical", train(unsure, families()[:1]), version.training, {"passed": True})
    routers.promote(version.name, "for the test")
    assert tuned.ask("Which nurse keeps the key of the birchC cabinet?").arm == "base"
    workspace.save_setting("router.target_risk", 0.1)
    assert tuned.ask("Which nurse keeps the key of the birchC cabinet?").arm == "refuse"


def test_another_adapter_and_a_language_hardly_asked_are_told(tuned: Tuned) -> None:
    run = tuned.run()
    other = tuned.bench.adapter(tuned.info, right, number=2)
    tuned.bench.registry.promote(other.name)
    assert any(tuned.version.name in note and other.name in note for note in train_router(tuned.service(), [run]).notes)
    labels = labels_of(tuned.service(), [run])
    rare = replace(labels, questions=labels.questions[:17])
    kept, few = without_rare_languages(rare)
    assert few == {"zh": 1} and {question.lang for question in kept.questions} == {"en"}


def test_another_router_that_comes_to_decide_meanwhile_stays(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    run, others = tuned.run(), []

    def meanwhile(*given: Any) -> dict[str, Any]:
        others.append(saved(tuned).name)
        return measure(*given)

    monkeypatch.setattr("appliance.routing.training.measure", meanwhile)
    with pytest.raises(ApplianceError, match=r"medical@\w+ came to decide in medical while medical@\w+ was compared with the rule policy"):
        train_router(tuned.service(), [run])
    assert [Routers(tuned.bench.workspace.db).live("medical")] == others


def test_too_few_questions_unfinished_runs_and_other_domains(tuned: Tuned) -> None:
    run = tuned.run(limit=10)
    with pytest.raises(ApplianceError, match="10 labelled questions are too few"):
        train_router(tuned.service(), [run])
    with pytest.raises(UsageError, match="is of medical, not of legal"):
        labels_of(tuned.service(), [run], "legal")
    with pytest.raises(UsageError, match="no run 'nothing'"):
        labels_of(tuned.service(), ["nothing"])


def test_questions_about_one_document_prove_nothing_about_others(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tuned.run()
    monkeypatch.setattr("appliance.routing.labels.groups_of", lambda items: dict.fromkeys((item.id for item in items), "handbook"))
    with pytest.raises(ApplianceError, match="32 labelled questions are about 1 separate document, too few"):
        train_router(tuned.service(), [run])


def test_an_experts_score_is_an_answers_worth(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tuned.run()
    before = labels_of(tuned.service(), [run])
    result = load(tuned.bench.workspace.root / "runs" / run)
    name, outcome = next((item, one) for (item, arm), one in result.outcomes.items() if arm == "base" and one.text)
    monkeypatch.setattr("appliance.evaluation.runs.expert_utilities", lambda *_: {(name, outcome.text): -1.0})
    after = labels_of(tuned.service(), [run])
    worth = [next(one for one in labels.questions if one.id.split()[0] == name).utility["base"] for labels in (before, after)]
    assert worth[0] != -1.0 == worth[1]


def saved(tuned: Tuned) -> RouterVersion:
    """A live router that always refuses, learnt from nothing that took time."""
    questions = [Labelled("1", "1", "en", (0.0,) * len(NAMES), {"rag": 0.0, "refuse": 1.0})]
    routers = Routers(tuned.bench.workspace.db)
    version = routers.save(
        "medical", train(questions, families()[:1]), {"adapters": {"run": tuned.version.name}, "learnt": []}, {"passed": True}
    )
    return routers.promote(version.name, "for the test")


def test_a_damaged_router_leaves_the_rules(tuned: Tuned, caplog: pytest.LogCaptureFixture) -> None:
    version = saved(tuned)
    assert tuned.ask("Which nurse keeps the key of the birchC cabinet?").decision.rule == "learned"
    with tuned.bench.workspace.db.write() as connection:
        connection.execute(router_table.update().where(router_table.c.name == version.name).values(model={"format": 1}))
    with caplog.at_level(logging.ERROR, "appliance.router"):
        assert tuned.ask("Which nurse keeps the key of the birchC cabinet?").decision.rule != "learned"
    assert "the rules decide instead" in caplog.text


def test_each_rollback_goes_further_back_past_what_cannot_be_used(tuned: Tuned) -> None:
    first, workspace = saved(tuned), tuned.bench.workspace
    routers, names = Routers(workspace.db), [first.name]
    for number in range(3):
        version = routers.save("medical", loaded(first), {**first.training, "number": number}, first.gate)
        names.append(routers.promote(version.name, "for the test").name)
    assert routers.rollback("medical") == names[2]
    with workspace.db.write() as connection:
        connection.execute(router_table.update().where(router_table.c.name == names[1]).values(model={"format": 1}))
    assert routers.rollback("medical") == names[0] == routers.live("medical")
    assert routers.rollback("medical") is None
    with pytest.raises(UsageError, match="medical has no promoted router to roll back"):
        routers.rollback("medical")


def test_a_router_of_another_release_is_told(tuned: Tuned) -> None:
    version, database = saved(tuned), tuned.bench.workspace.db
    assert invoke(tuned, "show")[1]["unused"] == {}
    with database.write() as connection:
        older = {**version.model, "feature_version": 0}
        connection.execute(router_table.update().where(router_table.c.name == version.name).values(model=older))
    shown = invoke(tuned, "show")[1]
    assert "other features" in shown["unused"]["medical"] and shown["domains"]["medical"].startswith("rules-")
    told = invoke(tuned, "drift")[1]
    assert told["router"] == "rules" and len(told["relabel"]) == 1 and "train it again" in told["relabel"][0]


def test_an_adapter_that_is_gone_is_a_reason_to_label_anew(tuned: Tuned) -> None:
    saved(tuned)
    assert drift(tuned.bench.workspace, "medical")["relabel"] == []
    tuned.bench.registry.rollback("medical")
    assert any("no adapter is live" in reason for reason in drift(tuned.bench.workspace, "medical")["relabel"])


def test_a_running_server_notices_within_a_second(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    routing: Routing = router_of(tuned.bench.workspace)
    now = [100.0]
    monkeypatch.setattr("appliance.routing.routers.time.monotonic", lambda: now[0])
    before = routing.of("medical")
    version = saved(tuned)
    assert routing.of("medical") is before
    now[0] += 1.0
    assert routing.of("medical").version == version.name


def test_an_explanation_of_a_learnt_decision(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.service.open_service", lambda _: tuned.service())
    train_router(tuned.service(), [tuned.run()])
    asked = ("explain", "丙丁21号药柜的钥匙由谁保管？", "--domain", "medical")
    data = invoke(tuned, *asked)[1]
    assert data["decision"]["arm"] == "base" and data["lang"] == "zh"
    assert {part["feature"] for part in data["arms"]["base"]["because"]} & {"q_zh", "q_words"}
    assert data["arms"]["base"]["cost"]["tokens"] > 0 and "utility" in data["decision"]["predicted"]["base"]
    # As it is under a caller's conditions, and for one who sees less.
    cited = invoke(tuned, *asked, "--must-cite")[1]
    assert cited["decision"]["arm"] != "base" and {"if": "不要求给出引用", "arm": "base"} in cited["conditions"]
    quick = invoke(tuned, *asked, "--max-latency-ms", "0.001")[1]
    assert "base" in quick["decision"]["unavailable"] and quick["conditions"]
    with tuned.bench.workspace.db.write() as connection:
        connection.execute(schema.adapter.update().values(labels=["board"]))
    assert "finetuned" in invoke(tuned, *asked)[1]["decision"]["predicted"]
    assert "无权查看" in invoke(tuned, *asked, "--label", "")[1]["decision"]["unavailable"]["finetuned"]


def test_questions_that_share_a_document_or_their_words_are_one_group() -> None:
    items = [
        Item("1", "谁保管钥匙？", doc_ids=("a", "b")),
        Item("2", "Who?", doc_ids=("b",)),
        Item("3", "WHO? "),
        Item("4", "When?", doc_ids=("c",)),
    ]
    groups = groups_of(items)
    assert groups["1"] == groups["2"] == groups["3"] != groups["4"]


def test_decisions_are_logged_without_text_and_drift_is_told(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tuned.bench.workspace.db
    assert drift(tuned.bench.workspace, "medical")["router"] == "rules"
    trained = train_router(tuned.service(), [tuned.run()])
    log = RouteLog(database)
    answer = tuned.ask("Which nurse keeps the key of the birchC cabinet?")
    log.note(answer)
    log.note(tuned.ask("Which nurse keeps the key of the birchC cabinet?", arm="base"))
    log.flush()
    (row,) = rows_since(database, "medical", utcnow() - timedelta(minutes=5))
    assert row.arm == "finetuned" and row.router == trained.version.name and all(isinstance(value, float) for value in row.row)
    with database.read() as connection:
        assert "birchC" not in str(connection.execute(sa.text("SELECT * FROM route")).all())
    told = drift(tuned.bench.workspace, "medical")
    assert told["questions"] == 1 and "too few" in told["note"] and told["relabel"] == []
    for _ in range(80):
        log.note(answer)
    log.flush()
    told = drift(tuned.bench.workspace, "medical")
    moved = told["arms"]["psi"]
    for _ in range(40):
        log.note(replace(answer, decision=replace(answer.decision, arm="verified")))
    log.flush()
    with monkeypatch.context() as patch:
        patch.setattr("appliance.routing.log._READ", 5)
        assert [row.arm for row in rows_since(database, "medical", utcnow() - timedelta(minutes=5))] == ["verified"] * 5
    told = drift(tuned.bench.workspace, "medical")
    # What experts have answered is not the router's choice.
    assert told["mix"]["verified"] > 0.3 and told["arms"]["psi"] == pytest.approx(moved, abs=0.05)
    # What a choice led to, as where its answer could not be cited, is no other choice.
    log.note(replace(answer, arm="refuse"))
    log.flush()
    told = drift(tuned.bench.workspace, "medical")
    assert told["refused"] == 0
    ruled = replace(answer, decision=replace(answer.decision, arm="quote", router_version="rules-1-12345678"))
    for _ in range(60):
        log.note(ruled)
    log.flush()
    # Nor is what the rules chose before it went live.
    assert drift(tuned.bench.workspace, "medical")["arms"]["psi"] == told["arms"]["psi"]
    # Half of the training questions were Chinese, now none is.
    assert any("q_zh" in reason for reason in told["relabel"]) and any("other arms" in reason for reason in told["relabel"])
    assert set(invoke(tuned, "drift")[1]["mix"]) == {"finetuned", "verified", "quote"}


def test_the_last_write_waits_for_the_one_under_way(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RouteLog(tuned.bench.workspace.db)
    answer = tuned.ask("谁保管钥匙？")
    inside, go = threading.Event(), threading.Event()
    begin = type(tuned.bench.workspace.db).write

    def slow(database: Any) -> Any:
        inside.set()
        assert go.wait(10)
        return begin(database)

    monkeypatch.setattr(type(tuned.bench.workspace.db), "write", slow)
    log.note(answer)
    first = threading.Thread(target=log.flush)
    first.start()
    assert inside.wait(10)
    log.note(answer)
    second = threading.Thread(target=log.flush)
    second.start()
    second.join(0.2)
    assert second.is_alive() and len(log._waiting) == 1
    go.set()
    first.join(10)
    second.join(10)
    assert len(rows_since(tuned.bench.workspace.db, "medical", utcnow() - timedelta(minutes=5))) == 2


def test_another_adapter_asks_for_new_labels(tuned: Tuned) -> None:
    saved(tuned)
    other = tuned.bench.adapter(tuned.info, right, number=2)
    tuned.bench.registry.promote(other.name)
    assert any(other.name in reason for reason in drift(tuned.bench.workspace, "medical")["relabel"])


def test_a_full_disk_delays_the_log(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RouteLog(tuned.bench.workspace.db)
    log.note(tuned.ask("谁保管钥匙？"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tuned.bench.workspace.db), "write", full)
        log.flush()
    log.flush()
    assert len(rows_since(tuned.bench.workspace.db, "medical", utcnow() - timedelta(minutes=5))) == 1


@pytest.mark.parametrize("trained", [False, True])
def test_a_changed_document_flips_the_route_and_the_reason_is_given(light: Knowledge, tmp_path: Path, trained: bool) -> None:
    bench = Bench(light, tmp_path)
    tuned = Tuned(bench)
    question = "Why may visitors come to the intensive care unit only two at a time?"
    visiting = light.documents.current(DocumentKey("medical", "visiting.md"))
    assert visiting is not None
    version = bench.adapter(tuned.info, right, number=3)
    bench.script[version.name] = right
    registry = bench.registry
    registry.promote(version.name)
    with bench.workspace.db.write() as connection:
        link = Link("v1", "declared", "medical", "visiting.md", visiting.sha256)
        values = {"adapter": version.name, "pair_id": link.pair_id, "kind": link.kind, "doc_domain": link.domain, "doc_id": link.doc_id}
        connection.execute(schema.adapter_evidence.insert().values(**values, sha256=link.sha256, score=None))
    if trained:
        train_router(tuned.service(), [tuned.run()], force="for the test")
    before = tuned.ask(question)
    assert before.arm in ("finetuned", "hybrid") or not trained
    status, listed = stale(tuned)
    assert status == 0 and all(not row["documents"] for row in listed if row["version"] == version.name)

    file = bench.workspace.root.parent / "documents" / "visiting.md"
    file.write_text(file.read_text("utf-8").replace("at most two visitors", "at most three visitors"), "utf-8")
    light.ingest([file.parent], domain="medical")
    after = tuned.ask(question)
    assert after.arm not in ("finetuned", "hybrid")
    assert "visiting.md" in after.decision.unavailable["finetuned"]
    assert any("visiting.md" in reason and version.name in reason for reason in after.decision.reasons)
    _, listed = stale(tuned)
    (row,) = [row for row in listed if row["version"] == version.name]
    assert row["live"] and row["stale"] == 1 and row["stale_share"] == 1.0
    assert row["documents"] == [{"domain": "medical", "doc_id": "visiting.md", "change": "changed", "pairs": 1}]


def stale(tuned: Tuned) -> tuple[int, Any]:
    words = ["--workspace", str(tuned.bench.workspace.root), "adapter", "stale", "--json"]
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, json.loads(result.stdout)


def test_one_question_is_embedded_once(knowledge: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrieval, the search for approved answers and the router's look at training questions share one embedding."""
    tuned = Tuned(Bench(knowledge, tmp_path))
    tuned_questions.save(tuned.version.path, [("p1", "谁保管钥匙？"), ("p2", "Who keeps the key?")], knowledge.embedder, {})
    encoded: list[str] = []
    model = knowledge.embedder._embedder
    encode = model.encode_queries

    def counted(texts: list[str]) -> Any:
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(model, "encode_queries", counted)
    answer = tuned.ask("Which nurse keeps the key of the south cabinet?", arm="auto")
    assert encoded == ["Which nurse keeps the key of the south cabinet?"]
    assert 0 < answer.decision.features["a_near"] <= answer.decision.features["a_nearest"] <= 1


def test_advice_is_checked_against_the_domains_own_data(tuned: Tuned) -> None:
    words = ["--workspace", str(tuned.bench.workspace.root), "advise", "--accuracy-requirement", "critical", "--domain", "medical"]
    before = advised(words)
    assert before["measured"]["run"] is None and before["measured"]["rules"]["accuracy_requirement"].startswith("not measured")
    feasible, production, _ = before["measured"]["phases"]
    assert feasible["entry"][0]["met"] is True and feasible["exit"][0]["met"] is False and production["entry"][0]["met"] is None
    run = tuned.run()
    told = advised(words)["measured"]
    assert told["run"] == run and "finetuned minus rag" in told["rules"]["accuracy_requirement"]
    assert "documents are new or changed" in told["rules"]["knowledge_update_frequency"]
    assert told["figures"]["latency_ms"] > 0 and told["figures"]["answered_without_a_person"] is None
    assert told["phases"][0]["exit"][0]["met"] is True
    roi = ["engineer-months", "monthly-salary", "annotation-price", "task-value", "process-speedup", "time-value", "gpu-price"]
    figures = [part for name in roi for part in (f"--{name}", "1")] + ["--automated-tasks", "5"]
    filled = advised([*words, *figures])
    assert filled["roi_figures"]["data_volume"] == told["figures"]["data_volume"] and filled["roi"]["total_cost"] > 0
    with pytest.raises(UsageError, match="none was asked"):
        advised([*words, *figures[:-2], "--questions-per-year", "1000"])
    assert "inside this process" in told["rules"]["deployment_environment"]


def test_arms_are_compared_on_the_same_questions(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tuned.run()
    whole = load(tuned.bench.workspace.root / "runs" / run)
    easy, *others = [item.id for item in whole.items]
    # Quoting is possible for one question only, where it is right; an expert answered another one.
    outcomes = {**whole.outcomes, (easy, "quote"): Outcome("quote", next(item.answer for item in whole.items if item.id == easy))}
    outcomes |= {(name, "quote"): Outcome("quote", error=UNAVAILABLE + "no passages") for name in others}
    outcomes[others[0], "auto"] = replace(outcomes[others[0], "auto"], arm="verified")
    monkeypatch.setattr("appliance.evaluation.runs.load", lambda _: replace(whole, outcomes=outcomes))
    found = newest(tuned.bench.workspace, "medical")
    assert found is not None and found.mean("quote") == 1 / 32 and found.single() in ("base", "finetuned")
    assert len(found.worth["auto"]) == 31 and others[0] not in found.worth["auto"]


def test_the_return_is_filled_from_latency_tokens_and_prices(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.bench.workspace.save_setting("eval.prices.default.read_1k", 1.0)
    tuned.bench.workspace.save_setting("eval.prices.default.generated_1k", 1.0)
    tuned.run()
    monkeypatch.setattr("appliance.routing.adoption.share_answered", lambda *_: Share(10, 5, 0, 5, 0.5, 0.2, 0.8))
    told = newest(tuned.bench.workspace, "medical")
    assert told is not None
    words = ["--workspace", str(tuned.bench.workspace.root), "advise", "--accuracy-requirement", "critical", "--domain", "medical"]
    given = ["engineer-months", "monthly-salary", "annotation-price", "task-value", "time-value", "gpu-price"]
    figures = [part for name in given for part in (f"--{name}", "1")]
    filled = advised([*words, *figures, "--questions-per-year", "1000", "--minutes-by-hand", "6"])["roi_figures"]
    assert filled["automated_tasks"] == 500
    assert filled["process_speedup"] == pytest.approx(500 * (0.1 - told.latency_ms["auto"] / 3_600_000))
    assert filled["running_cost"] == pytest.approx(1000 * told.cost["auto"])
    with pytest.raises(UsageError, match="needs --questions-per-year"):
        advised([*words, *figures, "--minutes-by-hand", "6"])


def advised(words: list[str]) -> Any:
    result = CliRunner().invoke(cli, [*words, "--json"], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)
