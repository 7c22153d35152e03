"""Settings of the evaluation."""

from typing import Literal

from pydantic import BaseModel, DirectoryPath, Field, model_validator

from rass_core.data.sources import PromptSource
from rass_core.errors import ConfigError
from rass_core.evaluate.attacks import ATTACKS
from rass_core.settings import MAX_COUNT, STRICT


class JailbreakConfig(BaseModel):
    """Jailbreak attacks under which a mitigated model is compared with the original."""

    model_config = STRICT

    kind: Literal["general", "lab"] = "general"
    """general: well-known attacks. lab: those that the lab's grammar knows."""
    names: list[str] | None = None
    """Which of them, or a function of your own as package.module:function; null takes all general ones but many_shot
    and prefilled_answer, or those that the lab's model understands. An empty list attacks nothing."""
    n_prompts: int = Field(default=40, ge=1, le=MAX_COUNT)
    """Prompts per language that each attack is put on: harmful ones, and half as many benign."""

    @model_validator(mode="after")
    def _known(self) -> "JailbreakConfig":
        for name in self.names or []:
            try:
                ATTACKS[self.kind].find(name)
            except ConfigError as error:
                raise ValueError(f"names: {error}") from error
        return self


class UtilityConfig(BaseModel):
    """Which tasks of lm-evaluation-harness are run, and how much of them."""

    model_config = STRICT

    tasks: list[str] = Field(min_length=1)
    """Names of tasks, groups or tags, such as arc_easy or mmlu; `lm-eval ls tasks` prints them."""
    limit: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Items of each task, the first ones; null takes all."""
    batch_size: int = Field(default=8, ge=1, le=65_536)
    """Items that the model reads at a time."""
    include_path: DirectoryPath | None = None
    """Folder with your own task files (YAML); code that they name with !function is run."""


class EvaluateConfig(BaseModel):
    """Before and after: what every variant is measured on."""

    model_config = STRICT

    sources: list[PromptSource] = Field(default_factory=list)
    """Prompts beside the test split of the given ones, each source a dataset of its own."""
    jailbreaks: JailbreakConfig = JailbreakConfig()
    """Evaluation under jailbreak attacks."""
    n_kl: int = Field(default=100, ge=2, le=MAX_COUNT)
    """Harmless prompts, over all languages, on whose answers KL and perplexity are measured."""
    near_duplicate_jaccard: float = Field(default=0.8, gt=0, le=1)
    """Prompts whose character 4-grams overlap this much with a training prompt are left out."""
    utility: UtilityConfig | None = None
    """What else a variant can do; needs `pip install 'rass[utility]'`."""
