"""From what a generator wrote to bare requests.

A chat model that is asked for a request also writes around it: "Sure! Here is one:", quotation marks, numbers, notes,
its thinking. `bare_requests` takes that off. What is left may still be no new prompt: a refusal, an answer, another
language. `Cleaner` drops these and says why, so that they can be counted.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rass_core.data.decontamination import NearDuplicates, jaccard_of
from rass_core.generate.request_check import RequestCheck
from rass_core.judges.phrases import PhraseJudge
from rass_core.judges.visible_text import strip_quotes_and_code
from rass_core.languages.identification import is_in
from rass_core.models.thinking import split_thinking
from rass_core.text import normalise, repeated_share
from rass_core.vocabulary import Exchange, Verdict

REASONS = (
    "cut off", "thinking", "empty", "too short", "declined", "not a request", "wrong language", "repeats itself",
    "copy of a parent", "known", "near-duplicate",
)  # fmt: skip
"""Why a written text is dropped, in the order of the checks."""
MAX_REPEATED_SHARE = 0.3
"""Largest share of repeated character 8-grams; a text with more is a loop."""
COPY_JACCARD = 0.8
"""Character 4-grams that a text shares with its parent; from here on it is a copy."""
MIN_WORDS = 4
"""Fewer words ("What is that?") are no complete request; scripts without spaces count characters."""
SURELY_A_REQUEST = 0.9
"""From this probability on, words of refusal are part of a request ("I can't open the file. How do I …?")."""

_NAMES = (
    r"requests?|prompts?|questions?|quer(?:y|ies)|instructions?|version|rewrit(?:e|ten)|rephras(?:e|ed|ing)|translation"
    r"|anfragen?|bitten?|fragen?|aufforderung|übersetzung|peticiones|petición|preguntas?|solicitud(?:es)?|traducción"
    r"|demandes?|requêtes?|traduction|请求|问题|提示|译文|翻译|改写"
)
_SURE = (
    r"(?:sure(?: thing)?|certainly|of course|okay|ok|absolutely|great|gerne|natürlich|claro|por supuesto|bien sûr"
    r"|好的|当然)"
)
_QUALIFIED = (
    r"(?:(?:the|a|an|my|new|harmless|benign|safe|similar|combined|rewritten|rephrased|possible|user|user's|neue|harmlose"
    r"|nueva|inofensiva|nouvelle|inoffensive|新的|无害的?|改写后?的)\s*){0,4}"
    rf"(?:(?:{_NAMES})\b|请求|问题|提示|译文)\s*(?:#?\d{{0,2}}|\([^()\n]{{1,20}}\))\s*"
)
_PREFACE = re.compile(
    rf"\A\W{{0,3}}(?:{_SURE}\b[^\n:：]{{0,40}}?[!,.，！。]\s*)?(?:"
    # "Here is a harmless request:"
    r"(?:here(?:'s| is| are)|below(?: is| are)?|this is|these are|the following(?: is| are)?|hier (?:ist|sind)"
    r"|aquí (?:tienes|está|van)|esta es|voici|以下是|这是|这里是)"
    rf"[^\n:：?]{{0,100}}?(?:\b(?:{_NAMES})\b|请求|问题|提示|译文|改写)[^\n:：?]{{0,60}}"
    # "Here are two:"
    r"|here are (?:\w+ )?(?:two|three|four|five|some|several|few|\d+)[^\n:：?]{0,60}"
    # "Here's one:", "How about this:"
    r"|(?:here(?:'s|’s| is) (?:one|an? (?:example|attempt|idea|option)|my (?:attempt|take|try)|another(?: one)?)"
    r"|voici|hier ist (?:sie|eine|er)|aquí (?:está|tienes))[^\n:：?]{0,40}"
    r"|(?:(?:how|what) about|let(?:'|’)s try)(?: this(?: one)?)?\s*"
    # "Rewritten request 1:", "The request is:"
    rf"|{_QUALIFIED}(?:is|are|would be|could be|lautet|est|es|是)?\s*"
    # "Harmless:", "Output:"
    r"|(?:harmless|benign|rewritten|rephrased|output|result|ergebnis|resultado|résultat|as requested|okay,? so"
    r"|(?:final )?answer|suggestion)"
    r")\**[:：]\**\s*",
    re.IGNORECASE,
)
"""What announces a request: "Sure! Here is a harmless request:", "Prompt:"."""
_INTERJECTION = re.compile(
    r"\A[¡\s]*(?:(?:sure(?: thing)?|certainly|of course|absolutely|gerne|claro|por supuesto|bien sûr)\s*!\s+"
    r"|(?:好的|当然)[，,！!。]\s*|i(?:'|’)d be (?:happy|glad) to(?: help)?\s*[.!]\s+"
    rf"|{_SURE}\s*[!.]\s*\n+|{_SURE}\s*(?:[:：]\s*|\s[-–—]\s)"
    r"|(?:understood|got it|as requested|here (?:you go|it is|we go)|voilà|bitte sehr|aquí tienes)\s*"
    r"(?:[:：.!]\s*|\s[-–—]\s|\n))",
    re.IGNORECASE,
)
"""What somebody says who hands something over: "Here you go:", "Understood."."""
_HEADING = re.compile(rf"\A(?:#{{1,4}}\s*|\*\*|__){_QUALIFIED}[:：]?(?:\*\*|__)?\s*\n+", re.IGNORECASE)
_BEFORE_QUOTE = re.compile(rf"\A{_QUALIFIED}(?:is|would be|could be)\s+(?=[\"“„«'‘])", re.IGNORECASE)
"""My request is "…"."""
_SPEAKER = re.compile(
    r"\A\W{0,3}(?:user|human|q|question|frage|pregunta|benutzer|usuario|utilisateur|用户|问题|提问|问)\**\s*[:：]\**\s*",
    re.I,
)
_REPLY = re.compile(
    r"\n\s*\W{0,3}(?:assistant|answer|a|ai|response|antwort|respuesta|réponse|assistent|asistente|助手|回答|答)"
    r"\**\s*[:：].*\Z",
    re.IGNORECASE | re.DOTALL,
)
"""The answer to a request whose speaker is named."""
_TAGGED = re.compile(
    r"\A<(request|prompt|question|query|output|response|answer|user|rewrite)>(.*)</\1>\Z", re.I | re.DOTALL
)
_BRACKETED = re.compile(r"\A\[([^\[\]]{10,})\]\Z")
_CHAT_MARKS = re.compile(
    r"\A(?:<\|[^|<>\n]{1,30}\|>\s*(?:user\b|assistant\b)?\s*|\[USER\]\s*|<user>(?![^<]*</user>)\s*)+"
    r"|(?:\s*(?:<\|[^|<>\n]{1,30}\|>|</s>|<eos>|<end_of_turn>))+\Z"
)
_RULE = re.compile(r"\n\s*(?:-{3,}|\*{3,}|_{3,}|={3,})\s*\Z")
_ITEM = re.compile(r"^[ \t]*(?:\(?\d{1,2}[.)、:]|#\d{1,2}|→|=>|\(?[a-hA-H]\)|[-*•–])[ \t]+", re.MULTILINE)
_NOTE = re.compile(
    r"\n\s*[(\[*_]*(?:note|explanation|reason|disclaimer|this (?:request|prompt|question|version|rewrite)"
    r"|these (?:requests|prompts|questions)|the (?:request|prompt|question) |i hope|let me know"
    r"|rationale|why (?:it|this)|would you like|do you want (?:me|another)|feel free"
    r"|(?:this|it|that) (?:is|seems|may|might)\b(?=[^\n]*\b(?:harmless|benign|innocuous|innocent|sounds?)\b)"
    r"|(?:this|it|that) (?:sounds|looks)\b"
    r"|hinweis|anmerkung|erklärung|begründung|nota|explicación|remarque|explication|注|说明|解释)(?:\b|(?<=[注明释])).*\Z",
    re.IGNORECASE | re.DOTALL,
)
_ASIDE = re.compile(
    r"\s*[*_]?[(\[（](?=[^()\[\]（）]{0,200}(?:\b(?:harmless|benign|not harmful|innocuous|safe|note|dangerous|sounds"
    r"|harmlos|inofensiv[oa]|inoffensive?)\b|无害))[^()\[\]（）]*[)\]）][*_]?\s*\Z"
    r"|\s(?:--|—|–)\s*(?:harmless|benign|innocuous)\b[^?\n]{0,100}\Z",
    re.IGNORECASE,
)
"""A last parenthesis that is about the request: "(Harmless, as weeds are plants.)"."""
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "»": "«", "「": "」", "『": "』", "'": "'", "‘": "’", "`": "`"}
_AFTER_QUOTE = re.compile(r"\s*(?:[(\[–—-]|\.?\s*\Z|(?:it|this|that|these) (?:is|are|was|sounds?|asks?|uses?)\b)", re.I)
"""What follows a quoted request where it is about it."""
_ASSISTANTS_VOICE = re.compile(
    r"\bI(?:'m| am) (?:just |only )?an? (?:\w+ )?(?:AI|artificial intelligence|(?:large )?language model|chatbot)\b"
)
"""What no user says of themselves."""
_FENCE = re.compile(r"\A```[a-z]*\n(.*?)\n?```\Z", re.DOTALL)
_EMPHASIS = re.compile(r"\A(\*{1,3}|_{1,3}|#{1,4} |> )(.+?)\1?\Z", re.DOTALL)


@dataclass(frozen=True)
class Cleaned:
    """One request that was written, or why there is none."""

    text: str
    """Normalised as it is stored; what is left of a dropped one."""
    dropped: str | None = None
    """One of `REASONS`; None where it is kept."""


class KnownPrompts:
    """Prompts that exist already; finds texts that repeat one of them."""

    def __init__(self, near_duplicate_jaccard: float) -> None:
        """Take the share of character 4-grams in common from which two prompts count as one, in (0, 1]."""
        self._ids: set[str] = set()
        self._near = NearDuplicates(near_duplicate_jaccard)

    def add(self, prompt_id: str, text: str) -> None:
        """Count a prompt as known from now on."""
        if prompt_id not in self._ids:
            self._near.add(len(self._ids), text)
            self._ids.add(prompt_id)

    def why_not_new(self, prompt_id: str, text: str) -> str | None:
        """Return "known" or "near-duplicate", None where the prompt is new."""
        if prompt_id in self._ids:
            return "known"
        return "near-duplicate" if self._near.like(text) else None


class Cleaner:
    """Separates requests from everything else among written texts."""

    def __call__(
        self, written: Sequence[str], languages: Sequence[str], whole: Sequence[bool], parents: Sequence[Sequence[str]]
    ) -> list[list[Cleaned]]:
        """Return what each text comes to: the requests in it, or one entry with the reason why there is none.

        Args:
            written: As the generator gave them.
            languages: BCP-47 tag that each was asked for in.
            whole: False where the limit of tokens cut it off.
            parents: Prompts that each was made from.
        """
        pieces = [
            self._pieces(text, is_whole, parent) for text, is_whole, parent in zip(written, whole, parents, strict=True)
        ]
        flat = [
            (piece.text, language)
            for found, language in zip(pieces, languages, strict=True)
            for piece in found
            if piece.dropped is None
        ]
        reasons = iter(self._reasons([text for text, _ in flat], [language for _, language in flat]))
        return [[piece if piece.dropped else Cleaned(piece.text, next(reasons)) for piece in found] for found in pieces]

    @cached_property
    def _check(self) -> RequestCheck:
        return RequestCheck()

    @cached_property
    def _phrases(self) -> PhraseJudge:
        return PhraseJudge()

    def _pieces(self, written: str, is_whole: bool, parents: Sequence[str]) -> list[Cleaned]:
        thinking, visible = split_thinking(written)
        if thinking and not visible:
            return [Cleaned("", "thinking")]
        requests = bare_requests(visible)
        if not is_whole:  # of a list only the last one is cut off
            requests = requests[:-1]
        if not requests:
            return [Cleaned(normalise(visible), "empty" if is_whole else "cut off")]
        copied = [any(overlap(text, parent) >= COPY_JACCARD for parent in parents) for text in requests]
        return [
            Cleaned(text, "copy of a parent" if copy else None) for text, copy in zip(requests, copied, strict=True)
        ]

    def _reasons(self, texts: Sequence[str], languages: Sequence[str]) -> list[str | None]:
        """Return why each bare text is no request in its language, None where it is one."""
        if not texts:
            return []
        likely = self._check(texts)
        said = self._phrases([Exchange(text, language) for text, language in zip(texts, languages, strict=True)])
        reasons: list[str | None] = []
        for text, language, probability, verdict in zip(texts, languages, likely, said, strict=True):
            if is_too_short(text):
                reasons.append("too short")
            elif declines(text, verdict, probability):
                reasons.append("declined")
            elif probability < self._check.threshold:
                reasons.append("not a request")
            elif is_in(text, language) is False:
                reasons.append("wrong language")
            else:
                reasons.append("repeats itself" if repeated_share(text) > MAX_REPEATED_SHARE else None)
        return reasons


def bare_requests(visible: str) -> list[str]:
    """Return the requests in a text, without what is written around them; several where it is a list of them.

    Args:
        visible: Without the chain of thought.
    """
    text = visible.strip()
    for _ in range(6):  # each step may lay bare what another one takes off
        stripped = _unwrapped(text)
        if stripped == text:
            break
        text = stripped
    found = [normalise(item) for item in _items(text)]
    return [item for item in found if any(map(str.isalpha, item))]


def declines(text: str, verdict: Verdict, probability: float) -> bool:
    """Return whether a text is a refusal, or in the voice of an assistant.

    Args:
        verdict: The phrases' verdict on it, read as an answer.
        probability: That it is a request.
    """
    is_refusal = verdict.outcome == "refusal" and probability < SURELY_A_REQUEST
    return is_refusal or _ASSISTANTS_VOICE.search(strip_quotes_and_code(text)) is not None


def is_too_short(text: str) -> bool:
    """Return whether a text has too few words to stand alone."""
    return len(text.split()) < MIN_WORDS and (text.isascii() or len(text) < 2 * MIN_WORDS)


def overlap(text: str, other: str) -> float:
    """Return the Jaccard overlap of two texts' character 4-grams, 0 to 1, case ignored."""
    return jaccard_of(normalise(text).casefold(), normalise(other).casefold())


