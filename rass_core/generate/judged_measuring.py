"""Measuring written prompts that moderators called harmful: the answers are judged at once and not kept."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.generate.measuring import MeasureWorker
from rass_core.judges.base import JUDGES
from rass_core.judges.settings import JudgeConfig
from rass_core.judges.workers import exchange_of, panel_in, verdict_table
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig


@dataclass(frozen=True)
class JudgedMeasureWorker:
    """Places prompts and judges what the target answers: rows of `margins`, `responses` without text, `verdicts`."""

    measuring: MeasureWorker
    judging: Any
    """What verdicts depend on."""
    judge: JudgeConfig = field(compare=False)
    generator: ModelConfig = field(compare=False)
    n_all: int = field(default=0, compare=False)
    """Prompts over all shards, of which a judge may fail on a share."""

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__, *JUDGES.modules(self.judge.members)]

    def build(self, pool: ModelPool) -> Compute:
        """Return what measures and judges a shard."""
        engine, panel = pool.engine(self.measuring.model), panel_in(pool, self.judge, self.generator)
        failures = panel.failures(self.n_all)

        def compute(rows: pa.Table, done: Done) -> Tables:
            given = rows.to_pylist()
            answers = self.measuring.measured(engine, rows, done)
            words = panel.judge([exchange_of(row, each) for row, each in zip(given, answers, strict=True)], failures)
            verdicts = verdict_table([row["response_id"] for row in given], words.words(), with_reason=False)
            return {**self.measuring.tables(given, answers, keep=False), "verdicts": verdicts}

        return compute
