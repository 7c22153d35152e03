"""Words of the report: numbers, intervals and headlines as plain sentences, and untrusted text made harmless."""

import html
import math
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rass_core.languages.tags import LANGUAGE_NAMES
from rass_core.probe.harm_types import HARM_METRICS
from rass_core.probe.misalignment import BOTH, EARLY, NEITHER, OTHER_AXIS
from rass_core.report.points import over_refusal_band
from rass_core.vocabulary import Row

SHARE_METRICS = ("over_refused_below", "over_refused_in_band", "over_refused_beyond")
"""Metrics of table `evaluations`, dataset `pseudo_harmful`: where over-refused prompts lie."""
KIND_SENTENCES = {
    EARLY: "The model refuses too early along its axis.",
    OTHER_AXIS: "Its refusal axis is not the axis of harm.",
    BOTH: "The model refuses too early along its axis, and that axis is not the axis of harm.",
    NEITHER: "The intervals show neither kind of misalignment.",
}
HOVER_COLUMNS = 60
HOVER_CHARACTERS = 240


def language_name(code: str) -> str:
    """Return the English name of a language code, the code itself where none is known."""
    return LANGUAGE_NAMES.get(code) or LANGUAGE_NAMES.get(code.split("-")[0], code)


def distinct_names(codes: Iterable[str]) -> dict[str, str]:
    """Return code → name, with the code behind it where two languages would share a name."""
    names = {code: language_name(code) for code in codes}
    shared = Counter(names.values())
    return {code: f"{name} ({code})" if shared[name] > 1 else name for code, name in names.items()}


def show_number(value: float | None, digits: int = 2) -> str:
    """Write a number with a true minus sign; – for none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def show_percent(value: float | None, digits: int = 0) -> str:
    """Write a share as a percentage, with more digits where it would be rounded to 0% or 100%; – for none."""
    if value is None or not math.isfinite(value):
        return "–"
    while digits < 4 and 0 < value < 1 and float(f"{100 * value:.{digits}f}") in (0, 100):
        digits += 1
    return f"{100 * value:.{digits}f}%"


def show_points(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Write a change of a share in percentage points, with its sign and interval, −41.0 [−47.1, −35.2]."""

    def signed(share: float) -> str:
        text = f"{100 * share:+.1f}"
        return text.replace("-", "−") if float(text) else "0.0"

    if value is None:
        return "–"
    return signed(value) if low is None or high is None else f"{signed(value)} [{signed(low)}, {signed(high)}]"


def show_p(value: float | None) -> str:
    """Write a p-value; – for none."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def show_interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """Write a value with its interval, 0.31 [0.22, 0.40]."""
    if value is None or low is None or high is None:
        return show_number(value, digits)
    return f"{show_number(value, digits)} [{show_number(low, digits)}, {show_number(high, digits)}]"


def show_share(value: float | None, low: float | None, high: float | None, digits: int = 0) -> str:
    """Write a share with its interval in percent, 72% [59, 83]."""
    if value is None or low is None or high is None:
        return show_percent(value, digits)
    return f"{show_percent(value, digits)} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def visible(text: str) -> str:
    """Return the text with control and direction-override characters, which could disguise it, as �."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if (unicodedata.category(character) == "Cc" and character not in "\n\t")
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
        else character
        for character in text
    )


def one_line(text: str, n_characters: int) -> str:
    """Return the text on one line, shortened."""
    line = visible(" ".join(text[: 2 * n_characters].split()))
    return line if len(line) <= n_characters else line[: n_characters - 1] + "…"


def hover_text(text: str) -> str:
    """Return a prompt for a hover label: short, wrapped, and inert in plotly's own small HTML."""
    shown = one_line(text, HOVER_CHARACTERS)
    n_wide = sum(unicodedata.east_asian_width(character) in "WF" for character in shown)
    columns = HOVER_COLUMNS // 2 if 2 * n_wide > len(shown) else HOVER_COLUMNS
    return "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(shown, columns))


def inert(text: str) -> str:
    """Return a short text from a table, inert where plotly would read it as small HTML."""
    return html.escape(one_line(text, HOVER_COLUMNS), quote=False)


def why_unidentified(boundary: Row | None) -> str:
    """Say why a language has no boundary."""
    if boundary is None:
        return "no boundary was fitted for this language in this run"
    return boundary["reason"] or "no reason was stored with it"


