"""Stages of the benchmark: its pool, measured under every target → `prompts`, `margins`, `verdicts`, a folder."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from rass_core.benchmark import build as morbench
from rass_core.benchmark import matching
from rass_core.benchmark.card import CARD_FILE
from rass_core.benchmark.contrasts import POOL, contrast_rows
from rass_core.benchmark.folder import save_benchmark
from rass_core.benchmark.matching import BackTranslation
from rass_core.benchmark.settings import MorbenchConfig
from rass_core.benchmark.types import Benchmark, BenchmarkCandidate, TrainedOn
from rass_core.data.prompts import load_prompts
from rass_core.errors import SelectionError
from rass_core.generate.measuring import MeasureWorker
from rass_core.generate.operators import instruction
from rass_core.judges import Verdict
from rass_core.judges.workers import verdict_row
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.models.answering import asked
from rass_core.models.vllm_requests import GenerationRequest
from rass_core.probe.geometry import split_of
from rass_core.text import digest, normalise
from rass_core.vocabulary import BENIGN, Row
from tasks.probed import Probed, gauge_of, margin_scale, read_probe_data
from tasks.session import READ_PER_ANSWERED, Session
from tasks.stage import MODEL_CODE, StageTables, stage

BACK_TRANSLATION = "back_translation"
"""Name of the judge in `verdicts` that says whether a translated prompt came back the same."""
HELD_OUT = ("test",)
"""Split of the given prompts from which the benchmark is made; nothing of it is ever trained on."""
NO_CATEGORY = "none"


@dataclass(frozen=True)
class Target:
    """A model near whose boundary the benchmark is to lie, with what was measured and written for it."""

    session: Session
    """Aimed at it."""
    probed: Probed
    rounds: list[Commit]

    @property
    def model_id(self) -> str:
        """Return the id of the model."""
        return self.session.target_id

    def boundaries(self) -> dict[str, Row]:
        """Return language → row of `boundaries`."""
        return {row["language"]: row for row in self.session.read("boundaries", self.probed.boundaries).to_pylist()}


@dataclass(frozen=True)
class Pool:
    """Prompts that may enter the benchmark, each once, in the order of their ids."""

    rows: list[Row]
    """As in `prompts`, with `original` and `original_language` of what was translated."""
    left_out: dict[str, int]
    """Why → prompts that cannot be candidates."""
    commit: Commit
    """Holds those that the lake has nowhere else."""

    @property
    def content(self) -> str:
        """Return the digest of what is in it."""
        return _content(self.rows)


@task(cache_policy=NO_CACHE)
def collect(session: Session, targets: Sequence[Target]) -> Pool:
    """Bring together what was held out and what was written from it, benign and harmful."""
    given = {row["prompt_id"]: row for row in session.read("prompts", targets[0].probed.prompts).to_pylist()}
    held_out = [row for row in given.values() if split_of(row["family"], session.config.seed) in HELD_OUT]
    sources, longest = session.config.evaluate.sources, session.config.prompts.max_characters
    more = load_prompts(sources, longest).table.to_pylist() if sources else []
    fresh = {row["prompt_id"]: row for row in more if row["prompt_id"] not in given}
    candidates = [*held_out, *fresh.values(), *_written(session, targets, given)]
    if session.config.morbench.contrasts != POOL:
        benign = [row for row in candidates if row["label"] in BENIGN]
        made = contrast_rows(session.config.morbench.contrasts, benign, {*given, *fresh})
        fresh |= {row["prompt_id"]: row for row in made}
        candidates += made
    rows, left_out = _distinct(candidates)
    rows = _with_requests(session, rows)
    commit = store_pool(session, list(fresh.values()))
    n_of = Counter("harmful" if row["label"] == "harmful" else "benign" for row in rows)
    out = "".join(f", {n} {why}" for why, n in sorted(left_out.items()))
    session.say(f"benchmark: {n_of['benign']} benign candidates, {n_of['harmful']} harmful{out}")
    return Pool(rows, left_out, commit)


@stage("benchmark prompts", writes=["prompts"])
def store_pool(session: Session, rows: Sequence[Row]) -> StageTables:
    """Write the prompts of the pool that are not yet in the lake."""
    return {"prompts": rows_table("prompts", rows)}


@stage(
    "benchmark margins",
    reads=["prompts", "responses", "verdicts", "activations", "directions", "boundaries", "harm_axes"],
    writes=["margins"],
    settings=["model", "probe", "seed"],
    in_shards=True,
)
def measure_pool(session: Session, probed: Probed, pool: Pool) -> StageTables:
    """Place every prompt of the pool on the margin of the session's target, unsteered."""
    data = read_probe_data(session, probed.prompts, probed.responses, probed.activations)
    gauge = gauge_of(session, margin_scale(session, data, probed.directions), probed.boundaries)
    b = {row["language"]: row["b"] for row in session.read("boundaries", probed.boundaries).to_pylist()}
    worker = MeasureWorker(session.config.model, gauge, b, "benchmark", 1, with_answers=False)
    rows = asked({
        "response_id": [row["prompt_id"] for row in pool.rows],
        "prompt_id": [row["prompt_id"] for row in pool.rows], "language": [row["language"] for row in pool.rows],
        "prompt": [row["text"] for row in pool.rows],
    })  # fmt: skip
    session.map(f"{session.target_id}: measuring", worker, rows, "prompt_id", READ_PER_ANSWERED)
    return {}


