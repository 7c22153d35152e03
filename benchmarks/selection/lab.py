"""Setting (a): the lab. What is written for a seed comes from the project's own flow, one lake a seed.

Evaluated are held-out families in all languages; no candidate of such a family is trained on.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.selection import probing
from benchmarks.selection.methods import Candidate, Pool
from benchmarks.selection.probing import log_odds
from benchmarks.selection.setting import Bench, Question, Recipe
from rass_core.config import RassConfig, load_config
from rass_core.data.decontamination import overlaps
from rass_core.errors import PromptError
from rass_core.lab import world
from rass_core.lab.prompts import held_out_sentences
from rass_core.lake.store import Lake
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.settings import TrainingSettings
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.probe.geometry import split_of

MAX_NEW_TOKENS = 12
EVALUATED = {"pseudo_harmful": 180, "harmful": 120, "harmless": 40}
"""label → held-out families a language from which the evaluation is taken, those that the probe's test split holds."""
MAX_HARMFUL_FAMILIES = 60
N_SAFETY, N_GENERAL = 100, 100
RECIPES = {
    "lab": Recipe(steps=30, over_refusal=8, safety=8, general=8, settings=TrainingSettings(learning_rate=1e-3)),
    "lab_short": Recipe(steps=12, over_refusal=8, safety=8, general=8, settings=TrainingSettings(learning_rate=5e-4)),
}
"""lab: an ordinary training. lab_short: one that ends while over-refusal is still there, as the other leaves none."""
CANDIDATES = """
SELECT p.prompt_id, p.text, p.language, p.label, coalesce(p.category, 'none') AS category,
       arg_min(d.operator, (d.round, d.operator, d.alpha)) AS operator,
       arg_min(d.alpha, (d.round, d.operator, d.alpha)) AS alpha, any_value(m.distance) AS distance
FROM prompts p JOIN derivations d USING (prompt_id) JOIN margins m USING (prompt_id)
JOIN verdicts v ON v.subject_id = p.prompt_id AND v.judge = 'panel'
WHERE v.outcome IN ('harmless', 'pseudo_harmful') AND m.distance IS NOT NULL
GROUP BY ALL ORDER BY p.prompt_id
"""
REFUSED = """
SELECT DISTINCT r.prompt_id FROM responses r JOIN verdicts v ON v.subject_id = r.response_id
WHERE v.judge = 'panel' AND v.outcome = 'refusal' AND r.variant = 'base'
"""
GIVEN = """
SELECT p.prompt_id, p.text, p.language, p.label, p.family, any_value(m.distance) AS distance
FROM prompts p JOIN margins m USING (prompt_id) ANTI JOIN derivations d USING (prompt_id)
GROUP BY ALL ORDER BY p.prompt_id
"""


def config_of(kind: str, lake: Path, seed: int) -> RassConfig:
    """Return the demo's configuration, or that of an arm with as many candidates: unsteered, one_round."""
    from flows.cli import DEMO_CONFIG

    config = load_config(DEMO_CONFIG, lake=str(lake), seed=seed)
    generate = config.generate
    if kind == "unsteered":
        # The control's share is below 1: a few steered ones are written too, and left out below.
        generate = generate.model_copy(update={"control_share": 0.99})
    if kind == "one_round":
        n = generate.rounds * generate.candidates_per_round
        generate = generate.model_copy(update={"rounds": 1, "candidates_per_round": n})
    return config.model_copy(update={"generate": generate})


def lake_of(kind: str, out: Path, seed: int) -> tuple[Lake, RassConfig]:
    """Return the lake of a seed, written by the flow where it is not there whole."""
    from flows.refresh import refresh

    folder = out / f"lab-{kind}-{seed}"
    config = config_of(kind, folder, seed)
    if folder.exists() and Lake.open(str(folder)).query("SELECT 1 FROM runs WHERE state = 'Completed'").num_rows:
        return Lake.open(str(folder)), config
    refresh(config)
    return Lake.open(str(folder)), config


