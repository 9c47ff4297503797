from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_model import CHATML, build_model, make_examples

from finetune.methods.dpo import Dpo
from finetune.settings import TrainSettings
from finetune.tokens import adjusted, encode, encode_all, load_tokenizer, stop_tokens, template_hash, windows_of
from finetune.types import Example, TrainingError, Turn

EXAMPLE = Example("e1", (Turn("user", "手续费是多少？"),), "四欧元。")


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def test_the_loss_covers_the_answer_and_its_end(tiny: Path, tokenizer: Any) -> None:
    for example in (EXAMPLE, *make_examples(2)):
        encoded = encode(tokenizer, example, stop_tokens(tokenizer, tiny))
        prompt = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
        served = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert encoded.input_ids[: encoded.prompt] == served
        assert tokenizer.decode(encoded.input_ids[encoded.prompt :]) == example.completion + "<|im_end|>"
        assert encoded.labels == [-100] * len(served) + encoded.input_ids[len(served) :]


def test_of_several_templates_the_one_for_plain_chats_is_taken(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "several")
    found = load_tokenizer(tmp_path / "several")
    assert template_hash(found) == template_hash(load_tokenizer(tiny))
    # A model version is a folder of files.
    found.save_pretrained(tmp_path / "one")
    assert all(file.is_file() for file in (tmp_path / "one").iterdir())


def test_trl_prepares_the_same_tokens(tiny: Path, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    examples = make_examples(6)
    rows = [
        {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in example.prompt],
            "completion": [{"role": "assistant", "content": example.completion}],
        }
        for example in examples
    ]
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False)
    theirs = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    for example, row in zip(examples, theirs.train_dataset, strict=True):
        ours = encode(tokenizer, example, stop_tokens(tokenizer, tiny))
        length = len(ours.input_ids)
        assert row["input_ids"][:length] == ours.input_ids
        assert row["labels"][:length] == ours.labels
        # trl also trains on the line end that the template writes after the end token and serving never generates.
        assert tokenizer.decode(row["input_ids"][length:]) == "\n"


@pytest.mark.parametrize(
    ("template", "example", "says"),
    [
        (
            CHATML.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>' }}{% endif"),
            EXAMPLE,
            "training and serving differ",
        ),
        (CHATML.replace("<|im_end|>", ""), EXAMPLE, "does not end the answer with an end-of-turn token"),
        (CHATML.replace("{% if add", "The end.{% if add"), EXAMPLE, "differ"),
        ("{{ raise_exception('no system role') }}", EXAMPLE, "the chat template refuses it"),
        (CHATML, replace(EXAMPLE, completion="四<|im_end|>欧元"), "contains the end-of-turn token"),
        (CHATML, replace(EXAMPLE, completion=""), "the answer is empty"),
    ],
)
def test_what_would_be_served_otherwise_is_refused(tiny: Path, template: str, example: Example, says: str) -> None:
    tokenizer = load_tokenizer(tiny, template)
    with pytest.raises(TrainingError, match=says) as caught:
        encode(tokenizer, example, stop_tokens(tokenizer, tiny))
    assert "example e1" in str(caught.value)


