"""The numbers of an evaluation as tables: CSV for programs, Markdown for a README, rows for the page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from promptist.evaluation.methods import label
from promptist.evaluation.paper import gain_table
from promptist.evaluation.results import ALL, METRICS, Difference, Interval, Level, Results, held_out
from promptist.evaluation.words import MINUS, digits_of, metric_name, number, percent, signed

_OWN = ("user", "human")
"""Methods whose texts nobody rewrote: shares of rewrites say nothing of them."""

_CSV_ENDS = [
    "t_low", "t_high", "bootstrap_low", "bootstrap_high", "t_corrected_low", "t_corrected_high",
    "bootstrap_corrected_low", "bootstrap_corrected_high",
]  # fmt: skip
_CSV_HEADS = [
    "set", "length", "method", "baseline", "metric", "prompts", "trainings", "mean", *_CSV_ENDS, "p", "p_corrected",
    "comparisons", "sure", "training_sd", "unit",
]  # fmt: skip

_TEXT_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "words_kept": ("Words kept", percent),
    "swapped": ("Swapped", percent),
    "numbers_kept": ("Numbers kept", percent),
    "negations_kept": ("Negations kept", percent),
    "top_suffix_share": ("Top addition", percent),
    "distinct_suffixes": ("Different additions", percent),
    "suffix_entropy": ("Entropy (nats)", number),
    "distinct_modifiers": ("Modifiers", lambda v: number(v, 0)),
    "self_bleu": ("Self-BLEU", number),
    "gpt2_tokens": ("GPT-2 tokens", lambda v: number(v, 1)),
    "clip_tokens": ("CLIP tokens", lambda v: number(v, 1)),
    "over_clip": ("Cut by CLIP", percent),
    "kl": ("KL (nats)", number),
}
"""Fidelity, diversity and length: name in `Level.means` or `Level.corpus` -> head and how a number is written."""


def csv_text(results: Results) -> str:
    """Long format: one line per (set, length, method, baseline, metric); levels have an empty baseline and no
    interval, those of all lengths an empty length. `unit` is the deviation of the metric over the user's prompts.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_HEADS, restval="", lineterminator="\n")
    writer.writeheader()
    for level in [*results.levels, *results.lengths]:
        extra = {"empty_rewrites": level.empty, "distinct_rewrites": level.distinct}
        where = {
            "set": level.set, "length": level.length, "method": level.method, "prompts": level.prompts,
            "trainings": level.replicas,
        }  # fmt: skip
        for metric, value in {**level.means, **level.corpus, **extra}.items():
            writer.writerow({**where, "metric": metric, "mean": repr(value)})
    for d in results.differences:
        ends = [v for i in (d.t, d.bootstrap, d.t_corrected, d.bootstrap_corrected) for v in (i.low, i.high)]
        numbers = {**dict(zip(_CSV_ENDS, ends, strict=True)), "mean": d.mean, "p": d.p, "p_corrected": d.p_corrected}
        numbers |= {k: v for k, v in (("training_sd", d.training_sd), ("unit", d.unit)) if v is not None}
        writer.writerow(
            {
                "set": d.set, "method": d.method, "baseline": d.baseline, "metric": d.metric, "prompts": d.prompts,
                "trainings": d.replicas, "comparisons": d.comparisons, "sure": str(d.sure).lower(),
                **{name: repr(value) for name, value in numbers.items()},
            }
        )  # fmt: skip
    return out.getvalue()


def markdown(results: Results) -> str:
    """Tables for a README: levels by method and set, paired differences of the reward, gains next to the paper's, what
    became of the texts, and the reward by length of the prompt."""
    scores = held_out(results.metrics)
    heads = ["set", "method", "reward", "aesthetic", "relevance", "CLIP cosine", *map(metric_name, scores)]
    lines = _markdown_head([*heads, "left as is"])
    for name in results.groups:
        for level in (v for v in results.levels if v.set == name):
            cells = [_number(level.means.get(m), digits_of(m)) for m in (*METRICS, *scores)]
            as_is = "" if level.method in _OWN else percent(level.empty)
            lines.append(_row(f"{name} ({level.prompts})", label(level.method), *cells, as_is))
    pairs = [pair for pair in results.pairs if set(pair) <= set(results.methods)]
    lines += [
        "",
        *_markdown_head(["set", *(f"{label(method)} {MINUS} {label(baseline)}" for method, baseline in pairs)]),
    ]
    for name in results.groups:
        found = [results.difference(method, baseline, "reward", name) for method, baseline in pairs]
        lines.append(_row(name, *(f"{_mean(d)} {_brackets(d.corrected)}".strip() if d else "–" for d in found)))
    lines += ["", _basis(results), ""]
    if gains := gain_table(results):
        lines += _markdown_head(["set", *gains["heads"][1:]])
        for row in gains["groups"][0]["rows"]:
            lines.append(_row(row["name"], *(f"**{c['text']}**" if c["sure"] else c["text"] for c in row["cells"])))
        lines += [
            "",
            "Reward over that of the user input; the paper's are of Hao et al. 2023, Table 1, other models.",
            "",
        ]
    texts = text_table(results)
    if texts["groups"]:
        lines += _markdown_head(["set", "method", *texts["heads"][1:]])
        for group in texts["groups"]:
            lines += [_row(group["name"], r["name"], *(c["text"] for c in r["cells"])) for r in group["rows"]]
        lines.append("")
    lengths = length_table(results)
    if lengths["groups"]:
        lines += _markdown_head(["tokens of the user's prompt", *lengths["heads"][1:]])
        for row in lengths["groups"][0]["rows"]:
            lines.append(_row(row["name"], *(c["text"] for c in row["cells"])))
        lines += ["", "Reward by the length of the user's prompt in GPT-2 tokens, all sets.", ""]
    return "\n".join(lines)


