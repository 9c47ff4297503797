"""`appliance eval` over a real knowledge base: what is asked again, what is scored how, its page, its gate, and a model as judge."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ScriptedEngine
from gate_support import Bench, right, rows, wrong

from appliance.adapters.evidence import Link, record
from appliance.cli.main import run as command
from appliance.datasets.registry import DatasetInfo
from appliance.engines.base import EngineBusy, EngineError, Health, Sampling
from appliance.evaluation import cache as run_cache
from appliance.evaluation import runs as evaluation
from appliance.evaluation.gating import hold
from appliance.evaluation.judging import judged
from appliance.evaluation.page import figures, keep_page, page_of, write_page
from appliance.evaluation.runs import evaluate, find, finished_run, items, scoring_of
from appliance.experts.tasks import ExpertTasks, prepare
from appliance.knowledge.forgetting import WITHHELD
from appliance.knowledge.knowledge import Knowledge
from appliance.routing.labels import labels_of
from appliance.service import Service
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.types import Request
from eval.gate import GateFile, Threshold
from eval.run import load
from eval.types import EvalError, Outcome
from finetune.types import Pair
from retrieval.types import DocumentKey, Scope
from tests.retrieval.retrieval_support import HashingEmbedder

QUESTIONS = [
    {"id": "fee", "question": "专家门诊挂号费多少钱？", "answer": "50元", "doc_ids": ["zh/registration.md"], "lang": "zh",
     "metric": "numeric_match"},
    {"id": "garage", "question": "What does the north garage cost an hour?", "answer": "3 crowns", "doc_ids": ["parking.md"], "lang": "en"},
    {"id": "old", "question": "May children visit alone?", "answer": "no", "lang": "en", "metric": "choice"},
    {"id": "ghost", "question": "Who founded the moon base?", "answer": "", "answerable": False, "lang": "en"},
]  # fmt: skip


EVERYTHING = Scope(None, frozenset({"staff", "secret"}))


@pytest.fixture
def bench(light: Knowledge, tmp_path: Path) -> Bench:
    made = Bench(light, tmp_path)
    made.script[None] = right
    return made


def dataset(bench: Bench, content: list[dict[str, Any]] | None = None) -> DatasetInfo:
    return bench.dataset("手册", [{**row, "split": "test"} for row in content or QUESTIONS])


def engine_of(service: Service) -> ScriptedEngine:
    """The engine behind the service."""
    return asyncio.run(service.answering.engines.of("medical"))  # type: ignore[return-value]


class Asked:
    """Counts what is asked through `evaluation.answered`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs: list[tuple[str, str]] = []
        real = evaluation.answered

        async def counted(service: Any, item: Any, arm: str, *rest: Any) -> Outcome:
            self.pairs.append((item.id, arm))
            return await real(service, item, arm, *rest)

        monkeypatch.setattr(evaluation, "answered", counted)

    def since(self) -> list[tuple[str, str]]:
        found, self.pairs = self.pairs, []
        return found


def ran(bench: Bench, info: DatasetInfo, arms: tuple[str, ...] = ("base", "quote", "rag"), **rest: Any) -> dict[str, Any]:
    return asyncio.run(evaluate(bench.service(), info, arms, **rest))


def test_a_rerun_asks_only_what_changed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    info, asked = dataset(bench), Asked(monkeypatch)
    first = ran(bench, info)
    assert len(asked.since()) == 16 and first["reused"] == 0
    again = ran(bench, info)
    assert asked.since() == [] and again["reused"] == 16 and again["arms"] == first["arms"]
    # One question is worded anew, and only that one is asked.
    info = dataset(bench, [{**QUESTIONS[0], "question": "专家门诊的挂号费是多少钱？"}, *QUESTIONS[1:]])
    ran(bench, info)
    assert {name for name, _ in asked.since()} == {"fee"}
    # Longer answers are other answers.
    ran(bench, info, max_tokens=65)
    assert len(asked.since()) == 16
    ran(bench, info, fresh=True)
    assert len(asked.since()) == 16
    # New documents change what is found, but not what the plain model says.
    (bench.folder / "new.md").write_text("# Canteen\n\nLunch is served from 11:30.\n", "utf-8")
    bench.knowledge.ingest([bench.folder / "new.md"], domain="medical")
    ran(bench, info)
    assert {arm for _, arm in asked.since()} == {"quote", "rag", "auto"}


