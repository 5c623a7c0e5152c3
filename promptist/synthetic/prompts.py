"""What the people of the miniature world write: plain prompts, human-engineered prompts, and the pairs made of them.

Their taste is imperfect on purpose and was fixed before any PPO run: they like what raises the rating, only roughly
know when it does, use a few modifiers that do nothing, sometimes pick one that spoils the picture, and seldom hide it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from promptist import rng as counter_rng
from promptist.synthetic import grammar
from promptist.synthetic.grammar import Content
from promptist.synthetic.scenes import HELD_OUT_CONTENTS, TRAIN_CONTENTS

TASTE = 1.0  # how strongly a modifier's effect draws people to it (log-odds per unit of rating)
HABIT = {"neutral": -0.5, "raise": 0.0, "lower": -0.5, "hide": -3.0}  # by sort: few people hide what they asked for
FASHION = {  # by phrase: what people have seen to work, and what has worn off
    "cinematic lighting": 0.8,
    "falling petals": 0.8,
    "neon glow": 0.4,
    "golden hour": -1.5,
    "soft pastel": -1.5,
    "starry sky": -0.8,
}
# Without the last one ("red boat, on the beach"): beam search with length penalty -1.0 favours short rewrites so much
# that a small SFT model ends at a comma which is already in the prompt, and the place is lost.
WRITTEN_TEMPLATES = grammar.USER_TEMPLATES[:3]
NUMBER_OF_MODIFIERS = (0.25, 0.35, 0.25, 0.15)  # probability of 1, 2, 3, 4 modifiers
REPHRASED = (
    "{object} in {colour} {place}",
    "{place} a {colour} {object}",
    "one {colour} {object} {place}",
    "{colour} {object} standing {place}",
)
TARGETS = 8_000
VALIDATION_TARGETS = 100
USER_PROMPTS, CAPTION_PROMPTS = 200, 200  # so few that most plain pictures come from the cache within a demo
STYLED_PROMPTS = 400  # style words combine in many ways, and none of them must be lost
STYLED_KINDS = ("MCM", "RTP", "MCM", "RTP", "RMC")  # most of those that hold style words
EVAL_IN_DOMAIN, EVAL_OUT_OF_DOMAIN, EVAL_LABELS = 128, 48, 16


def engineer(content: Content, rng: np.random.Generator) -> tuple[str, ...]:
    """The modifiers a person of imperfect taste puts behind a prompt."""
    weights = np.array(
        [TASTE * m.effect_on(content) + HABIT[m.sort] + FASHION.get(m.phrase, 0.0) for m in grammar.MODIFIERS]
    )
    count = 1 + int(rng.choice(len(NUMBER_OF_MODIFIERS), p=NUMBER_OF_MODIFIERS))
    keys = weights + rng.gumbel(size=len(weights))
    return tuple(grammar.MODIFIERS[index].phrase for index in np.argsort(-keys)[:count])


def user_caption(content: Content, rng: np.random.Generator, templates: tuple[str, ...] = WRITTEN_TEMPLATES) -> str:
    return grammar.caption(content, templates[rng.integers(len(templates))], int(rng.integers(6)), int(rng.integers(6)))


def pairs_of_target(content: Content, group: str, rng: np.random.Generator) -> list[dict[str, str]]:
    """One human-engineered target and its four sources (paper section 2.2): MC, MCM, RMC, RTP."""
    caption, phrases = user_caption(content, rng), engineer(content, rng)
    target = grammar.prompt(caption, phrases)
    kept = [phrase for phrase in phrases if rng.random() < 0.5]
    rng.shuffle(kept)
    rephrased = user_caption(content, rng, REPHRASED)
    styled = " and ".join(phrases)
    sources = {
        "MC": caption,
        "MCM": grammar.prompt(caption, tuple(kept)),
        "RMC": rephrased,
        "RTP": f"{rephrased} with {styled}" if rng.random() < 0.5 else f"{styled} of {rephrased}",
    }
    return [{"source": source, "target": target, "kind": kind, "group": group} for kind, source in sources.items()]


def training_pairs(seed: int, purpose: str, targets: int) -> list[dict[str, str]]:
    """Pairs of ``targets`` targets about training contents."""
    pairs = []
    for index in range(targets):
        rng = counter_rng.generator(seed, "pairs", purpose, index)
        content = TRAIN_CONTENTS[rng.integers(len(TRAIN_CONTENTS))]
        pairs += pairs_of_target(content, f"{purpose}-{index}", rng)
    return pairs


def labels() -> tuple[list[str], list[str]]:
    """Bare labels: those to train on, and those held out (a fifth of the colour-and-object ones)."""
    train, held = [word for words in grammar.OBJECT_WORDS.values() for word in words], []
    for o, words in enumerate(grammar.OBJECT_WORDS.values()):
        for c, colour in enumerate(grammar.COLOURS):
            (held if (o + 2 * c) % 5 == 0 else train).extend(f"{colour} {word}" for word in words)
    return train, held


def in_turns(contents: Iterable[Content], *key: str | int) -> Iterator[tuple[Content, np.random.Generator]]:
    """Without end: contents take turns, in an order shuffled anew for each round, each turn with its own generator."""
    pool = list(contents)
    order: np.ndarray = np.empty(0, np.int64)
    for turn in count():
        if turn % len(pool) == 0:
            order = counter_rng.permutation(len(pool), *key, "order", turn // len(pool))
        yield pool[order[turn % len(pool)]], counter_rng.generator(*key, turn)


def _distinct(
    contents: Iterable[Content], templates: tuple[str, ...], count: int, *key: str | int
) -> list[tuple[Content, str]]:
    """``count`` different captions; contents take turns in a shuffled order."""
    chosen: dict[str, Content] = {}
    for turn, (content, rng) in enumerate(in_turns(contents, *key)):
        if len(chosen) == count:
            break
        if turn > 50 * count:
            raise ValueError(f"these contents and templates give fewer than {count} different captions")
        chosen.setdefault(user_caption(content, rng, templates), content)
    return [(content, text) for text, content in chosen.items()]


def styled_prompts(seed: int) -> list[str]:
    """What users type who know some style words, or say it in another order: sources of the kinds MCM, RMC and RTP."""
    found: dict[str, None] = {}
    turn = 0
    while len(found) < STYLED_PROMPTS:
        rng = counter_rng.generator(seed, "rl-styled", turn)
        content = TRAIN_CONTENTS[rng.integers(len(TRAIN_CONTENTS))]
        sources = {pair["kind"]: pair["source"] for pair in pairs_of_target(content, "", rng)}
        kind = STYLED_KINDS[turn % len(STYLED_KINDS)]
        if sources[kind] != sources["MC"]:  # all its modifiers were dropped: a plain caption
            found.setdefault(sources[kind])
        turn += 1
    return list(found)


def evaluation_prompts(seed: int) -> list[dict[str, Any]]:
    """Held-out prompts: user inputs with a human-engineered version, captions of unseen templates, labels."""
    rows: list[dict[str, Any]] = []
    for index, (content, text) in enumerate(
        _distinct(HELD_OUT_CONTENTS, WRITTEN_TEMPLATES, EVAL_IN_DOMAIN, seed, "eval-user")
    ):
        human = grammar.prompt(text, engineer(content, counter_rng.generator(seed, "eval-human", index)))
        rows.append({"prompt": text, "set": "in-domain", "human": human})
    for _, text in _distinct(HELD_OUT_CONTENTS, grammar.CAPTION_TEMPLATES, EVAL_OUT_OF_DOMAIN, seed, "eval-caption"):
        rows.append({"prompt": text, "set": "out-of-domain"})
    held = labels()[1]
    for index in counter_rng.permutation(len(held), seed, "eval-labels")[:EVAL_LABELS]:
        rows.append({"prompt": held[index], "set": "label"})
    return rows


def validation_prompts(seed: int, count: int = 48) -> list[str]:
    """Plain prompts PPO validates on: training contents, drawn apart (the held-out ones stay for evaluation)."""
    return [text for _, text in _distinct(TRAIN_CONTENTS, WRITTEN_TEMPLATES, count, seed, "ppo-valid")]


def write_all(folder: Path, seed: int) -> dict[str, int]:
    """Writes every data file of the demo below ``folder`` and returns the number of lines of each."""
    valid = validation_prompts(seed)
    users = [text for _, text in _distinct(TRAIN_CONTENTS, WRITTEN_TEMPLATES, USER_PROMPTS, seed, "rl-user")]
    captions = [
        text for _, text in _distinct(TRAIN_CONTENTS, grammar.CAPTION_TEMPLATES, CAPTION_PROMPTS, seed, "rl-caption")
    ]
    files: dict[str, list[str]] = {
        "pairs/train.jsonl": [json.dumps(pair) for pair in training_pairs(seed, "train", TARGETS)],
        "pairs/valid.jsonl": [json.dumps(pair) for pair in training_pairs(seed, "valid", VALIDATION_TARGETS)],
        "prompts/user.txt": [text for text in users if text not in set(valid)],
        "prompts/caption.txt": captions,
        "prompts/label.txt": labels()[0],
        "prompts/styled.txt": styled_prompts(seed),
        "prompts/valid.txt": valid,
        "prompts/eval.jsonl": [json.dumps(row) for row in evaluation_prompts(seed)],
    }
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}


def corpus_for_gpt2(seed: int) -> list[str]:
    """The text byte-level BPE is trained on: pairs as the language model sees them, and captions of every template."""
    pairs = [f"{pair['source']} Rephrase: {pair['target']}" for pair in training_pairs(seed, "train", 2000)]
    captions = [text for _, text in _distinct(TRAIN_CONTENTS, grammar.CAPTION_TEMPLATES, 500, seed, "rl-caption")]
    return pairs + captions
