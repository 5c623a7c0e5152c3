"""Figures of the report: training curves as inline SVG, and the picture grid for a README as one PNG.

Built on matplotlib's `Figure` alone, never `pyplot`: no global state, no display.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

# Drawn in a colour nobody uses, then renamed, so that text and axes follow the page's light or dark theme.
_INK = "#010203"
_LINE, _SECOND = "#2f7ed8", "#e07b39"


@dataclass(frozen=True)
class Series:
    """One line of a plot; `name` is for the legend, empty where there is only one line."""

    x: list[float]
    y: list[float]
    name: str = ""


def curve_svg(title: str, xlabel: str, series: Sequence[Series]) -> str:
    """An `<svg>` element without outer size, to be scaled by CSS. Noisy lines get a running mean on top of
    themselves.
    """
    style: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
        "svg.hashsalt": title,  # ids that repeat from run to run, and differ from plot to plot of a page
        "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK,
        "xtick.color": _INK, "ytick.color": _INK,
        "font.size": 10,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        for line, colour in zip(series, (_LINE, _SECOND), strict=False):
            x, y = np.asarray(line.x), np.asarray(line.y)
            window = len(y) // 12
            if window >= 3:
                axes.plot(x, y, color=colour, alpha=0.3, linewidth=1)
                y = _running_mean(y, window)
            marker = "o" if len(x) <= 12 else None
            axes.plot(x, y, color=colour, linewidth=2, label=line.name, marker=marker, markersize=4)
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel(xlabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, color=_INK)
        if any(line.name for line in series):
            axes.legend(frameon=False, fontsize=9)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r"font: [^;]*?(\d+(?:\.\d+)?)px[^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="Curve: {title} over {xlabel}" ', 1)


def _running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over up to `window` neighbours; shorter at the ends instead of padded."""
    half = window // 2
    return np.array([np.mean(y[max(0, i - half) : i + half + 1]) for i in range(len(y))])


@dataclass(frozen=True)
class Cell:
    """One picture of the grid with the text it was painted from; `picture` None leaves a gap with the text
    alone.
    """

    picture: Path | None
    text: str
    score: str = ""


def save_grid(out: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str) -> None:
    """Write the picture grid: one line per prompt, one column per method, each picture with its prompt below
    it.

    Laid out in inches, each row as high as its longest text needs.
    """
    side, gap, line, head, foot = 1.8, 0.1, 0.128, 0.36, 0.24
    texts = [[_caption(cell) for cell in cells] for cells in rows]
    heights = [side + 0.05 + line * max(len(lines) for lines in row) + 0.13 for row in texts]
    width, height = gap + (side + gap) * len(columns), head + sum(heights) + foot
    figure = Figure(figsize=(width, height), facecolor="white")
    for c, name in enumerate(columns):
        left = gap + c * (side + gap)
        figure.text(
            left / width,
            1 - head / 2 / height,
            name,
            va="center",
            fontsize=11,
            fontweight="bold",
            color="#222222",
        )
        top = height - head
        for r, cells in enumerate(rows):
            box = (left / width, (top - side) / height, side / width, side / height)
            picture = cells[c].picture
            if picture is None:
                figure.add_artist(Rectangle(box[:2], *box[2:], facecolor="#f1f1ee", edgecolor="none"))
            else:
                axes = figure.add_axes(box)
                with Image.open(picture) as image:
                    axes.imshow(np.asarray(image.convert("RGB")), interpolation="lanczos")
                axes.set_axis_off()
            figure.text(
                left / width, (top - side - 0.05) / height, "\n".join(texts[r][c]), va="top", fontsize=7,
                color="#333333", linespacing=1.2, parse_math=False,
            )  # fmt: skip
            top -= heights[r]
    figure.text(gap / width, foot / 2 / height, note, va="center", fontsize=7, color="#666666")
    figure.savefig(out, dpi=120, metadata={"Software": None})


def _caption(cell: Cell) -> list[str]:
    text = "".join(c if c.isprintable() else " " for c in cell.text)  # a byte-level model can write anything
    lines = textwrap.wrap(text, 30)
    if len(lines) > 4:
        lines = [*lines[:3], lines[3][:27] + " …"]
    return [*lines, cell.score] if cell.score else lines
