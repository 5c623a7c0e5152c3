"""The pictures that a report shows at once: which prompts, with what beside them; and the grid for a README."""

from __future__ import annotations

import os
import posixpath
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from promptist.evaluation.figures import Cell, save_grid
from promptist.evaluation.methods import label
from promptist.evaluation.page import marked
from promptist.evaluation.results import METRICS, Results, held_out
from promptist.evaluation.table import Table
from promptist.evaluation.thumbnails import data_uri, spread
from promptist.evaluation.words import digits_of, metric_name, number, signed

CASES_PER_SET = 3
EXTREMES = 6
COLUMNS = 5
GRID_ROWS = 6


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, read from its folder. `page` is the folder its report is written to."""

    folder: Path
    table: Table
    results: Results
    page: Path

    @cached_property
    def methods(self) -> list[str]:
        """Rows of the comparison; checkpoints of a run are a curve, not rows."""
        return [m for m in self.table.methods if "@" not in m]

    @cached_property
    def main(self) -> str | None:
        """The method that the evaluation is about: PPO, else its first variant, else the last row that rewrites."""
        ppo = [m for m in self.methods if m == "ppo" or m.startswith("ppo-")]
        others = [m for m in self.methods if m not in ("user", "human")]
        return "ppo" if "ppo" in ppo else ppo[0] if ppo else others[-1] if others else None

    @cached_property
    def scores(self) -> dict[str, int]:
        """Scores of a picture that the page shows, with digits: the training's own and the main one of each held-out
        scorer."""
        metrics = self.table.metrics
        return {m: digits_of(m) for m in [*(m for m in METRICS if m in metrics), *held_out(metrics)]}

    @cached_property
    def paths(self) -> dict[tuple[str, str, int], dict[int, str]]:
        """(prompt, method, replica) -> seed -> path below the evaluation folder."""
        found: dict[tuple[str, str, int], dict[int, str]] = {}
        for picture in self.table.pictures:
            found.setdefault((picture.prompt, picture.method, picture.replica), {})[picture.seed] = picture.path
        return found

    @cached_property
    def rewrites(self) -> dict[tuple[str, str, int], str]:
        return {(t.prompt, t.method, t.replica): t.rewrite for t in self.table.texts}

    @cached_property
    def rewards(self) -> dict[str, dict[str, float]]:
        """method -> prompt -> mean reward over its pictures and trainings."""
        found = {}
        for method in self.methods:
            scores = self.table.scores("reward", method)
            found[method] = dict(zip(scores.prompts, np.mean(scores.values, axis=1).tolist(), strict=True))
        return found

    @cached_property
    def root(self) -> str:
        """How the page's links reach the evaluation folder: empty, or a relative path with / at its end."""
        way = os.path.relpath(self.folder.resolve(), self.page.resolve()).replace(os.sep, "/")
        return "" if way == "." else way + "/"

    def link(self, path: str) -> str:
        return urllib.parse.quote(posixpath.join(self.root, path))

    def value(self, metric: str, prompt: str, method: str, replica: int, seed: int) -> float | None:
        try:
            return self.table.value(metric, method, prompt, replica, seed)
        except KeyError:
            return None


def unselected(evaluation: Evaluation, per_set: int) -> list[str]:
    """Prompts to show, set after set, at even distances through each; only ones of which pictures were kept."""
    painted = dict.fromkeys(prompt for prompt, _, _ in evaluation.paths)
    of_sets: dict[str, list[str]] = {name: [] for name in evaluation.table.sets}
    for prompt, name in evaluation.table.set_of.items():
        if prompt in painted:
            of_sets[name].append(prompt)
    return [prompt for prompts in of_sets.values() for prompt in spread(prompts, per_set)]


def changes(evaluation: Evaluation, method: str) -> dict[str, float]:
    """prompt -> mean reward of `method` less that of the user input."""
    user = evaluation.rewards["user"]
    return {x: value - user[x] for x, value in evaluation.rewards[method].items()}


