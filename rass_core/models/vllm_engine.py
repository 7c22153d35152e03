"""One vLLM engine for a whole flow: steered generation and capture of residual streams."""

import datetime
import gc
import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self, get_args

import numpy as np

from rass_core.errors import ModelError, RassError, SteeringError
from rass_core.models.chat import ChatFormat, check_length
from rass_core.models.loading import load_tokenizer
from rass_core.models.vllm_loading import first_line, load_vllm
from rass_core.models.vllm_requests import (
    REQUEST_FIELD,
    Generation,
    GenerationRequest,
    Steering,
    SteeringKind,
    SteeringVector,
    place_name,
)

_N_LONGEST = 32


class SteeredEngine:
    """A model in vLLM whose every request may be steered, captured, both or neither.

    Requests of all kinds and alphas share one continuous batch. Each steered request is checked
    afterwards: every token of it that was computed was steered, in every layer of its vector.
    Keys and values are reused only between requests of the same vector, layers, kind and alpha.

    Args:
        model: A folder in the Hugging Face format, or the name of a cached or public model.
        dtype: Data type of weights and arithmetic; captures are float32 whatever it is.
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
        self._llm = load_vllm(
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
                f"{self.model}: vLLM stopped: {first_line(error)}; the engine is closed, open a new one"
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


def longest_request(chat: ChatFormat, texts: Iterable[str], max_new_tokens: int) -> int:
    """Return how many tokens the longest prompt has with its answer; only the longest texts are tokenised."""
    some = heapq.nlargest(_N_LONGEST, texts, key=len)
    return max((len(chat.ids(text)) for text in some), default=0) + max_new_tokens


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


def _check_layers(what: str, layers: Sequence[int], n_layers: int) -> None:
    if not layers or min(layers) < 0 or max(layers) >= n_layers or len(set(layers)) != len(layers):
        raise SteeringError(f"{what}: layers {list(layers)}; give distinct blocks of 0 … {n_layers - 1}")


def _digest(vector: SteeringVector) -> str:
    """Return 64 hex digits that name the vector's bytes, its layers and what is done with it."""
    return hashlib.sha256(vector.vector.tobytes() + repr((vector.layers, vector.kind)).encode()).hexdigest()
