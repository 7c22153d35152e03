"""Odd letters: look-alikes, spaced-out words, leet, half-width forms, written plainly."""

import re
import unicodedata

_WIDTHLESS = re.compile(
    "[\u00ad\u200b\u200e\u200f\u2060-\u2064\u180e\ufe00-\ufe0f\U000e0000-\U000e007f\u0334-\u0338\u034f]"
)
_STYLED = re.compile("[\u2100-\u214f\u24b6-\u24e9\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7ff\U0001f130-\U0001f189]")
_SMALL_CAPITALS = str.maketrans("ᴀʙᴄᴅᴇғɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz")
_CYRILLIC = "аАВвсСеЕіІӏорОРНКМТухХУѕЅјЈһԁԛԝ" + "αΑΒΕΖΗΙΚΜΝοΟΡρΤΥΧν"
_LATIN = "aABbcCeEiIlopOPHKMTyxXYsSjJhdqw" + "aABEZHIKMNoOPpTYXv"
_TO_LATIN = str.maketrans(_CYRILLIC, _LATIN)
_TO_CYRILLIC = str.maketrans("aABcCeEopOPHKMTyxXY", "аАВсСеЕорОРНКМТухХУ")
_MIXED = re.compile(r"(?=[^\W\d_]*[a-zA-Z])(?=[^\W\d_]*[\u0370-\u04ff\u0500-\u052f])[^\W\d_]+")
_LATIN_LETTER, _LOOKALIKE = re.compile("[a-zA-Z]"), re.compile("[\u0370-\u052f]")
_WORD = re.compile(r"[^\W\d_]+")
_MAY_BE_SPACED = re.compile(r"[ \u00a0]\S[ \u00a0]\S[ \u00a0]\S[ \u00a0]")
_SPACED = re.compile(r"(?<!\S)(?:[^\s\d=+*/<>|&-][ \u00a0]){4,}[^\s\d=+*/<>|&-](?!\S)")
_JOINED = re.compile(r"(?<![^\W_])(?:[^\W\d_]['’]?[-._*·•・･|~/]){3,}[^\W\d_](?![^\W_])")
_JOINED_ALL = re.compile(r"(?<![^\W_])(?:[^\W\d_]['’]?[-._*·•・･|~/])+[^\W\d_](?![^\W_])")
"""Where a text has a long word of single letters, its short words are set so too."""
_MAY_BE_JOINED = re.compile(r"[-._*·•・･|~/]\w['’]?[-._*·•・･|~/]\w")
_IS_LEET = re.compile(r"[0134@$57](?:(?=[a-zA-Z])|(?<=[a-zA-Z].))")
"""A cheap check: if it finds nothing, no figure is next to a letter."""
_MAY_BE_LEET = re.compile(r"[a-zA-Z][0134@$57]|[0134@$57][a-zA-Z]")
_LEET_WORD = re.compile(r"(?<![\w@$])(?=[\w@$'’]*[a-zA-Z])(?=[\w@$'’]*[013457@$])[\w@$'’]{2,}")
_LEET = str.maketrans("013457@$", "oieastas")


def plain_letters(text: str) -> str:
    """Return text in ordinary letters: no styled ones, none of another script that look alike, none set apart."""
    if not text.isascii():
        is_odd = _ODD.search(text) is not None
        if is_odd:
            text = _STYLED.sub(_plain_of, _WIDTHLESS.sub("", text)).translate(_SMALL_CAPITALS)
            text = _HALF_WIDTH.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        if _ALL_KATAKANA.fullmatch(text):
            text = text.translate(_TO_HIRAGANA)
        if is_odd:
            text = _JAMO.sub(_syllables, text)
        text = _one_script(text)
    if _MAY_BE_SPACED.search(text) and _SPACED.search(text):
        text = _closed_up(text)
    if _MAY_BE_JOINED.search(text) and _JOINED.search(text):
        text = _JOINED_ALL.sub(lambda match: re.sub(r"[-._*·•・･|~/]", "", match[0]), text)
    return _without_leet(text)


