"""Judges say what a response is: refusal, partial, compliance or unscored."""

from rass_core.judges.base import Judge
from rass_core.judges.panel import PANEL, Judged, Panel
from rass_core.judges.phrases import PhraseJudge
from rass_core.models.thinking import split_thinking
from rass_core.vocabulary import OUTCOMES, Exchange, Outcome, Verdict

__all__ = [
    "OUTCOMES", "PANEL", "Exchange", "Judge", "Judged", "Outcome", "Panel", "PhraseJudge", "Verdict",
    "split_thinking",
]  # fmt: skip
