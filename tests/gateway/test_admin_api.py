"""The administration API over the real parts: who may do what, uploads, jobs, approved answers, and its own port."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_real import make_knowledge, real_answering
from gateway_server import LIMITS, Served, running
from test_openapi_fuzz import requests

from appliance.adapters.registry import AdapterVersion
from appliance.admin.acts import Administration
from appliance.admin.audit import find
from appliance.admin.keys import Keys
from appliance.jobs.jobs import Jobs
from appliance.knowledge.index_status import last_ingests
from appliance.service import Service
from appliance.store import schema, tables_admin
from appliance.store.database import utcnow
from appliance.workspace import Workspace
from finetune.version import version_hash

TEXT = "# 探视规定\n\n探视时间为每日15:00至19:00。\n".encode()


@dataclass
class Administered:
    """A gateway with administration over a small real knowledge base."""

    served: Served
    service: Service

    @property
    def workspace(self) -> Workspace:
        return self.service.workspace

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.workspace.db)

    def client(self, *scopes: str, **limits: Any) -> httpx.Client:
        """A client with a key of its own."""
        _, secret = self.served.keys.create("k", scopes=scopes, **limits)
        return self.served.http(secret)


def service_of(root: Path) -> Service:
    knowledge = make_knowledge(root)
    answering = real_answering(knowledge)
    verified = answering.verified
    return Service(knowledge.workspace, knowledge.models, knowledge, answering.registry, verified, answering.engines, answering)


@contextmanager
def administered(root: Path, **options: Any) -> Iterator[Administered]:
    service = service_of(root)
    service.workspace.create_domain("legal")
    limits = replace(LIMITS, upload_bytes=200_000)
    given = {"passage": service.knowledge.passage, "administration": Administration(service), "limits": limits, **options}
    with running(Keys(service.workspace.db), service.answering, **given) as served:
        yield Administered(served, service)
    service.workspace.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Administered]:
    with administered(tmp_path_factory.mktemp("admin")) as made:
        yield made


def code(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["code"]


def upload(http: httpx.Client, name: str, content: bytes = TEXT, purpose: str = "documents") -> httpx.Response:
    return http.post("/v1/admin/uploads", params={"name": name, "purpose": purpose}, content=content)


def adapter(site: Administered, domain: str, number: int, labels: frozenset[str] = frozenset()) -> str:
    """A registered version; its files only need to hash."""
    folder = site.workspace.folder("adapters") / f"{domain}@{number:08d}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 4, "peft_type": "LORA"}', "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes([number]) * 64)
    data = ("pairs", "1", None, labels, {"rank": 4}, {"eval_loss": 1.0}, utcnow())
    facts = ("path:base", "base", "lora", folder, version_hash(folder), *data)
    site.service.registry.register(AdapterVersion(folder.name, domain, *facts), [])
    return folder.name


def test_scopes(site: Administered) -> None:
    with site.client("chat") as chat, site.client("ingest") as ingest, site.client("admin") as admin, site.served.http("") as nobody:
        for path in ("/v1/admin/jobs", "/v1/admin/adapters", "/v1/admin/uploads", "/v1/admin/nothing"):
            assert code(nobody.get(path)) == (401, "invalid_api_key")
            assert code(chat.get(path)) == (403, "scope_missing")
        for path in ("/v1/admin/jobs", "/v1/admin/uploads"):
            assert ingest.get(path).status_code == admin.get(path).status_code == 200
        for path in (
            "/v1/admin/adapters",
            "/v1/admin/verified",
            "/v1/admin/evals",
            "/v1/admin/documents",
            "/v1/admin/index",
            "/v1/admin/canaries",
        ):
            assert code(ingest.get(path)) == (403, "scope_missing")
            assert admin.get(path).status_code == 200, path
        question = {"question": "几点可以探视？", "arm": "quote", "domain": "medical"}
        for http in (ingest, admin):
            assert code(http.post("/v1/answer", json=question)) == (403, "scope_missing")
        assert chat.post("/v1/answer", json=question).status_code == 200


def test_administration_needs_a_key_where_nothing_else_does(tmp_path: Path) -> None:
    with administered(tmp_path, auth_required=False) as site, site.served.http("") as nobody, site.client("admin") as admin:
        assert nobody.get("/v1/models").status_code == 200
        assert code(nobody.get("/v1/admin/jobs")) == (401, "invalid_api_key")
        assert nobody.get("/v1/admin/jobs", headers={"Authorization": "Bearer sk-whatever"}).status_code == 401
        assert admin.get("/v1/admin/jobs").status_code == 200


def test_uploads_are_checked_and_become_a_job(site: Administered) -> None:
    with site.client("ingest", labels=["staff"]) as http, site.client("ingest") as other:
        taken = upload(http, "手册/探视.md")
        assert taken.status_code == 201, taken.text
        assert (taken.json()["name"], taken.json()["kind"], taken.json()["bytes"]) == ("手册/探视.md", "md", len(TEXT))
        for name, content in (("../探视.md", TEXT), ("a.pdf", TEXT), ("a.md", b""), ("a.zip", b"PK\x03\x04cut"), ("a.exe", b"MZ")):
            assert code(upload(http, name, content)) == (400, "upload_refused"), name
        assert upload(http, "a.md", purpose="pictures").status_code == 400
        assert code(upload(http, "big.md", b"a" * 200_001)) == (413, "body_too_large")
        chunked = http.post("/v1/admin/uploads", params={"name": "big.md"}, content=(b"a" * 1000 for _ in range(300)))
        assert code(chunked) == (413, "body_too_large")
        assert [row["name"] for row in http.get("/v1/admin/uploads").json()] == ["手册/探视.md"] and other.get(
            "/v1/admin/uploads"
        ).json() == []
        assert [path.name for path in (site.workspace.root / "uploads").rglob("*") if path.is_file()] == ["探视.md"]
        id = taken.json()["id"]
        body = {"uploads": [id], "domain": "medical"}
        assert code(http.post("/v1/admin/ingest", json={**body, "labels": ["management"]})) == (403, "not_allowed")
        assert other.post("/v1/admin/ingest", json=body).status_code == 400
        assert http.post("/v1/admin/ingest", json={**body, "domain": "No Domain"}).status_code == 400
        queued = http.post("/v1/admin/ingest", json={**body, "labels": ["staff"]})
        assert queued.status_code == 202 and queued.json()["state"] == "queued" and "paths" not in queued.json()["arguments"]
        assert http.post("/v1/admin/ingest", json=body).status_code == 400
        job = queued.json()["id"]
        # Another key that only brings in knows nothing of it, nor an administrator without the label.
        assert other.get(f"/v1/admin/jobs/{job}").status_code == 404
        with site.client("admin") as unlabelled:
            assert unlabelled.get(f"/v1/admin/jobs/{job}").status_code == 404
        assert http.post(f"/v1/admin/jobs/{job}/cancel").json()["state"] == "cancelled"
        # The job had not begun, so no worker removes its file.
        assert http.get("/v1/admin/uploads").json() == []
        assert [path for path in (site.workspace.root / "uploads").rglob("*") if path.is_file()] == []
        assert http.post(f"/v1/admin/jobs/{job}/cancel").status_code == 400
        second = upload(http, "b.md").json()["id"]
        assert http.delete(f"/v1/admin/uploads/{second}").json() == {"removed": second}
        assert http.delete(f"/v1/admin/uploads/{second}").status_code == 404
    actors = {entry["actor"] for action in ("upload", "job.add") for entry in find(site.workspace.db, action)}
    assert actors and all(actor.startswith("key:") for actor in actors)


def test_nobody_replaces_what_they_may_not_see(site: Administered) -> None:
    with site.client("ingest") as http:
        id = upload(http, "pay.md").json()["id"]
        refused = http.post("/v1/admin/ingest", json={"uploads": [id], "domain": "medical"})
        assert code(refused) == (403, "not_allowed")
        assert http.delete(f"/v1/admin/uploads/{id}").status_code == 200
        corpus = upload(http, "corpus.jsonl", '{"id": "pay.md", "text": "护士长没有工资。"}\n'.encode()).json()["id"]
        assert code(http.post("/v1/admin/ingest", json={"uploads": [corpus], "domain": "medical"})) == (403, "not_allowed")
        queued = http.post("/v1/admin/ingest", json={"uploads": [corpus], "domain": "legal"})
        assert queued.status_code == 202
        site.jobs.cancel(queued.json()["id"])


def test_domains_and_labels_limit_administrators(site: Administered) -> None:
    mine, secret, other = adapter(site, "medical", 1), adapter(site, "medical", 2, frozenset({"management"})), adapter(site, "legal", 3)
    with site.client("admin", domains=["medical"]) as http, site.client("admin", labels=["management"]) as all_of_it:
        assert [row["version"] for row in http.get("/v1/admin/adapters").json()] == [mine]
        assert {row["version"] for row in all_of_it.get("/v1/admin/adapters").json()} == {mine, secret, other}
        for name in (secret, other, "medical@nothing"):
            assert http.get(f"/v1/admin/adapters/{name}").status_code == 404
            assert http.get(f"/v1/admin/adapters/{name}/gates").status_code == 404
            assert http.post(f"/v1/admin/adapters/{name}/promote", json={}).status_code == 404
            assert http.post("/v1/admin/canaries", json={"version": name}).status_code == 404
        shown = http.get(f"/v1/admin/adapters/{mine}").json()
        assert shown["config"] == {"rank": 4} and "path" not in shown
        for path, body in (("tune", {"dataset": "d"}), ("retrain", {}), ("adapters/rollback", {}), ("canaries/stop", {})):
            assert code(http.post(f"/v1/admin/{path}", json={"domain": "legal", **body})) == (403, "not_allowed"), path
        assert http.get("/v1/admin/documents", params={"domain": "legal"}).status_code == 403
        assert all_of_it.get("/v1/admin/documents", params={"domain": "nothing"}).status_code == 404
        for path, body in (("index/rollback", {"generation": 1}), ("index/rebuild", None), ("index/compact", None)):
            assert http.post(f"/v1/admin/{path}", json=body).status_code == 403
        assert http.get("/v1/admin/index").status_code == 403
        named = {row["doc_id"] for row in http.get("/v1/admin/documents").json()["documents"]}
        assert "zh/registration.md" in named and "pay.md" not in named
        assert "pay.md" in {row["doc_id"] for row in all_of_it.get("/v1/admin/documents").json()["documents"]}
        remove = {"domain": "medical", "documents": ["pay.md"]}
        assert http.post("/v1/admin/documents/remove", json=remove).status_code == 404
        removing = all_of_it.post("/v1/admin/documents/remove", json=remove)
        assert removing.status_code == 202
        # The job carries the document's label.
        assert http.get(f"/v1/admin/jobs/{removing.json()['id']}").status_code == 404
        site.jobs.cancel(removing.json()["id"])
        # Nor are the questions of another domain measured on, nor its name taken.
        with site.workspace.db.write() as connection:
            row = {"name": "合同", "version": "1", "domain": "legal", "task": "qa", "path": "x", "source": "x", "mapping": {}, "counts": {}}
            connection.execute(schema.dataset.insert().values(**row, created_at=utcnow()))
            site.workspace.db.move_pointer(connection, "dataset:合同", "1", "dataset add")
        assert http.get("/v1/admin/datasets").json() == [] and len(all_of_it.get("/v1/admin/datasets").json()) == 1
        assert http.post("/v1/admin/datasets/合同/check").status_code == 404
        assert http.post("/v1/admin/evals", json={"dataset": "合同"}).status_code == 404
        for wanted in ({"dataset": "合同"}, {"dataset": "合同, x"}, {"settings": {"eval_dataset": "合同"}}):
            assert http.post("/v1/admin/tune", json={"domain": "medical", **wanted}).status_code == 404
        id = upload(http, "x.jsonl", b'{"question": "?", "answer": "!"}\n', "dataset").json()["id"]
        assert http.post("/v1/admin/datasets", json={"upload": id, "name": "合同", "domain": "medical"}).status_code == 403
        assert code(http.post("/v1/admin/datasets", json={"upload": id})) == (403, "not_allowed")
        assert http.post("/v1/admin/datasets", json={"upload": id, "domain": "medical"}).status_code == 202
        assert all_of_it.post("/v1/admin/datasets/合同/check").status_code == 202


def test_a_live_version_of_other_labels_is_not_there_to_be_rolled_back_or_stopped(
    site: Administered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its name nor its figures are told, also where it is only what a candidate is compared with."""
    monkeypatch.setattr("appliance.adapters.gates.check_fit", lambda *_: None)
    first, hidden, seen = adapter(site, "legal", 11), adapter(site, "legal", 12, frozenset({"management"})), adapter(site, "legal", 13)
    database, registry = site.workspace.db, site.service.registry
    for name in (first, hidden):
        with database.write() as connection:
            database.move_pointer(connection, "adapter:legal", name, "promoted")
    assert registry.live("legal") is not None
    for candidate in (seen, hidden):
        with database.write() as connection:
            row = {"id": f"can-{candidate}", "domain": "legal", "candidate": candidate, "live": hidden, "share": 0.5, "state": "running"}
            connection.execute(tables_admin.canary.insert().values(**row, why="", looks={}, started_at=utcnow()))
    with site.client("admin", domains=["legal"]) as http, site.client("admin", labels=["management"]) as boss:
        assert code(http.post("/v1/admin/adapters/rollback", json={"domain": "legal"})) == (404, "not_found")
        assert http.get("/v1/admin/canaries").json() == [] and len(boss.get("/v1/admin/canaries").json()) == 2
        assert code(http.post("/v1/admin/canaries/stop", json={"domain": "legal"})) == (404, "not_found")
        for _ in range(2):
            assert boss.post("/v1/admin/canaries/stop", json={"domain": "legal"}).json()["state"] == "stopped"
        folder = registry.get(first).path
        away = folder.rename(folder.with_name("away"))
        refused = boss.post("/v1/admin/adapters/rollback", json={"domain": "legal"})
        assert code(refused) == (409, "conflict") and "nothing was rolled back" in refused.text and str(folder) not in refused.text
        assert database.pointer("adapter:legal") == hidden
        away.rename(folder)
        assert boss.post("/v1/admin/adapters/rollback", json={"domain": "legal"}).json()["live"] == first
        # Back to what this key may not know of.
        assert http.post("/v1/admin/adapters/rollback", json={"domain": "legal"}).json()["live"] is None


