"""Figures of the report as inline SVG, and the picture grid for a README as one PNG.

Built on matplotlib's `Figure` alone, never `pyplot`: no global state, no display.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from promptist.evaluation.thumbnails import load

# Drawn in a colour nobody uses, then renamed, so that text and axes follow the page's light or dark theme.
_INK = "#010203"
# Told apart with every kind of colour vision, on white and on black; the markers differ as well.
_COLOURS = ("#2f7ed8", "#e07b39", "#2a9d74", "#b565a7", "#a8871a", "#7a7f85", "#c8443c")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@dataclass(frozen=True)
class Series:
    """One line of a plot; `name` is for the legend, empty where there is only one line. `marks` are words beside its
    points."""

    x: list[float]
    y: list[float]
    name: str = ""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dots:
    """One method in a plot of rows: `values[i]` belongs to row i, with its interval; None where it has none. `style` is
    its place among colours and markers, the same in all plots of a page."""

    name: str
    values: list[float | None]
    intervals: list[tuple[float, float] | None]
    style: int


def curve_svg(title: str, xlabel: str, series: Sequence[Series]) -> str:
    """An `<svg>` element without outer size, to be scaled by CSS. Noisy lines get a running mean on top of
    themselves.
    """

    def draw(axes: Any) -> None:
        for line, colour in zip(series, _COLOURS, strict=False):
            x, y = np.asarray(line.x), np.asarray(line.y)
            window = len(y) // 12
            if window >= 3 and not line.marks:
                axes.plot(x, y, color=colour, alpha=0.3, linewidth=1)
                y = _running_mean(y, window)
            marker = "o" if len(x) <= 12 or line.marks else None
            axes.plot(x, y, color=colour, linewidth=2, label=line.name, marker=marker, markersize=4)
            for place, mark in enumerate(line.marks):
                axes.annotate(mark, (x[place], y[place]), xytext=(3, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.15, color=_INK)
        if any(line.name for line in series):
            axes.legend(frameon=False, fontsize=9)

    return _svg(title, f"Curve: {title} over {xlabel}", (4.4, 2.7), draw)


def dots_svg(title: str, rows: Sequence[str], dots: Sequence[Dots], described: str) -> str:
    """An `<svg>`: a row for each name, in it a dot with its interval for each method. `described` is its text
    alternative. Rows run downwards, so that it stays readable on a narrow screen."""
    step = 0.8 / max(len(dots), 1)

    def draw(axes: Any) -> None:
        axes.axvline(0, color=_INK, linewidth=0.8, alpha=0.5)
        for i, found in enumerate(dots):
            colour, marker = _COLOURS[found.style % len(_COLOURS)], _MARKERS[found.style % len(_MARKERS)]
            shift = (i - (len(dots) - 1) / 2) * step
            label: str | None = found.name
            for row, (value, ends) in enumerate(zip(found.values, found.intervals, strict=True)):
                if value is None:
                    continue
                if ends is not None:
                    axes.plot(ends, [row + shift] * 2, color=colour, linewidth=1.6, alpha=0.8)
                axes.plot(
                    [value], [row + shift], color=colour, marker=marker, markersize=5, linestyle="none", label=label
                )
                label = None
        for row in range(1, len(rows)):
            axes.axhline(row - 0.5, color=_INK, linewidth=0.6, alpha=0.15)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.15, color=_INK)
        axes.figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, handletextpad=0.2)

    height = 0.9 + 0.16 * -(-len(dots) // 3) + len(rows) * max(0.24, 0.13 * len(dots))
    return _svg(title, described, (4.6, height), draw)


def _svg(title: str, described: str, inches: tuple[float, float], draw: Callable[[Any], None]) -> str:
    style: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
        "svg.hashsalt": title,  # ids that repeat from run to run, and differ from plot to plot of a page
        "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK,
        "xtick.color": _INK, "ytick.color": _INK,
        "font.size": 10,
        "text.parse_math": False,  # a set may be called anything
        "axes.unicode_minus": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r"font: [^;]*?(\d+(?:\.\d+)?)px[^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(described)}" ', 1)


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
                axes.imshow(np.asarray(load(picture)), interpolation="lanczos")
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
