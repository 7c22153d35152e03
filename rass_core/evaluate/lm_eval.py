"""What else a model can do: tasks of lm-evaluation-harness, by name, before and after a mitigation.

The harness (package `lm-eval`) is imported when it is first used. Each task keeps its own prompt,
number of shots and metric; RASS gives it the model in transformers, spoken to in its chat template.
"""

import difflib
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rass_core.errors import ConfigError, ModelError, PromptError, RassError
from rass_core.evaluate.settings import UtilityConfig
from rass_core.models.chat import ChatFormat
from rass_core.stats.intervals import wilson

PREFIX = "utility:"
"""Opens the `dataset` of a row; the task's name follows."""
_MARK = "\ufdd1"
"""A code point that is no character; marks where a conversation begins and ends in the template."""
_Z = 1.959963984540054
_BOOTSTRAPS = 1000
_SEED = 1234
_NO_ERROR = "no interval: the harness has no standard error of this metric, or one item only"


@dataclass(frozen=True)
class UtilityScore:
    """One metric of one task."""

    task: str
    metric: str
    """As the harness names it, with a slash and the filter of the answers where a task has several."""
    value: float | None
    stderr: float | None
    """None where the harness gives none."""
    n: int
    """Items scored."""
    reason: str | None
    """Why the value or its standard error is None."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval: Wilson's where the metric is a share of the items, else the normal one."""
        if self.value is None or self.stderr is None:
            return None
        if 0.0 <= self.value <= 1.0 and self.n > 1:
            of_a_share = math.sqrt(self.value * (1.0 - self.value) / (self.n - 1))
            if math.isclose(of_a_share, self.stderr, rel_tol=1e-6, abs_tol=1e-12):
                return wilson(self.value * self.n, self.n)[1:]
        return self.value - _Z * self.stderr, self.value + _Z * self.stderr


def utility_rows(
    model: Any, chat: ChatFormat, model_id: str, variant: str, config: UtilityConfig
) -> list[dict[str, Any]]:
    """Return rows of the table `evaluations`: a task and metric each, dataset `utility:TASK`, every language.

    Args:
        model, chat, config: As `measure_utility`.
        model_id: Id of the model that the evaluation is about.
        variant: Name of its variant, such as base.

    Raises:
        As `measure_utility`.
    """
    return [_row(score, model_id, variant) for score in measure_utility(model, chat, config)]


def check_installed() -> None:
    """Raise ModelError where lm-evaluation-harness is not there."""
    _harness()


def measure_utility(model: Any, chat: ChatFormat, config: UtilityConfig) -> list[UtilityScore]:
    """Run the tasks on a loaded model; inside `interventions.ablating` it is measured as ablated.

    Groups give a score of their own beside those of their tasks. The same call gives the same
    scores: random states are set for the harness, and are afterwards what they were.

    Args:
        model: A transformers causal LM in evaluation mode.
        chat: How it is spoken to, with its tokenizer.
        config: Tasks and limits.

    Raises:
        ModelError: The harness is not installed, or it failed.
        ConfigError: An unknown task, or one that is named twice.
        PromptError: A task whose data cannot be had, for want of a network or else.
    """
    harness = _harness()
    lm = harness.HFLM(
        pretrained=model, tokenizer=chat.tokenizer, batch_size=config.batch_size,
        add_bos_token=False,  # the template writes its own special tokens
    )  # fmt: skip
    # The system prompt comes with the messages, joined by the harness with a task's description.
    texts = HarnessTexts(chat.without_system_prompt())
    lm.apply_chat_template, lm.tok_encode, lm.tok_batch_encode = texts.render, texts.encode, texts.encode_batch
    with _seeded(_SEED):
        tasks = _load_tasks(harness, config)
        try:
            results = harness.simple_evaluate(
                lm, tasks=tasks, limit=config.limit, apply_chat_template=True, fewshot_as_multiturn=True,
                system_instruction=chat.system_prompt, log_samples=False, bootstrap_iters=_BOOTSTRAPS,
                random_seed=_SEED, numpy_random_seed=_SEED, torch_random_seed=_SEED, fewshot_random_seed=_SEED,
            )  # fmt: skip
        except RassError:
            raise
        except Exception as error:  # tasks bring code of their own, which may raise anything
            raise ModelError(
                f"utility {', '.join(config.tasks)}: lm-evaluation-harness stopped: {_first_line(error)}; "
                "leave the task out, or try it with `lm-eval run`"
            ) from error
    return list(_scores(results["results"]))


@dataclass(frozen=True)
class _Harness:
    """What is used of lm-evaluation-harness."""

    simple_evaluate: Any
    HFLM: Any
    TaskManager: Any


def _harness() -> _Harness:
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ModelError(
            f"utility tasks: lm-evaluation-harness cannot be imported ({_first_line(error)}); "
            "pip install 'rass[utility]', or leave the utility tasks out"
        ) from error
    logger = logging.getLogger("lm_eval")
    if logger.level == logging.NOTSET:  # it warns of a model that is given loaded, as here
        logger.setLevel(logging.ERROR)
    return _Harness(simple_evaluate, HFLM, TaskManager)


