"""`appliance dataset from-documents`: question/answer pairs from the knowledge base, to be reviewed before use.

The shape is RAFT's (Zhang et al. 2024, arXiv:2403.10131): a question with the passages that the domain's own retriever finds for it,
the one that answers it among those that do not, and for a share of the questions only the latter, to be answered with "the documents do
not say". Instead of a chain of thought, the quotations an answer rests on are kept beside it with their offsets.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from appliance import prompts
from appliance.answers.availability import readable
from appliance.answers.citations import align
from appliance.answers.rewrite import is_follow_up
from appliance.datasets.drafts import Unfinished
from appliance.datasets.pair_patterns import patterned
from appliance.engines.base import Engine, EngineBusy, Message, PromptTooLong, Sampling
from appliance.errors import UsageError
from appliance.service import Service
from appliance.types import Citation
from finetune.near import near_duplicates
from finetune.types import PassageRef
from retrieval.text import content_words, detect_lang, normalise_question
from retrieval.types import Chunk, DocumentInfo, Passage, Scope

Method = Literal["auto", "engine", "pattern"]
Progress = Callable[..., None]
# Patterns tried for one passage, passages worked on at a time, and tokens a question or an answer may have.
_PATTERNS, _AT_A_TIME, _TOKENS = 2, 8, 128
# Content words of a passage worth asking about, and of a question that says what it is about.
_LEAST_PASSAGE, _LEAST_QUESTION = 8, 2
_LONGEST_QUESTION = 400
# The first question in what an engine wrote, without a word such as "Question:" or a number before it.
_QUESTION = re.compile(
    r"^[\s*#\"“\d.)-]*(?:(?:question|问题)\s*\d*\s*[:：])?[\s*\"“]*(?P<question>[^\n?？]{4,}[?？])", re.IGNORECASE | re.MULTILINE
)
# A question that only makes sense beside the passage.
_LEANS = re.compile(
    r"\b(?:the|this|that) (?:passage|text|document|article|section|paragraph|author|excerpt|above)\b|\bmentioned above\b"
    r"|本文|上文|下文|文中|该文|这段|资料[中里]|材料[中里]|上述|作者",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Drafted:
    """What a run did. `passages` were looked at, `exhausted` says that there are no more."""

    file: Path
    pairs: int
    passages: int
    exhausted: bool
    by_method: dict[str, int]
    unanswerable: int
    thrown_away: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "file": str(self.file)}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A question with its answer about one passage, not checked yet."""

    gold: Passage
    question: str
    answer: str
    method: str
    kind: str


