"""Small reads past SQLAlchemy find what it finds, and fail as it fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from appliance.admin.keys import Keys
from appliance.errors import DatabaseFailed
from appliance.store import schema
from appliance.store.database import Database
from appliance.store.lookup import Lookup

_KEYS = Lookup(sa.select(schema.api_key).where(schema.api_key.c.name == sa.bindparam("name")).order_by(schema.api_key.c.id))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/appliance.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with closing(Database(url)) as database:
        database.migrate()
        yield database


def test_columns_of_every_kind_are_read_as_elsewhere(database: Database) -> None:
    keys, soon = Keys(database), datetime.now(UTC) + timedelta(days=1)
    for name in ("病房", "病房", "office"):
        keys.create(name, labels=frozenset({"内部"}), expires_at=soon, requests_per_minute=7)
    table = schema.api_key
    with database.read() as connection:
        wanted = connection.execute(sa.select(table).where(table.c.name == "病房").order_by(table.c.id)).all()
    found = database.rows(_KEYS, name="病房")
    assert len(found) == 2 and [tuple(row) for row in found] == [tuple(row) for row in wanted]
    assert (found[0].labels, found[0].requests_per_minute, found[0].revoked_at) == (["内部"], 7, None)
    assert found[0].expires_at == soon and found[0].expires_at.tzinfo is not None
    assert list(database.rows(_KEYS, name="' OR 1=1 --")) == []


def test_what_another_connection_wrote_is_seen_at_once(database: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        for number in range(20):
            with database.write() as connection:
                database.move_pointer(connection, "index", f"g{number}", "test")
            assert {*threads.map(lambda _: database.pointer("index"), range(8))} == {f"g{number}"}


def test_a_damaged_database_is_said_to_be(tmp_path: Path) -> None:
    place = tmp_path / "appliance.db"
    with closing(Database(f"sqlite:///{place}")) as database:
        database.migrate()
        assert list(database.rows(_KEYS, name="none")) == []
    for left in tmp_path.glob("appliance.db-*"):
        left.unlink()
    size = place.stat().st_size
    place.write_bytes(place.read_bytes()[:100] + b"\xa5" * (size - 100))
    with closing(Database(f"sqlite:///{place}")) as database, pytest.raises(DatabaseFailed, match=r"appliance\.db cannot be used"):
        database.rows(_KEYS, name="none")
