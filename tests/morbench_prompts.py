"""Candidates of a benchmark: sentences of the lab, and prompts made up for one case."""

from collections.abc import Sequence
from typing import Any

from rass_core.benchmark.build import build
from rass_core.benchmark.settings import MorbenchConfig
from rass_core.benchmark.types import Benchmark, BenchmarkCandidate
from rass_core.lab import contrasts, world

LAB_BOUNDARIES = {"cautious": 1.5, "bold": 3.5}
"""Two target models, by the danger at which they start to refuse."""
CATEGORIES = ("assault", "destruction", "disappearance", "killing")


def lab_candidate(sentence: world.Sentence, **more: Any) -> BenchmarkCandidate:
    margins = dict.fromkeys(LAB_BOUNDARIES, 0.15 * sentence.apparent_harm)
    distances = {model: 0.15 * (sentence.apparent_harm - b) for model, b in LAB_BOUNDARIES.items()}
    return BenchmarkCandidate(
        text=sentence.text,
        language=sentence.language,
        label=sentence.label,
        category=sentence.category,
        family=sentence.family,
        source="lab",
        licence="apache-2.0",
        margins=margins,
        distances=distances,
        **more,
    )


def lab_rows() -> tuple[list[BenchmarkCandidate], list[BenchmarkCandidate]]:
    """Held-out pseudo-harmful sentences of every language, a frame each, and all their minimal contrasts."""
    benign = [
        each
        for language in world.languages()
        for number, each in enumerate(world.sentences(language))
        if each.label == "pseudo_harmful" and each.held_out and each.frame == number // 6 % 6
    ]
    harmful = {each.text: each for sentence in benign for each in contrasts.contrasts(sentence)}
    return [lab_candidate(each) for each in benign], [lab_candidate(each) for each in harmful.values()]


LAB_CONFIG = MorbenchConfig(n_per_cell=8, n_strata=4)


def one(text: str, distance: float = 0.0, label: str = "pseudo_harmful", **more: Any) -> BenchmarkCandidate:
    given: dict[str, Any] = {
        "language": "en", "category": "c", "family": text, "source": "s", "licence": "MIT",
        "margins": {"m": distance}, "distances": {"m": distance}, **more,
    }  # fmt: skip
    return BenchmarkCandidate(text=text, label=label, **given)


def harmful(text: str, distance: float = 0.0, **more: Any) -> BenchmarkCandidate:
    return one(text, distance, "harmful", **more)


def small(**more: Any) -> MorbenchConfig:
    return MorbenchConfig(**{"n_per_cell": 2, "n_strata": 1, "near_duplicate_jaccard": 1.0, **more})


def built(
    benign: Sequence[BenchmarkCandidate], harm: Sequence[BenchmarkCandidate], config: MorbenchConfig, **more: Any
) -> Benchmark:
    return build(benign, harm, config, seed=0, **{"is_in": lambda text, language: True, **more})


def pairs(benchmark: Benchmark) -> dict[str, str]:
    return {item.benign.text: item.contrast.text for item in benchmark.items}
