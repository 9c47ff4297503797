"""A running gateway is audited and backed up; the backup is restored and answers."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.mark.slow
def test_audit_backup_and_restore_of_a_running_gateway(  # type: ignore[no-untyped-def]
    appliance, handbook: Path, start: Start, tmp_path: Path
) -> None:
    assert appliance("ingest", handbook, "--domain", "medical").code == 0
    key = appliance("key", "create", "前台", "--json").json
    process = start("--set", "server.require_keys=true", "serve", "--port", 0)
    assert process.stderr is not None
    address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    question = {"question": "探视时间是几点到几点？", "domain": "medical", "arm": "quote"}
    try:
        assert httpx.post(f"{address}/v1/answer", json=question, timeout=300).status_code == 401
        with httpx.Client(base_url=address, timeout=300, headers={"Authorization": f"Bearer {key['key']}"}) as http:
            assert "15:00至19:00" in http.post("/v1/answer", json=question).json()["answer"]
            made = appliance("backup", tmp_path / "夜间.zip", "--json")
            assert made.code == 0 and made.json["generation"] == "1", made.err
            assert "15:00至19:00" in http.post("/v1/answer", json=question).json()["answer"]
            refused = appliance("restore", tmp_path / "夜间.zip", "--force")
            assert refused.code == 2 and "stop `appliance serve`" in refused.err
            assert "15:00至19:00" in http.post("/v1/answer", json=question).json()["answer"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    entries = appliance("audit", "list", "--action", "answer", "--json").json
    assert [entry["actor"] for entry in entries] == [f"key:{key['id']}"] * 3
    assert all(entry["details"]["documents"] == ["medical/zh/visiting.md"] and "15:00" not in str(entry) for entry in entries)
    assert appliance("audit", "verify").code == 0

    assert appliance("document", "remove", "zh/visiting.md", "--domain", "medical").code == 0
    assert appliance("key", "revoke", key["id"]).code == 0
    assert appliance("restore", tmp_path / "夜间.zip", "--check").code == 0
    done = appliance("restore", tmp_path / "夜间.zip", "--force", "--json")
    assert done.code == 0 and done.json["taken_back"] == {"documents": 1, "keys": 1, "answers": 0}, done.err
    asked = appliance("ask", "探视时间是几点到几点？", "--domain", "medical", "--json")
    assert "15:00至19:00" not in asked.out
    asked = appliance("ask", "When may visitors come?", "--domain", "medical", "--arm", "quote", "--json")
    assert "14:00 to 20:00" in asked.json["answer"]
    assert appliance("audit", "verify").code == 0
    actions = {entry["action"] for entry in appliance("audit", "list", "--json").json}
    assert {"answer", "workspace.backup", "workspace.restore", "index.remove", "key.revoke"} <= actions
