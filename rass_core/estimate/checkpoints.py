"""What a model's folder says of it, its weights unread: shape, chat template, tokens of the prompts."""

import math
from dataclasses import dataclass

import pyarrow as pa

from rass_core.config import RassConfig
from rass_core.errors import ModelError
from rass_core.estimate.machine import Shape
from rass_core.estimate.rows import PlanRow
from rass_core.models.chat import ChatFormat
from rass_core.models.identity import cached_folder
from rass_core.models.loading import checked_folder, load_tokenizer, n_parameters
from rass_core.models.settings import ModelConfig

SAMPLE_SIZE = 500
"""Prompts that are tokenised; the others are taken to be as long."""
BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Checkpoint:
    """What a model's folder says without its weights being loaded."""

    chat: ChatFormat
    shape: Shape
    mean_tokens: float
    """Mean tokens of a prompt in the chat template, over the sample."""
    longest: int
    max_length: int | None
    """Prompt and answer together, in tokens; None where the model names none."""


def read_checkpoint(model: ModelConfig, prompts: pa.Table) -> Checkpoint | None:
    """Return what the model's folder says; None for a hub model that is not on this machine.

    Raises:
        ModelError: A folder that cannot be read as a chat model.
    """
    from transformers import AutoConfig  # takes seconds, and the other commands need no plan

    folder = cached_folder(model.reference)
    if folder is None:
        return None
    checked_folder(str(folder))
    try:
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        d_model = int(shape.hidden_size)
        measures = Shape(
            n_layers=int(shape.num_hidden_layers),
            d_model=d_model,
            d_ff=int(getattr(shape, "intermediate_size", None) or 4 * d_model),
            n_heads=int(shape.num_attention_heads),
            vocabulary=int(shape.vocab_size),
            n_parameters=n_parameters(folder),
            bytes_per_parameter=BYTES_PER_PARAMETER[model.dtype],
            dtype=model.dtype,
        )
        tokenizer = load_tokenizer(str(folder))
    except ModelError:
        raise
    except Exception as error:  # a broken checkpoint may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{model.name}: cannot be read ({reason}); save model and tokenizer there again") from error
    chat = ChatFormat.configured(tokenizer, model)
    texts = prompts["text"].to_pylist()
    tokenizer.model_max_length = int(1e30)  # lengths are reported here, not by the tokenizer's own warning
    sample = texts[:: math.ceil(len(texts) / SAMPLE_SIZE)]
    lengths = [len(chat.ids(text)) for text in sample]
    return Checkpoint(
        chat,
        measures,
        sum(lengths) / len(lengths),
        max(lengths),
        model.max_model_len or getattr(shape, "max_position_embeddings", None),
    )


def check_template(model: ModelConfig) -> None:
    """Raise ModelError where a further model's template cannot be used, if its tokenizer is on this machine."""
    folder = cached_folder(model.reference)
    if folder is not None:
        ChatFormat.configured(load_tokenizer(str(folder)), model)


def template_rows(
    config: RassConfig, model: ModelConfig, checkpoint: Checkpoint | None, prompts: pa.Table
) -> list[PlanRow]:
    """Return what is to be known of a template: thinking, typed control tokens, its date."""
    if checkpoint is None:
        return []
    notes = checkpoint.chat.notes(config.probe.max_new_tokens, prompts["text"].to_pylist())
    return [PlanRow(f"{what}, {model.name}", *note.split("; ", 1)) for what, note in notes.items()]


def token_row(model: ModelConfig, checkpoint: Checkpoint | None, n_prompts: int) -> PlanRow:
    """Return how many tokens the prompts have, and whether the longest fits the model."""
    what = f"tokens of the prompts, {model.name}"
    if checkpoint is None:
        return PlanRow(what, "not known", "on the hub and not in the cache; the run fetches it first")
    how = (
        f"{checkpoint.mean_tokens:.0f} a prompt in the chat template, longest {checkpoint.longest}, "
        f"of a sample of at most {SAMPLE_SIZE}"
    )
    if checkpoint.max_length is not None and checkpoint.longest >= checkpoint.max_length:
        how += f"; TOO LONG for the model's {checkpoint.max_length}, the run will stop there"
    return PlanRow(what, f"{checkpoint.mean_tokens * n_prompts:,.0f}", how)