def test_the_key_holds_all_that_decides(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    item = items([Pair("i", "多少钱？", "50元", "zh")], None, None)[0]

    def key(arm: str, sampling: Sampling = Sampling()) -> str | None:  # noqa: B008
        return run_cache.keys(bench.service(), "medical", sampling)(item, arm)

    assert key("rag") == key("rag") != key("hybrid")
    assert key("rag", Sampling(temperature=1.0)) is None
    assert key("rag", Sampling(temperature=1.0, seed=1)) not in (None, key("rag"), key("rag", Sampling(temperature=1.0, seed=2)))
    before = {arm: key(arm) for arm in ("base", "rag", "finetuned", "auto")}
    bench.script["x"] = right
    bench.registry.promote(bench.adapter(bench.dataset("pairs", rows(0, 4, "train")), right).name, "test")
    assert {arm for arm in before if key(arm) != before[arm]} == {"finetuned", "auto"}
    before = {arm: key(arm) for arm in before}
    (bench.workspace.root / "synonyms").mkdir(exist_ok=True)
    (bench.workspace.root / "synonyms" / "medical.txt").write_text("费用, 价钱\n", "utf-8")
    assert {arm for arm in before if key(arm) != before[arm]} == {"rag", "finetuned", "auto"}


def test_no_arm_is_faster_for_what_another_left_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The routed answers are asked last, and found every question and passage embedded; the first question waited for the models."""
    embedded: list[str] = []
    real = HashingEmbedder.encode_queries
    monkeypatch.setattr(HashingEmbedder, "encode_queries", lambda self, texts: (embedded.extend(texts), real(self, texts))[1])
    service = bench.service()
    asyncio.run(evaluate(service, dataset(bench), ("quote",), concurrency=1))
    assert embedded[0] == "warm up" and engine_of(service).asked[0][0][0]["content"] == "Hello. 你好。"
    assert [embedded.count(row["question"]) for row in QUESTIONS] == [2] * 4
    # Nothing is loaded where nothing is asked.
    embedded.clear()
    asyncio.run(evaluate(bench.service(), dataset(bench), ("quote",)))
    assert embedded == []


def test_an_outage_is_no_answer_of_the_router(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its engine the router would quote or refuse, which says nothing about it, and would be taken over for ever."""
    info, asked = dataset(bench), Asked(monkeypatch)
    down = bench.service()
    engine_of(down).state = Health(False, "it is being restarted")
    first = asyncio.run(evaluate(down, info, ("quote", "rag")))
    assert first["errors"] == 8 and first["first_error"] == "引擎 default 不可用：it is being restarted"
    assert first["routed"]["errors"] == 4 and first["routed"]["answered"] == 0 and first["arms"]["quote"]["errors"] == 0
    asked.since()
    again = ran(bench, info, ("quote", "rag"), run_id=first["run_id"])
    assert {arm for _, arm in asked.since()} == {"rag", "auto"} and again["errors"] == 0 and again["routed"]["answered"] > 0


def test_one_bad_row_does_not_end_a_run(bench: Bench) -> None:
    long = {"id": "long", "question": "多少钱？" * 3000, "answer": "50元", "lang": "zh"}
    summary = ran(bench, dataset(bench, [*QUESTIONS, long]), ("base",))
    assert summary["errors"] == 2 and "the question has 12000 characters" in summary["first_error"]
    assert summary["arms"]["base"]["answered"] > 0


def test_a_busy_engine_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds < 1:
            # Of something else in this process.
            await really(seconds)
        else:
            waits.append(seconds)

    monkeypatch.setattr("appliance.evaluation.patience.asyncio.sleep", sleep)
    service = bench.service()
    item = items([Pair("i", "多少钱？", "50元", "zh")], None, None)[0]
    bench.gold[item.question] = "50元"
    engine = engine_of(service)
    engine.error = EngineBusy("rate limit", retry_after=600)
    outcome = asyncio.run(evaluation.answered(service, item, "base", "medical", Sampling()))
    assert outcome.error == "rate limit" and waits == [60.0] * 5


def test_a_run_that_goes_on_in_another_state_asks_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    info, asked = dataset(bench), Asked(monkeypatch)
    options: dict[str, Any] = {"split": "test", "limit": None, "max_tokens": 64}
    first = ran(bench, info, ("base", "quote"))
    assert finished_run(bench.service(), info, ("base", "quote"), **options) == first
    bench.workspace.save_setting("retrieval.k", 3)
    assert finished_run(bench.service(), info, ("base", "quote"), **options) is None
    asked.since()
    again = ran(bench, info, ("base", "quote"), run_id=first["run_id"])
    assert {arm for _, arm in asked.since()} == {"quote", "auto"}
    assert finished_run(bench.service(), info, ("base", "quote"), **options) == again


def test_what_a_process_has_seen_does_not_change_what_is_measured(bench: Bench) -> None:
    service = bench.service()
    item = items([Pair("i", "专家门诊挂号费多少钱？", "50元", "zh")], None, None)[0]
    before = service.answering.costs.expected("medical")
    asyncio.run(evaluation.answered(service, item, "base", "medical", Sampling()))
    assert service.answering.costs.expected("medical") == before
    asyncio.run(service.answering.ask(Request(item.question, domain="medical", arm="base"), evaluation.evaluator(service)))
    assert service.answering.costs.expected("medical") != before
    turn = asyncio.run(service.answering.decide(evaluation.request_of(item, "auto", "medical", Sampling()), evaluation.evaluator(service)))
    assert dict(turn.situation.costs) == dict(before)


def test_a_learned_router_is_asked_again_on_another_day(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    item = items([Pair("i", "多少钱？", "50元", "zh")], None, None)[0]

    def key(arm: str, day: int) -> str | None:
        monkeypatch.setattr(run_cache, "utcnow", lambda: datetime(2026, 1, day, tzinfo=UTC))
        return run_cache.keys(bench.service(), "medical", Sampling())(item, arm)

    assert key("auto", 1) == key("auto", 2)
    monkeypatch.setattr("appliance.evaluation.cache.Routers.live", lambda *_: "router@1")
    assert key("auto", 1) != key("auto", 2) and key("rag", 1) == key("rag", 2)


def test_what_a_deletion_took_is_not_taken_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    info, asked = dataset(bench), Asked(monkeypatch)
    summary = ran(bench, info, ("quote",))
    run = find(bench.service(), summary["run_id"])
    keep_page(bench.workspace, run)
    folder = bench.workspace.root / run.path
    assert "50元" in (folder / "report.html").read_text("utf-8") and list(folder.glob("report*.png"))
    bench.knowledge.remove([DocumentKey("medical", "zh/registration.md")])
    asked.since()
    assert list(folder.glob("report*")) == []
    assert "专家门诊挂号费为50元" not in (folder / "outputs.jsonl").read_text("utf-8")
    assert not any("专家门诊挂号费为50元" in outcome.answer for outcome in run_cache.known(bench.service(), info.name).values())
    write_page(bench.workspace, run, folder / "report.html", None)
    assert "专家门诊挂号费为50元" not in (folder / "report.html").read_text("utf-8")


def test_a_deletion_takes_the_answers_of_adapters_trained_on_it(bench: Bench) -> None:
    """As it does those of experts' tasks and of feedback: the adapter may say the text, whatever the question found."""
    (bench.folder / "notes.md").write_text("# Notes\n\nThe vault opens at nine.\n", "utf-8")
    bench.knowledge.ingest([bench.folder / "notes.md"], domain="archive")
    version = bench.adapter(bench.dataset("pairs", rows(0, 4, "train")), right)
    other = bench.adapter(bench.dataset("more", rows(4, 8, "train")), right, 2)
    with bench.workspace.db.write() as connection:
        record(connection, version.name, [Link("pair-0", "declared", "archive", "notes.md", "0" * 64)])
    info, ids = dataset(bench), []
    for name in (version.name, other.name):
        bench.registry.promote(name, "test")
        ids.append(ran(bench, info, ("base", "quote", "finetuned"))["run_id"])
    folder = bench.workspace.root / "runs" / ids[0]
    assert load(folder).outcomes["fee", "finetuned"].adapter == version.name
    bench.knowledge.remove([DocumentKey("archive", "notes.md")])
    outcomes = load(folder).outcomes
    assert {arm for (_, arm), outcome in outcomes.items() if outcome.error == WITHHELD} == {"finetuned"}
    assert not any(outcome.answer for (_, arm), outcome in outcomes.items() if arm == "finetuned")
    assert not any(outcome.error for outcome in load(folder.with_name(ids[1])).outcomes.values())
    labels = labels_of(bench.service(), [ids[0]])
    assert labels.withheld == 3 and [one.utility["finetuned"] for one in labels.questions] == [None, None, None, 1.0]


def test_a_deletion_waits_for_a_finished_run_that_is_gone_on_with(bench: Bench) -> None:
    """Whoever goes on appends to the file that would be written anew."""
    summary = ran(bench, dataset(bench), ("quote",))
    path = bench.workspace.root / "runs" / summary["run_id"] / "outputs.jsonl"
    with bench.workspace.db.lock(f"run:{summary['run_id']}"):
        before = path.stat().st_ino
        bench.knowledge.remove([DocumentKey("medical", "zh/registration.md")])
        assert path.stat().st_ino == before and "专家门诊挂号费为50元" in path.read_text("utf-8")
    run_cache.known(bench.service(), "手册")
    assert "专家门诊挂号费为50元" not in path.read_text("utf-8")


def test_rows_declare_their_metric(bench: Bench) -> None:
    summary = ran(bench, dataset(bench), ("base",))
    assert summary["arms"]["base"]["numeric_match"] == 1 and summary["arms"]["base"]["choice"] == 1
    assert summary["arms"]["base"]["hallucination"] == 0
    bench.workspace.save_setting("eval.metrics.手册", "exact_match")
    assert [item.metric for item in items([Pair("i", "q", "a", "en")], None, None, "exact_match")] == ["exact_match"]
    assert items([Pair("i", "q", "a", "en", meta={"options": {"A": "one", "B": "two"}})], None, None)[0].choices == (
        ("A", "one"),
        ("B", "two"),
    )
    assert items([Pair("i", "q", "a", "en", meta={"options": "是|否"})], None, None)[0].choices == (("", "是"), ("", "否"))
    with pytest.raises(EvalError, match=r"pairs\.jsonl row 3, metric: 'f1'; expected one of token_f1"):
        items([Pair("i", "q", "a", "en", file="pairs.jsonl", row=3, meta={"metric": "f1"})], None, None)


def test_worth_and_prices_are_the_teams(bench: Bench) -> None:
    bench.workspace.save_setting("eval.utility.wrong", -1.0)
    bench.workspace.save_setting("eval.prices.scripted.generated_1k", 2.0)
    scoring = scoring_of(bench.workspace.config, {("fee", "base"): 0.25})
    assert scoring.worth.wrong == -1 and scoring.prices["scripted"].generated_1k == 2 and scoring.experts["fee", "base"] == 0.25


def test_page_and_gate(bench: Bench, tmp_path: Path) -> None:
    info = dataset(
        bench,
        [
            {**QUESTIONS[0], "id": f"<b>{n}", "doc_ids": [f"{n}.md"], "question": f"第{n}次：<script>alert(1)</script>挂号费多少钱？"}
            for n in range(12)
        ],
    )
    run = find(bench.service(), ran(bench, info, ("base", "quote"))["run_id"])
    written = write_page(bench.workspace, run, tmp_path / "页面.html", tmp_path / "page.md")
    html = (tmp_path / "页面.html").read_text("utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html and "手册" in html and "data:image/svg+xml;base64," in html
    assert "http://" not in html and "https://" not in html
    text = (tmp_path / "page.md").read_text("utf-8")
    assert "\\<script\\>" in text and all((tmp_path / path.name).is_file() for path in written)
    assert "no difference shown" in text or "higher" in text or "lower" in text
    assert page_of(bench.workspace, run)[0].title == "Evaluation of 手册"
    second = find(bench.service(), ran(bench, info, ("base", "quote"), fresh=True)["run_id"])
    wanted = GateFile((Threshold("utility", "base", low=0.9, confidence=0.95), Threshold("utility", "base", low=0.0, against="last")))
    assert [verdict.status for verdict in hold(bench.workspace, wanted, "gate.toml", second)] == ["passed", "passed"]
    assert [verdict.status for verdict in hold(bench.workspace, wanted, "gate.toml", run)] == ["passed", "skipped"]


def test_a_model_judges_and_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    info = dataset(bench)
    run = find(bench.service(), ran(bench, info, ("base", "quote"))["run_id"])
    service = bench.service()
    said: list[str] = []

    def reply(_: str) -> str:
        said.append("asked")
        return '```json\n{"correctness": 4, "completeness": "5", "harm": 5}\n```'

    bench.script[None] = reply
    found = asyncio.run(judged(service, run, "default", arms=["base"]))
    assert found["arms"]["base"]["correctness"]["mean"] == 4 and found["unreadable"] == 0 and len(said) == 3
    assert found["agreement"] == {} and found["experts"] == 0
    asyncio.run(judged(service, run, "default", arms=["base"]))
    assert len(said) == 3
    bench.script[None] = lambda _: "I like both."
    assert asyncio.run(judged(service, run, "default", arms=[], pairs=[("base", "quote")]))["pairs"][0]["unreadable"] > 0
    write_page(bench.workspace, run, tmp_path / "run.html", tmp_path / "run.md")
    html, text = (tmp_path / "run.html").read_text("utf-8"), (tmp_path / "run.md").read_text("utf-8")
    assert "Judged by a model" in html and "4.00 [4.00, 4.00]" in html and "base over quote" in html
    assert "## Judged by a model" in text and "no expert has judged these answers" in text
    assert "50元" not in (load(bench.workspace.root / run.path).folder / "judge-default.jsonl").read_text("utf-8")


def test_a_busy_judge_is_waited_for_and_what_it_refuses_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = find(bench.service(), ran(bench, dataset(bench), ("base",))["run_id"])
    service, asked, lengths = bench.service(), 0, set()
    chat = engine_of(service).chat

    async def moody(self: Any, messages: Any, adapter: Any, sampling: Sampling) -> Any:
        nonlocal asked
        asked += 1
        lengths.add(sampling.max_tokens)
        if asked <= 2:
            raise EngineBusy("429", retry_after=0.001)
        if asked == 3:
            raise EngineError("the server's content filter stopped the answer")
        async for delta in chat(messages, adapter, sampling):
            yield delta

    monkeypatch.setattr(type(engine_of(service)), "chat", moody)
    bench.script[None] = lambda _: '{"correctness": 4, "completeness": 5, "harm": 5}'
    found = asyncio.run(judged(service, run, "default", arms=["base"], max_tokens=700))
    assert found["failed"] == 1 and "content filter" in found["first_failure"] and lengths == {700}
    assert found["arms"]["base"]["correctness"]["n"] == 2
    assert asyncio.run(judged(service, run, "default", arms=["base"]))["failed"] == 0


def test_commands(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = dataset(bench)
    summary = ran(bench, info, ("base", "quote"))

    def call(*words: str) -> tuple[int, str, str]:
        code = command(["--workspace", str(bench.workspace.root), "eval", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    file = tmp_path / "gate.toml"
    file.write_text('[[check]]\nmetric = "utility"\narm = "base"\nmin = 0.5\n', "utf-8")
    code, out, _ = call("gate", str(file), "--json")
    assert code == 0 and json.loads(out)["checks"][0]["status"] == "passed"
    file.write_text('[[check]]\nmetric = "utility"\narm = "base"\nmin = 2\n', "utf-8")
    code, out, err = call("gate", str(file), "--run", summary["run_id"])
    assert code == 4 and "missed" in out and "1 of 1 checks" in err
    file.write_text('[[check]]\nmetric = "utility"\nminimum = 2\n', "utf-8")
    code, _, err = call("gate", str(file))
    assert code in (1, 2) and "line 3: check 1: minimum" in err
    code, out, err = call("show", "last", "--html", str(tmp_path / "run.html"), "--json")
    assert code == 0 and json.loads(out) == {**summary, "gates": {"gate.toml": False}} and (tmp_path / "run.html").is_file()
    assert call("show", "--html", "x.html")[0] == 2
    assert call("show", "last", "--html", str(tmp_path / "no" / "run.html"))[0] == 1
    code, _, err = call("judge", "last", "--engine", "nobody")
    assert code == 2 and "unknown engine 'nobody'; known: default" in err
    assert call("judge", "last", "--engine", "default", "--pair", "rag")[0] == 2


def test_a_model_that_does_not_know_does_not_hallucinate(bench: Bench) -> None:
    bench.script[None] = lambda _: "I don't know."
    measured = ran(bench, dataset(bench), ("base",))["arms"]["base"]
    assert (measured["hallucination"], measured["refused"], measured["refusal_recall"], measured["refusal_precision"]) == (0, 4, 1, 0.25)
    assert measured["utility"] == 0.25


def test_a_wrong_answer_is_worth_less_than_none(bench: Bench) -> None:
    bench.script[None] = wrong
    summary = ran(bench, dataset(bench), ("base",))
    assert summary["arms"]["base"]["utility"] == -0.5 and summary["arms"]["base"]["hallucination"] == 1


def score(bench: Bench, run: Any, worth: int) -> None:
    """Let an expert give every answer of a run the same scores."""
    prepare(bench.workspace, run, overlap=1)
    tasks = ExpertTasks(bench.workspace.db)
    while (task := tasks.next("dr-lin", EVERYTHING)) is not None:
        cited = ("citation",) if task["answers"][0]["sources"] else ()
        tasks.submit("dr-lin", EVERYTHING, task["task"], dict.fromkeys(("correctness", "completeness", "harm", *cited), worth))


def test_scores_of_experts_are_of_answers_and_hold_in_every_figure(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    info = dataset(bench)
    first = find(bench.service(), ran(bench, info, ("base",))["run_id"])
    assert first.summary["arms"]["base"]["utility"] == 1
    score(bench, first, 1)
    # A later run takes the answers over, and with them what the experts said.
    second = find(bench.service(), ran(bench, info, ("base",))["run_id"])
    for run in (first, second):
        shown = figures(bench.workspace, run)[0].summary or {}
        assert shown["arms"]["base"]["utility"] == pytest.approx((3 * -1 + 1) / 4) and shown["run_id"] == run.id
        made = page_of(bench.workspace, run)[0]
        assert made.rows[0][made.columns.index("utility")] == "-0.500"
        assert dict(made.facts)["scored by experts"].startswith("3 answers")
    assert command(["--workspace", str(bench.workspace.root), "eval", "show", "last"]) == 0
    assert "-0.500" in capsys.readouterr().out
    wanted = GateFile((Threshold("utility", "base", low=0.9),))
    assert [verdict.status for verdict in hold(bench.workspace, wanted, "gate.toml", second)] == ["missed"]
    # The same id with another question is another question.
    changed = dataset(bench, [{**row, "question": f"{row['question']} ?"} for row in QUESTIONS])
    third = find(bench.service(), ran(bench, changed, ("base",))["run_id"])
    assert (figures(bench.workspace, third)[0].summary or {})["arms"]["base"]["utility"] == 1


def test_a_missed_run_is_nobodys_baseline(bench: Bench) -> None:
    info = dataset(bench)
    wanted = GateFile((Threshold("utility", "base", low=-0.1, against="last"),))

    def gated(**rest: Any) -> tuple[str, str]:
        run = find(bench.service(), ran(bench, info, ("base",), **rest)["run_id"])
        (verdict,) = hold(bench.workspace, wanted, "gate.toml", run)
        return verdict.status, run.id

    assert gated()[0] == "skipped"
    bench.script[None] = wrong
    assert gated(fresh=True)[0] == "missed"
    # Measured again it is still a loss, though every answer is taken over from the run before.
    status, again = gated()
    assert status == "missed"
    ran(bench, info, ("base",), run_id=again)
    assert gated()[0] == "missed"
    # Nor is what somebody asked with other settings.
    ran(bench, info, ("base",), limit=2)
    ran(bench, info, ("base",), max_tokens=8)
    ran(bench, info, ("quote",))
    assert gated()[0] == "missed"
    bench.script[None] = right
    assert gated(fresh=True)[0] == "passed"
    # Whoever accepts the loss holds a gate that the run passes against it.
    assert [verdict.status for verdict in hold(bench.workspace, GateFile((Threshold("utility", "base", low=-2),)), "gate.toml",
            find(bench.service(), again))] == ["passed"]  # fmt: skip


def test_failures_and_how_to_go_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(bench)
    service = bench.service()
    monkeypatch.setattr("appliance.service.open_service", lambda *_: service)

    def call(*words: str) -> tuple[int, str, str]:
        code = command(["--workspace", str(bench.workspace.root), "eval", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    engine_of(service).state = Health(False, "stopped")
    code, out, err = call("run", "--dataset", "手册", "--arms", "base", "--split", "all", "--max-tokens", "7")
    run_id = out.split()[1].rstrip(",")
    assert code == 3 and "errors" in out
    assert "8 answers failed, the first with: 引擎 default 不可用：stopped" in err
    assert f"ask these again with: appliance eval run --resume {run_id}\n" in err
    gate = tmp_path / "gate.toml"
    gate.write_text('[[check]]\nmetric = "answered"\narm = "base"\nmin = 0\n', "utf-8")
    code, out, _ = call("gate", str(gate), "--json")
    assert code == 4 and json.loads(out)["checks"][0]["metric"] == "errors"
    engine_of(service).state = Health(True)
    code, _, err = call("run", "--resume", "last", "--arms", "rag")
    assert code == 2 and f"--arms: run {run_id} was begun with ['base'], not ['rag']" in err
    code, _, err = call("run")
    assert code == 2 and "--resume RUN" in err
    code, out, err = call("run", "--resume", "last", "--max-tokens", "7", "--json")
    assert code == 0 and json.loads(out)["run_id"] == run_id and json.loads(out)["errors"] == 0 and "failed" not in err
    assert call("gate", str(gate))[0] == 0


def test_runs_are_removed_but_not_the_work_of_experts(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    info = dataset(bench)
    first, second, third = (find(bench.service(), ran(bench, info, ("base",))["run_id"]) for _ in range(3))
    score(bench, second, 4)

    def call(*words: str) -> tuple[int, str, str]:
        code = command(["--workspace", str(bench.workspace.root), "eval", "remove", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    assert call()[0] == 2 and call("--older-than", "1", "--json")[1].split() == ["{", '"removed":', "[]", "}"]
    code, out, _ = call(first.id)
    assert code == 0 and out == f"removed: {first.id}\n" and not (bench.workspace.root / first.path).exists()
    code, _, err = call(second.id)
    assert code == 2 and "--with-scores" in err and (bench.workspace.root / second.path).is_dir()
    assert [row.id for row in evaluation.runs(bench.service())] == [third.id, second.id]
    # What was taken over from the first is with the others.
    assert ran(bench, info, ("base",))["reused"] == 8
    assert call(second.id, "--with-scores")[0] == 0 and ExpertTasks(bench.workspace.db).ids(second.id) == frozenset()
    with bench.workspace.db.write() as connection:
        connection.execute(schema.run.update().where(schema.run.c.id == third.id).values(created_at=utcnow() - timedelta(days=3)))
    assert call("--older-than", "2")[1] == f"removed: {third.id}\n"


def test_a_failure_is_no_label(bench: Bench) -> None:
    run = find(bench.service(), ran(bench, dataset(bench), ("base", "quote"))["run_id"])
    file = bench.workspace.root / run.path / "outputs.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for row in rows:
        row["outcome"]["error"] = "it stopped" if row["asked"] == "base" else None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = labels_of(bench.service(), [run.id], "medical")
    assert found.questions and all(
        question.utility["base"] is None and question.utility["quote"] is not None for question in found.questions
    )
