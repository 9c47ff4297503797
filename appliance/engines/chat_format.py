"""From chat messages to prompt tokens, through the tokenizer's own chat template."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.engines.base import EngineError, Message
from appliance.engines.prompt_cache import in_common
from finetune.chat_templates import control_words, defuse
from finetune.tokens import load_tokenizer
from finetune.types import TrainingError
from retrieval.loading import ONE_AT_A_TIME


class ChatFormat:
    """A model's tokenizer and chat template. Safe to use from several threads."""

    def __init__(self, path: Path, chat_template: str | None) -> None:
        try:
            with ONE_AT_A_TIME:
                self._tokenizer: Any = load_tokenizer(path, chat_template)
        except TrainingError as error:
            raise EngineError(str(error)) from error
        self._words = control_words(self._tokenizer)
        self.end_token: int | None = self._tokenizer.eos_token_id
        # The tokenizer refuses two calls at once.
        self._lock = threading.Lock()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Prompt tokens up to where the assistant's answer begins. Raises EngineError for no messages, or what the template refuses."""
        return self._tokens(self._rendered(messages))

    def encode_parts(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """The same, and how many of the tokens are template and system text: what stands before anybody's question, history or passages."""
        text = self._rendered(messages)
        tokens = self._tokens(text)
        first = defuse(messages[0]["content"], self._words).strip()
        # Where the same words stand further ahead already, less is taken for fixed.
        end = max(0, text.find(first)) + (len(first) if messages[0]["role"] == "system" and first in text else 0)
        return tokens, min(in_common(self._tokens(text[:end]), tokens), len(tokens) - 1)

    def _tokens(self, text: str) -> list[int]:
        with self._lock:
            tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _rendered(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        if not messages:
            raise EngineError("there are no messages to answer; send at least one user message")
        plain = [{"role": message["role"], "content": defuse(message["content"], self._words)} for message in messages]
        with self._lock:
            try:
                return str(self._tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False))
            except (TemplateError, ValueError, TypeError) as error:
                raise EngineError(f"the chat template of the model refuses these messages: {error}") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, without special ones."""
        with self._lock:
            text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
