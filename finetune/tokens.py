"""From examples to token ids, with the proof that what is trained is what will be served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.chat_templates import control_words, defuse
from finetune.settings import TrainSettings
from finetune.types import Example, TrainingError, Turn

# Raised when the same example becomes other tokens: no run goes on from a checkpoint made with the former ones.
ENCODING = 2


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example; the loss covers ``input_ids[prompt:]``, which ends with an end-of-turn token.

    Of an answer that is learnt in several `windows` only the last ends so. `shortened` is the number of messages of the
    history that were left out.
    """

    id: str
    input_ids: list[int]
    prompt: int
    shortened: int = 0
    windows: int = 1

    @property
    def labels(self) -> list[int]:
        return [-100] * self.prompt + self.input_ids[self.prompt :]


def load_tokenizer(base: Path, chat_template: str | None = None) -> Any:
    """The tokenizer of the model in `base`, with `chat_template` in place of its own. Raises TrainingError if there is neither."""
    tokenizer = read_tokenizer(base, chat_template)
    if not tokenizer.chat_template:
        raise TrainingError(
            f"{base}: the model has no chat template; configure one for its engine: chat_template = chatml, alpaca or a file"
        )
    return tokenizer


def read_tokenizer(base: Path, chat_template: str | None = None) -> Any:
    """The same, also where there is no template. Raises TrainingError if there is no tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: the tokenizer cannot be loaded ({error}); the folder must hold a complete model") from error
    template = chat_template or tokenizer.chat_template
    # A model may bring several: this is the one that plain chats are served with.
    tokenizer.chat_template = template.get("default") if isinstance(template, dict) else template
    return tokenizer


def template_hash(tokenizer: Any) -> str:
    """The sha256 (hex) of the chat template that was trained with."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()


def stop_tokens(tokenizer: Any, base: Path) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's EOS and those of the model's generation config."""
    from transformers import GenerationConfig

    ids: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if (base / "generation_config.json").exists():
        declared = GenerationConfig.from_pretrained(base, local_files_only=True).eos_token_id
        ids += declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not ids:
        raise TrainingError(f"{base}: neither the tokenizer nor generation_config.json names an end-of-turn token; add eos_token_id")
    return frozenset(ids)


@dataclass(frozen=True, slots=True)
class Spellings:
    """What examples must not spell: `words` no message of a prompt, `special` no answer."""

    words: Sequence[str]
    special: Sequence[str]


def spellings(tokenizer: Any) -> Spellings:
    """Those of `tokenizer` as it is now; with thousands of added tokens that takes longer than encoding an example."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return Spellings(control_words(tokenizer), special)


def encode(tokenizer: Any, example: Example, stops: frozenset[int], spelt: Spellings | None = None) -> Encoded:
    """The ids of one example, through the chat template, with the messages of its prompt defused as every engine defuses them.

    `spelt` is `spellings(tokenizer)`, which who encodes many examples works out once.
    Raises TrainingError naming the example unless the ids before the completion equal, token by token, what serving sends
    (the prompt with the generation prompt), and the completion ends with an end-of-turn token and holds no other control token.
    """
    spelt = spelt or spellings(tokenizer)
    prompt = [Turn(turn.role, defuse(turn.content, spelt.words)) for turn in example.prompt]
    served = _ids(tokenizer, example, prompt, True)
    trained = _ids(tokenizer, example, (*prompt, Turn("assistant", example.completion)), False)
    for place, token in enumerate(served):
        if place >= len(trained) or trained[place] != token:
            here = tokenizer.decode(trained[place : place + 5]) if place < len(trained) else ""
            raise TrainingError(
                f"example {example.id}: training and serving differ at token {place} of the prompt: trained {here!r}, "
                f"served {tokenizer.decode(served[place : place + 5])!r}; use a chat template that renders the prompt alike in both"
            )
    ends = [place for place in range(len(served), len(trained)) if trained[place] in stops]
    if not ends:
        raise TrainingError(
            f"example {example.id}: the chat template does not end the answer with an end-of-turn token "
            f"({tokenizer.decode(sorted(stops))!r}): the model would never learn to stop; correct the template or eos_token_id"
        )
    # After the end token a template may only write white space; serving never generates it, so it is not trained.
    if len(ends) > 1 or tokenizer.decode(trained[ends[0] + 1 :]).strip():
        raise TrainingError(
            f"example {example.id}: the answer contains the end-of-turn token {tokenizer.decode([trained[ends[0]]])!r}; remove it"
        )
    if word := next((word for word in spelt.special if word in example.completion), None):
        raise TrainingError(f"example {example.id}: the answer contains the control token {word!r}, which serving leaves out; remove it")
    if ends[0] == len(served):
        raise TrainingError(f"example {example.id}: the answer is empty; write one or leave the pair out")
    return Encoded(example.id, trained[: ends[0] + 1], len(served))


