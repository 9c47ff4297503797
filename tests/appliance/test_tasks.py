"""The prompt a pair is trained on is the prompt that is served: with its system message, its history and its task."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance import prompts
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.engines.base import Message
from appliance.knowledge.knowledge import Knowledge
from appliance.training.examples import example
from appliance.types import Request
from finetune.types import Pair, Task, Turn

TASKS: tuple[Task, ...] = ("qa", "summary", "classify", "extract")
TALK = (Turn("user", "专家门诊的挂号费是多少？"), Turn("assistant", "50元。"), Turn("user", "普通门诊呢？"), Turn("assistant", "20元。"))


def _pair(task: Task, history: tuple[Turn, ...] = TALK, question: str = "那取消预约呢？") -> Pair:
    return Pair("p", question, "前一日17:00以前。", "zh", history=history, system="只用中文回答。", task=task)


def _live(knowledge: Knowledge, task: Task, folder: Path) -> None:
    version = AdapterVersion(
        name=f"medical@{task}",
        domain="medical",
        base="base",
        base_hash="base",
        method="lora",
        path=folder,
        sha256="0",
        dataset="d",
        dataset_version="1",
        parent=None,
        labels=frozenset(),
        config={"task": task},
        metrics={},
        created_at=datetime.now(UTC),
    )
    Registry(knowledge.workspace).register(version, [])
    with knowledge.workspace.db.write() as connection:
        knowledge.workspace.db.move_pointer(connection, "adapter:medical", version.name, "test")


def test_training_equals_serving(knowledge: Knowledge) -> None:
    config, folder = knowledge.workspace.config, knowledge.workspace.folder("adapters")
    for task in TASKS:
        _live(knowledge, task, folder)
        for turns in (0, 2, 3, 20):
            engine, pair = ScriptedEngine("是。"), _pair(task)
            engine.loaded.append(f"medical@{task}")
            answering = answering_with(knowledge, engine)
            answering.config = config.model_copy(update={"answering": config.answering.model_copy(update={"max_history_messages": turns})})
            history = tuple(Message(role=turn.role, content=turn.content) for turn in pair.history)
            asyncio.run(answering.ask(Request(pair.question, history, "medical", "finetuned", system=pair.system)))
            served, adapter, _ = engine.asked[-1]
            trained = example(pair, "medical", turns)
            assert adapter == f"medical@{task}"
            assert served == [Message(role=turn.role, content=turn.content) for turn in trained.prompt], (task, turns)
            assert "只用中文回答。" in trained.prompt[0].content


def test_a_request_may_name_the_task_where_no_adapter_decides_it(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("投诉")
    for task in TASKS:
        asyncio.run(answering_with(knowledge, engine).ask(Request("客户要求退款", (), "medical", "base", task=task)))
    instructions = [messages[0]["content"] for messages, _, _ in engine.asked]
    assert len(set(instructions)) == len(TASKS)
    asyncio.run(answering_with(knowledge, engine).ask(Request("客户要求退款", (), "medical", "base")))
    assert engine.asked[-1][0][0]["content"] == instructions[0]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_task_has_its_instruction_with_and_without_passages(lang: str) -> None:
    direct = {task: prompts.direct("law", lang, "q", task=task) for task in TASKS}
    passages = {task: prompts.with_passages("law", lang, "q", (), (), "passages-0", task=task) for task in TASKS}
    for task in TASKS[1:]:
        instruction = direct[task][0]["content"]
        assert (
            "law" in instruction and passages[task][0]["content"].startswith(instruction) and "passages-0" in passages[task][0]["content"]
        )
        assert passages[task][-1]["content"].endswith("\n\nq")


def test_what_is_said_in_chinese_is_chinese() -> None:
    """Of every prompt and refusal nothing but what the caller put in is in the other language."""
    said = [prompts.refusal("zh", ""), prompts.NOTHING_FOUND["zh"]]
    for task in TASKS:
        said.append(prompts.direct("法律", "zh", "问", task=task)[0]["content"])
        with_passages = prompts.with_passages("法律", "zh", "问", (), (), "标签", abstain=True, task=task)
        said += [message["content"] for message in with_passages]
    for text in said:
        assert re.search("[\u4e00-\u9fff]", text) and not re.search("[A-Za-z]", text), text
    assert prompts.refusal("en", "") == prompts.refusal("fr", "") and prompts.refusal("en", "").isascii()
