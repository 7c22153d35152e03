"""The public prompts as the harm classifier is fitted on them."""

from pathlib import Path

import pytest

from benchmarks.moderators import public
from rass_core.moderators.harm_classifier import shipped

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no public prompts in {DATA}")
def test_a_translation_has_the_source_and_the_family_of_its_original() -> None:
    labelled = public.read(DATA)
    by_text = {(each.language, each.text): each for each in labelled}
    assert len(by_text) == len(labelled)
    families: dict[str, set[str]] = {}
    for each in labelled:
        families.setdefault(each.family, set()).add(each.source)
    assert {"harmbench", "strongreject"} <= {each.source for each in labelled if each.language == "de"}
    korean = [each for each in labelled if each.language == "ko" and each.source == "xstest"]
    english = {each.family for each in labelled if each.language == "en" and each.source == "xstest"}
    assert korean
    assert all(each.family in english for each in korean)
    assert not any("_nc" in each.source for each in labelled)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no public prompts in {DATA}")
def test_the_shipped_classifier_knows_what_it_was_fitted_on_and_nothing_held_out() -> None:
    english = [each for each in public.read(DATA) if each.language == "en"]
    known = shipped().knows([each.text for each in english], [each.language for each in english])
    held_out = [is_known for each, is_known in zip(english, known, strict=True) if public.is_held_out(each)]
    assert not any(held_out)
    assert len(held_out) > 1_000
    assert sum(known) == shipped().known.size
