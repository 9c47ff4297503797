"""How fast documents come in: the first ingest, and a refresh after 1 % of them changed, beside LlamaIndex and txtai.

The same files, model, threads and chunk sizes as near as they can be, in one run: the files come in rounds, and in each round every
system has its turn, so that what else the machine does hits all alike. LlamaIndex reads the same files and finds out itself what
changed (upserts); txtai is handed our chunks, and at the refresh told which ones changed. Loading of models is left out everywhere,
making the result durable is not. A last part leaves the model out too (vectors are hashes): the refresh then has no encoder to hide behind.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import at_least, at_most, finish, options, print_table
from peer_environment import Peer, running

from appliance.cli.session import Progress
from appliance.demo import DOMAINS, SAMPLE
from appliance.service import open_service
from appliance.store.documents import SqlDocumentStore
from appliance.workspace import Workspace
from retrieval.chunk import chunk
from retrieval.compact import tidy
from retrieval.embed import Embedder, SentenceTransformerEmbedder, Vectors, retrieval_text
from retrieval.folder import FolderVectors
from retrieval.ingest import ingest
from retrieval.parsers.plain import title_of
from retrieval.report import IngestReport
from retrieval.staging import IngestSettings

SETS = ("medical-en-pubmedqa", "legal-zh-lecoqa", "medical-zh-huatuo", "legal-en-cuad")
PEERS = ("llamaindex", "txtai")
ROUNDS = 3
CHANGED = 0.01
# Of the peers, as they come; ours chooses batches by tokens.
BATCH = {"llamaindex": 10, "txtai": 32}
SETTINGS = IngestSettings()
DOMAIN = "benchmark"


class TimedEmbedder:
    """An embedder whose time in the encoder is counted."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.hash, self.dim = embedder.hash, embedder.dim
        self.count_tokens, self.encode_queries = embedder.count_tokens, embedder.encode_queries
        self.seconds = 0.0

    def encode_passages(self, texts: list[str]) -> Vectors:
        began = time.perf_counter()
        vectors = self._embedder.encode_passages(texts)
        self.seconds += time.perf_counter() - began
        return vectors


class HashEmbedder:
    """No model: a vector is drawn from the hash of its text, a token is four bytes."""

    hash = hashlib.sha256(b"ingest_speed").hexdigest()
    dim = 384

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.encode()) // 4 for text in texts]

    def encode_queries(self, texts: list[str]) -> Vectors:
        return self.encode_passages(texts)

    def encode_passages(self, texts: list[str]) -> Vectors:
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in texts]
        vectors = np.stack([np.random.default_rng(seed).standard_normal(self.dim, dtype=np.float32) for seed in seeds])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


@dataclass(slots=True)
class Times:
    """What one system took: seconds of the first ingest and of the refresh, and processor seconds of the first."""

    first: float = 0.0
    first_cpu: float = 0.0
    refresh: float = 0.0
    chunks: int = 0


class Base:
    """A workspace of its own for one embedder."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self._workspace = Workspace.create(folder)
        self._embedder = embedder
        self.tokens = 0.0

    def ingest(self, folder: Path) -> IngestReport:
        def progress(what: str, done: float, total: float | None, **_: object) -> None:
            seen[:] = [done]

        seen = [0.0]
        began = time.perf_counter()
        store, vectors = SqlDocumentStore(self._workspace.db), FolderVectors(self._workspace.folder("index"))
        with self._workspace.db.lock("index") as lock:
            report = ingest(
                [folder],
                store=store,
                vectors=vectors,
                embedder=self._embedder,
                lock=lock,
                domain=DOMAIN,
                known_domains=self._workspace.domains(),
                create_domain=self._workspace.create_domain,
                settings=SETTINGS,
                progress=progress,
            )
            # As the product does, and part of what an ingest takes.
            tidy(store=store, vectors=vectors, lock=lock)
        report.seconds = time.perf_counter() - began
        self.tokens += seen[0]
        return report


def texts_of(data: Path | None, wanted: int) -> list[str]:
    """Documents as Markdown, as many of each set as of the others while they last; without data, the sample's as often as needed."""
    found: list[list[str]] = []
    for name in SETS if data is not None else ():
        path = Path(data or "") / name / "corpus.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                rows = [json.loads(line) for _, line in zip(range(wanted), file, strict=False)]
            found.append([f"# {row['title']}\n\n{row['text']}\n" for row in rows])
    if not found:
        files = sorted(path for name in DOMAINS for path in (SAMPLE / name / "documents").rglob("*.md"))
        sample = [path.read_text("utf-8") for path in files]
        return [f"{sample[n % len(sample)]}\n\nCopy {n}. 第{n}份。\n" for n in range(wanted)]
    return [text for row in itertools.zip_longest(*found) for text in row if text is not None][:wanted]


