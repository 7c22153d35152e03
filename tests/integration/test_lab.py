"""The lab's models, as they lie in the package, do what the lab promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

import rass_core.lab
from rass_core.lab.checks import measure, shortfalls
from rass_core.lab.prompts import held_out_sentences
from rass_core.lab.training import TRUE_BLOCK, VARIANTS, build_model, build_tokenizer, save, train, true_direction
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.residuals import ResidualExtractor
from rass_core.probe.directions import cosine, difference_in_means

WEIGHTS = Path(rass_core.lab.__file__).parent / "weights"


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, dict[str, float]]]:
    return {variant: measure(WEIGHTS / variant, n_per_cell=60) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_meets_its_targets_in_every_language(
    figures: dict[str, dict[str, dict[str, float]]], variant: str
) -> None:
    assert shortfalls(figures[variant]) == []


def test_the_variants_differ_in_how_much_they_over_refuse(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    for language in figures["balanced"]:
        rates = [figures[variant][language]["pseudo_harmful"] for variant in VARIANTS]
        assert rates[0] > rates[-1], f"{language}: cautious refuses more than permissive"


def test_difference_in_means_finds_the_direction_that_was_taught() -> None:
    model, tokenizer = load_causal_lm(str(WEIGHTS / "balanced"))
    chat = ChatFormat(tokenizer)
    extractor = ResidualExtractor(model, [TRUE_BLOCK], [-1])
    asked = list(held_out_sentences({"harmful": 40, "harmless": 40}))
    streams = extractor([chat.ids(s.text) for s in asked])[:, 0, 0].numpy()
    harmful = np.array([s.label == "harmful" for s in asked])
    found = difference_in_means(streams[harmful], streams[~harmful])
    assert cosine(found, true_direction(streams.shape[1]).numpy()) > 0.5


def test_training_is_seeded_and_learns(tmp_path: Path) -> None:
    tokenizer, losses = build_tokenizer(), []
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(train(build_model(tokenizer), tokenizer, "balanced", 12, 4e-3, 0, losses.append))
    first, second = (dict(model.state_dict()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    save(models[0], tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4_000_000 / len(VARIANTS)
