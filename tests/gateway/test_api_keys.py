from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from appliance.admin.keys import Keys
from appliance.errors import UsageError
from appliance.store import schema
from appliance.store.database import Database, utcnow


def test_a_key_is_shown_once_and_stored_hashed(keys: Keys, database: Database) -> None:
    key, secret = keys.create("张医生的笔记本", domains=["medical"], labels=["staff"], expires_at=utcnow() + timedelta(days=1))
    assert secret.startswith("apl_") and len(secret) == 47
    with database.read() as connection:
        row = connection.execute(sa.select(schema.api_key)).one()
    assert secret not in str(tuple(row)) and len(row.sha256) == 64
    found = keys.authenticate(secret)
    assert found == key == keys.list()[0]
    assert found.name == "张医生的笔记本" and found.domains == {"medical"} and found.labels == {"staff"} and found.state == "active"
    assert found.scope.domains == {"medical"} and found.scope.labels == {"staff"}


def test_without_domains_a_key_is_for_all(keys: Keys) -> None:
    key, _ = keys.create("all")
    assert key.domains is None and keys.list()[0].domains is None


@pytest.mark.parametrize("token", ["", "apl_", "apl_wrong", "sk-other", "apl_" + "é" * 40, "apl_\0"])
def test_a_wrong_token_is_nobody(keys: Keys, token: str) -> None:
    keys.create("one")
    assert keys.authenticate(token) is None


def test_a_revoked_key_stops_at_once_and_revoking_twice_is_harmless(keys: Keys) -> None:
    key, secret = keys.create("laptop")
    revoked = keys.revoke("laptop")
    assert revoked.state == "revoked" and keys.authenticate(secret) is None
    assert keys.revoke(key.id) == revoked


def test_an_expired_key_is_rejected(keys: Keys, database: Database) -> None:
    key, secret = keys.create("short", expires_at=utcnow() + timedelta(hours=1))
    with database.write() as connection:
        connection.execute(schema.api_key.update().values(expires_at=utcnow() - timedelta(seconds=1)))
    assert keys.authenticate(secret) is None
    assert [(listed.id, listed.state) for listed in keys.list()] == [(key.id, "expired")]


def test_a_name_shared_by_several_keys_does_not_revoke(keys: Keys) -> None:
    keys.create("twin")
    keys.create("twin")
    with pytest.raises(UsageError, match="2 keys are named 'twin'"):
        keys.revoke("twin")
    with pytest.raises(UsageError, match="there is no key 'nobody'"):
        keys.revoke("nobody")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "  "}, "1 to 100 printable"),
        ({"name": "x" * 101}, "1 to 100 printable"),
        ({"name": "a\nb"}, "1 to 100 printable"),
        ({"name": "a", "domains": ["财务"]}, "unknown domain '财务'; known domains: legal, medical"),
        ({"name": "a", "domains": []}, "at least one domain"),
        ({"name": "a", "labels": [" "]}, "label must not be empty"),
        ({"name": "a", "expires_at": datetime(2999, 1, 1)}, "with a zone"),
        ({"name": "a", "expires_at": utcnow() - timedelta(days=1)}, "in the future"),
    ],
)
def test_bad_input_is_refused(keys: Keys, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        keys.create(**arguments)  # type: ignore[arg-type]
    assert keys.list() == []
