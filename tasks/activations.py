"""Stage: the residual streams of the given prompts → `activations`."""

from rass_core.lake.store import Commit
from rass_core.models.causal_lm import decoder_blocks
from rass_core.models.chat import chat_of
from rass_core.models.extracting import ExtractWorker
from rass_core.models.settings import ModelConfig
from tasks.session import READ_PER_ANSWERED, Session
from tasks.stage import MODEL_CODE, StageTables, stage


@stage(
    "activations",
    reads=["prompts"],
    writes=["activations"],
    settings=["probe.layers", "probe.positions", "probe.token_budget"],
    code=[MODEL_CODE],
    in_shards=True,
)
def extract_activations(session: Session, model: ModelConfig, prompts: Commit) -> StageTables:
    """Read the residual streams of the given prompts at every candidate layer and position."""
    settings = session.config.probe
    # Arditi et al. (2024) exclude the last fifth of the layers, where the next word is prepared.
    n_layers = len(decoder_blocks(session.causal_lm(model)))
    layers = settings.layers or list(range(max(1, n_layers - n_layers // 5)))
    positions = settings.positions or chat_of(model).positions()
    worker = ExtractWorker(model, tuple(layers), tuple(positions), settings.token_budget)
    given = session.read("prompts", prompts)
    session.map("reading residual streams", worker, given, "prompt_id", READ_PER_ANSWERED)
    return {}
