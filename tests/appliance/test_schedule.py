"""The schedule and the worker: a clock of the test's own, real documents, a small real index."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.cli import main as cli
from appliance.config import load
from appliance.errors import UsageError
from appliance.jobs.counts import JobCounts
from appliance.jobs.schedule import Plan, Schedule, plans
from appliance.jobs.worker import work
from appliance.knowledge import documents
from appliance.knowledge.index_status import index_status
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.store.locks import Locked
from appliance.workspace import Workspace
from retrieval.types import DocumentKey, Scope
from tests.retrieval.retrieval_support import HashingEmbedder, write

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """The machine's zone, which the test may change."""

    def zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    zone("UTC")
    yield zone
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "ward" / "visiting.md", "# Visiting\n\nVisitors may come from 14:00 to 20:00.\n")
    write(tmp_path / "ward" / "zh" / "fees.md", "# 收费\n\n普通门诊挂号费为20元。\n")
    write(tmp_path / "law" / "合同.md", "# 合同\n\n乙方逾期交货的，按日支付违约金。\n")
    return tmp_path


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[[str], Schedule]]:
    """Opens the workspace with a configuration; the clock is `schedule.clock`."""
    root = folder / "workspace"
    Workspace.create(root).close()
    made: list[Workspace] = []

    def begin(text: str) -> Schedule:
        (root / "appliance.toml").write_text(text, "utf-8")
        workspace = Workspace(root)
        made.append(workspace)
        knowledge = Knowledge(workspace, ModelStore.default(), HashingEmbedder())
        return Schedule(knowledge, Clock())

    yield begin
    for workspace in made:
        workspace.close()


WARD = '[domains.medical]\nsources = ["../ward"]\nrefresh = "0 3 * * *"\n'
LAW = '[domains.legal]\nsources = ["../law"]\nrefresh = "0 3 * * *"\n'


def look(schedule: Schedule, stopped: Callable[[], bool] = lambda: False) -> list[dict[str, object]]:
    """One look of the worker at what is due; the outcomes."""
    outcomes: list[dict[str, object]] = []
    database = schedule.knowledge.workspace.db
    work(
        database,
        [schedule.due],
        once=True,
        stopped=stopped,
        wait=lambda seconds: None,
        report=lambda name, outcome: outcomes.append(outcome),
        say=lambda text: outcomes.append({"said": text}),
        clock=schedule._clock,
    )
    return outcomes


def found(schedule: Schedule, query: str, labels: frozenset[str] = frozenset()) -> list[str]:
    return [passage.document.id for passage in schedule.knowledge.search(query, Scope(None, labels)).passages]


def test_the_metrics_tell_what_came_of_the_last_run(opened: Callable[[str], Schedule], folder: Path) -> None:
    schedule = opened(WARD + LAW)
    counts = JobCounts(schedule.knowledge.workspace.db, ["medical", "legal"])
    counts.look()
    assert counts.refreshes() == {}
    (folder / "law").rename(folder / "away")
    look(schedule)
    counts.look()
    assert counts.refreshes() == {"medical": "done", "legal": "failed"}
    (folder / "away").rename(folder / "law")
    schedule._clock.now += timedelta(days=1)
    look(schedule)
    counts.look()
    assert counts.refreshes() == {"medical": "done", "legal": "done"}


def test_what_is_due_is_done_once_and_again_at_the_next_time(opened: Callable[[str], Schedule], folder: Path) -> None:
    schedule = opened(WARD + LAW)
    clock = schedule._clock
    assert [outcome["outcome"] for outcome in look(schedule)] == ["done", "done"]
    assert "visiting.md" in found(schedule, "visitors") and "合同.md" in found(schedule, "逾期交货")
    assert look(schedule) == []
    clock.now = NOW + timedelta(hours=14)
    assert look(schedule) == []
    write(folder / "ward" / "zh" / "fees.md", "# 收费\n\n普通门诊挂号费为35元。\n")
    # Several missed times are one run.
    clock.now = NOW + timedelta(days=5)
    refreshed = look(schedule)
    assert [(outcome["domain"], outcome["updated"], outcome["unchanged"]) for outcome in refreshed] == [("legal", 0, 1), ("medical", 1, 1)]
    assert look(schedule) == []
    assert "35元" in schedule.knowledge.search("挂号费", Scope()).passages[0].chunk.text


