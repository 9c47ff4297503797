"""LlamaIndex keeping an index of a folder of files up to date: its ingestion pipeline with upserts, in its own environment.

``llamaindex_peer.py MODEL STORE SETTINGS`` answers each line {"folder": …} with {"seconds": …, "cpu_seconds": …, "chunks": …}, the last
of the whole store.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def make(model: str, settings: dict[str, Any]) -> Any:
    from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from llama_index.core.vector_stores import SimpleVectorStore
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    embedding = HuggingFaceEmbedding(
        model_name=model, device="cpu", query_instruction="query: ", text_instruction="passage: ", embed_batch_size=settings["batch"]
    )
    tokenizer = embedding._model.tokenizer
    splitter = SentenceSplitter(
        chunk_size=settings["tokens"],
        chunk_overlap=settings["overlap"],
        tokenizer=lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
    )
    embedding.get_text_embedding("A first text, so that nothing is measured twice. 第一段。")
    # What a refresh needs is kept in the document store, so the cache of transformations would only cost time.
    return IngestionPipeline(
        transformations=[splitter, embedding],
        docstore=SimpleDocumentStore(),
        vector_store=SimpleVectorStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        disable_cache=True,
    )


def ingest(pipeline: Any, folder: Path, store: Path) -> None:
    from llama_index.core import Document

    paths = sorted(folder.rglob("*.md"))
    documents = [Document(text=path.read_text("utf-8"), id_=path.name) for path in paths]
    pipeline.run(documents=documents)
    pipeline.persist(str(store))
    pipeline.vector_store.persist(str(store / "vectors.json"))


def main(model: str, store: str, settings: str) -> None:
    # What the libraries print is talk.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    pipeline = make(model, json.loads(settings))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        ingest(pipeline, Path(json.loads(line)["folder"]), Path(store))
        taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
        print(json.dumps({**taken, "chunks": len(pipeline.vector_store.data.embedding_dict)}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
