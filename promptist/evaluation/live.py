"""The page of a run, still going on or done: where it stands, alarms, curves so far, newest samples.

Reads the run folder alone; no process of the run is asked or disturbed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptist.cluster.metrics import METRICS, read_metrics
from promptist.cluster.run_folder import write_atomically
from promptist.cluster.status import Status, look
from promptist.errors import UserError
from promptist.evaluation import alarms
from promptist.evaluation.curves import plots
from promptist.evaluation.history import History
from promptist.evaluation.judges import Thresholds
from promptist.evaluation.page import marked, render
from promptist.evaluation.thumbnails import data_uri
from promptist.evaluation.words import number, percent, signed

SAMPLES = 24  # newest samples that are shown

# Rows of the table: key, label, digits (None: a share).
_ROWS: dict[str, list[tuple[str, str, int | None]]] = {
    "ppo": [
        ("score", "Score", 2), ("reward", "Reward (with the KL penalty)", 2), ("aesthetic", "Aesthetic gain", 2),
        ("relevance", "Relevance", 2), ("kl", "KL to SFT (nats per rewrite)", 2), ("length", "Length (tokens)", 1),
        ("eos", "Ended before the limit", None), ("empty", "Empty rewrites", None),
        ("distinct_suffix", "Different additions", None), ("top_suffix", "Most frequent addition", None),
        ("entropy", "Entropy (nats per token)", 2), ("explained_variance", "Explained variance of the values", 2),
        ("clip_fraction", "Clipped tokens", None),
    ],
    "sft": [("loss", "Loss (nats per token)", 3), ("grad_norm", "Gradient norm", 2)],
}  # fmt: skip
_VALIDATION: dict[str, list[tuple[str, str, int | None]]] = {
    "ppo": [
        ("valid/score", "Score", 2), ("valid/aesthetic", "Aesthetic gain", 2), ("valid/relevance", "Relevance", 2),
        ("valid/length", "Length (tokens)", 1), ("valid/empty", "Empty rewrites", None),
        ("valid/distinct_suffix", "Different additions", None), ("valid/top_suffix", "Most frequent addition", None),
    ],
    "sft": [("valid/loss", "Loss (nats per token)", 3)],
}  # fmt: skip
_STEP = {"ppo": "iteration", "sft": "step"}


def write_live(run: Path) -> Path:
    """Write `report.html` into the folder of an SFT or PPO run; returns its full path.

    Raises UserError for a folder that is no such run, and where its metrics are damaged.
    """
    (status,) = look([run])
    if status.kind not in _ROWS:
        raise UserError(f"{run} is neither a finished evaluation nor an SFT or PPO run: name one of these to report on")
    records = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
    write_atomically(run / "report.html", render("live.html", _content(run, status, records)))
    return (run / "report.html").resolve()


def _content(run: Path, status: Status, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kind, limits = status.kind, Thresholds()
    raised = alarms.find(kind, records)
    drawn = plots(kind, [records])
    return {
        "title": f"{kind.upper()} run {run.resolve().name}",
        "subtitle": f"As of {time.strftime('%Y-%m-%d %H:%M %Z')}; “promptist report {run}” again makes it newer.",
        "state": _state(status),
        "alarms": raised,
        "alarm_title": _alarm_title(len(raised), len(records), limits),
        "watched": alarms.watched(kind, limits),
        "watched_note": f"Each judges the mean of the newest {limits.window} {_STEP[kind]}s; “start” is that of the "
        f"first {limits.window}, and a comparison with it waits until there are {2 * limits.window}.",
        "now": _now(kind, History(records), limits.window),
        "now_note": f"Training: means of the first and the newest {limits.window} {_STEP[kind]}s (or of half of them "
        "while there are fewer). Validation: single values.",
        "curves": [{"name": "", "plots": drawn}] if drawn else [],
        "samples": _samples(run),
        "origin": f"All numbers are in {METRICS}, all samples in rollouts/, all pictures in images/ of the run.",
    }


def _state(status: Status) -> list[str]:
    found = [f"State: {status.state}." if status.state else "", f"Progress: {status.progress}."]
    found.append(f"Time to the end: {status.eta}." if status.eta else "")
    found.append(f"Last heard of: {status.heard}." if status.heard else "")
    found.append(f"Newest checkpoint: {status.checkpoint}." if status.checkpoint else "")
    found.append(f"Attempts: {status.attempts}." if status.attempts else "")
    found.append(f"Trouble: {status.trouble}" if status.trouble else "")
    return [sentence for sentence in found if sentence]


def _alarm_title(raised: int, steps: int, limits: Thresholds) -> str:
    if raised:
        return "1 alarm" if raised == 1 else f"{raised} alarms"
    return "No alarm" if steps >= 2 * limits.window else "No alarm, but the run is too young to judge"


def _now(kind: str, history: History, window: int) -> dict[str, Any]:
    """The table: training at the start and now, validation first, best and last."""
    groups = []
    rows = []
    for key, label, digits in _ROWS[kind]:
        values = history[key]
        if len(values):
            width = min(window, -(-len(values) // 2))
            first, last = float(values[:width].mean()), float(values[-width:].mean())
            rows.append(_row(label, [_text(first, digits), "", _text(last, digits)], last - first, digits))
    if rows:
        groups.append({"name": "Training", "rows": rows})
    rows = []
    for key, label, digits in _VALIDATION[kind]:
        values = history[key]
        if len(values):
            best = {"valid/score": values.max(), "valid/loss": values.min()}.get(key)
            step = f"step {history.steps_of(key)[int(values.tolist().index(best))]}" if best is not None else ""
            middle = (_text(float(best), digits), step) if best is not None else ""
            ends: list[str | tuple[str, str]] = [
                _text(float(values[0]), digits),
                middle,
                _text(float(values[-1]), digits),
            ]
            rows.append(_row(label, ends, float(values[-1] - values[0]), digits))
    if rows:
        steps = history.steps_of(_VALIDATION[kind][0][0])
        groups.append({"name": f"Validation (last at step {steps[-1]})" if steps else "Validation", "rows": rows})
    return {"heads": ["", "Start", "Best", "Now", "Change"], "groups": groups}


def _row(label: str, cells: Sequence[str | tuple[str, str]], change: float, digits: int | None) -> dict[str, Any]:
    both = [cell if isinstance(cell, tuple) else (cell, "") for cell in cells]
    moved = signed(100 * change, 0) + " points" if digits is None else signed(change, digits)
    return {"name": label, "cells": [{"text": t, "small": s, "sure": False} for t, s in [*both, (moved, "")]]}


def _text(value: float, digits: int | None) -> str:
    return percent(value) if digits is None else number(value, digits)


def _samples(run: Path) -> list[dict[str, Any]]:
    found = []
    for record in _newest(run / "rollouts"):
        x, y = record["x"], record["y"]
        scores = [
            f"score {signed(record['score'])}", f"aesthetic gain {signed(record['aesthetic'])}",
            f"relevance {signed(record['relevance'])}", f"KL {number(record['kl'])}",
        ]  # fmt: skip
        sides = [
            {"label": "User input", "words": marked(x, x), "picture": _picture(run, record["picture_x"], x, [])},
            {"label": "Rewrite", "words": marked(x, y), "picture": _picture(run, record["picture_y"], y or x, scores)},
        ]
        found.append({"prompt": x, "step": record["step"], "sides": sides})
    return found


def _picture(run: Path, path: str | None, text: str, caption: list[str]) -> dict[str, Any] | None:
    if path is None or not (run / path).is_file():
        return None
    return {"src": data_uri(run / path), "href": path, "alt": f"Picture painted from “{text}”", "caption": caption}


def _newest(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The newest samples, newest step first; a file that a resume has just removed is passed over."""
    left = SAMPLES
    for path in sorted(folder.glob("step_*.samples.jsonl"), reverse=True):
        try:
            lines = path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            continue
        for line in lines[:left]:
            yield json.loads(line)
        left -= len(lines)
        if left <= 0:
            return
