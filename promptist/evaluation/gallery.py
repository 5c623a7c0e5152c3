"""The pictures that a report shows: which prompts, with what beside them, embedded how."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from promptist.evaluation.figures import Cell, save_grid
from promptist.evaluation.methods import label
from promptist.evaluation.statistics import Results, Row
from promptist.evaluation.words import number, signed

CASES_PER_SET = 8
PICTURES_PER_CASE = 2
GRID_ROWS = 6
THUMBNAIL = 256  # pixels: larger pictures are embedded smaller, the originals stay beside the report


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, read from its folder."""

    folder: Path
    rows: list[Row]
    meta: dict[str, Any]
    results: Results
    rewards: dict[tuple[str, str], float]  # by method and prompt


def spread(items: Sequence[str], count: int) -> list[str]:
    """Up to `count` items at even distances: a choice that looks at no score."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _shown(evaluation: Evaluation, per_set: int) -> list[str]:
    """Prompts to show, set after set; only ones of which pictures were kept."""
    shown: list[str] = []
    for name in evaluation.results.sets:
        prompts = dict.fromkeys(r.prompt for r in evaluation.rows if r.set == name and r.picture)
        shown += spread(list(prompts), per_set)
    return shown


def cases(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows_of = _by_prompt(evaluation.rows)
    return [
        {
            "prompt": prompt,
            "set": rows_of[prompt][0].set,
            "methods": [
                _case_method(evaluation, method, rows_of[prompt]) for method in evaluation.results.methods
            ],
        }
        for prompt in _shown(evaluation, CASES_PER_SET)
    ]


def _by_prompt(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.prompt, []).append(row)
    return found


def _case_method(evaluation: Evaluation, method: str, rows: list[Row]) -> dict[str, Any]:
    own = [r for r in rows if r.method == method]
    if not own:
        return {
            "label": label(method),
            "score": "",
            "absent": "This prompt has none.",
            "pictures": [],
            "words": [],
        }
    pictures = [
        {
            "src": _data_uri(evaluation.folder / row.picture),
            "alt": f"{label(method)}, noise {row.k}: picture painted from “{row.rewrite or row.prompt}”",
            "caption": [f"aesthetic {number(row.aesthetic)}", f"cosine {number(row.cosine, 3)}"],
        }
        for row in own[:PICTURES_PER_CASE]
        if row.picture
    ]
    return {
        "label": label(method),
        "score": f"reward {signed(evaluation.rewards[method, own[0].prompt])}",
        "absent": "",
        "pictures": pictures,
        "words": _words(own[0]),
    }


def _words(row: Row) -> list[dict[str, Any]]:
    """The painted text word by word; what the user did not write is marked."""
    if not row.rewrite:
        return [{"text": "left as it is", "added": False}]
    known = {_bare(word) for word in row.prompt.split()}
    return [{"text": word, "added": _bare(word) not in known} for word in row.rewrite.split()]


def _bare(word: str) -> str:
    return word.strip(",.;:!?\"'()").lower()


def _data_uri(path: Path) -> str:
    with Image.open(path) as picture:
        if max(picture.size) <= THUMBNAIL and picture.format == "PNG":
            return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def write_grid(path: Path, evaluation: Evaluation) -> None:
    """The compact grid for a README: the four usual methods (else the first four), `GRID_ROWS` prompts over
    the sets.
    """
    methods = [m for m in evaluation.results.methods if m in ("user", "human", "sft", "ppo")]
    rows_of = _by_prompt([r for r in evaluation.rows if r.picture and r.k == 0])
    sets = evaluation.results.sets
    shown = _shown(evaluation, -(-GRID_ROWS // len(sets)))[:GRID_ROWS]
    if not shown:
        return
    cells = []
    for prompt in shown:
        of = {r.method: r for r in rows_of[prompt]}
        cells.append([_cell(evaluation, method, of.get(method)) for method in methods])
    part = path.with_name("grid.part.png")
    note = "One noise per row. Prompts at even distances through each set, not chosen by score."
    save_grid(part, [label(m) for m in methods], cells, note)
    os.replace(part, path)


def _cell(evaluation: Evaluation, method: str, row: Row | None) -> Cell:
    if row is None or row.picture is None:
        return Cell(None, "(none for this prompt)")
    text = row.prompt if method == "user" else row.rewrite or "(left as it is)"
    return Cell(
        evaluation.folder / row.picture, text, f"aesthetic {row.aesthetic:.2f}, cosine {row.cosine:.2f}"
    )
