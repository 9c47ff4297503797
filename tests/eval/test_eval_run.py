"""Runs: concurrency, resuming after interruption, damage, summaries, comparison."""

import asyncio
import json
from pathlib import Path

import pytest

from eval.report import compare, compare_json, compare_table, table
from eval.run import RunResult, kept, load, run, stands
from eval.summary import oracle, summarise
from eval.types import EvalError, Item, Outcome

ITEMS = [
    Item("en-1", "How much is the fee?", "€4.90 a month", ("fees.md",)),
    Item("zh-1", "处方最多几天？", "不超过7日用量", ("处方.md",), lang="zh", history=(("user", "你好"), ("assistant", "您好"))),
    Item("en-2", "Who founded it?", answerable=False),
]


class Arms:
    """Answers by rule; counts what it was asked and how much of it at once."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.now = self.most = 0

    async def __call__(self, item: Item, arm: str) -> Outcome:
        self.asked.append((item.id, arm))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        if arm == "hybrid":
            return Outcome("hybrid", error="unavailable: no adapter for this domain")
        if arm == "refuse" or (arm == "auto" and not item.answerable):
            return Outcome("refuse", "无法回答", refused=True, latency_ms=1, tokens=0)
        used = "quote" if arm in ("quote", "auto") else arm
        text = item.answer or "made up" if used == "quote" else "nothing useful"
        return Outcome(used, text, citations=item.doc_ids, retrieved=item.doc_ids, latency_ms=10, first_token_ms=5, tokens=3)


def ran(folder: Path, arms: list[str], items: list[Item] = ITEMS, ask: Arms | None = None, **rest: object) -> RunResult:
    return asyncio.run(run(items, arms, ask or Arms(), folder, **rest))  # type: ignore[arg-type]


def test_every_arm_over_every_item(tmp_path):
    ask, seen = Arms(), []
    result = ran(tmp_path, ["quote", "rag", "refuse", "hybrid", "auto"], ask=ask, concurrency=4, progress=lambda *now: seen.append(now))
    assert len(set(ask.asked)) == len(ask.asked) == 15
    assert ask.most == 4
    assert seen == [(number, 15) for number in range(1, 16)]
    summary = result.summary
    assert summary["n"] == 3
    assert set(summary["arms"]) == {"quote", "rag", "refuse"}
    assert summary["unavailable"] == {"hybrid": "unavailable: no adapter for this domain"}
    assert summary["arms"]["quote"]["utility"] == pytest.approx(0.5)
    assert summary["arms"]["rag"]["utility"] == pytest.approx(-0.5)
    assert summary["arms"]["refuse"]["utility"] == pytest.approx(1 / 3)
    assert summary["routed"]["utility"] == summary["oracle"]["utility"] == 1
    assert summary["oracle"]["mix"] == summary["routed"]["mix"] == {"quote": pytest.approx(2 / 3), "refuse": pytest.approx(1 / 3)}
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == summary
    stored = load(tmp_path)
    assert stored.items == tuple(ITEMS) and stored.outcomes == result.outcomes and stored.summary == summary


def test_a_finished_run_asks_nothing_again(tmp_path):
    first = ran(tmp_path, ["quote", "rag"])
    ask = Arms()
    again = ran(tmp_path, ["quote", "rag"], ask=ask)
    assert ask.asked == [] and again.summary == first.summary
    wider = ran(tmp_path, ["quote", "rag", "refuse"], ask=ask)
    assert {arm for _, arm in ask.asked} == {"refuse"} and set(wider.summary["arms"]) == {"quote", "rag", "refuse"}


def test_a_changed_question_is_asked_again(tmp_path):
    ran(tmp_path, ["quote"])
    ask = Arms()
    changed = [ITEMS[0], Item("zh-1", "处方最多几天？", "不超过3日用量", lang="zh")]
    result = ran(tmp_path, ["quote"], changed, ask=ask)
    assert ask.asked == [("zh-1", "quote")]
    assert result.summary["n"] == 2 and result.outcomes["zh-1", "quote"].answer == "不超过3日用量"


@pytest.mark.parametrize("tail", ['{"id": "en-1", "asked": "ra', '{"id": "zh-1", "outcome": "处'.encode()[:-1], b"\xff"])
def test_a_torn_last_line_is_asked_again(tmp_path, tail):
    ran(tmp_path, ["quote"])
    with (tmp_path / "outputs.jsonl").open("ab") as file:
        file.write(tail.encode() if isinstance(tail, str) else tail)
    assert len(load(tmp_path).outcomes) == 3
    ask = Arms()
    result = ran(tmp_path, ["quote", "refuse"], ask=ask)
    assert len(ask.asked) == 3 and len(result.outcomes) == 6
    assert all(json.loads(line) for line in (tmp_path / "outputs.jsonl").read_text("utf-8").splitlines())


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    class Failing(Arms):
        async def __call__(self, item: Item, arm: str) -> Outcome:
            if len(self.asked) == 4:
                raise RuntimeError("power cut")
            return await super().__call__(item, arm)

    with pytest.raises(RuntimeError, match="power cut"):
        ran(tmp_path, ["quote", "rag"], ask=Failing(), concurrency=2)
    partial = load(tmp_path)
    assert partial.summary is None and len(partial.outcomes) == 4
    ask = Arms()
    assert ran(tmp_path, ["quote", "rag"], ask=ask).summary["n"] == 3
    assert len(ask.asked) == 2


def test_cancelling_keeps_what_came_in(tmp_path):
    async def stopped() -> None:
        third = asyncio.Event()

        class Slow(Arms):
            async def __call__(self, item: Item, arm: str) -> Outcome:
                if len(self.asked) == 2:
                    third.set()
                    await asyncio.sleep(60)
                return await super().__call__(item, arm)

        task = asyncio.create_task(run(ITEMS, ["quote", "rag"], Slow(), tmp_path, concurrency=1))
        await third.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    assert len(load(tmp_path).outcomes) == 2


def test_failures_are_counted_and_tried_again(tmp_path):
    class Down(Arms):
        async def __call__(self, item: Item, arm: str) -> Outcome:
            return Outcome(arm, error="the engine stopped")

    first = ran(tmp_path, ["rag"], ask=Down())
    assert first.summary["arms"]["rag"]["errors"] == 3 and first.summary["arms"]["rag"]["utility"] == 0
    assert first.summary["errors"] == 3 and first.summary["first_error"] == "the engine stopped"
    lines = table(first.summary).splitlines()
    assert "errors" in lines[0].split() and lines[-1] == "3 answers failed, the first with: the engine stopped"
    ask = Arms()
    assert ran(tmp_path, ["rag"], ask=ask).summary["arms"]["rag"]["errors"] == 0
    assert len(ask.asked) == 3


def test_damage_in_the_middle_names_file_and_line(tmp_path):
    ran(tmp_path, ["quote"])
    path = tmp_path / "outputs.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    for bad in ("not json\n", "[]\n", '{"id": "en-1"}\n', lines[1].replace('"citations": [', '"citations": [1, ')):
        path.write_text(lines[0] + bad + lines[2], "utf-8")
        with pytest.raises(EvalError, match=r"outputs\.jsonl, line 2"):
            load(tmp_path)
    path.write_text("".join(lines), "utf-8")
    (tmp_path / "summary.json").write_text("{", "utf-8")
    with pytest.raises(EvalError, match=r"summary\.json"):
        load(tmp_path)


def test_bad_requests(tmp_path):
    with pytest.raises(EvalError, match="no questions"):
        ran(tmp_path, ["rag"], [])
    with pytest.raises(EvalError, match="no arms"):
        ran(tmp_path, [])
    with pytest.raises(EvalError, match="'en-1' occurs more than once"):
        ran(tmp_path, ["rag"], [ITEMS[0], ITEMS[0]])
    with pytest.raises(EvalError, match="concurrency: 0"):
        ran(tmp_path, ["rag"], concurrency=0)
    with pytest.raises(EvalError, match="no evaluation run"):
        load(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_oracle_breaks_ties_by_tokens_and_skips_what_cannot_be_scored():
    item, unknown = ITEMS[0], Item("u", "Where?", "")
    outcomes = {
        ("en-1", "rag"): Outcome("rag", item.answer, tokens=90),
        ("en-1", "quote"): Outcome("quote", item.answer, tokens=0),
        ("en-1", "auto"): Outcome("rag", item.answer, tokens=-1),
        ("u", "rag"): Outcome("rag", "there"),
    }
    assert [(one.id, outcome.arm) for one, outcome in oracle([item, unknown], outcomes)] == [("en-1", "quote")]
    # Refusing is a choice though it was not asked, a failure and an expert's own answer are none.
    ghost = ITEMS[2]
    outcomes = {
        ("en-1", "rag"): Outcome("rag", "something else", tokens=90),
        ("en-1", "base"): Outcome("base", error="the engine is down"),
        ("en-1", "verified"): Outcome("verified", item.answer),
        ("en-2", "rag"): Outcome("rag", "made up", tokens=90),
    }
    summary = summarise([item, ghost], outcomes)
    assert summary["oracle"]["mix"] == {"refuse": 1.0} and summary["oracle"]["utility"] == 0.5 and summary["oracle"]["errors"] == 0
    assert oracle([item], {("en-1", "base"): outcomes["en-1", "base"], ("en-1", "auto"): Outcome("refuse", refused=True)}) == []
    nothing = {"n": 0, "arms": {}, "routed": {}, "oracle": {}, "unavailable": {}, "errors": 0, "first_error": None}
    assert summarise([], {}) == nothing


def test_table(tmp_path):
    text = table(ran(tmp_path, ["quote", "refuse", "hybrid", "auto"]).summary)
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["arm", "n", "utility"]
    assert [line.split()[0] for line in lines[2:6]] == ["quote", "refuse", "routed", "oracle"]
    assert "-" in lines[3].split()
    assert "oracle: quote 67%, refuse 33%" in lines
    assert lines[-1] == "not run: hybrid (unavailable: no adapter for this domain)"


def test_comparison_of_two_runs(tmp_path):
    items = [Item(str(number), f"question {number}", "one two three") for number in range(30)]

    class Better(Arms):
        async def __call__(self, item: Item, arm: str) -> Outcome:
            return Outcome(arm, "one two three")

    first = ran(tmp_path / "a", ["rag", "quote"], items)
    second = ran(tmp_path / "b", ["rag", "quote"], items, ask=Better())
    found = {(entry.arm, entry.metric): entry for entry in compare(first, second)}
    assert found["rag", "utility"].verdict == "higher" and found["rag", "utility"].interval == (1.5, 1.5, 1.5)
    assert found["quote", "utility"].verdict == "no difference shown"
    assert "no difference shown" in compare_table(list(found.values()))
    assert json.loads(json.dumps(compare_json(list(found.values()))))[0]["n"] == 30
    with pytest.raises(EvalError, match="in common"):
        compare(first, ran(tmp_path / "c", ["rag"]))


def test_outcomes_of_other_runs_are_taken_over_by_key(tmp_path):
    def key(item: Item, arm: str) -> str | None:
        return None if arm == "rag" else f"{item.question} {arm}"

    first = ran(tmp_path / "a", ["quote", "rag"], key=key)
    assert first.summary["reused"] == 0
    known = dict(kept(tmp_path / "a"))
    assert len(known) == 3  # what has no key is not kept for others
    ask, seen = Arms(), []
    changed = [ITEMS[0], Item("zh-1", "处方最多几周？", "不超过一周", lang="zh"), ITEMS[2]]
    second = ran(tmp_path / "b", ["quote", "rag"], changed, ask=ask, key=key, known=known, progress=lambda *now: seen.append(now))
    assert sorted(ask.asked) == [("en-1", "rag"), ("en-2", "rag"), ("zh-1", "quote"), ("zh-1", "rag")]
    assert second.summary["reused"] == 2 and seen[0] == (2, 6) and seen[-1] == (6, 6)
    assert second.outcomes["en-1", "quote"] == first.outcomes["en-1", "quote"]
    assert dict(kept(tmp_path / "b")).keys() == {key(item, "quote") for item in changed}
    again = ran(tmp_path / "b", ["quote", "rag"], changed, ask=ask, key=key)
    assert again.summary == second.summary and len(ask.asked) == 4


def test_failures_are_not_taken_over(tmp_path):
    class Down(Arms):
        async def __call__(self, item: Item, arm: str) -> Outcome:
            return Outcome(arm, error="unavailable: no engine" if item.answerable else "it stopped")

    ran(tmp_path, ["rag"], ask=Down(), key=lambda item, arm: f"{item.id}{arm}")
    assert dict(kept(tmp_path)) == {} and dict(kept(tmp_path / "nowhere")) == {}


def test_what_was_stored_in_another_state_is_asked_again(tmp_path):
    def keys(base: str):
        return lambda item, arm: f"{item.question} {arm} {base if arm == 'rag' else ''}"

    ran(tmp_path, ["quote", "rag"], key=keys("old"))
    assert stands(tmp_path, ITEMS, ["quote", "rag"], keys("old")) and not stands(tmp_path, ITEMS, ["quote", "rag"], keys("new"))
    ask = Arms()
    again = ran(tmp_path, ["quote", "rag"], ask=ask, key=keys("new"))
    assert sorted(ask.asked) == [(item, "rag") for item in ("en-1", "en-2", "zh-1")] and again.outcomes == load(tmp_path).outcomes
    # Back in the first state the newest lines are of the other one.
    ran(tmp_path, ["quote", "rag"], ask=ask, key=keys("old"))
    assert len(ask.asked) == 6
    # Whoever knows no keys takes what is there, and what was kept without one.
    ran(tmp_path / "plain", ["rag"])
    for folder, arms in ((tmp_path, ["quote", "rag"]), (tmp_path / "plain", ["rag"])):
        ran(folder, arms, ask=ask)
    assert len(ask.asked) == 6
