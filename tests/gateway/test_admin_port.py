"""The two ports of a gateway whose administration has one of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_admin_api import service_of

from appliance.admin.acts import Administration
from appliance.admin.keys import Keys
from appliance.errors import UsageError
from appliance.gateway.run import run_gateway
from appliance.gateway.server import serve
from appliance.workspace import Workspace


def test_a_port_that_others_reach_needs_keys_whichever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port of the administration answers questions too."""

    def stop(*_: object, **__: object) -> None:
        raise InterruptedError("the server would start here")

    monkeypatch.setattr("appliance.gateway.run.open_service", stop)
    Workspace.create(tmp_path / "workspace").close()
    outside = {"server.admin_port": "0", "server.admin_host": "0.0.0.0"}
    for flags, needed in (({}, False), ({"server.admin_port": "0"}, False), (outside, True)):
        said: list[str] = []
        with Workspace(tmp_path / "workspace", flags) as workspace, pytest.raises(InterruptedError):
            run_gateway(workspace, "127.0.0.1", 0, said.append)
        assert any("appliance key create" in line for line in said) is needed, flags
    refused = pytest.raises(UsageError, match=r"only allowed on a loopback address, and 0\.0\.0\.0 is none")
    with Workspace(tmp_path / "workspace", {**outside, "server.require_keys": "false"}) as workspace, refused:
        run_gateway(workspace, "127.0.0.1", 0, print)


def test_a_port_of_its_own(tmp_path: Path) -> None:
    """Through the server that `appliance serve` runs, in a thread: signals are the main thread's."""
    service = service_of(tmp_path)
    from appliance.answers.feedback import Feedback
    from appliance.gateway.app import create_app
    from appliance.settings import FeedbackConfig

    keys = Keys(service.workspace.db)
    _, secret = keys.create("k", scopes=["admin", "chat"])
    app = create_app(
        service.answering,
        keys,
        passage=service.knowledge.passage,
        embedding=lambda: service.knowledge.embedder,
        feedback=Feedback(service.workspace.db, FeedbackConfig()),
        auth_required=True,
        version="0",
        administration=Administration(service),
    )
    found: dict[str, str] = {}
    both = threading.Event()

    def admin_at(address: str) -> None:
        found["admin"] = address
        both.set()

    stop: list[Callable[[], None]] = []
    with ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        import appliance.gateway.server as server

        class Stoppable(server._Server):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                stop.append(lambda: setattr(self, "should_exit", True))

        monkeypatch.setattr(server, "_Server", Stoppable)
        given = {"announce": lambda address: found.update(public=address), "admin": ("127.0.0.1", 0), "announce_admin": admin_at}
        thread = threading.Thread(target=lambda: serve(app, "127.0.0.1", 0, **given))  # type: ignore[arg-type]
        thread.start()
        try:
            assert both.wait(30)
            headers = {"Authorization": f"Bearer {secret}"}
            assert httpx.get(f"{found['public']}/v1/admin/jobs", headers=headers).status_code == 404
            assert httpx.get(f"{found['public']}/v1/admin/jobs").status_code == 404
            for path in ("review", "review/topics", "expert/progress", "expert/rubric"):
                assert httpx.get(f"{found['public']}/v1/{path}", headers=headers).status_code == 404, path
                assert httpx.get(f"{found['admin']}/v1/{path}", headers=headers).status_code == 200, path
            assert httpx.get(f"{found['public']}/metrics").status_code == 404
            assert httpx.get(f"{found['admin']}/metrics").status_code == 200
            assert httpx.get(f"{found['public']}/v1/models", headers=headers).status_code == 200
            assert httpx.get(f"{found['admin']}/v1/admin/jobs", headers=headers).status_code == 200
        finally:
            stop[0]()
            thread.join(30)
    service.workspace.close()
