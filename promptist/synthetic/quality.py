"""How good the miniature world is, measured on held-out contents with the production reward model.

`promptist world quality` runs `measure` and writes a JSON file and the Markdown tables of docs/miniature-world.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import r2_score
from tqdm import tqdm

from promptist import rng as counter_rng
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
    """Pictures in -1..1 [N, 3, 64, 64], their cosine with the plain prompt [N] and their aesthetic score [N]."""

    pictures: torch.Tensor
    cosine: np.ndarray
    aesthetic: np.ndarray


@torch.inference_mode()
def paint(model: RewardModel, prompts: Sequence[str], sources: Sequence[str], ks: Sequence[int], name: str) -> Painted:
    """Paints ``prompts`` with the noises of ``(source, k)`` and scores them against ``sources``."""
    requests = [ImageRequest(p, s, "eval", k) for p, s, k in zip(prompts, sources, ks, strict=True)]
    pictures, cosines, ratings = [], [], []
    for start in tqdm(range(0, len(requests), model.batch), desc=name, mininterval=5.0):
        part = requests[start : start + model.batch]
        pixels = (model.painter.paint(part) * 255).round() / 255
        images = model.clip.encode_images(pixels)
        cosines.append((images * model.clip.encode_texts([r.source for r in part])).sum(-1))
        ratings.append(model.head.score(images))
        pictures.append(pixels * 2 - 1)
    return Painted(torch.cat(pictures), torch.cat(cosines).numpy(), torch.cat(ratings).numpy())


def _held_out(count: int, seed: int, purpose: str) -> tuple[list[Content], list[str]]:
    contents = [scenes.HELD_OUT_CONTENTS[i % len(scenes.HELD_OUT_CONTENTS)] for i in range(count)]
    return contents, [
        user_caption(c, counter_rng.generator(seed, purpose, i), grammar.USER_TEMPLATES) for i, c in enumerate(contents)
    ]


def _retrieval(
    model: RewardModel, pictures: torch.Tensor, texts: list[str], contents: list[Content], group: int = 64
) -> dict[str, float]:
    """Top-1 share among ``group`` captions, and how often the top caption has the right object, colour, place."""
    images = torch.cat([model.clip.encode_images((part + 1) / 2) for part in pictures.split(model.batch)])
    embedded = model.clip.encode_texts(texts)
    hits: dict[str, list[bool]] = {"top1": [], "object": [], "colour": [], "place": []}
    for start in range(0, len(texts) - group + 1, group):
        best = (images[start : start + group] @ embedded[start : start + group].T).argmax(1).tolist()
        for row, column in enumerate(best):
            own, found = contents[start + row], contents[start + column]
            hits["top1"].append(own == found)
            for part in ("object", "colour", "place"):
                hits[part].append(getattr(own, part) == getattr(found, part))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def head_r2(model: RewardModel, seed: int, count: int = 512) -> float:
    """R² of the aesthetic head against the procedural rating, on fresh renders of held-out contents in all styles."""
    rng = counter_rng.generator(seed, "quality-head")
    contents = [scenes.HELD_OUT_CONTENTS[i % len(scenes.HELD_OUT_CONTENTS)] for i in range(count)]
    drawn = [scenes.Scene(content, scenes.sample_scene(rng).phrases) for content in contents]
    pictures = torch.from_numpy(scenes.render_scenes(drawn, rng))
    images = torch.cat([model.clip.encode_images((part + 1) / 2) for part in pictures.split(model.batch)])
    ratings = [grammar.rating(scene.content, scene.phrases) for scene in drawn]
    return float(r2_score(ratings, model.head.score(images).numpy()))


def _shift(after: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Mean paired difference with its 95 % interval (t distribution)."""
    difference = after - before
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def measure(
    config: RewardConfig, assets: Path, *, plain: int = 288, per_modifier: int = 48, seed: int = SEED
) -> dict[str, Any]:
    """All figures, from ``plain`` held-out plain captions and ``per_modifier`` pictures of each modifier."""
    model, judge = RewardModel(config), load_judge(assets)
    contents, captions = _held_out(plain, seed, "quality-captions")
    painted = paint(model, captions, captions, [0] * plain, "plain captions")
    objects, colours = verdicts(judge, painted.pictures, contents)
    rng = counter_rng.generator(seed, "quality-renders")
    rendered = torch.from_numpy(scenes.render_scenes([scenes.Scene(c, ()) for c in contents], rng))

    engineered = [
        grammar.prompt(t, engineer(c, counter_rng.generator(seed, "quality-human", i)))
        for i, (c, t) in enumerate(zip(contents, captions, strict=True))
    ]
    human = paint(model, engineered, captions, [0] * plain, "human-engineered")
    rating_std = float(np.concatenate([painted.aesthetic, human.aesthetic]).std(ddof=1))

    modifiers = {}
    some = slice(0, per_modifier)
    for modifier in grammar.MODIFIERS:
        prompts = [grammar.prompt(text, (modifier.phrase,)) for text in captions[some]]
        styled = paint(model, prompts, captions[some], [0] * per_modifier, modifier.phrase)
        modifiers[modifier.phrase] = {
            "sort": modifier.sort,
            "true": float(np.mean([modifier.effect_on(c) for c in contents[some]])),
            "rating": _shift(styled.aesthetic, painted.aesthetic[some]),
            "relevance": _shift(styled.cosine, painted.cosine[some]),
        }
    threshold, spread = float(np.median(painted.cosine)), float(painted.cosine.std(ddof=1))
    slope = break_even_slope(modifiers)
    return {
        "plain_captions": plain,
        "judge_on_held_out_renders": held_out_accuracy(judge, seed),
        "aesthetic_head_r2": head_r2(model, seed),
        "generated": {
            "object": float(objects.mean()),
            "colour": float(colours.mean()),
            "both": float((objects & colours).mean()),
        },
        "retrieval_rendered": _retrieval(model, rendered, captions, contents),
        "retrieval_generated": _retrieval(model, painted.pictures, captions, contents),
        "cosine": {"median": threshold, "std": spread},
        "hinge": {"slope": slope, "offset": slope * threshold},
        "rating_std": rating_std,
        "human_minus_user": {
            "rating": _shift(human.aesthetic, painted.aesthetic),
            "relevance": _shift(human.cosine, painted.cosine),
        },
        "modifiers": modifiers,
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
    }


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/miniature-world.md."""
    lines = ["| figure, on held-out captions | value |", "| --- | --- |"]
    share = {
        "judge: object and colour right on rendered pictures": result["judge_on_held_out_renders"],
        "judge: object right on generated pictures": result["generated"]["object"],
        "judge: colour right on generated pictures": result["generated"]["colour"],
        "judge: both right on generated pictures": result["generated"]["both"],
        **{
            f"CLIP, rendered pictures, {key} among 64 captions": value
            for key, value in result["retrieval_rendered"].items()
        },
        **{
            f"CLIP, generated pictures, {key} among 64 captions": value
            for key, value in result["retrieval_generated"].items()
        },
    }
    lines += [f"| {name} | {100 * value:.1f} % |" for name, value in share.items()]
    lines += [
        f"| aesthetic head, rendered pictures in all styles: R² of the rating | {result['aesthetic_head_r2']:.2f} |",
        "| cosine of plain prompts with their pictures: median, standard deviation "
        f"| {result['cosine']['median']:.3f}, {result['cosine']['std']:.3f} |",
        f"| hinge: slope, offset | {result['hinge']['slope']:.2f}, {result['hinge']['offset']:.2f} |",
        f"| standard deviation of the rating (plain and human-engineered prompts) | {result['rating_std']:.3f} |",
        "",
        "| modifier | sort | true shift | shift of the rating, 95 % interval | in standard deviations "
        "| shift of the cosine, 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for phrase, entry in result["modifiers"].items():
        r, c = entry["rating"], entry["relevance"]
        lines.append(
            f"| {phrase} | {entry['sort']} | {entry['true']:+.2f} "
            f"| {r['mean']:+.2f} ({r['low']:+.2f} to {r['high']:+.2f}) | "
            f"{r['mean'] / result['rating_std']:+.2f} | {c['mean']:+.3f} ({c['low']:+.3f} to {c['high']:+.3f}) |"
        )
    lines += [
        "",
        "| demand | met |",
        "| --- | --- |",
        *(f"| {name} | {'yes' if met else '**no**'} |" for name, met in verdict(result).items()),
    ]
    return "\n".join(lines) + "\n"
