"""What of a response its reader sees, and which of its words are the model's own."""

import re
import unicodedata
from functools import lru_cache
from itertools import islice

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SINGLE_QUOTED = r"(?<![^\W_].)(?:[^'’\n]|(?<=[^\W_])['’](?=[^\W_])){3,400}['’](?![^\W_])"
"""What follows the opening quotation mark, which never follows a letter."""
_QUOTED = re.compile(
    r'"[^"\n]{3,400}"|“[^”\n]{3,400}”|„[^“”"\n]{3,400}[“”"]|«[^»\n]{3,400}»|»[^«\n]{3,400}«'
    r"|「[^」\n]{3,400}」|『[^』\n]{3,400}』|《[^》\n]{3,400}》" + f"|'{_SINGLE_QUOTED}|‘{_SINGLE_QUOTED}"
)
"""Each alternative begins with one character, so that `re` passes over all others at once."""
_LONG_QUOTED = re.compile(
    r'"[^"]{3,}"|“[^”]{3,}”|„[^“”"]{3,}[“”"]|«[^»]{3,}»|»[^«]{3,}«|「[^」]{3,}」|『[^』]{3,}』|《[^》]{3,}》|```.*?```|^>.*$',
    re.MULTILINE | re.DOTALL,
)
_SPEAKER = re.compile(r"^[ \t*_>-]*(?P<name>[^\W\d_][^\n:：.!?]{0,24})[*_]*(?:：|:[*_]*[ \t]).*$", re.MULTILINE)
_CUE = re.compile(r"^[ \t]*[A-Z][A-Z .'-]{1,24}(?: \([^)\n]*\))?\n[^\n]+$", re.MULTILINE)
"""A name in capitals on a line of its own, as in a screenplay, and what is said."""
_LETTER = re.compile(r"\A(?:Subject:[^\n]*\s+)?(?:Dear|Hi|Hello) (?!user)[^\n!.]{1,40},[ \t]*\n.*\Z", re.DOTALL)
"""A letter that was asked for; what it declines, its sender declines."""
_NO_SPEAKERS = frozenset({"ai", "answer", "assistant", "disclaimer", "important", "note", "response", "warning"})


_IGNORED = re.compile("[\u064b-\u0652\u0670\u0640\u200b-\u200d\u202a-\u202e\u2066-\u2069\ufeff]")
"""Arabic vowel marks and stretching, which may be written or not, characters of no width, marks of direction."""


def fold(text: str) -> str:
    """Return the text as phrases are compared: NFC, straight apostrophes, without what may be written or not."""
    composed = unicodedata.normalize("NFC", text).replace("’", "'").replace("\u0e4d\u0e32", "\u0e33")
    return _IGNORED.sub("", composed)


@lru_cache(maxsize=4096)
def strip_quotes_and_code(visible: str) -> str:
    """Return the folded text with code, quotations and the lines of a dialogue blanked out, positions kept.

    What a quoted person or a part in a play refuses is not the model's refusal. A response that is
    quoted as a whole keeps its words.
    """
    text = _LETTER.sub(_blank, fold(visible))
    without_code = _CODE.sub(_blank, text)
    without_quotes = _QUOTED.sub(_blank, without_code)
    speakers = [name.lower() for name in _SPEAKER.findall(without_quotes)]
    if len(speakers) >= 3 and len(set(speakers) - _NO_SPEAKERS) >= 2:
        return _SPEAKER.sub(_blank, without_quotes)
    if len(_CUE.findall(without_quotes)) >= 2:
        return _CUE.sub(_blank, without_quotes)
    if has_letters(without_quotes, 12):
        return without_quotes
    return without_quotes if n_letters(without_quotes) > n_letters(without_code) // 3 else without_code


def n_letters(text: str) -> int:
    """Return how many letters a text has."""
    return sum(map(str.isalpha, text))


def has_letters(text: str, n: int) -> bool:
    """Return whether a text has at least so many letters, without counting further."""
    return n <= 0 or next(islice(filter(str.isalpha, text), n - 1, None), None) is not None


def without_quotations(text: str) -> str:
    """Return the text with quotations of any length blanked out, even where nothing else is left."""
    return _LONG_QUOTED.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group(0))