class _Counting:
    """A tokenizer that counts how often its added tokens are read, which takes long where they are thousands."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.read = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        self.read += name == "added_tokens_decoder"
        return getattr(self._tokenizer, name)


def test_what_must_not_be_spelt_is_worked_out_once(tiny: Path, tokenizer: Any) -> None:
    stops = stop_tokens(tokenizer, tiny)
    examples = [replace(example, rejected="不知道。") for example in make_examples(6)]
    reads = []
    for over_long in ("error", "window"):
        counting = _Counting(tokenizer)
        encode_all(counting, examples, stops, TrainSettings(max_length=128, over_long=over_long), 256)  # type: ignore[arg-type]
        reads.append(counting.read)
    counting = _Counting(tokenizer)
    Dpo(TrainSettings(method="dpo"), tiny).encode(counting, examples, stops, 256)
    assert max(*reads, counting.read) <= 2


def test_what_is_added_to_a_tokenizer_must_not_be_spelt_either(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    stops, spelling = stop_tokens(tokenizer, tiny), replace(EXAMPLE, completion="四<stop>欧元。")
    encode_all(tokenizer, [spelling], stops, TrainSettings(), 256)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<stop>"]})
    with pytest.raises(TrainingError, match="the answer contains the control token '<stop>'"):
        encode_all(tokenizer, [spelling], stops, TrainSettings(), 256)


def test_over_long_examples_follow_the_policy(tiny: Path, tokenizer: Any) -> None:
    examples = [*make_examples(2), replace(EXAMPLE, id="long", completion="长" * 100)]
    stops = stop_tokens(tokenizer, tiny)
    with pytest.raises(TrainingError, match=r"example long: \d+ tokens \(prompt \d+, answer \d+\), at most 128 fit"):
        encode_all(tokenizer, examples, stops, TrainSettings(max_length=128), 256)
    kept, dropped = encode_all(tokenizer, examples, stops, TrainSettings(max_length=128, over_long="drop"), 256)
    assert ([item.id for item in kept], dropped) == (["e0", "e1"], 1)
    with pytest.raises(TrainingError, match="at most 64 fit"):
        encode_all(tokenizer, examples, stops, TrainSettings(max_length=128), 64)


@pytest.mark.parametrize("answer", ["长" * 60 + "。", "word " * 150, "手续费是 4 欧元，见第 7 条。" * 20])
def test_windows_lose_nothing_of_the_answer(tiny: Path, tokenizer: Any, answer: str) -> None:
    example, stops = replace(EXAMPLE, completion=answer), stop_tokens(tokenizer, tiny)
    whole = encode(tokenizer, example, stops)
    windows = windows_of(tokenizer, example, stops, 128)
    assert len(windows) > 1 and all(len(window.input_ids) <= 128 for window in windows)
    prompt, wanted = whole.input_ids[: whole.prompt], whole.input_ids[whole.prompt :]
    trained = [token for window in windows for token in window.input_ids[window.prompt :]]
    assert trained == wanted
    assert [window.input_ids[-1] in stops for window in windows] == [False] * (len(windows) - 1) + [True]
    done = 0
    for window in windows:
        seen = window.input_ids[len(prompt) : window.prompt]
        assert window.input_ids[: len(prompt)] == prompt
        # What is seen without loss is what came just before.
        assert wanted[done - len(seen) : done] == seen
        assert bool(seen) == (done > 0)
        done += len(window.input_ids) - window.prompt
    rows, dropped = encode_all(tokenizer, [example, EXAMPLE], stops, TrainSettings(max_length=128, over_long="window"), 256)
    assert (len(rows), dropped, adjusted(rows)) == (len(windows) + 1, 0, {"answer in windows": 1})


def test_windows_leave_out_the_oldest_history_first(tiny: Path, tokenizer: Any) -> None:
    stops = stop_tokens(tokenizer, tiny)
    history = tuple(Turn(role, f"{role} {number} {'旧' * 8}") for number in range(4) for role in ("user", "assistant"))  # type: ignore[arg-type]
    example = replace(EXAMPLE, prompt=(Turn("system", "Briefly."), *history, *EXAMPLE.prompt))
    (kept,) = windows_of(tokenizer, example, stops, 200)
    text = tokenizer.decode(kept.input_ids)
    assert 0 < kept.shortened < 8 and kept.shortened % 2 == 0
    expected = replace(example, prompt=(example.prompt[0], *example.prompt[1 + kept.shortened :]))
    assert kept.input_ids == encode(tokenizer, expected, stops).input_ids
    assert "Briefly." in text and "手续费是多少？" in text and "user 0" not in text and "assistant 3" in text
    # One more question with its answer would not fit.
    more = replace(example, prompt=(example.prompt[0], *example.prompt[kept.shortened - 1 :]))
    assert len(encode(tokenizer, more, stops).input_ids) > 200
    assert adjusted([kept]) == {"history shortened": 1}
    assert windows_of(tokenizer, example, stops, 10_000)[0].shortened == 0


def test_a_question_too_long_for_windows_is_named(tiny: Path, tokenizer: Any) -> None:
    example = replace(EXAMPLE, prompt=(Turn("user", "长" * 60),), completion="好" * 60)
    with pytest.raises(TrainingError, match=r"example e1: the system message and the question take \d+ tokens, more than half of the 256"):
        windows_of(tokenizer, example, stop_tokens(tokenizer, tiny), 256)


def test_a_base_without_template_needs_one(tmp_path: Path) -> None:
    base = build_model(tmp_path / "plain", template=None)
    with pytest.raises(TrainingError, match="no chat template"):
        load_tokenizer(base)
    assert load_tokenizer(base, CHATML).chat_template == CHATML


def test_a_folder_without_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