_ALL_KATAKANA = re.compile(r"[\u30a1-\u30f6ー\W\d]{8,}")
_TO_HIRAGANA = {code: code - 0x60 for code in range(0x30A1, 0x30F7)}
_HALF_WIDTH = re.compile("[\uff61-\uff9f]+")
_JAMO = re.compile("[\u3131-\u3163]{2,}|(?:[\u3131-\u3163] ){3,}[\u3131-\u3163]")
_ODD = re.compile(
    f"[{_WIDTHLESS.pattern[1:-1]}{_STYLED.pattern[1:-1]}{''.join(map(chr, _SMALL_CAPITALS))}\uff61-\uff9f\u3131-\u3163]"
)
"""Any of the letters that have a plain form: one look in place of five."""
_FIRST, _MIDDLE = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ", "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_LAST = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_SYLLABLE = re.compile(f"([{_FIRST}])([{_MIDDLE}])(?:([{_LAST[1:]}])(?![{_MIDDLE}]))?")
_CLUSTERS = {
    "ㅂㅅ": "ㅄ",
    "ㄴㅎ": "ㄶ",
    "ㄹㅎ": "ㅀ",
    "ㄹㄱ": "ㄺ",
    "ㄴㅈ": "ㄵ",
    "ㄹㅁ": "ㄻ",
    "ㄹㅂ": "ㄼ",
    "ㅗㅏ": "ㅘ",
    "ㅗㅣ": "ㅚ",
    "ㅜㅓ": "ㅝ",
    "ㅡㅣ": "ㅢ",
    "ㅜㅣ": "ㅟ",
}
_CLUSTER = re.compile("|".join(f"{pair}(?=[{_FIRST}][{_MIDDLE}]|[^{_FIRST}{_MIDDLE}]|$)" for pair in _CLUSTERS))


def _syllables(match: re.Match[str]) -> str:
    """Return Korean syllables of letters that stand one by one."""
    letters = _CLUSTER.sub(lambda pair: _CLUSTERS[pair[0]], match[0].replace(" ", ""))
    letters = letters.replace("ㅇㅏㅎㅅㅡ", "ㅇㅏㄶㅅㅡ")  # as it is heard
    return _SYLLABLE.sub(
        lambda each: chr(
            0xAC00 + (_FIRST.index(each[1]) * 21 + _MIDDLE.index(each[2])) * 28 + _LAST.index(each[3] or " ")
        ),
        letters,
    )


def _plain_of(match: re.Match[str]) -> str:
    code = ord(match[0])
    for first in (0x1F150, 0x1F170):  # white letters on black have no plain form in Unicode
        if first <= code < first + 26:
            return chr(code - first + ord("A"))
    plain = unicodedata.normalize("NFKC", match[0])
    return plain.strip("()") if plain.isascii() else match[0]


def _one_script(text: str) -> str:
    """Return text whose words keep to one script, where letters of another were slipped in."""
    if not (_LATIN_LETTER.search(text) and _LOOKALIKE.search(text) and _MIXED.search(text)):
        return text
    # Only letters without a twin show the script of a text: the others may have been exchanged.
    cyrillic = sum("\u0400" <= each <= "\u04ff" and ord(each) not in _TO_LATIN for each in text)
    latin = sum(each.isascii() and each.isalpha() and ord(each) not in _TO_CYRILLIC for each in text)
    if cyrillic > latin:
        return _MIXED.sub(lambda match: match[0].translate(_TO_CYRILLIC), text)
    return _WORD.sub(lambda match: plain if (plain := match[0].translate(_TO_LATIN)).isascii() else match[0], text)


def _closed_up(text: str) -> str:
    """Return text without the spaces between its letters; wider gaps separate words."""
    has_gaps = re.search(r"\S[ \u00a0]{2,}\S", text) is not None

    def close(match: re.Match[str]) -> str:
        return re.sub(r"[ \u00a0]", "", match[0])

    return re.sub(r"[ \u00a0]{2,}", " ", _SPACED_WORDS.sub(close, text)) if has_gaps else _SPACED.sub(close, text)


_SPACED_WORDS = re.compile(r"(?<!\S)(?:\S[ \u00a0](?![ \u00a0]))+\S(?!\S)")


def _without_leet(text: str) -> str:
    """Return text with figures read as letters, where at least two words are written so."""
    if _IS_LEET.search(text[:400]) is None or len(_MAY_BE_LEET.findall(text[:400])) < 2:
        return text
    words = [each for each in _LEET_WORD.findall(text[:400]) if _MAY_BE_LEET.search(each)]
    if len(words) < max(2, 0.3 * len(text[:400].split())):
        return text
    text = _LEET_WORD.sub(lambda match: match[0].translate(_LEET), text)
    return re.sub(r"(?<!\S)1(?!\S)", "I", text)
