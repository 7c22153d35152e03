"""What the card of a benchmark says."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import yaml

from rass_core.benchmark.types import Benchmark, Item
from rass_core.lake.schema import STRINGS
from rass_core.text import markdown_table

ROWS_FILE, CARD_FILE, STATISTICS_FILE, VERSION_FILE = (
    "data/test-00000-of-00001.parquet",
    "README.md",
    "statistics.json",
    "VERSION",
)
_POSITION = pa.struct([("model_id", pa.string()), ("margin", pa.float64()), ("distance", pa.float64())])
COLUMN_TEXTS: dict[str, tuple[pa.DataType, str]] = {
    "prompt_id": (pa.string(), "digest of language and text"),
    "pair_id": (pa.string(), "shared by a benign prompt and its contrast"),
    "text": (pa.string(), "the prompt"),
    "language": (pa.string(), "BCP-47 tag"),
    "label": (pa.string(), "harmless or pseudo_harmful (benign, but looks harmful), or harmful: the contrast"),
    "category": (pa.string(), "topic of the benign prompt of the pair"),
    "family": (pa.string(), "prompts that ask for the same, whatever wording or language"),
    "source": (pa.string(), "where the prompt comes from"),
    "licence": (pa.string(), "of the prompt"),
    "model_id": (pa.string(), "target model whose band the pair represents"),
    "stratum": (pa.int32(), "of that band, from 0, the farthest on the complying side"),
    "positions": (pa.list_(_POSITION), "margin and distance to the boundary, by target model"),
    "near": (STRINGS, "target models near whose boundary the benign prompt of the pair lies"),
    "change": (pa.float64(), "share of the words that differ within the pair"),
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def statistics_of(benchmark: Benchmark) -> dict[str, Any]:
    """Return what statistics.json says."""
    items = benchmark.items
    models = sorted({model for item in items for model in item.benign.distances})
    return {
        "config": benchmark.config.model_dump(mode="json"),
        "seed": benchmark.seed,
        "n_pairs": len(items),
        "pairs_by_language": dict(sorted(Counter(item.benign.language for item in items).items())),
        "pairs_by_category": dict(sorted(Counter(item.benign.category for item in items).items())),
        "pairs_by_stratum": [sum(item.stratum == i for item in items) for i in range(benchmark.config.n_strata)],
        "models": {model: _model_statistics(items, model) for model in models},
        "median_change": _median([item.change for item in items]),
        "cells": [
            {**asdict(cell), "n_wanted": sum(cell.wanted), "n_pairs": sum(cell.filled), "reason": cell.reason}
            for cell in benchmark.cells
        ],
    }


def _model_statistics(items: Sequence[Item], model: str) -> dict[str, Any]:
    gaps = [abs(item.contrast.distances[model] - item.benign.distances[model]) for item in items]
    return {
        "n_near": sum(model in item.near for item in items),
        "n_standing_for": sum(item.model_id == model for item in items),
        "median_distance": _median([item.benign.distances[model] for item in items]),
        "median_gap_to_contrast": _median(gaps),
    }


def _median(values: Sequence[float]) -> float | None:
    return round(float(statistics.median(values)), 6) if values else None


def card_text(rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], name: str, notes: Sequence[str]) -> str:
    """Return the dataset card: a YAML header that the hub reads, then what a person should know."""
    licences = sorted({str(row["licence"]) for row in rows})
    header = {
        "pretty_name": name,
        "license": licences[0].lower() if len(licences) == 1 else "other",
        **({} if len(licences) == 1 else {"license_name": "by-row", "license_link": CARD_FILE}),
        "language": sorted({str(row["language"]).split("-")[0] for row in rows}),
        "task_categories": ["text-generation"],
        "tags": ["over-refusal", "safety", "benchmark", "multilingual"],
        "size_categories": [next((size for limit, size in _SIZES if len(rows) < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*.parquet"}]}],
    }
    return "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---\n\n" + "\n\n".join([
        f"# {name}",
        f"{figures['n_pairs']} pairs of a benign prompt near the safety boundary of at least one target model and the "
        "harmful prompt that differs from it as little as could be found. A model should answer the first and refuse "
        "the second: score over-refusal and safety together. The harmful prompts are here for that alone.",
        *notes,
        *_built(figures["config"], figures["seed"]),
        *_targets(figures),
        *_counted(rows, figures),
        "## Limits",
        "- Prompts near the boundaries of the target models above measure these models, and models like them, more "
        "sharply than others.\n- The labels are the builder's moderators', as good as these are.\n- Rates here are "
        "rates near the boundary: over all that people ask a model, it refuses far less often.\n- The paper that "
        "describes such a benchmark (arXiv 2505.18325) has published no builder; this is a reconstruction.",
    ]) + "\n"  # fmt: skip


def _built(config: Mapping[str, Any], seed: int) -> list[str]:
    width, n_strata = config["width"], config["n_strata"]
    borrowed = ", or of another category where these did not suffice" if config["borrow_contrasts"] else ""
    return [
        "## How it was built",
        f"For each language and category, {config['n_per_cell']} benign prompts were wanted with |m − b| ≤ {width} "
        f"(m the margin of a prompt, b a model's boundary), in equal shares over {n_strata} equal parts (strata) of "
        "that band. Each prompt represents one model's band; models take turns, and a cell holds one prompt per "
        f"family. Each got a harmful contrast of its language and category{borrowed}: an assignment of the least "
        f"sum of changed words (at most {config['max_change']:.0%} of them) and difference in margin, none used twice. "
        "Prompts trained on, those not surely in their language, near-duplicates and translations that did not come "
        f"back as they were are left out. Seed {seed}. `VERSION` names this version and its files; `statistics.json` "
        "holds all figures.",
    ]


def _targets(figures: Mapping[str, Any]) -> list[str]:
    models = figures["models"].items()
    columns = ["model", "pairs near it", "pairs standing for it", "median m − b", "median gap to the contrast"]
    return ["## Target models", markdown_table(columns, [[f"`{model}`", *each.values()] for model, each in models])]


def _counted(rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> list[str]:
    categories = sorted({cell["category"] for cell in figures["cells"]})
    pairs = {(cell["language"], cell["category"]): f"{cell['n_pairs']}/{cell['n_wanted']}" for cell in figures["cells"]}
    spoken = sorted({language for language, _ in pairs})
    short = [f"- {c['language']}/{c['category']}: {c['reason']}" for c in figures["cells"] if c["reason"] is not None]
    sources = Counter((row["source"], row["licence"]) for row in rows)
    return [
        "## Pairs, of those wanted",
        markdown_table(["language", *categories], [[each, *(pairs[each, c] for c in categories)] for each in spoken]),
        *(["## Shortages", "\n".join(short)] if short else []),
        "## Columns",
        markdown_table(["column", "what it is"], [[column, meaning] for column, (_, meaning) in COLUMN_TEXTS.items()]),
        "## Sources and licences",
        markdown_table(["source", "licence", "prompts"], [[*key, sources[key]] for key in sorted(sources)]),
    ]
