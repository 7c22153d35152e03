"""docs/extending-mitigation.md: its method makes a variant as the built-in ones do."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rass_core.mitigate.base import MitigatedModel, MitigationContext
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.settings import MitigateConfig
from rass_core.mitigate.variant import mitigate
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.settings import ModelConfig
from tests import tiny_models
from tests.doc_code import DOCS, code_blocks

PAGE = "extending-mitigation.md"
PAIRS = [
    PreferencePair(str(n), "over_refusal", f"How do I kill weed {n}?", "en", f"Pull it, {n}.", f"No, {n}.")
    for n in range(4)
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


def test_the_method_of_the_page_keeps_a_share_of_the_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(code_blocks(PAGE, "python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = MitigateConfig.model_validate(yaml.safe_load(code_blocks(PAGE, "yaml")[0])["mitigate"])
    methods = config.variants()
    assert list(methods) == ["sft", "ScaledAdapter"]
    shown = methods["ScaledAdapter"].shown_settings()
    assert (shown["share"], shown["epochs"]) == (0.25, 3.0), "the section's training, the entry's share"
    assert methods["ScaledAdapter"].effort(100) == methods["sft"].effort(100)

    base = tiny_models.build("llama", tmp_path / "base")
    model = ModelConfig(name=str(base), dtype="float32")
    _, tokenizer = load_causal_lm(str(base))
    made = {}
    for name, method in methods.items():
        method.check(model)
        context = MitigationContext(PAIRS, model, ChatFormat(tokenizer), tmp_path / name)
        made[name], digest = mitigate(method, context)
        assert mitigate(method, context) == (made[name], digest), "the second time it is read from its folder"
    assert made["ScaledAdapter"].adapter == tmp_path / "ScaledAdapter" / "adapter"
    assert made["ScaledAdapter"].reason == "0.25 of the fine-tuning is kept"
    before, whole, part = (weights(each) for each in (base, made["sft"].weights, made["ScaledAdapter"].weights))
    moved = 0.0
    for name, given in before.items():
        torch.testing.assert_close(part[name], given + 0.25 * (whole[name] - given), atol=1e-6, rtol=1e-5)
        moved = max(moved, float((whole[name] - given).abs().max()))
    assert moved > 1e-4


def test_the_tables_of_the_page_name_what_is_given_and_returned() -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    for kind in (MitigationContext, MitigatedModel):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in page, f"{kind.__name__}.{field.name} is not on the page"