def bench(setting: str, out: Path, seed: int, with_ablations: bool) -> Bench:
    """Return what the runs of a seed need."""
    lake, config = lake_of("rass", out, seed)
    model, tokenizer = load_causal_lm(config.model.reference)
    chat = ChatFormat(tokenizer)
    given = lake.query(GIVEN).to_pylist()
    evaluated = _evaluated(given, seed)
    families = {(sentence.label, sentence.family) for sentence in evaluated}
    usable = [row for row in given if (row["label"], _family(row)) not in families]
    rng = np.random.default_rng([seed, 7])
    harmful = sorted((r for r in usable if r["label"] == "harmful"), key=lambda r: (abs(r["distance"]), r["prompt_id"]))
    harmless = [r for r in usable if r["label"] == "harmless"]
    anchors = [_pair(r, "safety") for r in harmful[:N_SAFETY]]
    anchors += [_pair(harmless[i], "general") for i in rng.permutation(len(harmless))[:N_GENERAL]]
    pool = _pool(lake, config, model, chat, usable, families, anchors, steered=None)
    extra = {}
    if with_ablations:
        for kind in ("unsteered", "one_round"):
            other, its_config = lake_of(kind, out, seed)
            steered = False if kind == "unsteered" else None
            extra[kind] = _pool(other, its_config, model, chat, usable, families, anchors, steered)
    questions = [Question(f"{s.family}/{s.language}", s.text, s.language, s.label, chat.ids(s.text)) for s in evaluated]
    _prove_disjoint(evaluated, pool, [*extra.values()], usable)
    return Bench(
        model=model,
        chat=chat,
        pool=pool,
        extra=extra,
        anchors=anchors,
        pair_of=_pair_of,
        questions=questions,
        prefixes=config.probe.prefixes,
        recipe=RECIPES[setting],
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _evaluated(given: list[dict[str, Any]], seed: int) -> list[world.Sentence]:
    """Return held-out sentences of all languages from which neither direction nor any text was drawn.

    The probe's own test split is among them: it gave b, by which the nearest safety anchors are taken.
    """
    used = {(row["label"], _family(row)) for row in given if split_of(row["family"], seed) != "test"}
    found = [s for s in held_out_sentences(EVALUATED) if (s.label, s.family) not in used]
    harmful = sorted(
        {s.family for s in found if s.label == "harmful"}, key=lambda f: hashlib.sha256(f.encode()).digest()
    )
    kept = set(harmful[:MAX_HARMFUL_FAMILIES])
    return [s for s in found if s.label != "harmful" or s.family in kept]


def _family(row: dict[str, Any]) -> str:
    """Return the world's own name of a given prompt's family, without the source before it."""
    return str(row["family"]).partition("/")[2]


def _pool(
    lake: Lake, config: RassConfig, model: Any, chat: ChatFormat, given: list[dict[str, Any]],
    families: set[tuple[str, str]], anchors: Sequence[PreferencePair], steered: bool | None,
) -> Pool:  # fmt: skip
    rows = []
    for row in lake.query(CANDIDATES).to_pylist():
        sentence = world.parse(row["text"], row["language"])
        if sentence is None or (sentence.label, sentence.family) in families:
            continue
        if steered is None or steered == (row["alpha"] != 0):
            rows.append(row)
    refused = {row["prompt_id"] for row in lake.query(REFUSED).to_pylist()}
    ids = [chat.ids(row["text"]) for row in rows]
    odds = np.zeros(len(rows))
    for language in sorted({row["language"] for row in rows}):
        here = [i for i, row in enumerate(rows) if row["language"] == language]
        odds[here] = log_odds(model, [ids[i] for i in here], chat, config.probe.prefixes[language])
    candidates = [
        Candidate(
            prompt_id=r["prompt_id"],
            text=r["text"],
            language=r["language"],
            category=r["category"],
            operator=r["operator"],
            label=r["label"],
            steered=bool(r["alpha"] != 0),
        )
        for r in rows
    ]
    languages, categories = sorted({r["language"] for r in rows}), sorted({r["category"] for r in rows})
    cells = [(x, y) for x in languages for y in categories]
    return Pool(
        candidates=candidates,
        refused=np.array([r["prompt_id"] in refused for r in rows]),
        log_odds=odds,
        distance=np.array([r["distance"] for r in rows], dtype=float),
        influence=probing.influence(model, chat, candidates, anchors, config.probe.prefixes, config.seed),
        harmful_texts=[r["text"] for r in given if r["label"] == "harmful"],
        harmless_texts=[r["text"] for r in given if r["label"] == "harmless"],
        cells=cells,
    )


def _pair_of(candidate: Candidate) -> PreferencePair:
    row = {"prompt_id": candidate.prompt_id, "text": candidate.text, "language": candidate.language}
    return _pair(row, "over_refusal")


def _pair(row: dict[str, Any], kind: Any) -> PreferencePair:
    sentence = world.parse(row["text"], row["language"])
    if sentence is None:
        raise PromptError(f"lab: {row['prompt_id']} is no sentence of the world; write the lake again")
    outcomes = ("refusal", "compliance") if kind == "safety" else ("compliance", "refusal")
    chosen, rejected = (sentence.answer(outcome) for outcome in outcomes)
    return PreferencePair(row["prompt_id"], kind, row["text"], row["language"], chosen, rejected)


def _prove_disjoint(
    evaluated: list[world.Sentence], pool: Pool, extra: list[Pool], given: list[dict[str, Any]]
) -> None:
    """Raise where an evaluation prompt's text or family is trained on.

    Near-duplicates are not asked for: in a grammar every two sentences of a frame are some.
    """
    train = [{"prompt_id": r["prompt_id"], "text": r["text"], "family": f"{r['label']}/{_family(r)}"} for r in given]
    for each in (pool, *extra):
        for candidate in each.candidates:
            sentence = world.parse(candidate.text, candidate.language)
            family = f"{sentence.label}/{sentence.family}" if sentence else None
            train.append({"prompt_id": candidate.prompt_id, "text": candidate.text, "family": family})
    asked = [
        {"prompt_id": f"{s.family}/{s.language}", "text": s.text, "family": f"{s.label}/{s.family}"} for s in evaluated
    ]
    found = [overlap for overlap in overlaps(train, asked, 1.0) if overlap.reason in ("text", "family")]
    if found:
        raise PromptError(f"lab: {found[0].evaluation_id} repeats {found[0].train_id}; the split leaks")
