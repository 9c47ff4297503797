"""The embedding models of a workspace: the configured one, and those that generations of the index were made with."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from appliance.errors import ApplianceError
from appliance.store.database import Database, utcnow
from appliance.store.schema import embedding, generation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retrieval.embed import Embedder

_REMEMBERED = 256
_SENTENCES = 4096


class Embedders:
    """Opens embedding models once, by reference. Thread-safe.

    A generation is searched with the model it was made with, whichever the configuration names by now: between the change of the setting
    and the end of `appliance index rebuild`, and in a process that was started before either.
    """

    def __init__(self, database: Database, reference: str, open_model: Callable[[str], Embedder]) -> None:
        """`reference` is the configured model; `open_model` opens one by its reference and raises ApplianceError if it cannot."""
        self.reference = reference
        self._database = database
        self._open_model = open_model
        self._models: dict[str, QuestionCache] = {}
        self._of: tuple[int, QuestionCache] | None = None
        self._lock = threading.Lock()

    def configured(self) -> QuestionCache:
        """The configured model, loaded on first use."""
        return self._model(self.reference)

    def of(self, generation_id: int | None) -> QuestionCache:
        """The model a generation was made with. If it is not known or not there, the configured one: the index then says what is wrong."""
        if generation_id is None:
            return self.configured()
        known = self._of
        if known is not None and known[0] == generation_id:
            return known[1]
        try:
            found = self._model(self.recorded(generation_id) or self.reference)
        except ApplianceError:
            found = self.configured()
        self._of = (generation_id, found)
        return found

    def recorded(self, generation_id: int) -> str | None:
        """The reference of the model a generation was made with."""
        query = sa.select(embedding.c.reference).join(generation, generation.c.embedding_hash == embedding.c.hash)
        with self._database.read() as connection:
            return connection.execute(query.where(generation.c.id == generation_id)).scalar_one_or_none()

    def record(self) -> QuestionCache:
        """The configured model, recorded as one that generations are made with."""
        found = self.configured()
        with self._database.write() as connection:
            connection.execute(embedding.delete().where(embedding.c.hash == found.hash))
            connection.execute(embedding.insert().values(hash=found.hash, reference=self.reference, used_at=utcnow()))
        return found

    def forget_questions(self) -> None:
        """Forget the vectors of the last questions."""
        with self._lock:
            models = list(self._models.values())
        for model in models:
            model.clear()

    def _model(self, reference: str) -> QuestionCache:
        with self._lock:
            if reference not in self._models:
                self._models[reference] = QuestionCache(self._open_model(reference))
            return self._models[reference]


class QuestionCache:
    """An embedder that remembers the last questions: retrieval and router share one embedding of a question."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def hash(self) -> str:
        return self._embedder.hash

    @property
    def dim(self) -> int:
        return self._embedder.dim

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._embedder.count_tokens(list(texts))

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._embedder.encode_passages(list(texts))

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        with self._lock:
            missing = [text for text in dict.fromkeys(texts) if text not in self._known]
            if missing:
                for text, vector in zip(missing, self._embedder.encode_queries(missing), strict=True):
                    self._known[text] = vector
            found = np.stack([self._known[text] for text in texts])
            for text in texts:
                self._known.move_to_end(text)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def clear(self) -> None:
        with self._lock:
            self._known.clear()


class SentenceCache:
    """The vectors of the sentences that questions were compared with lately, of one generation. Thread-safe.

    By hash, so that no text stays; and a deletion makes a new generation.
    """

    def __init__(self) -> None:
        self._of: tuple[int | None, str] | None = None
        self._known: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        with self._lock:
            self._known.clear()

    def vectors(self, embedder: QuestionCache, generation_id: int | None, texts: Sequence[str]) -> NDArray[np.float32]:
        """The passage vectors of `texts`, at least one; those that are not known are made."""
        import numpy as np

        of = (generation_id, embedder.hash)
        names = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in texts]
        with self._lock:
            if self._of != of:
                self._known.clear()
                self._of = of
            found = {name: vector for name in names if (vector := self._known.get(name)) is not None}
        missing = {name: text for name, text in zip(names, texts, strict=True) if name not in found}
        if missing:
            made = dict(zip(missing, embedder.encode_passages(list(missing.values())), strict=True))
            found |= made
            with self._lock:
                if self._of == of:
                    self._known |= made
                    while len(self._known) > _SENTENCES:
                        self._known.popitem(last=False)
        return np.stack([found[name] for name in names])
