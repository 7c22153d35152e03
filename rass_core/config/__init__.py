"""The configuration of a run, one YAML file: frozen, complete with defaults, and quick to refuse a typing mistake.

`rass_core.config.reference` describes every key, `rass_core.config.starting_file` writes the file of `rass init`,
`rass_core.config.renamed` reads the keys of earlier versions.
"""

import difflib
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from rass_core.benchmark.settings import MorbenchConfig
from rass_core.config.renamed import LOG, add_old_names, use_new_names, use_new_names_in_file
from rass_core.data.sources import PromptsConfig
from rass_core.errors import ConfigError, LakeError
from rass_core.evaluate.gate import GateConfig
from rass_core.evaluate.settings import EvaluateConfig
from rass_core.executor.base import EXECUTORS, ExecutorSettings
from rass_core.generate.settings import GenerateConfig
from rass_core.judges.settings import JudgeConfig
from rass_core.mitigate.settings import MitigateConfig
from rass_core.models.settings import ModelConfig
from rass_core.moderators.settings import ModeratorConfig
from rass_core.paths import short, user_path
from rass_core.probe.settings import ProbeConfig
from rass_core.registry import registry_of
from rass_core.select.settings import SelectionConfig
from rass_core.settings import STRICT
from rass_core.units import MAX_SEED
from rass_core.yaml_file import Place, YamlFile, read_yaml

_STORED = {"is_stored": True}
"""Context of a validation: the configuration is a past run's, in which nobody can rename anything."""


class RassConfig(BaseModel):
    """Everything a run needs."""

    model_config = STRICT

    name: str = "rass"
    """Name of the run in the Prefect UI and the report."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of every random choice; one seed gives one result."""
    lake: str = "lake"
    """Folder of tables and report; `--lake` has precedence."""
    model: ModelConfig
    """The target: the chat model that is measured."""
    models: list[ModelConfig] = Field(default_factory=list)
    """Further models, probed to be compared with the target; `rass morbench` writes towards their boundaries too."""
    generator: ModelConfig | None = None
    """The model that writes new prompts; null takes the target."""
    prompts: PromptsConfig
    """Given prompts in every language to be measured, each labelled harmful, harmless or pseudo_harmful (benign, but
    looks harmful). 100 of each label per language make good intervals; 20 are few. Paths are relative to the
    configuration or to the working directory."""
    probe: ProbeConfig = ProbeConfig()
    """Measuring the boundary."""
    generate: GenerateConfig = GenerateConfig()
    """Writing prompts towards the boundary, in rounds."""
    judge: JudgeConfig = JudgeConfig()
    """Separating refusals from answers: judges vote by weight. `rass judge calibrate` measures their errors on your own
    labels."""
    moderator: ModeratorConfig = ModeratorConfig()
    """Checking that written prompts are benign. Before anything is written, the moderators label given prompts; if they
    are no better than chance, the run stops."""
    select: SelectionConfig = SelectionConfig()
    """Keeping the best of the written prompts."""
    mitigate: MitigateConfig | None = None
    """Training or editing the model with the selected prompts; null ends a run with the selection."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Measuring before and after the mitigation, on the test split of the given prompts and on further sources."""
    gate: GateConfig = GateConfig()
    """Limits for a mitigated model, each at the far end of its interval. A model beyond one is kept, marked, and not
    published."""
    morbench: MorbenchConfig = MorbenchConfig()
    """The benchmark that `rass morbench` builds."""
    executor: Annotated[SerializeAsAny[ExecutorSettings], WrapValidator(EXECUTORS.validate)] = ExecutorSettings()
    """Where models work: in this process, or on a Ray cluster."""

    @model_validator(mode="before")
    @classmethod
    def _with_names_of_this_version(cls, given: Any, info: ValidationInfo) -> Any:
        content, found = use_new_names(given)
        for each in found if info.context is not _STORED else ():
            LOG.warning("configuration: %s", each.message)
        return content

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        add_old_names(schema, handler.resolve_ref_schema)
        return schema

    def sha256(self) -> str:
        """Return the digest of the configuration, where it writes to left out."""
        return content_sha256(self.model_dump(mode="json"))


