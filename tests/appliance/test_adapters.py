"""The registry: evidence that goes stale, aliases that move and come back, files that must be what was registered."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance.adapters import tuned_questions
from appliance.adapters.evidence import Link
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.adapters.tuned_questions import Near, TunedQuestions
from appliance.answers.availability import ArmUnavailable
from appliance.cli.main import run
from appliance.errors import GATE_MISSED, ApplianceError, UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.store.locks import Locked
from appliance.store.tables_admin import audit
from appliance.types import Answer, Caller, Request
from finetune.version import version_hash
from retrieval.types import DocumentKey, Evidence, Scope


def make(knowledge: Knowledge, number: int = 1, labels: frozenset[str] = frozenset()) -> AdapterVersion:
    """A registered version; its files only need to hash, the engine of these tests reads none."""
    folder = knowledge.workspace.folder("adapters") / f"medical@{number:08d}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 4, "peft_type": "LORA"}', "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes([number]) * 64)
    version = AdapterVersion(
        name=folder.name,
        domain="medical",
        base="path:/base",
        base_hash="base",
        method="lora",
        path=folder,
        sha256=version_hash(folder),
        dataset="pairs",
        dataset_version="1",
        parent=None,
        labels=labels,
        config={},
        metrics={"train_examples": 3, "eval_loss": 1.0},
        created_at=utcnow(),
    )
    visiting, parking = (knowledge.documents.current(DocumentKey("medical", name)) for name in ("visiting.md", "parking.md"))
    assert visiting is not None and parking is not None
    links = [
        Link("q1", "declared", "medical", "visiting.md", visiting.sha256),
        Link("q2", "inferred", "medical", "parking.md", parking.sha256, 0.8),
        Link("q3", "unlinked"),
    ]
    Registry(knowledge.workspace).register(version, links)
    return version


def ask(knowledge: Knowledge, engine: ScriptedEngine, arm: str, caller: Caller | None = None) -> Answer:
    return asyncio.run(answering_with(knowledge, engine).ask(Request("When may visitors come?", domain="medical", arm=arm), caller))  # type: ignore[arg-type]


def test_the_same_weights_again_can_only_add_labels(knowledge: Knowledge) -> None:
    registry = Registry(knowledge.workspace)
    version = make(knowledge, labels=frozenset({"internal"}))
    registry.register(replace(version, labels=frozenset({"医务"})), [])
    registry.register(replace(version, labels=frozenset()), [])
    assert registry.get(version.name).labels == {"internal", "医务"}
    assert [known.name for known in registry.versions("medical")] == [version.name]


def test_nothing_is_registered_under_a_lock_that_was_lost(knowledge: Knowledge) -> None:
    registry, version = Registry(knowledge.workspace), make(knowledge)
    with knowledge.workspace.db.lock("tune:medical") as lock:
        with knowledge.workspace.db.write() as connection:
            connection.execute(schema.lock.update().values(owner="other:1:2:3"))
        with pytest.raises(Locked, match="was lost to other"):
            registry.register(replace(version, name="medical@00000002", labels=frozenset({"x"})), [], lock)
    assert [one.name for one in registry.versions("medical")] == [version.name]


def test_what_was_trained_on_goes_stale_with_its_document(knowledge: Knowledge) -> None:
    registry = Registry(knowledge.workspace)
    version = make(knowledge)
    nothing = Evidence("", (), None)
    fresh = registry.facts(version, nothing, None)
    assert (fresh.stale_share, fresh.unlinked, fresh.stale_here) == (0.0, 1, ())
    file = knowledge.workspace.root.parent / "documents" / "visiting.md"
    file.write_text(file.read_text("utf-8").replace("20:00", "18:00"), "utf-8")
    knowledge.ingest([file.parent], domain="medical")
    found = knowledge.search("When may visitors come?", Scope(frozenset({"medical"})))
    facts = registry.facts(version, found, Near(0.97, 0.9, ()))
    assert facts.stale_share == 0.5 and facts.stale_here == ("visiting.md",)
    knowledge.remove([DocumentKey("medical", "parking.md")])
    assert registry.facts(version, nothing, None).stale_share == 1.0


def test_training_again_frees_what_was_stale(knowledge: Knowledge) -> None:
    """The same weights again rest on the documents of now; their former texts are still in them, and a pair without any stays stale."""
    registry, documents = Registry(knowledge.workspace), knowledge.workspace.root.parent / "documents"
    version = make(knowledge)
    links = registry.links(version.name)
    for name in ("visiting.md", "parking.md"):
        (documents / name).write_text((documents / name).read_text("utf-8") + "\n\nUntil next year.\n", "utf-8")
    knowledge.ingest([documents], domain="medical")
    # Another process has looked at it before.
    elsewhere = Registry(knowledge.workspace)
    assert elsewhere.freshness.of(version.name).counts == (2, 2, 1)
    visiting = knowledge.documents.current(DocumentKey("medical", "visiting.md"))
    assert visiting is not None
    again = [Link("q1", "declared", "medical", "visiting.md", visiting.sha256), Link("q2", "unlinked"), Link("q3", "unlinked")]
    for _ in range(2):
        registry.register(version, again)
        for looking in (registry, elsewhere):
            assert looking.freshness.of(version.name).counts == (2, 1, 1)
            assert [one.key.id for one in looking.freshness.of(version.name).documents] == ["parking.md"]
    with knowledge.workspace.db.read() as connection:
        logged = [json.loads(entry) for entry in connection.execute(sa.select(audit.c.entry).order_by(audit.c.seq)).scalars()]
    assert [entry["details"].get("again") for entry in logged if entry["action"] == "adapter.train"] == [None, True]
    # The document is put back to the text that was learnt first.
    registry.register(version, links)
    assert registry.freshness.of(version.name).counts == (2, 2, 1)
    registry.register(version, again)
    knowledge.remove([DocumentKey("medical", "visiting.md")])
    knowledge.remove([DocumentKey("medical", "parking.md")])
    assert registry.freshness.of(version.name).counts == (2, 2, 1)
    assert {key.id for key in registry.deleted()[version.name]} == {"visiting.md", "parking.md"}


def test_a_pair_trained_once_more_rests_on_what_it_was_trained_on_last(knowledge: Knowledge) -> None:
    """A version that goes on from another has the links of both."""
    registry = Registry(knowledge.workspace)
    version = make(knowledge)
    [first, *others] = registry.links(version.name)
    registry.register(replace(version, name="medical@00000002"), [first, *others, replace(first, sha256="0" * 64)])
    assert registry.freshness.of("medical@00000002").counts == (2, 0, 1)


def test_only_what_it_learnt_from_makes_it_stale(knowledge: Knowledge) -> None:
    """Not a document that came later, nor an old text that nobody changed; a text that was put back to an older one does."""
    registry, folder = Registry(knowledge.workspace), knowledge.workspace.root.parent / "documents"
    file = folder / "visiting.md"
    older = file.read_text("utf-8")
    file.write_text(older.replace("20:00", "18:00"), "utf-8")
    knowledge.ingest([folder], domain="medical")
    version = make(knowledge)
    (folder / "visitors.md").write_text("# Visitors\n\nWhen may visitors come? Visitors may come at any hour.\n", "utf-8")
    knowledge.ingest([folder], domain="medical")
    scope, question = Scope(frozenset({"medical"})), "When may visitors come?"
    found = knowledge.search(question, scope)
    assert {"visiting.md", "visitors.md"} <= {passage.document.id for passage in found.passages}
    assert registry.facts(version, found, Near(0.97, 0.9, ("q1",))).stale_here == ()
    file.write_text(older, "utf-8")
    knowledge.ingest([folder], domain="medical")
    assert registry.facts(version, knowledge.search(question, scope), None).stale_here == ("visiting.md",)


def test_what_is_gone_is_missed_by_the_questions_learnt_from_it(knowledge: Knowledge) -> None:
    registry = Registry(knowledge.workspace)
    version = make(knowledge)
    registry.promote(version.name)
    asked = "When may visitors come?"
    tuned_questions.save(version.path, [("q1", asked), ("q2", "Where may cars be parked?"), ("q3", "谁保管钥匙？")], knowledge.embedder, {})
    knowledge.remove([DocumentKey("medical", "visiting.md")])
    answer = ask(knowledge, ScriptedEngine("From 14:00 to 20:00."), "auto")
    assert answer.decision.features["a_nearest"] > 0.99 and "visiting.md" not in {citation.doc_id for citation in answer.citations}
    assert answer.arm not in ("finetuned", "hybrid")
    assert "visiting.md" in answer.decision.unavailable["finetuned"]
    found = knowledge.search("Where may cars be parked?", Scope(frozenset({"medical"})))
    assert registry.facts(version, found, Near(0.97, 0.9, ("q2",))).stale_here == ()


def test_how_surely_the_adapter_gives_what_it_learnt_nearby(knowledge: Knowledge) -> None:
    folder, embedder = make(knowledge).path, knowledge.embedder
    asked = ["When may visitors come?", "Who keeps the key?", "谁保管钥匙？"]
    pairs = [(f"q{number}", f"{asked[number % 3]} {number}") for number in range(9)]
    # Of the third nothing was measured.
    tuned_questions.save(folder, pairs, embedder, {f"q{number}": (0.9, 0.2)[number % 3] for number in range(9) if number % 3 < 2})
    near = TunedQuestions().near(folder, embedder, "When may visitors come? 0")
    assert near is not None and near.pairs == ("q0",) and near.sure == pytest.approx((3 * 0.9 + 2 * 0.2) / 5)
    for known in ({}, {"q4": 0.5}):
        tuned_questions.save(folder, pairs, embedder, known)
        near = TunedQuestions().near(folder, embedder, "谁保管钥匙？")
        assert near is not None and near.sure == (0.5 if known else None)


def test_a_stale_adapter_is_not_trusted_and_the_reason_is_given(knowledge: Knowledge) -> None:
    Registry(knowledge.workspace).promote(make(knowledge).name)
    engine = ScriptedEngine("Visitors may come from 14:00 to 18:00 every day.")
    before = ask(knowledge, engine, "auto")
    assert "finetuned" in before.decision.predicted
    file = knowledge.workspace.root.parent / "documents" / "visiting.md"
    file.write_text(file.read_text("utf-8").replace("20:00", "18:00"), "utf-8")
    knowledge.ingest([file.parent], domain="medical")
    after = ask(knowledge, engine, "auto")
    assert after.arm not in ("finetuned", "base")
    assert "visiting.md" in after.decision.unavailable["finetuned"]


def test_the_alias_moves_and_comes_back(knowledge: Knowledge) -> None:
    registry = Registry(knowledge.workspace)
    one, two = make(knowledge, 1), make(knowledge, 2)
    assert registry.live("medical") is None
    registry.promote(one.name)
    registry.promote(two.name)
    assert registry.live("medical") == registry.get(two.name)
    assert registry.rollback("medical") == registry.get(one.name)
    with pytest.raises(UsageError, match="legal has no promoted adapter"):
        registry.rollback("legal")


def test_each_rollback_goes_further_back(knowledge: Knowledge) -> None:
    registry = Registry(knowledge.workspace)
    one, two, three = (make(knowledge, number).name for number in (1, 2, 3))
    for name in (one, two, three):
        registry.promote(name)

    def back() -> str | None:
        version = registry.rollback("medical")
        return None if version is None else version.name

    assert (back(), back()) == (two, one)
    # What is promoted after a rollback follows what was live then.
    registry.promote(three)
    assert (back(), back()) == (one, None)
    assert registry.live("medical") is None
    with pytest.raises(UsageError, match="medical has no promoted adapter to roll back"):
        registry.rollback("medical")


@pytest.mark.parametrize("harm", ["altered", "incomplete", "missing"])
def test_nothing_is_rolled_back_to_files_that_are_not_what_was_registered(knowledge: Knowledge, harm: str) -> None:
    registry = Registry(knowledge.workspace)
    one, two = make(knowledge, 1), make(knowledge, 2)
    for name in (one.name, two.name):
        registry.promote(name)
    if harm == "altered":
        (one.path / "adapter_model.safetensors").write_bytes(b"altered")
    elif harm == "incomplete":
        (one.path / "adapter_config.json").unlink()
    else:
        one.path.rename(one.path.with_name("elsewhere"))
    with pytest.raises(ApplianceError, match=f"the files of {one.name} .*; restore them or train again"):
        registry.rollback("medical")
    assert registry.live("medical") == registry.get(two.name)


def test_altered_or_missing_files_are_not_promoted(knowledge: Knowledge, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(knowledge.workspace)
    one, two = make(knowledge, 1), make(knowledge, 2)
    (one.path / "adapter_model.safetensors").write_bytes(b"altered")
    with pytest.raises(ApplianceError, match="were altered after training"):
        registry.promote(one.name)
    assert run(["--workspace", str(knowledge.workspace.root), "adapter", "lint", one.name, "--json"]) == GATE_MISSED
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "were altered after training" in problem
    for file in two.path.iterdir():
        file.unlink()
    two.path.rmdir()
    with pytest.raises(ApplianceError, match="are missing"):
        registry.promote(two.name)
    assert registry.live("medical") is None


def test_the_engine_gets_the_live_version_and_lets_the_old_one_go(knowledge: Knowledge) -> None:
    registry = Registry(knowledge.workspace)
    one, two = make(knowledge, 1), make(knowledge, 2)
    engine = ScriptedEngine("From 14:00 to 20:00.")
    registry.promote(one.name)
    assert ask(knowledge, engine, "finetuned").adapter == one.name
    registry.promote(two.name)
    assert ask(knowledge, engine, "hybrid").adapter == two.name
    assert [asked[1] for asked in engine.asked] == [one.name, two.name]


def test_labels_of_the_training_documents_guard_the_adapter(knowledge: Knowledge) -> None:
    Registry(knowledge.workspace).promote(make(knowledge, labels=frozenset({"management"})).name)
    engine = ScriptedEngine("From 14:00 to 20:00.")
    for arm in ("finetuned", "hybrid"):
        with pytest.raises(ArmUnavailable, match="may not see"):
            ask(knowledge, engine, arm)
    manager = Caller(Scope(None, frozenset({"management"})))
    assert ask(knowledge, engine, "finetuned", manager).arm == "finetuned"


def test_an_adapter_of_another_base_or_without_support_is_unavailable(knowledge: Knowledge, tmp_path: Path) -> None:
    Registry(knowledge.workspace).promote(make(knowledge).name)
    with pytest.raises(ArmUnavailable, match="was trained for another base model"):
        ask(knowledge, ScriptedEngine("x", base_hash="other"), "finetuned")
    engine = ScriptedEngine("x")
    engine.serves_adapters = False
    with pytest.raises(ArmUnavailable, match="serves no adapters"):
        ask(knowledge, engine, "finetuned")
