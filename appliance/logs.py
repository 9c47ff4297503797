"""What a server or a worker writes on stderr: one JSON object a line."""

from __future__ import annotations

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# The id of the request that is being served.
REQUEST: ContextVar[str] = ContextVar("request", default="")

# What JSON leaves as it is, and a terminal obeys or takes for the end of a line.
_CONTROL = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


class JsonLines(logging.Formatter):
    """``{"at", "level", "logger", "message"}``, with ``request`` while one is served, the record's `facts`, and ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := REQUEST.get():
            line["request"] = request
        line.update(getattr(record, "facts", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).translate(_CONTROL)


def log_as_json() -> None:
    """From now on every logger of this process, libraries' and warnings included, writes such lines."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonLines}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {"appliance": {"level": "INFO"}},
        }
    )
    logging.captureWarnings(True)
