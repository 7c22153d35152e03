"""Causal language models as transformers loads them: loading, decoder blocks, logits at chosen tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from rass_core.errors import ModelError
from rass_core.models.loading import check_finite, checked_folder, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_causal_lm(model: str, dtype: str = "float32", device: str | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer) for inference, every weight taken from the checkpoint.

    Args:
        model: A folder in the Hugging Face format, a model's name on the hub, or `name@revision`.
        dtype: A key of `DTYPES`.
        device: Where torch puts it; None for the GPU where there is one, else the CPU.

    Raises:
        ModelError: No such model, not a causal one, or what `loading.checked_folder` and `check_finite` find.
    """
    if dtype not in DTYPES:
        raise ModelError(f"{model}: dtype {dtype!r} is not one of {', '.join(DTYPES)}; change model.dtype")
    folder = checked_folder(model)
    tokenizer = load_tokenizer(model)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # Fused attention drops the soft cap that such models were trained with, without a word.
        softcapped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        how: dict[str, Any] = {"attn_implementation": "eager"} if softcapped else {}
        pair: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=DTYPES[dtype], output_loading_info=True, trust_remote_code=False, **how
        )
    except Exception as error:  # a broken checkpoint may raise anything: JSON, safetensors, torch
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{model}: cannot be loaded as a causal language model ({reason[:200]}); "
            "give a folder with config.json, weights and tokenizer, or a model's hub name"
        ) from error
    loaded, info = pair
    if info["missing_keys"]:
        raise ModelError(
            f"{model}: the checkpoint lacks {len(info['missing_keys'])} weights, such as "
            f"{min(info['missing_keys'])}; save the whole causal language model"
        )
    blocks = decoder_blocks(loaded)
    is_causal = all(getattr(part, "is_causal", True) for part in blocks.modules())
    if config.is_encoder_decoder or not is_causal:
        raise ModelError(
            f"{model}: its blocks attend to later tokens, it is not a causal language model; use a decoder"
        )
    loaded = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    check_finite(loaded, model)
    return loaded, tokenizer


def decoder_blocks(model: Any) -> nn.ModuleList:
    """Return the decoder blocks in order, as `find_decoder_blocks` does, of a model of transformers."""
    return find_decoder_blocks(model, model.config.get_text_config().num_hidden_layers)[1]


def find_decoder_blocks(model: nn.Module, n_blocks: int) -> tuple[str, nn.ModuleList]:
    """Return the name and members of the list of modules that holds the decoder blocks, in transformers or vLLM.

    It is as long as the model is deep. Where several lists are, such as a vision tower beside the language model or
    the experts inside a block, the one with the most weights is taken; of equal ones the outermost.

    Raises:
        ModelError: No such list.
    """
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    found = {name: blocks for name, blocks in lists.items() if len(blocks) == n_blocks}
    if not found:
        raise ModelError(
            f"{model_name(model)}: no list of {n_blocks} decoder blocks among its modules; "
            "RASS needs a model whose blocks lie in one torch ModuleList"
        )
    name = max(found, key=lambda each: sum(weight.numel() for weight in found[each].parameters()))
    return name, found[name]


def chosen_blocks(model: Any, layers: Sequence[int]) -> dict[int, nn.Module]:
    """Return the decoder blocks of these layers, each once, or raise ModelError for one it lacks."""
    blocks = decoder_blocks(model)
    missing = [layer for layer in layers if not 0 <= layer < len(blocks)]
    if missing or not layers:
        raise ModelError(
            f"{model_name(model)}: layers {list(layers)} asked for, it has 0 to {len(blocks) - 1}; change the layers"
        )
    return {layer: blocks[layer] for layer in layers}


def model_name(model: Any) -> str:
    """Return the name or folder that the model was loaded from, else its class."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def check_inference(model: Any) -> None:
    """Raise ModelError for a model in training mode, where dropout adds noise."""
    if model.training:
        raise ModelError(f"{model_name(model)}: in training mode, dropout adds noise; call model.eval() first")


def stream_of(output: Any) -> Tensor:
    """Return the residual stream from a block's output, (n, n_tokens, d_model)."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def logits_at(model: Any, rows: Tensor, columns: Tensor, **inputs: Any) -> Tensor:
    """Run the model and return its logits at these places alone, (n, vocabulary).

    The LM head reads only their hidden states: over all tokens it costs a fifth of the forward in a small model,
    and memory of tokens times vocabulary.

    Args:
        rows, columns: (n,) each, where in the batch.
        inputs: What the model's forward takes.

    Raises:
        ModelError: A model without an LM head.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{model_name(model)}: no LM head; give a causal language model")
    with head.register_forward_pre_hook(lambda _module, args: (args[0][rows, columns][None],)):
        logits: Tensor = model(use_cache=False, **inputs).logits[0]
    return logits
