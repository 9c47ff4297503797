"""How long a search takes, without the embedding of the question, and what an index costs, as it grows tenfold.

Synthetic chunks (see `synthetic_index`) in a real SQLite store and real segments, compacted. At each size a process of its own opens the
index and searches it, one thread, one question after another, after a hundred questions to warm up: every retriever alone, and as
`appliance search` does (k = 5).
Peers in the same process: FAISS's exact index over the same vectors, and BM25 as one sparse matrix (scipy) over the same postings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Claim, at_most, finish, options, print_table
from synthetic_index import DOMAINS, HASH, SEGMENT, WORDS, Base, Source, Synthetic, grow, questions

from retrieval.generation import Generation
from retrieval.index import Index
from retrieval.lexical import K1, B, term_hash
from retrieval.types import Scope

SIZES, QUICK = (10_000, 100_000, 1_000_000), (10_000, 20_000)
WARMING, QUESTIONS, COMPARED, DEPTH, BEST = 100, 200, 100, 100, 10
TARGET_MS = 10


def measure(folder: Path, chunks: int) -> dict[str, Any]:
    """Open the index in `folder` and search it; the figures of one size. Runs in a process of its own."""
    every = questions(Source(), chunks, WARMING + QUESTIONS)
    warming, asked = dict(list(every.items())[:WARMING]), dict(list(every.items())[WARMING:])
    base = Base.at(folder)
    before = _memory()
    began = time.perf_counter()
    index = Index.open(base.store, base.vectors, Synthetic(every))
    opened = time.perf_counter() - began
    scope = Scope()
    domain = Scope(frozenset({DOMAINS[0]}))
    first = _times(warming, lambda question: index.search(question, scope))[0][0]
    _times(warming, lambda question: index.search(question, domain))
    generation = index._opened
    assert isinstance(generation, Generation) and len(index) == chunks
    visible = index._visible(scope)
    row: dict[str, Any] = {"chunks": chunks, "open_s": opened, "first_search_ms": first}
    row |= _quantiles("dense", _times(asked.values(), lambda vector: generation.dense(vector, visible, DEPTH)))
    terms = {question: dict.fromkeys(question.split(), 1.0) for question in asked}
    row |= _quantiles("lexical", _times(asked, lambda question: generation.lexical.search(terms[question], visible.view, DEPTH)))
    row |= _quantiles("search", _times(asked, lambda question: index.search(question, scope)))
    row |= _quantiles("search_one_domain", _times(asked, lambda question: index.search(question, domain)))
    after = _memory()
    row |= {"memory_mib": after["RssAnon"] - before["RssAnon"], "mapped_mib": after["RssFile"] - before["RssFile"]}
    vectors = list(asked.values())[:COMPARED]
    found = [set(generation.dense(vector, visible, BEST)[0].tolist()) for vector in vectors]
    languages = np.unique(index._languages, return_inverse=True)[1]
    row["recall@10"] = _recall(generation, visible.means, languages, vectors, found)
    row |= _faiss_peer(generation, list(asked.values())) | _bm25_peer(generation, list(asked))
    row["disk_mib"] = sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file()) / 2**20
    row["database_mib"] = (folder / "appliance.db").stat().st_size / 2**20
    return row


def _recall(generation: Generation, means: Any, languages: Any, vectors: Sequence[Any], found: Sequence[set[int]]) -> float:
    """The share of the best 10 by exact cosine, centred by language, that the search found."""
    shifts = means @ np.array(vectors).T
    scores = np.concatenate([segment.vectors @ np.array(vectors).T for segment in generation.segments])
    hits = 0
    for number, places in enumerate(found):
        ranked = scores[:, number] - shifts[languages, number]
        hits += len(places & set(np.argpartition(-ranked, BEST)[:BEST].tolist()))
    return hits / (BEST * len(found))


def _faiss_peer(generation: Generation, vectors: Sequence[Any]) -> dict[str, float]:
    import faiss

    flat = faiss.IndexFlatIP(generation.segments[0].vectors.shape[1])
    for segment in generation.segments:
        for start in range(0, len(segment.vectors), 1 << 16):
            flat.add(np.ascontiguousarray(segment.vectors[start : start + (1 << 16)]))
    return _quantiles("faiss_flat", _times(vectors, lambda vector: flat.search(vector[None], DEPTH)))


def _bm25_peer(generation: Generation, asked: Sequence[str]) -> dict[str, float]:
    from scipy.sparse import csr_matrix

    # One segment holds all after a compaction; every chunk has WORDS words, so that each length is the average one.
    (postings,) = [segment.postings for segment in generation.segments]
    frequency = np.diff(postings.starts)
    rarity = np.log1p((len(postings.lengths) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    tf = postings.counts.astype(np.float32)
    tf /= tf + np.float32(K1 * (1 - B + B))
    tf *= np.repeat(rarity, frequency)
    matrix = csr_matrix((tf, postings.ordinals, postings.starts), shape=(len(frequency), len(postings.lengths)))

    def bm25(question: str) -> Any:
        keys = np.array([term_hash(word) for word in set(question.split())], dtype=np.uint64)
        rows = np.searchsorted(postings.terms, keys)
        scores = np.asarray(matrix[rows].sum(axis=0)).ravel()
        best = np.argpartition(-scores, DEPTH)[:DEPTH]
        return best[np.argsort(-scores[best])]

    return _quantiles("scipy_bm25", _times(asked, bm25))


def _times(items: Any, call: Callable[[Any], object]) -> list[tuple[float, float]]:
    """Milliseconds of one call for each item: by the clock, and of the processor, which other work on the machine lengthens less."""
    taken: list[tuple[float, float]] = []
    for item in items:
        began, used = time.perf_counter(), time.thread_time()
        call(item)
        taken.append((1000 * (time.perf_counter() - began), 1000 * (time.thread_time() - used)))
    return taken


def _quantiles(name: str, times: Sequence[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = zip(*times, strict=True)
    p50, p95 = np.percentile(wall, [50, 95])
    return {f"{name}_p50_ms": float(p50), f"{name}_p95_ms": float(p95), f"{name}_cpu_p50_ms": float(np.median(cpu))}


def _memory() -> dict[str, float]:
    """MiB of this process: its own (RssAnon) and of mapped files (RssFile), which the system takes back when it needs them."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if name.startswith("Rss")}