def candidates_of(
    session: Session, pool: Pool, margins: Sequence[Commit], languages: Sequence[str]
) -> list[BenchmarkCandidate]:
    """Return the prompts of these languages with their place under every target."""
    placed_at: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in session.read("margins", *margins).to_pylist():
        placed_at[row["prompt_id"]][row["model_id"]] = row
    return [
        BenchmarkCandidate(
            **{name: row[name] for name in ("text", "language", "label", "family", "source", "licence")},
            category=row["category"] or NO_CATEGORY,
            margins={model: here["margin"] for model, here in placed_at[row["prompt_id"]].items()},
            distances={model: here["distance"] for model, here in placed_at[row["prompt_id"]].items()},
            original=row.get("original"), original_language=row.get("original_language"),
        )
        for row in pool.rows if row["language"] in languages
    ]  # fmt: skip


def translate_back(session: Session, candidates: Sequence[BenchmarkCandidate]) -> Commit:
    """Compare what was translated with its translation back; `verdicts` hold `same` or `changed`."""
    width = session.config.morbench.width
    translated = [each for each in candidates if each.original is not None]
    return compare_translations(session, [each for each in translated if each.label not in BENIGN or each.near(width)])


@stage(
    "back-translation",
    writes=["verdicts"],
    settings=["model", "generator", "generate.max_new_tokens", "generate.instructions", "moderating"],
    code=[MODEL_CODE],
)
def compare_translations(session: Session, translated: Sequence[BenchmarkCandidate]) -> StageTables:
    """Let the generator translate back what was translated, and compare."""
    back = BackTranslation(lambda *each: _translated(session, *each), lambda *each: _is_same(session, *each))
    found = back(translated)
    n_changed = sum(why is not None for why in found)
    session.say(f"benchmark: {len(translated)} translations translated back, {n_changed} came back changed")
    rows = [
        verdict_row(
            each.prompt_id, BACK_TRANSLATION,
            Verdict("same" if why is None else "changed", None, f"translated back into {each.original_language}"),
        )
        for each, why in zip(translated, found, strict=True)
    ]  # fmt: skip
    return {"verdicts": rows_table("verdicts", rows)}


