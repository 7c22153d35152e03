"""The one way into a model: its folder is checked before any of its weights is read.

A checkpoint that lacks a tensor, is cut short, was scaled or quantised without saying so, or needs code of its own is
an error here, whoever loads it and with what. Only the headers of the weight files are read.
"""

import functools
import logging
import math
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rass_core.errors import ModelError
from rass_core.models.checkpoint import DTYPES_OF, Stored, pickled_header, read_json, safetensors_header, stored_tensors
from rass_core.models.identity import WEIGHT_SUFFIXES, all_files, folder_id, model_folder

Head = Literal["causal", "classifier"]
"""What is loaded: a causal language model, or a sequence classifier."""
_LOG = logging.getLogger(__name__)
_FLOATS = ("F64", "F32", "F16", "BF16")
_SCALE = re.compile(
    r"(^|[._])([wq]?scales?(_inv|_\d+|_weight)?|zeros?|zero_points?|zp|qweight|qzeros|g_idx|absmax|nested_absmax|amax|"
    r"quant_map|scb|quant_state(\..*)?|weight_packed|weight_shape|quantized_weight|blocks)$",
    re.IGNORECASE,
)
"""Ends of the names that a quantised checkpoint has beside its weights, or in their place."""
_WHOLE: dict[Head, str] = {
    "causal": "; save the whole causal language model",
    "classifier": ", it is not a trained classifier; name a trained one",
}
_SAVED_ANEW = ("config.json", "readme.md")
_CODE_MAPS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def checked_folder(reference: str, head: Head = "causal") -> Path:
    """Return the folder of a model whose checkpoint is whole and fits its architecture.

    Args:
        reference: Folder, hub name or `name@revision`.
        head: What it is to be loaded as.

    Raises:
        ModelError: What is wrong with it, in one line; unexpected tensors of no known meaning are only warned of.
    """
    folder = model_folder(reference)
    _read_config(folder)
    _check_once(str(folder), folder_id(folder), head)
    return folder


def load_tokenizer(reference: str) -> Any:
    """Return a model's tokenizer; no code of its folder is run.

    Raises:
        ModelError: None can be loaded.
    """
    from transformers import AutoTokenizer

    folder = model_folder(reference)
    _check_own_code(folder)
    if is_tekken(folder):
        from rass_core.models.tekken import load_tekken

        return load_tekken(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a broken tokenizer may raise anything: JSON, tokenizers, sentencepiece
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{reference}: no tokenizer can be loaded ({line}); save one beside the model") from error


def is_tekken(folder: Path) -> bool:
    """Return whether Mistral's own format is the only tokenizer in a folder."""
    others = ("tokenizer.json", "tokenizer.model")
    return (folder / "tekken.json").is_file() and not any((folder / name).is_file() for name in others)


def is_quantised(folder: Path) -> bool:
    """Return whether the configuration says that the weights are quantised."""
    config = _read_config(folder)
    text = config.get("text_config")
    configs = [config, text] if isinstance(text, dict) else [config]
    named = any(each.get(key) for each in configs for key in ("quantization_config", "compression_config"))
    return named or (folder / "hf_quant_config.json").is_file()


def check_editable(reference: str) -> None:
    """Raise ModelError for a model whose weights can be run but not changed and saved: a quantised one."""
    if is_quantised(model_folder(reference)):
        raise ModelError(f"{reference}: quantised, a changed copy cannot be saved; name the model before quantisation")


def save_checkpoint(model: Any, base: Path, out: Path) -> None:
    """Write a changed model with every file of its base that is no weight: tokenizer, template, processor and others.

    Args:
        model: As transformers loaded it from base.
        base: Folder of the model that it was.
        out: Gets the checkpoint.
    """
    from transformers import GenerationConfig

    # Its file is copied; some that are loaded without a word are refused when they are saved.
    model.generation_config = GenerationConfig()
    model.save_pretrained(out)
    for file in all_files(base):
        name = file.relative_to(base)
        is_weight = file.suffix in WEIGHT_SUFFIXES or file.name.endswith(".index.json")
        if not (is_weight or file.suffix == ".py" or name.as_posix().lower() in _SAVED_ANEW):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / name)
    if not (base / "generation_config.json").is_file():
        (out / "generation_config.json").unlink(missing_ok=True)


def check_finite(model: Any, reference: str) -> None:
    """Raise ModelError where a weight of a loaded model is no number."""
    import torch

    for name, weight in model.named_parameters():
        # A sum is fast and is no number where a term is none; it may overflow, so that it is not the last word.
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise ModelError(
                f"{reference}: weight {name} is not finite (NaN or infinite values) in {weight.dtype}; "
                "load it in float32 or bfloat16, and if that fails fetch the model again"
            )


def check_adapter(folder: Path, expected: Collection[str]) -> None:
    """Raise ModelError unless an adapter's file holds what its configuration asks for, and nothing of other layers.

    Embeddings saved in full beside the adapter are allowed.

    Args:
        folder: Folder of the adapter.
        expected: Names as PEFT saves them.
    """
    stored = adapter_tensors(folder)
    unknown = {name for name in set(stored) - set(expected) if "lora_" in name}
    for problem, names in (("lacks", set(expected) - set(stored)), ("has unknown", unknown)):
        if names:
            raise ModelError(
                f"{folder}: the adapter {problem} {len(names)} tensors, such as {min(names)}; "
                "fetch the adapter again, or name the model it was trained on"
            )


