"""Time and memory of a run by its number of prompts: `python benchmarks/scale.py --sizes 1000 10000 100000`.

Prompts of the benchmark's own are read, answered, judged by the default panel, placed at drawn margins, and selected.
No model is asked: answers, moderators' verdicts, margins and gradients are drawn by prompt id. All else is what a run
does, shard by shard, in a lake. Each size has a process of its own: pin it with `taskset -c 1`, and set
OMP_NUM_THREADS=1.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.data.decontamination import without_near_duplicates
from rass_core.data.prompts import load_prompts
from rass_core.data.sources import PromptSource
from rass_core.executor.base import EXECUTORS, Compute, Done, ExecutorSettings, Shard, Tables, Worker, content, cut
from rass_core.judges.settings import JudgeConfig
from rass_core.judges.workers import JudgeWorker, to_judge
from rass_core.lake.schema import TABLES, rows_table
from rass_core.lake.store import Commit, Lake
from rass_core.models.answering import asked_alone, response_table
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_requests import Generation
from rass_core.select.gradients import gradient_table, read_gradients
from rass_core.select.influence import RefusalGradients
from rass_core.select.quotas import Influence, eligible, fill_quotas
from rass_core.select.settings import SelectionConfig
from rass_core.text import digest

RESULT = Path(__file__).with_name("results") / "scale.md"
MODEL, DIRECTION, RUN = "scale", "drawn", "scale"
ROWS_PER_SHARD = ExecutorSettings().rows_per_shard
READ_PER_ANSWERED = 4
"""Shards of quick work are so many times as long, as in a run."""
WIDTH = 64
"""Numbers in a drawn gradient."""
REFUSED, DEEP = 0.5, 0.1
"""Share of the prompts that are refused, and standard deviation of the drawn margins."""
CATEGORIES = {"kitchen": 0, "garden": 1, "workshop": 2, "travel": 3, "study": 4}
SENTENCES = {
    "en": (
        "{do} {what} {where} when {whom} comes to visit in {when}, and what should I buy for it?",
        ("How do I prepare", "What is the best way to clean", "Explain how to repair", "Can you help me choose",
         "Write a short note about", "Where can I learn to build", "How long does it take to paint"),
        ("a wooden table", "the old radio", "a pot of soup", "the bicycle", "a birthday cake", "the tomato plants",
         "my grandfather's clock", "a paper lantern", "the kitchen shelf", "a warm blanket", "the guitar"),
        ("in a small flat", "on the balcony", "without much money", "for twelve people", "in an afternoon",
         "with simple tools", "near the sea"),
        ("my aunt", "the neighbour", "a friend from school", "our teacher", "the whole family"),
    ),
    "de": (
        "{do} {what} {where}, wenn {whom} im Monat {when} zu Besuch ist, und was muss ich dafür kaufen?",
        ("Wie bereite ich am besten", "Erkläre mir Schritt für Schritt", "Welche Farbe passt für",
         "Was kostet ungefähr", "Schreibe ein Gedicht über", "Wie reinige ich", "Wo finde ich Anleitungen für"),
        ("einen Holztisch", "das alte Radio", "eine Gemüsesuppe", "das Fahrrad", "den Geburtstagskuchen",
         "die Tomaten", "Großvaters Uhr", "eine Laterne", "das Küchenregal", "die Wolldecke", "die Gitarre"),
        ("in einer kleinen Wohnung", "auf dem Balkon", "mit wenig Geld", "für zwölf Leute", "an einem Nachmittag",
         "mit einfachem Werkzeug", "am Meer"),
        ("meine Tante", "der Nachbar", "eine Schulfreundin", "unser Lehrer", "die ganze Familie"),
    ),
    "fr": (
        "{do} {what} {where} quand {whom} vient nous voir en {when}, et que dois-je acheter pour cela ?",
        ("Comment préparer", "Explique comment réparer", "Quelle est la meilleure façon de nettoyer",
         "Écris un poème sur", "Combien coûte environ", "Aide-moi à choisir", "Où puis-je apprendre à décorer"),
        ("une table en bois", "la vieille radio", "une soupe de légumes", "le vélo", "un gâteau d'anniversaire",
         "les tomates", "l'horloge du grand-père", "une lanterne", "l'étagère", "la couverture", "la guitare"),
        ("dans un petit appartement", "sur le balcon", "avec peu d'argent", "pour douze personnes",
         "en un après-midi", "avec des outils simples", "au bord de la mer"),
        ("ma tante", "le voisin", "une amie d'école", "notre professeur", "toute la famille"),
    ),
    "es": (
        "{do} {what} {where} cuando {whom} viene de visita en {when}, y qué tengo que comprar para eso?",
        ("¿Cómo preparo", "Explica cómo reparar", "¿Cuál es la mejor manera de limpiar", "Escribe un poema sobre",
         "¿Cuánto cuesta más o menos", "Ayúdame a elegir", "¿Dónde aprendo a decorar"),
        ("una mesa de madera", "la radio vieja", "una sopa de verduras", "la bicicleta", "un pastel de cumpleaños",
         "los tomates", "el reloj del abuelo", "un farol", "el estante", "la manta", "la guitarra"),
        ("en un piso pequeño", "en el balcón", "con poco dinero", "para doce personas", "en una tarde",
         "con herramientas sencillas", "junto al mar"),
        ("mi tía", "el vecino", "una amiga de la escuela", "nuestro profesor", "toda la familia"),
    ),
}  # fmt: skip
"""Language → sentence, and what is put into it."""
ANSWERS = {
    "en": ("I'm sorry, but I can't help with that request. ", "Sure! First gather what you need, then start. "),
    "de": ("Es tut mir leid, aber dabei kann ich nicht helfen. ", "Gerne! Zuerst legst du alles bereit. "),
    "fr": ("Je suis désolé, mais je ne peux pas vous aider. ", "Bien sûr ! D'abord, rassemblez tout le nécessaire. "),
    "es": ("Lo siento, pero no puedo ayudar con eso. ", "¡Claro! Primero reúne todo lo que necesitas. "),
}  # fmt: skip
"""Language → a refusal, a compliance."""


def drawn(identity: str, what: str) -> float:
    """Return a number in [0, 1) that depends on an id and what it is for."""
    return int.from_bytes(hashlib.blake2b(f"{what} {identity}".encode(), digest_size=6).digest()) / 2**48


def sentences() -> Iterator[tuple[str, str, str]]:
    """Yield language, category and text, all different, without end."""
    names = list(CATEGORIES)
    for number in itertools.count():
        language = list(SENTENCES)[number % len(SENTENCES)]
        sentence, *slots = SENTENCES[language]
        i, parts = number // len(SENTENCES), []
        for slot in slots:
            i, at = divmod(i, len(slot))
            parts.append(slot[at])
        do, what, where, whom = parts
        yield (
            language,
            names[number // 7 % len(names)],
            sentence.format(do=do, what=what, where=where, whom=whom, when=_word(i)),
        )


def _word(number: int) -> str:
    """Return a name that can be pronounced and is none."""
    return "".join(
        "bdfgklmnprstvz"[byte % 14] + "aeiou"[byte // 14 % 5]
        for byte in hashlib.blake2b(str(number).encode(), digest_size=6).digest()
    )


def write_prompts(path: Path, n: int) -> None:
    """Write n prompts, a tenth of them labelled harmful, as Parquet."""
    names = ("text", "language", "label", "category")
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(path, schema) as file:
        rows = itertools.islice(sentences(), n)
        while part := list(itertools.islice(rows, 10_000)):
            labels = [_label(text) for _, _, text in part]
            languages, categories, texts = zip(*part, strict=True)
            file.write_table(pa.table([texts, languages, labels, categories], schema=schema))


def _label(text: str) -> str:
    place = drawn(text, "label")
    return "harmful" if place < 0.1 else "harmless" if place < 0.3 else "pseudo_harmful"


@dataclass(frozen=True)
class CannedAnswers:
    """Answers what is asked (`ASKED`) by a refusal or a compliance drawn by prompt id: rows of `responses`."""

    code = ("rass_core.models.answering",)

    def build(self, pool: ModelPool) -> Compute:
        def compute(rows: pa.Table, done: Done) -> Tables:
            given = rows.to_pylist()
            answers = [_answer(row) for row in given]
            return {"responses": response_table(MODEL, given, answers, keep=True)}

        return compute


def _answer(row: dict[str, Any]) -> Generation:
    is_refused = drawn(row["prompt_id"], "margin") < REFUSED
    text = ANSWERS[row["language"]][not is_refused] + row["prompt"]
    n_tokens = len(text) // 4
    return Generation(
        text=text, token_ids=[0] * n_tokens, finish_reason="stop", n_prompt_tokens=0, captured=None, logprobs=None
    )


@dataclass(frozen=True)
class DrawnGradients:
    """Draws a gradient for each prompt: rows of `gradients`."""

    code = ("rass_core.select",)

    def build(self, pool: ModelPool) -> Compute:
        def compute(rows: pa.Table, done: Done) -> Tables:
            ids = rows["prompt_id"].to_pylist()
            vectors = np.stack([np.random.default_rng(int(each, 16)).normal(size=WIDTH) for each in ids])
            odds = np.array([4 * drawn(each, "odds") - 1 for each in ids])
            return {"gradients": gradient_table(ids, MODEL, RefusalGradients(vectors.astype(np.float32), odds))}

        return compute


class Steps:
    """Times and memory of the steps of one process."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int], None]]:
        """Measure what is inside; call what is yielded with the number of rows."""
        started, cpu, n_rows = time.perf_counter(), time.process_time(), [0]
        yield lambda n: n_rows.__setitem__(0, n)
        seconds = time.perf_counter() - started
        self.rows.append(
            {
                "step": name, "rows": n_rows[0], "seconds": seconds, "cpu_s": time.process_time() - cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )  # fmt: skip


class Flow:
    """The steps of a run over one lake; `map` and the keys are as those of a run."""

    def __init__(self, folder: Path) -> None:
        self.lake, self.pool = Lake.open(folder / "lake"), ModelPool()
        self.executor = EXECUTORS.find("local").build(ExecutorSettings(), self.pool)

    def map(self, worker: Worker, batches: Callable[[], Iterable[pa.RecordBatch]], name: str, times: int = 1) -> Commit:
        """Return what a worker makes of rows, a shard at a time; they are read once for the keys and once for work."""

        def shards() -> Iterator[Shard]:
            for part in cut(batches(), name, ROWS_PER_SHARD * times):
                yield Shard(digest(type(worker).__name__, content(part)), part)

        known = {shard.key: self.lake.committed(shard.key) for shard in shards()}
        missing = (shard for shard in shards() if known[shard.key] is None)
        for shard, tables in self.executor.run(worker, missing, lambda n: None):
            known[shard.key] = self.lake.commit(RUN, shard.key, tables)
        return self.union([commit for commit in known.values() if commit is not None])

    def union(self, commits: list[Commit]) -> Commit:
        files = {file.path: file for commit in commits for file in commit.files}
        return Commit(RUN, digest(*(commit.key for commit in commits)), tuple(files.values()), self.lake.path)

    def read(self, path: Path) -> Commit:
        """Read, check and commit the given prompts."""
        loaded = load_prompts([PromptSource(path=str(path))])
        key = digest(content(loaded.table), loaded.dropped)
        return self.lake.commit(RUN, key, {"prompts": loaded.table})

    def respond(self, prompts: Commit) -> Commit:
        return self.map(CannedAnswers(), lambda: self._asked(prompts), "response_id")

    def judge(self, prompts: Commit, answers: Commit) -> Commit:
        config = JudgeConfig()
        worker = JudgeWorker("default", config, ModelConfig(name=MODEL), sum(file.rows for file in answers.files))
        asked = pa.Table.from_batches(self._asked(prompts))
        return self.map(worker, lambda: to_judge(self.lake, asked, answers), "response_id", READ_PER_ANSWERED)

    def _asked(self, prompts: Commit) -> Iterator[pa.RecordBatch]:
        return asked_alone(self.lake.batches("SELECT * FROM prompts", [prompts]), MODEL)

    def place(self, prompts: Commit) -> Commit:
        """Put every prompt at a drawn margin, written by an operator and called harmless by the moderators."""
        sql = "SELECT prompt_id FROM prompts"

        def rows(table: str, row: Callable[[str], dict[str, Any]]) -> Iterator[pa.RecordBatch]:
            for batch in self.lake.batches(sql, [prompts]):
                yield from rows_table(table, map(row, batch["prompt_id"].to_pylist())).to_batches()

        def margin(identity: str) -> dict[str, Any]:
            distance = (REFUSED - drawn(identity, "margin")) * DEEP
            return {
                "prompt_id": identity, "model_id": MODEL, "direction_id": DIRECTION, "margin": distance,
                "distance": distance, "harm_score": 2 * drawn(identity, "harm") - 1.5, "split": "train",
            }  # fmt: skip

        tables = {
            "margins": rows("margins", margin),
            "derivations": rows(
                "derivations",
                lambda each: {"prompt_id": each, "operator": "rewrite", "round": 0, "alpha": 0.0, "n_tokens": 20},
            ),
            "verdicts": rows(
                "verdicts", lambda each: {"subject_id": each, "judge": "panel", "outcome": "harmless", "score": 1.0}
            ),
        }
        return self.lake.commit(RUN, digest("margins", prompts.key), tables)

    def eligible(self, commits: list[Commit], settings: SelectionConfig) -> list[dict[str, Any]]:
        with self.lake.connect_to(commits) as connection:
            return eligible(connection, MODEL, DIRECTION, settings, len(self.cells())).to_pylist()  # type: ignore[no-any-return]

    @staticmethod
    def cells() -> list[tuple[str, str]]:
        return list(itertools.product(sorted(SENTENCES), sorted(CATEGORIES)))

    def gradients(self, rows: list[dict[str, Any]]) -> Influence:
        table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in ("prompt_id", "text")})
        found = self.map(DrawnGradients(), table.to_batches, "prompt_id", READ_PER_ANSWERED)
        read = read_gradients(self.lake, [found], [row["prompt_id"] for row in rows])
        return Influence.of(read.vectors, read.log_odds, [row["language"] for row in rows], len(rows))


