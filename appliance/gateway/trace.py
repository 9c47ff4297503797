"""What is known about one request, for the log and the metrics; never its text."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from appliance.types import Answer, Caller, Decided, Event, Finished, Prompted

# Only our own files may be loaded or called, and nobody may frame the page.
RESPONSE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(slots=True)
class Trace:
    """Filled in while the request is served.

    `caller` is None until it is known who asks; `late_status` is what a stream that began with 200 turned out to be (0: it went well).
    `queued` is how many milliseconds a question waited for its turn. `spent` counts tokens; of an answer that was broken off those of
    its prompt, and its pieces.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    caller: Caller | None = None
    answer_id: str = ""
    arm: str = ""
    domain: str = ""
    answer: Answer | None = None
    late_status: int = 0
    queued: float | None = None
    spent: int = 0

    def note(self, event: Event) -> None:
        """Take the route from an event; the answer's own arm wins, for it may have fallen back."""
        if isinstance(event, Decided):
            self.answer_id, self.arm, self.domain = event.id, event.decision.arm, event.decision.domain
        elif isinstance(event, Finished):
            self.answer = event.answer
            self.answer_id, self.arm, self.domain = event.answer.id, event.answer.arm, event.answer.domain
            self.spent = event.answer.usage.prompt_tokens + event.answer.usage.completion_tokens
        else:
            self.spent += event.tokens if isinstance(event, Prompted) else 1


def trace_of(scope: Any) -> Trace:
    """The trace of an ASGI scope, made on first use."""
    trace: Trace = scope.setdefault("appliance.trace", Trace())
    return trace
