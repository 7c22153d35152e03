"""Languages as people write them: in prompt files, in a configuration, in instructions and by judges."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rass_core.config import RassConfig
from rass_core.data.sources import PromptSource
from rass_core.errors import JudgeError
from rass_core.generate.operators import OPERATORS, operator_of
from rass_core.judges.panel import check_judged
from tests.prompt_files import HEAD, load, place, rows


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("English", "en"), ("eng", "en"), ("EN", "en"), (" en ", "en"), ("eng_Latn", "en"), ("French", "fr"),
        ("pt_BR", "pt-BR"), ("zh-CN", "zh-CN"), ("zh_Hans", "zh-Hans"), ("de-DE.UTF-8", "de-DE"), ("iw", "he"),
        ("in", "id"), ("no", "no"), ("nb", "no"), ("nob_Latn", "no"), ("ger", "de"), ("中文", "zh"), ("Español", "es"),
        ("Portuguese (Brazil)", "pt-BR"), ("English - US", "en-US"), ("en-UK", "en-GB"), ("es-419", "es-419"),
        ("Simplified Chinese", "zh-Hans"), ("cmn-Hans-CN", "zh-Hans-CN"), ("zh-yue", "yue"), ("arb_Arab", "ar"),
        ("sr_RS@latin", "sr-Latn-RS"), ("srp_Cyrl", "sr-Cyrl"), ("jpn_Jpan", "ja"), ("kor_Hang", "ko"), ("tl", "fil"),
        ("de-1996", "de-1996"), ("fr_FR@euro", "fr-FR"), ("\ufeffen", "en"), ("EN-us", "en-US"), ("quz", "quz"),
    ],
)  # fmt: skip
def test_languages_have_one_tag(tmp_path: Path, written: str, tag: str) -> None:
    loaded = load(place(tmp_path, "a.jsonl", rows("a", language=written)))
    assert loaded.table["language"].to_pylist() == [tag]
    assert PromptSource(path="a", language=written, languages=[written]).languages == [tag]
    assert load(tmp_path / "a.jsonl", language=tag).table.equals(loaded.table)


def test_languages_of_a_configuration_are_canonical_too() -> None:
    given = {
        "model": {"name": "m"},
        "prompts": {"sources": [{"path": "p.csv", "language": False, "languages": ["EN", False]}]},
        "generate": {"instructions": {"rewrite": {"pt_BR": "Reescreva: {a}"}}},
        "morbench": {"languages": ["German"]},
        "probe": {"prefixes": {"English": {"refusal": ["I cannot"], "compliance": ["Here is"]}}},
    }
    config = RassConfig.model_validate(given)
    source = config.prompts.sources[0]
    assert (source.language, source.languages) == ("no", ["en", "no"])  # YAML reads the code of Norwegian as false
    assert (list(config.generate.instructions["rewrite"]), config.morbench.languages) == (["pt-BR"], ["de"])
    assert list(config.probe.prefixes) == ["en"]
    given["morbench"] = {"languages": ["Germn"]}
    with pytest.raises(ValidationError, match="language 'Germn' .*did you mean de"):
        RassConfig.model_validate(given)


@pytest.mark.parametrize(("tag", "like"), [("zh-CN", "zh"), ("zh-Hans", "zh"), ("zh-TW", "zh-Hant"), ("de-AT", "de")])
def test_narrower_tags_take_the_instruction_of_their_language(tag: str, like: str) -> None:
    for operator in map(operator_of, OPERATORS.names()):
        if operator.is_instructed:
            assert operator.instruction(tag, ["x", "y"]) == operator.instruction(like, ["x", "y"])
            assert "Write" not in operator.instruction(tag, ["x", "y"])
        assert operator.answer_prefix("prefilled", tag) == operator.prefixes[like]


def test_other_languages_are_named_in_the_english_instruction() -> None:
    assert "Write in Finnish" in operator_of("rewrite").instruction("fi", ["x"])
    assert "Brazilian Portuguese" in operator_of("translate").instruction("pt-BR", ["x"])


def judge(**settings: Any) -> Any:
    sources = [{"path": "p.csv"}]
    return RassConfig.model_validate({"model": {"name": "m"}, "prompts": {"sources": sources}, "judge": settings}).judge


def test_a_language_without_a_judge_stops_unless_it_is_wanted(tmp_path: Path) -> None:
    places = load(place(tmp_path, "a.csv", HEAD + "a,en,harmless\nb,Yoruba,harmless\n")).places
    with pytest.raises(
        JudgeError, match=r"language yo \(first in .*a\.csv line 3\): no judge .*judge\.uncovered"
    ) as caught:
        check_judged(judge(), places)
    assert "\n" not in str(caught.value)
    check_judged(judge(uncovered="unscored"), places)
    check_judged(judge(members=[{"kind": "phrases"}, {"kind": "hf", "model": "m"}]), places)
    check_judged(judge(), {"zh-TW": "x", "pt-BR": "y"})