def _grown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what factor each figure grows when the chunks grow tenfold."""
    names = ("search_p50_ms", "dense_p50_ms", "lexical_p50_ms", "open_s", "memory_mib", "faiss_flat_p50_ms", "scipy_bm25_p50_ms")
    made: list[dict[str, Any]] = []
    for small, large in itertools.pairwise(rows):
        decades = math.log10(large["chunks"] / small["chunks"])
        growth = {name: (large[name] / small[name]) ** (1 / decades) for name in names}
        made.append({"from": small["chunks"], "to": large["chunks"], **growth})
    return made


def main() -> None:
    parser = options("The speed of search at 10^4, 10^5 and 10^6 chunks.")
    parser.add_argument("--sizes", help="chunks at each step, divisible by 10000, ascending, separated by commas")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "CHUNKS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), int(arguments.measure[1]))))
        return
    sizes = [int(size) for size in arguments.sizes.split(",")] if arguments.sizes else list(QUICK if arguments.quick else SIZES)
    if any(size % SEGMENT or size < SEGMENT for size in sizes) or sizes != sorted(set(sizes)):
        parser.error(f"--sizes: {arguments.sizes}: each must be a multiple of {SEGMENT}, larger than the one before")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    rows: list[dict[str, Any]] = []
    made: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="retrieval-speed-") as scratch:
        folder = Path(scratch)
        base, source, have = Base.at(folder), Source(), 0
        for size in sizes:
            began = time.perf_counter()
            report = grow(base, source, have, size)
            seconds, have = time.perf_counter() - began, size
            # A single segment is left as it is.
            search = report["segments"][0]["search"] if report["segments"] else {"method": "exact"}
            recall = search.get("recall", {})
            facts = {"chunks": size, "method": search["method"], "lists": search.get("lists"), "scanned": search.get("scanned")}
            made.append({**facts, **{f"measured_{kind}": recall.get(kind) for kind in ("passages", "questions")}, "grow_s": seconds})
            command = [sys.executable, __file__, "--measure", str(folder), str(size)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"measuring {size} chunks failed:\n{done.stderr}")
            rows.append(json.loads(done.stdout))
            print(f"{size} chunks: made in {seconds:.0f} s, measured", file=sys.stderr, flush=True)
        base.db.close()
    print_table("how each size is searched, and the recall measured when it was made", made)
    for kind in ("p50_ms", "p95_ms", "cpu_p50_ms"):
        names = ("search", "search_one_domain", "dense", "faiss_flat", "lexical", "scipy_bm25")
        title = f"{kind}: without the embedding of the question; beside dense exact FAISS, beside lexical a sparse matrix"
        print_table(title, [{"chunks": row["chunks"], **{name: row[f"{name}_{kind}"] for name in names}} for row in rows])
    costs = ("chunks", "recall@10", "open_s", "first_search_ms", "memory_mib", "mapped_mib", "disk_mib", "database_mib")
    print_table("recall against exact search, and costs", [{k: row[k] for k in costs} for row in rows])
    growth = _grown(rows)
    print_table("growth for ten times the chunks", growth)
    # A quick run has no size of the claim.
    claims: list[Claim] = [at_most("search_p50_ms_1e5", row["search_p50_ms"], TARGET_MS, "ms") for row in rows if row["chunks"] == 100_000]
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(f"\nload at the end: {load:.1f} processes for each core; above 1 the times by the clock are too long")
    settings = {
        "quick": arguments.quick,
        "sizes": sizes,
        "questions": QUESTIONS,
        "words": WORDS,
        "depth": DEPTH,
        "load": load,
        "embedding": HASH[:12],
    }
    finish(arguments.json, settings, [*made, *rows, *growth], claims)


if __name__ == "__main__":
    main()
