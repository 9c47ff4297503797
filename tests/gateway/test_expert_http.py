"""Blind scoring and the review queue over HTTP: scopes, labels, what is shown, and bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_real import make_knowledge, real_answering
from gateway_server import Served, running

from appliance.admin.acts import Administration
from appliance.admin.keys import Keys
from appliance.experts.tasks import expert_utilities, prepare
from appliance.service import Service
from appliance.settings import FeedbackConfig
from tests.appliance.expert_support import ITEMS, make_run

GOOD = {"correctness": 5, "completeness": 5, "citation": 5, "harm": 5}
BAD = {"correctness": 1, "completeness": 1, "harm": 5}
HIDDEN = re.compile(r"\b(?:base|quote|rag|arm|arms|latency\w*|tokens)\b")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    knowledge = make_knowledge(tmp_path)
    answering = real_answering(knowledge)
    parts = (knowledge.workspace, knowledge.models, knowledge, answering.registry, answering.verified, answering.engines, answering)
    prepare(knowledge.workspace, make_run(knowledge), kinds=("single", "pair"), overlap=1)
    with running(
        Keys(knowledge.workspace.db),
        answering,
        passage=knowledge.passage,
        administration=Administration(Service(*parts)),  # type: ignore[arg-type]
        feedback=FeedbackConfig(retain_hours=24),
    ) as served:
        yield served
    knowledge.workspace.close()


def key(served: Served, name: str, *scopes: str, **limits: Any) -> str:
    return served.keys.create(name, scopes=scopes, **limits)[1]


def test_an_expert_judges_until_nothing_is_left(served: Served) -> None:
    chief = key(served, "王医生", "expert", labels=["management"])
    seen: list[dict[str, Any]] = []
    with served.http(chief) as http:
        while True:
            response = http.post("/v1/expert/next")
            assert response.status_code == 200 and not HIDDEN.findall(response.text), response.text
            task = response.json()["task"]
            if task is None:
                break
            assert http.post("/v1/expert/next").json()["task"] == task
            seen.append(task)
            if len(seen) == 1:
                assert http.post(f"/v1/expert/tasks/{task['task']}/skip").json() == {"task": task["task"], "state": "skipped"}
                continue
            body: dict[str, Any] = {"preference": "tie"} if task["kind"] == "pair" else GOOD if task["answers"][0]["sources"] else BAD
            judged = http.post(f"/v1/expert/tasks/{task['task']}", json=body)
            assert judged.json() == {"task": task["task"], "state": "new"}, judged.text
        again = http.post(f"/v1/expert/tasks/{task_id(seen, 1)}", json={"cannot_judge": "看不懂"})
        assert again.json()["state"] == "changed"
        progress = http.get("/v1/expert/progress").json()
        assert progress == {"open": 0, "done": 11, "cannot": 1, "skipped": 1}
        assert http.get("/v1/expert/progress", params={"run": "other"}).json()["done"] == 0
        assert "照此行事" in http.get("/v1/expert/rubric?lang=zh").text and "correctness" in http.get("/v1/expert/rubric").text
    assert len({task["task"] for task in seen}) == 13
    assert expert_utilities(served.keys._database, "run-1", ITEMS)


def task_id(seen: list[dict[str, Any]], place: int) -> str:
    return str(seen[place]["task"])


def test_labels_and_scopes(served: Served) -> None:
    plain, asking = key(served, "plain", "expert"), key(served, "asking", "chat")
    with served.http(plain) as http:
        shown = []
        while (task := http.post("/v1/expert/next").json()["task"]) is not None:
            shown.append(task)
            http.post(f"/v1/expert/tasks/{task['task']}/skip")
        assert shown and "5400" not in json.dumps(shown)
        for path in ("/v1/answer", "/v1/review", "/v1/admin/documents"):
            assert http.get(path).status_code == 403
    with served.http(asking) as http:
        for call in (http.post("/v1/expert/next"), http.get("/v1/review"), http.get("/v1/review/topics")):
            assert call.status_code == 403 and "has not the scope" in call.json()["error"]["message"]
    assert served.http("").post("/v1/expert/next").status_code == 401


BAD_VERDICTS: list[tuple[dict[str, Any], str]] = [
    ({}, "correctness"),
    ({"correctness": 9}, "correctness"),
    ({**BAD, "correctness": True}, "correctness"),
    ({**BAD, "correctness": "x"}, "correctness"),
    ({"correctness": 5}, "completeness"),
    ({**GOOD, "preference": "a"}, "preference"),
    ({**GOOD, "cannot_judge": "x"}, "cannot_judge"),
    ({**GOOD, "arm": "rag"}, "arm"),
    ({**GOOD, "comment": "a\0"}, "comment"),
]


def test_a_bad_verdict_names_its_field(served: Served) -> None:
    with served.http(key(served, "e", "expert")) as http:
        while True:
            task = http.post("/v1/expert/next").json()["task"]
            if task["kind"] == "single" and task["answers"][0]["sources"]:
                break
            http.post(f"/v1/expert/tasks/{task['task']}/skip")
        for body, param in BAD_VERDICTS:
            response = http.post(f"/v1/expert/tasks/{task['task']}", json=body)
            assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


def test_a_task_of_somebody_else_is_unknown(served: Served) -> None:
    one, two = key(served, "one", "expert"), key(served, "two", "expert")
    task = served.http(one).post("/v1/expert/next").json()["task"]["task"]
    for path in (f"/v1/expert/tasks/{task}", f"/v1/expert/tasks/{task}/skip", "/v1/expert/tasks/nothing"):
        response = served.http(two).post(path, json=GOOD)
        assert response.status_code == 404 and response.json()["error"]["code"] == "task_not_found"


def test_the_queue_over_http(served: Served) -> None:
    admin = key(served, "boss", "admin", "chat", labels=["management"])
    with served.http(admin) as http:
        # Nobody has documents on it, and a forced refusal is one too.
        asked = http.post("/v1/answer", json={"question": "食堂几点开门？", "domain": "medical", "arm": "refuse"})
        assert asked.status_code == 200
        served.feedback.flush()
        (row,) = http.get("/v1/review").json()
        assert (row["question"], row["refused"], row["state"]) == ("食堂几点开门？", 1, "open")
        share = http.get("/v1/review/share", params={"domain": "medical"}).json()
        assert (share["asked"], share["answered"]) == (1, 0)
        path = f"/v1/review/{row['id']}"
        assert http.get(path).json()["feedback"] == []
        for body, status in (
            ({"resolution": "answered"}, 400),
            ({"resolution": "missing"}, 400),
            ({"resolution": "wont_fix", "answer": "x"}, 400),
            ({"resolution": "nothing"}, 400),
            ({"resolution": "answered", "answer": "x", "documents": ["gone.md"]}, 400),
        ):
            assert http.post(path, json=body).status_code == status
        done = http.post(path, json={"resolution": "missing", "topics": ["食堂"], "by": "王医生"}).json()
        assert (done["state"], done["resolved_by"]) == ("missing", "王医生")
        assert http.get("/v1/review/topics").json() == [{"domain": "medical", "topic": "食堂", "questions": 1, "asked": 1}]
        assert http.get("/v1/review").json() == [] and len(http.get("/v1/review?state=all").json()) == 1
        answer = {"resolution": "answered", "answer": "专家门诊挂号费为50元。", "documents": ["zh/registration.md"]}
        assert http.post(path, json=answer).json()["verified"].startswith("ver-")
        again = http.post("/v1/answer", json={"question": "食堂几点开门", "domain": "medical"}).json()
        assert (again["arm"], again["answer"]) == ("verified", "专家门诊挂号费为50元。")
        assert http.get("/v1/review/rev-0").status_code == http.post("/v1/review/rev-0", json={"resolution": "wont_fix"}).status_code == 404
    other = key(served, "other", "admin", domains=["medical"])
    assert served.http(other).get("/v1/review/share?domain=legal").status_code == 403