def write_round(folder: Path, texts: Sequence[tuple[int, str]]) -> None:
    folder.mkdir(parents=True)
    for number, text in texts:
        path = folder / f"{number:06}.md"
        path.write_text(text, "utf-8")
        # An old time: a file just written may change again unseen, so its time would not be trusted.
        os.utime(path, (1_700_000_000, 1_700_000_000))


def write_changes(folder: Path, texts: list[str]) -> list[int]:
    """Change every hundredth document (at least one) in place; their numbers."""
    numbers = list(range(0, len(texts), round(1 / CHANGED)))
    for number in numbers:
        texts[number] = texts[number].rstrip("\n") + f"\n\nThis is new since the last time. 这是新内容{number}。\n"
        next(folder.glob(f"round*/{number:06}.md")).write_text(texts[number], "utf-8")
    return numbers


def write_chunks(path: Path, texts: Sequence[tuple[int, str]], embedder: Embedder) -> list[str]:
    """Our chunks as rows for a system that does not cut documents; their ids."""
    ids: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for number, text in texts:
            name = f"{number:06}.md"
            for order, span in enumerate(chunk(text, embedder.count_tokens, SETTINGS.chunk)):
                whole = retrieval_text(title_of(text, name), span.heading, text[span.start : span.end])
                ids.append(f"{name}#{order}")
                file.write(json.dumps({"id": ids[-1], "text": whole}, ensure_ascii=False) + "\n")
    return ids


def parts(texts: Sequence[str]) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    numbered = list(enumerate(texts))
    for turn in range(ROUNDS):
        yield turn, numbered[turn::ROUNDS]


def with_model(folder: Path, texts: list[str], embedder: SentenceTransformerEmbedder, peers: dict[str, Peer]) -> list[dict[str, Any]]:
    """First ingest in rounds and a refresh, every system in turn; a row for each, ours first."""
    timed = TimedEmbedder(embedder)
    embedder.encode_passages(["A first text, so that nothing is measured twice. 第一段。"])
    base = Base(folder / "ours", timed)
    times = {name: Times() for name in ("ours", *peers)}
    documents, rows = folder / "documents", folder / "rows.jsonl"
    ids: dict[int, list[str]] = {}

    def ours(folders: Sequence[Path]) -> dict[str, float]:
        worked = time.process_time()
        reports = [base.ingest(one) for one in folders]
        seconds = sum(report.seconds for report in reports)
        return {"seconds": seconds, "cpu_seconds": time.process_time() - worked, "chunks": reports[-1].chunks}

    with Progress() as progress:
        for turn, part in parts(texts):
            progress("rounds", turn, ROUNDS)
            # Each round adds files to the folder that every system is told to bring in.
            write_round(documents / f"round{turn}", part)
            for name in list(times)[turn % len(times) :] + list(times)[: turn % len(times)]:
                if name == "ours":
                    answer = ours([documents / f"round{turn}"])
                elif name == "txtai":
                    for number, text in part:
                        ids[number] = write_chunks(rows, [(number, text)], embedder)
                    write_chunks(rows, part, embedder)
                    answer = peers[name].ask({"rows": str(rows), "gone": []})
                else:
                    answer = peers[name].ask({"folder": str(documents / f"round{turn}")})
                times[name].first += answer["seconds"]
                times[name].first_cpu += answer["cpu_seconds"]
        encoder, tokens = timed.seconds, base.tokens
        changed = write_changes(documents, texts)
        for name, taken in times.items():
            if name == "ours":
                answers = [ours([documents / f"round{turn}" for turn in range(ROUNDS)])]
            elif name == "txtai":
                fresh = write_chunks(rows, [(number, texts[number]) for number in changed], embedder)
                gone = sorted({id for number in changed for id in ids[number]} - set(fresh))
                answers = [peers[name].ask({"rows": str(rows), "gone": gone})]
            else:
                answers = [peers[name].ask({"folder": str(documents / f"round{turn}")}) for turn in range(ROUNDS)]
            taken.refresh = sum(answer["seconds"] for answer in answers)
            taken.chunks = int(answers[-1]["chunks"])
    made = []
    for name, taken in times.items():
        own = name == "ours"
        made.append(row_of(name, len(texts), taken, tokens if own else None, encoder if own else None))
    return made


