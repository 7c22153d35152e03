"""The table of runs, what is computed from it, and its Markdown."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from rass_core.errors import BoundaryError, LakeError

LAB = {"pseudo_harmful": ("pseudo_harmful",), "harmless": ("harmless",), "harmful": ("harmful",)}
PUBLIC = {
    "XSTest safe + OR-Bench-Hard": ("xstest_safe", "or_bench_hard"),
    "XSTest safe": ("xstest_safe",),
    "OR-Bench-Hard": ("or_bench_hard",),
    "XSTest unsafe + StrongREJECT": ("xstest_unsafe", "strongreject"),
    "StrongREJECT": ("strongreject",),
    "XSTest unsafe": ("xstest_unsafe",),
}
RATES: dict[str, dict[str, tuple[str, ...]]] = {"public": PUBLIC, "public_safe": PUBLIC, "lab": LAB, "lab_short": LAB}
"""setting → rate → the datasets whose prompts it is over."""
TITLES = {
    "public": "Public prompts",
    "public_safe": "Public prompts, twice as many safety pairs",
    "lab": "The lab, 30 steps",
    "lab_short": "The lab, 12 steps",
}
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
_OVER_REFUSAL, _SAFETY = "XSTest safe + OR-Bench-Hard", "XSTest unsafe + StrongREJECT"
OVER_REFUSAL = {
    "public": _OVER_REFUSAL,
    "public_safe": _OVER_REFUSAL,
    "lab": "pseudo_harmful",
    "lab_short": "pseudo_harmful",
}
SAFETY = {"public": _SAFETY, "public_safe": _SAFETY, "lab": "harmful", "lab_short": "harmful"}
COMPARISONS = (
    (("rass", 1), ("random_refused", 2)),
    (("most_refused", 1), ("random_refused", 2)),
    (("random_refused", 2), ("random_refused", 1)),
    (("rass", 2), ("rass", 1)),
)
"""Pairs that are compared: each a method and the factor of its n; the last two: the gain from twice as many."""


@dataclass(frozen=True)
class Row:
    """What one run's model answered to one dataset."""

    setting: str
    seed: int
    method: str
    n: int
    n_selected: int
    """As many as the method found, at most n."""
    dataset: str
    n_prompts: int
    n_refused: int
    n_refused_matched: int
    """At the untrained model's safety, as `training.refused_at_safety` says; of that model itself as the judges say."""
    n_unscored: int
    seconds: float
    """Duration of the whole run, on each of its rows."""

    @property
    def run(self) -> tuple[str, int, str, int]:
        return self.setting, self.seed, self.method, self.n


