from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import load
from appliance.config_template import template
from appliance.errors import UsageError


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text("[retrieval]\nk = 3\ncandidates = 30\n[server]\nport = 1234\n", "utf-8")
    config, origins = load(
        file, {"retrieval.k": "7"}, {"APPLIANCE_RETRIEVAL__K": "6", "APPLIANCE_SERVER__PORT": "4321", "APPLIANCE_WORKSPACE": "x"}
    )
    assert (config.retrieval.k, config.retrieval.candidates, config.server.port, config.answering.max_tokens) == (7, 30, 4321, 128)
    assert origins == {
        "retrieval.k": "flag --set",
        "retrieval.candidates": "appliance.toml",
        "server.port": "environment APPLIANCE_SERVER__PORT",
    }


def test_the_template_changes_no_default(tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text(template(), "utf-8")
    assert load(file, {}, {})[0] == load(tmp_path / "missing.toml", {}, {})[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[retrieval]\nkk = 3", "appliance.toml: unknown setting retrieval.kk; did you mean 'k'?"),
        ("[engines.big]\nlanguage = ['zh']", "unknown setting engines.big.language; did you mean 'languages'?"),
        ("[domains.law.gate]\nmin_gian = 0.1", "unknown setting domains.law.gate.min_gian; did you mean 'min_gain'?"),
        ("[domains.law.gate]\nmetric = 'bleu'", "domains.law.gate.metric = 'bleu': Input should be 'utility', 'token_f1'"),
        ("[servr]\nport = 1", "unknown setting servr; did you mean 'server'?"),
        ("[retrieval]\nk = 0", "retrieval.k = 0: Input should be greater than or equal to 1"),
        ("[retrieval]\nk = 'many'", "retrieval.k = 'many'"),
        ("[engines.x]\nkind = 'tpu'", "engines.x.kind = 'tpu': Input should be 'local', 'openai' or 'vllm'"),
        ("[domains.'法律']\nscenario = 'both'", "domains.法律.scenario = 'both'"),
        ("[retrieval\nk = 3", "appliance.toml: not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_origin(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(UsageError) as caught:
        load(file, {}, {})
    assert message in str(caught.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    file.write_bytes("# 配置".encode("gb18030"))
    with pytest.raises(UsageError, match="not valid TOML"):
        load(file, {}, {})


def test_a_flag_through_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="goes through k, which is a value"):
        load(tmp_path / "none", {"retrieval.k.deep": "1"}, {"APPLIANCE_RETRIEVAL": "no section", "APPLIANCE_RETRIEVAL__K": "1"})


def test_a_domain_on_an_engine_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config, _ = load(tmp_path / "none", {"domains.legal.engine": "gpu"}, {})
    with pytest.raises(UsageError, match=r"\[domains.legal\] engine = 'gpu' is not among the engines: default"):
        config.engine_of("legal")