@task(cache_policy=NO_CACHE)
def build_benchmark(
    session: Session,
    candidates: Sequence[BenchmarkCandidate],
    targets: Sequence[Target],
    backs: Commit,
    settings: MorbenchConfig,
) -> Benchmark:
    """Choose, match and check the pairs of every cell."""
    changed = {row["subject_id"] for row in session.read("verdicts", backs, where="outcome = 'changed'").to_pylist()}

    def check(asked: Sequence[BenchmarkCandidate]) -> list[str | None]:
        return ["changed in back-translation" if each.prompt_id in changed else None for each in asked]

    benign = [each for each in candidates if each.label in BENIGN]
    contrasts = [each for each in candidates if each.label not in BENIGN]
    return morbench.build(
        benign, contrasts, settings, session.config.seed, training_of(session, targets[0].probed), check
    )


def training_of(session: Session, probed: Probed) -> TrainedOn:
    """Return what models were or may be trained on: every pair of the lake, and given prompts not held out."""
    pairs = session.lake.query("""
        SELECT DISTINCT p.prompt_id, p.text, p.language, p.family FROM preferences JOIN prompts p USING (prompt_id)
    """).to_pylist()
    given = session.read("prompts", probed.prompts).to_pylist()
    rows = [*pairs, *(row for row in given if split_of(row["family"], session.config.seed) not in HELD_OUT)]
    families = {row["family"] for row in [*rows, *_with_requests(session, rows)]} - {None}
    return TrainedOn({row["prompt_id"] for row in rows}, families, sorted({row["text"] for row in rows}))


@task(cache_policy=NO_CACHE)
def write_benchmark(session: Session, benchmark: Benchmark, folder: Path, notes: Sequence[str]) -> str:
    """Write the folder, show its cells, and return its version."""
    version = save_benchmark(folder, benchmark, notes=notes)
    for cell in benchmark.cells:
        if cell.reason is not None:
            session.say(f"{cell.language}/{cell.category}: {cell.reason}")
    rows = [
        {
            "language": cell.language, "category": cell.category, "pairs": sum(cell.filled),
            "wanted": sum(cell.wanted), "benign candidates": cell.n_benign, "contrasts": cell.n_contrasts,
            "shortage": cell.reason or "",
        }
        for cell in benchmark.cells
    ]  # fmt: skip
    create_table_artifact(key="rass-morbench", table=rows, description=f"# MORBench {version}: `{folder}`")
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    create_markdown_artifact(key="rass-morbench-card", markdown=card.split("---\n", 2)[2], description="Dataset card")
    return version


def usable(session: Session, targets: Sequence[Target]) -> tuple[list[Target], list[str], dict[str, str]]:
    """Return the targets that have a boundary at all, the languages of the benchmark, and language → why left out.

    Of a prompt in a language the distance to the boundary of every target must be known.

    Raises:
        SelectionError: No target has a boundary, or no language has one of every target.
    """
    known = {target.model_id: target.boundaries() for target in targets}
    usable = [target for target in targets if any(row["b"] is not None for row in known[target.model_id].values())]
    if not usable:
        reasons = {row["reason"] for rows in known.values() for row in rows.values()} - {None}
        raise SelectionError(
            f"morbench: no model has an identified boundary ({min(reasons, default='no prompts')}); "
            "give more prompts or models that refuse some of them"
        )
    for target in targets:
        if target not in usable:
            session.say(f"benchmark: {target.model_id} is left out, it has no identified boundary in any language")
    given = {row["language"] for row in session.read("prompts", targets[0].probed.prompts).to_pylist()}
    spoken = sorted(set(session.config.morbench.languages or given))
    missing: dict[str, str] = {}
    for language in spoken:
        for target in usable:
            row = known[target.model_id].get(language)
            if row is None or row["b"] is None:
                why = "no given prompts" if row is None else row["reason"]
                missing.setdefault(language, f"{target.model_id} has no identified boundary in {language}: {why}")
    for language, why in missing.items():
        session.say(f"benchmark: {language} is left out, {why}")
    if len(missing) == len(spoken):
        raise SelectionError(f"morbench: no language is left: {min(missing.values())}; give more prompts there")
    return usable, [language for language in spoken if language not in missing], missing


