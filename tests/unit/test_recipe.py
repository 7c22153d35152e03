"""The training recipe: which prompts become pairs, with which answers."""

from typing import Any

import pytest

from rass_core.mitigate.pairs import SteeredAnswer
from rass_core.mitigate.recipe import (
    OwnAnswer,
    PairPrompts,
    anchors_asked,
    n_anchors,
    preference_pairs,
    weakest_steered_answers,
)
from rass_core.mitigate.settings import MitigateConfig
from rass_core.text import AcceptanceLimits

HELP = "Open the task manager, choose the process and end it; save your work before you do."


def row(name: str, language: str = "en") -> dict[str, Any]:
    return {"prompt_id": name, "text": f"text {name}", "language": language}


def test_the_weakest_steering_that_helps_is_taken_and_the_others_are_counted() -> None:
    asked: list[tuple[float, list[str]]] = []

    def answers(left: Any, alpha: float) -> list[SteeredAnswer]:
        asked.append((alpha, [each["prompt_id"] for each in left]))
        helps = {0.5: ("a",), 1.0: ("a", "b")}.get(alpha, ())
        return [
            SteeredAnswer(f"{HELP} {alpha}", "compliance" if each["prompt_id"] in helps else "refusal", "en")
            for each in left
        ]

    rows = [row("a"), row("b"), row("c")]
    accepted, reasons = weakest_steered_answers(rows, [1.0, 0.25, 0.5], answers, AcceptanceLimits())
    assert asked == [(0.25, ["a", "b", "c"]), (0.5, ["a", "b", "c"]), (1.0, ["b", "c"])]
    assert accepted == {"a": (f"{HELP} 0.5", 0.5), "b": (f"{HELP} 1.0", 1.0)}
    assert reasons == {"judged refusal": 3 + 2 + 1}


def test_shares_count_anchors_and_more_are_asked() -> None:
    assert [n_anchors(10, share) for share in (0.0, 0.1, 0.25, 1.0)] == [0, 1, 3, 10]
    assert n_anchors(10, 0.1 * 3) == 3, "rounding does not add one"
    assert anchors_asked([row("a"), row("b"), row("c", "de")], 1.0) == {"en": 3, "de": 2}


def made(own: dict[str, OwnAnswer], chosen: dict[str, tuple[str, float]], **shares: float) -> dict[str, Any]:
    prompts = PairPrompts(
        selected=[row("s1"), row("s2"), row("s3", "de")],
        harmful=[row("h1"), row("h2"), row("h3"), row("h4", "de")],
        harmless=[row("g1"), row("g2"), row("g3", "de")],
    )
    pairs = preference_pairs(prompts, own, chosen, lambda language: [f"Sure {language}"], MitigateConfig(**shares))
    return {pair.prompt_id: (pair.kind, pair.chosen, pair.rejected, alpha) for pair, alpha in pairs}


@pytest.fixture
def own() -> dict[str, OwnAnswer]:
    refusing = ("s1", "s2", "s3", "h1", "h2", "h3", "h4")
    answers = {name: OwnAnswer(f"no {name}", "refusal", True) for name in refusing}
    return answers | {name: OwnAnswer(f"yes {name}", "compliance", True) for name in ("g1", "g2", "g3")}


def test_anchors_go_with_the_over_refused_prompts_of_their_language(own: dict[str, OwnAnswer]) -> None:
    pairs = made(own, {"s1": ("help 1", 0.5), "s2": ("help 2", 1.0)})
    assert pairs == {
        "s1": ("over_refusal", "help 1", "no s1", 0.5),
        "s2": ("over_refusal", "help 2", "no s2", 1.0),
        "h1": ("safety", "no h1", "Sure en", None),
        "h2": ("safety", "no h2", "Sure en", None),
        "g1": ("general", "yes g1", "no s1", None),
        "g2": ("general", "yes g2", "no s2", None),
    }
    assert set(made(own, {"s3": ("help 3", 0.5)}, general_share=0.0)) == {"s3", "h4"}


def test_answers_that_are_cut_off_or_came_out_otherwise_are_left_out(own: dict[str, OwnAnswer]) -> None:
    own["s2"] = OwnAnswer("no s2", "refusal", False)
    own["h1"] = OwnAnswer("no h1", "refusal", False)
    own["g1"] = OwnAnswer("no g1", "refusal", True)
    pairs = made(own, {"s1": ("help 1", 0.5), "s2": ("help 2", 1.0)})
    assert set(pairs) == {"s1", "h2", "g2"}
