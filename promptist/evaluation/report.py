"""From a finished evaluation to what people read: report.html, results.json, results.csv, results.md, grid.png.

The page is self-contained: pictures and plots stand inside the file, which opens from disk without a network. The prompts
that are shown are taken at even distances through each set, never by score.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from promptist.cluster.metrics import METRICS as METRICS_FILE
from promptist.cluster.metrics import read_metrics
from promptist.cluster.run_folder import write_atomically
from promptist.errors import UserError
from promptist.evaluation.evaluate import META, TABLE, read_table
from promptist.evaluation.figures import Cell, Series, curve_svg, save_grid
from promptist.evaluation.methods import label
from promptist.evaluation.page import render
from promptist.evaluation.statistics import (
    ALL,
    METRICS,
    RESAMPLES,
    Difference,
    Level,
    Results,
    Row,
    analyse,
    default_pairs,
    prompt_scores,
)
from promptist.evaluation.words import MINUS, number, percent, signed, summary, whole

CASES_PER_SET = 8
PICTURES_PER_CASE = 2
GRID_ROWS = 6
THUMBNAIL = 256  # pixels: larger pictures are embedded smaller, the originals stay beside the report

# (title, key in metrics.jsonl, key of a second line)
_SFT_CURVES = [("Loss", "loss", "valid_loss")]
_PPO_CURVES = [
    ("Reward", "reward", None),
    ("Aesthetic", "aesthetic", None),
    ("Relevance", "relevance", None),
    ("KL to SFT (nats per rewrite)", "kl", None),
    ("Length of the rewrite (tokens)", "length", None),
]
_CURVES = {"sft": _SFT_CURVES, "ppo": _PPO_CURVES}


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, read from its folder."""

    folder: Path
    rows: list[Row]
    meta: dict[str, Any]
    results: Results
    rewards: dict[tuple[str, str], float]  # by method and prompt


