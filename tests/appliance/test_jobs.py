"""Jobs: their rows, their processes, and what a killed worker leaves to the next one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from appliance.admin.audit import find
from appliance.admin.uploads import Uploads
from appliance.cli.main import run
from appliance.errors import DatabaseFailed, UsageError
from appliance.jobs.jobs import ATTEMPTS, Job, Jobs, folder_of
from appliance.jobs.kinds import KINDS, kept
from appliance.jobs.runner import Runner
from appliance.processes import started
from appliance.workspace import Workspace

CHECK = {"dataset": "问答"}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.create(tmp_path / "workspace") as workspace:
        yield workspace


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of the command line."""

    def put(text: str) -> None:
        file = tmp_path / "program"
        file.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
        file.chmod(0o755)
        monkeypatch.setattr("appliance.jobs.runner.sys", SimpleNamespace(executable=str(file)))

    return put


def until(condition: Callable[[], Any], runner: Runner | None = None) -> None:
    for _ in range(3000):
        if runner is not None:
            runner.step()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 30 seconds")


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def work_off(runner: Runner) -> None:
    until(lambda: not runner.step())


def test_a_real_command_in_a_process_of_its_own(workspace: Workspace) -> None:
    """A data set in Chinese; what is kept holds no question."""
    uploads, jobs = Uploads(workspace), Jobs(workspace.db)
    rows = [{"question": f"{n}号药柜的钥匙由谁保管？", "answer": f"由护士长{n}保管。"} for n in range(3)]
    with uploads.receive("问答.jsonl", "dataset") as incoming:
        incoming.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        upload = uploads.release(incoming, "k1")
    path = str(uploads.place(upload)[1])
    given = {"path": path, "name": "问答", "domain": "medical", "mapping": None, "task": None, "skip_bad": False}
    workspace.db.actor = "key:k1"
    job = jobs.add("dataset-add", given, "medical")
    uploads.take([upload], job.id)
    ended: list[Job] = []
    work_off(Runner(workspace, ended.append))
    found = jobs.get(job.id)
    assert (found.state, found.attempt, found.error) == ("done", 1, None), found.log
    assert found.result["name"] == "问答" and found.result["counts"]["pairs"] == 3
    assert "药柜" not in json.dumps(found.to_json(), ensure_ascii=False) and path not in json.dumps(found.to_json())
    assert [one.id for one in ended] == [job.id] and uploads.all() == [] and not Path(path).exists()
    assert not folder_of(workspace.root, job.id).exists()
    # Done in the name of who asked.
    assert [entry["actor"] for entry in find(workspace.db, "dataset.add")] == ["key:k1"]
    assert [entry["action"] for entry in reversed(find(workspace.db, "job"))] == ["job.add", "job.end"]


def test_progress_log_result_and_outcome(workspace: Workspace, program: Callable[[str], None]) -> None:
    program(
        """echo 'reading 药品.md' >&2
echo '{"event": "progress", "what": "检查", "done": 2, "total": 5, "seconds_left": 3}' >&2
while [ ! -e go ]; do sleep 0.02; done
echo '{"name": "问答", "reasons": {"duplicates": 1}, "leakage": [{"question": "谁？"}]}'
exit 4"""
    )
    jobs = Jobs(workspace.db)
    job = jobs.add("dataset-check", CHECK)
    runner = Runner(workspace, lambda job: None)
    until(lambda: jobs.get(job.id).progress is not None, runner)
    found = jobs.get(job.id)
    assert found.state == "running" and found.log == "reading 药品.md\n"
    assert found.progress == {"what": "检查", "done": 2, "total": 5, "seconds_left": 3}
    (workspace.root / "go").touch()
    work_off(runner)
    found = jobs.get(job.id)
    assert (found.state, found.result) == ("missed", {"name": "问答", "reasons": {"duplicates": 1}})


@pytest.mark.parametrize(
    ("text", "state", "error"),
    [
        ("exit 3", "partly", None),
        ("echo 'error: 没有这个数据集' >&2; exit 2", "failed", "没有这个数据集"),
        ('echo "error: $PWD/uploads/upl-1/药.md: empty" >&2; exit 2', "failed", "uploads/upl-1/药.md: empty"),
        ("exit 1", "failed", "it failed; see the log"),
        ("kill -9 $$", "failed", "its process was ended by SIGKILL"),
        ("echo '{cut off'", "done", None),
    ],
)
def test_what_becomes_of_exit_codes(workspace: Workspace, program: Callable[[str], None], text: str, state: str, error: str | None) -> None:
    program(text)
    jobs = Jobs(workspace.db)
    job = jobs.add("dataset-check", CHECK)
    work_off(Runner(workspace, lambda job: None))
    assert (jobs.get(job.id).state, jobs.get(job.id).error) == (state, error)


