"""From a finished evaluation to what people read: report.html, results.json, results.csv, results.md, prompts.csv,
grid.png.

The page is one file that opens from disk without a network: plots, tables, and a small picture of every prompt and
method at one noise stand inside; larger ones and the other noises are links to the files beside it. The prompts shown
at once are taken at even distances through each set, never by score; those chosen by score stand apart and say so.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptist.cluster.metrics import METRICS as METRICS_FILE
from promptist.cluster.metrics import read_metrics
from promptist.cluster.run_folder import write_atomically
from promptist.evaluation import live
from promptist.evaluation.charts import over_kl, reward_figures
from promptist.evaluation.curves import kind_of, plots
from promptist.evaluation.explorer import explorer
from promptist.evaluation.gallery import (
    CASES_PER_SET,
    Evaluation,
    cases,
    changes,
    columns,
    extremes,
    unselected,
    write_grid,
)
from promptist.evaluation.methods import label
from promptist.evaluation.page import asset, render
from promptist.evaluation.paper import gain_table, order_of_gains
from promptist.evaluation.statistics import analyse
from promptist.evaluation.table import MEASUREMENTS, read_table
from promptist.evaluation.tables import csv_text, difference_table, length_table, level_table, markdown, text_table
from promptist.evaluation.words import count, number, signed, summary

META = "evaluation.json"
"""Beside the table, for people: what stands in its metadata too."""

Runs = Mapping[str, Sequence[str | Path]]


def read_evaluation(folder: Path, page: Path | None = None) -> Evaluation:
    """The evaluation in `folder`, to be shown by a page in `page` (by default the same). UserError where `folder` holds
    no finished evaluation."""
    table = read_table(folder)
    return Evaluation(folder, table, analyse(table, int(table.meta.get("seed", 0))), page or folder)


def build_report(eval_folder: str | Path, runs: Runs | None = None, out: str | Path | None = None) -> Path:
    """Write the report of `eval_folder` into the folder `out` (by default the same); returns the path of
    report.html.

    `runs` maps methods to the run folders, one for each training, whose curves are shown; by default the ones that the
    evaluation noted. A run without metrics is left out of the page with a word that it is. Raises
    UserError as `read_evaluation`.
    """
    folder = Path(eval_folder)
    out = Path(out) if out is not None else folder
    evaluation = read_evaluation(folder, out)
    out.mkdir(parents=True, exist_ok=True)
    results = evaluation.results
    if runs is None:
        runs = evaluation.table.meta.get("runs", {})

    write_atomically(out / "results.json", json.dumps(results.as_json(), indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "results.csv", csv_text(results))
    write_atomically(out / "results.md", markdown(results))
    write_atomically(out / "prompts.csv", prompts_csv(evaluation))
    write_grid(out / "grid.png", evaluation)
    write_atomically(out / "report.html", render("report.html", _content(evaluation, runs)))
    return out / "report.html"


def write_report(folder: str | Path) -> Path:
    """`promptist report FOLDER`: write the page of what `folder` holds (again), a finished evaluation, or an SFT or PPO
    run that may still be going on; returns the full path of report.html.

    Raises UserError where it holds neither.
    """
    folder = Path(folder)
    if (folder / MEASUREMENTS).is_file():
        return build_report(folder).resolve()
    return live.write_live(folder)


def prompts_csv(evaluation: Evaluation) -> str:
    """A row for every prompt, method and training: what was painted, and the means over its pictures."""
    table, metrics = evaluation.table, evaluation.table.metrics
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["prompt", "set", "method", "replica", "rewrite", *metrics])
    means = {}
    for metric in metrics:
        for method in table.methods:
            scores = table.scores(metric, method)
            for prompt, row in zip(scores.prompts, scores.values, strict=True):
                for replica, value in zip(table.replicas(method), row, strict=True):
                    means[prompt, method, replica, metric] = repr(float(value))
    for text in table.texts:
        key = (text.prompt, text.method, text.replica)
        values = [means.get((*key, metric), "") for metric in metrics]
        writer.writerow([text.prompt, text.set, text.method, text.replica, text.rewrite, *values])
    return out.getvalue()


_PICTURES_NOTE = (
    "All pictures of one prompt start from the same noise, so only the text differs. The prompts are taken at even "
    "distances through each set, not chosen by score. Words that the user did not write are coloured."
)


_OVER_KL_NOTE = (
    "Each point is a checkpoint of the run, marked with its step, on all prompts; left is the SFT model. The first "
    "plot shows what training optimises, the others scorers that training never saw: where they part, the policy "
    "pleases the scorer instead of the user."
)
_TABLES = (
    (
        "Levels", level_table,
        "Means over prompts and trainings. Below a mean: the change against the user input, paired, with its corrected "
        "95 % interval; bold where it excludes 0.",
    ),
    ("Differences", difference_table, "Paired, with corrected 95 % intervals; bold where one excludes 0."),
    (
        "Texts", text_table,
        "What rewrites keep of the user's words, how alike their additions are, how long they are. The top addition is "
        "the most frequent one as an unordered set of modifiers, self-BLEU the mean over rewrites against the others.",
    ),
    ("Reward by length of the user's prompt", length_table, "In GPT-2 tokens, over all sets."),
)  # fmt: skip


def _content(evaluation: Evaluation, runs: Runs) -> dict[str, Any]:
    results, meta = evaluation.results, evaluation.table.meta
    curves, without = _curves(runs)
    data, thumbnails = explorer(evaluation)
    images = max(v.images for v in results.levels)
    return {
        "title": "What the prompt optimiser learnt",
        "subtitle": f"{count(len(evaluation.table.set_of), 'held-out prompt')} in {count(len(results.sets), 'set')}, "
        f"{count(len(evaluation.methods), 'method')}, {count(images, 'picture')} per prompt and method.",
        "summary": summary(results),
        "figures": reward_figures(evaluation),
        "figures_note": "Means over prompts and trainings. Gains with 95 % intervals, corrected for all comparisons.",
        "tables": _tables(evaluation),
        "over_kl": over_kl(evaluation),
        "over_kl_note": _OVER_KL_NOTE,
        "pictures_note": _PICTURES_NOTE,
        "cases": cases(evaluation, unselected(evaluation, CASES_PER_SET)),
        "extremes": _extremes(evaluation),
        "extremes_note": _extremes_note(evaluation),
        "columns": len(columns(evaluation)),
        "curves": curves,
        "how": _how(evaluation, images, without),
        "origin": f"Evaluation {evaluation.folder.resolve().name}, seed {meta.get('seed', 0)}, "
        f"prompt set {str(meta.get('prompts', '?'))[:12]}, painter {str(meta.get('painter', '?'))[:12]}; "
        f"all single measurements are in {MEASUREMENTS}, all intervals in results.csv, all texts in prompts.csv.",
        "data": data,
        "thumbnails": thumbnails,
        "script": asset("explorer.js"),
    }


def _tables(evaluation: Evaluation) -> list[dict[str, Any]]:
    levels = [level for level in evaluation.results.levels if level.method in evaluation.methods]
    results = replace(evaluation.results, methods=evaluation.methods, levels=levels)
    found: list[dict[str, Any]] = []
    gains = gain_table(results)
    if gains:
        note = " ".join(filter(None, (order_of_gains(results, m) for m in ("sft", evaluation.main) if m)))
        intervals = (
            "Below a gain: its corrected 95 % interval, bold where it excludes 0. The paper's rewards are those of "
            "other models: signs and order can be compared, sizes cannot. "
        )
        found.append({"title": "Gains in reward, next to the paper's", "note": intervals + note, **gains})
    made = [{"title": title, "note": note, **table(results)} for title, table, note in _TABLES]
    return found + [table for table in made if table["groups"]]


def _extremes(evaluation: Evaluation) -> list[dict[str, Any]]:
    best, worst = extremes(evaluation)
    if not best or evaluation.main is None:
        return []
    change = changes(evaluation, evaluation.main)
    groups = (f"Best: where {label(evaluation.main)} gained most", best), ("Worst: where it lost most", worst)
    return [
        {"title": title, "cases": cases(evaluation, found, {x: f"reward {signed(change[x])}" for x in found})}
        for title, found in groups
    ]


def _extremes_note(evaluation: Evaluation) -> str:
    return (
        f"Chosen by score, unlike the pictures above: the prompts with the largest change of the mean reward from the "
        f"user input to {label(evaluation.main or '')} in either direction. They show what is possible, not what is "
        "usual."
    )


def _how(evaluation: Evaluation, images: int, without: list[str]) -> list[str]:
    meta = evaluation.table.meta
    paragraphs = []
    if "terms" in meta:
        terms = meta["terms"]
        paragraphs.append(
            f"Reward of a prompt: the mean over its {count(images, 'picture')} of (aesthetic of the rewrite's "
            "picture − aesthetic of the plain prompt's picture) + relevance, with relevance = "
            f"min({terms['slope']:g} · cosine − {terms['offset']:g}, 0). The cosine always compares a picture "
            "with what the user wrote, never with the rewrite."
        )
    if meta.get("decoder"):
        who = "Every model rewrites with the decoder of “promptist optimize”: "
        paragraphs.append(who + _decoder(meta["decoder"]))
    paragraphs += [
        "The evaluation's noises are disjoint from those of training.",
        "Differences are taken prompt by prompt on the prompts that both methods have, and training by training where "
        "both were trained several times. A difference is called sure where Student's t and a bootstrap over prompts "
        "and trainings, both corrected for the number of comparisons, exclude 0. Where a method was trained once only, "
        "the intervals do not tell how it would vary with another training seed.",
    ]
    if without:
        paragraphs.append("No training curves: " + "; ".join(without) + ".")
    return paragraphs


def _decoder(settings: Mapping[str, Any]) -> str:
    decoding = settings["decoding"]
    words = [decoding["method"].replace("_", " ") + (" search" if "beam" in decoding["method"] else "")]
    if "beam" in decoding["method"]:
        words += [f"{decoding['beams']} beams", f"length penalty {number(decoding['length_penalty'], 1)}"]
    return ", ".join([*words, f"at most {settings['max_new_tokens']} new tokens."])


def _curves(runs: Runs) -> tuple[list[dict[str, Any]], list[str]]:
    """Plots by method, and a word on each run that has none."""
    found, without = [], []
    for name, folders in runs.items():
        paths = [Path(folder) / METRICS_FILE for folder in folders]
        without += [f"{label(name)} ({path} is missing)" for path in paths if not path.is_file()]
        records = [read_metrics(path) for path in paths if path.is_file()]
        drawn = plots(kind_of(records[0]), records, label(name)) if records else []
        if drawn:
            found.append({"name": label(name), "plots": drawn})
        elif records:
            without.append(f"{label(name)} (no known metric in {paths[0]})")
    return found, without
