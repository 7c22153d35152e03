"""The plot of the benchmark: rates against n, a panel a setting and side."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.selection import results
from benchmarks.selection.methods import MAIN
from rass_core.errors import ConfigError

NAMES = {
    "rass": "RASS",
    "random_benign": "random benign",
    "random_refused": "random refused benign",
    "keyword": "keyword-triggered",
    "most_refused": "most refused",
    "rewriting": "rewriting, no boundary",
    "uncertainty": "uncertainty",
}
COLOURS = ("#c0272d", "#9e9e9e", "#1f5fa8", "#e0a100", "#2e8b57", "#8d5fb0", "#4db6c6")
MARKERS = "osD^vPX"
PANELS = (
    (results.OVER_REFUSAL, True, "over-refusal at equal safety, %"),
    (results.OVER_REFUSAL, False, "over-refusal as trained, %"),
    (results.SAFETY, False, "harmful prompts refused as trained, %"),
)
"""Rate of a setting, whether at the untrained model's safety, and the axis' name."""


def draw(rows: Sequence[results.Row], ns: Sequence[int], path: Path) -> None:
    """Write the plot as a PNG of 1600 by 1600 pixels.

    Raises:
        ConfigError: matplotlib is not installed, or nothing is there to draw.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("--plot: needs matplotlib; install it with `pip install matplotlib`") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The lab is in the tables alone: two columns can still be read at 1,000 pixels.
    settings = [s for s in ("public", "public_safe") if any(row.setting == s for row in rows)]
    if not settings:
        raise ConfigError("--plot: the table of runs holds none on public prompts; run --setting public")
    figure, axes = pyplot.subplots(
        len(PANELS), len(settings), figsize=(8 * len(settings), 16), dpi=100, squeeze=False, sharey="row"
    )
    for column, setting in enumerate(settings):
        for row, (rate_of, matched, title) in enumerate(PANELS):
            axis = axes[row][column]
            _panel(axis, rows, setting, rate_of[setting], ns, matched)
            axis.set_title(results.TITLES[setting], fontsize=15)
            axis.set_ylabel(title, fontsize=14)
            axis.set_xlabel("training prompts n (log scale)", fontsize=14)
    for first, *_ in axes:  # once all are drawn, as a row shares its scale
        low, high = first.get_ylim()
        first.set_ylim(max(low, -2), min(high, 102))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=14, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path)
    pyplot.close(figure)


def _panel(
    axis: object, rows: Sequence[results.Row], setting: str, rate: str, ns: Sequence[int], matched: bool
) -> None:
    """Draw each method's mean over the seeds that all have, with its 95% interval.

    Points are set apart so that bars do not overlap.
    """
    found = {(m, n): results.rates(rows, setting, m, n, rate, matched) for m in MAIN for n in ns}
    shared = set.intersection(*(set(seeds) for seeds in found.values() if seeds))
    for number, method in enumerate(MAIN):
        points = []
        for n in ns:
            values = [value for seed, value in found[method, n].items() if seed in shared]
            if len(values) >= 3:
                points.append((n * 1.03 ** (number - 3), *(100 * x for x in results.interval(values))))
        if points:
            x, mean, low, high = zip(*points, strict=True)
            errors = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
            axis.errorbar(  # type: ignore[attr-defined]
                x, mean, errors, label=NAMES[method], color=COLOURS[number], marker=MARKERS[number], capsize=3,
                linewidth=2.6 if method == "rass" else 1.4, markersize=8,
            )  # fmt: skip
    base = list(results.rates(rows, setting, "base", 0, rate).values())
    if base:
        level = 100 * sum(base) / len(base)
        axis.axhline(level, color="black", linestyle=":", linewidth=1.5, label="before training")  # type: ignore[attr-defined]
    axis.set_xscale("log")  # type: ignore[attr-defined]
    axis.set_xticks(ns, [str(n) for n in ns])  # type: ignore[attr-defined]
    axis.minorticks_off()  # type: ignore[attr-defined]
    axis.tick_params(labelsize=13)  # type: ignore[attr-defined]
    axis.grid(alpha=0.3)  # type: ignore[attr-defined]
