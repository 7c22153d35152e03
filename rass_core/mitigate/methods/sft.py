"""Method `sft`: supervised fine-tuning of a LoRA adapter."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rass_core.mitigate.adapter import AdapterMethod, AdapterSettings
from rass_core.mitigate.base import MITIGATIONS

if TYPE_CHECKING:
    from rass_core.mitigate.lora import Tokens


@MITIGATIONS.register("sft", AdapterSettings)
class Sft(AdapterMethod):
    """Makes the chosen answers likelier; the rejected ones are not read."""

    def trainer(self, rows: "Sequence[Tokens]", arguments: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
        """Return TRL's SFT trainer, with the loss on the answers' tokens alone."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        class Supervised(SFTTrainer):  # type: ignore[misc]
            def _send_telemetry(self) -> None:
                return

        config = SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})
        columns = [{"input_ids": t.prompt + t.chosen, "labels": [-100] * len(t.prompt) + t.chosen} for t in rows]
        return Supervised(args=config, train_dataset=Dataset.from_list(columns), **common)
