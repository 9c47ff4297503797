"""A folder as a team that uses LLaMA-Factory has it, with every formatting, in both languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REGISTRY: dict[str, Any] = {
    "identity": {"file_name": "identity.json"},
    "fees_zh": {
        "file_name": "fees.jsonl",
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"},
    },
    "desk": {
        "file_name": "desk",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"},
    },
    "chat": {
        "file_name": "chat.parquet",
        "formatting": "openai",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"},
    },
    "prefer_zh": {
        "file_name": "prefer.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "prefer": {
        "file_name": "prefer.csv",
        "ranking": True,
        "columns": {"prompt": "prompt", "query": "", "chosen": "good", "rejected": "bad"},
    },
    "hub": {"hf_hub_url": "team/private", "ms_hub_url": "team/private"},
    "scans": {"file_name": "scans.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}},
    "corpus": {"file_name": "corpus.txt", "columns": {"prompt": "text"}},
}
UNUSABLE = {"hub": "cannot be had from its hub", "scans": "1 of 1 rows have images", "corpus": "plain text without answers"}


def build(folder: Path, registry: dict[str, Any] | None = None) -> Path:
    """Write the folder and give it."""
    folder.mkdir()
    _json(folder / "dataset_info.json", registry or REGISTRY)
    _json(
        folder / "identity.json",
        [
            {"instruction": "Who are you?", "input": "", "output": "The assistant of the claims desk."},
            {"instruction": "Translate.", "input": "手续费", "output": "Fee."},
        ],
    )
    fees = [
        {"instruction": "手续费是多少？", "input": "账户：储蓄", "output": "四元。", "system": "你是柜台助手。", "history": []},
        {"instruction": "那信用卡呢？", "input": "", "output": "十元。", "system": "", "history": [["储蓄账户收费吗？", "每年四元。"]]},
    ]
    (folder / "fees.jsonl").write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fees).encode("gb18030"))
    (folder / "desk").mkdir()
    talk = [
        ("system", "Be kind."),
        ("human", "Is the desk open?"),
        ("gpt", "Until six."),
        ("human", "And on Sunday?"),
        ("gpt", "No."),
    ]
    _json(folder / "desk" / "a.json", [{"conversations": [{"from": who, "value": said} for who, said in talk]}])
    _json(
        folder / "desk" / "b.json",
        [{"conversations": [{"from": "human", "value": "怎么挂失？"}, {"from": "gpt", "value": "拨打客服电话。"}]}],
    )
    messages = [{"role": "user", "content": "什么是利率？"}, {"role": "assistant", "content": "资金的价格。"}]
    pq.write_table(pa.table({"messages": [messages], "source": ["forum"]}), folder / "chat.parquet")
    answers = {"chosen": {"from": "gpt", "value": "请拨打客服电话。"}, "rejected": {"from": "gpt", "value": "不知道。"}}
    _json(folder / "prefer.json", [{"conversations": [{"from": "human", "value": "卡丢了怎么办？"}], **answers}])
    (folder / "prefer.csv").write_text("prompt,good,bad\nHow much?,Four euros.,Much.\n", "utf-8")
    _json(folder / "scans.json", [{"messages": [], "images": ["a.png"]}])
    (folder / "corpus.txt").write_text("Some text.\n", "utf-8")
    return folder


def _json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2), "utf-8")
