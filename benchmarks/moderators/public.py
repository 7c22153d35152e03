"""Public labelled prompts, with the data set and the prompt that each translation comes from."""

from pathlib import Path

import pyarrow.parquet as pq

from rass_core.errors import PromptError
from rass_core.moderators.harm_training import LabelledPrompt
from rass_core.text import digest, normalise

FILES = (
    "advbench", "harmbench", "strongreject", "or_bench_toxic", "multijail", "xsafety_unsafe_instruction",
    "polyrefuse_harmful", "k_overrefusal_harm", "xstest", "xstest_ko", "or_bench_hard", "or_bench_hard_ko",
    "or_bench_80k_multi", "self_instruct", "ifeval", "mt_bench_multi", "mgsm",
)  # fmt: skip
"""All but the non-commercial ones, whose prompts nothing that is shipped may depend on."""
_PARALLEL = ("or_bench_80k_multi", "multijail", "mgsm", "mt_bench_multi")
_KOREAN = {"xstest_ko": "xstest", "or_bench_hard_ko": "or_bench_hard"}
HELD_OUT_SHARE = 0.2


def read(folder: Path) -> list[LabelledPrompt]:
    """Return the prompts, equal ones once; `source` is the original data set, `family` the original prompt.

    Raises:
        PromptError: A file is missing.
    """
    rows = []
    for name in FILES:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise PromptError(f"{path}: no such file; name the folder of the public prompts with --data")
        rows += [(name, row) for row in pq.read_table(path).to_pylist()]
    english = {(name, _key(row)): row["prompt_id"] for name, row in rows if name in ("strongreject", "harmbench")}
    poly = {
        _stem(row): english.get(("strongreject", _key(row))) or english[("harmbench", _key(row))]
        for name, row in rows
        if name == "polyrefuse_harmful" and row["language"] == "en"
    }
    found: dict[tuple[str, str], LabelledPrompt] = {}
    renamed: dict[str, str] = {}
    for name, row in rows:
        source, family = name, row["prompt_id"]
        if name == "polyrefuse_harmful":
            family = poly[_stem(row)]
            source = family.split("-")[0]
        elif name == "k_overrefusal_harm":
            source = row["category"].split("/")[0]
        elif name in _KOREAN:
            source, family = _KOREAN[name], family.replace(name, _KOREAN[name])
        elif name in _PARALLEL:
            family = _stem(row)
        key = (row["language"], _key(row))
        first = found.setdefault(key, LabelledPrompt(row["text"], row["language"], row["label"], source, family))
        if first.family != family:
            renamed[family] = first.family
    return [
        LabelledPrompt(each.text, each.language, each.label, each.source, _last(each.family, renamed))
        for each in found.values()
    ]


def is_held_out(prompt: LabelledPrompt) -> bool:
    """Return whether the shipped classifier never sees a prompt: a fifth of the families.

    Without these, a run on public prompts would have none left on which its moderator can be checked.
    """
    share = int(digest("held out of the harm classifier", prompt.family), 16) / 16**16
    return share < HELD_OUT_SHARE


def _key(row: dict[str, str]) -> str:
    return normalise(row["text"]).casefold()


def _stem(row: dict[str, str]) -> str:
    return row["prompt_id"].rsplit("-", 1)[0]


def _last(family: str, renamed: dict[str, str]) -> str:
    seen = set()
    while family in renamed and family not in seen:
        seen.add(family)
        family = renamed[family]
    return min(seen | {family})
