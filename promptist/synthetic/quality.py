"""How good the miniature world is, measured on held-out contents with the production reward model.

`promptist world quality` runs `measure` and writes a JSON file and the Markdown tables of docs/miniature-world.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import r2_score
from tqdm import tqdm

from promptist import rng as counter_rng
from promptist.reward.aesthetic import AestheticHead
from promptist.reward.clip import ClipEncoder
from promptist.reward.held_out import Batch, ClipScorer, HeldOutConfig
from promptist.reward.messages import ImageRequest
from promptist.reward.model import RewardConfig, RewardModel
from promptist.synthetic import grammar, scenes
from promptist.synthetic.grammar import Content
from promptist.synthetic.judge import held_out_accuracy, load_judge, verdicts
from promptist.synthetic.prompts import engineer, user_caption
from promptist.synthetic.world import SEED

MATERIAL = 0.3  # a modifier counts if it shifts the rating by this share of the rating's standard deviation


@dataclass(frozen=True)
class Painted:
    """Pictures in -1..1 [N, 3, 64, 64], their cosine with the plain prompt [N] and their aesthetic score [N]; the
    numbers of held-out scorers as in `Measurement.extra`, [N] each.
    """

    pictures: torch.Tensor
    cosine: np.ndarray
    aesthetic: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def by(self, scorer: str) -> Painted:
        """The same pictures with the cosine and the aesthetic score of a held-out scorer."""
        return replace(self, cosine=self.extra[f"{scorer}.cosine"], aesthetic=self.extra[f"{scorer}.aesthetic"])


@torch.inference_mode()
def paint(model: RewardModel, prompts: Sequence[str], sources: Sequence[str], ks: Sequence[int], name: str) -> Painted:
    """Paints ``prompts`` with the noises of ``(source, k)`` and scores them against ``sources``."""
    requests = [ImageRequest(p, s, "eval", k) for p, s, k in zip(prompts, sources, ks, strict=True)]
    pictures, cosines, ratings = [], [], []
    extras: dict[str, list[float]] = {}
    for start in tqdm(range(0, len(requests), model.batch), desc=name, mininterval=5.0):
        part = requests[start : start + model.batch]
        batch = Batch((model.painter.paint(part) * 255).round() / 255, [r.source for r in part])
        cosines.append(batch.cosines(model.clip))
        ratings.append(model.head.score(batch.images(model.clip)))
        for scores in model.held_out.score(batch):
            for key, value in scores.items():
                extras.setdefault(key, []).append(value)
        pictures.append(batch.pictures * 2 - 1)
    return Painted(
        torch.cat(pictures),
        torch.cat(cosines).numpy(),
        torch.cat(ratings).numpy(),
        {key: np.array(values, np.float32) for key, values in extras.items()},
    )


def _held_out(count: int, seed: int, purpose: str) -> tuple[list[Content], list[str]]:
    contents = [scenes.HELD_OUT_CONTENTS[i % len(scenes.HELD_OUT_CONTENTS)] for i in range(count)]
    return contents, [
        user_caption(c, counter_rng.generator(seed, purpose, i), grammar.USER_TEMPLATES) for i, c in enumerate(contents)
    ]


def _retrieval(
    clip: ClipEncoder, pictures: torch.Tensor, texts: list[str], contents: list[Content], group: int = 64
) -> dict[str, float]:
    """Top-1 share among ``group`` captions, and how often the top caption has the right object, colour, place."""
    images, embedded = clip.encode_images((pictures + 1) / 2), clip.encode_texts(texts)
    hits: dict[str, list[bool]] = {"top1": [], "object": [], "colour": [], "place": []}
    for start in range(0, len(texts) - group + 1, group):
        best = (images[start : start + group] @ embedded[start : start + group].T).argmax(1).tolist()
        for row, column in enumerate(best):
            own, found = contents[start + row], contents[start + column]
            hits["top1"].append(own == found)
            for part in ("object", "colour", "place"):
                hits[part].append(getattr(own, part) == getattr(found, part))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def head_r2(clip: ClipEncoder, head: AestheticHead, seed: int, count: int = 512) -> float:
    """R² of an aesthetic head against the procedural rating, on fresh renders of held-out contents in all styles."""
    rng = counter_rng.generator(seed, "quality-head")
    contents = [scenes.HELD_OUT_CONTENTS[i % len(scenes.HELD_OUT_CONTENTS)] for i in range(count)]
    drawn = [scenes.Scene(content, scenes.sample_scene(rng).phrases) for content in contents]
    pictures = torch.from_numpy(scenes.render_scenes(drawn, rng))
    ratings = [grammar.rating(scene.content, scene.phrases) for scene in drawn]
    return float(r2_score(ratings, head.score(clip.encode_images((pictures + 1) / 2)).numpy()))


def _shift(after: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Mean paired difference with its 95 % interval (t distribution)."""
    difference = after - before
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class Sample:
    """What all scorers are measured on: held-out plain captions, their pictures, pictures of the same by people's
    prompts, and by each modifier for the first of them; rendered pictures of the same contents."""

    contents: list[Content]
    captions: list[str]
    plain: Painted
    human: Painted
    styled: dict[str, Painted]
    rendered: torch.Tensor

    def by(self, scorer: str) -> Sample:
        """The same as judged by a held-out scorer."""
        styled = {phrase: painted.by(scorer) for phrase, painted in self.styled.items()}
        return replace(self, plain=self.plain.by(scorer), human=self.human.by(scorer), styled=styled)

    def every(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and aesthetic scores of all generated pictures."""
        painted = [self.plain, self.human, *self.styled.values()]
        return np.concatenate([p.cosine for p in painted]), np.concatenate([p.aesthetic for p in painted])


def draw_sample(model: RewardModel, plain: int, per_modifier: int, seed: int) -> Sample:
    """Paints everything that the figures need."""
    contents, captions = _held_out(plain, seed, "quality-captions")
    painted = paint(model, captions, captions, [0] * plain, "plain captions")
    rng = counter_rng.generator(seed, "quality-renders")
    rendered = torch.from_numpy(scenes.render_scenes([scenes.Scene(c, ()) for c in contents], rng))
    engineered = [
        grammar.prompt(t, engineer(c, counter_rng.generator(seed, "quality-human", i)))
        for i, (c, t) in enumerate(zip(contents, captions, strict=True))
    ]
    human = paint(model, engineered, captions, [0] * plain, "human-engineered")
    styled, some = {}, captions[:per_modifier]
    for modifier in grammar.MODIFIERS:
        prompts = [grammar.prompt(text, (modifier.phrase,)) for text in some]
        styled[modifier.phrase] = paint(model, prompts, some, [0] * per_modifier, modifier.phrase)
    return Sample(contents, captions, painted, human, styled, rendered)


def judged(sample: Sample, clip: ClipEncoder, head: AestheticHead, seed: int) -> dict[str, Any]:
    """The figures of one scorer: how well it reads pictures, and what it makes of the modifiers."""
    plain, human = sample.plain, sample.human
    modifiers = {}
    for modifier in grammar.MODIFIERS:
        styled = sample.styled[modifier.phrase]
        count = len(styled.cosine)
        modifiers[modifier.phrase] = {
            "sort": modifier.sort,
            "true": float(np.mean([modifier.effect_on(c) for c in sample.contents[:count]])),
            "rating": _shift(styled.aesthetic, plain.aesthetic[:count]),
            "relevance": _shift(styled.cosine, plain.cosine[:count]),
        }
    threshold, slope = float(np.median(plain.cosine)), break_even_slope(modifiers)
    return {
        "aesthetic_head_r2": head_r2(clip, head, seed),
        "retrieval_rendered": _retrieval(clip, sample.rendered, sample.captions, sample.contents),
        "retrieval_generated": _retrieval(clip, plain.pictures, sample.captions, sample.contents),
        "cosine": {"median": threshold, "std": float(plain.cosine.std(ddof=1))},
        "hinge": {"slope": slope, "offset": slope * threshold},
        "rating_std": float(np.concatenate([plain.aesthetic, human.aesthetic]).std(ddof=1)),
        "human_minus_user": {
            "rating": _shift(human.aesthetic, plain.aesthetic),
            "relevance": _shift(human.cosine, plain.cosine),
        },
        "modifiers": modifiers,
    }


def agreement(first: Sample, second: Sample) -> dict[str, float]:
    """Correlations of two scorers over all generated pictures, and over the plain captions' alone."""
    (cosine_a, rating_a), (cosine_b, rating_b) = first.every(), second.every()
    return {
        "pictures": len(cosine_a),
        "rating": float(stats.pearsonr(rating_a, rating_b).statistic),
        "cosine": float(stats.pearsonr(cosine_a, cosine_b).statistic),
        "rating_plain": float(stats.pearsonr(first.plain.aesthetic, second.plain.aesthetic).statistic),
        "cosine_plain": float(stats.pearsonr(first.plain.cosine, second.plain.cosine).statistic),
    }


def measure(
    config: RewardConfig,
    rival: HeldOutConfig,
    assets: Path,
    *,
    plain: int = 288,
    per_modifier: int = 48,
    seed: int = SEED,
) -> dict[str, Any]:
    """All figures, from ``plain`` held-out plain captions and ``per_modifier`` pictures of each modifier."""
    model, judge = RewardModel(config, held_out=[rival]), load_judge(assets)
    sample = draw_sample(model, plain, per_modifier, seed)
    objects, colours = verdicts(judge, sample.plain.pictures, sample.contents)
    other = model.held_out.scorers[rival.name]
    assert isinstance(other, ClipScorer)
    by_other = sample.by(rival.name)
    return {
        "plain_captions": plain,
        "judge_on_held_out_renders": held_out_accuracy(judge, seed),
        "generated": {
            "object": float(objects.mean()),
            "colour": float(colours.mean()),
            "both": float((objects & colours).mean()),
        },
        **judged(sample, model.clip, model.head, seed),
        "rival": {**judged(by_other, other.encoder, other.head, seed), "agreement": agreement(sample, by_other)},
    }


def break_even_slope(modifiers: dict[str, Any]) -> float:
    """The hinge's slope (ours): the smallest at which no hiding modifier pays below the hinge, on average."""
    hiding = [entry for entry in modifiers.values() if entry["sort"] == "hide"]
    return float(max(entry["rating"]["mean"] / -entry["relevance"]["mean"] for entry in hiding))


def verdict(result: dict[str, Any]) -> dict[str, bool]:
    """The demands on the world, each met or not."""
    size = MATERIAL * result["rating_std"]
    strong: dict[str, int] = {"raise": 0, "lower": 0, "hide": 0}
    hidden = True
    for entry in result["modifiers"].values():
        rating = entry["rating"]
        if entry["sort"] in ("raise", "hide") and rating["mean"] >= size and rating["low"] > 0:
            strong[entry["sort"]] += 1
            hidden &= entry["sort"] != "hide" or entry["relevance"]["high"] < 0
        if entry["sort"] == "lower" and rating["mean"] <= -size and rating["high"] < 0:
            strong["lower"] += 1
    return {
        "judge right on at least 95 % of held-out renders": result["judge_on_held_out_renders"] >= 0.95,
        "object and colour right in at least 80 % of generated pictures": result["generated"]["both"] >= 0.80,
        **{
            f"at least 3 modifiers that {sort} shift the rating by 0.3 standard deviations": n >= 3
            for sort, n in strong.items()
        },
        "those that hide lower the relevance": hidden,
        "the rival finds the object and the colour of at least 85 % of generated pictures": min(
            result["rival"]["retrieval_generated"][part] for part in ("object", "colour")
        )
        >= 0.85,
        "the rival's rating goes with the first's (correlation of at least 0.6) and is another (at most 0.95)": (
            0.6 <= result["rival"]["agreement"]["rating"] <= 0.95
        ),
    }


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/miniature-world.md."""
    rival = result["rival"]
    lines = [
        "| figure, on held-out captions | value |",
        "| --- | --- |",
        f"| judge: object and colour right on rendered pictures | {_percent(result['judge_on_held_out_renders'])} |",
        *(
            f"| judge: {name} right on generated pictures | {_percent(result['generated'][name])} |"
            for name in ("object", "colour", "both")
        ),
        "",
        "| scorer, on held-out captions | of the reward | rival |",
        "| --- | --- | --- |",
    ]
    for kind in ("rendered", "generated"):
        for part in ("top1", "object", "colour", "place"):
            row = [_percent(scorer[f"retrieval_{kind}"][part]) for scorer in (result, rival)]
            lines.append(f"| CLIP, {kind} pictures, {part} among 64 captions | {' | '.join(row)} |")
    for name, form in _SCORER_ROWS.items():
        lines.append(f"| {name} | {form(result)} | {form(rival)} |")
    both = rival["agreement"]
    lines += [
        "",
        "| correlation of the two over generated pictures | rating | cosine |",
        "| --- | --- | --- |",
        f"| plain captions ({result['plain_captions']}) | {both['rating_plain']:.2f} | {both['cosine_plain']:.2f} |",
        f"| all: plain, human-engineered, with each modifier ({both['pictures']}) "
        f"| {both['rating']:.2f} | {both['cosine']:.2f} |",
        "",
        "| modifier | sort | true shift | shift of the rating, 95 % interval | in standard deviations "
        "| shift of the cosine, 95 % interval | rival: rating | cosine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for phrase, entry in result["modifiers"].items():
        r, c, other = entry["rating"], entry["relevance"], rival["modifiers"][phrase]
        lines.append(
            f"| {phrase} | {entry['sort']} | {entry['true']:+.2f} "
            f"| {r['mean']:+.2f} ({r['low']:+.2f} to {r['high']:+.2f}) | "
            f"{r['mean'] / result['rating_std']:+.2f} | {c['mean']:+.3f} ({c['low']:+.3f} to {c['high']:+.3f}) "
            f"| {other['rating']['mean']:+.2f} | {other['relevance']['mean']:+.3f} |"
        )
    lines += [
        "",
        "| demand | met |",
        "| --- | --- |",
        *(f"| {name} | {'yes' if met else '**no**'} |" for name, met in verdict(result).items()),
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_SCORER_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "aesthetic head, rendered pictures in all styles: R² of the rating": lambda s: f"{s['aesthetic_head_r2']:.2f}",
    "cosine of plain prompts with their pictures: median, standard deviation": lambda s: (
        f"{s['cosine']['median']:.3f}, {s['cosine']['std']:.3f}"
    ),
    "standard deviation of the rating (plain and human-engineered prompts)": lambda s: f"{s['rating_std']:.3f}",
    "hinge: slope, offset": lambda s: f"{s['hinge']['slope']:.2f}, {s['hinge']['offset']:.2f}",
    "human-engineered less plain prompts, rating": lambda s: f"{s['human_minus_user']['rating']['mean']:+.2f}",
    "human-engineered less plain prompts, cosine": lambda s: f"{s['human_minus_user']['relevance']['mean']:+.3f}",
}