def _basis(results: Results) -> str:
    most = max((d.replicas for d in results.differences), default=1)
    what = "prompts and trainings" if most > 1 else "prompts"
    return (
        f"Reward differences paired by prompt, 95 % intervals over {what} in brackets: the wider of analytic and "
        f"bootstrap interval, together for all {results.comparisons.get('reward', 0)} comparisons. Bold where both "
        "exclude 0."
    )


def _mean(d: Difference) -> str:
    return f"**{signed(d.mean)}**" if d.sure else signed(d.mean)


def _markdown_head(heads: Sequence[str]) -> list[str]:
    return [_row(*heads), _row(*["---"] * len(heads))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else number(value, digits)


def _brackets(found: Interval, digits: int = 2) -> str:
    return "" if math.isnan(found.low) else f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"


def _group_name(results: Results, name: str) -> str:
    prompts = max((v.prompts for v in results.levels if v.set == name), default=0)
    return f"{'All sets' if name == ALL else name}: {prompts} prompts"


def level_table(results: Results) -> dict[str, Any]:
    """Levels of the training's metrics and of held-out scorers; below each the change over the user input."""
    metrics = [*METRICS, *held_out(results.metrics)]
    heads = ["", *(_head(m) for m in metrics), "Left as is", "Distinct"]
    groups = []
    for name in results.groups:
        rows = [
            {"name": _row_name(results, level), "cells": _level_cells(results, level, metrics)}
            for level in results.levels
            if level.set == name
        ]
        groups.append({"name": _group_name(results, name), "rows": rows})
    return {"heads": heads, "groups": groups}


def _head(metric: str) -> str:
    words = metric_name(metric)
    return words[0].upper() + words[1:]


def _row_name(results: Results, level: Level) -> str:
    most = max(v.prompts for v in results.levels if v.set == level.set)
    notes = [] if level.prompts == most else [f"{level.prompts} prompts"]
    notes += [f"{level.replicas} trainings"] if level.replicas > 1 else []
    return label(level.method) + (f" ({', '.join(notes)})" if notes else "")


def _level_cells(results: Results, level: Level, metrics: Sequence[str]) -> list[dict[str, Any]]:
    cells = []
    for metric in metrics:
        digits = digits_of(metric)
        change = results.difference(level.method, "user", metric, level.set)
        small = f"{signed(change.mean, digits)} {_brackets(change.corrected, digits)}" if change else ""
        cells.append(_cell(_number(level.means.get(metric), digits), small, bool(change and change.sure)))
    own = level.method in _OWN
    return cells + [_cell("" if own else percent(share)) for share in (level.empty, level.distinct)]


def _cell(text: str, small: str = "", sure: bool = False) -> dict[str, Any]:
    return {"text": text, "small": small, "sure": sure}


def difference_table(results: Results) -> dict[str, Any]:
    """Only pairs without the user input: those stand in the level table already."""
    metrics = [*METRICS, *held_out(results.metrics)]
    pairs = [(m, b) for m, b in results.pairs if b != "user" and {m, b} <= set(results.methods)]
    groups = []
    for name in results.groups if pairs else ():
        rows = []
        for method, baseline in pairs:
            found = [results.difference(method, baseline, metric, name) for metric in metrics]
            cells = [
                _cell(signed(d.mean, digits_of(d.metric)), _brackets(d.corrected, digits_of(d.metric)), d.sure)
                if d
                else _cell("–")
                for d in found
            ]
            rows.append({"name": f"{label(method)} {MINUS} {label(baseline)}", "cells": cells})
        groups.append({"name": _group_name(results, name), "rows": rows})
    return {"heads": ["", *(_head(m) for m in metrics)], "groups": groups}


def text_table(results: Results) -> dict[str, Any]:
    """What became of the texts: fidelity, diversity, length; columns of which no level has a number are left out."""
    known = {name for level in results.levels for name in {**level.means, **level.corpus}}
    columns = {name: column for name, column in _TEXT_COLUMNS.items() if name in known}
    groups = []
    for name in results.groups if columns else ():
        rows = []
        for level in (v for v in results.levels if v.set == name):
            values = {**level.means, **level.corpus}
            cells = [_cell(write(values[key]) if key in values else "") for key, (_, write) in columns.items()]
            rows.append({"name": _row_name(results, level), "cells": cells})
        groups.append({"name": _group_name(results, name), "rows": rows})
    return {"heads": ["", *(head for head, _ in columns.values())], "groups": groups}


def length_table(results: Results) -> dict[str, Any]:
    """The reward by length of the user's prompt in GPT-2 tokens, as the paper has it; no group without lengths."""
    found = {(v.length, v.method): v for v in results.lengths if v.method in results.methods}
    buckets = list(dict.fromkeys(length for length, _ in found))
    rows = []
    for bucket in buckets:
        cells = []
        for method in results.methods:
            level = found.get((bucket, method))
            cells.append(_cell(_number(level.means.get("reward"), 2)) if level else _cell("–"))
        prompts = max(v.prompts for (length, _), v in found.items() if length == bucket)
        rows.append({"name": f"{bucket} ({prompts} prompts)", "cells": cells})
    return {"heads": ["", *map(label, results.methods)], "groups": [{"name": "", "rows": rows}] if rows else []}
