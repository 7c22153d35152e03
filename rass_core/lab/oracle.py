"""Kind `oracle` of the moderators: the lab's grammar knows the true label of every sentence of its world."""

from collections.abc import Sequence

from rass_core.judges.base import JudgeContext
from rass_core.lab import world
from rass_core.moderators.base import MODERATORS, ModeratorSettings
from rass_core.vocabulary import BENIGN, Verdict


class OracleModerator:
    """The lab's truth: parses a sentence of its world in the language asked for, else incoherent."""

    name = "oracle"

    def __call__(self, prompts: Sequence[str], languages: Sequence[str]) -> list[Verdict]:
        """Return the true label of each sentence."""
        return [self._label(*pair) for pair in zip(prompts, languages, strict=True)]

    def requests(self, prompts: Sequence[str], languages: Sequence[str]) -> list[str | None]:
        """Name what each prompt asks for, the same in whatever words and language; None for no sentence."""
        parsed = map(world.parse, prompts, languages)
        return [None if sentence is None else sentence.family for sentence in parsed]

    def _label(self, prompt: str, language: str) -> Verdict:
        sentence = world.parse(prompt, language)
        if sentence is None:
            return Verdict("incoherent", None, f"no {language} sentence of the lab's world")
        return Verdict(sentence.label, float(sentence.label in BENIGN), f"{sentence.verb} {sentence.object}")


@MODERATORS.register("oracle")
def _build(settings: ModeratorSettings, context: JudgeContext) -> OracleModerator:
    return OracleModerator()
