"""What methods that train a LoRA adapter share: settings, check, effort, and the training by `lora`."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rass_core.mitigate.base import Effort, MethodSettings, MitigatedModel, MitigationContext, MitigationMethod
from rass_core.mitigate.settings import TrainingSettings
from rass_core.models.settings import ModelConfig

if TYPE_CHECKING:  # torch: a configuration is read without it
    from rass_core.mitigate.lora import Tokens


class AdapterSettings(MethodSettings):
    """Settings of a method that trains an adapter."""

    training: TrainingSettings = TrainingSettings()
    """How it is trained."""


class AdapterMethod(MitigationMethod[AdapterSettings]):
    """Trains an adapter and merges it into the model. A subclass makes TRL's trainer."""

    libraries = ("trl", "peft")
    reads_rejected: ClassVar[bool] = False
    """The trainer reads both answers of a pair; else the chosen one alone."""

    @property
    def training(self) -> TrainingSettings:
        """Return how it is trained."""
        return self.settings.training

    @abstractmethod
    def trainer(self, rows: "Sequence[Tokens]", arguments: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
        """Return TRL's trainer of these pairs, with their tokens in place of its own preparation.

        Args:
            rows: The pairs as token ids.
            arguments: Arguments of the trainer's configuration class.
            common: Arguments of the trainer itself: model, tokenizer, LoRA configuration, callbacks.
        """

    def check(self, model: ModelConfig) -> None:
        """Raise ModelError where the packages that train are missing, or the model's weights cannot be edited."""
        from rass_core.mitigate.lora import check_installed
        from rass_core.models.loading import check_editable

        check_installed()
        check_editable(model.reference)

    def effort(self, n_pairs: int) -> Effort:
        """Return the passes of the training; a trainer that reads both answers also asks the model as it was."""
        training = self.training
        how = f"{training.epochs:g} epochs over ≤ {n_pairs:,} pairs, {training.batch_size} per step"
        return Effort(
            forward_passes=2 * training.epochs if self.reads_rejected else 0.0,
            backward_passes=(2 if self.reads_rejected else 1) * training.epochs,
            n_steps=math.ceil(training.epochs * math.ceil(n_pairs / training.batch_size)),
            how=how,
        )

    def apply(self, context: MitigationContext) -> MitigatedModel:
        """Train the adapter, from the last checkpoint where a training was stopped, and merge it."""
        from rass_core.mitigate.lora import merge, remove_checkpoints, train

        model = context.model
        with context.progress(f"training, {self.name}", 1) as bar:
            trained = train(self, model.reference, context.pairs, context.folder, context.chat, model.dtype, bar)
        with context.status(f"{self.name}: merging the adapter into the model"):
            merged = merge(model.reference, trained.adapter, context.folder / "merged", model.dtype)
        remove_checkpoints(context.folder)
        return MitigatedModel(
            weights=merged,
            adapter=trained.adapter,
            losses=[loss for _, loss in trained.losses],
            n_too_long=trained.n_too_long,
        )
