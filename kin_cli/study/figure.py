"""The figure of a study, like the paper's Figure 8: quality and fidelity by data set and method."""

from __future__ import annotations

from typing import Any

from kin_cli.figures.plots import new_figure
from kin_cli.study.plan import Study
from kin_cli.study.score import Scores, Share

# the palette of Okabe and Ito (2008), which colour-blind readers can tell apart
_SHADES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
_TITLES = {"quality": "Quality: chosen as the best", "fidelity": "Fidelity: taken for the real one"}
_SIGNIFICANT = 0.05


def study_figure(study: Study, scores: Scores) -> Any:
    """Draw the shares of every method and data set with their intervals, as a ``matplotlib.figure.Figure``.

    A star marks a share that differs from chance (dashed) with p < 0.05 after Holm's correction.
    """
    challenges = [name for name in _TITLES if any(share.challenge == name for share in scores.shares)]
    figure = new_figure(5.6 * len(challenges), 4.2)
    axes = figure.subplots(1, len(challenges), squeeze=False, gridspec_kw={"top": 0.86, "bottom": 0.2, "wspace": 0.22})
    for place, challenge in enumerate(challenges):
        _draw(axes[0][place], study, [share for share in scores.shares if share.challenge == challenge], challenge)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _draw(axes: Any, study: Study, shares: list[Share], challenge: str) -> None:
    datasets = list(dict.fromkeys(share.dataset for share in shares))
    width = 0.8 / len(study.methods)
    for number, method in enumerate(study.methods):
        shown = [share for share in shares if share.method == method and share.share is not None]
        if not shown:
            continue
        places = [datasets.index(share.dataset) + (number - (len(study.methods) - 1) / 2) * width for share in shown]
        heights = [100 * (share.share or 0.0) for share in shown]
        low = [100 * ((share.share or 0.0) - (share.low or 0.0)) for share in shown]
        high = [100 * ((share.high or 0.0) - (share.share or 0.0)) for share in shown]
        error = {"lw": 1.0, "capsize": 2.5, "ecolor": "#222222"}
        shade = _SHADES[number % len(_SHADES)]
        axes.bar(places, heights, 0.9 * width, yerr=[low, high], label=method, color=shade, error_kw=error)
        for share, place, height, above in zip(shown, places, heights, high, strict=True):
            if share.p_holm is not None and share.p_holm < _SIGNIFICANT:
                axes.annotate("*", (place, height + above), ha="center", va="bottom", fontsize=11)
    chances = {round(share.chance, 6) for share in shares}
    if len(chances) == 1:
        axes.axhline(100 * shares[0].chance, color="#555555", lw=1, ls="--", zorder=0)
    axes.set_xticks(range(len(datasets)), [name.replace("$", r"\$") for name in datasets], fontsize=9)
    axes.set_ylim(0, 108)
    axes.set_ylabel("answers, %", fontsize=9)
    axes.set_title(_TITLES[challenge], fontsize=10.5, loc="left", weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
