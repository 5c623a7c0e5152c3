"""From a finished evaluation to what people read: report.html, results.json, results.csv, results.md,
grid.png.

The page is self-contained: pictures and plots stand inside the file, which opens from disk without a network.
The prompts that are shown are taken at even distances through each set, never by score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptist.cluster.metrics import METRICS as METRICS_FILE
from promptist.cluster.metrics import read_metrics
from promptist.cluster.run_folder import write_atomically
from promptist.errors import UserError
from promptist.evaluation.evaluate import TABLE, read_table
from promptist.evaluation.figures import Series, curve_svg
from promptist.evaluation.gallery import Evaluation, cases, write_grid
from promptist.evaluation.methods import label
from promptist.evaluation.page import render
from promptist.evaluation.statistics import RESAMPLES, analyse, prompt_scores
from promptist.evaluation.tables import csv_text, difference_table, level_table, markdown
from promptist.evaluation.words import number, summary, whole

META = "evaluation.json"
"""Beside the table: what its reader must know, written by jobs.evaluate."""

# Plots by run: title, and the lines as key in metrics.jsonl -> name in the legend.
_SFT_CURVES = [("loss (nats per token)", {"loss": "train", "valid/loss": "validation"})]
_PPO_CURVES = [
    ("reward", {"score": "score", "reward": "with the KL penalty"}),
    ("aesthetic gain", {"aesthetic": ""}),
    ("relevance", {"relevance": ""}),
    ("KL to SFT (nats per rewrite)", {"kl": ""}),
    ("length of the rewrite (tokens)", {"length": ""}),
    ("score on the validation prompts", {"valid/score": ""}),
]
_CURVES = {"sft": _SFT_CURVES, "ppo": _PPO_CURVES}


def read_evaluation(folder: Path) -> Evaluation:
    """UserError where `folder` holds no finished evaluation."""
    rows = read_table(folder / TABLE)
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        terms, seed = meta["terms"], meta["seed"]
        slope, offset = float(terms["slope"]), float(terms["offset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / META} is missing or damaged ({error!r}): run jobs.evaluate again"
        ) from None
    results = analyse(rows, slope, offset, seed)
    rewards = {(s.method, s.prompt): s.values["reward"] for s in prompt_scores(rows, slope, offset)}
    return Evaluation(folder, rows, meta, results, rewards)


def build_report(
    eval_folder: str | Path, runs: Mapping[str, str | Path] | None = None, out: str | Path | None = None
) -> Path:
    """Write the report of `eval_folder` into the folder `out` (by default the same); returns the path of
    report.html.

    `runs` maps "sft" and "ppo" to the run folders whose training curves are shown; by default the ones that
    the evaluation noted. A run without metrics is left out of the page with a word that it is. Raises
    UserError as `read_evaluation`.
    """
    evaluation = read_evaluation(Path(eval_folder))
    out = Path(out) if out is not None else evaluation.folder
    out.mkdir(parents=True, exist_ok=True)
    results = evaluation.results
    if runs is None:
        runs = evaluation.meta.get("runs", {})

    write_atomically(out / "results.json", json.dumps(results.as_json(), indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "results.csv", csv_text(results))
    write_atomically(out / "results.md", markdown(results))
    write_grid(out / "grid.png", evaluation)
    write_atomically(out / "report.html", render(_content(evaluation, runs)))
    return out / "report.html"


def write_report(folder: str | Path) -> Path:
    """`promptist report FOLDER`: write the report of an evaluation folder (again); returns the full path of
    report.html.
    """
    return build_report(folder).resolve()


_PICTURES_NOTE = (
    "All pictures of one prompt and place start from the same noise, so only the text differs. The prompts "
    "are taken at even distances through each set, not chosen by score. Words that the user did not write "
    "are coloured."
)


def _content(evaluation: Evaluation, runs: Mapping[str, str | Path]) -> dict[str, Any]:
    results, meta = evaluation.results, evaluation.meta
    curves, without = _curves(runs)
    group = whole(results)
    prompts = max(v.prompts for v in results.levels if v.set == group)
    return {
        "title": "What the prompt optimiser learnt",
        "subtitle": f"{prompts} held-out prompts in {_count(len(results.sets), 'set')}, "
        f"{_count(len(results.methods), 'method')}, "
        f"{_count(meta['images'], 'picture')} per prompt and method.",
        "summary": summary(results),
        "levels": level_table(results),
        "differences": difference_table(results),
        "pictures_note": _PICTURES_NOTE,
        "cases": cases(evaluation),
        "columns": min(len(results.methods), 5),
        "curves": curves,
        "how": _how(evaluation, without),
        "origin": f"Evaluation {evaluation.folder.name}, seed {meta['seed']}, "
        f"prompt set {meta['prompts'][:12]}, painter {meta['painter'][:12]}; "
        f"all single measurements are in {TABLE}, all intervals in results.csv.",
    }


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _how(evaluation: Evaluation, without: list[str]) -> list[str]:
    terms, images = evaluation.meta["terms"], evaluation.meta["images"]
    decoder = evaluation.meta.get("decoder")
    paragraphs = [
        f"Reward of a prompt: the mean over its {_count(images, 'picture')} of (aesthetic of the rewrite's "
        "picture − aesthetic of the plain prompt's picture) + relevance, with relevance = "
        f"min({terms['slope']:g} · cosine − {terms['offset']:g}, 0). The cosine always compares a picture "
        "with what the user wrote, never with the rewrite.",
        "The evaluation's noises are disjoint from those of training.",
        "Differences are taken prompt by prompt on the prompts that both methods have. Intervals are for the "
        f"mean difference: Student's t and a BCa bootstrap over prompts ({RESAMPLES} resamples, seeded). "
        "They tell how far the result depends on the choice of prompts, not how it would vary with another "
        "training seed, and are not corrected for the number of comparisons.",
    ]
    if decoder:
        who = "Every model rewrites with the decoder of “promptist optimize”: "
        paragraphs.insert(1, who + _decoder(decoder))
    if without:
        paragraphs.append("No training curves: " + "; ".join(without) + ".")
    return paragraphs


def _decoder(settings: Mapping[str, Any]) -> str:
    decoding = settings["decoding"]
    words = [decoding["method"].replace("_", " ") + (" search" if "beam" in decoding["method"] else "")]
    if "beam" in decoding["method"]:
        words += [f"{decoding['beams']} beams", f"length penalty {number(decoding['length_penalty'], 1)}"]
    return ", ".join([*words, f"at most {settings['max_new_tokens']} new tokens."])


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
        for title, keys in _CURVES[name]:
            lines = [line for key, legend in keys.items() if (line := _series(records, key, legend)).x]
            if lines:
                step = "optimiser step" if name == "sft" else "iteration"
                plots.append(curve_svg(f"{label(name)}: {title}", step, lines))
        if plots:
            found.append({"name": label(name), "plots": plots})
        else:
            without.append(f"{label(name)} (no known metric in {path})")
    return found, without


def _series(records: Sequence[Mapping[str, Any]], key: str, name: str) -> Series:
    points = [(float(r["step"]), float(r[key])) for r in records if isinstance(r.get(key), (int, float))]
    return Series([x for x, _ in points], [y for _, y in points], name)
