"""The numbers of an evaluation as tables: CSV for programs, Markdown for a README, rows for the page."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from promptist.evaluation.methods import label
from promptist.evaluation.statistics import ALL, METRICS, Difference, Level, Results, default_pairs
from promptist.evaluation.words import MINUS, number, percent, signed


def csv_text(results: Results) -> str:
    """Long format: one line per (set, method, baseline, metric); levels have an empty baseline and no
    interval.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ["t_low", "t_high", "bootstrap_low", "bootstrap_high"]
    writer.writerow(["set", "method", "baseline", "metric", "prompts", "mean", *ends, "sure"])
    for level in results.levels:
        extra = {"empty_rewrites": level.empty, "distinct_rewrites": level.distinct}
        for metric, value in {**level.means, **extra}.items():
            writer.writerow(
                [level.set, level.method, "", metric, level.prompts, repr(value), "", "", "", "", ""]
            )
    for d in results.differences:
        ends = [repr(v) for v in (d.t.low, d.t.high, d.bootstrap.low, d.bootstrap.high)]
        writer.writerow(
            [d.set, d.method, d.baseline, d.metric, d.prompts, repr(d.mean), *ends, str(d.sure).lower()]
        )
    return out.getvalue()


def markdown(results: Results) -> str:
    """Two tables for a README: levels by method and set, and the paired differences of the reward."""
    lines = [
        "| set | method | reward | aesthetic | relevance | CLIP cosine | left as is |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in _groups(results):
        for level in (v for v in results.levels if v.set == name):
            m, own = level.means, level.method in ("user", "human")
            lines.append(
                f"| {name} ({level.prompts}) | {label(level.method)} | {number(m['reward'])} "
                f"| {number(m['aesthetic'])} | {number(m['relevance'])} | {number(m['cosine'], 3)} "
                f"| {'' if own else percent(level.empty)} |"
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
    """All sets together first, then each."""
    return [ALL, *results.sets] if len(results.sets) > 1 else results.sets


def _brackets(d: Difference, digits: int = 2) -> str:
    return "" if math.isnan(d.t.low) else f"[{signed(d.t.low, digits)}, {signed(d.t.high, digits)}]"


def _group_name(results: Results, name: str) -> str:
    prompts = max(v.prompts for v in results.levels if v.set == name)
    return f"{'All sets' if name == ALL else name}: {prompts} prompts"


def level_table(results: Results) -> dict[str, Any]:
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


def difference_table(results: Results) -> dict[str, Any]:
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
