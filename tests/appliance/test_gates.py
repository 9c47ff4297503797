"""The gate: only what is shown to be no worse goes live, what was measured is kept, and what was trained on is not asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gate_support import Bench, right, rows, wrong

from appliance.adapters import gates
from appliance.adapters.card import card_text, differences, facts
from appliance.adapters.gate_checks import Check, compare, gates_of, ratio
from appliance.adapters.gates import Promotion
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.answers.availability import ArmUnavailable
from appliance.cli.main import run
from appliance.engines.base import EngineError
from appliance.errors import ApplianceError, GateMissed, UsageError
from appliance.jobs.jobs import Jobs
from appliance.knowledge.knowledge import Knowledge
from appliance.settings import GateConfig
from appliance.store import schema
from appliance.types import Request
from retrieval.types import DocumentKey

# A scripted engine has no speed of its own.
QUICK = GateConfig(latency_questions=0)
UNANSWERABLE = [
    {"id": f"no-{n}", "question": text, "answer": "", "lang": "en", "answerable": False, "split": "test"}
    for n, text in enumerate(("Who designed the moon rocket engine?", "How deep is the Mariana trench?"))
]
SET = [*rows(0, 12, "train"), *rows(0, 6, "train", "zh"), *rows(20, 6, "test"), *rows(20, 5, "test", "zh"), *UNANSWERABLE]


@pytest.fixture
def bench(light: Knowledge, tmp_path: Path) -> Bench:
    return Bench(light, tmp_path)


def promote(bench: Bench, version: AdapterVersion, settings: GateConfig = QUICK, force: str | None = None) -> Promotion:
    return asyncio.run(gates.promote(bench.service(), version.name, settings=settings, force=force))


def check_of(done: Promotion, name: str) -> Check:
    assert done.gate is not None
    return next(check for check in done.gate.checks if check.name == name)


def test_a_better_version_goes_live_and_the_evidence_is_kept(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right)
    done = promote(bench, version)
    live = bench.registry.live("medical")
    assert done.promoted and live is not None and live.name == version.name
    quality = check_of(done, "quality finetuned")
    assert (quality.status, quality.measure, quality.n, quality.candidate) == ("passed", "utility", 11, 1.0)
    assert quality.reference == -0.5 and quality.low is not None and quality.low > 0
    assert {check.name: check.status for check in done.gate.checks} == {  # type: ignore[union-attr]
        "loss": "passed",
        "quality finetuned": "passed",
        "answered finetuned": "passed",
        "refusal": "passed",
        "forgetting": "skipped",
        "latency": "skipped",
    }
    assert "not configured" in check_of(done, "forgetting").note
    kept = gates_of(bench.workspace, version.name)
    assert [gate.to_json() for gate in kept] == [done.gate.to_json()] and kept[0].reference is None  # type: ignore[union-attr]
    with bench.workspace.db.read() as connection:
        runs = {row.id: row for row in connection.execute(sa.select(schema.run))}
    assert set(kept[0].runs) == set(runs) and all(row.finished_at for row in runs.values())
    outputs = (bench.workspace.root / runs[kept[0].runs[0]].path / "outputs.jsonl").read_text("utf-8").splitlines()
    assert len(outputs) == 2 * 11 and {json.loads(line)["asked"] for line in outputs} == {f"finetuned {version.name}", "base"}
    card = (version.path / "README.md").read_text("utf-8")
    assert f"gate {kept[0].id} passed" in card and "quality finetuned" in card and card == card_text(bench.registry, version)
    assert promote(bench, version).why == "live already"


def test_a_worse_version_does_not_replace_the_live_one_but_by_force_with_a_reason(bench: Bench) -> None:
    info = bench.dataset("pairs", SET)
    good, bad = bench.adapter(info, right, 1), bench.adapter(info, wrong, 2)
    promote(bench, good)
    done = promote(bench, bad)
    quality = check_of(done, "quality finetuned")
    live = bench.registry.live("medical")
    assert not done.promoted and live is not None and live.name == good.name and done.gate is not None
    assert done.gate.reference == good.name and quality.status == "missed" and quality.note == "shown to be worse"
    forced = promote(bench, bad, force="the head physician wants it, 主任要求")
    assert forced.promoted and forced.gate == done.gate
    with bench.workspace.db.read() as connection:
        why = connection.execute(sa.select(schema.pointer_move.c.why).order_by(schema.pointer_move.c.id.desc()).limit(1)).scalar_one()
    assert why == f"forced: the head physician wants it, 主任要求 (gate {done.gate.id} missed)"
    assert "主任要求" in (bad.path / "README.md").read_text("utf-8")


def test_a_version_that_says_nothing_or_fails_does_not_pass_beside_a_base_that_is_wrong(bench: Bench) -> None:
    info = bench.dataset("pairs", SET)
    silent = promote(bench, bench.adapter(info, lambda gold: "", 1))
    assert check_of(silent, "quality finetuned").status == "passed" and not silent.promoted
    assert check_of(silent, "answered finetuned").note == "shown to be worse"

    def fails(gold: str) -> str:
        raise EngineError("the adapter cannot be used")

    failed = promote(bench, bench.adapter(info, fails, 2))
    assert not failed.promoted
    assert check_of(failed, "quality finetuned").note == "11 of 11 answers of the version failed: the adapter cannot be used"


def test_questions_trained_on_are_not_asked_but_counted(bench: Bench) -> None:
    again = [
        {**SET[0], "id": "same", "question": SET[0]["question"].upper(), "split": "test"},
        {**SET[1], "id": "near", "question": "Which nurse keeps the key of the birchA cabinet, then?", "split": "test"},
    ]
    done = promote(bench, bench.adapter(bench.dataset("pairs", [*SET, *again]), right))
    assert done.gate is not None and check_of(done, "quality finetuned").n == 11
    assert done.gate.left_out == {"pairs: the question was trained on": 1, "pairs: near duplicate of a question trained on": 1}


def test_what_the_live_version_was_trained_on_is_not_asked_either(bench: Bench) -> None:
    pairs = bench.dataset("pairs", SET)
    other = bench.dataset("other", [*rows(20, 5, "train"), *rows(40, 3, "test")])
    promote(bench, bench.adapter(other, right, 1))
    done = promote(bench, bench.adapter(pairs, right, 2))
    assert done.gate is not None and check_of(done, "quality finetuned").n == 6
    assert done.gate.left_out == {"pairs: the question was trained on": 5}


def test_without_a_question_left_the_gate_is_missed(bench: Bench) -> None:
    done = promote(bench, bench.adapter(bench.dataset("pairs", rows(0, 4, "train")), right))
    quality = check_of(done, "quality finetuned")
    assert not done.promoted and quality.status == "missed" and "[domains.medical.gate] dataset" in quality.note


def test_a_named_set_and_a_general_one(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), wrong)
    bench.dataset("exam", rows(40, 12, "test"))
    bench.dataset("everyday", rows(60, 12, "test", "zh"))
    bench.script[None] = right
    settings = QUICK.model_copy(update={"dataset": "exam", "general": "everyday", "metric": "token_f1", "questions": 10})
    done = promote(bench, version, settings)
    quality, forgetting = check_of(done, "quality finetuned"), check_of(done, "forgetting")
    assert (quality.measure, quality.n, forgetting.n) == ("token_f1", 10, 10)
    assert forgetting.status == "missed" and forgetting.required == "difference >= -0.05"
    assert done.gate is not None and done.gate.left_out["exam: beyond the number of questions asked"] == 2
    with pytest.raises(UsageError, match="no data set 'exams'"):
        promote(bench, version, settings.model_copy(update={"dataset": "exams"}))


def test_a_general_set_counts_whatever_domain_it_is_of(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), wrong)
    bench.dataset("everyday", [*rows(60, 8, "test"), *rows(60, 8, "test", "zh")], domain="general")
    bench.script[None] = right
    forgetting = check_of(promote(bench, version, QUICK.model_copy(update={"general": "everyday"})), "forgetting")
    assert (forgetting.status, forgetting.n) == ("missed", 16)
    assert forgetting.note == "the base answers 16 of 16 of them; shown to be worse"


def test_of_few_general_questions_the_note_says_how_little_they_show(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right)
    bench.dataset("everyday", rows(60, 4, "test", "zh"), domain="general")
    bench.script[None] = right
    settings = QUICK.model_copy(update={"general": "everyday"})
    forgetting = check_of(promote(bench, version, settings), "forgetting")
    assert (forgetting.status, forgetting.n, forgetting.low, forgetting.high) == ("passed", 4, 0.0, 0.0)
    assert forgetting.note.startswith("the base answers 4 of 4 of them; no difference shown; too few questions to tell (4)")
    bench.registry.rollback("medical")
    assert check_of(promote(bench, version, settings.model_copy(update={"strict": True})), "forgetting").status == "missed"


def test_what_the_base_cannot_answer_shows_no_forgetting(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), wrong)
    bench.dataset("everyday", [*rows(60, 8, "test"), *rows(60, 8, "test", "zh")])
    settings = QUICK.model_copy(update={"general": "everyday"})
    forgetting = check_of(promote(bench, version, settings), "forgetting")
    assert (forgetting.status, forgetting.difference) == ("skipped", 0.0)
    assert "the base answers 0 of 16 of them" in forgetting.note and "name general questions that it can" in forgetting.note
    bench.registry.rollback("medical")
    strict = check_of(promote(bench, version, settings.model_copy(update={"strict": True})), "forgetting")
    assert strict.status == "missed"


def test_a_set_of_which_nothing_is_left_says_why(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right)
    bench.workspace.save_setting("engines.default.languages", ["en"])
    bench.dataset("exam", rows(40, 3, "test"), domain="legal")
    bench.dataset("everyday", [*rows(60, 5, "test", "zh"), {**SET[0], "split": "test"}], domain="general")
    done = promote(bench, version, QUICK.model_copy(update={"dataset": "exam", "general": "everyday"}))
    assert "no question of exam is left to ask (other domain: 3)" in check_of(done, "quality finetuned").note
    note = check_of(done, "forgetting").note
    assert "language zh not declared by the engine: 5" in note and "the question was trained on: 1" in note


def test_a_label_that_only_an_adapter_still_has_keeps_nothing_from_the_gate(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right, labels=frozenset({"relabelled since"}))
    assert promote(bench, version).promoted


def test_a_deletion_reaches_the_answers_of_a_gate_also_of_one_that_was_broken_off(bench: Bench) -> None:
    parking = " And what does parking in the north garage cost?"
    bench.dataset("exam", [{**row, "question": row["question"] + parking} for row in rows(60, 3, "test")])
    pairs = bench.dataset("pairs", SET)
    one, two = bench.adapter(pairs, right, 1), bench.adapter(pairs, right, 2)
    bench.script = {None: lambda gold: "SECRET words", **dict.fromkeys((one.name, two.name), lambda gold: "SECRET words")}
    settings = QUICK.model_copy(update={"dataset": "exam", "arms": ("hybrid",)})
    first = promote(bench, one, settings)
    assert first.promoted, first.gate

    def killed(gold: str) -> str:
        raise KeyboardInterrupt

    # The candidate has answered everything when the live version is asked.
    bench.workspace.save_setting("engines.default.max_batch", 1)
    bench.script[one.name] = killed
    with pytest.raises(KeyboardInterrupt):
        promote(bench, two, settings)
    outputs = list((bench.workspace.root / "runs").glob("*/outputs.jsonl"))
    assert outputs and all("SECRET" in path.read_text("utf-8") for path in outputs)
    bench.knowledge.remove([DocumentKey("medical", "parking.md")])
    assert not [path for path in outputs if "SECRET" in path.read_text("utf-8")]


def test_times_are_measured_of_both_in_turn(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right)
    done = promote(bench, version, QUICK.model_copy(update={"latency_questions": 3, "max_latency": 1e9}))
    latency, speed = check_of(done, "latency"), check_of(done, "speed")
    assert (latency.status, latency.n, speed.status, speed.n) == ("passed", 3, "passed", 3)
    assert latency.candidate and latency.reference and speed.candidate and speed.reference


def test_files_that_cannot_be_served_never_go_live(bench: Bench) -> None:
    info = bench.dataset("pairs", SET)
    version, other = bench.adapter(info, right, 1), bench.adapter(info, right, 2, base_hash="another")
    (version.path / "more.bin").write_bytes(b"pickle")
    with pytest.raises(GateMissed, match="only safetensors"):
        promote(bench, version, force="now")
    (version.path / "more.bin").unlink()
    with pytest.raises(ApplianceError, match="was trained for another base"):
        promote(bench, other, force="now")
    (version.path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}', "utf-8")
    with pytest.raises(ApplianceError, match="were altered after training"):
        promote(bench, version, force="now")
    assert bench.registry.live("medical") is None


def test_nothing_is_rolled_back_to_what_the_engine_cannot_serve(bench: Bench) -> None:
    info = bench.dataset("pairs", SET)
    one, two, three = bench.adapter(info, right, 1), bench.adapter(info, right, 2, base_hash="another"), bench.adapter(info, right, 3)
    for version in (one, two, three):
        bench.registry.promote(version.name)
    with pytest.raises(ApplianceError, match=f"{two.name} was trained for another base"):
        gates.rollback(bench.registry, bench.models, "medical")
    bench.registry.promote(one.name)
    bench.registry.promote(three.name)
    (one.path / "more.bin").write_bytes(b"pickle")
    with pytest.raises(GateMissed, match=f"{one.name} cannot go live: .*only safetensors"):
        gates.rollback(bench.registry, bench.models, "medical")
    assert bench.workspace.db.pointer("adapter:medical") == three.name
    (one.path / "more.bin").unlink()
    assert gates.rollback(bench.registry, bench.models, "medical") == bench.registry.get(one.name)
    assert "rollback" in (one.path / "README.md").read_text("utf-8")


def test_the_alias_must_be_where_it_was_when_the_gate_began(bench: Bench) -> None:
    info = bench.dataset("pairs", SET)
    one, two = bench.adapter(info, right, 1), bench.adapter(info, right, 2)
    bench.registry.promote(one.name)
    with pytest.raises(ApplianceError, match=f"{one.name} became live in medical while {two.name} was compared with the base"):
        bench.registry.promote(two.name, "gate", over=None)


def test_without_the_data_trained_on_leaks_cannot_be_told(bench: Bench) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right)
    with bench.workspace.db.write() as connection:
        connection.execute(schema.dataset.delete())
    with pytest.raises(ApplianceError, match=r"data set pairs@\w+ is not registered any more"):
        promote(bench, version)


def test_a_version_is_named_only_by_whoever_measures(bench: Bench) -> None:
    info = bench.dataset("pairs", SET)
    version, secret = bench.adapter(info, right, 1), bench.adapter(info, right, 2, labels=frozenset({"management"}))
    answering = bench.service().answering

    def ask(**changes: Any) -> Any:
        return asyncio.run(answering.ask(Request("When may visitors come?", arm="finetuned", domain="medical", **changes)))

    assert ask(adapter=version.name).adapter == version.name
    with pytest.raises(ArmUnavailable, match="there is no adapter for this domain"):
        ask(adapter="")
    with pytest.raises(ArmUnavailable, match=r"may not see|无权查看"):
        ask(adapter=secret.name)
    with pytest.raises(UsageError, match="no adapter version"):
        ask(adapter="medical@00000000")
    bench.workspace.create_domain("legal")
    with pytest.raises(UsageError, match="is an adapter of medical"):
        asyncio.run(answering.ask(Request("x", arm="finetuned", domain="legal", adapter=version.name)))
    (version.path / "adapter_model.safetensors").write_bytes(b"altered")
    with pytest.raises(ApplianceError, match="were altered"):
        asyncio.run(bench.service().answering.ask(Request("x?", arm="finetuned", domain="medical", adapter=version.name)))


def test_a_version_is_removed_with_its_files(bench: Bench) -> None:
    info = bench.dataset("pairs", SET)
    one = bench.adapter(info, right, 1)
    two = bench.adapter(info, right, 2, parent=one.name)
    registry = bench.registry
    promote(bench, one)
    registry.promote(two.name)
    with pytest.raises(UsageError, match="is live in medical"):
        registry.remove(two.name)
    with pytest.raises(UsageError, match=f"{two.name} came after {one.name}"):
        registry.remove(one.name)
    job = Jobs(bench.workspace.db).add("adapter-promote", {"version": two.name, "why": None}, "medical")
    registry.promote(one.name)
    with pytest.raises(UsageError, match=f"{job.id} is to promote or try {two.name}"):
        registry.remove(two.name)
    Jobs(bench.workspace.db).cancel(job.id)
    registry.promote(two.name)
    registry.remove(one.name, force=True)
    assert not one.path.exists() and [version.name for version in registry.versions()] == [two.name]
    assert registry.links(one.name) == [] and gates_of(bench.workspace, one.name) == []
    with pytest.raises(UsageError, match=f"{one.name}, which was live before, was removed"):
        registry.rollback("medical")
    registry.remove(two.name, force=True)
    assert registry.live("medical") is None
    with pytest.raises(UsageError, match="no adapter version"):
        registry.remove(two.name)


def test_no_alias_moves_to_a_version_that_goes_at_that_moment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right)
    registry = bench.registry
    monkeypatch.setattr(Registry, "check_adapter", lambda self, found: bench.registry.remove(found.name))
    with pytest.raises(UsageError, match="was removed meanwhile"):
        registry.promote(version.name)
    assert registry.live("medical") is None


def test_what_a_crash_while_removing_left_is_removed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    version = bench.adapter(bench.dataset("pairs", SET), right)
    monkeypatch.setattr("appliance.adapters.registry.shutil.rmtree", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.registry.remove(version.name)
    monkeypatch.undo()
    assert bench.registry.versions() == [] and not version.path.exists() and len(list(version.path.parent.iterdir())) == 1
    with pytest.raises(UsageError, match="the files that were left of it are deleted now"):
        bench.registry.remove(version.name)
    assert list(version.path.parent.iterdir()) == []
    with pytest.raises(UsageError, match="no adapter version"):
        bench.registry.remove("../datasets")
    assert bench.workspace.folder("datasets").is_dir()


def test_two_versions_side_by_side(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    one = bench.adapter(bench.dataset("pairs", SET), right, 1)
    two = bench.adapter(bench.dataset("更多", rows(80, 3, "train", "zh")), right, 2, metrics={"eval_loss": 0.5})
    found = {row["what"]: (row["first"], row["second"]) for row in differences(bench.registry, one, two)}
    assert found["config.seed"] == (1, 2) and found["dataset"] == ("pairs", "更多") and found["metrics.eval_loss"] == (1.0, 0.5)
    assert "base_hash" not in found and "path" not in found
    assert differences(bench.registry, one, one) == []
    assert run(["--workspace", str(bench.workspace.root), "adapter", "diff", one.name, one.name]) == 0
    assert capsys.readouterr().out == f"{one.name} is one version; name two that differ\n"
    assert facts(bench.registry, one)["dataset_counts"]["pairs"] == len(SET)


# --- how a difference is judged


def judged(differences: list[float], above: float = -0.02, strict: bool = False) -> Check:
    return compare("quality", "utility", differences, [0.0] * len(differences), above, confidence=0.95, strict=strict)


def test_too_few_questions_show_nothing_and_say_how_many_would() -> None:
    few = judged([0.5, -0.4, 0.3, 0.1, -0.2, 0.3])
    assert few.status == "passed" and "no difference shown" in few.note and "too few questions to tell (6)" in few.note
    assert "questions would show it" in few.note and "the mean decided" in few.note
    assert judged([0.5, -0.4, 0.3, 0.1, -0.2, 0.3], strict=True).status == "missed"
    worse = judged([-0.5, 0.4, -0.3, -0.1, 0.2, -0.3])
    assert worse.status == "missed" and "would show it" not in worse.note
    assert judged([1.0]).status == "passed" and "about" not in judged([1.0]).note
    unsure = judged([0.6, -0.5] * 10)
    assert unsure.status == "passed" and "no difference shown; too few questions to tell (20)" in unsure.note


def test_equal_answers_pass_and_a_gain_can_be_required() -> None:
    assert judged([0.0] * 20, above=-0.0).status == "passed"
    assert judged([0.0] * 20, strict=True).note == ""
    assert judged([0.3, 0.2, 0.4] * 10, above=0.2).note == "shown to be better"
    short = judged([0.1] * 30, above=0.2)
    assert short.status == "missed" and short.note == "shown to gain less; shown to be better"


def test_times_and_speeds() -> None:
    assert ratio("latency", "ms", 150, 100, 2.0, 4, slower=True).status == "passed"
    assert ratio("latency", "ms", 250, 100, 2.0, 4, slower=True).status == "missed"
    assert ratio("speed", "tokens a second", 10, 30, 2.0, 4, slower=False).note == "3.00 times"
    assert ratio("speed", "tokens a second", 0.0, 30, 2.0, 4, slower=False).status == "missed"
