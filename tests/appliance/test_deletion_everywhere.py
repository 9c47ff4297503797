"""Deleted text never comes back: not from any arm, command or file, and not after any operation on the index."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from fake_engine import ScriptedEngine
from gate_support import make_adapter
from helpers import answering_with
from starlette.testclient import TestClient

from appliance.adapters.evidence import Link
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.admin.keys import Keys
from appliance.answers.answering import Answering
from appliance.answers.availability import ArmUnavailable
from appliance.answers.feedback import Feedback
from appliance.answers.verified import VerifiedAnswers
from appliance.cli.main import cli
from appliance.experts.tasks import ExpertTasks, prepare
from appliance.gateway.app import create_app
from appliance.jobs.schedule import Plan, Schedule
from appliance.knowledge import documents
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.settings import FeedbackConfig
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.types import Caller, Decided, Request
from appliance.workspace import Workspace
from eval.run import load, run
from eval.types import Item, Outcome
from finetune.version import version_hash
from retrieval.index import Index, verify
from retrieval.types import DocumentKey, IndexCorrupt, RetrievalError, Scope
from router.types import ARMS

sys.path.append(str(Path(__file__).parent.parent / "retrieval"))
from retrieval_support import HashingEmbedder, write

# What only the deleted documents say, and how they are asked for.
CANARIES = ("Zebulon Quackenbush takes 37 mg of flurbiprofen", "欧阳锋每日服用氟比洛芬三十七毫克")
QUESTIONS = ("How much flurbiprofen does Zebulon Quackenbush take?", "欧阳锋每日服用多少氟比洛芬？")
# What an expert said, in words of their own.
APPROVED = ("Flurbiprofen: 37 mg.", "氟比洛芬，三十七毫克。")
RECORDS = ("records/zebulon.md", "records/欧阳锋.md")
EVERYTHING = Caller(Scope(None, frozenset()), "everyone")


@dataclass
class Base:
    """A base with deleted documents; `long` is a process that had everything open before."""

    knowledge: Knowledge
    long: Knowledge
    docs: Path
    adapter: AdapterVersion
    # What a rollback would bring back is not deleted.
    older: bool = True

    @property
    def root(self) -> Path:
        return self.knowledge.workspace.root

    def reopened(self) -> Knowledge:
        """As a new process sees it."""
        return Knowledge(self.knowledge.workspace, self.knowledge.models, HashingEmbedder())


def _open(workspace: Workspace) -> Knowledge:
    return Knowledge(workspace, ModelStore.default(), HashingEmbedder())


def _key(name: str) -> DocumentKey:
    return DocumentKey("medical", name)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    docs = tmp_path / "docs"
    write(docs / "visits.md", "# Visits\n\nVisitors take the lift. Zebulon is a name. How much does a visit take?\n")
    write(docs / "fees.md", "# 收费\n\n每日床位费为20元。氟比洛芬为常用药。\n")
    for name, text in zip(RECORDS, CANARIES, strict=True):
        write(docs / name, f"# {text}\n\nOn the record: {text}, since Monday.\n\n## {text}\n\n{text}。\n")
    with Workspace.create(tmp_path / "workspace") as workspace, Workspace(workspace.root) as other:
        knowledge = _open(workspace)
        knowledge.ingest([docs], domain="medical", prune=True)
        # A second state of everything, so that there are older versions and generations.
        write(docs / "more.md", "# More\n\nThe record of visits is kept.\n")
        for name, text in zip(RECORDS, CANARIES, strict=True):
            write(docs / name, f"# {text}\n\nOn the record: {text}, since Tuesday.\n\n## {text}\n\n{text}。\n")
        knowledge.ingest([docs], domain="medical", prune=True)
        verified = VerifiedAnswers(knowledge)
        for question, name, answer in zip(QUESTIONS, RECORDS, APPROVED, strict=True):
            verified.add("medical", question, answer, [name], "Wang", 0.3)
        links = [Link(name, "declared", "medical", name, knowledge.documents.current(_key(name)).sha256) for name in RECORDS]  # type: ignore[union-attr]
        path = make_adapter(workspace.folder("adapters") / "medical@1", 1)
        sha256 = version_hash(path)
        facts = ("medical@1", "medical", "base", "base", "lora", path, sha256, "d", "1", None, frozenset[str](), {}, {}, utcnow())
        adapter = AdapterVersion(*facts)
        Registry(workspace).register(adapter, links)
        with workspace.db.write() as connection:
            workspace.db.move_pointer(connection, "adapter:medical", adapter.name, "test")
        _evaluate(knowledge)
        long = _open(other)
        outcomes = load(workspace.root / "runs" / "run-1").outcomes
        tasks = ExpertTasks(workspace.db).take("Li", EVERYTHING.scope, None, None)
        assert all(_found(long, text) and text in repr(outcomes) and text in repr(tasks) for text in CANARIES)
        yield Base(knowledge, long, docs, adapter)


def _evaluate(knowledge: Knowledge) -> None:
    """A finished run whose answers are quotations."""
    folder = knowledge.workspace.folder("runs") / "run-1"
    answering = answering_with(knowledge, ScriptedEngine())

    async def ask(item: Item, arm: str) -> Outcome:
        answer = await answering.ask(Request(item.question, domain="medical", arm=arm), EVERYTHING)  # type: ignore[arg-type]
        cited = tuple(citation.doc_id for citation in answer.citations)
        # Text of office documents and web pages has separators that are newlines to some functions and not to JSON.
        return Outcome(
            arm, f"\u2028{answer.text}\u2029\x85", citations=cited, retrieved=cited, latency_ms=1.0, first_token_ms=1.0, tokens=1.0
        )

    items = [Item(str(number), question, lang=("en", "zh")[number]) for number, question in enumerate(QUESTIONS)]
    asyncio.run(run(items, ["quote"], ask, folder))
    with knowledge.workspace.db.write() as connection:
        row = {"id": "run-1", "dataset": "d", "dataset_version": "1", "domain": "medical", "path": "runs/run-1", "settings": {}}
        connection.execute(schema.run.insert().values(**row, created_at=utcnow(), finished_at=utcnow()))
        made = connection.execute(sa.select(schema.run)).one()
    # The same answers before an expert.
    assert prepare(knowledge.workspace, made, overlap=9).made == len(QUESTIONS)


def _found(knowledge: Knowledge, text: str) -> bool:
    return any(text in passage.chunk.text for passage in knowledge.search(text, EVERYTHING.scope, 50).passages)


# --- losing the text


def _remove(base: Base) -> None:
    done = documents.remove(base.knowledge, [_key(name) for name in RECORDS])
    assert [row["version"] for row in done["adapters"]] == ["medical@1"] and len(done["suspended"]) == 2
    assert done["still_there"] == sorted(RECORDS)
    # The folder's schedule goes on with the files still there.
    plan = Plan("medical", (base.docs,), "0 3 * * *", False, frozenset())
    outcome = Schedule(base.knowledge).refresh(plan, lambda *now, **facts: None)
    assert outcome["outcome"] == "done" and [row["path"] for row in outcome["skipped"]] == sorted(RECORDS)
    # Else the next ingest of the folder by hand brings them in again, which is a new act and legal.
    shutil.rmtree(base.docs / "records")


def _prune(base: Base) -> None:
    shutil.rmtree(base.docs / "records")
    assert base.knowledge.ingest([base.docs], domain="medical", prune=True).removed == 2


def _update(base: Base) -> None:
    base.older = False
    for name in RECORDS:
        write(base.docs / name, "# Record\n\nNothing is on record here. 没有记录。\n")
    assert base.knowledge.ingest([base.docs], domain="medical", prune=True).updated == 2


LOSSES = {"remove": _remove, "prune": _prune, "update": _update}


# --- what happens afterwards


def _nothing(base: Base) -> None:
    return None


def _roll_back(base: Base) -> None:
    for generation in (1, 2):
        base.knowledge.rollback(generation)
        _assert_gone(base, f"rollback to {generation}")


def _fall_back(base: Base) -> None:
    live = base.knowledge.store.live_generation()
    assert live is not None
    (base.root / "index" / "manifests" / f"{live}.json").write_bytes(b"{}")
    assert base.reopened().serving().problem


def _what_is_left(base: Base) -> None:
    """Each segment of the live generation damaged in turn, what is left of it serves."""
    info = base.knowledge.store.generation(base.knowledge.store.live_generation() or 0)
    assert info is not None
    for id in base.knowledge.vectors.read_manifest(info):
        path = base.root / "index" / "segments" / id / "segment.json"
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        assert id in base.reopened().serving().problem
        _assert_gone(base, "a damaged segment")
        path.write_bytes(data)


def _restore(base: Base) -> None:
    shutil.rmtree(base.root / "index")
    shutil.copytree(base.docs.parent / "older-index", base.root / "index")
    for knowledge in (base.reopened(), base.long):
        try:
            knowledge.serving()
        except IndexCorrupt:
            assert verify(knowledge.store, knowledge.vectors)


def _restore_and_rebuild(base: Base) -> None:
    _restore(base)
    base.knowledge.rebuild()


def _rebuild(base: Base) -> None:
    base.knowledge.rebuild()


def _compact(base: Base) -> None:
    base.knowledge.compact()


def _compact_and_roll_back(base: Base) -> None:
    base.knowledge.compact()
    _roll_back(base)


def _interrupted(base: Base) -> None:
    """A rebuild and an ingest that were stopped before their commits, then a restart and another ingest."""
    from retrieval import maintain
    from retrieval.staging import IngestSettings

    def stop(name: str) -> None:
        if name == "before-commit":
            raise KeyboardInterrupt

    parts = {"store": base.knowledge.store, "vectors": base.knowledge.vectors, "embedder": HashingEmbedder(), "step": stop}
    with pytest.raises(KeyboardInterrupt), base.knowledge.workspace.db.lock("index") as lock:
        maintain.rebuild(lock=lock, settings=IngestSettings(), **parts)  # type: ignore[arg-type]
    _assert_gone(base, "an interrupted rebuild")
    write(base.docs / "later.md", "# Later\n\nA later record.\n")
    base.reopened().ingest([base.docs], domain="medical", prune=False)


def _twin(base: Base) -> None:
    """Another document with the text of one that was deleted comes in, and goes again."""
    for name, text in zip(RECORDS, CANARIES, strict=True):
        write(base.docs / f"twin-{name.replace('/', '-')}", f"# {text}\n\nOn the record: {text}, since Tuesday.\n\n## {text}\n\n{text}。\n")
    base.knowledge.ingest([base.docs], domain="medical")
    for knowledge in (base.long, base.reopened()):
        for text in CANARIES:
            found = knowledge.search(text, EVERYTHING.scope, 50).passages
            holders = {info.id for passage in found if text in passage.chunk.text for info in (*passage.sources, passage.document)}
            assert len(holders) == 1 and holders.pop().startswith("twin-"), "legal, under the new id only"
    for name in RECORDS:
        (base.docs / f"twin-{name.replace('/', '-')}").unlink()
    base.knowledge.ingest([base.docs], domain="medical", prune=True)


AFTERWARDS: dict[str, Callable[[Base], None]] = {
    "nothing": _nothing,
    "rollback": _roll_back,
    "fallback": _fall_back,
    "what is left": _what_is_left,
    "restored index": _restore,
    "restored index, rebuilt": _restore_and_rebuild,
    "rebuild": _rebuild,
    "compact": _compact,
    "compact, rollback": _compact_and_roll_back,
    "interrupted work": _interrupted,
    "a twin": _twin,
}


# --- everything that speaks


def _assert_gone(base: Base, when: str) -> None:
    for knowledge in (base.long, base.reopened()):
        said = repr(_said(base, knowledge))
        for text in CANARIES:
            assert text not in said, f"{when}: {said[max(0, said.index(text) - 300) : said.index(text) + 100]}"


def _said(base: Base, knowledge: Knowledge) -> list[object]:
    """All that a caller who may see everything can get out of the base."""
    said: list[object] = []
    live = knowledge.store.live_generation() or 0
    for generation in range(1 if base.older else live, live + 1):
        try:
            index = Index.open(knowledge.store, knowledge.vectors, HashingEmbedder(), generation)
        except RetrievalError as error:
            said.append(str(error))
        else:
            said += [index.search(question, EVERYTHING.scope, 50).passages for question in QUESTIONS]
    engine = ScriptedEngine("Nothing is known. 不详。")
    answering = answering_with(knowledge, engine)
    for question in QUESTIONS:
        for arm in ("auto", *ARMS):
            said.append(_answer(answering, question, arm))
    said.append(engine.asked)
    for name in RECORDS:
        # Where the text was in either version.
        said += [knowledge.passage("medical", name, start, start + 40, EVERYTHING) for start in (0, 20, 60, 100)]
    said.append([info for info in knowledge.documents.documents() if info.id in RECORDS])
    if base.older:
        said.append(load(base.root / "runs" / "run-1").outcomes)
        said.append(ExpertTasks(knowledge.workspace.db).take("Wang", EVERYTHING.scope, None, None))
    said.append(
        VerifiedAnswers(knowledge).all() if base.older else [VerifiedAnswers(knowledge).match(text, EVERYTHING.scope) for text in QUESTIONS]
    )
    said.append(Registry(knowledge.workspace).facts(base.adapter, knowledge.search(QUESTIONS[0], EVERYTHING.scope), None))
    return said


def _answer(answering: Answering, question: str, arm: str) -> object:
    async def ask() -> list[object]:
        # Not what was asked: that is the caller's own text.
        events = answering.stream(Request(question, domain="medical", arm=arm), EVERYTHING)  # type: ignore[arg-type]
        return [
            replace(event, evidence=None) if isinstance(event, Decided) and not event.evidence.passages else event async for event in events
        ]

    try:
        return asyncio.run(ask())
    except (ArmUnavailable, RetrievalError) as error:
        return str(error)


def _files_with(root: Path, text: str) -> list[str]:
    data = (text.encode(), json.dumps(text)[1:-1].encode())
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in data)]


# Every operation after a removal, and the first of the others; the rest takes a minute.
CASES = [
    pytest.param(loss, then, marks=() if loss == "remove" or then in ("nothing", "fallback") else pytest.mark.slow)
    for loss in LOSSES
    for then in AFTERWARDS
    # Rolling back an update is what rollback is for.
    if not (loss == "update" and "rollback" in then)
]


@pytest.mark.parametrize(("loss", "afterwards"), CASES)
def test_deleted_text_does_not_come_back(base: Base, loss: str, afterwards: str) -> None:
    shutil.copytree(base.root / "index", base.docs.parent / "older-index")
    LOSSES[loss](base)
    _assert_gone(base, f"{loss}, before {afterwards}")
    AFTERWARDS[afterwards](base)
    _assert_gone(base, f"{loss}, then {afterwards}")


@pytest.mark.parametrize("loss", ["remove", "prune"])
def test_the_bytes_are_gone_from_every_file(base: Base, loss: str) -> None:
    for text in CANARIES:
        assert _files_with(base.root, text)
    LOSSES[loss](base)
    base.knowledge.compact()
    base.knowledge.workspace.db.scrub()
    for text in CANARIES:
        assert _files_with(base.root, text) == []
    # The vectors of the deleted chunks are in no segment either.
    vectors = HashingEmbedder().encode_passages([f"On the record: {text}, since Tuesday." for text in CANARIES])
    for path in (base.root / "index" / "segments").glob("*/vectors.npy"):
        import numpy as np

        assert (np.load(path) @ vectors.T).max() < 0.99


def test_a_damaged_line_of_a_run_does_not_stop_a_deletion(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    path = base.root / "runs" / "run-1" / "outputs.jsonl"
    rows = path.read_bytes()
    torn = rows.split(b"\n")[1][:-30]
    other = b'{"id": "2", "outcome": {"answer": "\xe7\xad\x94", "retrieved": null, "citations": []}}\n'
    path.write_bytes(rows + b"\n".join([torn, b"\xff\xfe", b'{"id": "3"}', b"[]", b"", other]) + torn)
    _remove(base)
    left = path.read_bytes()
    assert left.count(b"\n") == len(QUESTIONS) + 1 and left.endswith(other)
    for text in CANARIES:
        assert _files_with(path.parent, text) == []
    said = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(said) == 5 and all(f"{path}, line {number}: damaged" in line for number, line in enumerate(said, 3))


def test_the_commands_say_nothing_of_it(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Knowledge, "_open_model", lambda self, reference: HashingEmbedder())
    _remove(base)
    commands = [
        *(["search", question, "--json"] for question in QUESTIONS),
        *(["ask", question, "--arm", arm, "--json"] for question in QUESTIONS for arm in ("quote", "verified", "refuse")),
        ["document", "list", "--json"],
        *(["document", "show", name, "--json"] for name in RECORDS),
        ["document", "duplicates", "--json"],
        ["index", "status", "--json"],
        ["index", "verify", "--json"],
        ["adapter", "list", "--json"],
        ["adapter", "show", "medical@1", "--json"],
        ["verified", "list", "--json"],
        ["eval", "show", "--json"],
    ]
    for command in commands:
        done = CliRunner().invoke(cli, ["--workspace", str(base.root), *command])
        said = done.stdout + done.stderr
        for text in CANARIES:
            assert text not in said, (command, said)
        if command[0] == "document" and command[1] == "show":
            assert done.exit_code != 0
    listed = json.loads(CliRunner().invoke(cli, ["--workspace", str(base.root), "adapter", "list", "--json"]).stdout)
    assert sorted(listed[0]["deleted_documents"]) == sorted(RECORDS)


def test_a_gateway_that_had_it_open(base: Base) -> None:
    """One process answers before and after the removal, and while it happens."""
    answering = answering_with(base.long, ScriptedEngine("Nothing is known."))
    database = base.long.workspace.db
    parts: Any = {"passage": base.long.passage, "embedding": lambda: base.long.embedder, "feedback": Feedback(database, FeedbackConfig())}
    app = create_app(answering, Keys(database), **parts, auth_required=False, version="0")
    with TestClient(app, base_url="http://localhost") as http:

        def ask(arm: str, number: int) -> str:
            return http.post("/v1/answer", json={"question": QUESTIONS[number], "domain": "medical", "arm": arm}).text

        assert all(CANARIES[number] in ask("quote", number) and APPROVED[number] in ask("verified", number) for number in (0, 1))
        place = json.loads(ask("quote", 0))["citations"][0]
        where = f"/v1/documents/medical/{place['doc_id']}?start={place['start']}&end={place['end']}"
        assert CANARIES[0] in http.get(where).text
        _remove(base)
        for number in (0, 1):
            for arm in ("auto", "quote", "verified", "rag"):
                said = ask(arm, number)
                assert CANARIES[number] not in said and APPROVED[number] not in said
        assert http.get(where).status_code == 404
        assert CANARIES[0] not in http.get("/metrics").text + http.get("/readyz").text


@pytest.mark.parametrize("arm", ["quote", "verified"])
def test_an_answer_under_way_does_not_carry_it(base: Base, arm: str) -> None:
    """The text is removed after it was found and before the answer leaves."""

    async def ask() -> list[object]:
        events: list[object] = []
        answering = answering_with(base.long, ScriptedEngine())
        async for event in answering.stream(Request(QUESTIONS[0], domain="medical", arm=arm), EVERYTHING):  # type: ignore[arg-type]
            if isinstance(event, Decided):
                await asyncio.to_thread(_remove, base)
            else:
                events.append(event)
        return events

    said = repr(asyncio.run(ask()))
    assert "refuse" in said
    assert CANARIES[0] not in said and APPROVED[0] not in said