def adapter_tensors(folder: Path) -> dict[str, Stored]:
    """Return name → tensor of an adapter, from its file's header alone.

    Raises:
        ModelError: No such file, or one that is cut short or damaged.
    """
    for file, read in (("adapter_model.safetensors", safetensors_header), ("adapter_model.bin", pickled_header)):
        if (folder / file).is_file():
            return read(folder / file)
    raise ModelError(f"{folder}: no weights in it (adapter_model.safetensors); fetch the adapter again")


@functools.cache
def _check_once(folder: str, identity: str, head: Head) -> None:
    _check_checkpoint(Path(folder), head)


def _check_checkpoint(folder: Path, head: Head) -> None:
    """Raise ModelError for a checkpoint that would be loaded wrongly."""
    _check_own_code(folder)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: holds an adapter beside the model's config.json, and loaders differ in whether they apply it; "
            "merge it, or move it to a folder of its own"
        )
    stored = stored_tensors(folder)
    if is_quantised(folder):
        _check_scaled(folder, stored)
        return
    _check_dtypes(folder, stored)
    _check_names(folder, stored, head)


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'}: not a JSON object; save the model again")
    return config


def _check_own_code(folder: Path) -> None:
    """Raise ModelError for a model that needs code of its own; classes that transformers has by that name do not."""
    import transformers

    if (folder / "custom_generate").is_dir():
        raise ModelError(f"{folder}: has its own code (custom_generate), which is never run; remove it from a copy")
    for name in _CODE_MAPS:
        content = read_json(folder / name) if (folder / name).is_file() else None
        named = content.get("auto_map") if isinstance(content, dict) else None
        classes = named.values() if isinstance(named, dict) else []
        for each in (one for value in classes for one in (value if isinstance(value, list) else [value]) if one):
            if not hasattr(transformers, str(each).rpartition(".")[2]):
                raise ModelError(
                    f"{folder}: {name} asks for its own code ({each}), which is never run; use a model that "
                    "transformers knows, or remove auto_map from a copy if transformers' own class is the same"
                )


def _check_scaled(folder: Path, stored: Mapping[str, Stored]) -> None:
    """Raise ModelError for weights of 8 bits or fewer without a scale."""
    narrow = [name for name, each in stored.items() if each.dtype not in DTYPES_OF]
    if narrow and not any(_SCALE.search(name) for name in stored):
        raise ModelError(
            f"{folder}: quantised, but no scale is stored beside {narrow[0]} ({stored[narrow[0]].dtype}); "
            "fetch the whole checkpoint"
        )


def _check_dtypes(folder: Path, stored: Mapping[str, Stored]) -> None:
    """Raise ModelError for quantised weights whose configuration does not say so."""
    for name, each in stored.items():
        if each.dtype not in DTYPES_OF or (each.dtype not in _FLOATS and name.endswith(".weight")):
            raise ModelError(
                f"{folder}: {name} is stored as {each.dtype}, and config.json names no quantization_config; its values "
                "would be taken as they are: fetch the configuration too, or the model before quantisation"
            )


def _check_names(folder: Path, stored: Mapping[str, Stored], head: Head) -> None:
    """Raise ModelError unless the tensors are those of the architecture, by name and shape."""
    found = _loaded_without_values(folder, stored, head)
    scales = sorted(name for name in found["unexpected_keys"] if _SCALE.search(name))
    if scales:
        raise ModelError(
            f"{folder}: {len(scales)} scales or packed weights, such as {scales[0]}, and config.json names no "
            "quantization_config; they would be left out: fetch the configuration too, or the unquantised model"
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}{_WHOLE[head]}")
    for name, there, wanted in sorted(found["mismatched_keys"], key=lambda each: str(each[0])):
        raise ModelError(
            f"{folder}: {name} has shape {tuple(there)}, config.json asks for {tuple(wanted)}; fetch both again"
        )
    if found["unexpected_keys"]:
        some = ", ".join(sorted(found["unexpected_keys"])[:3])
        _LOG.warning("%s: %d tensors are not used, such as %s", folder, len(found["unexpected_keys"]), some)


def _loaded_without_values(folder: Path, stored: Mapping[str, Stored], head: Head) -> dict[str, Any]:
    """Return what transformers says of loading tensors of these names and shapes; they have no values."""
    import torch
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        mappings = {
            "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
            "classifier": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        }
        kinds = mappings[head].get(type(config), None)
        kind = kinds[0] if isinstance(kinds, tuple) else kinds
        if kind is None:
            raise ModelError(
                f"{folder}: cannot be loaded as a {head} language model, transformers has none of type "
                f"{config.model_type}; name another"
            )
        shapes = {
            name: torch.empty(each.shape, dtype=getattr(torch, DTYPES_OF[each.dtype]), device="meta")
            for name, each in stored.items()
        }
        with quiet_transformers():
            _, found = kind.from_pretrained(
                None,
                config=config,
                state_dict=shapes,
                device_map="meta",
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except ModelError:
        raise
    except Exception as error:  # a broken configuration may raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if "conversion" in reason:  # of the weights of experts, which are stored apart and loaded as one
            reason = "its tensors do not fit together, one is missing or of another shape"
        raise ModelError(
            f"{folder}: cannot be loaded as a {head} language model ({reason[:200]}); "
            "give a folder with config.json, weights and tokenizer, or a model's hub name"
        ) from error
    return dict(found)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own reports and bars out of the terminal; what they say is an error or a line of ours."""
    from transformers.utils import logging

    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()


def n_parameters(folder: Path) -> int:
    """Return how many numbers the weights hold, from the files' headers."""
    return sum(math.prod(each.shape) for each in stored_tensors(folder).values())
