"""The moderators as a worker: verdicts on prompts."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.judges.workers import verdict_table
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig
from rass_core.moderators.base import MODERATORS
from rass_core.moderators.panel import ModeratorPanel, moderator_panel_of
from rass_core.moderators.settings import ModeratorConfig

PROMPTS_PER_STEP = 50
"""Prompts moderated between two steps of the progress bar."""


def moderators_in(pool: ModelPool, config: ModeratorConfig, generator: ModelConfig) -> ModeratorPanel:
    """Return the moderators of a configuration, built once in a process.

    Args:
        generator: Is asked, through its engine, by an llm moderator without an endpoint.
    """
    found: ModeratorPanel = pool.kept(
        _key(config, generator), lambda: moderator_panel_of(config, pool.asking(generator), pool.say)
    )
    return found


def keep_moderators(
    pool: ModelPool, config: ModeratorConfig, generator: ModelConfig, moderators: ModeratorPanel
) -> None:
    """Let workers of this process take moderators that are built already."""
    pool.kept(_key(config, generator), lambda: moderators)


def _key(config: ModeratorConfig, generator: ModelConfig) -> str:
    return f"moderators {config.model_dump_json()} {generator.model_dump_json()}"


@dataclass(frozen=True)
class ModerateWorker:
    """Moderates prompts (columns prompt_id, text, language): rows of `verdicts`, each moderator's and the panel's."""

    moderating: Any
    """What votes depend on of the settings."""
    moderator: ModeratorConfig = field(compare=False)
    generator: ModelConfig = field(compare=False)
    n_all: int = field(default=0, compare=False)
    """Prompts over all shards, of which a moderator may fail on a share."""

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__, *MODERATORS.modules(self.moderator.members)]

    def build(self, pool: ModelPool) -> Compute:
        """Return what moderates a shard."""
        moderators = moderators_in(pool, self.moderator, self.generator)
        failures = moderators.failures(self.n_all)

        def compute(rows: pa.Table, done: Done) -> Tables:
            texts, languages, words = rows["text"].to_pylist(), rows["language"].to_pylist(), []
            for start in range(0, len(texts), PROMPTS_PER_STEP):
                here = slice(start, start + PROMPTS_PER_STEP)
                words += moderators.words(texts[here], languages[here], failures)
                done(len(words))
            return {"verdicts": verdict_table(rows["prompt_id"].to_pylist(), words, with_reason=True)}

        return compute
