"""A real gateway on a loopback port, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from gateway_fake import FakeAnswering, passage

from appliance.gateway.app import Limits, create_app
from appliance.gateway.server import bind
from appliance.keys import Keys
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.types import Caller
from retrieval.types import Scope

LIMITS = Limits(body_bytes=20_000)


@contextmanager
def opened(folder: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{folder / 'appliance.db'}")
    database.migrate()
    with database.write() as connection:
        for name in ("medical", "legal"):
            connection.execute(schema.domain.insert().values(name=name, created_at=utcnow()))
    yield database
    database.close()


@dataclass
class Served:
    """A running gateway; `key` is a key for everything."""

    url: str
    key: str
    keys: Keys
    answering: FakeAnswering
    app: Any

    def http(self, key: str | None = None) -> httpx.Client:
        token = self.key if key is None else key
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=20)


@contextmanager
def running(keys: Keys, answering: FakeAnswering, auth_required: bool = True) -> Iterator[Served]:
    """The real app under a real uvicorn on a free loopback port."""
    _, secret = keys.create("everything", labels=["staff"])
    local = Caller(Scope(labels=frozenset({"staff"})))
    app = create_app(answering, keys, passage=passage, auth_required=auth_required, version="0.0", limits=LIMITS, anonymous=local)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", secret, keys, answering, app)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
    assert not thread.is_alive()
    assert answering.closed