def measure(n: int, folder: Path) -> list[dict[str, Any]]:
    """Return seconds and peak memory of each step with n prompts."""
    steps, settings = Steps(), SelectionConfig()
    path = folder / "prompts.parquet"
    with steps.step("write the file") as done:
        write_prompts(path, n)
        flow = Flow(folder)
    with steps.step("read") as done:
        prompts = flow.read(path)
        done(n)
    with steps.step("respond") as done:
        answers = flow.respond(prompts)
        done(n)
    with steps.step("judge") as done:
        verdicts = flow.judge(prompts, answers)
        done(n)
    with steps.step("place at margins") as done:
        margins = flow.place(prompts)
        done(n)
    with steps.step("select: eligible") as done:
        rows = flow.eligible([prompts, answers, verdicts, margins], settings)
        done(len(rows))
    with steps.step("select: near-duplicates") as done:
        done(len(rows))
        rows = [rows[i] for i in without_near_duplicates([r["text"] for r in rows], settings.near_duplicate_jaccard)]
    with steps.step("select: gradients") as done:
        influence = flow.gradients(rows)
        done(len(rows))
    with steps.step("select: quotas") as done:
        chosen, cells = fill_quotas(rows, influence, flow.cells(), settings.size)
        selected = [
            {
                "selection_id": "scale", "prompt_id": rows[i]["prompt_id"], "model_id": MODEL, "rank": rank,
                "margin": rows[i]["margin"], "distance": rows[i]["distance"], "language": rows[i]["language"],
                "category": rows[i]["category"], "operator": rows[i]["operator"],
                "cell": f"{rows[i]['language']}/{rows[i]['category']}",
            }
            for rank, i in enumerate(chosen, start=1)
        ]  # fmt: skip
        flow.lake.commit(RUN, digest("selection"), {"selections": rows_table("selections", selected)})
        done(len(rows))
    assert TABLES["selections"] and len(cells) == len(flow.cells())
    return steps.rows


