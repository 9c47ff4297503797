"""Feedback over HTTP and in the database: whose, with which texts, and what a deletion takes away."""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from gateway_fake import FakeAnswering
from gateway_real import make_knowledge, real_answering
from gateway_server import Served, running
from lying_engine import LyingEngine, lying

from appliance.admin.keys import Keys
from appliance.answers import feedback as answers_feedback
from appliance.answers.feedback import Feedback
from appliance.cli.main import cli
from appliance.engines.base import Usage
from appliance.gateway import app, desk
from appliance.knowledge.knowledge import Knowledge
from appliance.settings import FeedbackConfig
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.types import Answer, Caller
from retrieval.types import DocumentKey
from router.types import Decision

KEPT = FeedbackConfig(retain_hours=24)
QUESTION = "专家门诊挂号费是多少？"


def asked(served: Served, key: str | None = None) -> str:
    response = served.http(key).post("/v1/answer", json={"question": QUESTION, "domain": "medical"})
    return str(response.json()["id"])


def give(served: Served, id: str, key: str | None = None, **body: Any) -> int:
    return served.http(key).post("/v1/feedback", json={"id": id, "rating": "down", **body}).status_code


def texts(database: Database) -> str:
    with database.read() as connection:
        rows = [connection.execute(sa.select(table)).all() for table in (schema.answer, schema.feedback)]
    return str(rows)


def test_a_nul_in_a_question_is_not_written(start: Callable[..., Served], database: Database) -> None:
    # PostgreSQL takes none, and with it none of the answers that wait to be written.
    served = start(FakeAnswering(numbered=True), feedback=KEPT)
    served.http().post("/v1/answer", json={"question": "What\0 is it?", "domain": "medical"})
    served.feedback.flush()
    assert "What\ufffd is it?" in texts(database)


def test_without_retention_only_what_was_sent_is_stored(start: Callable[..., Served], database: Database) -> None:
    served = start(FakeAnswering(numbered=True))
    plain, sent = asked(served), asked(served)
    served.feedback.flush()
    assert QUESTION not in texts(database) and "最多 4 克" not in texts(database)
    assert give(served, plain) == 200
    assert give(served, sent, question="我的问题", answer="你的回答", correction="应为 3 克。", rating="down") == 200
    newest, oldest = served.feedback.list()
    assert (newest.question, newest.answer, newest.correction) == ("我的问题", "你的回答", "应为 3 克。")
    assert (oldest.question, oldest.answer, oldest.correction) == (None, None, None)
    assert (oldest.domain, oldest.arm, oldest.documents) == ("medical", "rag", (("medical", "药品/paracetamol.md"),))


def test_retained_texts_need_not_be_sent_and_expire(start: Callable[..., Served], database: Database) -> None:
    served = start(FakeAnswering(numbered=True), feedback=KEPT)
    first, second = asked(served), asked(served)
    assert give(served, first) == 200
    (kept,) = served.feedback.list()
    assert kept.question == QUESTION and kept.answer is not None and "最多 4 克" in kept.answer
    with database.write() as connection:
        connection.execute(schema.answer.update().values(created_at=utcnow() - timedelta(hours=25)))
    assert give(served, second) == 200
    assert served.feedback.list()[0].answer is None
    served.feedback.flush()
    with database.read() as connection:
        assert connection.execute(sa.select(schema.answer.c.answer, schema.answer.c.question)).all() == [(None, None)] * 2
    with database.write() as connection:
        connection.execute(schema.answer.update().values(created_at=utcnow() - timedelta(days=8)))
    assert give(served, first) == 404
    served.feedback.flush()
    with database.read() as connection:
        assert connection.execute(sa.select(schema.answer.c.id)).all() == []


def test_texts_expire_also_where_nobody_asks_any_more(
    start: Callable[..., Served], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "_ERASE", 0.0)
    served = start(FakeAnswering(numbered=True), feedback=KEPT)
    asked(served)
    served.feedback.flush()
    with database.write() as connection:
        connection.execute(schema.answer.update().values(created_at=utcnow() - timedelta(hours=25)))
    assert served.feedback.waiting() == 0
    for _ in range(1000):
        if QUESTION not in texts(database):
            break
        time.sleep(0.01)
    assert QUESTION not in texts(database)