def encode_all(
    tokenizer: Any, examples: Sequence[Example], stops: frozenset[int], settings: TrainSettings, context: int
) -> tuple[list[Encoded], int]:
    """(encoded examples, how many were dropped as over-long). `context` is the model's own limit in tokens.

    Raises TrainingError naming the example if it is longer than max_length or the context and the policy is "error", or it is
    "window" and the question is too long for that.
    """
    spelt = spellings(tokenizer)
    if settings.over_long == "window":
        limit = min(settings.max_length, context)
        return [window for example in examples for window in windows_of(tokenizer, example, stops, limit, spelt)], 0
    found = (encode(tokenizer, example, stops, spelt) for example in examples)
    kept = [encoded for encoded in found if not over_long(encoded, settings, context)]
    return kept, len(examples) - len(kept)


def windows_of(tokenizer: Any, example: Example, stops: frozenset[int], limit: int, spelt: Spellings | None = None) -> list[Encoded]:
    """The example in pieces of at most `limit` tokens, nothing of its answer lost; one piece if it fits.

    First the oldest messages of the history are left out, a question with its answer at a time; system message and question
    stay whole. If that is not enough, the answer is learnt in windows: each has the prompt, then (from the second on) the last
    quarter of a window of what went before, without loss, then the next tokens. Each token of the answer has loss in
    one window, and only the last window ends the turn. Raises TrainingError naming the example if the prompt that must stay
    takes more than half of `limit`.
    """
    spelt = spelt or spellings(tokenizer)
    encoded, turns = encode(tokenizer, example, stops, spelt), list(example.prompt)
    first = next(place for place, turn in enumerate(turns) if turn.role != "system")
    while len(encoded.input_ids) > limit and len(turns) > first + 1:
        del turns[first]
        while len(turns) > first + 1 and turns[first].role != "user":
            del turns[first]
        encoded = encode(tokenizer, replace(example, prompt=tuple(turns)), stops, spelt)
    shortened = len(example.prompt) - len(turns)
    prompt, answer = encoded.input_ids[: encoded.prompt], encoded.input_ids[encoded.prompt :]
    room = limit - len(prompt)
    if len(answer) <= room:
        return [replace(encoded, shortened=shortened)]
    if 2 * room < limit:
        raise TrainingError(
            f"example {example.id}: the system message and the question take {len(prompt)} tokens, more than half of the {limit} that fit, "
            'so the answer cannot be learnt in windows; shorten them, raise max_length, or set over_long = "drop"'
        )
    context = room // 4
    starts = [0, *range(room, len(answer), room - context)]
    windows: list[Encoded] = []
    for start in starts:
        seen = min(start, context)
        piece = answer[start - seen : start - seen + room]
        windows.append(Encoded(example.id, prompt + piece, len(prompt) + seen, shortened, len(starts)))
    return windows


def adjusted(rows: Sequence[Any]) -> dict[str, int]:
    """How many examples the policy "window" changed: "history shortened", "answer in windows"."""
    encoded = [row for row in rows if isinstance(row, Encoded)]
    counts = {
        "history shortened": len({row.id for row in encoded if row.shortened}),
        "answer in windows": len({row.id for row in encoded if row.windows > 1}),
    }
    return {name: count for name, count in counts.items() if count}


def over_long(encoded: Encoded, settings: TrainSettings, context: int) -> bool:
    """Whether there are more tokens than max_length or the context. Raises TrainingError then, if the policy is "error"."""
    limit = min(settings.max_length, context)
    if len(encoded.input_ids) <= limit:
        return False
    if settings.over_long == "error":
        answer = len(encoded.input_ids) - encoded.prompt
        raise TrainingError(
            f"example {encoded.id}: {len(encoded.input_ids)} tokens (prompt {encoded.prompt}, answer {answer}), at most {limit} fit; "
            f'shorten it, raise max_length (the model takes {context}), or set over_long = "drop" or "window"'
        )
    return True


def _ids(tokenizer: Any, example: Example, turns: Sequence[Turn], generate: bool) -> list[int]:
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=generate, tokenize=True, return_dict=False)
    except TemplateError as error:
        raise TrainingError(f"example {example.id}: the chat template refuses it ({error}); check its roles and their order") from error
    return ids
