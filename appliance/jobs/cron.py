"""Cron lines: minute, hour, day, month and weekday in the wall-clock time of this machine."""

from __future__ import annotations

from datetime import UTC, datetime


def next_after(line: str, moment: datetime) -> datetime:
    """The first time of the line after `moment`; both with a zone, the result in UTC.

    A time that is skipped when the clocks go forward comes as much later as they were moved; of an hour that comes twice, the first one
    counts.
    """
    from cronsim import CronSim

    times = CronSim(line, moment.astimezone().replace(tzinfo=None))
    # `timestamp` and not `astimezone`, which would move a skipped time backwards.
    return next(time for local in times if (time := datetime.fromtimestamp(local.timestamp(), UTC)) > moment)
