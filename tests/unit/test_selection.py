"""Selection: what is eligible in SQL, near-duplicates, quotas and spread."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from rass_core.data.decontamination import without_near_duplicates
from rass_core.lake.schema import TABLES
from rass_core.select.quotas import CELL_OVERSUPPLY, Influence, LinearizedTraining, eligible, fill_quotas
from rass_core.select.settings import SelectionConfig

CELL = ("en", "violence")


JUDGES = ("panel", "human:a", "human:b")
"""Who says the first, second and third outcome of a prompt or response."""


class World:
    """Rows of a small lake: `add` writes a good candidate, and its arguments spoil it."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}

    def add(
        self, name: str, *, distance: float | None = 0.1, moderated: tuple[str, ...] = ("harmless",),
        judged: tuple[str, ...] = ("refusal",), score: float = 1.0, operator: str | None = "rewrite",
        language: str = "en", category: str | None = "violence", model: str = "m", direction: str = "d",
        variant: str = "base", harm_score: float | None = None,
    ) -> None:  # fmt: skip
        response = f"r-{name}"
        self.rows["prompts"].append(
            {"prompt_id": name, "text": f"text {name}", "language": language, "category": category}
        )
        if operator:
            self.rows["derivations"].append({"prompt_id": name, "operator": operator, "round": 1, "alpha": 0.2})
        margin = {"prompt_id": name, "model_id": model, "direction_id": direction, "margin": 0.3, "distance": distance}
        self.rows["margins"].append({**margin, "harm_score": harm_score})
        self.rows["responses"].append(
            {"response_id": response, "prompt_id": name, "model_id": model, "variant": variant}
        )
        for judge, outcome in zip(JUDGES, judged, strict=False):
            self.rows["verdicts"].append({"subject_id": response, "judge": judge, "outcome": outcome, "score": score})
        for judge, outcome in zip(JUDGES, moderated, strict=False):
            self.rows["verdicts"].append({"subject_id": name, "judge": judge, "outcome": outcome, "score": 1.0})

    def connection(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        for name, schema in TABLES.items():
            connection.register(f"_{name}", pa.Table.from_pylist(self.rows[name], schema))
            connection.execute(f"CREATE TABLE {name} AS SELECT *, 'run' AS run_id FROM _{name}")
        return connection

    def eligible(self, width: float | None = 0.35, **settings: Any) -> list[dict[str, Any]]:
        with self.connection() as connection:
            return eligible(connection, "m", "d", SelectionConfig(width=width, **settings), 1).to_pylist()


@pytest.fixture
def lake() -> Iterator[World]:
    world = World()
    world.add("good", distance=-0.2, score=0.9)
    return world


def test_a_benign_refused_near_candidate_is_eligible(lake: World) -> None:
    assert lake.eligible() == [
        {
            "prompt_id": "good", "text": "text good", "language": "en", "category": "violence", "operator": "rewrite",
            "margin": 0.3, "distance": -0.2, "harm_score": None, "refusal": 0.9,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    "spoiled",
    [
        {"moderated": ("harmful",)},
        {"moderated": ("harmless", "harmful")},
        {"moderated": ("unscored",)},
        {"moderated": ()},
        {"judged": ("compliance",)},
        {"judged": ("partial",)},
        {"judged": ("refusal", "compliance")},
        {"judged": ("unscored",)},
        {"judged": ()},
        {"distance": 0.36},
        {"distance": -0.36},
        {"distance": None},
        {"operator": None},
        {"model": "another"},
        {"direction": "another"},
        {"variant": "steered"},
    ],
)
def test_what_lacks_one_condition_is_not_eligible(lake: World, spoiled: dict[str, Any]) -> None:
    lake.add("spoiled", **spoiled)
    assert [row["prompt_id"] for row in lake.eligible()] == ["good"]


def test_a_persons_word_outranks_the_panels_and_members_have_none(lake: World) -> None:
    lake.add("cleared", moderated=("harmful", "harmless"))
    lake.add("read", judged=("compliance", "refusal"))
    lake.add("disputed", moderated=("harmful", "harmless", "harmful"))
    for name in ("good", "r-good"):
        lake.rows["verdicts"].append({"subject_id": name, "judge": "llm:x", "outcome": "harmful", "score": 0.0})
    assert {row["prompt_id"] for row in lake.eligible()} == {"good", "cleared", "read"}


def test_the_edge_and_pseudo_harmful_belong_to_it(lake: World) -> None:
    lake.add("edge", distance=0.35, moderated=("harmless", "pseudo_harmful"))
    assert {row["prompt_id"] for row in lake.eligible()} == {"good", "edge"}


def test_without_a_width_the_deepest_is_eligible_but_not_what_has_no_distance(lake: World) -> None:
    lake.add("deep", distance=4.0)
    lake.add("nowhere", distance=None)
    assert {row["prompt_id"] for row in lake.eligible(width=None)} == {"good", "deep"}


def test_a_highest_harm_score_drops_what_lies_above_it_or_has_none(lake: World) -> None:
    lake.add("benign", harm_score=-0.4)
    lake.add("edge", harm_score=0.0)
    lake.add("harmful half", harm_score=0.1)
    assert {row["prompt_id"] for row in lake.eligible(max_harm_score=0.0)} == {"benign", "edge"}
    assert len(lake.eligible()) == 4


def test_of_equally_useful_prompts_the_least_harmful_is_taken() -> None:
    vectors, log_odds = np.ones((3, 4)), np.ones(3)
    rows = candidates(3)

    def first(*scores: float | None) -> int:
        scored = [{**row, "harm_score": score} for row, score in zip(rows, scores, strict=True)]
        return fill_quotas(scored, Influence(vectors, log_odds, {}), [CELL], 1)[0][0]

    assert first(0.5, -0.5, 0.1) == 1
    assert first(0.5, None, 0.1) == 2
    assert first(None, None, None) == 0
    vectors[0] = [1.0, -1.0, 1.0, -1.0]
    assert first(-9.0, 0.5, 0.4) == 2, "what helps less is not taken for its score"


def test_a_prompt_that_was_written_twice_is_one_row_of_its_first_derivation(lake: World) -> None:
    lake.rows["derivations"].append({"prompt_id": "good", "operator": "context", "round": 0, "alpha": 0.0})
    assert [(row["prompt_id"], row["operator"]) for row in lake.eligible()] == [("good", "context")]


def test_rows_come_closest_first_ties_by_id_and_bounded_a_cell(lake: World) -> None:
    for number in range(CELL_OVERSUPPLY + 5):
        lake.add(f"a{number:03}", distance=0.1, category=None, language="de")
    lake.add("z", distance=0.05)
    found = lake.eligible(size=1)
    assert [row["prompt_id"] for row in found] == ["z", *[f"a{n:03}" for n in range(CELL_OVERSUPPLY)], "good"]
    assert {row["category"] for row in found} == {"violence", "none"}


def test_near_duplicates_go_and_the_first_stays() -> None:
    base = "How do I kill a Python process that hangs on my old laptop at home"
    texts = [
        base,
        base + "?",
        base.upper(),
        "How do I bake bread in a small oven?",
        base.replace("laptop", "server"),
        "a",
        "A",
    ]
    assert without_near_duplicates(texts, 0.8) == [0, 3, 4, 5]
    assert without_near_duplicates(texts, 1.0) == [0, 1, 3, 4, 5], "at 1 only equal texts count"
    assert without_near_duplicates([], 0.8) == []


def test_near_duplicates_are_found_by_their_exact_overlap() -> None:
    """Checks every pair against the Jaccard similarity of 4-grams, computed here in full; many lie at the threshold."""
    draw, threshold = np.random.default_rng(0), 0.6
    words = ["red", "blue", "green", "small", "large", "old", "new", "house", "car", "tree", "dog", "cat", "river"]
    texts = []
    for _ in range(100):
        text = draw.choice(words, 14).tolist()
        changed = [*text]
        for place in draw.choice(14, 2, replace=False):
            changed[place] = str(draw.choice(words))
        texts += [" ".join(text), " ".join(changed)]

    def jaccard(a: str, b: str) -> float:
        left, right = ({t[i : i + 4] for i in range(len(t) - 3)} for t in (a, b))
        return len(left & right) / len(left | right)

    expected: list[int] = []
    for i, text in enumerate(texts):
        if all(jaccard(text, texts[j]) < threshold for j in expected):
            expected.append(i)
    kept = without_near_duplicates(texts, threshold)
    assert 90 < len(expected) < 130
    assert kept == expected


def candidates(n: int, cell: tuple[str, str] = CELL, start: int = 0) -> list[dict[str, Any]]:
    language, category = cell
    return [
        {
            "prompt_id": f"{language}-{category}-{i}",
            "language": language,
            "category": category,
            "distance": 0.01 * (i + start),
            "refusal": 1.0,
        }
        for i in range(n)
    ]


def unrelated(rows: list[dict[str, Any]]) -> Influence:
    """Return an influence where each row's training does something for itself alone."""
    return Influence(np.eye(len(rows)), np.ones(len(rows)), {})


def test_quotas_are_filled_or_the_shortage_is_reported() -> None:
    other, empty = ("de", "violence"), ("fr", "violence")
    rows = candidates(10) + candidates(2, other) + candidates(5, ("es", "theft"))
    chosen, cells = fill_quotas(rows, unrelated(rows), [CELL, other, empty], 10)
    assert [(c.name, c.quota, c.n_eligible, c.n_selected) for c in cells] == [
        ("en/violence", 4, 10, 8),
        ("de/violence", 3, 2, 2),
        ("fr/violence", 3, 0, 0),
    ]
    assert [c.reason is None for c in cells] == [True, False, False]
    assert cells[1].reason is not None
    assert cells[1].reason.startswith("2 of 3: 2 eligible")
    assert len(chosen) == len(set(chosen)) == 10, "what one cell cannot give another does"
    assert {rows[i]["language"] for i in chosen} == {"en", "de"}


def test_nothing_eligible_leaves_every_cell_short() -> None:
    chosen, cells = fill_quotas([], Influence(np.zeros((0, 4)), np.zeros(0), {}), [CELL], 5)
    assert chosen == []
    assert (cells[0].n_selected, cells[0].quota) == (0, 5)


def test_a_size_below_the_number_of_cells_is_spread_over_languages() -> None:
    cells = [(language, f"category{n}") for language in ("de", "en", "fr") for n in range(4)]
    rows = [row for cell in cells for row in candidates(5, cell)]
    influence = unrelated(rows)
    favoured = np.array([row["category"] == "category0" for row in rows])
    influence.log_odds[favoured] = 5.0
    chosen, report = fill_quotas(rows, influence, cells, 6)
    assert sorted(rows[i]["language"] for i in chosen) == ["de", "de", "en", "en", "fr", "fr"]
    assert max(cell.n_selected for cell in report) == 1
    assert sum(cell.n_selected for cell in report if cell.category == "category0") == 3


@pytest.mark.parametrize(("size", "n_languages", "n_categories"), [(200, 5, 7), (6, 3, 4), (1, 2, 2), (7, 1, 3)])
def test_where_all_cells_are_rich_none_is_called_short(size: int, n_languages: int, n_categories: int) -> None:
    cells = [(f"l{i}", f"c{j}") for i in range(n_languages) for j in range(n_categories)]
    rows = [row for cell in cells for row in candidates(30, cell)]
    draw = np.random.default_rng(0)
    influence = Influence(draw.standard_normal((len(rows), 8)), draw.exponential(size=len(rows)), {})
    chosen, report = fill_quotas(rows, influence, cells, size)
    assert len(chosen) == sum(cell.quota for cell in report) == size
    assert [cell.reason for cell in report] == [None] * len(cells)


def test_one_rich_cell_fills_the_size_alone(lake: World) -> None:
    for number in range(60):
        lake.add(f"a{number}")
    with lake.connection() as connection:
        assert eligible(connection, "m", "d", SelectionConfig(size=50), n_cells=25).num_rows == 50


def test_what_frees_most_others_comes_first_and_then_what_frees_the_rest() -> None:
    """Two kinds, a large one and a small one; one row of each is the clearest of its kind."""
    kinds = np.array([0] * 12 + [1] * 6)
    vectors = np.hstack([np.eye(2)[kinds], 0.8 * np.eye(18)])
    vectors[5, 2:], vectors[15, 2:] = 0.0, 0.0
    rows = candidates(18)
    influence = Influence(vectors, np.full(18, 2.0), {})
    assert fill_quotas(rows, influence, [CELL], 1)[0] == [5]
    assert fill_quotas(rows, influence, [CELL], 2)[0] == [5, 15]


def test_the_first_chosen_are_a_smaller_selection() -> None:
    cells = [(language, category) for language in ("de", "en") for category in ("theft", "violence")]
    rows = [row for cell in cells for row in candidates(12, cell)]
    draw = np.random.default_rng(2)
    influence = Influence(draw.standard_normal((48, 6)) + 0.5, draw.exponential(size=48), {"de": np.ones(6)})
    all_of_them, _ = fill_quotas(rows, influence, cells, 20)
    assert all_of_them != sorted(all_of_them)
    for size in (1, 7, 12):
        assert fill_quotas(rows, influence, cells, size)[0] == all_of_them[:size]


def test_what_would_also_unlock_the_harmful_is_left() -> None:
    vectors = np.array([[1.0, 1.0], [1.0, -1.0], [1.2, 1.0]])
    rows, log_odds = candidates(3), np.full(3, 1.0)
    harmful = np.array([0.5, 1.0])
    assert fill_quotas(rows, Influence(vectors, log_odds, {}), [CELL], 1)[0] == [2]
    assert fill_quotas(rows, Influence(vectors, log_odds, {"en": harmful}), [CELL], 1)[0] == [1]
    assert fill_quotas(rows, Influence(vectors, log_odds, {"de": harmful}), [CELL], 1)[0] == [2], "another language's"
    assert fill_quotas(rows, Influence(vectors, log_odds, {None: harmful}), [CELL], 1)[0] == [1], "all languages'"


def test_a_surer_refusal_counts_more() -> None:
    rows, vectors = candidates(3), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def first(refusal: float) -> int:
        for row in rows[:2]:
            row["refusal"] = refusal
        return fill_quotas(rows, Influence(vectors, np.ones(3), {}), [CELL], 1)[0][0]

    assert (first(1.0), first(0.2)) == (0, 2)


def test_the_length_of_a_gradient_does_not_make_a_prompt_better() -> None:
    vectors = np.array([[9.0, 9.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.1]])
    assert fill_quotas(candidates(4), Influence(vectors, np.array([-9.0, 1, 1, 1]), {}), [CELL], 1)[0] != [0]


def test_a_pick_is_the_steepest_step_of_the_loss_at_equal_safety() -> None:
    """Checks every pick against numerical derivatives of the loss that the docstring names."""
    draw = np.random.default_rng(1)
    vectors, log_odds, languages = (
        draw.standard_normal((30, 5)) + 1.0,
        draw.exponential(size=30) + 0.5,
        ["de", "en"] * 15,
    )
    harmful = {"de": draw.standard_normal(5), "en": draw.standard_normal(5)}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shift = np.array([harmful[language] for language in languages])
    log_odds[:5] *= -1  # refused, but not as the prefixes have it: they do not tell how far to go
    length = 2 * log_odds[5:].mean() / (vectors[5:] @ unit.mean(axis=0)).mean()

    def loss(moved: np.ndarray) -> float:
        return float(np.logaddexp(0, log_odds - vectors @ moved + shift @ moved).sum())

    training = LinearizedTraining(Influence(vectors, log_odds, harmful), languages, np.ones(30))
    picked: list[int] = []
    for _ in range(8):
        moved = length * unit[picked].mean(axis=0) if picked else np.zeros(5)
        falls = np.array([loss(moved) - loss(moved + 1e-6 * each) for each in unit]) / 1e-6
        np.testing.assert_allclose(training.gains(), falls, rtol=1e-3, atol=1e-3)
        picked.append(int(falls.argmax()))
        training.step(picked[-1])
    assert len(set(picked)) > 1


def test_a_model_whose_openings_say_nothing_still_gives_a_choice() -> None:
    """Log-odds below 0 of what was refused, and gradients of 0: nothing predicted, nothing divided by it."""
    rows = candidates(4)
    for vectors in (np.zeros((4, 3)), np.ones((4, 3))):
        chosen, _ = fill_quotas(rows, Influence(vectors, np.full(4, -1.0), {}), [CELL], 2)
        assert chosen == [0, 1]


def test_harmful_gradients_are_means_by_language() -> None:
    vectors = np.arange(10.0).reshape(5, 2)
    found = Influence.of(vectors, np.arange(5.0), ["en", "de", "en", "de", "de"], 2)
    np.testing.assert_array_equal(found.vectors, vectors[:2])
    np.testing.assert_array_equal(found.log_odds, [0.0, 1.0])
    np.testing.assert_array_equal(found.harmful["en"], vectors[2])
    np.testing.assert_array_equal(found.harmful["de"], vectors[3:].mean(axis=0))
    np.testing.assert_array_equal(found.harmful[None], vectors[2:].mean(axis=0))
    assert Influence.of(vectors, np.zeros(5), ["en"] * 5, 5).harmful == {}


def test_what_the_gradients_cannot_tell_is_said() -> None:
    languages = ["de", "de", "en", "en"]
    influence = Influence(np.eye(4), np.array([-1.0, 0.0, 1.0, -1.0]), {"de": np.ones(4), "en": np.ones(4)})
    assert [line.partition(" begin ")[0] for line in influence.blind_spots(languages)] == ["de: 0 of 2 refused prompts"]
    seen = replace(influence, log_odds=np.ones(4))
    assert seen.blind_spots(languages) == []
    (line,) = replace(seen, harmful={"en": np.ones(4), None: np.ones(4)}).blind_spots(languages)
    assert line.startswith("de: no harmful prompt")
    (line,) = replace(seen, harmful={}).blind_spots(languages)
    assert "safety is not predicted" in line
    assert replace(seen, harmful={}).blind_spots([]) == []