def read_evaluation(folder: Path) -> Evaluation:
    """UserError where `folder` holds no finished evaluation."""
    rows = read_table(folder / TABLE)
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        terms, seed = meta["terms"], meta["seed"]
        slope, offset = float(terms["slope"]), float(terms["offset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / META} is missing or damaged ({error!r}): run jobs.evaluate again") from None
    results = analyse(rows, slope, offset, seed)
    rewards = {(s.method, s.prompt): s.values["reward"] for s in prompt_scores(rows, slope, offset)}
    return Evaluation(folder, rows, meta, results, rewards)


def build_report(
    eval_folder: str | Path, runs: Mapping[str, str | Path] | None = None, out: str | Path | None = None
) -> Path:
    """Write the report of `eval_folder` into the folder `out` (by default the same); returns the path of report.html.

    `runs` maps "sft" and "ppo" to the run folders whose training curves are shown; by default the ones that the evaluation
    noted. A run without metrics is left out of the page with a word that it is. Raises UserError as `read_evaluation`.
    """
    evaluation = read_evaluation(Path(eval_folder))
    out = Path(out) if out is not None else evaluation.folder
    out.mkdir(parents=True, exist_ok=True)
    results = evaluation.results
    if runs is None:
        runs = evaluation.meta.get("runs", {})

    write_atomically(out / "results.json", json.dumps(results.as_json(), indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "results.csv", _csv(results))
    write_atomically(out / "results.md", markdown(results))
    _write_grid(out / "grid.png", evaluation)
    write_atomically(out / "report.html", render(_content(evaluation, runs)))
    return out / "report.html"


def report_path(folder: str | Path) -> Path:
    """Build (again) the report of an evaluation folder for `promptist report FOLDER`; returns where it is."""
    return build_report(folder).resolve()


# ------------------------------------------------------------------------------------------------- tables


def _csv(results: Results) -> str:
    """Long format: one line per (set, method, baseline, metric); levels have an empty baseline and no interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        "set method baseline metric prompts mean t_low t_high bootstrap_low bootstrap_high sure".split()
    )
    for level in results.levels:
        extra = {"empty_rewrites": level.empty, "distinct_rewrites": level.distinct}
        for metric, value in {**level.means, **extra}.items():
            writer.writerow([level.set, level.method, "", metric, level.prompts, repr(value), "", "", "", "", ""])
    for d in results.differences:
        ends = [repr(v) for v in (d.t.low, d.t.high, d.bootstrap.low, d.bootstrap.high)]
        writer.writerow([d.set, d.method, d.baseline, d.metric, d.prompts, repr(d.mean), *ends, str(d.sure).lower()])
    return out.getvalue()


def markdown(results: Results) -> str:
    """Two tables for a README: levels by method and set, and the paired differences of the reward."""
    lines = ["| set | method | reward | aesthetic | relevance | CLIP cosine |", "| --- | --- | --- | --- | --- | --- |"]
    for name in _groups(results):
        for level in (v for v in results.levels if v.set == name):
            m = level.means
            lines.append(
                f"| {name} ({level.prompts}) | {label(level.method)} | {number(m['reward'])} | {number(m['aesthetic'])} "
                f"| {number(m['relevance'])} | {number(m['cosine'], 3)} |"
            )
    pairs = default_pairs(results.methods)
    heads = [f"{label(method)} {MINUS} {label(baseline)}" for method, baseline in pairs]
    lines += ["", "| set | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for name in _groups(results):
        cells = []
        for method, baseline in pairs:
            d = results.difference(method, baseline, "reward", name)
            cells.append(f"{signed(d.mean)} {_brackets(d)}" if d else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Reward differences paired by prompt, 95 % intervals in brackets (Student's t).", ""]
    return "\n".join(lines)


def _groups(results: Results) -> list[str]:
    """The sets, the mean over all of them last."""
    return [*results.sets, ALL] if len(results.sets) > 1 else results.sets


def _brackets(d: Difference, digits: int = 2) -> str:
    return "" if math.isnan(d.t.low) else f"[{signed(d.t.low, digits)}, {signed(d.t.high, digits)}]"


def _group_name(results: Results, name: str) -> str:
    prompts = max(v.prompts for v in results.levels if v.set == name)
    return f"{'All sets' if name == ALL else name}: {prompts} prompts"


def _level_table(results: Results) -> dict[str, Any]:
    heads = ["", "Reward", "Aesthetic", "Relevance", "CLIP cosine", "Left as is", "Distinct"]
    groups = []
    for name in _groups(results):
        rows = [
            {"name": _row_name(results, level), "cells": _level_cells(results, level)}
            for level in results.levels
            if level.set == name
        ]
        groups.append({"name": _group_name(results, name), "rows": rows})
    return {"heads": heads, "groups": groups}


def _row_name(results: Results, level: Level) -> str:
    most = max(v.prompts for v in results.levels if v.set == level.set)
    return label(level.method) + ("" if level.prompts == most else f" ({level.prompts} prompts)")


def _level_cells(results: Results, level: Level) -> list[dict[str, Any]]:
    cells = []
    for metric in METRICS:
        digits = 3 if metric == "cosine" else 2
        change = results.difference(level.method, "user", metric, level.set)
        small = f"{signed(change.mean, digits)} {_brackets(change, digits)}" if change else ""
        sure = bool(change and change.sure)
        cells.append({"text": number(level.means[metric], digits), "small": small, "sure": sure})
    own = level.method in ("user", "human")
    for share in (level.empty, level.distinct):
        cells.append({"text": "" if own else percent(share), "small": "", "sure": False})
    return cells


def _difference_table(results: Results) -> dict[str, Any]:
    """Only pairs without the user input: those stand in the level table already."""
    pairs = [(m, b) for m, b in default_pairs(results.methods) if b != "user"]
    groups = []
    for name in _groups(results) if pairs else ():
        rows = []
        for method, baseline in pairs:
            cells = []
            for metric in METRICS:
                d = results.difference(method, baseline, metric, name)
                digits = 3 if metric == "cosine" else 2
                cells.append(
                    {"text": signed(d.mean, digits), "small": _brackets(d, digits), "sure": d.sure}
                    if d
                    else {"text": "–", "small": "", "sure": False}
                )
            rows.append({"name": f"{label(method)} {MINUS} {label(baseline)}", "cells": cells})
        groups.append({"name": _group_name(results, name), "rows": rows})
    return {"heads": ["", "Reward", "Aesthetic", "Relevance", "CLIP cosine"], "groups": groups}


# ------------------------------------------------------------------------------------------------- pictures


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


def _cases(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows_of = _by_prompt(evaluation.rows)
    return [
        {
            "prompt": prompt,
            "set": rows_of[prompt][0].set,
            "methods": [_case_method(evaluation, method, rows_of[prompt]) for method in evaluation.results.methods],
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
        return {"label": label(method), "score": "", "absent": "This prompt has none.", "pictures": [], "words": []}
    pictures = [
        {
            "src": _data_uri(evaluation.folder / row.picture),
            "alt": f"{label(method)}, noise {row.k}: picture painted from “{row.rewrite or row.prompt}”",
            "caption": f"aesthetic {number(row.aesthetic)} · cosine {number(row.cosine, 3)}",
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


def _write_grid(path: Path, evaluation: Evaluation) -> None:
    """The compact grid for a README: the four usual methods (else the first four), `GRID_ROWS` prompts over the sets."""
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
    return Cell(evaluation.folder / row.picture, text, f"aesthetic {row.aesthetic:.2f}, cosine {row.cosine:.2f}")


# ------------------------------------------------------------------------------------------------- the page


def _content(evaluation: Evaluation, runs: Mapping[str, str | Path]) -> dict[str, Any]:
    results, meta = evaluation.results, evaluation.meta
    curves, without = _curves(runs)
    group = whole(results)
    prompts = max(v.prompts for v in results.levels if v.set == group)
    images = meta["images"]
    return {
        "title": "What the prompt optimiser learnt",
        "subtitle": f"{prompts} held-out prompts in {len(results.sets)} set{'s' if len(results.sets) > 1 else ''}, "
        f"{len(results.methods)} methods, {images} picture{'s' if images > 1 else ''} per prompt and method.",
        "summary": summary(results),
        "levels": _level_table(results),
        "differences": _difference_table(results),
        "pictures_note": "All pictures of one prompt and place start from the same noise, so only the text differs. The prompts "
        "are taken at even distances through each set, not chosen by score. Words that the user did not write are coloured.",
        "cases": _cases(evaluation),
        "curves": curves,
        "how": _how(evaluation, without),
        "origin": f"Evaluation {evaluation.folder.name}, seed {meta['seed']}, prompt set {meta['prompts'][:12]}, "
        f"painter {str(meta['painter'])[:12]}; all single measurements are in {TABLE}, all intervals in results.csv.",
    }


def _how(evaluation: Evaluation, without: list[str]) -> list[str]:
    terms, images = evaluation.meta["terms"], evaluation.meta["images"]
    paragraphs = [
        f"Reward of a prompt: the mean over its {images} pictures of (aesthetic of the rewrite's picture − aesthetic of the plain "
        f"prompt's picture) + relevance, with relevance = min({terms['slope']:g} · cosine − {terms['offset']:g}, 0). The cosine "
        "always compares a picture with what the user wrote, never with the rewrite.",
        "Every model rewrites with the decoder of “promptist optimize”: beam search, 8 beams, length penalty −1, up to 75 new "
        "tokens. The evaluation's noises are disjoint from those of training.",
        "Differences are taken prompt by prompt on the prompts that both methods have. Intervals are for the mean "
        f"difference: Student's t and a BCa bootstrap over prompts ({RESAMPLES} resamples, seeded). They tell how far the result "
        "depends on the choice of prompts, not how it would vary with another training seed, and are not corrected for the "
        "number of comparisons.",
    ]
    if without:
        paragraphs.append("No training curves: " + "; ".join(without) + ".")
    return paragraphs


def _curves(runs: Mapping[str, str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Plots by run, and a word on each run that has none."""
    found, without = [], []
    for name, folder in runs.items():
        path = Path(folder) / METRICS_FILE
        if not path.is_file():
            without.append(f"{label(name)} ({path} is missing)")
            continue
        records = read_metrics(path)
        plots = []
        for title, key, second in _CURVES[name]:
            lines = [_series(records, key, "train" if second else ""), _series(records, second, "validation") if second else None]
            kept = [line for line in lines if line is not None and line.x]
            if kept:
                step = "optimiser step" if name == "sft" else "iteration"
                plots.append(curve_svg(f"{label(name)}: {title}", step, kept))
        if plots:
            found.append({"name": label(name), "plots": plots})
        else:
            without.append(f"{label(name)} (no known metric in {path})")
    return found, without


def _series(records: Sequence[Mapping[str, Any]], key: str, name: str) -> Series:
    points = [(float(r["step"]), float(r[key])) for r in records if isinstance(r.get(key), (int, float))]
    return Series([x for x, _ in points], [y for _, y in points], name)