def _load_tasks(harness: _Harness, config: UtilityConfig) -> list[Any]:
    """Return the tasks and groups with their data, one by one, so that an error names its task."""
    repeated = [name for name in config.tasks if config.tasks.count(name) > 1]
    if repeated:
        raise ConfigError(f"utility task {repeated[0]}: listed twice; list it once")
    manager = _manager(harness, config)
    loaded: list[Any] = []
    source_of: dict[str, str] = {}
    for name in config.tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` prints the names"
            raise ConfigError(f"utility task {name!r}: lm-evaluation-harness has no such task; {hint}")
        try:
            found = manager.load([name])
        except Exception as error:  # a ConnectionError, a broken task file, data of another form
            raise PromptError(
                f"utility task {name}: cannot be loaded ({_first_line(error)}); load its data once where there "
                "is a network, or give a task over local files in include_path"
            ) from error
        for task in found["tasks"]:
            if task in source_of:
                raise ConfigError(f"utility task {task}: in {source_of[task]} and in {name}; name one of the two")
            source_of[task] = name
        loaded += [found["groups"][name]] if name in found["groups"] else found["tasks"].values()
    return loaded


def _manager(harness: _Harness, config: UtilityConfig) -> Any:
    """Return the harness's list of tasks; its own are 14,000 files, read only where they are needed."""
    if config.include_path is None:
        return harness.TaskManager()
    own = harness.TaskManager(include_path=str(config.include_path), include_defaults=False)
    # A group or a tag may name tasks of the harness.
    needs_no_other = set(config.tasks) <= set(own.all_subtasks)
    return own if needs_no_other else harness.TaskManager(include_path=str(config.include_path))


class HarnessTexts:
    """Renders and encodes what the harness sends: only the template writes control tokens.

    The harness joins a rendered conversation and a possible answer to one text before it encodes it. Marks at both
    ends of the conversation show which part is the template's; whatever else holds control tokens is plain text.

    Args:
        chat: Without a system prompt, which is among the messages.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the harness's messages in the chat template, up to where the answer continues, in marks.

        Args:
            messages: The assistant's last where the task opens the answer; none where it asks for nothing.
            add_generation_prompt: False where the task opens the answer.
        """
        rendered = self._rendered(messages, add_generation_prompt).replace(_MARK, "")
        # The harness moves white space at the end of a context to the answer.
        body = rendered.rstrip()
        return f"{_MARK}{body}{_MARK}{rendered[len(body) :]}"

    def encode(self, string: str, *_: Any, left_truncate_len: int | None = None, **__: Any) -> list[int]:
        """Return the token ids of a text, the last ones where it is too long; in place of `HFLM.tok_encode`."""
        if string.startswith(_MARK):
            body, rest = string[1:].split(_MARK, 1)
        else:
            body, rest = "", string
        ids = self._chat.guarded_ids(body + self._chat.guarded(rest))
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def encode_batch(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[Any, Any]:
        """Return token ids and attention mask of texts, (n, longest); in place of `HFLM.tok_batch_encode`."""
        ids = [self.encode(string, left_truncate_len=left_truncate_len) for string in strings]
        batch = self._chat.tokenizer.pad({"input_ids": ids}, padding_side=padding_side, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def _rendered(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        turns = [dict(message) for message in messages]
        opening = turns.pop()["content"] if turns and not add_generation_prompt else ""
        if not turns or turns[-1]["role"] == "system":
            turns.append({"role": "user", "content": ""})
        try:
            return self._chat.guarded_conversation(turns) + self._chat.guarded(opening)
        except ModelError:
            if turns[0]["role"] != "system" or self._chat.system_prompt is not None:
                raise
            # A template without a system role, such as Gemma's: its words open the first question.
            system, first, *others = turns
            turns = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
            return self._chat.guarded_conversation(turns) + self._chat.guarded(opening)


def _scores(results: Mapping[str, Mapping[str, Any]]) -> Iterator[UtilityScore]:
    """Yield the scores; the key of a metric is `metric,filter`, that of its error `metric_stderr,filter`."""
    for task, values in results.items():
        counts = values.get("sample_count", {})
        for key, value in values.items():
            metric, comma, filter_ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            n, stderr = int(counts.get(key, values["sample_len"])), _finite(values.get(f"{metric}_stderr,{filter_}"))
            name = metric if filter_ == "none" else f"{metric}/{filter_}"
            finite = _finite(value)
            reason = _NO_ERROR if stderr is None else None
            if finite is None:
                reason = f"the harness gives {value} over {n} items"
            yield UtilityScore(task, name, finite, stderr, n, reason)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _row(score: UtilityScore, model_id: str, variant: str) -> dict[str, Any]:
    low, high = score.interval or (None, None)
    return {
        "model_id": model_id, "variant": variant, "dataset": PREFIX + score.task, "language": "all",
        "metric": score.metric, "value": score.value, "low": low, "high": high, "n": score.n, "reason": score.reason,
    }  # fmt: skip


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what the harness draws from, and put all back; its bootstraps stay in this process."""
    import torch

    states = random.getstate(), np.random.get_state()
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # else a fork for every core, of a process with a model and threads
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
