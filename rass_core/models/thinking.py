"""What of a completion is thinking, and what its reader sees: the one place that takes the two apart."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

CUT_OFF = "cut off in thinking"
"""Reason of an unscored response whose thinking never ended."""


@dataclass(frozen=True)
class ThinkingSplit:
    """A completion, taken apart."""

    thinking: str
    """Without its marks; "" where there is none."""
    visible: str
    """What the reader sees; as it was written where there is no thinking."""
    is_cut_off: bool
    """Thinking began and did not end, and nothing is visible: there is no answer to judge."""


@dataclass(frozen=True)
class Marks:
    """How one kind of thinking begins and ends, as regular expressions."""

    opening: str
    closing: str
    answer: str = r"(?!)"
    """Marks that open the answer: after an opening mark they end the thinking too."""
    only_first: bool = False
    """They count only at the beginning: further on, such words belong to the answer."""


_THINK = r"(?:think|thinking|thoughts?|reasoning)"
_TAGS = rf"(?:[a-z]+[:_]|ant)?{_THINK}[ \t]*"
_FIRST_TAGS = (
    "analysis", "scratch[_-]?pad", "reflections?", r"inner[_-](?:monologue|thoughts?|voice)",
    r"internal[_-](?:monologue|thoughts?|reasoning)", "internal", r"chain[_-]of[_-]thoughts?", "cot",
    r"(?:thought|thinking|reasoning)[_-]process", "deliberation", "contemplation", "contemplator", "planning", "reason",
    "rationale", "brainstorm", "ponder", "introspection", "ruminations?", "monologue",
)  # fmt: skip
"""Names of tags that an answer may hold as well, so that they count only where it begins."""
_ANSWER_TAGS = r"^[ \t]*<(?:final[_-])?(?:answer|output|response|reply|solution)>"
_CONSTRAINED = r"(?:[ \t]*(?:to=[^<\s]+|<\|constrain\|>[^<]*))*"
_HARMONY = r"(?:<\|start\|>assistant)?[ \t]*<\|channel\|>{channel}" + _CONSTRAINED + r"<\|message\|>"
_PROSE = r"[*_#]*[ \t]*(?:Here(?:'s|’s| is) (?:my|the)|My) (?:{what})[ \t]*(?::[*_]*|[*_]+:?|$)"
_ANSWER_PROSE = "^" + _PROSE.format(what="(?:final )?(?:response|answer|reply)")
_PROSE_ELSEWHERE = (
    r"[*_#]*[ \t]*(?:(?:Voici |Mon )(?:mon |le |ma )?(?:raisonnement|processus de réflexion|réflexion|cheminement)"
    r"|(?:Hier ist |Das ist )?Mein(?:e)? (?:Gedankengang|Denkprozess|Überlegungen?|Gedankengänge)"
    r"|(?:Este es |Aquí está |Esto es )?Mi (?:razonamiento|proceso de (?:pensamiento|razonamiento)|hilo de pensamiento)"
    r"|(?:Ecco )?(?:Il )?Mio (?:ragionamento|processo di pensiero|percorso di ragionamento)"
    r"|(?:Este é |Aqui está )?(?:O )?Meu (?:raciocínio|processo de pensamento)"
    r"|(?:Hier is )?Mijn (?:gedachtegang|denkproces)"
    r"|(?:Вот |Это )?(?:Ход моих (?:мыслей|рассуждений)|Мо[ийё] (?:рассуждени[ея]|ход мыслей|размышления)"
    r"|мой ход мыслей|как я рассуждаю)"
    r"|(?:Oto )?(?:Mój tok (?:myślenia|rozumowania))|(?:İşte )?Düşünce sürecim|Berikut (?:proses berpikir"
    r"|alur pikiran) saya"
    r"|(?:以下|下面|这)?(?:就?是)?我的(?:思考|思维|推理)(?:过程|過程|思路)?(?:如下|是)?|(?:以下"
    r"|これ)?[がはに]?(?:私の)?(?:思考|推論)(?:の)?(?:過程|プロセス|の流れ)(?:です|を示します|は以下の通りです"
    r"|は次のとおりです)?"
    r"|(?:다음은 )?(?:제|저의|나의) (?:생각의 흐름|사고 과정|추론 과정|생각 과정)(?:은 다음과 같습니다|입니다|은)?)"
    r"[ \t]*(?:[:：][*_]*|[*_]+[:：]?|[。.]?$)"
)
_ANSWER_ELSEWHERE = (
    r"^[*_#]*[ \t]*(?:(?:Ma |La )?Réponse(?: finale)?|(?:Meine )?(?:endgültige )?Antwort"
    r"|(?:Mi )?Respuesta(?: final)?|(?:La mia )?Risposta(?: finale)?"
    r"|Resposta(?: final)?|Antwoord|(?:Итоговый |Мой )?Ответ|Odpowiedź|Cevap|Yanıt|Jawaban|(?:最终)?(?:回答"
    r"|答案|答复)|(?:最終)?回答|(?:최종 )?(?:답변|대답))[ \t]*(?:[:：][*_]*|[*_]+[:：]?|$)"
)
_THOUGHTS = "(?:thinking|reasoning)(?: process)?|chain of thought"

_HEADED = r"^[*_#]*[ \t]*{what}[ \t]*(?::[*_]*|[*_]+:?)|^#+[ \t]*{what}[ \t]*:?[ \t]*$"
"""A heading, or a word with a colon, at the beginning of a line."""
_ANSWER_HEADED = _HEADED.format(what="(?:final )?(?:answer|response|reply)")

DEFAULT_MARKS = (
    Marks(rf"<{_TAGS}>", rf"</{_TAGS}>", _ANSWER_TAGS),
    Marks(r"(?-i:\[(?:THINK|THINKING|REASONING)\])", r"(?-i:\[/(?:THINK|THINKING|REASONING)\])"),
    Marks("◁think▷", "◁/think▷"),
    Marks(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", r"<\|START_RESPONSE\|>"),
    Marks(
        rf"<\|(?:(?:begin|start)_of_|begin_)?{_THINK}\|>",
        rf"<\|(?:end_of_|end_|/){_THINK}\|>",
        r"<\|begin_of_(?:solution|answer)\|>",
    ),
    Marks(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    Marks(r"<\|channel>[ \t]*(?:thought|analysis)", r"<channel\|>"),
    Marks(r"<unused94>(?:thought)?", "<unused95>"),
    Marks(_HARMONY.format(channel="(?:analysis|commentary)"), _HARMONY.format(channel="final")),
    # The same channels where whoever kept the response dropped their marks.
    Marks(r"(?-i:analysis(?=[A-Z\"“]))", r"(?!)", "assistantfinal", only_first=True),
    *(Marks(rf"<{tag}>", rf"</{tag}>", _ANSWER_TAGS, only_first=True) for tag in _FIRST_TAGS),
    Marks(_PROSE.format(what="thought process"), r"(?!)", _ANSWER_PROSE, only_first=True),
    Marks(_PROSE_ELSEWHERE, r"(?!)", _ANSWER_ELSEWHERE, only_first=True),
    # These may open an answer as well: thinking only where another such line ends it.
    Marks(_PROSE.format(what=_THOUGHTS) + rf"(?=[\s\S]*{_ANSWER_PROSE})", r"(?!)", _ANSWER_PROSE, only_first=True),
    Marks(
        rf"(?:{_HEADED.format(what='(?:thoughts?|thinking|reasoning)(?: process)?')})(?=[\s\S]*(?:{_ANSWER_HEADED}))",
        r"(?!)",
        _ANSWER_HEADED,
        only_first=True,
    ),
)

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_FLAGS = re.IGNORECASE | re.MULTILINE
_GLUE = re.compile(
    r"<\|[a-z_]+\|>(?:analysis|final|assistant)?|</?(?:final[_-])?(?:answer|output|response|reply)>", re.I
)
"""Marks around an answer that are no words of it; also what ends a turn, where it was kept."""
_EDGES = re.compile(rf"\A(?:{_GLUE.pattern})|(?:{_GLUE.pattern})\Z", re.I)
_MAY_BEGIN = re.compile(
    r"analysis|\W*(?:Here|My|Thoughts?|Thinking|Reasoning)\b|[^\n]{0,16}?(?:raison|réflex|chemin|gedanken|denkpro|überleg"
    r"|razon|pensam|pensie|ragion|raciocín"
    r"|gedachtegang|мысл|рассужд|размышл|myślenia|rozumow|düşünce|berpikir|pikiran|思考|思维|推理|推論|생각"
    r"|사고 과정|추론)",
    re.I,
)
_MAY_MARK = re.compile(r"[<◁\[](?:(?<=\[)/?(?:THINK(?:ING)?|REASONING)\]|(?<=◁)|(?<=<)[a-z/|])", re.I)
"""Cheap: where neither finds anything, at the beginning or anywhere, there is none of the known marks."""
_MOST_MARKS = 200
"""A model that writes nothing but marks is read no further."""
_CONTROL = re.compile(r"<\|[a-z_]+\|>(?:analysis|final|assistant)?", re.I)
_ENDS_SENTENCE = ".!?:;…。！？：；”\"')]*>"
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def split_thinking(response: str) -> tuple[str, str]:
    """Return the chain of thought, without its marks, and what the reader sees, then without control tokens."""
    found = split(response)
    if found.visible == response:
        return "", response.strip()
    return _without_control(found.thinking), _without_control(found.visible)


def split(completion: str, opened: str | None = None, marks: Sequence[tuple[str, str]] = ()) -> ThinkingSplit:
    """Take a completion apart.

    Marks that an answer only mentions, in code, in quotes or within a sentence, are words of it. A closing mark
    without an opening one ends thinking that began in the prompt: all before it is thinking.

    Args:
        completion: With its marks.
        opened: Mark with which the prompt opens thinking; None where it does not.
        marks: Opening and closing marks beside the known ones, word for word.
    """
    return _split(completion, opened, tuple(marks))


@lru_cache(maxsize=4096)  # the judges of a panel ask for the same
def _split(completion: str, opened: str | None, marks: tuple[tuple[str, str], ...]) -> ThinkingSplit:
    if not (opened or marks or _MAY_BEGIN.match(completion) or _MAY_MARK.search(completion)):
        return ThinkingSplit("", completion, False)
    known = _kinds(marks)
    kinds = [kind for kind in known if kind.opening.search(completion) or kind.closing.search(completion)]
    thinking: list[str] = []
    visible: list[str] = []
    rest = completion
    within = None if opened is None else _opened_by(opened, known)
    for _ in range(_MOST_MARKS):
        if within is not None:
            found, opens = _end_of_thinking(rest, within), None
        else:
            found, opens = _next_mark(rest, kinds, is_first=not "".join(visible).strip())
        if found is None:
            break
        (thinking if opens is None else visible).append(rest[: found.start()])
        rest, within = rest[found.end() :], opens
    (visible if within is None else thinking).append(rest)
    if not thinking:
        return ThinkingSplit("", completion, False)
    # Without what was taken out, what is left may read otherwise.
    left = split(_trimmed("".join(visible)), None, marks)
    thoughts = _trimmed("\n".join(each for each in (*thinking, left.thinking) if each))
    return ThinkingSplit(thoughts, left.visible, not left.visible and (within is not None or left.is_cut_off))


def ends_inside(text: str, marks: Sequence[tuple[str, str]] = ()) -> str | None:
    """Return the mark with which a text, such as the end of a template, opens thinking and leaves it open, or None."""
    found = [
        match
        for kind in _kinds(tuple(marks))
        for match in kind.opening.finditer(text)
        if (_opens(text, match, ()) or not text[match.end() :].strip())
        and _end_of_thinking(text[match.end() :], [kind]) is None
    ]
    return max(found, key=lambda match: match.start()).group().strip() if found else None


def closing_of(opening: str, marks: Sequence[tuple[str, str]] = ()) -> str | None:
    """Return the mark that closes an opening one, None where it cannot be derived from it."""
    own = dict(marks).get(opening)
    if own is not None:
        return own
    known = {
        "[THINK]": "[/THINK]",
        "◁think▷": "◁/think▷",
        "<|START_THINKING|>": "<|END_THINKING|>",
        "<|begin_of_thought|>": "<|end_of_thought|>",
        "<|inner_prefix|>": "<|inner_suffix|>",
    }
    if opening in known:
        return known[opening]
    if opening.startswith("<|channel>"):
        return "<channel|>"
    if "<|channel|>" in opening:
        return "<|end|><|start|>assistant<|channel|>final<|message|>"
    return f"</{opening[1:]}" if re.fullmatch(r"<[\w:-]+>", opening) else None


_MARK_TOKEN = re.compile(
    r"</?(?:[a-z]+:)?[a-z_-]+>|\[/?THINK\]|◁/?think▷|<\|(?:START|END)_(?:THINKING|RESPONSE)\|>"
    r"|<\|(?:begin|end)_of_(?:thought|solution)\|>|<\|inner_(?:prefix|suffix)\|>|<\|channel>|<channel\|>|<unused9[45]>"
    r"|<\|(?:channel|message|constrain|start|end|call|return)\|>",
    re.IGNORECASE,
)
_HARMONY_TOKENS = frozenset(
    f"<|{name}|>" for name in ("channel", "message", "constrain", "start", "end", "call", "return")
)


def is_harmony_token(token: str) -> bool:
    """Return whether a token belongs to channels; in other formats <|end|> only ends a turn."""
    return token in _HARMONY_TOKENS


def is_mark_token(token: str, marks: Sequence[tuple[str, str]] = ()) -> bool:
    """Return whether a special token of a tokenizer is a mark of thinking, or a part of one."""
    if any(token in mark for pair in marks for mark in pair):
        return True
    if _MARK_TOKEN.fullmatch(token) is None:
        return False
    # Of the tags only those that a kind of marks knows: <eos> and <end> are none.
    is_tag = re.fullmatch(r"</?[\w:-]+>", token) is not None
    return not is_tag or any(
        pattern.fullmatch(token) for kind in _kinds(()) for pattern in (kind.opening, kind.closing, kind.answer)
    )


@dataclass(frozen=True)
class _Kind:
    """Compiled `Marks`."""

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    answer: re.Pattern[str]
    only_first: bool


@lru_cache(maxsize=32)
def _kinds(marks: tuple[tuple[str, str], ...]) -> tuple[_Kind, ...]:
    own = (Marks(re.escape(opening), re.escape(closing)) for opening, closing in marks)
    return tuple(
        _Kind(
            re.compile(one.opening, _FLAGS),
            re.compile(one.closing, _FLAGS),
            re.compile(one.answer, _FLAGS),
            one.only_first,
        )
        for one in (*own, *DEFAULT_MARKS)
    )


def _opened_by(mark: str, kinds: Sequence[_Kind]) -> list[_Kind]:
    return [kind for kind in kinds if kind.opening.search(mark)]


def _next_mark(text: str, kinds: Sequence[_Kind], is_first: bool) -> tuple[re.Match[str] | None, list[_Kind] | None]:
    """Return the first mark that is no mention, and of what kind where it opens thinking.

    Args:
        is_first: Nothing visible comes before the text.
    """
    code = [match.span() for match in _CODE.finditer(text)]
    found: list[tuple[re.Match[str], list[_Kind] | None]] = []
    for kind in kinds:
        for match in kind.opening.finditer(text):
            is_begin = is_first and not text[: match.start()].strip()
            if (is_begin or not kind.only_first) and _opens(text, match, code):
                found.append((match, [kind]))
                break
        if not kind.only_first:
            closings = (match for match in kind.closing.finditer(text) if not _in_code(match, code))
            closing = next((match for match in closings if not _within_sentence(text, match)), None)
            found += [] if closing is None else [(closing, None)]
    # Of marks at one place the longest.
    return min(found, key=lambda each: (each[0].start(), -each[0].end()), default=(None, None))


def _end_of_thinking(text: str, kinds: Sequence[_Kind]) -> re.Match[str] | None:
    """Return the mark that ends the thinking at a text's beginning, preferably a mark outside of sentences."""
    code = [match.span() for match in _CODE.finditer(text)]
    alone: list[re.Match[str]] = []
    others: list[re.Match[str]] = []
    for pattern in (each for kind in kinds for each in (kind.closing, kind.answer)):
        for match in pattern.finditer(text):
            if not (_in_code(match, code) or _within_sentence(text, match)):
                alone.append(match)
                break
            if not _is_quoted(text, match):
                others.append(match)
    return min(alone or others, key=lambda match: match.start(), default=None)


