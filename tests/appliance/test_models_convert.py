"""Converting model files: a small one written here for every shape of trouble, the real one against its own engine where it is at hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import ApplianceError
from appliance.models.e5 import add_empty_prompts, convert_e5
from appliance.models.gguf import convert_gguf

HIDDEN, FEED, POSITIONS = 32, 64, 16
PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "▁",
    "▁query",
    "▁passage",
    ":",
    "▁cat",
    "▁dog",
    "猫",
    "狗",
    "▁fee",
    "s",
    "1",
    "～",
    "A",
    "<mask>",
]


def _quantized(values: np.ndarray) -> bytes:
    blocks = values.astype(np.float32).reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 7 + 1e-6).astype("<f2")
    nibbles = np.clip(np.round(blocks / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = nibbles[:, :16] | (nibbles[:, 16:] << 4)
    return b"".join(s.tobytes() + p.tobytes() for s, p in zip(scale, packed, strict=True))


def write_e5(path: Path, skip: str = "", block: int = 32) -> None:
    """A one-layer model in the file format, with random weights."""
    random = np.random.default_rng(7)
    h, f = HIDDEN, FEED
    shapes = {"emb.word": (len(PIECES) + 3, h), "emb.pos": (POSITIONS, h), "emb.type": (2, h), "emb.ln.w": (h,), "emb.ln.b": (h,)}
    for part in ("q", "k", "v", "ao", "fi", "fo"):
        weight = {"fi": (f, h), "fo": (h, f)}.get(part, (h, h))
        shapes |= {f"l0.{part}.w": weight, f"l0.{part}.b": weight[:1]}
    shapes |= {f"l0.{part}.{what}": (h,) for part in ("aln", "oln") for what in "wb"}
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0] + [len(piece.encode()) for piece in PIECES]).astype("<u4")
    scores = -np.arange(len(PIECES)).astype("<f4")
    # As in the real file: full-width letters become plain ones, a tab becomes a space, but the wave dash stays.
    table = {"Ａ": "A", "１": "1", "\t": " ", "～": "～"}
    full = {chr(c): n for c, n in _full_table().items()} | table
    normaliser = b"".join(struct.pack(f"<IB{len(v)}I", ord(k), len(v), *map(ord, v)) for k, v in sorted(full.items()))
    head = b"E5S1" + struct.pack("<I7if", 1, h, 1, 2, f, len(PIECES) + 3, POSITIONS, 2, 1e-12) + struct.pack("<i", block)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + ends.tobytes() + scores.tobytes() + blob
    head += struct.pack("<iI", len(full), len(normaliser)) + normaliser
    tensors = []
    for name, shape in shapes.items():
        values = random.normal(1 if name.endswith("n.w") else 0, 0.3, shape).astype("<f4")
        matrix = len(shape) == 2
        tensors.append((name, 1 if matrix else 0, values.size, _quantized(values) if matrix else values.tobytes()))
    tensors = [tensor for tensor in tensors if tensor[0] != skip]
    directory_size = 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name, *_ in tensors)
    at, directory, data = len(head) + directory_size, struct.pack("<i", len(tensors)), b""
    for name, kind, count, raw in tensors:
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, at + len(data), len(raw))
        data += raw
    path.write_bytes(head + directory + data)


def _full_table() -> dict[int, str]:
    """What NMT + NFKC does to every character it changes."""
    from tokenizers import normalizers

    base = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    codes = (code for code in range(1, 0xF0000) if not 0xD800 <= code < 0xE000)
    return {code: new for code in codes if (new := base.normalize_str(chr(code))) != chr(code) and len(new) < 32}


@pytest.fixture(scope="module")
def e5_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("e5") / "tiny.bin"
    write_e5(path)
    return path


@pytest.fixture(scope="module")
def e5_folder(e5_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e5-folder") / "ready"
    convert_e5(e5_file, folder)
    return folder


def test_the_converted_folder_embeds_both_languages(e5_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(e5_folder), device="cpu")
    assert (model.prompts["query"], model.prompts["passage"]) == ("query: ", "passage: ")
    assert model.max_seq_length == POSITIONS
    vectors = model.encode(["cat fees", "猫", ""], prompt_name="query")
    assert vectors.shape == (3, HIDDEN)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1])
    assert not np.allclose(model.encode("猫", prompt_name="passage"), vectors[1])


def test_the_tokenizer_normalises_as_the_file_says(e5_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(e5_folder)
    assert tokenizer.tokenize("cat  dog\tcat") == ["▁cat", "▁dog", "▁cat"]
    assert tokenizer.tokenize("猫狗") == ["▁", "猫", "狗"]
    assert tokenizer.tokenize("Ａ１～") == ["▁", "A", "1", "～"]
    assert tokenizer("cat")["input_ids"] == [0, PIECES.index("▁cat"), 2]


def test_weights_are_dequantized_by_the_formula(e5_file: Path, e5_folder: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(e5_folder / "model.safetensors")
    original = np.random.default_rng(7).normal(0, 0.3, (len(PIECES) + 3, HIDDEN))
    assert np.abs(tensors["embeddings.word_embeddings.weight"] - original).max() < 0.1
    assert tensors["encoder.layer.0.intermediate.dense.weight"].shape == (FEED, HIDDEN)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())


def test_damaged_files_are_named(e5_file: Path, tmp_path: Path) -> None:
    raw = e5_file.read_bytes()
    for cut in (6, 40, 200, len(raw) // 2, len(raw) - 5):
        (tmp_path / "cut.bin").write_bytes(raw[:cut])
        with pytest.raises(ApplianceError, match=r"ends early"):
            convert_e5(tmp_path / "cut.bin", tmp_path / "out")
    (tmp_path / "html.bin").write_bytes(b"<html>proxy login</html>")
    with pytest.raises(ApplianceError, match=r"html.bin is not an E5S1 file"):
        convert_e5(tmp_path / "html.bin", tmp_path / "out")
    write_e5(tmp_path / "lacking.bin", skip="l0.q.w")
    with pytest.raises(ApplianceError, match=r"lacks 1 tensors.*attention.self.query"):
        convert_e5(tmp_path / "lacking.bin", tmp_path / "out")
    write_e5(tmp_path / "blocks.bin", block=64)
    with pytest.raises(ApplianceError, match=r"blocks of 64 values"):
        convert_e5(tmp_path / "blocks.bin", tmp_path / "out")


def test_empty_prompts_are_added_and_others_kept(tmp_path: Path) -> None:
    import json

    config = tmp_path / "config_sentence_transformers.json"
    config.write_text('{"prompts": {"query": "问："}}', encoding="utf-8")
    add_empty_prompts(tmp_path)
    assert json.loads(config.read_text(encoding="utf-8"))["prompts"] == {"query": "问：", "passage": ""}
    config.unlink()
    add_empty_prompts(tmp_path)
    assert not config.exists()


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ApplianceError, match=r"broken.gguf cannot be read as a GGUF model"):
        convert_gguf(tmp_path / "broken.gguf", tmp_path / "out")


def test_gguf_without_a_chat_template_takes_the_given_one_and_adds_its_first_token(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert tokenizer("ab")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == f"{tokenizer.bos_token}ab"
    assert tokenizer.decode(tokenizer("费用 12", add_special_tokens=False)["input_ids"]) == "费用 12"
    assert tokenizer.model_max_length == 128
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype.itemsize == 4
    with pytest.raises(ApplianceError, match=r"has no chat template"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "other")


def write_gguf(path: Path) -> None:
    """A one-layer Llama over bytes, in float32."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    random = np.random.default_rng(3)
    tokens = ["<bos>", "<eos>", *sorted(ByteLevel.alphabet()), "ab"]
    h, f, v = 32, 64, len(tokens)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(h)
    writer.add_feed_forward_length(f)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(h // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(v)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (v - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(True)
    shapes = {"token_embd": (v, h), "output_norm": (h,), "blk.0.attn_norm": (h,), "blk.0.ffn_norm": (h,)}
    shapes |= {"blk.0.attn_q": (h, h), "blk.0.attn_k": (h // 2, h), "blk.0.attn_v": (h // 2, h), "blk.0.attn_output": (h, h)}
    shapes |= {"blk.0.ffn_gate": (f, h), "blk.0.ffn_up": (f, h), "blk.0.ffn_down": (h, f)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
