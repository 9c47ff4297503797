"""Chat templates for bases that have none, and what a message must not spell in one. Training and every engine take both from here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune.types import TrainingError

_BOS = "{% if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}"
# Every answer ends with the tokenizer's own EOS, so that a base learns to stop whatever its special tokens are.
NAMED: Mapping[str, str] = {
    "chatml": (
        # Some tokenizers have its own first token for BOS.
        _BOS.replace("bos_token %}", "bos_token and bos_token != '<|im_start|>' %}")
        + "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "{{ (eos_token if message['role'] == 'assistant' else '<|im_end|>') + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "alpaca": (
        _BOS + "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
}
_MARKER = re.compile(r"<\|[^|<>\s]+\|>|<<?/?[A-Za-z_]+>>?|\[/?[A-Z_]+\]|### [A-Z][a-z]+:")
_BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def resolve(given: str | None, root: Path) -> str | None:
    """The text of a template: one of `NAMED`, a template itself (it has braces), or a file, relative to `root`; None for none.

    Raises TrainingError that lists what can be named.
    """
    if given is None or "{" in given:
        return given
    if given in NAMED:
        return NAMED[given]
    try:
        return (root / given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TrainingError(f"chat_template {given!r}: expected {', '.join(NAMED)}, a Jinja template, or its file ({error})") from error


def markers(template: str) -> frozenset[str]:
    """The words in a template that begin or end a turn; in a message they would be taken for its structure."""
    return frozenset(_MARKER.findall(template))


def control_words(tokenizer: Any) -> list[str]:
    """What a message must not spell, longest first: the control tokens of `tokenizer`, and the `markers` of its chat template."""
    # Some control tokens ("<tool_call>") are not marked as special; added tokens that are words or white space are no control tokens.
    added = tokenizer.added_tokens_decoder.values()
    words = {token.content for token in added if token.special or _BRACKETED.fullmatch(token.content)}
    # Longest first, so that a token inside a longer one is not split out of it.
    return sorted(words | markers(str(tokenizer.chat_template)), key=lambda word: (-len(word), word))


def defuse(content: str, words: Iterable[str]) -> str:
    """`content` with a space after the first character of each of `words` in it: text that can neither end a turn nor begin one.

    Every message passes through here, in training as in serving, so that both have the same tokens.
    """
    for word in words:
        if word in content:
            content = content.replace(word, f"{word[:1]} {word[1:]}")
    return content
