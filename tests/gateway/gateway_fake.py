"""A small answering with plausible events, and with faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from appliance.engines.base import Usage
from appliance.types import Answer, Caller, Citation, Decided, Event, Finished, Prompted, Request, Text
from retrieval.types import Evidence
from router.types import GENERATING, Decision, Prediction

SOURCE = "成人每日剂量不超过 4 克。Paracetamol: at most 4 g a day for adults. Children: by weight."
QUOTE = "Paracetamol: at most 4 g a day for adults."


@dataclass
class FakeAnswering:
    """Answers `pieces`; `fault` is raised after `fault_after` of them (-1: before the route is known), `stall` hangs after the first."""

    pieces: Sequence[str] = ("成人每日", "最多 4 克", "。\u2028", "At most 4 g.")
    fault: Exception | None = None
    fault_after: int = 0
    pause: float = 0.0
    stall: bool = False
    endless: bool = False
    numbered: bool = False
    health_state: dict[str, Any] = field(
        default_factory=lambda: {
            "index": {"ok": True, "generation": 7},
            "database": {"ok": True},
            "engines": {"local": {"ok": True, "detail": ""}},
        }
    )
    asked: list[tuple[Request, Caller]] = field(default_factory=list)
    warmed: bool = False
    closed: bool = False
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)

    async def stream(self, request: Request, caller: Caller) -> AsyncIterator[Event]:
        self.asked.append((request, caller))
        if self.fault and self.fault_after < 0:
            raise self.fault
        domain = request.domain or "medical"
        arm = "rag" if request.arm == "auto" else request.arm
        predicted = {"rag": Prediction(0.81, 900.0, 620.0), "quote": Prediction(0.7, 40.0, 0.0)}
        reasons = ("The passages answer the question directly.", "已找到直接相关的原文。")
        features = {"dense_top": 0.87, "overlap": 0.4}
        decision = Decision(arm, domain, "evidence_strong", reasons, predicted, {"finetuned": "no adapter yet"}, features, "rules-1")
        id = f"a1b2-{len(self.asked)}" if self.numbered else "a1b2"
        yield Decided(id, decision, Evidence(request.question, (), 7), arm in GENERATING)
        try:
            yield Prompted(21)
            for number, piece in enumerate(self.pieces):
                if self.fault and number == self.fault_after:
                    raise self.fault
                yield Text(piece)
                await asyncio.sleep(self.pause)
                if self.stall:
                    self.stalled.set()
                    await asyncio.sleep(3600)
            while self.endless:
                yield Text("更多")
                await asyncio.sleep(0.001)
            text = "".join(self.pieces)
            start = SOURCE.index(QUOTE)
            place = (start, start + len(QUOTE))
            citation = Citation(
                "药品/paracetamol.md", domain, "Paracetamol", "file:paracetamol.md", *place, QUOTE, 2, ("Dosage",), "00", 0, len(text), 0.9
            )
            timings = {"retrieval": 12.0, "decision": 1.0, "first_token": 80.0, "total": 240.0}
            query = request.question
            answer = Answer(
                id, text, arm, domain, (citation,), (), decision, "local", None, 7, Usage(21, 9), timings, "stop", query, cached=False
            )
            yield Finished(answer)
        except (GeneratorExit, asyncio.CancelledError):
            self.abandoned.set()
            raise

    async def warm(self) -> None:
        self.warmed = True

    async def close(self) -> None:
        self.closed = True

    async def look(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(work, *args)

    def domains(self, caller: Caller) -> list[str]:
        allowed = caller.scope.domains
        return [name for name in ("legal", "medical") if allowed is None or name in allowed]

    def arms(self, domain: str, caller: Caller) -> list[str]:
        return ["base", "quote", "rag", "refuse"]

    async def health(self) -> dict[str, Any]:
        return self.health_state

    def guards(self) -> dict[str, Any]:
        return {}


class FakeEmbedding:
    """Vectors of two numbers: the length of the text, and 1 for a question."""

    dim = 2

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def encode_passages(self, texts: Sequence[str]) -> Any:
        return np.array([[len(text), 0] for text in texts], dtype=np.float32)

    def encode_queries(self, texts: Sequence[str]) -> Any:
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


def passage(domain: str, id: str, start: int, end: int, caller: Caller) -> dict[str, Any] | None:
    """The one document there is; seen only by callers who hold the label ``staff``."""
    if (domain, id) != ("medical", "药品/paracetamol.md") or "staff" not in caller.scope.labels or end > len(SOURCE):
        return None
    return {
        "domain": domain,
        "doc_id": id,
        "title": "Paracetamol",
        "uri": "file:paracetamol.md",
        "start": start,
        "end": end,
        "before": SOURCE[:start],
        "quote": SOURCE[start:end],
        "after": SOURCE[end:],
    }
