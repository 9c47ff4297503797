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
from gateway_fake import FakeEmbedding, passage
from prometheus_client.parser import text_string_to_metric_families

from appliance.admin.keys import Keys
from appliance.answers.feedback import Feedback
from appliance.gateway.app import Limits, create_app
from appliance.gateway.connection import Connection
from appliance.gateway.server import bind
from appliance.settings import FeedbackConfig
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.types import Caller
from retrieval.types import Scope

LIMITS = Limits(body_bytes=20_000, embedding_inputs=20)


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
    answering: Any
    app: Any
    feedback: Feedback
    server: uvicorn.Server

    def http(self, key: str | None = None) -> httpx.Client:
        token = self.key if key is None else key
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=20)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples `name` that have these labels, in a scrape of now."""
        samples = [one for family in text_string_to_metric_families(self.http("").get("/metrics").text) for one in family.samples]
        assert any(one.name == name for one in samples), f"no metric {name}"
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


@contextmanager
def running(
    keys: Keys,
    answering: Any,
    auth_required: bool = True,
    limits: Limits = LIMITS,
    feedback: FeedbackConfig | None = None,
    **parts: Any,
) -> Iterator[Served]:
    """The real app under a real uvicorn on a free loopback port; `parts` stand in for others of `create_app`."""
    _, secret = keys.create("everything", labels=["staff"])
    local = Caller(Scope(labels=frozenset({"staff"})))
    book = Feedback(keys._database, feedback or FeedbackConfig())
    given: dict[str, Any] = {"passage": passage, "embedding": FakeEmbedding, "feedback": book, **parts}
    app = create_app(answering, keys, **given, auth_required=auth_required, version="0.0", limits=limits, anonymous=local)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, access_log=False, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", secret, keys, answering, app, book, server)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
    assert not thread.is_alive()
    assert getattr(answering, "closed", True)
