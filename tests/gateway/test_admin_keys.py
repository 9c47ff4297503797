"""Keys over the administration: nobody gives away more than they have, nor learns of a key that has more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_admin_api import Administered, administered, code

from appliance.admin.audit import find
from appliance.store.database import utcnow

KEYS = "/v1/admin/keys"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Administered]:
    with administered(tmp_path_factory.mktemp("keys")) as made:
        yield made


def made(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post(KEYS, json={"name": "门诊", **body})
    assert response.status_code == 201, response.text
    shown: dict[str, Any] = response.json()
    return shown


def test_a_key_is_made_shown_once_used_and_revoked(site: Administered, tmp_path: Path) -> None:
    with site.client("admin", "chat", labels=["staff"]) as http:
        key = made(http, domains=["medical"], labels=["staff"], days=30, requests_per_minute=50)
        assert key["key"].startswith("apl_") and (key["name"], key["scopes"], key["domains"]) == ("门诊", ["chat"], ["medical"])
        assert key["expires_at"] is not None and key["requests_per_minute"] == 50 and key["tokens_per_minute"] is None
        listed = http.get(KEYS)
        assert listed.headers["cache-control"] == "no-store" and key["key"] not in listed.text
        assert {name: value for name, value in key.items() if name != "key"} in listed.json()
        with site.served.http(key["key"]) as chat:
            assert chat.get("/v1/models").status_code == 200 and code(chat.get(KEYS)) == (403, "scope_missing")
            assert chat.post("/v1/answer", json={"question": "?", "domain": "legal"}).status_code == 403
            assert http.delete(f"{KEYS}/{key['id']}").json()["revoked"] is True
            assert code(chat.get("/v1/models")) == (401, "invalid_api_key")
        # Its name is not its id, and a second time is harmless.
        assert code(http.delete(f"{KEYS}/门诊")) == (404, "not_found")
        assert http.delete(f"{KEYS}/{key['id']}").status_code == 200
    entries = [entry for action in ("key.create", "key.revoke") for entry in find(site.workspace.db, action)]
    told = [entry for entry in entries if entry["details"]["key"] == key["id"]]
    assert [entry["action"] for entry in told] == ["key.create", "key.revoke"] and key["key"] not in str(entries)
    assert len({entry["actor"] for entry in told}) == 1 and told[0]["actor"].startswith("key:")


def test_nobody_gives_more_than_they_have(site: Administered) -> None:
    end = utcnow() + timedelta(days=10)
    limits = {"domains": ["medical"], "labels": ["staff"], "expires_at": end, "requests_per_minute": 100}
    with site.client("admin", **limits) as http:
        for more in (
            {"scopes": ["chat"]},
            {"domains": ["legal"]},
            {"domains": ["medical", "legal"]},
            {"domains": ["nothing"]},
            {"labels": ["staff", "management"]},
            {"days": 11},
            {"requests_per_minute": 101},
        ):
            asked = {"name": "k", "scopes": ["ingest"], **more}
            assert code(http.post(KEYS, json=asked)) == (403, "not_allowed"), more
        key = made(http, scopes=["admin", "ingest", "expert"], tokens_per_minute=5)
        assert key["domains"] == ["medical"] and key["labels"] == [] and key["requests_per_minute"] == 100
        assert key["expires_at"] == end.isoformat(timespec="seconds") and key["tokens_per_minute"] == 5
        # What it made can give no more in its turn.
        with site.served.http(key["key"]) as heir:
            assert code(heir.post(KEYS, json={"name": "k", "scopes": ["admin"], "labels": ["staff"]})) == (403, "not_allowed")
            assert made(heir, scopes=["admin"])["tokens_per_minute"] == 5


def test_keys_that_have_more_are_not_there(site: Administered) -> None:
    with site.client("admin", "chat", labels=["staff", "management"]) as boss, site.client("admin", domains=["medical"]) as http:
        other = [made(boss, **has)["id"] for has in ({}, {"domains": ["legal"]}, {"domains": ["medical"], "labels": ["management"]})]
        mine = made(boss, domains=["medical"])["id"]
        seen = {row["id"] for row in http.get(KEYS).json()}
        assert mine in seen and seen.isdisjoint(other) and {*other, mine} <= {row["id"] for row in boss.get(KEYS).json()}
        for id in (*other, "nothing"):
            assert code(http.delete(f"{KEYS}/{id}")) == (404, "not_found")
        assert http.delete(f"{KEYS}/{mine}").status_code == 200
        assert all(not row["revoked"] for row in boss.get(KEYS).json() if row["id"] in other)


def test_a_revoked_key_follows_no_job_any_more(site: Administered) -> None:
    job = site.jobs.add("retrain", {"domain": "medical"}, "medical", ()).id
    with site.client("admin") as boss:
        key = made(boss, scopes=["ingest", "admin"])
        with site.served.http(key["key"]) as http, http.stream("GET", f"/v1/admin/jobs/{job}/events") as events:
            lines = events.iter_lines()
            assert next(lines) == "event: job"
            boss.delete(f"{KEYS}/{key['id']}")
            # Else this would wait for the job.
            assert "event: end" not in list(lines)
    site.jobs.cancel(job)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": " "},
        {"name": "药" * 101},
        {"name": "k", "scopes": []},
        {"name": "k", "scopes": ["root"]},
        {"name": "k", "domains": []},
        {"name": "k", "domains": ["nothing"]},
        {"name": "k", "labels": [""]},
        {"name": "k", "labels": [" "]},
        {"name": "k", "days": 0},
        {"name": "k", "days": 2**31},
        {"name": "k", "tokens_per_minute": 0},
        {"name": "k", "expires": "never"},
    ],
)
def test_bad_requests_make_no_key(site: Administered, body: dict[str, Any]) -> None:
    with site.client("admin", "chat", labels=["staff"]) as http:
        before = http.get(KEYS).json()
        assert http.post(KEYS, json=body).status_code in (400, 403, 404), body
        assert http.get(KEYS).json() == before


def test_only_administrators_and_nobody_without_a_key(tmp_path: Path) -> None:
    with administered(tmp_path, auth_required=False) as site, site.served.http("") as nobody, site.client("ingest") as supplier:
        for http, refusal in ((nobody, (401, "invalid_api_key")), (supplier, (403, "scope_missing"))):
            assert code(http.get(KEYS)) == code(http.post(KEYS, json={"name": "k"})) == code(http.delete(f"{KEYS}/k")) == refusal
