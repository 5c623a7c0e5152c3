"""The figures of a report, drawn from its table and statistics."""

from __future__ import annotations

from promptist.evaluation.figures import Dots, Series, curve_svg, dots_svg
from promptist.evaluation.gallery import Evaluation
from promptist.evaluation.methods import label
from promptist.evaluation.results import held_out
from promptist.evaluation.words import metric_name


def reward_figures(evaluation: Evaluation) -> list[str]:
    """The paper's figure of reward by set and method, and the gains over the user input with their intervals."""
    results, methods = evaluation.results, evaluation.methods
    rows = ["all sets" if name not in results.sets else name for name in results.groups]
    levels, gains = [], []
    for style, method in enumerate(methods):
        means = [results.level(method, name) for name in results.groups]
        levels.append(
            Dots(label(method), [m.means.get("reward") if m else None for m in means], [None] * len(rows), style)
        )
        if method != "user":
            found = [results.difference(method, "user", "reward", name) for name in results.groups]
            ends = [(d.corrected.low, d.corrected.high) if d else None for d in found]
            gains.append(Dots(label(method), [d.mean if d else None for d in found], ends, style))
    described = "Mean reward by set and method; the table below has the numbers"
    figures = [dots_svg("Reward by set and method", rows, levels, described)]
    if gains:
        described = (
            "Reward over that of the user input by set and method, with intervals; the table below has the numbers"
        )
        figures.append(dots_svg("Reward over that of the user input", rows, gains, described))
    return figures


def over_kl(evaluation: Evaluation) -> list[str]:
    """Trained and held-out scores over KL, a line for each run whose checkpoints were evaluated."""
    table = evaluation.table
    if "kl" not in table.metrics:
        return []
    runs: dict[str, list[tuple[int, str]]] = {}
    for method in table.methods:
        name, at, step = method.rpartition("@")
        if at and step.isdigit():
            runs.setdefault(name, []).append((int(step), method))
    shown = ["reward", *held_out(table.metrics)]
    found = []
    for metric in shown if runs else ():
        lines = []
        for name, checkpoints in runs.items():
            points = [(0, "sft"), *sorted(checkpoints)]
            known = [(s, _mean(evaluation, "kl", m), _mean(evaluation, metric, m)) for s, m in points]
            known = [(step, kl, y) for step, kl, y in known if kl is not None and y is not None]
            if known:
                steps, x, y = zip(*known, strict=True)
                marks = tuple("SFT" if step == 0 else str(step) for step in steps)
                lines.append(Series(list(x), list(y), label(name) if len(runs) > 1 else "", marks))
        kind = "what training optimises" if metric == "reward" else "held out"
        if lines:
            found.append(curve_svg(f"{metric_name(metric)} ({kind})", "KL to the SFT model (nats per rewrite)", lines))
    return found


def _mean(evaluation: Evaluation, metric: str, method: str) -> float | None:
    if method not in evaluation.table.methods:
        return None
    scores = evaluation.table.scores(metric, method)
    return float(scores.values.mean()) if len(scores.prompts) else None
