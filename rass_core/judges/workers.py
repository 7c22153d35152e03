"""The panel as a worker: verdicts on answers that are stored, and on harmful ones that are not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.judges.base import JUDGES
from rass_core.judges.panel import Panel, panel_of
from rass_core.judges.settings import JudgeConfig
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Commit, Lake
from rass_core.models.answering import ASKED, IN_THINKING, AnswerWorker, answer, response_table
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_requests import Generation
from rass_core.vocabulary import Exchange, Verdict

TO_JUDGE = pa.schema([*ASKED, ("text", pa.string()), ("finish_reason", pa.string())])
"""What was asked, with the answer's text."""
TO_JUDGE_SQL = f"""
SELECT {", ".join(f"asked.{name}" for name in ASKED.names)}, responses.text, responses.finish_reason
FROM asked JOIN responses USING (response_id) ORDER BY response_id
"""
"""Rows of `TO_JUDGE` by id, from rows of `ASKED` and the table `responses`."""
DECLINED_REASONS = ("judge declined", "moderator declined", "filtered")
"""How the reason of a verdict begins where who was asked did not want to answer."""
ANSWERS_PER_STEP = 256
"""Answers judged between two steps of the progress bar."""


def to_judge(lake: Lake, asked: pa.Table, answers: Commit) -> Iterator[pa.RecordBatch]:
    """Yield what was asked with the answers that are stored, by response_id: rows of `TO_JUDGE`, a batch at a time.

    Args:
        lake: Holds the answers.
        asked: Rows of `ASKED`.
        answers: Their rows of `responses`.
    """
    for batch in lake.batches(TO_JUDGE_SQL, [answers], {"asked": asked}):
        yield batch.cast(TO_JUDGE)


def panel_in(pool: ModelPool, config: JudgeConfig, generator: ModelConfig) -> Panel:
    """Return the panel of a configuration, built once in a process.

    Args:
        generator: Is asked, through its engine, by an llm judge without an endpoint.
    """
    panel: Panel = pool.kept(_key(config, generator), lambda: panel_of(config, pool.asking(generator), pool.say))
    return panel


def keep_panel(pool: ModelPool, config: JudgeConfig, generator: ModelConfig, panel: Panel) -> None:
    """Let workers of this process take a panel that is built already."""
    pool.kept(_key(config, generator), lambda: panel)


def _key(config: JudgeConfig, generator: ModelConfig) -> str:
    return f"panel {config.model_dump_json()} {generator.model_dump_json()}"


@dataclass(frozen=True)
class JudgeWorker:
    """Judges answers whose text is stored (`TO_JUDGE`): rows of `verdicts`."""

    judging: Any
    """What verdicts depend on: settings that change none, such as how long an endpoint is waited for, are left out."""
    judge: JudgeConfig = field(compare=False)
    generator: ModelConfig = field(compare=False)
    n_all: int = field(default=0, compare=False)
    """Answers over all shards, of which a judge may fail on a share."""

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__, *JUDGES.modules(self.judge.members)]

    def build(self, pool: ModelPool) -> Compute:
        """Return what judges a shard."""
        panel = panel_in(pool, self.judge, self.generator)
        failures = panel.failures(self.n_all)

        def compute(rows: pa.Table, done: Done) -> Tables:
            given, words = rows.to_pylist(), []
            exchanges = [_exchange(row, row["text"], row["finish_reason"]) for row in given]
            for start in range(0, len(exchanges), ANSWERS_PER_STEP):
                words += panel.judge(exchanges[start : start + ANSWERS_PER_STEP], failures).words()
                done(len(words))
            return {"verdicts": verdict_table([row["response_id"] for row in given], words, with_reason=True)}

        return compute


@dataclass(frozen=True)
class JudgedAnswerWorker:
    """Answers what is asked and judges it at once: the text of answers to harmful prompts is not kept."""

    answers: AnswerWorker
    judging: Any
    judge: JudgeConfig = field(compare=False)
    generator: ModelConfig = field(compare=False)
    n_all: int = field(default=0, compare=False)

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__, *JUDGES.modules(self.judge.members)]

    def build(self, pool: ModelPool) -> Compute:
        """Return what answers and judges a shard."""
        engine, panel = pool.engine(self.answers.model), panel_in(pool, self.judge, self.generator)
        failures = panel.failures(self.n_all)

        def compute(rows: pa.Table, done: Done) -> Tables:
            given = rows.to_pylist()
            found = answer(engine, given, self.answers.max_new_tokens, self.answers.ablation, done)
            exchanges = [exchange_of(row, each) for row, each in zip(given, found, strict=True)]
            words = panel.judge(exchanges, failures).words()
            return {
                "responses": response_table(self.answers.name, given, found, keep=False),
                "verdicts": verdict_table([row["response_id"] for row in given], words, with_reason=False),
            }

        return compute


def exchange_of(row: Mapping[str, Any], answer: Generation) -> Exchange:
    """Return an answer to a row of `ASKED` as judges are given it."""
    return _exchange(row, answer.text, IN_THINKING if answer.is_cut_off else answer.finish_reason)


def _exchange(row: Mapping[str, Any], text: str, finish_reason: str) -> Exchange:
    is_cut_off = finish_reason == IN_THINKING
    shown = "" if is_cut_off else (row["opening"] or "") + text
    return Exchange(shown, row["language"], row["prompt"], label=row["label"], is_cut_off=is_cut_off)


def verdict_table(subjects: Sequence[str], words: Sequence[Mapping[str, Verdict]], with_reason: bool) -> pa.Table:
    """Return votes as rows of `verdicts`.

    Args:
        subjects: Id of what was judged.
        words: Judge → verdict, for each.
        with_reason: The reason quotes the answer, so it is kept only where the answer is.
    """
    rows = [
        verdict_row(subject, judge, verdict, with_reason)
        for subject, said in zip(subjects, words, strict=True)
        for judge, verdict in said.items()
    ]
    return pa.Table.from_pylist(rows, schema=TABLES["verdicts"])


def verdict_row(subject_id: str, judge: str, verdict: Verdict, with_reason: bool = True) -> dict[str, Any]:
    """Return a row of `verdicts`; a reason that may not be kept gives way to why there is no verdict, in a word."""
    short = verdict.declined or ("failed" if verdict.has_failed else None)
    return {
        "subject_id": subject_id, "judge": judge, "outcome": verdict.outcome, "score": verdict.score,
        "disagreement": verdict.disagreement, "reason": verdict.reason if with_reason else short,
        "kind": verdict.kind,
    }  # fmt: skip


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """Return what a row of `verdicts` holds."""
    reason = row["reason"] or ""
    declined = next((each for each in DECLINED_REASONS if reason.startswith(each)), None)
    return Verdict(
        row["outcome"], row["score"], reason, disagreement=row["disagreement"], declined=declined, kind=row["kind"]
    )
