"""Tiny random checkpoints of many architectures, saved in the standard format for tests."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<system>", "<user>", "<end>", "<assistant>", "<think>", "</think>")
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}<{{ message.role }}>\n{{ message.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n</think>\n{% endif %}{% endif %}"
)
"""Four end tokens: <end>, new line, <assistant>, new line; with the empty thinking block eight."""

D_MODEL, N_LAYERS, HEAD_DIM = 64, 4, 32
_COMMON: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
    "vocab_size": 272,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": HEAD_DIM},
    "mistral": _GROUPED,
    "phi3": {**_GROUPED, "original_max_position_embeddings": 4096},
    "gemma2": {
        **_GROUPED,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 32,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {"rotary_pct": 1.0},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Each model type with what it needs beyond the common shape; mixtral is the mixture of experts."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: any text is its UTF-8 bytes, 256 tokens and the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=_COMMON["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def build_writer(folder: Path, marks: list[str], says: list[str]) -> Path:
    """Save a checkpoint that answers every prompt with these pieces, one token each, and return the folder.

    Args:
        marks: Those of the pieces that are special tokens.
        says: Pieces, none twice; the end token follows.
    """
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [*SPECIAL[3:], *marks]})
    words.add_tokens([piece for piece in says if piece not in marks])
    chain = [words.convert_tokens_to_ids("Ċ"), *words.convert_tokens_to_ids(says), words.eos_token_id]
    settings = {**_COMMON, **ARCHITECTURES["llama"], "vocab_size": len(words)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings)).float().eval()
    with torch.no_grad():
        for block in model.model.layers:  # they add nothing: a token's own embedding alone decides what follows
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        embedding = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=1)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            model.lm_head.weight[following] = embedding[token]
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def build(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Save a random checkpoint of ARCHITECTURES with its tokenizer in the folder, and return the folder.

    Same architecture and seed give the same weights; fp32, d_model 64, four decoder blocks.
    """
    settings = {**_COMMON, **ARCHITECTURES[architecture]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    model.float().eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
