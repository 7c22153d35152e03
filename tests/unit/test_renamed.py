"""Names of earlier versions: read with a warning, never beside the new name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError as SchemaError
from prefect.utilities.schema_tools.validation import validate

from rass_core.config import RassConfig, load_config, renamed, stored_config
from rass_core.config.renamed import RENAMED
from rass_core.errors import ConfigError, LakeError

HEAD = "model: {name: m}\nprompts: {sources: [{path: p}]}\n"
PREFIXES = {"en": {"refusal": ["I cannot"], "compliance": ["Here is"]}}
OLD: dict[str, Any] = {
    "model": {"name": "m"}, "prompts": {"sources": [{"path": "p"}]}, "probe": {"openings": PREFIXES, "n_bootstrap": 60},
}  # fmt: skip


def written(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    return path


def test_an_old_key_of_a_file_is_read_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "probe:\n  openings:\n    en: {refusal: [I cannot], compliance: [Here is]}\n")
    config = load_config(path)
    assert config.probe.prefixes["en"].refusal == ["I cannot"]
    assert caplog.messages == [f"{path} line 4: `probe.openings` is now `probe.prefixes`; rename it"]


def test_a_mistake_below_an_old_key_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "probe:\n  openings:\n    en:\n      refusal: [I cannot]\n      compliance: 3\n")
    with pytest.raises(ConfigError, match=r"probe\.prefixes\.en\.compliance \(line 7\)"):
        load_config(path)


def test_both_names_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "probe: {prefixes: {}, openings: {}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}: probe.openings (line 3): is now probe.prefixes, which is given too; leave probe.openings out"
    )
    with pytest.raises(ValueError, match=r"probe\.openings: is now probe\.prefixes, which is given too"):
        RassConfig.model_validate(OLD | {"probe": {"prefixes": {}, "openings": {}}})


def test_old_parameters_of_a_deployment_are_read(caplog: pytest.LogCaptureFixture) -> None:
    config = RassConfig.model_validate(OLD)
    assert config.probe.prefixes["en"].compliance == ["Here is"]
    assert caplog.messages == ["configuration: `probe.openings` is now `probe.prefixes`; rename it"]
    assert "openings" in OLD["probe"], "what is given is not changed"
    assert RassConfig.model_validate(config) == config


def test_prefect_lets_old_parameters_through() -> None:
    def flow(config: RassConfig) -> None: ...

    schema = parameter_schema(flow).model_dump_for_openapi()
    validate({"config": OLD}, schema, raise_on_error=True)
    with pytest.raises(SchemaError, match="opening"):
        validate({"config": OLD | {"probe": {"opening": PREFIXES}}}, schema, raise_on_error=True)


def test_the_configuration_of_a_past_run_is_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    row = {"run_id": "r", "code_version": "0.0.9", "config": json.dumps(OLD)}
    assert stored_config(row, "lake").probe.prefixes["en"].refusal == ["I cannot"]
    assert caplog.messages == []
    both = row | {"config": json.dumps(OLD | {"probe": {"prefixes": {}, "openings": {}}})}
    with pytest.raises(LakeError, match="run r was configured for RASS 0.0.9"):
        stored_config(both, "lake")


def test_every_new_name_is_a_key() -> None:
    for old, new in RENAMED.items():
        for key, there in ((old, False), (new, True)):
            model: Any = RassConfig
            *sections, last = key.split(".")
            for section in sections:
                model = model.model_fields[section].annotation
            assert (last in model.model_fields) is there, key


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        renamed, "RENAMED", {"parts.*.old": "parts.*.sub.new", "gone": "section.here", "a.*.b": "c.*.b"}
    )
    monkeypatch.setattr(renamed, "RENAMED_VALUES", {"section.here.*": {"x": "y"}, "parts.*.way": {"up": "down"}})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"parts": [{"old": 1}, {"kept": 2}, {"old": 3, "sub": None}]},
         {"parts": [{"sub": {"new": 1}}, {"kept": 2}, {"sub": {"new": 3}}]}),
        ({"gone": ["x", "z"]}, {"section": {"here": ["y", "z"]}}),
        ({"a": {"one": {"b": 1}, "two": {}}}, {"a": {"one": {}, "two": {}}, "c": {"one": {"b": 1}}}),
        ({"parts": [{"way": "up"}, {"way": 3}, {"way": ["up"]}]},
         {"parts": [{"way": "down"}, {"way": 3}, {"way": ["up"]}]}),
        ({"parts": None}, {"parts": None}),
        ({"parts": "text"}, {"parts": "text"}),
        ([1], [1]),
        (None, None),
    ],
)  # fmt: skip
def test_keys_in_lists_and_sections_and_values_are_renamed(tables: None, given: Any, expected: Any) -> None:
    before = json.dumps(given)
    assert renamed.use_new_names(given)[0] == expected
    assert json.dumps(given) == before


def test_a_renamed_value_below_a_renamed_key_has_its_line(
    tables: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, "gone:\n  - z\n  - x\n")
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match="unknown key 'section'"):
        load_config(path)
    assert caplog.messages == [
        f"{path} line 3: `gone` is now `section.here`; rename it",
        f"{path} line 5: `section.here.1`: `x` is now `y`; rename it",
    ]
