"""Method `inference_ablation`: the false-refusal direction removed while the model runs."""

from rass_core.mitigate.ablation import AblationMethod, AblationSettings
from rass_core.mitigate.base import MITIGATIONS, Effort, MitigatedModel, MitigationContext


@MITIGATIONS.register("inference_ablation", AblationSettings)
class InferenceAblation(AblationMethod):
    """Leaves the weights alone; vLLM removes the direction after every block."""

    def effort(self, n_pairs: int) -> Effort:
        """Return that no weights are written."""
        return Effort(writes_weights=False)

    def apply(self, context: MitigationContext) -> MitigatedModel:
        """Return the direction, orthogonal to the harm direction."""
        from rass_core.mitigate.weight_ablation import removable
        from rass_core.probe.directions import cosine

        false_refusal, harm = self.directions(context)
        return MitigatedModel(
            ablated=removable(false_refusal, harm),
            strength=self.settings.strength,
            harm_cosine=cosine(false_refusal, harm),
        )