def test_pruning_and_labels(opened: Callable[[str], Schedule], folder: Path) -> None:
    schedule = opened(WARD + 'prune = true\nlabels = ["staff"]\n')
    look(schedule)
    assert found(schedule, "visitors") == [] and "visiting.md" in found(schedule, "visitors", frozenset({"staff"}))
    (folder / "ward" / "visiting.md").unlink()
    schedule._clock.now += timedelta(days=1)
    assert look(schedule)[0]["removed"] == 1
    assert "visiting.md" not in found(schedule, "visitors", frozenset({"staff"}))
    write(folder / "ward" / "visiting.md", "# Visiting\n\nVisitors may come from 14:00 to 20:00.\n")
    schedule._clock.now += timedelta(days=1)
    assert [skipped["path"] for skipped in look(schedule)[0]["skipped"]] == ["visiting.md"]  # type: ignore[attr-defined]


def test_refreshes_do_not_pile_up(opened: Callable[[str], Schedule], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = opened("[retrieval]\nkeep_generations = 2\n" + WARD)
    look(schedule)
    for day in range(1, 4):
        write(folder / "ward" / "zh" / "fees.md", f"# 收费\n\n普通门诊挂号费为{day}00元。\n")
        schedule._clock.now += timedelta(days=1)
        assert look(schedule)[0]["generation"] == day + 1
    root = str(schedule.knowledge.workspace.root)
    assert index_status(schedule.knowledge)["generations"] == [3, 4]
    assert cli.run(["--workspace", root, "index", "rollback", "1"]) == 1
    assert "no generation 1 to roll back to; kept are 3, 4 ([retrieval] keep_generations" in capsys.readouterr().err
    assert cli.run(["--workspace", root, "index", "rollback", "3"]) == 0
    assert "200元" in schedule.knowledge.search("挂号费", Scope()).passages[0].chunk.text
    with pytest.raises(UsageError, match=r"retrieval\.keep_generations"):
        load(folder / "workspace" / "appliance.toml", {"retrieval.keep_generations": "1"}, {})


def test_what_was_removed_does_not_come_back_by_itself(
    opened: Callable[[str], Schedule], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        folder / "ward" / "rows.jsonl",
        '{"id": "行一", "text": "会议室在三楼。"}\n{"id": "row-2", "text": "The lift is behind the desk."}\n',
    )
    schedule = opened(WARD + "prune = true\n")
    assert look(schedule)[0]["added"] == 4
    knowledge = schedule.knowledge
    keys = [DocumentKey("medical", id) for id in ("zh/fees.md", "行一", "visiting.md")]
    assert documents.remove(knowledge, keys)["still_there"] == ["visiting.md", "zh/fees.md"]

    schedule._clock.now += timedelta(days=1)
    (outcome,) = look(schedule)
    assert (outcome["outcome"], outcome["added"], outcome["unchanged"]) == ("done", 0, 1)
    reason = "was removed; ingest it by hand to bring it back"
    paths = ["rows.jsonl: document '行一'", "visiting.md", "zh/fees.md"]
    assert outcome["skipped"] == [{"path": path, "reason": reason} for path in paths]
    for query in ("挂号费", "会议室", "visitors"):
        assert found(schedule, query) in ([], ["row-2"])
    assert cli.run(["--workspace", str(knowledge.workspace.root), "index", "status"]) == 0
    assert f"  skipped: zh/fees.md: {reason}" in capsys.readouterr().out

    # Nor does a file that had changed before the removal, unread.
    write(folder / "ward" / "visiting.md", "# Visiting\n\nVisitors may come on Sundays.\n")
    os.utime(folder / "ward" / "visiting.md", (1, 1))
    schedule._clock.now += timedelta(days=1)
    assert [skipped["path"] for skipped in look(schedule)[0]["skipped"]] == paths  # type: ignore[attr-defined]

    # Another text under the same name is no removed one, and an ingest by hand is somebody's wish.
    write(folder / "ward" / "visiting.md", "# Visiting\n\nVisitors may come at any time.\n")
    schedule._clock.now += timedelta(days=1)
    assert look(schedule)[0]["added"] == 1
    write(folder / "ward" / "visiting.md", "# Visiting\n\nVisitors may come from 14:00 to 20:00.\n")
    schedule._clock.now += timedelta(days=1)
    (outcome,) = look(schedule)
    assert (outcome["updated"], outcome["removed"], len(outcome["skipped"])) == (0, 0, 3)  # type: ignore[arg-type]
    assert knowledge.ingest([folder / "ward"], domain="medical").added == 2
    assert set(found(schedule, "挂号费 visitors 会议室")) == {"zh/fees.md", "行一", "visiting.md", "row-2"}
    schedule._clock.now += timedelta(days=1)
    assert look(schedule)[0]["skipped"] == []


def test_a_failing_domain_does_not_stop_the_others(opened: Callable[[str], Schedule], folder: Path) -> None:
    schedule = opened(LAW.replace("../law", "../gone") + WARD)
    failed, done = look(schedule)
    assert failed["outcome"] == "failed" and "[domains.legal] sources" in str(failed["error"]) and "gone" in str(failed["error"])
    assert done["outcome"] == "done"
    status = {row["domain"]: row for row in schedule.status()}
    assert status["legal"]["last"]["outcome"] == "failed" and status["medical"]["last"]["added"] == 2
    assert status["medical"]["next"] == "2026-03-03T03:00:00+00:00"
    # Mended, it works at its next time.
    write(folder / "gone" / "a.md", "# A\n\nSome words.\n")
    schedule._clock.now += timedelta(days=1)
    assert [outcome["outcome"] for outcome in look(schedule)] == ["done", "done"]


def test_a_broken_file_is_a_partial_outcome(opened: Callable[[str], Schedule], folder: Path) -> None:
    (folder / "ward" / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    outcome = look(opened(WARD))[0]
    assert outcome["outcome"] == "partly" and outcome["failed"][0]["path"] == "broken.pdf"  # type: ignore[index]


def test_stopped_in_the_middle_it_goes_on_the_next_time(opened: Callable[[str], Schedule]) -> None:
    schedule = opened(WARD + LAW)
    asked = iter(range(1000))
    assert look(schedule, stopped=lambda: next(asked) > 4) == []
    assert schedule.last("medical") is None
    assert [outcome["outcome"] for outcome in look(schedule)] == ["done", "done"]
    assert look(schedule, stopped=lambda: True) == []


def test_another_writer_is_waited_for(opened: Callable[[str], Schedule]) -> None:
    schedule = opened(WARD)
    database = schedule.knowledge.workspace.db
    with database.lock("index"):
        assert "index is being written" in str(look(schedule)[0]["said"])
    assert schedule.last("medical") is None
    with database.lock("worker"), pytest.raises(Locked, match="worker"):
        look(schedule)
    assert look(schedule)[0]["outcome"] == "done"


def test_a_second_worker_waits_and_takes_over(opened: Callable[[str], Schedule]) -> None:
    schedule = opened(WARD)
    database = schedule.knowledge.workspace.db
    first = database.lock("worker")
    first.__enter__()
    ended = threading.Event()
    said: list[str] = []

    def wait(seconds: float) -> None:
        # The first worker goes while the second one waits; the second ends after its first round.
        if said and schedule.last("medical") is None:
            first.__exit__(None, None, None)
        else:
            ended.set()

    work(
        database,
        [schedule.due],
        once=False,
        stopped=ended.is_set,
        wait=wait,
        report=lambda name, outcome: None,
        say=said.append,
        clock=schedule._clock,
    )
    assert len(said) == 1 and said[0].startswith("waiting: worker is being written by")
    assert schedule.last("medical") is not None


def test_times_are_the_machines_own(utc: Callable[[str], None]) -> None:
    def after(line: str, *moment: int) -> str:
        plan = Plan("medical", (), line, False, frozenset())
        return plan.next_after(datetime(*moment, tzinfo=UTC)).isoformat()  # type: ignore[arg-type]

    utc("Asia/Shanghai")
    assert after("0 3 * * *", 2026, 3, 2, 12) == "2026-03-02T19:00:00+00:00"
    assert after("0 3 * * MON", 2026, 3, 2, 12) == "2026-03-08T19:00:00+00:00"
    utc("Europe/Berlin")
    # 02:30 is skipped on 29 March 2026, and comes twice on 25 October.
    assert after("30 2 * * *", 2026, 3, 28, 12) == "2026-03-29T01:30:00+00:00"
    assert after("30 2 * * *", 2026, 3, 29, 12) == "2026-03-30T00:30:00+00:00"
    assert after("30 2 * * *", 2026, 10, 24, 12) == "2026-10-25T00:30:00+00:00"
    assert after("30 2 * * *", 2026, 10, 25, 0, 30) == "2026-10-26T01:30:00+00:00"
    # In the second of two equal hours no time lies in the past.
    assert after("*/10 * * * *", 2026, 10, 25, 1, 5) == "2026-10-25T02:00:00+00:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sources = ["a"]\nrefresh = "0 3 * *"', "domains.medical.refresh = '0 3 * *': Value error, Wrong number of fields"),
        ('sources = ["a"]\nrefresh = "0 25 * * *"', "domains.medical.refresh = '0 25 * * *': Value error, Bad hour"),
        ('sources = ["a"]\nrefresh = "0 0 30 2 *"', "domains.medical.refresh"),
        ('sources = ["a"]\nrefresh = "0 0 3 * * *"', "write five fields"),
        ('sources = ["a"]\nrefresh = "每天三点"', "domains.medical.refresh = '每天三点'"),
        ('refresh = "0 3 * * *"', "sources is missing beside refresh"),
        ('sources = ["a"]', "refresh is missing beside sources"),
        ('sources = [" "]\nrefresh = "0 3 * * *"', "domains.medical.sources"),
        ('sources = "a"\nrefresh = "0 3 * * *"', "domains.medical.sources"),
        ('sources = ["a"]\nrefresh = "0 3 * * *"\nlabels = [""]', "domains.medical.labels"),
        ('source = ["a"]\nrefresh = "0 3 * * *"', "did you mean 'sources'?"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text(f"[domains.medical]\n{text}\n", "utf-8")
    with pytest.raises(UsageError) as caught:
        load(file, {}, {})
    assert message in str(caught.value) and "domains.medical" in str(caught.value)


def test_a_name_no_domain_can_have_and_paths_from_home(opened: Callable[[str], Schedule], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be a domain's name"):
        opened('[domains."医学"]\nsources = ["../ward"]\nrefresh = "0 3 * * *"\n')
    monkeypatch.setenv("HOME", "/somewhere")
    schedule = opened('[domains.medical]\nsources = ["~/docs", "../ward", "/srv/x"]\nrefresh = "0 3 * * *"\n[domains.legal]\n')
    [plan] = plans(schedule.knowledge.workspace)
    assert [str(source) for source in plan.sources][::2] == ["/somewhere/docs", "/srv/x"] and plan.sources[1].is_dir()
