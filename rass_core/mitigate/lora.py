"""Adapters trained on preference pairs with TRL and PEFT, in the model's own chat format.

`ChatFormat` tokenises the prompts, token for token as vLLM is served them. TRL's own way reads the
template's text of a whole conversation: it would leave out our system prompt and prefix, and it would
teach what a template writes after an answer's last token.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rass_core.errors import ConfigError, ModelError, PromptError
from rass_core.mitigate.adapter import AdapterMethod
from rass_core.mitigate.base import Progress
from rass_core.mitigate.card import ModelCard, base_name, write_card
from rass_core.mitigate.pairs import PreferencePair, check_pairs, counts
from rass_core.mitigate.settings import TrainingSettings
from rass_core.models.causal_lm import load_causal_lm, model_name
from rass_core.models.chat import ChatFormat
from rass_core.models.identity import model_folder, model_id
from rass_core.models.loading import check_adapter, check_editable, save_checkpoint
from rass_core.text import digest

MICRO_BATCH_TOKENS = 1024
"""Most tokens in memory at a time, padding included, where micro_batch_size is not set: about 3 MB each in a model
of 30 blocks 576 wide."""
_ANSWER = "RASS"
"""A placeholder answer, to see what the template writes after one."""
_RECORD, _CHECKPOINTS = "training.json", "checkpoints"


@dataclass(frozen=True)
class Training:
    """The result of a training."""

    adapter: Path
    """Folder with adapter_model.safetensors, adapter_config.json and README.md."""
    losses: list[tuple[int, float]]
    """(step, loss) of every step, those before an interruption too."""
    counts: dict[str, dict[str, int]]
    """Kind → language → pairs that were trained on."""
    n_too_long: int
    """Pairs left out because they do not fit max_length."""
    seconds: float
    """Time of this call, loading the model included."""


@dataclass(frozen=True)
class Tokens:
    """A pair as token ids; both answers end with the token that ends a turn."""

    pair: PreferencePair
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def train(
    method: AdapterMethod,
    base: str,
    pairs: Sequence[PreferencePair],
    out: Path,
    chat: ChatFormat | None = None,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Training:
    """Train a LoRA adapter and write it with its card below a folder.

    A call with the same arguments resumes from the folder's last whole checkpoint.

    Args:
        method: Makes the trainer; holds the settings of the training.
        base: Folder or hub name of a causal language model.
        pairs: Pairs of all kinds; without safety and general ones the model may unlearn refusing.
        out: Gets `adapter/` and `checkpoints/`.
        chat: How the model is spoken to; None takes the template of its tokenizer as it is.
        dtype: Type of the base model in memory; the adapter is float32.
        progress: Called after every micro-batch.

    Raises:
        ModelError: The model cannot be loaded or trained, or the loss is no number.
        PromptError: No pairs, a prompt in two of them, or none fits max_length.
        ConfigError: The folder holds another training, or the settings contradict each other.
    """
    started, settings = time.monotonic(), method.training
    check_pairs(pairs)
    check_installed()
    check_editable(base)
    _claim(out, method, base, pairs, chat, dtype)
    model, tokenizer = load_causal_lm(base, dtype)
    chat = chat or ChatFormat(tokenizer)
    fitting = [t for t in tokenised(pairs, chat, end_of_answer(chat, model)) if len(t) <= settings.max_length]
    if not fitting:
        raise PromptError(
            f"preferences: none of {len(pairs)} pairs fits {settings.max_length} tokens; raise max_length"
        )
    with _quiet():
        trainer = _trainer(method, model, tokenizer, fitting, out, dtype, progress)
        last = _last_checkpoint(out / _CHECKPOINTS)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    losses = [(int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row]
    n_too_long = len(pairs) - len(fitting)
    trained = Training(
        out / "adapter", losses, counts([t.pair for t in fitting]), n_too_long, time.monotonic() - started
    )
    _save(trainer.model, base, trained, method)
    return trained


def tokenised(pairs: Sequence[PreferencePair], chat: ChatFormat, end: int) -> list[Tokens]:
    """Return the pairs as token ids, prompts as the model is served them."""
    return [
        Tokens(
            pair, chat.ids(pair.prompt), [*chat.answer_ids(pair.chosen), end], [*chat.answer_ids(pair.rejected), end]
        )
        for pair in pairs
    ]


def end_of_answer(chat: ChatFormat, model: Any) -> int:
    """Return the token with which this model ends an answer.

    Several may stop it: the one that its template writes after an answer is the one it learnt.

    Raises:
        ModelError: Neither the template nor the tokenizer names one.
    """
    tokenizer = chat.tokenizer
    named = getattr(model.generation_config, "eos_token_id", None)
    stops = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _ANSWER}]
    rendered = chat.template.render(messages, add_generation_prompt=False)
    _, _, following = rendered.rpartition(_ANSWER)
    written = [token for token in tokenizer(following, add_special_tokens=False)["input_ids"] if token in stops]
    end = written[0] if written else tokenizer.eos_token_id
    if end is None:
        raise ModelError(f"{model_name(model)}: no token ends an answer; set eos_token in its tokenizer")
    return int(end)


def merge(base: str, adapter: Path, out: Path, dtype: str = "float32") -> Path:
    """Write the base model with an adapter merged into its weights, as an ordinary checkpoint.

    Args:
        dtype: In which it is merged and saved; take the one in which it is to be run.

    Raises:
        ModelError: The model or the adapter cannot be loaded, or they do not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict

    check_editable(base)
    model, _ = load_causal_lm(base, dtype, device="cpu")
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter))
        check_adapter(adapter, get_peft_model_state_dict(adapted, save_embedding_layers=False).keys())
        merged = adapted.merge_and_unload()  # type: ignore[operator]
    except ModelError:
        raise
    except Exception as error:  # a file that is missing or broken, or weights of another shape
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{adapter}: does not fit {base} ({reason[:200]}); give an adapter of this model") from error
    save_checkpoint(merged, model_folder(base), out)
    return out