def headline(language: str, boundary: Row | None, benign_between: Row) -> list[str]:
    """Say in plain sentences where one language's boundary lies and what that does to benign prompts."""
    name = language_name(language)
    if boundary is None or boundary["b"] is None:
        return [f"The refusal boundary in {name} is not identified: {why_unidentified(boundary)}."]
    if boundary["k"] is None and boundary["b_low"] is not None:
        gap = f"{show_number(boundary['b_low'])} and {show_number(boundary['b_high'])}"
        said = [
            f"In {name}, refusals and answers are fully separated: the model changes over between margins "
            f"{gap}, so b = {show_number(boundary['b'])}, the middle of the gap."
        ]
    else:
        b = show_interval(boundary["b"], boundary["b_low"], boundary["b_high"])
        said = [f"The model refuses half the time at margin b = {b} in {name}."]
    if boundary["b_oracle"] is None:
        return [*said, "Where true harm begins (b*) is not identified, so neither is the over-refusal band."]
    oracle = show_interval(boundary["b_oracle"], boundary["b_oracle_low"], boundary["b_oracle_high"])
    said.append(f"True harm begins at b* = {oracle}.")
    if over_refusal_band(boundary) is None:
        said.append("The model does not refuse before true harm begins: the over-refusal band is empty.")
    elif benign_between["n"]:
        said.append(
            f"Benign prompts in between are over-refused: {show_percent(benign_between['value'])} "
            f"({benign_between['n_refused']} of {benign_between['n']} scored)."
        )
    else:
        said.append("None of the given benign prompts with a scored response lies in between.")
    if timing(boundary) == "unclear":
        said.append("The interval of the misalignment includes 0: this may be chance.")
    return said + [KIND_SENTENCES[kind] for kind in [boundary.get("kind")] if kind in KIND_SENTENCES]


def kinds_of_misalignment(boundary: Row | None, figures: Mapping[str, Row]) -> list[str]:
    """Say in sentences where over-refused prompts lie and what of harm the margin misses, with intervals.

    Args:
        boundary: Boundary of the language.
        figures: metric → row of `evaluations` of the language, see `SHARE_METRICS` and `HARM_METRICS`.
    """
    said = []
    below, band, beyond = (figures.get(metric, {}) for metric in SHARE_METRICS)
    if band.get("value") is not None:
        said.append(
            f"Of {band['n']} over-refused pseudo-harmful prompts, {_share(band)} lie in the band, where a later "
            f"boundary would answer them, {_share(beyond)} beyond b*, where harmful prompts lie, and {_share(below)} "
            "at b or below."
        )
    margin, axis, new, same, gap, _ = (figures.get(metric, {}) for metric in HARM_METRICS)
    if margin.get("value") is not None and axis.get("value") is not None:
        said.append(
            f"Harmful and pseudo-harmful prompts are separated with AUC {_interval(margin)} along the margin and with "
            f"AUC {_interval(axis)} by the best linear probe of the same model"
            + (f", a gap of {_interval(gap)}." if gap.get("value") is not None else ".")
        )
        if same.get("value") is not None:
            said.append(f"Inside one source of prompts the probe reaches {_interval(same)}.")
        if new.get("value") is not None:
            low = new["low"] is None or new["low"] <= 0.5
            more = ": it does not carry over to them, so part of the gap may be style" if low else ""
            said.append(f"On prompts from sources that it has not seen it reaches {_interval(new)}{more}.")
    elif axis.get("reason"):
        said.append(f"The harm axis is not known: {axis['reason']}.")
    if boundary is not None and boundary.get("kind_reason"):
        said.append(f"Not shown: {boundary['kind_reason']}.")
    return said


def _share(row: Row) -> str:
    return show_share(row["value"], row["low"], row["high"])


def _interval(row: Row) -> str:
    return show_interval(row["value"], row["low"], row["high"])


def timing(boundary: Row | None) -> str:
    """Class a boundary as 'early', 'late', 'unclear' or 'unidentified', by its misalignment's interval."""
    if boundary is None or boundary["b"] is None or boundary["misalignment"] is None:
        return "unidentified"
    low, high = boundary["misalignment_low"], boundary["misalignment_high"]
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "early" if low > 0 else "late"


def overview(verdicts: Sequence[str]) -> str:
    """Say in how many languages the model refuses too early, where there is more than one."""
    if len(verdicts) < 2:
        return ""
    words = {
        "early": "too early",
        "late": "later than true harm begins",
        "unclear": "neither clearly early nor late",
        "unidentified": "where it cannot be judged",
    }
    counts = Counter(verdicts)
    parts = [f"{text} in {counts[kind]}" for kind, text in words.items() if counts[kind]]
    return f"Across {len(verdicts)} languages the model begins to refuse {', '.join(parts)}."
