"""Prompts of known label that the target answers as it should: they show what a training is to leave alone."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rass_core.judges.panel import PANEL
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Commit, Lake
from rass_core.lake.views import quoted
from rass_core.probe.geometry import split_of
from rass_core.vocabulary import Row

_ANCHORS = """
SELECT {columns}
FROM prompts p
JOIN responses r USING (prompt_id)
JOIN verdicts v ON v.subject_id = r.response_id AND v.judge = {panel}
JOIN margins m USING (prompt_id)
WHERE p.label = {label} AND v.outcome = {outcome} AND m.distance IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY p.prompt_id) = 1
ORDER BY abs(m.distance), p.prompt_id
"""


def nearest_anchors(lake: Lake, commits: Sequence[Commit], label: str, outcome: str, seed: int) -> Iterator[Row]:
    """Yield rows of `prompts` of a label that are so answered, nearest to the boundary first, none of the test split.

    They are read a batch at a time: whoever needs a few takes the first.

    Args:
        lake: Holds them.
        commits: With prompts, responses, verdicts and margins of the target, each prompt answered once.
        label: Of the prompts.
        outcome: The panel's verdict on the answer: refusal, compliance.
        seed: Of the split.
    """
    columns = ", ".join(f"p.{name}" for name in TABLES["prompts"].names)
    sql = _ANCHORS.format(columns=columns, panel=quoted(PANEL), label=quoted(label), outcome=quoted(outcome))
    for batch in lake.batches(sql, commits):
        for row in batch.to_pylist():
            if split_of(row["family"], seed) != "test":
                yield row


def first_per_language(rows: Iterable[Row], n_of: Mapping[str, int]) -> list[Row]:
    """Return the first rows of each language, as many as `n_of` says; no more rows are read than that needs."""
    taken: Counter[str] = Counter()
    found = []
    for row in rows if any(n > 0 for n in n_of.values()) else ():
        language = row["language"]
        if taken[language] < n_of.get(language, 0):
            taken[language] += 1
            found.append(row)
            if all(taken[name] >= n for name, n in n_of.items()):
                break
    return found