def test_cancelling_ends_the_whole_process_group(workspace: Workspace, program: Callable[[str], None]) -> None:
    program("sleep 300 & echo $! > child; wait")
    jobs = Jobs(workspace.db)
    first = jobs.add("tune", {"domain": "medical"} | dict.fromkeys(("dataset", "method", "settings", "promote")), "medical")
    second = jobs.add("retrain", {"domain": "medical"}, "medical")
    runner = Runner(workspace, lambda job: None)
    child = workspace.root / "child"
    until(lambda: child.exists() and child.read_text(), runner)
    # One at a time for each resource.
    assert [job.state for job in (jobs.get(first.id), jobs.get(second.id))] == ["running", "queued"]
    assert jobs.cancel(second.id).state == "cancelled"
    assert jobs.cancel(first.id).state == "running"
    work_off(runner)
    assert jobs.get(first.id).state == "cancelled"
    until(lambda: not lives(int(child.read_text())))
    with pytest.raises(UsageError, match="has ended: cancelled"):
        jobs.cancel(first.id)


def test_one_that_does_not_listen_is_killed(workspace: Workspace, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.jobs.runner._GRACE", 0.2)
    monkeypatch.setattr("appliance.jobs.runner._WRITE", 0.1)
    program("trap '' TERM; touch on; while true; do sleep 0.05; done")
    jobs = Jobs(workspace.db)
    job = jobs.add("dataset-check", CHECK)
    runner = Runner(workspace, lambda job: None)
    until((workspace.root / "on").exists, runner)
    jobs.cancel(job.id)
    work_off(runner)
    assert jobs.get(job.id).state == "cancelled"


def test_an_ended_worker_leaves_its_jobs_to_the_next(workspace: Workspace, program: Callable[[str], None]) -> None:
    program("touch on; sleep 300")
    jobs = Jobs(workspace.db)
    job = jobs.add("dataset-check", CHECK)
    runner = Runner(workspace, lambda job: None)
    until((workspace.root / "on").exists, runner)
    runner.close()
    waiting = jobs.get(job.id)
    assert (waiting.state, waiting.attempt) == ("queued", 0) and "taken up again" in waiting.log
    # What it printed may hold text, and nobody would remove it if the job were cancelled now.
    assert not folder_of(workspace.root, job.id).exists()
    program("echo '{}'")
    work_off(Runner(workspace, lambda job: None))
    assert jobs.get(job.id).state == "done"


def test_a_killed_workers_jobs_are_taken_up_again_but_not_for_ever(workspace: Workspace) -> None:
    jobs = Jobs(workspace.db)
    job = jobs.add("dataset-check", CHECK)
    left = subprocess.Popen(["sleep", "300"], start_new_session=True)
    for attempt in range(1, ATTEMPTS + 1):
        # As the runner notes them; its worker then is gone.
        assert jobs.begin(job.id, f"{left.pid}:{started(left.pid)}" if attempt == 1 else "1:0.00")
        Runner(workspace, lambda job: None)
        expected = "queued" if attempt < ATTEMPTS else "failed"
        assert (jobs.get(job.id).state, jobs.get(job.id).attempt) == (expected, attempt)
    assert left.wait(10) != 0
    assert jobs.get(job.id).error == f"the worker ended while it ran, {ATTEMPTS} times"


def test_it_ends_with_its_worker(workspace: Workspace, tmp_path: Path) -> None:
    """The process of a job gets SIGTERM when the one that started it is killed."""
    (tmp_path / "parent.py").write_text(
        "import os, subprocess, sys, time\n"
        "process = subprocess.Popen([sys.executable, 'child.py', str(os.getpid())])\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    (tmp_path / "child.py").write_text(
        "import sys, time\n"
        "from appliance.jobs.child import end_with_parent\n"
        "end_with_parent(int(sys.argv[1]))\n"
        "open('on', 'w').close()\n"
        "time.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "parent.py"], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert parent.stdout is not None
    started = int(parent.stdout.readline())
    until((tmp_path / "on").exists)
    parent.kill()
    parent.communicate()
    until(lambda: not lives(started))


def test_a_job_waits_for_a_lock_that_somebody_else_holds(
    workspace: Workspace, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.jobs.runner._AGAIN", 0.0)
    program("echo '{}'")
    jobs = Jobs(workspace.db)
    job = jobs.add("index-compact", {})
    runner = Runner(workspace, lambda job: None)
    with workspace.db.lock("index"):
        assert runner.step() and jobs.get(job.id).state == "queued"
    work_off(runner)
    assert jobs.get(job.id).state == "done"


def test_a_job_waits_too_where_the_lock_is_taken_before_its_command_comes_to_it(
    workspace: Workspace, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.jobs.runner._AGAIN", 0.0)
    program("while [ ! -e taken ]; do sleep 0.02; done; exit 1")
    jobs = Jobs(workspace.db)
    job = jobs.add("index-compact", {})
    runner = Runner(workspace, lambda job: None)
    runner.step()
    assert jobs.get(job.id).state == "running"
    with workspace.db.lock("index"):
        (workspace.root / "taken").touch()
        until(lambda: jobs.get(job.id).state == "queued", runner)
    program("echo '{}'")
    work_off(runner)
    assert (jobs.get(job.id).state, jobs.get(job.id).attempt) == ("done", 2)
    assert "somebody else was writing" in jobs.get(job.id).log


def test_an_end_that_cannot_be_noted_is_noted_later(
    workspace: Workspace, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("echo '{}'")
    jobs = Jobs(workspace.db)
    job = jobs.add("index-compact", {})
    runner = Runner(workspace, lambda job: None)
    runner.step()

    def broken(*_: object, **__: object) -> None:
        raise DatabaseFailed("the database is locked")

    with monkeypatch.context() as down:
        down.setattr(runner._jobs, "finish", broken)
        with pytest.raises(DatabaseFailed):
            work_off(runner)
    assert jobs.get(job.id).state == "running"
    work_off(runner)
    assert jobs.get(job.id).state == "done"


def test_a_kind_of_another_version_fails_alone(
    workspace: Workspace, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("echo '{}'")
    jobs = Jobs(workspace.db)
    with monkeypatch.context() as newer:
        newer.setattr("appliance.jobs.jobs.KINDS", {**KINDS, "dance": KINDS["index-compact"]})
        unknown = jobs.add("dance", {})
    known = jobs.add("index-compact", {})
    work_off(Runner(workspace, lambda job: None))
    assert (jobs.get(unknown.id).state, jobs.get(known.id).state) == ("failed", "done")
    assert jobs.get(unknown.id).error == "this version knows no jobs of the kind 'dance'"


def test_files_of_the_workspace_are_no_modules(workspace: Workspace) -> None:
    """A team's own script beside appliance.toml is not imported in the place of a library."""
    (workspace.root / "tomllib.py").write_text("raise SystemExit('the wrong one')\n", "utf-8")
    jobs = Jobs(workspace.db)
    job = jobs.add("dataset-check", {"dataset": "nothing"})
    work_off(Runner(workspace, lambda job: None))
    assert "no data set 'nothing'" in (jobs.get(job.id).error or ""), jobs.get(job.id).log


def test_no_argument_is_taken_for_an_option(tmp_path: Path) -> None:
    made = KINDS["document-remove"].command({"domain": "medical", "documents": ["--help", "药.md"]}, tmp_path)
    assert made[made.index("--") :] == ["--", "--help", "药.md"]
    ingest = KINDS["ingest"].command({"domain": "medical", "labels": ["-w", "医务"], "archives": True, "paths": ["x"]}, tmp_path)
    assert ingest == ["ingest", "--json", "--domain=medical", "--label=-w", "--label=医务", "--archives", "--", "x"]
    tune = {"domain": "medical", "dataset": "d", "method": None, "settings": {"rank": 4, "target": ["q_proj"]}, "promote": True}
    command = KINDS["tune"].command(tune, tmp_path)
    assert json.loads((tmp_path / "settings.yaml").read_text("utf-8")) == tune["settings"] and command[-1] == "--promote"
    forced = KINDS["adapter-promote"].command({"version": "medical@1", "why": "因为"}, tmp_path)
    assert forced == ["adapter", "promote", "--json", "--force", "--why=因为", "--", "medical@1"]
    assert kept("tune", {"version": "medical@1", "path": "/srv/workspace/adapters/medical@1"}) == {"version": "medical@1"}
    assert len(kept("document-remove", {"adapters": list(range(100))})["adapters"]) == 50


def test_on_the_command_line(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = Jobs(workspace.db)
    job = jobs.add("index-rebuild", {})
    base = ["--workspace", str(workspace.root), "job"]
    assert run([*base, "list", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [job.id]
    uploads = Uploads(workspace)
    with uploads.receive("a.md", "documents") as incoming:
        incoming.write("# 停车\n".encode())
        uploads.take([uploads.release(incoming, "k1")], job.id)
    assert run([*base, "cancel", job.id]) == 0 and "cancelled" in capsys.readouterr().out
    assert uploads.all() == []
    assert run([*base, "show", job.id]) == 0 and "index-rebuild" in capsys.readouterr().out
    assert run([*base, "list", "--state", "queued", "--json"]) == 0 and json.loads(capsys.readouterr().out) == []
    assert run([*base, "show", "nothing"]) == 2
    with pytest.raises(UsageError, match="unknown kind"):
        jobs.add("rm -rf", {})