def check_installed() -> None:
    """Raise ModelError where the packages that train are not there."""
    missing = [name for name in ("trl", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModelError(f"training needs {', '.join(missing)}; install them with `pip install 'rass[train]'`")


def remove_checkpoints(out: Path) -> None:
    """Delete the states from which an interrupted training would resume."""
    shutil.rmtree(out / _CHECKPOINTS, ignore_errors=True)


def _trainer(
    method: AdapterMethod,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Tokens],
    out: Path,
    dtype: str,
    progress: Progress | None,
) -> Any:
    """Return the method's trainer, quiet and with our progress."""
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback

    settings = method.training
    if method.reads_rejected:
        n_tokens = 2 * max(len(t) for t in rows)
    else:
        n_tokens = max(len(t.prompt) + len(t.chosen) for t in rows)
    arguments = _arguments(settings, out, dtype, micro_batch_size(settings, n_tokens))
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.target_modules, task_type="CAUSAL_LM"
    )
    common = {"model": model, "processing_class": tokenizer, "peft_config": lora, "callbacks": [_callback(progress)]}
    trainer = method.trainer(rows, arguments, common)
    trainer.remove_callback(PrinterCallback)
    return trainer


def micro_batch_size(settings: TrainingSettings, n_tokens: int) -> int:
    """Return how many pairs are in memory at a time: as set, else as many as `MICRO_BATCH_TOKENS` hold, at least one.

    Memory is then bounded by tokens, and the steps are the same as those of whole batches.

    Args:
        n_tokens: Tokens of the longest pair, both answers and their prompts where both are read.

    Raises:
        ConfigError: The size that is set does not divide batch_size.
    """
    n = settings.batch_size
    micro = settings.micro_batch_size or max(
        size for size in range(1, n + 1) if n % size == 0 and (size == 1 or size * n_tokens <= MICRO_BATCH_TOKENS)
    )
    if n % micro:
        raise ConfigError(f"micro_batch_size {micro} does not divide batch_size {n}; change one")
    return micro


def _arguments(settings: TrainingSettings, out: Path, dtype: str, micro: int) -> dict[str, Any]:
    """Return the arguments that every trainer takes."""
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(out / _CHECKPOINTS), "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // micro, "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate, "lr_scheduler_type": "cosine", "warmup_steps": settings.warmup_share,
        "max_length": settings.max_length, "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": dtype == "bfloat16", "fp16": dtype == "float16", "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu, "seed": settings.seed, "data_seed": settings.seed,
        "save_strategy": "steps", "save_steps": settings.checkpoint_steps, "save_total_limit": 2,
        "logging_steps": 1, "logging_nan_inf_filter": False, "disable_tqdm": True, "report_to": [],
    }  # fmt: skip


def _callback(progress: Progress | None) -> Any:
    """Return a trainer's callback that reports each micro-batch and stops a training whose loss is no number."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        n_in_step = 0

        def on_substep_end(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
            self.n_in_step += 1
            self.report(args, state)

        def on_step_end(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
            self.n_in_step = 0
            self.report(args, state)

        def report(self, args: Any, state: Any) -> None:
            if progress is not None:
                per_step = args.gradient_accumulation_steps
                progress(state.global_step * per_step + self.n_in_step, state.max_steps * per_step)

        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                raise ModelError(f"training: the loss is {loss} at step {state.global_step}; lower learning_rate")

    return Watch()


def _save(model: Any, base: str, trained: Training, method: AdapterMethod) -> None:
    """Write the adapter and its card; neither names where the base model lies."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name(base)
    model.save_pretrained(trained.adapter, safe_serialization=True, save_embedding_layers=False)
    notes = [f"The loss went from {trained.losses[0][1]:.3f} to {trained.losses[-1][1]:.3f}."] if trained.losses else []
    if trained.n_too_long:
        notes.append(f"{trained.n_too_long} pairs were too long and are left out.")
    card = ModelCard(
        base=base,
        method=method.name,
        is_adapter=True,
        settings=method.training.model_dump(),
        data=trained.counts,
        notes=notes,
    )
    write_card(trained.adapter, card)


def _claim(
    out: Path,
    method: AdapterMethod,
    base: str,
    pairs: Sequence[PreferencePair],
    chat: ChatFormat | None,
    dtype: str,
) -> None:
    """Record which training the folder is for, or raise ConfigError if it is for another."""
    spoken = None
    if chat is not None:
        date = None if chat.template.date is None else str(chat.template.date)
        spoken = [chat.system_prompt, chat.template_kwargs, chat.response_prefix, date]
    content = digest(*(json.dumps(asdict(pair), sort_keys=True) for pair in pairs))
    record = {
        "method": method.name,
        "base": model_id(base),
        "pairs": content,
        "chat": spoken,
        "dtype": dtype,
        "settings": method.training.model_dump(mode="json"),
    }
    path = out / _RECORD
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != record:
        raise ConfigError(f"{out}: holds another training; choose another folder or delete it")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; the trainer's state comes last in it."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the trainers' own warnings out of the terminal; errors are raised as ever."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