def resolved(session: Session, pool: Pool, languages: Sequence[str]) -> MorbenchConfig:
    """Return the settings with languages and categories named, so that an empty cell is reported too."""
    settings = session.config.morbench
    categories = {row["category"] or NO_CATEGORY for row in pool.rows if row["label"] in BENIGN}
    return settings.model_copy(
        update={
            "languages": list(languages),
            "categories": sorted(set(settings.categories or categories)),
        }
    )


def _content(rows: Iterable[Row]) -> str:
    """Return a digest of rows, labels and categories included."""
    return digest(*(repr(sorted(row.items())) for row in rows))


def _distinct(rows: Iterable[Row]) -> tuple[list[Row], dict[str, int]]:
    """Return each prompt once by its first row, in the order of ids, and how many can be no candidates for what."""
    first: dict[str, Row] = {}
    sides: dict[str, set[bool]] = defaultdict(set)
    for row in rows:
        first.setdefault(row["prompt_id"], row)
        sides[row["prompt_id"]].add(row["label"] in BENIGN)
    kept, left_out = [], Counter[str]()
    for _, row in sorted(first.items()):
        if len(sides[row["prompt_id"]]) > 1:
            left_out["labelled both benign and harmful"] += 1
        elif not row["licence"]:
            left_out["without a licence"] += 1
        else:
            kept.append(row)
    return kept, dict(left_out)


def _written(session: Session, targets: Sequence[Target], given: Mapping[str, Row]) -> list[Row]:
    """Return the written prompts that moderators labelled, with the licence of what they were made from."""
    known: dict[str, Row] = dict(given)
    found = []
    for target in targets:
        for commit in target.rounds:
            derivations: dict[str, Row] = {}
            rows = session.read("derivations", commit).to_pylist()
            for row in sorted(rows, key=lambda row: (row["operator"], row["parent_ids"], row["alpha"])):
                derivations.setdefault(row["prompt_id"], row)
            fresh = []
            for row in sorted(session.read("prompts", commit).to_pylist(), key=lambda row: row["prompt_id"]):
                derivation = derivations[row["prompt_id"]]
                parents = [known[parent] for parent in derivation["parent_ids"]]
                licences = sorted({parent["licence"] or "" for parent in parents})
                made = {**row, "licence": " and ".join(licences) if all(licences) else None}
                if derivation["operator"] == "translate":
                    made |= {"original": parents[0]["text"], "original_language": parents[0]["language"]}
                fresh.append(made)
            # Parents come from earlier rounds; one prompt may be written for several targets.
            for row in fresh:
                known.setdefault(row["prompt_id"], row)
            found += [row for row in fresh if row["label"] in (*BENIGN, "harmful")]
    return found


def _with_requests(session: Session, rows: Sequence[Row]) -> list[Row]:
    """Return the rows with what each asks for as its family, where a moderator knows."""
    requests = session.moderators.requests([row["text"] for row in rows], [row["language"] for row in rows])
    return [row if request is None else {**row, "family": request} for row, request in zip(rows, requests, strict=True)]


def _translated(session: Session, texts: Sequence[str], language: str, target: str) -> list[str]:
    """Return the generator's greedy, unsteered translations."""
    engine, settings = session.engine(session.config.generator or session.config.model), session.config.generate
    asked = [instruction("translate", target, [text], settings.instructions) for text in texts]
    requests = [GenerationRequest(engine.chat.ids(each), settings.max_new_tokens) for each in asked]
    with session.progress(f"translating back, {language} to {target}", len(requests)) as done:
        return [normalise(answer.text) for answer in engine.generate(requests, done)]


def _is_same(session: Session, language: str, original: str, back: str) -> bool:
    """Return whether both ask for the same: by a moderator that knows what they ask for, else by their characters."""
    first, second = session.moderators.requests([original, back], [language, language])
    if first is not None:
        return first == second
    return matching.character_similarity(original, back) >= matching.MIN_SIMILARITY