def test_lists_tell_nothing_of_what_others_have(site: Administered) -> None:
    with site.client("ingest", domains=["legal"]) as http, site.client("admin", domains=["legal"]) as admin:
        mine = upload(http, "mine.md").json()["id"]
        own = http.post("/v1/admin/ingest", json={"uploads": [mine], "domain": "legal"}).json()["id"]
        others = [site.jobs.add("retrain", {"domain": "legal"}, "legal", labels) for labels in ((), ("management",), ())]
        # However many newer ones of others there are.
        assert [row["id"] for row in http.get("/v1/admin/jobs", params={"limit": 1}).json()] == [own]
        assert {row["id"] for row in admin.get("/v1/admin/jobs", params={"limit": 2}).json()} == {others[0].id, others[2].id}
        # Where the next page begins would tell how many documents the other domains have.
        assert admin.get("/v1/admin/documents", params={"limit": 1}).json() == {"documents": [], "next": None}
        for job in (own, *(other.id for other in others)):
            site.jobs.cancel(job)


def test_folders_of_uploads_are_not_remembered_as_sources(site: Administered) -> None:
    """There is one for each file that was ever sent in."""
    before = last_ingests(site.workspace.db)
    folder = site.workspace.root / "uploads" / "upl-1"
    folder.mkdir(parents=True)
    (folder / "停车.md").write_text("# 停车\n\n停车费为每小时3元。\n", "utf-8")
    assert site.service.knowledge.ingest([folder], domain="medical").added == 1
    assert last_ingests(site.workspace.db) == before
    shutil.rmtree(folder)


