"""Configurations: complete with defaults, and quick to refuse what is mistyped."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rass_core.config import RassConfig, load_config
from rass_core.errors import ConfigError
from rass_core.models.prefix_logprobs import told_apart
from rass_core.probe.settings import DEFAULT_PREFIXES

SMALLEST: dict[str, Any] = {"model": {"name": "org/model"}, "prompts": {"sources": [{"path": "prompts.csv"}]}}


def written(folder: Path, content: Any) -> Path:
    path = folder / "rass.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def loaded(folder: Path, **sections: Any) -> RassConfig:
    return load_config(written(folder, SMALLEST | sections))


def problem(folder: Path, content: Any) -> str:
    path = written(folder, content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_defaults_fill_the_smallest_configuration(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert config.generator is None
    assert config.probe.prefixes.keys() >= {"en", "de", "es", "fr", "zh"}
    assert loaded(tmp_path, probe=None) == config


def test_overrides_replace_top_level_keys_unless_none(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST | {"seed": 3})
    assert load_config(path, seed=7, lake=None).seed == 7
    assert load_config(path, seed=None).seed == 3


def test_the_digest_ignores_only_where_it_writes_to(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST)
    assert load_config(path, lake="a").sha256() == load_config(path, lake="b").sha256()
    assert load_config(path, seed=1).sha256() != load_config(path, seed=2).sha256()


def test_paths_beside_the_file_are_taken_from_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a.csv").touch()
    sources = [{"path": "seeds/*.csv"}, {"path": "elsewhere.csv"}, {"dataset": "seeds"}]
    config = loaded(tmp_path, model={"name": "model"}, generator={"name": "org/model"}, prompts={"sources": sources})
    assert config.model.name == str(tmp_path / "model")
    assert config.generator is not None
    assert config.generator.name == "org/model"
    assert [s.path for s in config.prompts.sources] == [str(tmp_path / "seeds/*.csv"), "elsewhere.csv", None]
    assert config.prompts.sources[2].dataset == "seeds"


@pytest.mark.parametrize(
    ("section", "wrong", "hint"),
    [
        ({"sed": 1}, "sed", "did you mean 'seed'?"),
        ({"probe": {"n_bootstraps": 9}}, "probe.n_bootstraps", "did you mean 'n_bootstrap'?"),
        ({"prompts": {"sources": [{"pth": "a"}]}}, "prompts.sources.0.pth", "did you mean 'path'?"),
        (
            {"prompts": {"sources": [{"path": "a"}, {"path": "b", "licens": "MIT"}]}},
            "prompts.sources.1.licens",
            "'licence'",
        ),
        (
            {"moderator": {"members": [{"endpoint": {"base_ur": "x"}}]}},
            "moderator.members.0.endpoint.base_ur",
            "did you mean 'base_url'?",
        ),
        ({"probe": {"prefixes": {"en": {"refusals": []}}}}, "probe.prefixes.en.refusals", "did you mean 'refusal'?"),
        ({"model": {"nmae": "org/model"}}, "model.nmae", "did you mean 'name'?"),
        ({"generator": {"xyzzy": 1}}, "generator.xyzzy", "known here: name, dtype"),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_right_one(
    tmp_path: Path, section: dict[str, Any], wrong: str, hint: str
) -> None:
    message = problem(tmp_path, SMALLEST | section)
    assert f"unknown key {wrong!r}" in message
    assert hint in message


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"seed": -1}, ["seed", "greater than or equal to 0"]),
        ({"model": "org/model"}, ["model", "dictionary"]),
        ({"model": {"dtype": "float32"}}, ["'model.name' is missing"]),
        ({"model": {"name": "m", "dtype": "int8"}}, ["model.dtype", "bfloat16"]),
        ({"prompts": {"sources": []}}, ["prompts.sources", "at least 1 item"]),
        ({"prompts": {"sources": [{"split": "test"}]}}, ["prompts.sources.0", "either path or dataset"]),
        ({"probe": {"positions": [0]}}, ["probe.positions.0", "less than 0"]),
        ({"probe": {"layers": [-1]}}, ["probe.layers.0", "greater than or equal to 0"]),
        ({"generate": {"operators": ["rewrit"]}}, ["generate.operators.0", "'rewrit'; did you mean 'rewrite'?"]),
        ({"generate": {"operators": ["zzz"]}}, ["unknown operator 'zzz'", "there are begin, context"]),
        ({"generate": {"operators": ["rewrite", "rewrite"]}}, ["operators", "twice"]),
        ({"generate": {"operators": []}}, ["generate.operators", "at least 1 item"]),
        ({"generate": {"alphas": []}}, ["generate.alphas", "at least 1 item"]),
        ({"generate": {"alphas": [0.2, 0]}}, ["alphas", "0 is the control"]),
        ({"generate": {"alphas": [float("nan")]}}, ["generate.alphas.0", "finite"]),
        ({"generate": {"instructions": {"rewite": {}}}}, ["instructions", "did you mean 'rewrite'?"]),
        ({"generate": {"instructions": {"rewrite": {"en": "Rewrite it"}}}}, ["rewrite, en: has no {a}"]),
        ({"generate": {"instructions": {"recombine": {"sw": "{a}"}}}}, ["recombine, sw: has no {b}"]),
        ({"lake": None, "seed": "x", "name": 3}, ["and 1 more"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_with_its_place(tmp_path: Path, section: dict[str, Any], words: list[str]) -> None:
    message = problem(tmp_path, SMALLEST | section)
    for word in words:
        assert word in message


SECRETS = ("hunter2", "sk-live-1234567890")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ('{base_url: "http://ann:hunter2/x@host/v1", model: m}', "judge.members.0.endpoint.base_url"),
        ('{base_url: "http://ann:hunter2@host:sk-live-1234567890/v1", model: m}', "not shown"),
        ('{base_url: "http://ann:x#hunter2@host/v1", model: m}', "not shown"),
        ('{base_url: "http://host/ann:hunter2@v1", model: m}', "%40"),
        ('{base_url: "ann:hunter2@host/v1", model: m}', "no address such as"),
        ('{base_url: ["http://ann:hunter2@host/v1"], model: m}', "base_url"),
        ('"http://ann:hunter2@host/v1"', "judge.members.0.endpoint"),
        ("{base_url: http://host/v1, model: m, api_key: sk-live-1234567890}", "did you mean 'api_key_variable'?"),
        ("{base_url: http://host/v1, model: m, api_key_variable: sk-live-1234567890}", "name of an environment"),
        ("{base_url: http://host/v1, model: m, api_key_variable: [hunter2]}", "api_key_variable"),
        ('{base_url: "http://ann:hunter2@host/v1, model: m}', "cannot be read as YAML"),
        ('{base_url: http://ann:hunter2@host/v1, model: m, timeout_s: "sk-live-1234567890"}', "timeout_s"),
        ("{base_url: http://ann:hunter2@host/v1}", "endpoint.model' is missing"),
    ],
)
def test_no_message_repeats_a_secret(tmp_path: Path, endpoint: str, words: str) -> None:
    message = problem(tmp_path, yaml.safe_dump(SMALLEST) + f"judge: {{members: [{{kind: llm, endpoint: {endpoint}}}]}}")
    assert words in message
    assert not any(secret in message for secret in SECRETS)


def test_a_configuration_with_a_password_is_stored_without_it(tmp_path: Path) -> None:
    endpoint = {"base_url": "https://ann:hunter2@host/v1?key=sk-live-1234567890", "model": "m"}
    config = loaded(tmp_path, moderator={"members": [{"kind": "llm", "endpoint": endpoint}]})
    stored = config.model_dump_json()
    assert "https://***@host/v1?key=***" in stored
    again = RassConfig.model_validate_json(stored)
    for text in (stored, repr(config), repr(config.model_dump()), repr(again), str(pickle.dumps(config))):
        assert not any(secret in text for secret in SECRETS)
    assert config.moderator.members[0].endpoint is not None
    assert config.moderator.members[0].endpoint.address.password == "hunter2"
    assert copy.deepcopy(config).moderator.members[0].endpoint.address.password == "hunter2"  # type: ignore[union-attr]
    with pytest.raises(ValidationError) as caught:
        RassConfig.model_validate(
            SMALLEST | {"moderator": {"members": [{"endpoint": {"base_url": endpoint["base_url"]}}]}}
        )
    assert "hunter2" not in str(caught.value), "not even in pydantic's own words"


def test_a_file_that_holds_no_settings_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; `rass init`"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    assert "cannot be read as YAML" in problem(tmp_path, "model: [")
    assert "cannot be read as YAML" in problem(tmp_path, "a: \t- b: : c")
    assert "holds no settings" in problem(tmp_path, "")
    assert "holds no settings" in problem(tmp_path, "- a\n- b")
    assert "1" in problem(tmp_path, "1: x\nmodel: {name: m}\nprompts: {sources: [{path: p}]}")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: Grün".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(latin)


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded(tmp_path).seed = 1  # type: ignore[misc]


def test_a_stored_configuration_is_read_again() -> None:
    members = [{"kind": "phrases"}, {"kind": "hf", "model": "m"}, {"kind": "llm", "n_attempts": 2}]
    config = RassConfig.model_validate(
        {
            "model": {"name": "m"}, "prompts": {"sources": [{"path": "p.parquet"}]}, "judge": {"members": members},
            "moderator": {"members": [{"kind": "oracle"}, {"kind": "llm", "n_samples": 3}]},
        }
    )  # fmt: skip
    assert RassConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("section", "member", "what"),
    [
        ("judge", {"kind": "llm", "model": "x"}, "model: belongs to a member of kind hf, this member is llm"),
        ("judge", {"kind": "phrases", "n_attempts": 2}, "n_attempts: belongs to a member of kind llm"),
        ("moderator", {"kind": "oracle", "model": "x"}, "model: belongs to a member of kind hf"),
    ],
)
def test_settings_of_another_kind_are_refused(section: str, member: dict[str, Any], what: str) -> None:
    given = {"model": {"name": "m"}, "prompts": {"sources": [{"path": "p.parquet"}]}, section: {"members": [member]}}
    with pytest.raises(ValidationError, match=what):
        RassConfig.model_validate(given)


@pytest.mark.parametrize("language", DEFAULT_PREFIXES)
def test_no_default_refusal_is_read_as_a_first_word_that_help_may_begin_with(language: str) -> None:
    """Words stand for tokens; in Chinese characters do."""
    numbers: dict[str, int] = {}

    def tokens(text: str) -> list[int]:
        words = text if language.startswith("zh") else re.findall(r"[\w']+", text)
        return [numbers.setdefault(word, len(numbers)) for word in words]

    known = DEFAULT_PREFIXES[language]
    refusals, compliances = (list(map(tokens, side)) for side in (known.refusal, known.compliance))
    assert all(len(opening) >= 2 for opening in told_apart(refusals, compliances))
