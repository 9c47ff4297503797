"""`appliance tune` killed and started again, searching, and in two processes, on a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "finetune"))
from finetune_model import TOPICS, build_model

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def bank(appliance, tmp_path: Path) -> Iterator[Any]:  # type: ignore[no-untyped-def]
    """A workspace with a domain, a data set in both languages, and a tiny random model as its base."""
    base = build_model(tmp_path / "base", hidden=64)
    rows = []
    for number in range(24):
        question, answer = (text.format(n=number) for text in TOPICS[number % 2])
        rows.append({"id": f"q{number}", "question": question, "answer": answer, "split": "dev" if number > 19 else "train"})
    (tmp_path / "fees.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "fees.md").write_text("# Fees\n\nThe fee of account A2 is 2 euros a month. 账户B3的月费是3欧元。\n", "utf-8")
    config = tmp_path / "workspace" / "appliance.toml"
    lines = f'[engines.default]\nbase = "path:{base}"\nlanguages = ["en", "zh"]\n'
    config.write_text(config.read_text("utf-8").replace("[engines.default]\n", lines), "utf-8")
    assert appliance("ingest", tmp_path / "documents", "--domain", "bank").code == 0
    assert appliance("dataset", "add", tmp_path / "fees.jsonl", "--domain", "bank").code == 0
    yield appliance


def _config(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def _killed(process: subprocess.Popen[str], what: str, after: int) -> None:
    """Kill a run when it says of `what` that more than `after` steps are done."""
    assert process.stderr is not None
    next(line for line in process.stderr if f'"{what}"' in line and json.loads(line)["done"] > after)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_it_goes_on(bank: Any, start: Start, tmp_path: Path) -> None:
    config = _config(tmp_path / "a.toml", "epochs = 15\npatience = 0\nbatch_size = 4\nrank = 4\n")
    arguments = ("tune", "--domain", "bank", "--dataset", "fees", "--config", config)
    _killed(start(*arguments), "training bank", 8)
    assert bank("adapter", "list", "--json").json == []
    (run,) = (tmp_path / "workspace" / "runs").glob("tune-bank-*")
    assert list((run / "checkpoints").glob("*/complete"))

    done = bank(*arguments, "--json")
    assert done.code == 0, done.err
    assert "the same run was started before: going on after step" in done.err
    assert [row["version"] for row in bank("adapter", "list", "--json").json] == [done.json["version"]]
    assert {path.name for path in run.iterdir()} == {"run.json", "metrics.jsonl", "loss.png", "tensorboard"}
    again = bank(*arguments, "--fresh", "--json")
    assert "going on" not in again.err
    assert again.json["version"] == done.json["version"] and again.json["eval_loss"] == done.json["eval_loss"]


def test_a_search_registers_the_best_once(bank: Any, tmp_path: Path) -> None:
    text = "epochs = 2\nbatch_size = 4\n\n[search]\nlearning_rate = { low = 1e-3, high = 1e-2, log = true }\nrank = [2, 4]\n"
    arguments = ("tune", "--domain", "bank", "--dataset", "fees", "--config", _config(tmp_path / "s.toml", text))
    assert bank(*arguments).code == 2
    done = bank(*arguments, "--search", 3, "--json")
    assert done.code == 0, done.err
    rows = done.json["search"]
    assert len(rows) == 3 and sum(row["best"] for row in rows) == 1
    best = next(row for row in rows if row["best"])
    assert best["loss"] == min(row["loss"] for row in rows if row["outcome"] == "done") == done.json["eval_loss"]
    (version,) = bank("adapter", "list", "--json").json
    assert version["version"] == done.json["version"]
    # The same search again has nothing left to run.
    assert bank(*arguments, "--search", 3, "--json").json["search"] == rows
    table = bank(*arguments, "--search", 3)
    assert "loss on dev" in table.out and "best" in table.out


def test_a_killed_search_ends_as_one_left_alone(bank: Any, start: Start, tmp_path: Path) -> None:
    text = "epochs = 6\npatience = 0\nbatch_size = 4\n\n[search]\nlearning_rate = { low = 1e-3, high = 1e-2, log = true }\nrank = [2, 4]\n"
    arguments = ("tune", "--domain", "bank", "--dataset", "fees", "--config", _config(tmp_path / "s.toml", text), "--search", 3)
    _killed(start(*arguments), "training bank run 2/3", 0)
    assert bank("adapter", "list", "--json").json == []

    done = bank(*arguments, "--json")
    assert done.code == 0, done.err
    # The first run is not done again, the second goes on.
    assert "run 1/3" not in done.err and "run 2/3" in done.err
    assert [row["version"] for row in bank("adapter", "list", "--json").json] == [done.json["version"]]
    assert len(list((tmp_path / "workspace" / "runs").glob("tune-bank-*/run.json"))) == 3
    alone = bank(*arguments, "--fresh", "--json").json

    def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in report["search"]]

    assert rows(done.json) == rows(alone) and len(rows(alone)) == 3
    assert done.json["version"] == alone["version"]


def _together(tmp_path: Path, *arguments: object) -> Any:
    """The JSON of the same command in two processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", sys.executable, "-c")
    program = ("from appliance.cli.main import main; main()", "--workspace", str(tmp_path / "workspace"))
    done = subprocess.run([sys.executable, *launcher, *program, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_two_processes_make_one_version(bank: Any, tmp_path: Path) -> None:
    config = _config(tmp_path / "b.toml", "epochs = 2\nbatch_size = 4\ndropout = 0.0\nrank = 4\n")
    arguments = ("tune", "--domain", "bank", "--dataset", "fees", "--config", str(config), "--json")
    together = _together(tmp_path, *arguments)
    assert [row["version"] for row in bank("adapter", "list", "--json").json] == [together["version"]]
    alone = bank(*arguments).json
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-4)
    assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)


def test_two_processes_train_stage_after_stage(bank: Any, tmp_path: Path) -> None:
    rows = []
    for number in range(16):
        question, answer = (text.format(n=number) for text in TOPICS[number % 2])
        rows.append(
            {
                "id": f"p{number}",
                "question": question,
                "chosen": answer,
                "rejected": "我不知道。",
                "split": "dev" if number > 11 else "train",
            }
        )
    (tmp_path / "better.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert bank("dataset", "add", tmp_path / "better.jsonl", "--domain", "bank").code == 0
    common = "epochs = 2\nbatch_size = 4\ndropout = 0.0\nrank = 4\n"
    stages = '[[stages]]\nname = "facts"\ndataset = "fees"\n\n[[stages]]\nname = "taste"\nmethod = "dpo"\ndataset = "better"\n'
    arguments = ("tune", "--domain", "bank", "--config", _config(tmp_path / "c.toml", f"{common}\n{stages}"), "--json")
    together = _together(tmp_path, *arguments)
    versions = bank("adapter", "list", "--json").json
    assert [row["version"] for row in versions] == [stage["version"] for stage in together["stages"]] and len(versions) == 2
    # Both stages are there, and one process says so.
    assert [stage["trained_before"] for stage in _together(tmp_path, *arguments)["stages"]] == [True, True]
    alone = bank(*arguments, "--fresh").json
    for one, two in zip(alone["stages"], together["stages"], strict=True):
        assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
