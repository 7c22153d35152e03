"""Languages as people write them → canonical BCP-47 tags: `English`, `eng`, `EN` and `eng_Latn` are all en.

The table `language_tags.tsv` holds the codes of ISO 639, 15924 and 3166 with names in English and in the language.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import TypeVar

from rass_core.errors import LanguageError

Value = TypeVar("Value")

LANGUAGE_NAMES = {
    "ar": "Arabic", "bn": "Bengali", "de": "German", "en": "English", "es": "Spanish", "fr": "French",
    "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "jv": "Javanese", "ko": "Korean",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sw": "Swahili", "te": "Telugu",
    "th": "Thai", "tr": "Turkish", "vi": "Vietnamese", "yo": "Yoruba", "zh": "Chinese",
}  # fmt: skip
"""English names that the report and the attacks write out; others stay tags."""
_MACRO = ("zh", "ar")
"""Languages that a narrower one may follow in a tag: zh-yue is yue."""
_SAME_SCRIPT = {("ko", "Hang"): "Kore", ("ja", "Hira"): "Jpan", ("ja", "Kana"): "Jpan"}
_HANT_REGIONS = ("TW", "HK", "MO")
_MODIFIERS = {"latin": "Latn", "cyrillic": "Cyrl", "devanagari": "Deva"}
"""Scripts as locales name them: sr_RS@latin."""
_MORE_REGIONS = {"latin america": "419", "latam": "419"}


@dataclass(frozen=True)
class _Table:
    """What is known of codes and names; names and codes are casefolded."""

    languages: dict[str, str]
    """Code or name → tag."""
    names: dict[str, str]
    """Tag → English name."""
    usual_script: dict[str, str]
    scripts: dict[str, str]
    regions: dict[str, str]


@lru_cache(maxsize=4096)
def canonical_tag(written: str) -> str:
    """Return the canonical BCP-47 tag of a language, a script left out where the language is usually written in it.

    Args:
        written: A tag in any case, with - or _; a code of ISO 639; a locale such as de_DE.UTF-8; a name such as
            English, français or Portuguese (Brazil).

    Raises:
        LanguageError: No language; the message says what to write.
    """
    text = _folded(written)
    known = _table().languages
    if text in known:
        return known[text]
    tag = _named_with_detail(text) or _subtags(text)
    if tag is None:
        raise LanguageError(
            f"language {written[:40]!r} is not a BCP-47 tag or a language name known here; {_hint(text)}"
        )
    return tag


def primary(tag: str) -> str:
    """Return the language of a tag without script and region: pt for pt-BR."""
    return tag.replace("_", "-").split("-")[0].lower()


def lookup(by_language: Mapping[str, Value], tag: str) -> Value | None:
    """Return what a mapping holds for a tag: for the tag itself, its script, or its language; None where nothing.

    zh-TW takes zh-Hant before zh.
    """
    language, *rest = tag.split("-")
    script = next((part for part in rest if len(part) == 4), None)
    if language == "zh" and script is None and set(rest) & set(_HANT_REGIONS):
        script = "Hant"
    for name in (tag, f"{language}-{script}", language):
        if name in by_language:
            return by_language[name]
    return None


def is_within(tag: str, wanted: str) -> bool:
    """Return whether a tag is a language or a narrower form of it: pt-BR is within pt, not the other way round."""
    return tag == wanted or tag.startswith(f"{wanted}-")


def english_name(tag: str) -> str:
    """Return the English name of a language, Traditional Chinese for zh-TW; the tag where none is known."""
    return lookup(_table().names, tag) or tag


def canonical_tags(written: Sequence[str]) -> list[str]:
    """Return the canonical tags of several languages, each once, in their order.

    Raises:
        LanguageError: As `canonical_tag`.
    """
    return list(dict.fromkeys(map(canonical_tag, written)))


def _hint(text: str) -> str:
    """Return what may have been meant: the language of a tag whose rest is unknown, or the nearest name."""
    first = re.split("[-_]", text)[0]
    if first != text and _is_code(first):
        return f"did you mean {_table().languages[first]}?"
    names = [name for name in _table().languages if len(name) > 3]  # among codes everything has a neighbour
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.7) if len(text) > 3 else []
    return f"did you mean {_table().languages[near[0]]}?" if near else "write a BCP-47 tag such as en or zh-Hans"


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFC", text).strip("\u200b\ufeff \t\r\n\u00a0")
    return re.sub(r"\s+", " ", text).casefold()


def _named_with_detail(text: str) -> str | None:
    """Return the tag of a name with a script or region behind it: chinese (simplified), english - us."""
    match = re.fullmatch(r"(.+?)\s*[(\[,/–—-]\s*([^()\[\]]+?)[)\]]?", text)
    table = _table()
    if match is None or len(match[1]) < 4:  # shorter ones are codes
        return None
    language = table.languages.get(match[1].strip())
    detail = table.scripts.get(match[2]) or table.regions.get(match[2])
    return None if language is None or detail is None else _joined(language, [detail])


def _subtags(text: str) -> str | None:
    """Return the canonical form of a tag or locale; None where a part of it is none."""
    modifier = _MODIFIERS.get(text.partition("@")[2])
    text = re.sub(r"[.@].*", "", text)
    if not re.fullmatch(r"[a-z]{2,3}([-_][a-z0-9]{1,8})+", text):
        return _joined(_table().languages[text], [modifier] if modifier else []) if _is_code(text) else None
    first, *rest = re.split("[-_]", text)
    if not _is_code(first):
        return None
    language = _table().languages[first]
    if language in _MACRO and len(rest[0]) == 3 and _is_code(rest[0]):
        language, rest = _table().languages[rest[0]], rest[1:]
    parts = _parts(rest)
    return None if parts is None else _joined(language, parts + ([modifier] if modifier else []))


def _is_code(text: str) -> bool:
    return text.isascii() and len(text) in (2, 3) and text in _table().languages


def _parts(subtags: Sequence[str]) -> list[str] | None:
    """Return script, region and variants in their canonical case; None where one is unknown."""
    found: list[str] = []
    for number, each in enumerate(subtags):
        if len(each) == 1:  # an extension: its parts mean what it says
            return [*found, *subtags[number:]] if number + 1 < len(subtags) else None
        if len(each) == 4 and each.isalpha():
            part = _table().scripts.get(each)
        elif len(each) <= 3:
            part = each if len(each) == 3 and each.isdigit() else _table().regions.get(each)
        else:
            part = each if len(each) > 4 or each[0].isdigit() else None
        if part is None:
            return None
        found.append(part)
    return found


def _joined(language: str, parts: Sequence[str]) -> str:
    own, *more = language.split("-")
    merged = list(dict.fromkeys([*more, *parts]))
    usual = _table().usual_script.get(own)
    scripts = [each for each in merged if len(each) == 4 and each[0].isupper()][-1:]
    rest = [each for each in merged if not (len(each) == 4 and each[0].isupper())]
    kept = [each for each in scripts if _SAME_SCRIPT.get((own, each), each) != usual]
    return "-".join([own, *kept, *rest])


@cache
def _table() -> _Table:
    table = _Table({}, {}, {}, {}, dict(_MORE_REGIONS))
    section = "[languages]"
    for line in (
        resources.files("rass_core.languages").joinpath("language_tags.tsv").read_text(encoding="utf-8").splitlines()
    ):
        if line.startswith("["):
            section = line
        elif section == "[codes]":
            table.languages.update((code, code) for code in line.split())
        elif not line.startswith("#"):
            _add(table, section, line.split("\t"))
    return table


def _add(table: _Table, section: str, cells: Sequence[str]) -> None:
    tag, names = cells[0], [_folded(each) for each in cells[-1].split(";")]
    if section == "[languages]":
        table.names[tag] = cells[-1].split(";")[0]
        if cells[1]:
            table.usual_script[tag] = cells[1]
        table.languages.update(dict.fromkeys(names, tag) | {tag.casefold(): tag})
    else:
        into = table.scripts if section == "[scripts]" else table.regions
        into.update({tag.casefold(): tag, **{name: tag for name in names if name not in into}})