def content_sha256(content: Mapping[str, Any]) -> str:
    """Return the digest of a configuration as JSON, where it writes to left out."""
    kept = {name: value for name, value in content.items() if name != "lake"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def load_config(path: str | Path, model_name: str | None = None, **overrides: Any) -> RassConfig:
    """Return the configuration of a YAML file, top-level keys replaced by the overrides that are not None.

    Paths of prompts and models that exist beside the file are taken from there. `model_name` takes
    the place of the target's name. Each name of an earlier version is logged as a warning, with its line.

    Raises:
        ConfigError: No such file, no YAML, an unknown key (with the nearest right one) or a wrong value.
    """
    source = use_new_names_in_file(read_yaml(path, hint="`rass init` writes a starting one"))
    content, shown = source.content, short(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{shown}: holds no settings; `rass init` writes a starting file")
    _resolve_paths(content, source)
    content.update({key: value for key, value in overrides.items() if value is not None})
    if model_name is not None:
        model = content.get("model")
        content["model"] = {**(model if isinstance(model, dict) else {}), "name": model_name, "revision": None}
    # A section of which every line is commented out is null in YAML; its defaults are meant.
    content = {key: value for key, value in content.items() if value is not None}
    try:
        config = RassConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{shown}: {_first_problem(error, source)}") from error
    _check_truths(content, config.model_dump(), (), source)
    return config


def stored_config(row: Mapping[str, Any], where: object) -> RassConfig:
    """Return the configuration of a past run.

    Args:
        row: Row of table `runs`.
        where: Its lake, as the error names it.

    Raises:
        LakeError: It is of another version, or there is none.
    """
    run = f"{where}: run {row['run_id']}"
    if not row["config"]:
        raise LakeError(f"{run} has no configuration; `rass run CONFIG.yaml` makes one that has")
    try:
        return RassConfig.model_validate_json(row["config"], context=_STORED)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"])) or "configuration"
        raise LakeError(
            f"{run} was configured for RASS {row['code_version']}, this one does not know its {key};"
            " `rass run CONFIG.yaml` makes one of this version"
        ) from error


def _resolve_paths(content: dict[Any, Any], source: YamlFile) -> None:
    """Point relative names of models and files to the configuration's folder where they exist there.

    Raises:
        ConfigError: A name that no file can have, with its key.
    """
    folder = source.path.parent
    for entry, key, place in [*_path_settings(content), (content, "lake", ())]:
        name = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        try:
            user_path(name)
            there = user_path(folder / name) if not name.startswith("~") else user_path(name)
        except ConfigError as error:
            raise ConfigError(f"{short(source.path)}: {source.where((*place, key))}: {error}") from error
        if key != "lake" and (there.exists() or glob.glob(name, root_dir=folder, recursive=True)):
            entry[key] = str(there.absolute())


_PATH_LISTS: tuple[Place, ...] = (
    ("models",), ("prompts", "sources"), ("evaluate", "sources"), ("judge", "members"), ("moderator", "members"),
)  # fmt: skip


def _path_settings(content: dict[Any, Any]) -> Iterator[tuple[Any, str, Place]]:
    """Yield each section that may name a file or model, the key, and the section's place."""
    for name in ("model", "generator"):
        yield content.get(name), "name", (name,)
    keys: dict[str | int, tuple[str, ...]] = {
        "models": ("name",), "sources": ("path",), "members": ("model", "weights"),
    }  # fmt: skip
    for place in _PATH_LISTS:
        found: Any = content
        for part in place:
            found = found.get(part) if isinstance(found, dict) else None
        for number, entry in enumerate(found if isinstance(found, list) else ()):
            for key in keys[place[-1]]:
                yield entry, key, (*place, number)
    yield content.get("judge"), "calibration", ("judge",)
    evaluate = content.get("evaluate")
    yield evaluate.get("utility") if isinstance(evaluate, dict) else None, "include_path", ("evaluate", "utility")


def _check_truths(given: Any, read: Any, place: Place, source: YamlFile) -> None:
    """Raise where true or false was read as the number 1 or 0."""
    if isinstance(given, bool) and not isinstance(read, bool):
        raise ConfigError(
            f"{short(source.path)}: {source.where(place)}: true and false are not numbers; write one; it is {given}"
        )
    if isinstance(given, dict) and isinstance(read, dict):
        for key in [key for key in given if key in read]:
            _check_truths(given[key], read[key], (*place, key), source)
    elif isinstance(given, list) and isinstance(read, list):
        for number, (one, other) in enumerate(zip(given, read, strict=False)):
            _check_truths(one, other, (*place, number), source)


_IN_PLAIN_WORDS = {
    "string_type": "needs a text; put it in quotes",
    "int_parsing": "needs a whole number", "int_type": "needs a whole number", "int_from_float": "needs a whole number",
    "float_parsing": "needs a number", "float_type": "needs a number",
    "bool_parsing": "needs true or false", "bool_type": "needs true or false",
    "list_type": "needs a list, such as [a, b]",
    "model_type": "needs its own settings (a dictionary); write them below it, indented",
    "dict_type": "needs its own settings (a dictionary); write them below it, indented",
    "model_attributes_type": "needs its own settings (a dictionary); write them below it, indented",
}  # fmt: skip
"""pydantic's kind of problem → the text that replaces its message."""


def _first_problem(error: ValidationError, source: YamlFile) -> str:
    """Return the first problem in one line, with the nearest right key for an unknown one."""
    # A mistyped key that is required is reported as missing too; the typing mistake says more.
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = short(".".join(str(part) for part in problem["loc"]))
    place = source.where(problem["loc"]).removeprefix(".".join(map(str, problem["loc"])))
    if problem["type"] == "extra_forbidden":
        *parents, wrong = problem["loc"]
        fields = _fields_at(parents, source.content)
        nearest = difflib.get_close_matches(str(wrong), fields, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(fields)}"
        return f"unknown key {where!r}{place}; {hint}"
    if problem["type"] == "missing":
        return f"key {where!r} is missing{place}; add it"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = _IN_PLAIN_WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    given = problem["input"]
    if isinstance(given, bool) and problem["type"] in ("greater_than", "greater_than_equal", "less_than_equal"):
        message = "true and false are not numbers; write a number"
    # What is said of an endpoint is not repeated: it may hold a password.
    is_shown = isinstance(given, int | float) or (isinstance(given, str) and "endpoint" not in problem["loc"])
    found = f"; it is {short(repr(given))}" if is_shown else ""
    return f"{where}{place}: {message}{found}{more}"


def _fields_at(location: list[int | str], content: Any) -> list[str]:
    """Return the keys that are known at a place of the configuration, those of its kind where kinds differ."""
    model: Any = RassConfig
    for part in location:
        try:
            content = content[part]
        except (LookupError, TypeError):
            content = None
        if isinstance(part, str) and (field := model.model_fields.get(part)) is not None:
            candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
            model = next((getattr(c, "__origin__", c) for c in candidates if hasattr(c, "model_fields")), model)
        registry = registry_of(model)
        model = registry.settings_of(content) if registry is not None else model
    return list(model.model_fields)
