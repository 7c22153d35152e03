"""Method `dpo`: direct preference optimisation of a LoRA adapter.

Source: Rafailov et al. (2023), arXiv 2305.18290.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rass_core.mitigate.adapter import AdapterMethod, AdapterSettings
from rass_core.mitigate.base import MITIGATIONS

if TYPE_CHECKING:
    from rass_core.mitigate.lora import Tokens


@MITIGATIONS.register("dpo", AdapterSettings)
class Dpo(AdapterMethod):
    """Makes the chosen answers likelier than the rejected ones."""

    reads_rejected = True

    def trainer(self, rows: "Sequence[Tokens]", arguments: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
        """Return TRL's DPO trainer, with the chosen answers' own loss beside the preference."""
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        class Preference(DPOTrainer):  # type: ignore[misc]
            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset  # holds token ids already

            def _send_telemetry(self) -> None:
                return

        losses = {"sigmoid": 1.0} | ({"sft": self.training.sft_weight} if self.training.sft_weight else {})
        config = DPOConfig(
            **arguments, beta=self.training.beta, loss_type=list(losses), loss_weights=list(losses.values())
        )
        columns = [{"prompt_ids": t.prompt, "chosen_ids": t.chosen, "rejected_ids": t.rejected} for t in rows]
        return Preference(args=config, train_dataset=Dataset.from_list(columns), **common)