def _unwrapped(text: str) -> str:
    """Return the text with one layer less around it, the text itself where there is none."""
    fence = _FENCE.match(text)
    if fence:
        return fence.group(1).strip()
    text = _CHAT_MARKS.sub("", text).strip()
    for around in (_TAGGED, _BRACKETED):
        inside = around.match(text)
        text = text if inside is None else inside.groups()[-1].strip()
    text = _INTERJECTION.sub("", _from_json(text))
    speaker = _SPEAKER.match(text)
    if speaker and text[speaker.end() :].strip():
        text = _REPLY.sub("", text[speaker.end() :])
    text = _BEFORE_QUOTE.sub("", _HEADING.sub("", text))
    preface = _PREFACE.match(text)
    if preface and text[preface.end() :].strip():
        text = text[preface.end() :].strip()
    text = _RULE.sub("", _ASIDE.sub("", _NOTE.sub("", text))).strip()
    return _unquoted(_unmarked(text))


def _from_json(text: str) -> str:
    """Return the only string of a JSON object, the strings of its only list as a list, or the text."""
    if not text.startswith("{"):
        return text
    try:
        content = json.loads(text)
    except ValueError:
        return text
    values = [value for value in content.values() if isinstance(value, str | list)] if isinstance(content, dict) else []
    if len(values) != 1 or not all(isinstance(each, str) for each in values[0]):
        return text
    return values[0].strip() if isinstance(values[0], str) else "\n".join(f"- {each}" for each in values[0])


def _unmarked(text: str) -> str:
    """Return the text without Markdown around the whole of it."""
    match = _EMPHASIS.match(text)
    if match is None or match.group(1) in match.group(2):
        return text
    return match.group(2).strip()


def _unquoted(text: str) -> str:
    """Return what a pair of quotation marks around the whole text, or before a note on it, encloses."""
    closing = _QUOTES.get(text[:1])
    if closing is None:
        return text
    end = text.find(closing, 1)
    if end < 0:  # one that was never closed
        return text[1:].strip() if closing not in "'’`" else text
    # An apostrophe inside a word closes nothing.
    while closing in "'’" and 0 < end < len(text) - 1 and text[end + 1].isalpha():
        end = text.find(closing, end + 1)
    rest = text[end + 1 :] if end > 0 else text
    is_note = rest.startswith("\n") or _AFTER_QUOTE.match(rest) is not None
    return text[1:end].strip() if end > 1 and is_note else text


def _items(text: str) -> list[str]:
    """Return the items of a list that the text wholly is, else the text alone."""
    if not _ITEM.match(text):
        return [text]
    marks = list(_ITEM.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    items = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return [bare for item in items for bare in [_unquoted(_unmarked(_ASIDE.sub("", item).strip()))] if bare]
