"""Selection: what is eligible in SQL, near-duplicates, quotas and spread."""

from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from rass_core import selection
from rass_core.config import SelectionConfig
from rass_core.selection import CELL_OVERSUPPLY, eligible, fill_quotas, without_near_duplicates
from rass_core.tables import TABLES

CELL = ("en", "violence", "rewrite")


JUDGES = ("panel", "human:a", "human:b")
"""Who says the first, second and third outcome of a prompt or response."""


class World:
    """Rows of a small lake: one good candidate is written by `add`, and spoiled by what is passed."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}

    def add(
        self, name: str, *, distance: float | None = 0.1, moderated: tuple[str, ...] = ("harmless",),
        judged: tuple[str, ...] = ("refusal",), score: float = 1.0, operator: str | None = "rewrite",
        language: str = "en", category: str | None = "violence", model: str = "m", direction: str = "d",
        variant: str = "base",
    ) -> None:  # fmt: skip
        response = f"r-{name}"
        self.rows["prompts"].append(
            {"prompt_id": name, "text": f"text {name}", "language": language, "category": category}
        )
        if operator:
            self.rows["derivations"].append({"prompt_id": name, "operator": operator, "round": 1, "alpha": 0.2})
        margin = {"prompt_id": name, "model_id": model, "direction_id": direction, "margin": 0.3, "distance": distance}
        self.rows["margins"].append(margin)
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
            return eligible(connection, "m", "d", SelectionConfig(width=width, **settings)).to_pylist()


@pytest.fixture
def lake() -> Iterator[World]:
    world = World()
    world.add("good", distance=-0.2, score=0.9)
    return world


def test_a_benign_refused_near_candidate_is_eligible(lake: World) -> None:
    assert lake.eligible() == [
        {
            "prompt_id": "good", "text": "text good", "language": "en", "category": "violence", "operator": "rewrite",
            "margin": 0.3, "distance": -0.2, "refusal": 0.9,
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
    assert set(expected) <= set(kept)
    assert len(kept) - len(expected) <= 2, "MinHash may miss a pair, seldom"


def candidates(n: int, cell: tuple[str, str, str] = CELL, start: int = 0) -> list[dict[str, Any]]:
    language, category, operator = cell
    return [
        {
            "prompt_id": f"{language}-{operator}-{i}", "language": language, "category": category, "operator": operator,
            "distance": 0.01 * (i + start), "refusal": 1.0,
        }
        for i in range(n)
    ]  # fmt: skip


def test_quotas_are_filled_or_the_shortage_is_reported() -> None:
    other, empty = ("de", "violence", "rewrite"), ("fr", "violence", "rewrite")
    rows = candidates(10) + candidates(2, other) + candidates(5, ("es", "theft", "rewrite"))
    vectors = np.random.default_rng(0).standard_normal((len(rows), 4))
    chosen, cells = fill_quotas(rows, vectors, [CELL, other, empty], SelectionConfig(size=10))
    assert [(c.name, c.quota, c.n_eligible, c.n_selected) for c in cells] == [
        ("en/violence/rewrite", 4, 10, 8), ("de/violence/rewrite", 3, 2, 2), ("fr/violence/rewrite", 3, 0, 0),
    ]  # fmt: skip
    assert [c.reason is None for c in cells] == [True, False, False]
    assert cells[1].reason is not None
    assert cells[1].reason.startswith("2 of 3: 2 eligible")
    assert len(chosen) == len(set(chosen)) == 10, "what one cell cannot give another does"
    distances = [abs(rows[i]["distance"]) for i in chosen]
    assert distances == sorted(distances)
    assert {rows[i]["language"] for i in chosen} == {"en", "de"}


def test_nothing_eligible_leaves_every_cell_short() -> None:
    chosen, cells = fill_quotas([], np.zeros((0, 4)), [CELL], SelectionConfig(size=5))
    assert chosen == []
    assert (cells[0].n_selected, cells[0].quota) == (0, 5)


def test_what_is_chosen_stands_for_its_surroundings() -> None:
    rows = candidates(30)
    vectors = np.zeros((30, 2))
    vectors[10:20, 0], vectors[20:, 1] = 10.0, 10.0
    vectors += 0.01 * np.random.default_rng(0).standard_normal(vectors.shape)
    vectors[0] = [-1.0, -1.0]
    chosen, _ = fill_quotas(rows, vectors, [CELL], SelectionConfig(size=3))
    assert [i // 10 for i in chosen] == [0, 1, 2]
    assert 0 not in chosen, "of a cluster not its outlier"


def test_the_deeper_and_the_surer_count_more() -> None:
    """Two rows at one place, a deep one far away: where the first pick lies is a matter of weight."""
    vectors = np.array([[0.0], [0.1], [5.0]])

    def first(power: float, refusal: float = 1.0) -> int:
        rows = candidates(3)
        for row, distance in zip(rows, [1.0, 1.0, 4.0], strict=True):
            row["distance"] = distance
        rows[2]["refusal"] = refusal
        return fill_quotas(rows, vectors, [CELL], SelectionConfig(size=1, depth_power=power))[0][0]

    assert first(1.0) == 2
    assert first(0.0) == 1
    assert first(1.0, refusal=0.1) == 1


def test_rows_without_depth_are_spread_all_the_same() -> None:
    rows = [row | {"distance": -0.1} for row in candidates(20)]
    vectors = np.repeat(np.eye(2) * 10, 10, axis=0)
    chosen, _ = fill_quotas(rows, vectors, [CELL], SelectionConfig(size=2))
    assert sorted(i // 10 for i in chosen) == [0, 1]


def test_a_size_below_the_number_of_cells_is_spread_over_languages() -> None:
    cells = [(language, "violence", f"operator{n}") for language in ("de", "en", "fr") for n in range(4)]
    rows = [row for cell in cells for row in candidates(5, cell)]
    vectors = np.random.default_rng(0).standard_normal((len(rows), 4))
    vectors[[row["operator"] == "operator0" for row in rows]] *= 100  # the farthest ones, again and again
    chosen, report = fill_quotas(rows, vectors, cells, SelectionConfig(size=6))
    assert sorted(rows[i]["language"] for i in chosen) == ["de", "de", "en", "en", "fr", "fr"]
    assert max(cell.n_selected for cell in report) == 1


@pytest.mark.parametrize("n_members", [90, 60])
def test_the_lazy_choice_is_the_greedy_one(monkeypatch: pytest.MonkeyPatch, n_members: int) -> None:
    """Checks every pick against all gains, computed here in full; with 60 members, the rest stands for nobody."""
    rng = np.random.default_rng(3)
    rows, vectors = candidates(90), rng.standard_normal((90, 3)) * rng.exponential(size=(90, 1))
    members = np.arange(90) if n_members == 90 else np.random.default_rng(0).permutation(90)[:n_members]
    weight = np.array([row["distance"] for row in rows])[members]
    distances = ((vectors[:, None] - vectors[None, members]) ** 2).sum(axis=2)
    nearest, expected = np.full(n_members, 1e6), []
    for _ in range(12):
        gains = np.maximum(nearest - distances, 0.0) @ weight
        gains[expected] = -1.0
        expected.append(int(gains.argmax()))
        nearest = np.minimum(nearest, distances[expected[-1]])
    monkeypatch.setattr(selection, "_CHUNK", 7)
    monkeypatch.setattr(selection, "MAX_CROWD", n_members)
    for size in range(1, 13):
        chosen = fill_quotas(rows, vectors, [CELL], SelectionConfig(size=size))[0]
        assert chosen == sorted(expected[:size])
    assert n_members == 90 or not set(expected) <= set(members.tolist()), "one that is no member may be chosen"
