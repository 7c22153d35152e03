"""docs/extending-operator.md: its operator is written in a round as the built-in ones are."""

from pathlib import Path

import pytest
import yaml

from rass_core.generate.operators import Operator, instruction
from rass_core.generate.scheduler import Parent, schedule_round
from rass_core.generate.settings import GenerateConfig
from rass_core.generate.writers import Writer, request_of
from rass_core.models.chat import ChatFormat
from tests import tiny_models
from tests.doc_code import DOCS, code_blocks

PAGE, NAME = "extending-operator.md", "my_operators:Profession"


@pytest.fixture(autouse=True)
def my_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_operators.py").write_text(code_blocks(PAGE, "python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_the_operator_of_the_page_writes_prompts() -> None:
    config = GenerateConfig.model_validate(yaml.safe_load(code_blocks(PAGE, "yaml")[0])["generate"])
    writer = Writer("assistant", "none", None)
    seeds = [
        Parent(f"{label} {n}", f"How do I kill weed {n}?", "de", label, None, f"{label} {n}", 0.1)
        for label in ("harmful", "harmless", "pseudo_harmful")
        for n in range(3)
    ]
    jobs = [job for job in schedule_round(0, [writer], seeds, [], [], config, 0) if job.operator == NAME]
    assert len(jobs) > 20
    assert {job.parents[0].label for job in jobs} == {"harmless", "pseudo_harmful"}
    chat = ChatFormat(tiny_models.tokenizer())
    request = request_of(
        writer, chat, NAME, "de", [jobs[0].parents[0].text], alpha=0.0, seed=0, max_new_tokens=8, temperature=1.0,
        top_p=1.0,
    )  # fmt: skip
    asked = chat.tokenizer.decode(request.prompt_ids)
    assert f"wie eine Fachkraft sie stellen würde. Schreibe nur die Bitte: {jobs[0].parents[0].text}" in asked


def test_other_languages_are_named_or_take_the_configurations_instruction() -> None:
    assert "Write in Swahili, and only the request: x" in instruction(NAME, "sw", ["x"])
    config = GenerateConfig.model_validate(yaml.safe_load(code_blocks(PAGE, "yaml")[1])["generate"])
    assert instruction(NAME, "sw", ["x"], config.instructions).endswith("Andika ombi tu: x")


def test_the_table_of_the_page_names_every_attribute() -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    for name in Operator.__annotations__:
        assert f"| `{name}` |" in page