def test_the_id_of_a_chat_completion_and_a_second_thought(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(numbered=True), feedback=KEPT)
    body = {"model": "auto", "messages": [{"role": "user", "content": "剂量？"}], "stream": True}
    stream = served.http().post("/v1/chat/completions", json=body).text
    id = json.loads(stream.split("\n\n")[0].removeprefix("data: "))["id"]
    assert id.startswith("chatcmpl-") and give(served, id) == 200
    assert give(served, id, rating="up") == 200
    assert [given.rating for given in served.feedback.list()] == ["up"]
    assert served.feedback.list(rating="down") == [] and served.feedback.list(domain="legal") == []


def test_only_who_got_the_answer_may_judge_it(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(numbered=True))
    id = asked(served)
    _, other = served.keys.create("other")
    assert (give(served, id, other), give(served, "ans-unknown"), give(served, id)) == (404, 404, 200)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "x"},
        {"id": "x", "rating": "meh"},
        {"id": "", "rating": "up"},
        {"id": "x\0", "rating": "up"},
        {"id": "x", "rating": "up", "correction": ""},
        {"id": "x", "rating": "up", "answer": "a\0b"},
        {"id": "x", "rating": "up", "surprise": 1},
        {"id": "x" * 81, "rating": "up"},
    ],
)
def test_bad_feedback(served: Served, body: dict[str, Any]) -> None:
    response = served.http().post("/v1/feedback", json=body)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_a_full_or_locked_disk_costs_feedback_but_no_answer(start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = start(FakeAnswering(numbered=True))
    original = served.feedback._database.write

    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(served.feedback._database, "write", full)
    id = asked(served)
    assert served.feedback.waiting() == 1
    refused = served.http().post("/v1/feedback", json={"id": id, "rating": "up"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_full") and refused.headers["X-Request-ID"]
    monkeypatch.setattr(served.feedback._database, "write", original)
    assert give(served, id) == 200 and served.feedback.waiting() == 0


def answer(number: int, text: str = "At most 4 g.") -> Answer:
    decision = Decision("base", "medical", "forced", (), {}, {}, {}, "rules-1")
    return Answer(f"a{number}", text, "base", "medical", (), (), decision, "local", None, 7, Usage(1, 1), {"total": 1.0})


def remember(feedback: Feedback, *numbers: int) -> None:
    for number in numbers:
        feedback.remember(answer(number), QUESTION, None, Caller())


def written(database: Database) -> list[str]:
    with database.read() as connection:
        return sorted(connection.execute(sa.select(schema.answer.c.id)).scalars())


def test_a_write_whose_confirmation_was_lost_stops_no_other(database: Database) -> None:
    feedback = Feedback(database, KEPT)
    remember(feedback, 1)
    feedback.flush()
    remember(feedback, 1, 2, 2)
    feedback.flush()
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.answer)).scalar_one() == 2
    assert feedback.waiting() == 0


def test_answers_are_noted_while_others_are_written(database: Database) -> None:
    feedback, count = Feedback(database, KEPT), 8000
    remember(feedback, *range(count // 2))
    before = sys.getswitchinterval()
    # Threads take turns as often as in the gateway, and more.
    sys.setswitchinterval(0.0001)
    try:
        with ThreadPoolExecutor(1) as pool:
            noting = pool.submit(remember, feedback, *range(count // 2, count))
            while not noting.done():
                feedback.flush()
            noting.result()
    finally:
        sys.setswitchinterval(before)
    feedback.flush()
    assert len(written(database)) == count


def test_what_comes_while_a_full_book_is_written_is_not_lost(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_feedback, "_WAITING", 3)
    feedback, original = Feedback(database, KEPT), database.write
    database.secret()

    def busy() -> Any:
        remember(feedback, 3, 4)
        return original()

    remember(feedback, 0, 1, 2)
    monkeypatch.setattr(database, "write", busy)
    feedback.flush()
    monkeypatch.setattr(database, "write", original)
    feedback.flush()
    assert written(database) == ["a0", "a1", "a2", "a3", "a4"]


def test_of_too_many_that_cannot_be_written_the_newest_are_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_feedback, "_WAITING", 3)
    feedback, original = Feedback(database, KEPT), database.write

    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database, "write", full)
    for numbers in ((0, 1, 2), (3, 4)):
        remember(feedback, *numbers)
        with pytest.raises(OSError, match="No space left"):
            feedback.flush()
    monkeypatch.setattr(database, "write", original)
    feedback.flush()
    assert written(database) == ["a2", "a3", "a4"]


def test_feedback_waits_for_an_answer_that_is_being_written(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback, original, begun = Feedback(database, KEPT), database.write, threading.Event()

    def slow() -> Any:
        begun.set()
        time.sleep(0.2)
        return original()

    feedback.remember(answer(1), QUESTION, None, Caller())
    monkeypatch.setattr(database, "write", slow)
    with ThreadPoolExecutor(1) as pool:
        flushing = pool.submit(feedback.flush)
        begun.wait(10)
        feedback.give(Caller(), "a1", "up", correction=None, question=None, answer=None)
        flushing.result()


def test_a_defect_does_not_end_the_writing(
    start: Callable[..., Served], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_AGAIN", 0.01)
    served = start(FakeAnswering(numbered=True))
    original = served.feedback.flush

    def wait_for(condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError(caplog.text)

    def broken() -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(served.feedback, "flush", broken)
    asked(served)
    wait_for(lambda: "nobody foresaw this" in caplog.text)
    monkeypatch.setattr(served.feedback, "flush", original)
    asked(served)
    wait_for(lambda: served.feedback.waiting() == 0)


def test_an_answer_that_cannot_be_written_is_not_told_to_the_log(
    start: Callable[..., Served], caplog: pytest.LogCaptureFixture, database: Database
) -> None:
    served = start(FakeAnswering(), feedback=KEPT)
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE answer RENAME TO elsewhere")
    asked(served)
    for _ in range(1000):
        if "answers cannot be noted" in caplog.text:
            break
        time.sleep(0.01)
    assert "no such table" in caplog.text and QUESTION not in caplog.text and "最多 4 克" not in caplog.text


# --- with real documents


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[Served, Knowledge, LyingEngine]]:
    with lying() as engine:
        knowledge = make_knowledge(tmp_path, engine.url)
        parts = {"passage": knowledge.passage, "feedback": KEPT}
        with running(Keys(knowledge.workspace.db), real_answering(knowledge), **parts) as served:  # type: ignore[arg-type]
            yield served, knowledge, engine
        knowledge.workspace.close()


def test_a_deletion_withholds_texts_at_once_and_erases_them(real: tuple[Served, Knowledge, LyingEngine]) -> None:
    served, knowledge, _ = real
    mark = f"标记{secrets.token_hex(4)}"
    kept, judged = (served.http().post("/v1/answer", json={"question": QUESTION, "arm": "rag"}).json()["id"] for _ in range(2))
    assert give(served, judged, correction=mark, question="问题在此") == 200
    (given,) = served.feedback.list()
    assert given.answer is not None and given.correction == mark and not given.withheld
    assert ("medical", "zh/registration.md") in given.documents
    database = knowledge.workspace.db
    knowledge.remove([DocumentKey("medical", "zh/registration.md")])
    (given,) = served.feedback.list()
    assert given.withheld and (given.answer, given.correction, given.question) == (None, None, "问题在此")
    assert mark not in texts(database) and "第0词" not in texts(database)
    # What is said about it later is not kept either.
    assert give(served, kept, answer="第0词", correction=mark) == 200
    assert mark not in texts(database) and [one.withheld for one in served.feedback.list()] == [True, True]


def test_what_is_deleted_while_an_answer_is_made_is_not_kept(real: tuple[Served, Knowledge, LyingEngine]) -> None:
    served, knowledge, engine = real
    engine.words, engine.pause = 40, 0.02
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(served.http().post, "/v1/answer", json={"question": QUESTION, "domain": "medical", "arm": "rag"})
        while engine.sent < 3:
            time.sleep(0.01)
        knowledge.remove([DocumentKey("medical", "zh/registration.md")])
        id = asking.result().json()["id"]
    assert give(served, id) == 200
    (given,) = served.feedback.list()
    assert given.withheld and given.answer is None and "第0词" not in texts(knowledge.workspace.db)


def test_feedback_carries_the_labels_of_what_the_answer_rests_on(real: tuple[Served, Knowledge, LyingEngine]) -> None:
    served, knowledge, _ = real
    _, manager = served.keys.create("manager", labels=["management"])
    question = {"question": "What does the head nurse receive a month?", "domain": "medical", "arm": "quote"}
    answer = served.http(manager).post("/v1/answer", json=question).json()
    assert "5400" in answer["answer"] and give(served, answer["id"], manager) == 200
    assert served.feedback.list()[0].labels == {"management"}
    listed = CliRunner().invoke(cli, ["--workspace", str(knowledge.workspace.root), "feedback", "list", "--json", "--rating", "down"])
    (row,) = json.loads(listed.stdout)
    assert row["labels"] == ["management"] and "5400" in row["answer"] and row["documents"][0]["doc_id"]