def test_what_is_asked_for_is_looked_at_before_it_is_queued(site: Administered) -> None:
    with site.client("admin") as http:
        before = len(http.get("/v1/admin/jobs").json())
        for body in (
            {"domain": "medical"},
            {"domain": "medical", "dataset": "合同", "method": "magic"},
            {"domain": "medical", "dataset": "合同", "settings": {"rank": 0}},
            {"domain": "medical", "dataset": "合同", "settings": {"stages": "x"}},
            {"domain": "medical", "dataset": "合同", "method": "full", "promote": True},
        ):
            assert code(http.post("/v1/admin/tune", json=body))[0] == 400, body
        assert http.post("/v1/admin/evals", json={"dataset": "合同", "arms": "all, of them"}).status_code == 400
        assert http.post("/v1/admin/adapters/rollback", json={"domain": "medical"}).status_code == 400
        assert http.post("/v1/admin/canaries/stop", json={"domain": "medical"}).status_code == 400
        assert len(http.get("/v1/admin/jobs").json()) == before
        queued = http.post("/v1/admin/tune", json={"domain": "legal", "dataset": "合同", "settings": {"rank": 4}})
        assert queued.status_code == 202 and queued.json()["domain"] == "legal"
        listed = http.get("/v1/admin/jobs", params={"domain": "legal", "state": "queued"}).json()
        assert listed[0]["id"] == queued.json()["id"]
        assert http.get("/v1/admin/jobs", params={"state": "sleeping"}).status_code == 400


