"""schemathesis over the whole description of the API: nothing fails inside, and every status is one that the description names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_real import make_knowledge, real_answering
from gateway_server import Served, running
from lying_engine import lying

from appliance.admin.acts import Administration
from appliance.admin.keys import SCOPES, Keys
from appliance.service import open_service

pytestmark = pytest.mark.slow
pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with lying() as engine:
        knowledge = make_knowledge(tmp_path_factory.mktemp("schemathesis"), engine.url)
        administration = Administration(open_service(knowledge.workspace))
        parts = {"passage": knowledge.passage, "administration": administration}
        with running(Keys(knowledge.workspace.db), real_answering(knowledge), **parts) as made:
            yield made
        knowledge.workspace.close()


@pytest.mark.parametrize("examples", [pytest.param(1, id="smoke"), pytest.param(200, id="full", marks=pytest.mark.full)])
def test_the_description_holds(served: Served, tmp_path: Path, examples: int) -> None:
    document = served.http("").get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            # "Any other failure" would document everything.
            operation["responses"].pop("default", None)
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document), "utf-8")
    _, key = served.keys.create("schemathesis", scopes=SCOPES)
    settings = ["--checks", "not_a_server_error,status_code_conformance", "--max-examples", str(examples), "--seed", "7"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", served.url, "--header", f"Authorization: Bearer {key}"]
    phases = ["--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--suppress-health-check", "all", "--no-color"]
    done = subprocess.run([*command, *settings, *phases], capture_output=True, text=True, timeout=1800, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert served.http("").get("/readyz").json()["status"] == "ready"
