"""GGUF → a folder of float32 safetensors with tokenizer, chat template and generation config."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError
from retrieval.loading import ONE_AT_A_TIME


def convert_gguf(source: Path, target: Path, chat_template: str = "") -> None:
    """Dequantize `source` into the folder `target`, which `from_pretrained` then loads. Takes 20-60 s for the embedded models.

    `chat_template` is kept only if the file brings none. Raises ApplianceError when the file cannot be read or no template is known.
    """
    import torch
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
        wants_bos = _field(reader, "tokenizer.ggml.add_bos_token")
        splits_digits = _field(reader, "tokenizer.ggml.pre") == "smollm"
        del reader
        with _quiet(), ONE_AT_A_TIME:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise ApplianceError(f"{source.name} cannot be read as a GGUF model: {error}") from error
    if splits_digits:
        _split_digits(tokenizer)
    if wants_bos:
        _add_bos(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template or chat_template or None
    if tokenizer.chat_template is None:
        raise ApplianceError(f"{source.name} has no chat template; use a model that brings one")
    tokenizer.model_max_length = model.config.max_position_embeddings
    # The weights are plain float32 now; a remembered quantizer would make saving and loading fail.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with _quiet():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _quiet() -> contextlib.redirect_stderr[io.StringIO]:
    # The library draws bars of its own here, which no setting turns off; the caller shows the progress.
    return contextlib.redirect_stderr(io.StringIO())


def _field(reader: Any, name: str) -> Any:
    found = reader.get_field(name)
    return None if found is None else found.contents()


def _split_digits(tokenizer: Any) -> None:
    # The model was trained on single digits; the generic conversion of this tokenizer forgets the rule.
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _add_bos(tokenizer: Any) -> None:
    # Without its first token Gemma writes nonsense, and the generic conversion does not add it.
    from tokenizers.processors import TemplateProcessing

    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
    )
