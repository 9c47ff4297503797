from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gateway_fake import FakeAnswering
from gateway_server import Served, opened, running

from appliance.admin.keys import Keys
from appliance.store.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


@pytest.fixture
def start(keys: Keys) -> Iterator[Callable[..., Served]]:
    """Starts a gateway with an answering of the test's own."""
    with ExitStack() as stack:
        yield lambda answering=None, auth_required=True, **parts: stack.enter_context(
            running(keys, answering or FakeAnswering(), auth_required, **parts)
        )


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with opened(tmp_path_factory.mktemp("gateway")) as database, running(Keys(database), FakeAnswering()) as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """One gateway for every test that needs nothing special, as if nothing had been asked yet."""
    shared.answering.asked.clear()
    return shared
