"""Kind `classifier`: the shipped harm classifier, or one that `rass moderator train` wrote."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from rass_core.judges.base import JudgeContext
from rass_core.languages.tags import primary
from rass_core.moderators.base import MODERATORS, ModeratorSettings
from rass_core.vocabulary import Verdict

if TYPE_CHECKING:
    from rass_core.moderators.harm_classifier import HarmClassifier  # brings scikit-learn

MAX_CHARACTERS = 2_000
"""A longer prompt is not scored: a short harmful passage would drown in it."""
MIN_CONFIDENCE = 0.6
"""Below this probability of the likelier side, a prompt is unscored."""
KNOWN = "in the classifier's training data"
"""Reason of a prompt that the classifier was fitted on."""


class ClassifierModeratorSettings(ModeratorSettings):
    """Settings of kind `classifier`."""

    weights: str | None = None
    """File that `rass moderator train` wrote; null takes the shipped one."""
    min_confidence: float = Field(default=MIN_CONFIDENCE, ge=0.5, lt=1)
    """A prompt is unscored below this probability of the likelier side."""


class ClassifierModerator:
    """Moderator by a harm classifier; the score is the probability that the prompt is benign.

    Args:
        classifier: None takes the shipped one.
        min_confidence: Below this probability of the likelier side, 0.5 to 1, a prompt is unscored.
    """

    def __init__(self, classifier: "HarmClassifier | None" = None, min_confidence: float = MIN_CONFIDENCE) -> None:
        if classifier is None:
            from rass_core.moderators.harm_classifier import shipped

            classifier = shipped()
        self._classifier = classifier
        self._min_confidence = min_confidence
        self.name = f"classifier:{self._classifier.digest}"

    def knows(self, prompts: Sequence[str], languages: Sequence[str]) -> list[bool]:
        """Return whether each prompt was in the training data; its verdict would say nothing about other prompts."""
        return [bool(known) for known in self._classifier.knows(prompts, languages)]

    def __call__(self, prompts: Sequence[str], languages: Sequence[str]) -> list[Verdict]:
        """Return harmful, pseudo_harmful or harmless.

        Unscored are prompts of the training data, uncertain ones, long ones, and those in a language without
        training prompts of both labels.
        """
        known = self.knows(prompts, languages)
        reasons = [self._unscored(*each) for each in zip(prompts, languages, known, strict=True)]
        asked = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]
        scores = iter(self._classifier.probabilities(asked)) if asked else iter(())
        return [
            self._verdict(*map(float, next(scores))) if reason is None else Verdict("unscored", None, reason)
            for reason in reasons
        ]

    def _unscored(self, prompt: str, language: str, is_known: bool) -> str | None:
        if is_known:
            return KNOWN
        if not prompt.strip():
            return "empty prompt"
        if len(prompt) > MAX_CHARACTERS:
            return f"longer than {MAX_CHARACTERS:,} characters"
        if primary(language) not in self._classifier.languages:
            return f"not fitted for language {primary(language)!r}"
        return None

    def _verdict(self, harmful: float, alarming: float) -> Verdict:
        reason = f"classifier: P(harmful) {harmful:.2f}"
        if max(harmful, 1 - harmful) < self._min_confidence:
            return Verdict("unscored", 1 - harmful, f"{reason}, too uncertain")
        if harmful >= 0.5:
            return Verdict("harmful", 1 - harmful, reason)
        return Verdict("pseudo_harmful" if alarming >= 0.5 else "harmless", 1 - harmful, reason)


@MODERATORS.register("classifier", ClassifierModeratorSettings)
def _build(settings: ClassifierModeratorSettings, context: JudgeContext) -> ClassifierModerator:
    from rass_core.moderators.harm_classifier import HarmClassifier

    classifier = None if settings.weights is None else HarmClassifier.read(settings.weights)
    return ClassifierModerator(classifier, settings.min_confidence)
