"""Follow-ups made self-contained find the document they are about more often than as they are: measured on the sample knowledge base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.answers.rewrite import is_follow_up, self_contained
from appliance.demo import DOMAINS, SAMPLE
from appliance.engines.base import Message
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.workspace import Workspace
from retrieval.types import Scope

CONVERSATIONS = [json.loads(line) for line in (Path(__file__).parent / "conversations.jsonl").read_text("utf-8").splitlines()]
LANGS = ("en", "zh")
# Of the questions as they are asked in the conversations, at least this many more must find their document at rank 1 when rewritten.
MARGIN = 0.25


def _query(conversation: dict[str, Any]) -> str:
    history = [Message(role="assistant" if turn % 2 else "user", content=text) for turn, text in enumerate(conversation["history"])]
    return self_contained(conversation["question"], history)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knowledge]:
    with Workspace.create(tmp_path_factory.mktemp("sample") / "workspace") as workspace:
        knowledge = Knowledge(workspace, ModelStore.default())
        for domain in DOMAINS:
            knowledge.ingest([SAMPLE / domain / "documents"], domain=domain)
        yield knowledge


@pytest.mark.parametrize("lang", LANGS)
def test_there_are_enough_and_their_documents_exist(lang: str) -> None:
    mine = [conversation for conversation in CONVERSATIONS if conversation["lang"] == lang]
    assert len(mine) >= 20 and len({conversation["domain"] for conversation in mine}) == len(DOMAINS)
    assert all((SAMPLE / conversation["domain"] / "documents" / conversation["doc_id"]).is_file() for conversation in mine)


@pytest.mark.parametrize("lang", LANGS)
def test_most_follow_ups_are_recognised(lang: str) -> None:
    found = [is_follow_up(conversation["question"]) for conversation in CONVERSATIONS if conversation["lang"] == lang]
    assert sum(found) / len(found) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("lang", LANGS)
def test_the_rewritten_question_finds_the_document_more_often(sample: Knowledge, lang: str) -> None:
    hits = {"raw": 0, "rewritten": 0}
    mine = [conversation for conversation in CONVERSATIONS if conversation["lang"] == lang]
    for conversation in mine:
        scope = Scope(frozenset({conversation["domain"]}))
        for name, query in (("raw", conversation["question"]), ("rewritten", _query(conversation))):
            passages = sample.search(query, scope).passages
            hits[name] += bool(passages) and passages[0].document.id == conversation["doc_id"]
    print(lang, len(mine), hits)
    assert hits["rewritten"] >= hits["raw"] + MARGIN * len(mine)
