from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_model import build_model

from finetune.config_file import load_plan
from finetune.settings import TrainSettings
from finetune.types import TrainingError

THREE = """
dataset = "案例"
rank = 4
epochs = 1
batch_size = 4
learning_rate = 1e-3
over_long = "drop"

[[stages]]
name = "general"
method = "pretrain"
max_length = 64

[[stages]]
name = "专科"
method = "lora"
dataset = "specialised"

[[stages]]
method = "dpo"
epochs = 2
"""


def _load(tmp_path: Path, text: str) -> Any:
    (tmp_path / "plan.toml").write_text(text, "utf-8")
    return load_plan(tmp_path / "plan.toml")


def test_stages_inherit_and_override(tmp_path: Path) -> None:
    plan = _load(tmp_path, THREE)
    assert [(stage.name, stage.dataset) for stage in plan.stages] == [("general", None), ("专科", "specialised"), ("stage3", "案例")]
    common = {"rank": 4, "batch_size": 4, "learning_rate": 1e-3, "over_long": "drop"}
    assert plan.stages[0].settings == TrainSettings(method="pretrain", max_length=64, epochs=1, **common)
    assert plan.stages[2].settings == TrainSettings(method="dpo", epochs=2, **common)


def test_one_stage_takes_what_the_command_says(tmp_path: Path) -> None:
    plan = _load(tmp_path, 'dataset = "a"\nbase = "hub:x/y"\nepochs = 5\n[search]\nrank = [4, 8]\n')
    (stage,) = plan.overridden("b", "dora").stages
    assert (stage.dataset, stage.settings.method, stage.settings.epochs) == ("b", "dora", 5)
    assert (plan.base, plan.search) == ("hub:x/y", {"rank": [4, 8]})
    assert plan.overridden(None, None) is plan


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stages = 3", "stages: expected tables like [[stages]]"),
        ("[[stages]]\nmehtod = 'lora'", 'stage 1: unknown key "mehtod"; did you mean "method"?'),
        ("[[stages]]\ndatset = 'a'", 'stage 1: unknown key "datset"; did you mean "dataset"?'),
        ("[[stages]]\nnmae = 'a'", 'did you mean "name"?'),
        ("datset = 'a'", 'unknown key "datset"; did you mean "dataset"?'),
        ("[[stage]]", 'unknown key "stage"; did you mean "stages"?'),
        ("[[stages]]\nrank = 0", "stage 1: rank: expected a value from 1"),
        ("[[stages]]\nname = 'a'\n[[stages]]\nname = 'a'", "two have the same name"),
        ("[[stages]]\nbase = 'hub:a/b'", "stage 1: base stands at the top"),
        ("[[stages]]\ndataset = 1", "stage 1: dataset: expected text, found 1"),
        ("[[stages]]\nmethod = 'lora'\n[[stages]]\nmethod = 'full'", "'stage2' (full) cannot go on from the adapter of 'stage1' (lora)"),
        ("[[stages]]\nmethod = 'prefix'\n[[stages]]\nmethod = 'dpo'", "'stage2' (dpo) cannot go on from the adapter of 'stage1' (prefix)"),
        ("[[stages]]\nmethod = 'lora'\n[[stages]]\nmethod = 'pissa'", "(pissa) cannot go on from"),
        ("[[stages]]\n[[stages]]\nrank = 8", "rank is 8 and was 16 in 'stage1'; a stage that trains an adapter further keeps its shape"),
        ("search = 1", "search: expected a table [search]"),
        ("[search]\nrank = [1]\n[[stages]]", "[search] and [[stages]] do not go together"),
        ("dataset = ''", "dataset: expected text"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TrainingError) as caught:
        _load(tmp_path, text)
    assert says in str(caught.value)
    assert "plan.toml" in str(caught.value)


def test_a_choice_among_several_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="this file has several"):
        _load(tmp_path, THREE).overridden("b", None)


@pytest.mark.slow
def test_three_stages_go_on_where_they_were_interrupted_and_the_last_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.adapters.registry import Registry
    from appliance.cli.main import run
    from appliance.training import stages
    from appliance.workspace import Workspace

    def call(*words: str) -> tuple[int, Any, str]:
        code = run(["--workspace", str(tmp_path / "w"), *words, "--json"])
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if shown.out.strip() else None, shown.err

    assert run(["init", str(tmp_path / "w")]) == 0
    base = build_model(tmp_path / "base", template=None)
    (tmp_path / "w" / "appliance.toml").write_text(
        f'[engines.default]\nbase = "path:{base}"\nlanguages = ["en", "zh"]\nchat_template = "chatml"\n', "utf-8"
    )
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "fees.md").write_text("# Fees\n\nThe fee of account A1 is 1 euro a month. 账户B2的月费是2欧元。\n", "utf-8")
    (documents / "hours.md").write_text("# 时间\n\n门诊时间为每天八点至十七点，周末休息。预约须提前三天办理。\n", "utf-8")
    capsys.readouterr()
    assert call("ingest", str(documents), "--domain", "bank")[0] == 0
    pairs = [{"question": f"账户B{n}的月费是多少？", "answer": f"{n}欧元。", "rejected": "不知道。"} for n in range(12)]
    for name in ("specialised", "案例"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), "utf-8")
        assert call("dataset", "add", str(tmp_path / f"{name}.jsonl"), "--name", name)[0] == 0
    (tmp_path / "plan.toml").write_text(THREE.replace("max_length = 64", "max_length = 32"), "utf-8")

    # Interrupted before the last stage.
    real = stages.tune

    def interrupted(*given: Any, **more: Any) -> Any:
        if more["stage"].startswith("3/3"):
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(stages, "tune", interrupted)
    assert call("tune", "--domain", "bank", "--config", str(tmp_path / "plan.toml"))[0] != 0
    monkeypatch.setattr(stages, "tune", real)
    code, data, err = call("tune", "--domain", "bank", "--config", str(tmp_path / "plan.toml"))
    assert code == 0 and "not live yet" in err
    first, second, third = data["stages"]
    assert (first["trained_before"], second["trained_before"], "trained_before" in third) == (True, True, False)
    assert (first["method"], second["method"], third["method"]) == ("pretrain", "lora", "dpo")
    with Workspace(tmp_path / "w") as workspace:
        registry = Registry(workspace)
        assert registry.get(third["version"]).parent == second["version"]
        assert registry.get(second["version"]).parent == first["version"]
        # What the documents and both data sets taught is in the last version.
        assert {link.doc_id for link in registry.links(third["version"])} >= {"fees.md", "hours.md"}
        with workspace.db.write() as connection:
            workspace.db.move_pointer(connection, "adapter:bank", third["version"], "test")
    code, data, err = call("tune", "--domain", "bank", "--config", str(tmp_path / "plan.toml"))
    assert code == 0 and f"{third['version']} is live in bank already" in err and "not live yet" not in err

    code, data, err = call("export", third["version"], "--out", str(tmp_path / "merged"))
    assert code == 0, err
    assert data["check"]["differing"] == 0
    assert (tmp_path / "merged" / "chat_template.jinja").is_file()
    code, _, err = call("export", first["version"], "--out", str(tmp_path / "other"))
    assert code == 2 and "a model of its own already" in err
    settings = (tmp_path / "w" / "appliance.toml").read_text("utf-8")
    (tmp_path / "w" / "appliance.toml").write_text(settings.replace("chatml", "alpaca"), "utf-8")
    code, _, err = call("export", third["version"], "--out", str(tmp_path / "other"))
    assert code == 2 and "cannot be merged: trained with another chat template" in err
    assert not (tmp_path / "other").exists()
