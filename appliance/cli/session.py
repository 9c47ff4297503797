"""What every command shares: the workspace, output as table or JSON, and progress."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from appliance.workspace import Workspace

T = TypeVar("T")

# Seconds between two lines of progress.
_QUIET = 2.0
# Seconds between two tries for a lock that another process holds.
_AGAIN = 0.5

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
domain_option = click.option("--domain", "-d", help="The domain, e.g. medical.")
as_option = click.option(
    "--label",
    "labels",
    multiple=True,
    help="See only what a caller with these labels sees; '' for one with none. Repeatable. Default: all.",
)
wait_option = click.option(
    "--wait",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for another process that writes (default: not at all).",
)


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


def held(given: Sequence[str], every: frozenset[str]) -> frozenset[str]:
    """The labels to see with: those given with --label, else all, as whoever holds the workspace folder may read all of it."""
    return frozenset(label for label in given if label) if given else every


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


class Interrupted(click.exceptions.Abort):
    """Ctrl-C or SIGTERM ended a command; the message says what is left and how to go on."""


@contextmanager
def stoppable(message: str) -> Iterator[None]:
    """Let SIGTERM end what is inside as Ctrl-C does: cleanly, and with `message` instead of a traceback."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def patiently(wait: float, work: Callable[[], T]) -> T:
    """What `work` returns, begun again until no other process writes; raises Busy after `wait` seconds (see `wait_option`)."""
    from appliance.store.locks import Busy

    deadline, said = time.monotonic() + wait, False
    while True:
        try:
            return work()
        except Busy as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Busy(f"{error}; --wait SECONDS waits for it") from error
            if not said:
                say(f"waiting for up to {wait:g} s: {error}")
            said = True
            time.sleep(min(_AGAIN, left))


class Progress:
    """A bar on a terminal; elsewhere one JSON line at most every two seconds. Call it with (what, done, total).

    Both show the seconds left, supposing that the rest goes at the pace of what is done.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._what = ""
        self._began = (0.0, 0.0)
        self._last = 0.0
        self._shown: tuple[object, ...] = ()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, what: str, done: float, total: float | None, unit: str = "", **facts: object) -> None:
        now = time.monotonic()
        is_new = what != self._what
        if is_new:
            self._stop()
            self._what, self._began = what, (now, done)
        left = self._left(now, done, total)
        if self._terminal:
            self._draw(what, done, total, unit, left, facts)
            return
        finished = bool(total) and done == total and (done, total) != self._shown[:2]
        state = (done, total, *facts.values())
        if not is_new and not finished and (state == self._shown or now - self._last < _QUIET):
            return
        self._shown, self._last = state, now
        said = {"event": "progress", "what": what, "done": done, "total": total, **({"unit": unit} if unit else {}), **facts}
        say(json.dumps({**said, "seconds_left": None if left is None else round(left)}, ensure_ascii=False, default=str))

    def _left(self, now: float, done: float, total: float | None) -> float | None:
        began, first = self._began
        return (total - done) * (now - began) / (done - first) if total is not None and done > first else None

    def _draw(self, what: str, done: float, total: float | None, unit: str, left: float | None, facts: Mapping[str, object]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, facts="")
        words = [unit, "" if left is None else f"{timedelta(seconds=round(left))} left", *(f"{key}={cell(facts[key])}" for key in facts)]
        self._bar.update(self._task, completed=done, total=total, facts=" ".join(word for word in words if word))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