async def from_documents(
    service: Service,
    domain: str,
    file: Path,
    *,
    count: int = 50,
    method: Method = "auto",
    unanswerable: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Drafted:
    """Write up to `count` pairs about `domain` into `file` for review; an interrupted run of the same settings goes on.

    `method` "engine" asks the domain's engine, "pattern" makes plain questions of single sentences without a model; "auto" tries the
    engine where it declares the passage's language, and patterns where it does not or where nothing it wrote was kept. `unanswerable` is
    the share (0 to 1) of questions whose gold passage is withheld, `seed` decides the order of the passages.
    Raises UsageError (unknown or empty domain, a file in the way), EngineError.
    """
    workspace = service.workspace
    workspace.check_domain(domain)
    if not service.knowledge.documents.count(domain):
        raise UsageError(f"{domain} has no documents; bring some in with `appliance ingest PATH --domain {domain}`")
    name, _ = workspace.config.engine_of(domain)
    engine = None if method == "pattern" else await service.engines.of(domain)
    made_by = {
        "domain": domain,
        "generation": service.knowledge.store.live_generation(),
        "method": method,
        "engine": None if engine is None else f"{name} {engine.base_hash[:12]}".strip(),
        "unanswerable": unanswerable,
        "seed": seed,
    }
    draft = await asyncio.to_thread(Unfinished.open, file, made_by)
    work = _Work(service, domain, engine, method, unanswerable, seed)
    waiting = islice(work.passages(), draft.position, None)
    exhausted = False
    while len(draft.rows) < count and not exhausted:
        batch = await asyncio.to_thread(lambda: list(islice(waiting, _AT_A_TIME)))
        exhausted = len(batch) < _AT_A_TIME
        written = await asyncio.gather(*(work.write(passage) for passage in batch))
        position = draft.position
        rows: list[dict[str, Any]] = []
        reasons: list[str] = []
        for candidates, thrown in written:
            if len(draft.rows) + len(rows) >= count:
                exhausted = False
                break
            position += 1
            reasons += thrown
            row, why = await asyncio.to_thread(work.keep, candidates, [*draft.rows, *rows])
            reasons += why
            rows += [row] if row is not None else []
        await asyncio.to_thread(draft.add, rows, reasons, position)
        if progress is not None:
            progress(f"writing pairs for {domain}", len(draft.rows), count, passages=position)
    await asyncio.to_thread(draft.finish)
    methods = [str(row["method"]) for row in draft.rows]
    return Drafted(
        file=file,
        pairs=len(draft.rows),
        passages=draft.position,
        exhausted=exhausted,
        by_method={each: methods.count(each) for each in dict.fromkeys(methods)},
        unanswerable=sum(row.get("answerable") is False for row in draft.rows),
        thrown_away=dict(sorted(draft.thrown_away.items(), key=lambda item: -item[1])),
        notes=work.notes(),
    )


class _Work:
    """One run over the passages of a domain."""

    def __init__(self, service: Service, domain: str, engine: Engine | None, method: Method, unanswerable: float, seed: int) -> None:
        self.service, self.domain, self.engine, self.method = service, domain, engine, method
        self.unanswerable, self.seed = unanswerable, seed
        self.documents = service.knowledge.documents
        self.config = service.workspace.config
        self.scope = Scope(frozenset({domain}), self.documents.labels(domain))
        self.secret = service.workspace.db.secret()
        self.undeclared: dict[str, int] = {}

    def notes(self) -> tuple[str, ...]:
        """What the person who started this should know."""
        name = self.engine.name if self.engine is not None else ""
        return tuple(
            f"engine {name} does not declare {lang}: {number} passages in it were "
            + ("left out" if self.method == "engine" else "asked about by patterns only")
            for lang, number in self.undeclared.items()
        )

    def passages(self) -> Iterator[Passage]:
        """Every passage worth asking about, in an order decided by the seed: one of each document, then the next of each."""
        infos: dict[str, DocumentInfo] = {}
        for info in self.documents.documents(self.domain):
            infos.setdefault(info.sha256, info)
        order = sorted(infos.values(), key=lambda info: self._dice(info.id))
        for place in range(10**6):
            longer = []
            for info in order:
                chunks = self._worthwhile(self.documents.chunks(info.key))
                if place < len(chunks):
                    longer.append(info)
                    yield Passage(chunks[place], info, 0.0, None, None)
            order = longer
            if not order:
                return

    def _worthwhile(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Chunks without instructions to a model and with something to ask about, in the order of the seed."""
        kept = [chunk for chunk in chunks if not chunk.flags and len(content_words(chunk.text)) >= _LEAST_PASSAGE]
        return sorted(kept, key=lambda chunk: self._dice(f"{chunk.doc.id} {chunk.start}"))

    def _dice(self, name: str) -> float:
        return random.Random(f"{self.seed} {name}").random()

    # --- writing

    async def write(self, passage: Passage) -> tuple[list[_Candidate], list[str]]:
        """What could be asked about one passage, the engine's question first, and why it wrote none."""
        candidates: list[_Candidate] = []
        reasons: list[str] = []
        lang = detect_lang(passage.chunk.text)
        if self.engine is not None and lang not in self.engine.languages:
            self.undeclared[lang] = self.undeclared.get(lang, 0) + 1
            reasons += [f"the engine does not declare {lang}"] if self.method == "engine" else []
        elif self.engine is not None:
            found = await self._ask_engine(self.engine, passage, lang)
            candidates += [found] if isinstance(found, _Candidate) else []
            reasons += [found] if isinstance(found, str) else []
        if self.method != "engine":
            text, title = passage.chunk.text, passage.document.title or passage.document.id
            for made in islice(patterned(text, title), _PATTERNS):
                candidates.append(_Candidate(passage, made.question, text[made.start : made.end], "pattern", made.kind))
        if not candidates and not reasons:
            reasons.append("nothing in the passage to ask about")
        return candidates, reasons

    async def _ask_engine(self, engine: Engine, passage: Passage, lang: str) -> _Candidate | str:
        """A question the engine asks about the passage, and its answer as `rag` gives it from that passage; or why there is none."""
        tag = prompts.passages_tag(self.secret, [passage])
        try:
            written, _ = await _say(engine, prompts.write_question(self.domain, lang, passage, tag))
            found = _QUESTION.search(written)
            if found is None:
                return "the engine wrote no question"
            question = found["question"].strip()
            asked = prompts.with_passages(self.domain, detect_lang(question), question, (), [passage], tag)
            answer, ended = await _say(engine, asked)
            if not ended:
                return f"the engine's answer was not over after {_TOKENS} tokens"
        except PromptTooLong:
            return "the passage is too long for the engine"
        return _Candidate(passage, question, answer, f"engine:{engine.name}", "generated")

    # --- keeping

    def keep(self, candidates: Sequence[_Candidate], kept: Sequence[dict[str, Any]]) -> tuple[dict[str, Any] | None, list[str]]:
        """The first candidate that passes every check, as a row, and the reasons why those before it did not."""
        reasons: list[str] = []
        for candidate in candidates:
            row = self._checked(candidate, kept)
            if not isinstance(row, str):
                return row, reasons
            reasons.append(f"{row} ({candidate.method.partition(':')[0]})")
        return None, reasons

    def _checked(self, candidate: _Candidate, kept: Sequence[dict[str, Any]]) -> dict[str, Any] | str:
        question, answer, gold = candidate.question, candidate.answer, candidate.gold
        asked = normalise_question(question)
        said = content_words(question)
        if len(said) < (_LEAST_QUESTION if candidate.kind == "generated" else 1) or len(question) > _LONGEST_QUESTION:
            return "the question is too short or too long"
        # The gap of a pattern repeats its sentence, and its title says where it stands.
        if candidate.kind == "generated" and (_LEANS.search(question) or is_follow_up(question)):
            return "the question is not understood without the passage"
        if set(content_words(answer)) <= set(said):
            return "the answer is empty or repeats the question"
        cited, unsupported = align(answer, [gold], self.config.answering.support)
        if not cited or unsupported:
            return "the passage does not support the answer"
        if not all(self.documents.text_slice(gold.document.key, c.sha256, c.start, c.end) == c.quote for c in cited):
            return "the document has changed"
        questions = [str(row["question"]) for row in kept]
        if any(normalise_question(other) == asked for other in questions) or any(
            right == len(questions) for _, right, _ in near_duplicates([*questions, question])
        ):
            return "a question like it is there already"
        k = self.config.retrieval.k
        found = self.service.knowledge.search(question, self.scope, 2 * k).passages
        shown = self._served(found[:k])
        if not any(_holds(passage, gold, cited) for passage in shown):
            return "the question does not find its passage"
        return self._row(candidate, cited, shown, found)

    def _served(self, found: Sequence[Passage]) -> list[Passage]:
        """Of the passages found, those that a prompt would carry."""
        kept = readable(found, self.config.retrieval.flagged)
        return self.service.answering.within_budget(kept) if kept else []

    def _row(self, candidate: _Candidate, cited: Sequence[Citation], shown: Sequence[Passage], found: Sequence[Passage]) -> dict[str, Any]:
        gold, question = candidate.gold, candidate.question
        lang = detect_lang(question)
        others = [passage for passage in found if passage.document.sha256 != gold.document.sha256]
        rest = self._served(others[: self.config.retrieval.k])
        threshold = self.config.answering.support
        # What another passage answers too cannot be made unanswerable by taking one away.
        withheld = self._dice(question) < self.unanswerable and bool(rest) and not align(candidate.answer, rest, threshold)[0]
        name = hashlib.sha256(f"{gold.document.id} {gold.chunk.start} {question}".encode()).hexdigest()[:12]
        row: dict[str, Any] = {"id": f"{self.domain}-{name}", "review": "pending", "question": question}
        if withheld:
            row |= {"answer": prompts.NOTHING_FOUND[lang], "answerable": False}
            refs = [*(ref(passage, "negative") for passage in rest), ref(gold, "withheld")]
        else:
            row |= {"answer": candidate.answer, "doc_ids": [gold.document.id]}
            refs = [ref(passage, "gold" if _holds(passage, gold, cited) else "negative") for passage in shown]
        return row | {
            "lang": lang,
            "domain": self.domain,
            "method": candidate.method,
            "kind": candidate.kind,
            "quotes": [{"doc_id": c.doc_id, "sha256": c.sha256, "start": c.start, "end": c.end, "text": c.quote} for c in cited],
            "passages": [asdict(ref) for ref in refs],
        }


async def _say(engine: Engine, messages: Sequence[Message]) -> tuple[str, bool]:
    """What the engine says and whether it came to an end; as often as it takes until it is not busy."""
    while True:
        try:
            parts: list[str] = []
            ended = True
            async with aclosing(engine.chat(messages, None, Sampling(max_tokens=_TOKENS))) as deltas:
                async for delta in deltas:
                    parts.append(delta.text)
                    ended = delta.finish_reason != "length"
            return "".join(parts).strip(), ended
        except EngineBusy as error:
            await asyncio.sleep(error.retry_after)


def _holds(passage: Passage, gold: Passage, cited: Sequence[Citation]) -> bool:
    """Whether a passage found is of the gold text and contains something the answer rests on."""
    chunk = passage.chunk
    return passage.document.sha256 == gold.document.sha256 and any(chunk.start <= c.start and c.end <= chunk.end for c in cited)


def ref(passage: Passage, role: Literal["gold", "negative", "withheld"]) -> PassageRef:
    chunk = passage.chunk
    return PassageRef(passage.document.id, passage.document.sha256, chunk.start, chunk.end, role, chunk.heading)
