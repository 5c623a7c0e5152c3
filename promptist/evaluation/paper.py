"""The paper's own table of gains beside that of an evaluation.

Hao, Chi, Dong, Wei: "Optimizing Prompts for Text-to-Image Generation", NeurIPS 2023, table 1: reward over that of the
user input, by Stable Diffusion 1.4, CLIP ViT-L/14 and the LAION aesthetic head. Another world's rewards have other
units: what can be compared are signs and the order of the sets.
"""

from __future__ import annotations

from typing import Any

from promptist.evaluation.methods import label
from promptist.evaluation.results import Results
from promptist.evaluation.words import interval, percent, signed

GAINS = {
    "MC": (0.36, 0.47),
    "MCM": (0.16, 0.17),
    "RMC": (0.44, 0.63),
    "RTP": (0.11, 0.25),
    "in-domain": (0.29, 0.36),
    "out-of-domain": (0.28, 0.48),
}
"""Set -> (SFT, RL). The four source kinds are of human-engineered prompts (Lexica), in-domain are user inputs of
DiffusionDB, out-of-domain captions of COCO."""
_ALSO = {"diffusiondb": "in-domain", "coco": "out-of-domain"}


def paper_set(name: str) -> str | None:
    """The paper's name of a set, None for a set that the paper does not have (labels, a file of your own)."""
    plain = name.lower().replace("_", "-").replace(" ", "-")
    return next((key for key in GAINS if key.lower() == plain), None) or _ALSO.get(plain)


def gain_table(results: Results) -> dict[str, Any] | None:
    """Rows: sets; columns: gains of SFT and of each PPO over the user input, PPO over SFT, and the paper's. None where
    the evaluation has neither SFT nor PPO."""
    trained = [m for m in results.methods if m in ("sft", "ppo") or m.startswith("ppo-")]
    if not trained:
        return None
    against = [m for m in trained if m != "sft"] if "sft" in trained else []
    heads = [
        "",
        *map(label, trained),
        *(f"{label(m)} over SFT" for m in against),
        *("SFT, paper", "RL, paper", "RL over SFT, paper"),
    ]
    rows = []
    for name in results.groups:
        cells = [_gain(results, m, "user", name) for m in trained] + [_gain(results, m, "sft", name) for m in against]
        known = GAINS.get(paper_set(name) or "")
        sft, rl = known or (0.0, 0.0)
        theirs = (signed(sft), signed(rl), f"{signed(rl - sft)} ({percent(rl / sft - 1)})") if known else ("", "", "")
        rows.append({"name": "All sets" if name not in results.sets else name, "cells": [*cells, *map(_plain, theirs)]})
    return {"heads": heads, "groups": [{"name": "", "rows": rows}]}


def order_of_gains(results: Results, method: str) -> str:
    """The sets by the gain of `method` over the user input, next to the paper's order; empty with fewer than two of
    the paper's sets."""
    found = {name: results.difference(method, "user", "reward", name) for name in results.sets}
    ours = {name: d.mean for name, d in found.items() if d is not None and paper_set(name)}
    if len(ours) < 2:
        return ""
    column = 0 if method == "sft" else 1
    theirs = {name: GAINS[paper_set(name) or ""][column] for name in ours}
    return f"Sets by the gain of {label(method)}, largest first: {_ordered(ours)}; in the paper: {_ordered(theirs)}."


def _ordered(gains: dict[str, float]) -> str:
    return ", ".join(f"{name} {signed(gains[name])}" for name in sorted(gains, key=lambda n: -gains[n]))


def _gain(results: Results, method: str, baseline: str, name: str) -> dict[str, Any]:
    d = results.difference(method, baseline, "reward", name)
    if d is None:
        return _plain("–")
    return {"text": signed(d.mean), "small": interval(d.corrected), "sure": d.sure}


def _plain(text: str) -> dict[str, Any]:
    return {"text": text, "small": "", "sure": False}