def test_approved_answers_and_runs(site: Administered) -> None:
    with site.client("admin", domains=["medical"]) as http, site.client("admin", labels=["management"]) as boss:
        body = {"domain": "medical", "question": "专家门诊多少钱？", "answer": "专家门诊挂号费为50元。", "approved_by": "王医生"}
        made = http.post("/v1/admin/verified", json={**body, "documents": ["zh/registration.md"]})
        assert made.status_code == 201 and made.json()["citations"][0]["doc_id"] == "zh/registration.md"
        id = made.json()["id"]
        assert id in {row["id"] for row in http.get("/v1/admin/verified").json()}
        assert http.post("/v1/admin/verified", json={**body, "documents": ["pay.md"]}).status_code == 404
        pay = {
            "domain": "medical",
            "question": "护士长多少钱？",
            "answer": "The head nurse receives 5400 crowns a month.",
            "approved_by": "x",
        }
        secret = boss.post("/v1/admin/verified", json={**pay, "documents": ["pay.md"]}).json()["id"]
        assert secret not in {row["id"] for row in http.get("/v1/admin/verified").json()}
        assert http.delete(f"/v1/admin/verified/{secret}").status_code == 404
        assert http.delete(f"/v1/admin/verified/{id}").json() == {"removed": id}
        assert http.delete(f"/v1/admin/verified/{id}").status_code == 404
        [entry] = [entry for entry in find(site.workspace.db, "verified.remove") if entry["details"]["id"] == id]
        assert entry["actor"].startswith("key:")
        with site.workspace.db.write() as connection:
            for number, labels in enumerate(([], ["management"])):
                row = {
                    "id": f"run-{number}",
                    "dataset": "d",
                    "dataset_version": "1",
                    "domain": "medical",
                    "path": "x",
                    "settings": {"labels": labels},
                }
                connection.execute(schema.run.insert().values(**row, summary={"n": 3}, created_at=utcnow(), finished_at=utcnow()))
        assert [row["run_id"] for row in http.get("/v1/admin/evals").json()] == ["run-0"]
        assert http.get("/v1/admin/evals/run-0").json()["summary"] == {"n": 3} and http.get("/v1/admin/evals/run-1").status_code == 404


