"""The plan reads a model's folder without its weights: tokens of the prompts, and models that cannot run."""

import json
import shutil
from pathlib import Path

import pytest

from rass_core.errors import ModelError
from rass_core.estimate import machine
from rass_core.estimate.plan import plan_run
from rass_core.models.chat import ChatFormat
from tests import tiny_models
from tests.plan_runs import SPEED, N, config, planned, write_prompts


@pytest.fixture(autouse=True)
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_measured", lambda *_: SPEED)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


def test_tokens_are_those_of_the_chat_template(checkpoint: Path, prompts: Path) -> None:
    chat = ChatFormat(tiny_models.tokenizer())
    texts = {json.loads(line)["text"] for line in prompts.read_text(encoding="utf-8").splitlines()} - {""}
    lengths = [len(chat.ids(text)) for text in texts]
    value, how = planned(config(checkpoint, prompts))[f"tokens of the prompts, {checkpoint}"]
    assert value == str(sum(lengths))
    assert f"longest {max(lengths)}" in how
    assert "TOO LONG" not in how
    short = config(checkpoint, prompts, model={"max_model_len": max(lengths)})
    assert f"TOO LONG for the model's {max(lengths)}" in planned(short)[f"tokens of the prompts, {checkpoint}"][1]


def test_a_large_set_is_sampled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": f"text {n:05}", "language": "en", "label": "harmless"}) for n in range(1201)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines), encoding="utf-8")
    n_tokenised = 0
    ids = ChatFormat.ids

    def counted(self: ChatFormat, prompt: str) -> list[int]:
        nonlocal n_tokenised
        n_tokenised += prompt.startswith("text ")
        return ids(self, prompt)

    monkeypatch.setattr(ChatFormat, "ids", counted)
    rows = planned(config(checkpoint, tmp_path / "many.jsonl"))
    assert 400 <= n_tokenised <= 500
    each = len(ids(ChatFormat(tiny_models.tokenizer()), "text 00000"))
    assert rows[f"tokens of the prompts, {checkpoint}"][0] == f"{1201 * each:,}"


def test_a_hub_model_that_is_not_here_is_said_to_be_unknown(prompts: Path) -> None:
    rows = planned(config("no-such-org/no-such-model", prompts))
    value, how = rows["tokens of the prompts, no-such-org/no-such-model"]
    assert (value, "not in the cache" in how) == ("not known", True)
    assert rows["disk for activations"][0] == rows["time"][0] == rows["memory"][0] == "not known"
    assert rows["answers to the given prompts"][0] == f"≤ {N} requests, ≤ {N * 48:,} new tokens"


def copied(checkpoint: Path, target: Path) -> Path:
    shutil.copytree(checkpoint, target)
    return target


def test_models_that_cannot_run_are_refused(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        plan_run(config(tmp_path / "none", prompts))
    with pytest.raises(ModelError, match=r"no config\.json"):
        plan_run(config(prompts.parent, prompts))
    with pytest.raises(ModelError, match="neither a folder nor a name of the hub"):
        plan_run(config("a name with blanks", prompts))

    bare = copied(checkpoint, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        plan_run(config(bare, prompts))

    unweighted = copied(checkpoint, tmp_path / "unweighted")
    (unweighted / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in it"):
        plan_run(config(unweighted, prompts))
    (unweighted / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        plan_run(config(unweighted, prompts))

    broken = copied(checkpoint, tmp_path / "broken")
    (broken / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        plan_run(config(broken, prompts))
    assert "\n" not in str(caught.value)