def _opens(text: str, match: re.Match[str], code: Sequence[tuple[int, int]]) -> bool:
    """Return whether an opening mark opens thinking, rather than being a word of the answer."""
    if _in_code(match, code) or _is_quoted(text, match):
        return False
    before, after = _line_around(text, match)
    if not before.strip():
        return True
    if not after.strip():
        return before.rstrip()[-1] in _ENDS_SENTENCE
    return after[0].isalnum() and not (_WIDE.match(before[-1]) and _WIDE.match(after))


def _within_sentence(text: str, match: re.Match[str]) -> bool:
    """Return whether a closing mark is a word of a sentence."""
    if _is_quoted(text, match):
        return True
    before, after = _line_around(text, match)
    is_followed = re.match(r"[,.;:!?)]|[ \t]+[^\W\d_A-Z]", after) is not None and not _WIDE.match(after.strip()[:1])
    if not before.strip():
        return is_followed and after[0] in " \t" and bool(text[: match.start()].strip())
    is_preceded = before[-1] in " \t" and before.rstrip()[-1] not in _ENDS_SENTENCE
    return is_followed or is_preceded or bool(_WIDE.match(before[-1]) and _WIDE.match(after))


def _line_around(text: str, match: re.Match[str]) -> tuple[str, str]:
    """Return what comes before and after a mark on its line, no more than is looked at."""
    before, after = text[max(0, match.start() - 200) : match.start()], text[match.end() : match.end() + 200]
    return before.rpartition("\n")[2], after.partition("\n")[0]


def _is_quoted(text: str, match: re.Match[str]) -> bool:
    before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
    return bool(before and after) and before in "`'\"“‘«„「" and after in "`'\"”’»“」"


def _in_code(match: re.Match[str], code: Sequence[tuple[int, int]]) -> bool:
    return any(start <= match.start() < end for start, end in code)


def _trimmed(text: str) -> str:
    """Return the text without white space and marks at both ends."""
    trimmed = _EDGES.sub("", text.strip()).strip()
    return text if trimmed == text else _trimmed(trimmed)


def _without_control(text: str) -> str:
    """Return the text without control tokens, those in code kept: they are what the text is about."""
    pieces, position = [], 0
    for match in _CODE.finditer(text):
        pieces += [_CONTROL.sub(" ", text[position : match.start()]), match.group()]
        position = match.end()
    return "".join([*pieces, _CONTROL.sub(" ", text[position:])]).strip()