def test_progress_as_events(site: Administered) -> None:
    workspace, jobs = site.workspace, site.jobs
    job = jobs.add("index-compact", {})

    def go_on() -> None:
        jobs.begin(job.id, "1:0.00")
        jobs.note(job.id, {"what": "合并", "done": 1, "total": 2}, "")
        jobs.finish(job.id, "done", result={"generation": 3})

    with site.client("admin") as http:
        with http.stream("GET", f"/v1/admin/jobs/{job.id}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            events = []
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    events.append([line.removeprefix("event: ")])
                elif line.startswith("data: "):
                    events[-1].append(json.loads(line.removeprefix("data: ")))
                    if len(events) == 1:
                        threading.Thread(target=go_on).start()
        assert events[0][0] == "job" and events[0][1]["state"] == "queued"
        assert events[-1][0] == "end" and events[-1][1]["result"] == {"generation": 3}
        assert http.get("/v1/admin/jobs/job-nothing/events").status_code == 404
    assert workspace.db.actor.startswith("cli:")


def test_a_full_disk_is_said(site: Administered, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, block: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("appliance.admin.uploads.Incoming.write", full)
    with site.client("ingest") as http:
        assert code(upload(http, "a.md")) == (503, "storage_full")
        assert http.get("/v1/admin/uploads").json() == []


def test_every_route_is_documented(site: Administered) -> None:
    document = site.served.http("").get("/openapi.json").json()
    paths = {path: operations for path, operations in document["paths"].items() if path.startswith("/v1/admin/")}
    assert len(paths) >= 24
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert {"401", "403", "404", "409", "503"} <= set(operation["responses"]), f"{method} {path}"
            assert operation["security"] and operation["summary"]


@pytest.mark.slow
def test_nothing_crashes_and_every_status_is_documented(site: Administered) -> None:
    """As in `test_openapi_fuzz`, over the routes of administration."""
    with site.client("admin", labels=["management"]) as http:
        document = http.get("/openapi.json").json()
        document["paths"] = {path: rest for path, rest in document["paths"].items() if path.startswith("/v1/admin/")}
        for method, template, path, arguments, documented in requests(document):
            if path.endswith("/events"):
                continue
            response = http.request(method, path, **arguments)
            told = f"{method} {path} {str(arguments)[:300]}: {response.status_code} {response.text[:300]}"
            assert response.status_code != 500, told
            assert str(response.status_code) in documented | ({"404", "405"} if path != template else set()), told
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}, told
