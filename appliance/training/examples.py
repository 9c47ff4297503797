"""How the pairs of a data set become examples, and what each of them rests on."""

from __future__ import annotations

from collections.abc import Sequence

from appliance import prompts
from appliance.adapters.evidence import Link
from appliance.answers.rewrite import self_contained
from appliance.engines.base import Message
from appliance.service import Service
from appliance.store.reading import DocumentReader
from finetune.types import Example, Pair, Turn
from retrieval.text import detect_lang
from retrieval.types import Chunk, DocumentKey, Passage, Scope

# Below this share of the answer's words in the passage, a retrieved passage is no evidence for a pair.
_INFERRED_SUPPORT = 0.6
# So many questions are embedded at once.
_TOGETHER = 64


def examples(service: Service, domain: str, pairs: Sequence[Pair]) -> list[Example]:
    """`pairs` as they are trained on for `domain`; see `example`. Those in `outdated` must be left out before."""
    config = service.workspace.config
    turns, abstain = config.answering.max_history_messages, config.engine_of(domain)[1].abstain
    documents, secret = service.knowledge.documents, service.workspace.db.secret()
    return [example(pair, domain, turns, shown(documents, domain, pair) or (), secret, abstain) for pair in pairs]


def example(pair: Pair, domain: str, turns: int, passages: Sequence[Passage] = (), secret: bytes = b"", abstain: bool = False) -> Example:
    """A pair as it is trained on: the very prompt that serving sends for the same question, task, system message and history.

    Without `passages` that is the prompt of `finetuned`, with them (best first) that of `hybrid`; `secret` is the workspace's, which their
    tag is made of. `turns` is [answering] max_history_messages, `abstain` the engine's. Serving detects the language by the question, so
    training does. A question that its passages do not answer is answered with the agreed sentence.
    """
    lang, asked = detect_lang(pair.question), question(pair)
    history = prompts.recent(_messages(pair), turns)
    if passages:
        tag = prompts.passages_tag(secret, passages)
        messages = prompts.with_passages(
            domain, lang, asked, history, passages, tag, pair.system, abstain=abstain, task=pair.task
        )  # fmt: skip
    else:
        messages = prompts.direct(domain, lang, asked, history, pair.system, pair.task)
    completion = pair.answer if pair.answerable else prompts.NOTHING_FOUND[lang]
    return Example(pair.id, tuple(Turn(message["role"], message["content"]) for message in messages), completion, pair.rejected)


def shown(documents: DocumentReader, domain: str, pair: Pair) -> list[Passage] | None:
    """The passages a pair is asked with, best first; None if a document it is tied to was changed or removed since."""
    found: list[Passage] = []
    for ref in pair.passages:
        key = DocumentKey(domain, ref.doc_id)
        info, text = documents.current(key), documents.text_slice(key, ref.sha256, ref.start, ref.end)
        if info is None or text is None or len(text) != ref.end - ref.start:
            return None
        if ref.role != "withheld":
            found.append(Passage(Chunk("", key, ref.start, ref.end, ref.heading, None, text), info, 0.0, None, None))
    return found


def outdated(service: Service, domain: str, pairs: Sequence[Pair]) -> frozenset[str]:
    """The ids of pairs tied to a document that was changed or removed since."""
    return frozenset(pair.id for pair in pairs if pair.passages and shown(service.knowledge.documents, domain, pair) is None)


def question(pair: Pair) -> str:
    """What is searched for and asked: a follow-up with the question it leans on before it."""
    return self_contained(pair.question.strip(), _messages(pair))


def evidence_links(service: Service, domain: str, pairs: Sequence[Pair]) -> list[Link]:
    """What each pair rests on: its passages and declared documents, else the best passage that supports its answer, else nothing."""
    documents = service.knowledge.documents
    links: list[Link] = []
    for number, pair in enumerate(pairs):
        if number % _TOGETHER == 0:
            # The embedding model remembers them for the searches below; many at once take less time than one by one.
            loose = [question(one) for one in pairs[number : number + _TOGETHER] if not one.passages and not one.doc_ids]
            if loose:
                service.knowledge.embedder.encode_queries(loose)
        # What is shown beside the answer is trained on as well, so its labels and its deletion count too.
        tied = {ref.doc_id: Link(pair.id, "declared", domain, ref.doc_id, ref.sha256) for ref in pair.passages}
        for doc_id in pair.doc_ids:
            info = documents.current(DocumentKey(domain, doc_id))
            if info is not None:
                tied.setdefault(doc_id, Link(pair.id, "declared", domain, doc_id, info.sha256))
        links += tied.values() or [inferred(service, domain, pair)]
    return links


def inferred(service: Service, domain: str, pair: Pair) -> Link:
    """The link to the best passage that supports the answer, or one of the kind "unlinked"."""
    from appliance.answers.citations import align

    # Training may use labelled documents; the adapter carries their labels.
    scope = Scope(frozenset({domain}), service.knowledge.documents.labels(domain))
    evidence = service.knowledge.search(question(pair), scope)
    cited, _ = align(pair.answer, evidence.passages, _INFERRED_SUPPORT)
    if not cited:
        return Link(pair.id, "unlinked")
    best = max(cited, key=lambda citation: citation.support)
    return Link(pair.id, "inferred", domain, best.doc_id, best.sha256, best.support)


def labels_of(service: Service, links: Sequence[Link]) -> frozenset[str]:
    """The union of the labels of every document that is linked."""
    labels: set[str] = set()
    for domain, doc_id in {(link.domain, link.doc_id) for link in links if link.domain is not None and link.doc_id is not None}:
        info = service.knowledge.documents.current(DocumentKey(domain, doc_id))
        labels |= info.labels if info is not None else set()
    return frozenset(labels)


def _messages(pair: Pair) -> list[Message]:
    return [Message(role=turn.role, content=turn.content) for turn in pair.history]