def without_model(folder: Path, texts: list[str]) -> dict[str, Any]:
    """The same with vectors that cost nothing: what all but the encoder takes."""
    base = Base(folder / "plumbing", HashEmbedder())
    documents = folder / "many"
    write_round(documents / "round0", list(enumerate(texts)))
    worked = time.process_time()
    first = base.ingest(documents)
    taken = Times(first.seconds, time.process_time() - worked, chunks=first.chunks)
    tokens = base.tokens
    write_changes(documents, texts)
    taken.refresh = base.ingest(documents).seconds
    return row_of("ours, no model", len(texts), taken, tokens, None)


def row_of(name: str, documents: int, taken: Times, tokens: float | None, encoder: float | None) -> dict[str, Any]:
    """What is reported of one system; `cpu_s` tells a slow system from a busy machine."""
    return {
        "system": name,
        "documents": documents,
        "chunks": taken.chunks,
        "first_s": taken.first,
        "cpu_s": taken.first_cpu,
        "documents_a_s": documents / taken.first,
        "tokens_a_s": None if tokens is None else tokens / taken.first,
        "encoder_share": None if encoder is None else encoder / taken.first,
        "refresh_s": taken.refresh,
        "refresh_share": taken.refresh / taken.first,
    }


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--documents", type=int, help="with the model (default: 1,000; with --quick 80)")
    parser.add_argument("--many", type=int, help="without the model (default: 10,000; with --quick 1,000)")
    parser.add_argument("--peers", default=None, help=f"separated by commas (default: {','.join(PEERS)}; with --quick {PEERS[0]})")
    given = parser.parse_args()
    names = [
        name for name in (given.peers if given.peers is not None else ",".join(PEERS[: 1 if given.quick else None])).split(",") if name
    ]
    if unknown := set(names) - set(PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    wanted, many = given.documents or (80 if given.quick else 1_000), given.many or (1_000 if given.quick else 10_000)
    import torch

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="ingest-speed-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        service = open_service(Workspace.create(folder / "models"))
        reference = service.workspace.model(service.workspace.config.models.embedding)
        with Progress() as progress:
            service.models.pull(reference, progress)
        path = service.models.path(reference)
        peers = {}
        for name in names:
            settings = {"batch": BATCH[name], "tokens": SETTINGS.chunk_tokens, "overlap": SETTINGS.chunk.overlap}
            environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
            store = str(folder / name)
            peers[name] = stack.enter_context(running(name, str(path), store, json.dumps(settings), environment=environment))
        texts = texts_of(given.data, wanted)
        rows = with_model(folder, texts, SentenceTransformerEmbedder(path, service.models.model_hash(reference)), peers)
        rows.append(without_model(folder, texts_of(given.data, many)))
    print_table("ingest", rows)
    ours = rows[0]
    claims = [at_least("encoder_share", ours["encoder_share"], 0.9, ""), at_most("refresh_share", ours["refresh_share"], 0.05, "")]
    claims += [at_least(f"ingest_ratio.{row['system']}", row["first_s"] / ours["first_s"], 1.0, "") for row in rows[1:-1]]
    about = {
        "quick": given.quick,
        "sets": SETS if given.data else "sample",
        "model": service.workspace.config.models.embedding,
        "threads": threads,
    }
    about |= {"rounds": ROUNDS, "changed": CHANGED, "chunk_tokens": SETTINGS.chunk_tokens, "peer_batches": BATCH}
    about |= {"peers": {name: pins_of(name) for name in names}}
    finish(given.json, about, rows, claims)


def pins_of(name: str) -> dict[str, str]:
    """The versions of a peer and of what decides its speed."""
    lines = (Path(__file__).parent / "peers" / f"{name}.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    return {key: pins[key] for key in ("llama-index-core", "txtai", "torch", "transformers", "sentence-transformers") if key in pins}


if __name__ == "__main__":
    main()
