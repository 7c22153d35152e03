"""Registered kinds: found by name without heavy imports, their settings validated, stored and read again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, SerializeAsAny, ValidationError, WrapValidator

from rass_core.config import RassConfig, load_config
from rass_core.errors import ConfigError
from rass_core.judges.base import JUDGES, JudgeSettings
from rass_core.judges.settings import JudgeConfig
from rass_core.moderators.base import MODERATORS, ModeratorSettings
from rass_core.registry import Registry, registry_of
from rass_core.settings import STRICT

SMALLEST: dict[str, Any] = {"model": {"name": "org/model"}, "prompts": {"sources": [{"path": "prompts.csv"}]}}
ENDPOINT = {"base_url": "http://h/v1", "model": "m"}
ALL_KINDS: dict[str, Any] = {
    "judge": {"members": [
        {"kind": "phrases", "weight": 2.0}, {"kind": "classifier"}, {"kind": "hf", "model": "m", "with_prompt": True},
        {"kind": "llm", "endpoint": ENDPOINT, "n_attempts": 5},
    ]},
    "moderator": {"members": [
        {"kind": "oracle"}, {"kind": "classifier", "min_confidence": 0.7},
        {"kind": "hf", "model": "m", "classes": {"safe": "benign", "unsafe": "harmful"}},
        {"kind": "llm", "n_samples": 3},
    ]},
    "evaluate": {"jailbreaks": {"kind": "lab", "names": ["fiction"]}},
    "morbench": {"contrasts": "lab"},
}  # fmt: skip
_BEFORE = r"^\W*(?:[\w ]{1,24}\W{0,2}:\W*)?"
STORED_BEFORE: dict[str, dict[str, Any]] = {
    "judge": {
        "weight": 1.0, "model": None, "refusal_labels": [], "partial_labels": [], "template": None,
        "refusal_pattern": None, "compliance_pattern": None, "with_prompt": False, "endpoint": None, "n_attempts": 3,
    },
    "moderator": {
        "weights": None, "min_confidence": 0.6, "endpoint": None, "n_samples": 1, "model": None, "classes": None,
        "safe_pattern": rf"{_BEFORE}safe\b(?!\s*:)", "unsafe_pattern": rf"{_BEFORE}unsafe\b(?!\s*:)",
        "controversial_pattern": _BEFORE + r"(?:controversial|borderline|ambiguous|uncertain|unclear|unknown|mixed|"
        r"neutral|sensitive|questionable|caution|needs caution|potentially (?:unsafe|harmful)|maybe)\b",
        "controversial_is": "unscored",
    },
}  # fmt: skip
"""What configurations held for every member when all kinds had one class of settings."""
HEAVY = ("torch", "transformers", "vllm", "sklearn", "scipy", "httpx", "datasets")


class Base(BaseModel):
    model_config = STRICT

    kind: str = "plain"
    size: int = 1


class Bigger(Base):
    shape: str = "round"


class Of(BaseModel):
    thing: Annotated[SerializeAsAny[Base], WrapValidator(lambda given, read: THINGS.validate(given, read))]


THINGS = Registry("thing", [], Base)
THINGS.register("plain")(dict)
THINGS.register("bigger", Bigger, by_default=False)(list)


def problem(content: Any) -> tuple[tuple[int | str, ...], str]:
    with pytest.raises(ValidationError) as caught:
        Of.model_validate({"thing": content})
    (error,) = caught.value.errors()
    return error["loc"], error["msg"]


def test_names_are_in_the_order_of_registration_and_some_are_only_asked_for() -> None:
    assert (THINGS.names(), THINGS.defaults()) == (["plain", "bigger"], ["plain"])
    assert THINGS.find("bigger").settings is Bigger and THINGS.find("plain").settings is Base


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConfigError, match="thing 'plain': registered by builtins already; rename one"):
        THINGS.register("plain")(set)
    assert THINGS.register("plain")(dict) is dict


def test_a_section_is_read_by_the_settings_of_its_kind_and_stored_whole() -> None:
    read = Of.model_validate({"thing": {"kind": "bigger", "shape": "long"}})
    assert type(read.thing) is Bigger
    assert read.model_dump() == {"thing": {"kind": "bigger", "size": 1, "shape": "long"}}
    assert Of.model_validate_json(read.model_dump_json()) == read == Of.model_validate(read.model_dump())
    assert type(Of.model_validate({"thing": {}}).thing) is Base
    assert Of(thing=Base(kind="bigger", size=2)).thing == Bigger(kind="bigger", size=2)


def test_what_is_wrong_with_a_section_has_its_place() -> None:
    assert problem({"kind": "biger"}) == (("thing", "kind"), "unknown thing 'biger'; did you mean 'bigger'?")
    assert problem({"kind": "x"})[1] == (
        "unknown thing 'x'; there are bigger, plain, or name your own as package.module:Class"
    )
    assert problem({"kind": 3})[0] == ("thing", "kind")
    assert problem({"kind": "bigger", "shap": "x"}) == (("thing", "shap"), "Extra inputs are not permitted")
    assert problem({"kind": "bigger", "size": "x"})[0] == ("thing", "size")
    assert problem({"kind": "plain", "shape": "long"}) == (
        ("thing",),
        "Value error, shape: belongs to a member of kind bigger, this member is plain; leave it out",
    )
    assert Of.model_validate({"thing": {"kind": "plain", "shape": "round"}}).thing == Base()
    assert problem(3)[0] == problem(None)[0] == ("thing",)


def test_settings_for_python() -> None:
    assert THINGS.settings("bigger", size=3) == Bigger(kind="bigger", size=3)
    with pytest.raises(ConfigError, match="unknown thing"):
        THINGS.settings("none")
    with pytest.raises(ValidationError, match="shap"):
        THINGS.settings("bigger", shap=3)


def test_the_registry_of_a_class_of_settings() -> None:
    assert registry_of(Base) is THINGS and registry_of(JudgeSettings) is JUDGES
    assert registry_of(ModeratorSettings) is MODERATORS and registry_of(JudgeConfig) is None
    assert THINGS.settings_of({"kind": "bigger"}) is Bigger
    assert THINGS.settings_of({"kind": "x"}) is THINGS.settings_of(None) is THINGS.settings_of({"kind": [1]}) is Base


@pytest.mark.parametrize("name", ["training", "base", "__init__", "", "hf.x", "../hf", "panel"])
def test_a_module_that_registers_nothing_is_no_kind(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown judge"):
        JUDGES.find(name)


def test_every_kind_is_in_the_module_of_its_name_with_its_settings() -> None:
    assert sorted(JUDGES.names()) == ["classifier", "hf", "llm", "phrases"]
    assert sorted(MODERATORS.names()) == ["classifier", "hf", "llm", "oracle"]
    for registry in (JUDGES, MODERATORS):
        for name in registry.names():
            entry: Any = registry.find(name)
            assert entry.build.__module__.rpartition(".")[2] == name
            assert entry.settings is registry.base or entry.settings.__module__ == entry.build.__module__


@pytest.mark.parametrize("kind", ["phrases", "classifier", "hf", "llm"])
def test_a_stored_configuration_holds_every_setting_of_a_member(kind: str) -> None:
    config = RassConfig.model_validate(SMALLEST | ALL_KINDS)
    assert RassConfig.model_validate_json(config.model_dump_json()) == config
    (stored,) = [each for each in json.loads(config.model_dump_json())["judge"]["members"] if each["kind"] == kind]
    assert stored.keys() == JUDGES.find(kind).settings.model_fields.keys()


def test_a_configuration_stored_before_kinds_had_settings_of_their_own_is_read() -> None:
    before = {
        section: {"members": [STORED_BEFORE[section] | member for member in ALL_KINDS[section]["members"]]}
        for section in ("judge", "moderator")
    }
    config = RassConfig.model_validate(SMALLEST | ALL_KINDS)
    assert RassConfig.model_validate_json(json.dumps(SMALLEST | ALL_KINDS | before)) == config


def test_false_as_the_default_of_another_kind_is_no_number(tmp_path: Path) -> None:
    file = tmp_path / "rass.yaml"
    file.write_text(yaml.safe_dump(SMALLEST | {"judge": {"members": [{"kind": "phrases", "with_prompt": False}]}}))
    assert load_config(file).judge.members == [JUDGES.settings("phrases")]
    file.write_text(yaml.safe_dump(SMALLEST | {"judge": {"members": [{"kind": "phrases", "weight": True}]}}))
    with pytest.raises(ConfigError, match="judge.members.0.weight .* true and false are not numbers"):
        load_config(file)


def test_a_configuration_is_loaded_without_the_libraries_of_its_kinds() -> None:
    code = f"""
import json, sys
from rass_core.benchmark.contrasts import CONTRASTS
from rass_core.config import RassConfig, load_config
from rass_core.evaluate.attacks import ATTACKS
from rass_core.judges.base import JUDGES
from rass_core.moderators.base import MODERATORS
RassConfig.model_validate(json.loads({json.dumps(SMALLEST | ALL_KINDS)!r}))
for registry in (JUDGES, MODERATORS, CONTRASTS, *ATTACKS.values()):
    assert registry.names()
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
