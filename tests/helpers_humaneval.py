"""A small finished evaluation with kept pictures, and raters who answer by a rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from promptist.evaluation.table import Measure, Picture, Table, Text, write_table

SETS = {"in-domain": 8, "captions": 5, "labels": 2}
SIDE = 24


def write_evaluation(
    folder: Path,
    *,
    same: int = 2,
    noises: int = 2,
    sets: dict[str, int] | None = None,
    replicas: int = 2,
    size: Callable[[str], int] = lambda method: SIDE,
) -> Table:
    """User input and `ppo` (`replicas` trainings) on all prompts, `human` on the first set. The first `same` prompts
    were left alone by `ppo`: its pictures are the user's. Each picture is random, and tells its method in its
    metadata."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(5)
    measures, texts, pictures = [], [], []
    sets = sets or SETS
    prompts = [(f"a {name} prompt number {i}", name) for name, count in sets.items() for i in range(count)]
    for number, (prompt, name) in enumerate(prompts):
        rows = [("user", 0), *(("ppo", r) for r in range(replicas))]
        rows += [("human", 0)] if name == next(iter(sets)) else []
        for method, replica in rows:
            left = method == "user" or (method == "ppo" and number < same)
            texts.append(Text(prompt, name, method, replica, "" if left else f"{prompt}, {method} style"))
            for noise in range(noises):
                path = f"images/{method}-{replica}-{number}-{noise}.png"
                side = size(method)
                pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
                if left and method != "user":
                    pixels = np.asarray(Image.open(folder / f"images/user-0-{number}-{noise}.png"))
                (folder / "images").mkdir(exist_ok=True)
                info = PngImagePlugin.PngInfo()
                info.add_text("Title", f"{method} {replica}")
                Image.fromarray(pixels).save(folder / path, pnginfo=info)
                pictures.append(Picture(prompt, method, replica, noise, path))
                measures.append(Measure(prompt, name, method, replica, noise, "reward", float(noise)))
    table = Table(measures, texts, pictures)
    write_table(folder, table)
    return table


def answer(study: Any, rater: int, choose: Callable[[Any, Any], str]) -> dict[str, Any]:
    """What the page saves for a rater who answers `choose(pair, showing) -> left | right | equal`."""
    pairs = {pair.id: pair for pair in study.pairs}
    order = study.orders[rater - 1]
    answers = [
        {"pair": s.pair, "left": s.left, "right": s.right, "choice": choose(pairs[s.pair], s), "ms": 1500}
        for s in order
    ]
    return {
        "format": "promptist-humaneval-ratings", "version": 1, "study": study.hash, "rater": rater,
        "started": "2026-01-01T00:00:00.000Z", "saved": "2026-01-01T00:10:00.000Z", "answers": answers,
    }  # fmt: skip


def prefer(pair: Any, showing: Any, method: str | None) -> str:
    """The choice of a rater who likes `method` (None: neither)."""
    if method is None:
        return "equal"
    wanted = pair.pictures[0] if method == pair.first else pair.pictures[1]
    return "left" if showing.left == wanted else "right"


def save(path: Path, found: dict[str, Any]) -> Path:
    path.write_text(json.dumps(found))
    return path
