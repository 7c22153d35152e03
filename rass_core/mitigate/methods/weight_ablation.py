"""Method `weight_ablation`: the false-refusal direction removed from the weights."""

from rass_core.mitigate.ablation import AblationMethod, AblationSettings
from rass_core.mitigate.base import MITIGATIONS, MitigatedModel, MitigationContext
from rass_core.models.settings import ModelConfig


@MITIGATIONS.register("weight_ablation", AblationSettings)
class WeightAblation(AblationMethod):
    """Edits every matrix that writes to the residual stream; the result is an ordinary checkpoint."""

    def check(self, model: ModelConfig) -> None:
        """Raise ModelError where the model's weights cannot be edited."""
        from rass_core.models.loading import check_editable

        check_editable(model.reference)

    def apply(self, context: MitigationContext) -> MitigatedModel:
        """Write the edited checkpoint."""
        from rass_core.mitigate.weight_ablation import ablate_weights

        model = context.model
        false_refusal, harm = self.directions(context)
        with context.status(f"{self.name}: editing the weights"):
            edited = ablate_weights(
                model.reference, false_refusal, harm, self.settings.strength, context.checkpoint, model.dtype
            )
        return MitigatedModel(weights=edited.folder, harm_cosine=edited.harm_cosine)
