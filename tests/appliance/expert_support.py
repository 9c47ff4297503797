"""A finished run over the small knowledge base, for expert scoring."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from click.testing import CliRunner

from appliance.cli.main import cli
from appliance.knowledge.knowledge import Knowledge
from appliance.store import schema
from appliance.store.database import utcnow
from eval.run import run
from eval.types import Item, Outcome

FEE = "专家门诊挂号费为50元，须提前七天预约。"
ITEMS = (
    Item("q1", "专家门诊挂号费是多少？", "50元", ("zh/registration.md",), "zh", "medical"),
    Item("q2", "When may visitors come?", "From 14:00 to 20:00.", ("visiting.md",), "en", "medical"),
    Item("q3", "What does parking cost?", "3 crowns an hour.", ("parking.md",), "en", "medical"),
    Item("q4", "What does the head nurse receive a month?", "5400 crowns.", ("pay.md",), "en", "medical"),
)
# What each arm answers, and what the answer rests on.
OUTCOMES: Mapping[tuple[str, str], Outcome] = {
    ("q1", "base"): Outcome("base", "=免费"),
    ("q1", "quote"): Outcome("quote", FEE, citations=("zh/registration.md",), retrieved=("zh/registration.md",)),
    ("q1", "rag"): Outcome("rag", FEE, citations=("zh/registration.md",), retrieved=("zh/registration.md",)),
    ("q2", "base"): Outcome("base", "At any time."),
    ("q2", "quote"): Outcome(
        "quote", "Visitors may come from 14:00 to 20:00 every day.", citations=("visiting.md",), retrieved=("visiting.md",)
    ),
    ("q2", "rag"): Outcome("rag", "From 14:00 to 20:00.", citations=("visiting.md",), retrieved=("visiting.md", "parking.md")),
    ("q3", "base"): Outcome("base", error="unavailable: no engine"),
    ("q3", "quote"): Outcome(
        "quote", "Parking in the north garage costs 3 crowns an hour.", citations=("parking.md",), retrieved=("parking.md",)
    ),
    ("q3", "rag"): Outcome("rag", "The documents do not say.", refused=True, retrieved=("parking.md",)),
    ("q4", "base"): Outcome("base", "A lot."),
    ("q4", "quote"): Outcome("quote", "The head nurse receives 5400 crowns a month.", citations=("pay.md",), retrieved=("pay.md",)),
    ("q4", "rag"): Outcome("rag", error="the engine is down"),
}
ARMS = ("base", "quote", "rag")


def make_run(knowledge: Knowledge, identity: str = "run-1") -> sa.Row[Any]:
    """A registered run of `OUTCOMES`."""
    folder = knowledge.workspace.folder("runs") / identity

    async def ask(item: Item, arm: str) -> Outcome:
        return OUTCOMES[item.id, arm]

    asyncio.run(run(ITEMS, ARMS, ask, folder))
    row = {"id": identity, "dataset": "d", "dataset_version": "1", "domain": "medical", "path": f"runs/{identity}", "settings": {}}
    with knowledge.workspace.db.write() as connection:
        connection.execute(schema.run.insert().values(**row, created_at=utcnow(), finished_at=utcnow()))
        return connection.execute(sa.select(schema.run).where(schema.run.c.id == identity)).one()


def command(knowledge: Knowledge, *words: str | Sequence[str], code: int = 0) -> Any:
    """The JSON that a command prints."""
    done = CliRunner().invoke(cli, ["--workspace", str(knowledge.workspace.root), *map(str, words), "--json"], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    assert (done.return_value or 0) == code, (done.return_value, done.output)
    return json.loads(done.stdout)
