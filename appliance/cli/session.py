"""What every command shares: the workspace, output as table or JSON, and progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from appliance.workspace import Workspace

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
domain_option = click.option("--domain", "-d", help="The domain, e.g. medical.")


class Session:
    """One run of the command line."""

    def __init__(self, given: Path | None, flags: Mapping[str, str]) -> None:
        self.given = given
        self.flags = flags
        self._workspace: Workspace | None = None

    @property
    def workspace(self) -> Workspace:
        """The workspace of this run, opened on first use."""
        if self._workspace is None:
            from appliance.workspace import Workspace

            self._workspace = Workspace.find(self.given, self.flags)
        return self._workspace

    def close(self) -> None:
        if self._workspace is not None:
            self._workspace.close()


pass_session = click.make_pass_decorator(Session)


def emit(data: Any, as_json: bool, human: Callable[[], None]) -> None:
    """stdout is data: JSON when asked for, else what `human` prints."""
    if as_json:
        click.echo(json.dumps(data, ensure_ascii=False, indent=2, default=str))
    else:
        human()


def say(text: str) -> None:
    """Talk goes to stderr."""
    click.echo(text, err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table on stdout, as wide as it needs to be where there is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False).print(made)


def cell(value: object) -> str:
    """One value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


class Progress:
    """A bar on a terminal; elsewhere one JSON line at most every two seconds. Call it with (what, done, total)."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._what = ""
        self._done = -1.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, what: str, done: float, total: float | None, **facts: object) -> None:
        if self._terminal:
            self._draw(what, done, total, facts)
            return
        now = time.monotonic()
        if what == self._what and (done == self._done or (done != total and now - self._last < 2)):
            return
        self._what, self._done, self._last = what, done, now
        say(json.dumps({"event": "progress", "what": what, "done": done, "total": total, **facts}, ensure_ascii=False, default=str))

    def _draw(self, what: str, done: float, total: float | None, facts: Mapping[str, object]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        if self._bar is None or what != self._what:
            self._stop()
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, facts="")
            self._what = what
        shown = " ".join(f"{key}={cell(value)}" for key, value in facts.items())
        self._bar.update(self._task, completed=done, total=total, facts=shown)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