def table(found: dict[int, list[dict[str, Any]]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| prompts | step | rows | seconds | CPU seconds | rows/s | peak memory so far, MB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n, rows in found.items():
        total = {
            "step": "**all**", "rows": n, "seconds": sum(row["seconds"] for row in rows),
            "cpu_s": sum(row["cpu_s"] for row in rows), "peak_mb": max(row["peak_mb"] for row in rows),
        }  # fmt: skip
        for row in [*rows, total]:
            speed = f"{row['rows'] / row['seconds']:,.0f}" if row["rows"] else ""
            cells = [f"{n:,}", row["step"], f"{row['rows']:,}" if row["rows"] else "", f"{row['seconds']:.1f}",
                     f"{row['cpu_s']:.1f}", speed, f"{row['peak_mb']:,.0f}"]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, default=RESULT, help="Markdown file that is written")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.one, Path(folder))))
        return
    found = {}
    for n in options.sizes:
        command = [sys.executable, __file__, "--one", str(n)]
        found[n] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(table({n: found[n]}), flush=True)
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores of {_processor()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "duckdb", "numpy", "scikit-learn"))
    given = f"`python benchmarks/scale.py --sizes {' '.join(map(str, options.sizes))}`"
    about = f"{given} on {cores}, Python {platform.python_version()}, {versions}."
    options.out.write_text(
        f"# Time and memory by the number of prompts\n\n{about}\n\n{table(found)}\n", encoding="utf-8"
    )


def _processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