def extremes(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """The prompts with the best and with the worst change of reward of the main method, from the extreme on; none
    stands in both. Only ones of which the main method's pictures were kept."""
    if evaluation.main is None:
        return [], []
    painted = {prompt for prompt, method, _ in evaluation.paths if method == evaluation.main}
    order = [x for x, _ in sorted(changes(evaluation, evaluation.main).items(), key=lambda c: -c[1]) if x in painted]
    count = min(EXTREMES, len(order) // 2)
    return order[:count], order[len(order) - count :][::-1]


def columns(evaluation: Evaluation) -> list[str]:
    """The methods of the grids: user input, human-engineered, SFT, PPO and its variants, as far as they are there."""
    usual = [m for m in evaluation.methods if m in ("user", "human", "sft", "ppo") or m.startswith("ppo-")]
    return (usual if len(usual) > 1 else evaluation.methods)[:COLUMNS]


def cases(
    evaluation: Evaluation, prompts: Sequence[str], notes: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What the template shows of each prompt; `notes` beside some."""
    return [
        {
            "prompt": prompt,
            "set": evaluation.table.set_of[prompt],
            "note": (notes or {}).get(prompt, ""),
            "methods": [_method(evaluation, method, prompt) for method in columns(evaluation)],
        }
        for prompt in prompts
    ]


def _method(evaluation: Evaluation, method: str, prompt: str) -> dict[str, Any]:
    replica = next((r for r in evaluation.table.replicas(method) if (prompt, method, r) in evaluation.rewrites), None)
    found: dict[str, Any] = {"label": label(method), "absent": "", "picture": None, "words": []}
    if replica is None:
        return {**found, "absent": "This prompt has none."}
    rewrite = evaluation.rewrites[prompt, method, replica]
    found["words"] = marked(prompt, prompt if method == "user" else rewrite)
    paths = evaluation.paths.get((prompt, method, replica))
    if not paths:
        return {**found, "absent": "No picture was kept."}
    seed = min(paths)
    return {**found, "picture": {
        "src": data_uri(evaluation.folder / paths[seed]),
        "href": evaluation.link(paths[seed]),
        "alt": f"{label(method)}, noise {seed}: picture painted from “{rewrite or prompt}”",
        "caption": _caption(evaluation, prompt, method, replica, seed),
    }}  # fmt: skip


def _caption(evaluation: Evaluation, prompt: str, method: str, replica: int, seed: int) -> list[str]:
    words = []
    for metric, digits in evaluation.scores.items():
        value = evaluation.value(metric, prompt, method, replica, seed)
        if value is not None:
            shown = signed(value) if metric.endswith("reward") else number(value, digits)
            words.append(f"{metric_name(metric)} {shown}")
    return words


def write_grid(path: Path, evaluation: Evaluation) -> None:
    """The compact grid for a README: the usual methods, `GRID_ROWS` prompts over the sets."""
    methods = columns(evaluation)[:4]
    shown = unselected(evaluation, -(-GRID_ROWS // len(evaluation.table.sets)))[:GRID_ROWS]
    if not shown:
        return
    cells = [[_cell(evaluation, method, prompt) for method in methods] for prompt in shown]
    part = path.with_name("grid.part.png")
    note = "One noise per row. Prompts at even distances through each set, not chosen by score."
    save_grid(part, [label(m) for m in methods], cells, note)
    os.replace(part, path)


def _cell(evaluation: Evaluation, method: str, prompt: str) -> Cell:
    replica = evaluation.table.replicas(method)[0]
    paths = evaluation.paths.get((prompt, method, replica))
    if not paths:
        return Cell(None, "(none for this prompt)")
    text = prompt if method == "user" else evaluation.rewrites[prompt, method, replica] or "(left as it is)"
    values = [
        f"{name} {value:.2f}"
        for name in ("aesthetic", "cosine")
        if (value := evaluation.value(name, prompt, method, replica, min(paths))) is not None
    ]
    return Cell(evaluation.folder / paths[min(paths)], text, ", ".join(values))
