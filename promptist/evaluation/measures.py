"""From what an evaluation has recorded to its table: the metrics, computed from raw measurements.

Per picture, with x the user's prompt, y the rewrite and k the noise (Hao et al. 2023, section 2.2):

    relevance = min(slope * cosine - offset, 0)     cosine: CLIP text(x) . image(y, k)
    gain      = aesthetic(y, k) - aesthetic(x, k)
    reward    = gain + relevance                    the training reward without its KL part

and the same by the terms of each held-out scorer, under `NAME.`. Nothing here loads a model: another slope repaints
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from promptist.evaluation.lengths import CLIP
from promptist.evaluation.plan import Entry, Plan
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.store import Store
from promptist.evaluation.table import Measure, Picture, Table, Text
from promptist.reward.messages import Measurement
from promptist.reward.terms import Hinge
from promptist.reward.terms import relevance as hinge_relevance

TextMetrics = Callable[[str, str], Mapping[str, float]]


@dataclass(frozen=True)
class Scoring:
    """How raw measurements become metrics.

    `terms`: those of the training reward; `held_out`: held-out scorers by name, in order, with their terms where they
    have some; `text`: the metrics of a text, from x and what was painted.
    """

    terms: Hinge
    held_out: Mapping[str, Hinge | None]
    text: TextMetrics


def build_table(plan: Plan, store: Store, painter: str, scoring: Scoring, meta: dict[str, Any]) -> Table:
    """The table of a finished plan: by prompt in file order, then row in config order, then seed, then metric.

    A row of kind `best_of` shows one picture, with seed 0: of the plain prompt's pictures the one with the best
    training reward (the first of equals). Its gain is against the mean of them all, so that choosing is what is
    measured. KeyError where something is missing (`evaluate.unfinished` has been asked).
    """
    table = Table([], [], [], meta)
    for prompt in plan.prompts:
        plain = [store.images[painter, prompt.x, prompt.x, k] for k in range(plan.images)]
        for entry in plan.entries:
            if not plan.applies(entry, prompt.x):
                continue
            y = text_of(plan, entry, prompt, store)
            assert y is not None
            text = Text(prompt.x, prompt.set, entry.method, entry.replica, y)
            table.texts.append(text)
            shown = _shown(plan, entry, text, plain, store, painter, scoring.terms)
            for seed, done, baseline in shown:
                metrics = _of_picture(done, baseline, scoring)
                table.measures.extend(_measure(text, entry, seed, *metric) for metric in metrics)
                if done.picture is not None and (entry.kind == "best_of" or seed < plan.pictures):
                    table.pictures.append(Picture(prompt.x, entry.method, entry.replica, seed, done.picture))
            table.measures.extend(
                _measure(text, entry, None, *metric) for metric in _of_text(plan, text, entry, store, scoring)
            )
    return table


def text_of(plan: Plan, entry: Entry, prompt: EvalPrompt, store: Store) -> str | None:
    """y of a row for a prompt, "" where it left the prompt alone; None where it has none, or it is not finished."""
    if entry.model:
        return store.rewrites.get((entry.model, prompt.x))
    return plan.texts[entry.method].get(prompt.x)


Shown = tuple[int, Measurement, Mapping[str, float]]
"""Seed, what was measured, and the aesthetic scores that the gains are taken against, by scorer ("" is training's)."""


def _shown(
    plan: Plan, entry: Entry, text: Text, plain: Sequence[Measurement], store: Store, painter: str, terms: Hinge
) -> list[Shown]:
    if entry.kind == "best_of":
        best = max(range(len(plain)), key=lambda k: plain[k].aesthetic + hinge_relevance(plain[k].cosine, terms))
        every = [_aesthetics(done) for done in plain]
        return [(0, plain[best], {name: fmean(one[name] for one in every) for name in every[0]})]
    pictures = [store.images[painter, text.painted, text.prompt, k] for k in range(plan.images)]
    return [(k, done, _aesthetics(plain[k])) for k, done in enumerate(pictures)]


def _aesthetics(done: Measurement) -> dict[str, float]:
    found = {"": done.aesthetic}
    for name, value in done.extra.items():
        scorer, _, what = name.rpartition(".")
        if what == "aesthetic":
            found[scorer] = value
    return found


def _of_picture(done: Measurement, baseline: Mapping[str, float], scoring: Scoring) -> Iterator[tuple[str, float]]:
    yield "cosine", done.cosine
    yield "aesthetic", done.aesthetic
    yield from _derived("", done.cosine, done.aesthetic, baseline[""], scoring.terms)
    yield from done.extra.items()
    for scorer, terms in scoring.held_out.items():
        cosine, aesthetic = done.extra.get(f"{scorer}.cosine"), done.extra.get(f"{scorer}.aesthetic")
        yield from _derived(f"{scorer}.", cosine, aesthetic, baseline.get(scorer), terms)


def _derived(
    prefix: str, cosine: float | None, aesthetic: float | None, baseline: float | None, terms: Hinge | None
) -> Iterator[tuple[str, float]]:
    """Those of relevance, gain and reward that the scorer's numbers allow."""
    relevance = None if terms is None or cosine is None else hinge_relevance(cosine, terms)
    gain = None if aesthetic is None or baseline is None else aesthetic - baseline
    if relevance is not None:
        yield f"{prefix}relevance", relevance
    if gain is not None:
        yield f"{prefix}gain", gain
    if relevance is not None and gain is not None:
        yield f"{prefix}reward", gain + relevance


def _of_text(plan: Plan, text: Text, entry: Entry, store: Store, scoring: Scoring) -> Iterator[tuple[str, float]]:
    yield from scoring.text(text.prompt, text.rewrite).items()
    for ruler in plan.rulers:
        tokens = store.lengths[ruler.fingerprint, text.painted]
        yield ruler.metric, float(tokens)
        if ruler.metric == CLIP and ruler.limit is not None:
            yield "over_clip", float(tokens > ruler.limit)
    if entry.reference:
        yield "kl", store.ratios[entry.model, entry.reference, text.prompt]


def _measure(text: Text, entry: Entry, seed: int | None, metric: str, value: float) -> Measure:
    return Measure(text.prompt, text.set, text.method, text.replica, seed, metric, float(value), entry.model)
