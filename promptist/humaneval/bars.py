"""The paper's figure of human preferences: a stacked bar for each comparison and set, ties in the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from promptist.humaneval.scores import Preference

# Okabe and Ito's blue and orange, told apart by colour-blind readers and by their lightness in print.
COLOURS = ("#0072b2", "#d9d9d9", "#e69f00")
INKS = ("white", "black", "black")
_ROOM = 0.055  # a narrower segment has no room for its number


def save_bars(folder: Path, preferences: Sequence[Preference], labels: Mapping[str, str]) -> list[Path]:
    """Write `preferences.svg` and `preferences.png`; the same preferences give the same bytes."""
    groups: dict[tuple[str, str], list[Preference]] = {}
    for found in preferences:
        groups.setdefault((found.first, found.second), []).append(found)
    heights = [len(group) for group in groups.values()]
    # Text as text: searchable, and in a font that the reader has.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "preferences", "font.size": 10}):
        figure = Figure(figsize=(7.5, 0.5 + sum(0.42 * height + 0.75 for height in heights)), layout="constrained")
        all_axes = figure.subplots(len(groups), 1, sharex=True, height_ratios=heights, squeeze=False)
        for axes, ((first, second), group) in zip(all_axes[:, 0], groups.items()):
            _group(axes, group)
            names = (f"{labels.get(first, first)} better", "equally good", f"{labels.get(second, second)} better")
            axes.legend(
                names, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.1, fontsize=9
            )
        all_axes[-1, 0].set_xlabel("share of ratings (%)")
        paths = [folder / "preferences.svg", folder / "preferences.png"]
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], dpi=160, metadata={"Software": None})
    return paths


def _group(axes: mpl.axes.Axes, group: Sequence[Preference]) -> None:
    rows = range(len(group))
    starts = [0.0] * len(group)
    for part, colour, ink in zip(range(3), COLOURS, INKS):
        shares = [100 * found.shares[part] for found in group]
        axes.barh(rows, shares, left=starts, height=0.72, color=colour, edgecolor="white", linewidth=1)
        for row, start, share in zip(rows, starts, shares):
            if share > 100 * _ROOM:
                axes.text(start + share / 2, row, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=9)
        starts = [start + share for start, share in zip(starts, shares)]
    axes.set_yticks(rows, [f"{found.title} ({found.prompts})" for found in group])
    axes.set_ylim(len(group) - 0.5, -0.5)  # downwards
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