def read(path: Path) -> list[Row]:
    """Return the rows of a table; none where there is no file.

    Raises:
        LakeError: The file is no such table.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines, kinds = csv.DictReader(file), {field.name: field.type for field in fields(Row)}
        if lines.fieldnames != list(kinds):
            raise LakeError(
                f"{path}: its columns are not those of a table of runs; move it away or name another --results"
            )
        return [Row(**{k: v if kinds[k] is str else kinds[k](v) for k, v in line.items()}) for line in lines]  # type: ignore[operator]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add a run's rows to the table, all of them in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def finished(rows: Sequence[Row]) -> set[tuple[str, int, str, int]]:
    """Return the runs that have a row for every dataset; one that was cut off is run again."""
    seen: dict[tuple[str, int, str, int], set[str]] = defaultdict(set)
    for row in rows:
        seen[row.run].add(row.dataset)
    needed = {setting: {d for names in RATES[setting].values() for d in names} for setting in RATES}
    return {run for run, found in seen.items() if needed[run[0]] <= found}


def rates(rows: Sequence[Row], setting: str, method: str, n: int, rate: str, matched: bool = False) -> dict[int, float]:
    """Return seed → share refused over the rate's datasets together; unscored answers are left out.

    Args:
        matched: At the untrained model's safety, of all prompts, rather than as trained.
    """
    found = {}
    # A run that was cut off may be there in part and again in full: the last row counts.
    last = {(*row.run, row.dataset): row for row in rows}.values()
    wanted = RATES[setting][rate]
    for seed in sorted({row.seed for row in last if (row.setting, row.method, row.n) == (setting, method, n)}):
        parts = [r for r in last if r.run == (setting, seed, method, n) and r.dataset in wanted]
        refused = sum(r.n_refused_matched if matched else r.n_refused for r in parts)
        asked = sum(r.n_prompts - (0 if matched else r.n_unscored) for r in parts)
        if len(parts) == len(wanted) and asked:
            found[seed] = refused / asked
    return found


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high by Student's t over seeds.

    Raises:
        BoundaryError: Fewer than two values: one seed shows no spread.
    """
    if len(values) < 2:
        raise BoundaryError(f"interval: {len(values)} seeds show no spread; run at least 2")
    mean = float(np.mean(values))
    half = float(student.ppf(0.5 + level / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def paired(
    rows: Sequence[Row], setting: str, rate: str, first: tuple[str, int], second: tuple[str, int], matched: bool = False
) -> list[float]:
    """Return first − second of each seed that both have."""
    one, other = rates(rows, setting, *first, rate, matched), rates(rows, setting, *second, rate, matched)
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def shown(values: Sequence[float], signed: bool = False) -> str:
    """Return mean and interval in per cent, or a dash."""
    if not values:
        return "–"
    sign = "+" if signed else ""
    if len(values) < 2:
        return f"{100 * values[0]:{sign}.1f} (one seed)"
    mean, low, high = (100 * x for x in interval(values))
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def table(
    rows: Sequence[Row], setting: str, methods: Sequence[str], ns: Sequence[int], rate: str, matched: bool = False
) -> str:
    """Return the Markdown of one rate, methods by n."""
    lines = ["| method | " + " | ".join(f"n = {n}" for n in ns) + " |", "| --- |" + " ---: |" * len(ns)]
    for method in methods:
        cells = [shown(list(rates(rows, setting, method, n, rate, matched).values())) for n in ns]
        if set(cells) != {"–"}:
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared(
    rows: Sequence[Row],
    setting: str,
    first: tuple[str, int],
    second: tuple[str, int],
    ns: Sequence[int] = (25, 50, 100),
) -> str:
    """Return the Markdown of first − second, paired over seeds; each is a method and the factor of its n."""
    over_refusal, safety = OVER_REFUSAL[setting], SAFETY[setting]
    columns = [(f"{rate}, at equal safety", rate, True) for rate in _benign(setting)]
    columns += [(rate, rate, False) for rate in (over_refusal, safety)]
    lines = ["| n | seeds | " + " | ".join(name for name, _, _ in columns) + " |"]
    lines.append("| --- |" + " ---: |" * (1 + len(columns)))
    for n in ns:
        pair = ((first[0], first[1] * n), (second[0], second[1] * n))
        found = [paired(rows, setting, rate, *pair, matched) for _, rate, matched in columns]
        if any(found):
            cells = " | ".join(shown(values, signed=True) for values in found)
            lines.append(f"| {pair[0][1]} against {pair[1][1]} | {_counted(found)} | {cells} |")
    return "\n".join(lines)


def against_each(rows: Sequence[Row], setting: str, methods: Sequence[str], ns: Sequence[int]) -> str:
    """Return the Markdown of rass − each method with as many prompts: over-refusal at equal safety, paired."""
    lines = ["| rass − | seeds | " + " | ".join(f"n = {n}" for n in ns) + " |", "| --- |" + " ---: |" * (1 + len(ns))]
    for method in methods:
        found = [paired(rows, setting, OVER_REFUSAL[setting], ("rass", n), (method, n), matched=True) for n in ns]
        if method != "rass" and any(found):
            cells = " | ".join(shown(values, signed=True) for values in found)
            lines.append(f"| {method} | {_counted(found)} | {cells} |")
    return "\n".join(lines)


def _counted(found: Sequence[Sequence[float]]) -> str:
    """Return the number of seeds in the cells of a line."""
    return "/".join(dict.fromkeys(str(len(values)) for values in found if values))


def _benign(setting: str) -> list[str]:
    """Return the rates of over-refusal, that over all of its datasets first."""
    wanted = RATES[setting]
    return [rate for rate, names in wanted.items() if set(names) <= set(wanted[OVER_REFUSAL[setting]])]


def _named(method: str, factor: int) -> str:
    return f"{method} with {'n' if factor == 1 else f'{factor}n'}"


def report(rows: Sequence[Row], ns: Sequence[int], methods: Sequence[str]) -> str:
    """Return every table of what was run, in Markdown."""
    parts = []
    for setting, title in TITLES.items():
        seeds = {m: len({r.seed for r in rows if (r.setting, r.method) == (setting, m)}) for m in ("base", *methods)}
        if not seeds["base"]:
            continue
        base = ", ".join(
            f"{rate} {shown(list(rates(rows, setting, 'base', 0, rate).values()))}" for rate in RATES[setting]
        )
        parts.append(f"### {title}\n\nBefore training: {base}.")
        parts.append("Seeds run: " + ", ".join(f"{method} {n}" for method, n in seeds.items() if n) + ".")
        for first, second in COMPARISONS:
            told = compared(rows, setting, first, second)
            if told.count("\n") > 1:
                parts.append(f"{_named(*first)} − {_named(*second)}, points, paired over seeds:")
                parts.append(told)
        told = against_each(rows, setting, methods, ns)
        if told.count("\n") > 1:
            parts.append("rass − each other method with as many prompts, over-refusal at equal safety, points:")
            parts.append(told)
        for rate, matched in [(rate, True) for rate in _benign(setting)] + [(rate, False) for rate in RATES[setting]]:
            name = f"{rate}, at equal safety" if matched else rate
            seen = {value for m in methods for n in ns for value in rates(rows, setting, m, n, rate, matched).values()}
            if len(seen) == 1:
                parts.append(f"{name}: {100 * seen.pop():.1f} in every run.")
            else:
                parts += [f"{name}:", table(rows, setting, methods, ns, rate, matched)]
    return "\n\n".join(parts)


def write_into(path: Path, tables: str) -> None:
    """Put the tables between the two marks of a page.

    Raises:
        LakeError: The page lacks the marks.
    """
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LakeError(f"{path}: has no line {BEGIN} before a line {END}; put them where the tables go")
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
