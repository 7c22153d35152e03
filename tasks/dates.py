"""The date in a chat template: a lake's first run of a model fixes it, so that later runs read the same prompts."""

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from rass_core.config import RassConfig, content_sha256
from rass_core.lake.store import Lake
from rass_core.models.chat import chat_of
from rass_core.models.settings import ModelConfig


def dated(config: RassConfig, lake: Lake, today: date) -> RassConfig:
    """Return the configuration with the date for each template that asks for one.

    Where it names none, a lake's first run of a model fixes it: a later run that continues there, by whichever
    command, reads the same prompts.
    """
    open_ones = [
        model for model in _models_of(config) if model.date is None and chat_of(model).template.date is not None
    ]
    if not open_ones:
        return config
    known = _dates_in(lake)

    def filled(model: ModelConfig) -> ModelConfig:
        if model not in open_ones:
            return model
        return model.model_copy(update={"date": known.get(_spoken_to(model.model_dump(mode="json")), today)})

    generator = None if config.generator is None else filled(config.generator)
    models = [filled(model) for model in config.models]
    return config.model_copy(update={"model": filled(config.model), "generator": generator, "models": models})


def _models_of(config: RassConfig) -> list[ModelConfig]:
    return [config.model, *([config.generator] if config.generator else []), *config.models]


def _dates_in(lake: Lake) -> dict[str, date]:
    """Return how a model is spoken to → the date that its first run in the lake took, where none was named."""
    found: dict[str, date] = {}
    for row in lake.query("SELECT config, config_sha256 FROM runs ORDER BY started_at, run_id").to_pylist():
        content = json.loads(row["config"])
        if content_sha256(content) == row["config_sha256"]:  # stored as it was given
            continue
        for model in filter(None, (content.get("model"), content.get("generator"), *content.get("models", []))):
            if model.get("date"):
                found.setdefault(_spoken_to(model), date.fromisoformat(model["date"]))
    return found


def _spoken_to(model: Mapping[str, Any]) -> str:
    return json.dumps([model.get(name) for name in ("name", "system_prompt", "template_kwargs", "response_prefix")])


def date_notes(config: RassConfig) -> list[str]:
    """Return a line for each template that shows a date which the configuration does not name."""
    dates = {model.name: chat_of(model).template.date for model in _models_of(config) if model.date is not None}
    return [f"{name}, date: the template uses {day} as today's date" for name, day in dates.items() if day is not None]
