"""Any model on a benchmark or a file of labelled prompts: rates of over-refusal and safety, no answers kept."""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.benchmark.card import VERSION_FILE
from rass_core.benchmark.folder import read_benchmark
from rass_core.data.prompts import load_prompts
from rass_core.data.sources import PromptSource
from rass_core.errors import ConfigError, ModelError, PromptError
from rass_core.evaluate.rates import variant_rows
from rass_core.evaluate.samples import EvalSample, complete, sample_of
from rass_core.judges.panel import Panel
from rass_core.judges.score_file import whole_file
from rass_core.lake.schema import TABLES
from rass_core.languages.tags import canonical_tags, is_within
from rass_core.models.chat import ChatFormat
from rass_core.models.identity import folder_id, model_id
from rass_core.models.loading import load_tokenizer
from rass_core.models.retrying import Say, ignored
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_engine import SteeredEngine, longest_request
from rass_core.paths import user_path
from rass_core.vocabulary import Row

ADAPTER_FILE = "adapter_config.json"
FORMATS = (".parquet", ".csv", ".json")
VARIANT = "base"


def read_samples(
    dataset: Path, languages: Sequence[str] | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[str, list[EvalSample]]:
    """Return the dataset's name and what models are asked, in the order of prompt ids.

    Args:
        dataset: A benchmark folder, or a file or folder of labelled prompts.
        languages: To keep, as people write them; None keeps all.
        settings: How a file is read, as in `prompts.sources`: text_column, label_map, family_column and so on.

    Raises:
        PromptError: No such folder or file, a benchmark that was changed, settings for a benchmark, rows without a
            label, or no prompt of one of these languages.
    """
    languages = canonical_tags(languages or ())
    dataset = user_path(dataset, PromptError, "--dataset")
    if not dataset.exists():
        raise PromptError(f"{dataset}: no such folder or file; name a MORBench folder or a file of labelled prompts")
    if (dataset / VERSION_FILE).exists():
        if settings:
            raise PromptError(f"{dataset}: a MORBench folder, whose columns are known; leave out {', '.join(settings)}")
        table, version = read_benchmark(dataset)
        name, rows = f"{dataset.resolve().name}@{version}", table.to_pylist()
    else:
        name = dataset.resolve().stem
        rows = load_prompts([PromptSource(path=str(dataset), **(settings or {}))]).table.to_pylist()
    spoken = sorted({row["language"] for row in rows})
    absent = sorted(wanted for wanted in languages if not any(is_within(each, wanted) for each in spoken))
    if absent:
        raise PromptError(f"{dataset}: no prompt in {', '.join(absent)}; there are {', '.join(spoken)}")
    kept = [row for row in rows if not languages or any(is_within(row["language"], each) for each in languages)]
    return name, [sample_of(row, [name]) for row in sorted(kept, key=lambda row: row["prompt_id"])]


def is_adapter(name: str) -> bool:
    """Return whether a name is a folder with an adapter rather than a whole model."""
    return (Path(name) / ADAPTER_FILE).is_file()


def base_of(name: str, base: str | None = None) -> str | None:
    """Return the model that an adapter belongs to, None for a whole model.

    Args:
        name: Folder or hub name.
        base: Has precedence over what the adapter says.

    Raises:
        ModelError: An adapter that cannot be read, or names no base where none is given.
    """
    if not is_adapter(name):
        return None
    try:
        said = json.loads((Path(name) / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{name}: {ADAPTER_FILE} cannot be read; fetch the adapter again") from error
    if not (base or said):
        raise ModelError(f"{name}: an adapter without the name of its base model; give --base MODEL")
    return str(base or said)


def measured(
    model: ModelConfig, base: str | None, samples: Sequence[EvalSample], panel: Panel, max_new_tokens: int,
    seed: int, progress: Callable[[int], None] | None = None, say: Say = ignored,
) -> list[Row]:  # fmt: skip
    """Return a model's rows of `evaluations` on the samples; its answers are judged and forgotten.

    Args:
        model: Its name may be an adapter folder.
        base: Model that the adapter belongs to; None where the model is none.
        samples: What it is asked, greedily.
        panel: Who judges.
        max_new_tokens: Length of an answer that is only to be judged.
        seed: Seed of the intervals.
        progress: Called with the number of answers done.
        say: Gets a line with what the self-check found.

    Raises:
        ModelError: It cannot be loaded, an adapter does not fit its base, or a prompt is too long for it.
        JudgeError: A judge that failed too often.
    """
    with _whole(model, base) as loaded, _engine(loaded, samples, max_new_tokens, seed, say) as engine:
        completions = complete(engine, panel, samples, max_new_tokens, progress=progress)
    outcomes = [outcome for completion in completions for outcome in completion.outcomes(VARIANT)]
    return variant_rows(_id_of(model.name, base), outcomes, seed)


def write_rows(rows: Sequence[Row], out: Path) -> None:
    """Write rows of `evaluations` in the format that the file's ending names, all of them or nothing.

    Raises:
        ConfigError: Another ending than .parquet, .csv or .json.
    """
    check_format(out)
    schema = TABLES["evaluations"]
    with whole_file(out) as temporary:
        if out.suffix.lower() == ".parquet":
            columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema}
            pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
        elif out.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, schema.names, lineterminator="\n", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        else:
            kept = [{name: row.get(name) for name in schema.names} for row in rows]
            text = json.dumps(kept, ensure_ascii=False, indent=1, allow_nan=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")


def check_format(out: Path) -> None:
    """Raise ConfigError where rows cannot be written to a file of this ending."""
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"{out}: unknown ending; name a file that ends in {', '.join(FORMATS)}")


def _engine(
    model: ModelConfig, samples: Sequence[EvalSample], max_new_tokens: int, seed: int, say: Say
) -> SteeredEngine:
    """Return the model's engine, which takes all of the samples and agrees with transformers."""
    chat = ChatFormat.configured(load_tokenizer(model.reference), model)
    longest = longest_request(chat, [each.text for each in samples], max_new_tokens)
    engine = SteeredEngine(model.reference, seed=seed, longest=longest, **model.engine_options())
    if model.self_check:
        from rass_core.models.causal_lm import load_causal_lm
        from rass_core.models.self_check import check_engine

        try:
            found = check_engine(engine, load_causal_lm(model.reference, model.dtype)[0], model.dtype)
            say(f"self-check of {model_id(model.reference)}: {found.line()}")
        except BaseException:
            engine.close()
            raise
    return engine


def _id_of(name: str, base: str | None) -> str:
    """Return a name that changes when the model does."""
    if base is None:
        return model_id(name)
    return f"{folder_id(Path(name).resolve())}+{model_id(base)}"


@contextmanager
def _whole(model: ModelConfig, base: str | None) -> Iterator[ModelConfig]:
    """Yield the model as a whole checkpoint; that of an adapter is temporary."""
    if base is None:
        yield model
        return
    from rass_core.mitigate.lora import merge

    with tempfile.TemporaryDirectory(prefix="rass-merged-") as folder:
        merged = merge(base, Path(model.name), Path(folder) / Path(model.name).resolve().name, model.dtype)
        yield model.at(str(merged))
