"""The miniature world's evaluation sets: the paper's six and labels, held out, and the same six to choose options on.

`prompts/test.jsonl` asks for contents that no training has seen. It is for the last comparison, opened once. What is
tried and chosen before that (option sets, the best fixed suffix) is chosen on `prompts/validation.jsonl`, whose
contents are those of training and whose texts occur in no training file. The small `prompts/eval.jsonl` is the demo's.

| set | prompts x | human-engineered |
| --- | --- | --- |
| MC, MCM, RMC, RTP | the four sources of a target (paper section 2.2), each set with targets of its own | the target |
| in-domain | captions as users write them | the caption with modifiers of human taste |
| out-of-domain | captions in sentences that supervised fine-tuning has not seen | none |
| label | held-out labels that `eval.jsonl` leaves (test only: training takes all others) | none |

A text stands once over all sets and files, as `normalise` compares. An MCM source that lost all modifiers would be an
MC source, and is drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptist.data.disjoint import normalise, texts_of_file
from promptist.synthetic import grammar, prompts
from promptist.synthetic.grammar import Content
from promptist.synthetic.scenes import HELD_OUT_CONTENTS, TRAIN_CONTENTS

VERSION = 1
"""Of the draws: part of every key, so that another version shares no draw with this one."""

KINDS = ("MC", "MCM", "RMC", "RTP")
SETS = (*KINDS, "in-domain", "out-of-domain")
TEST_SIZE, VALIDATION_SIZE = 200, 40  # of each of the six sets
TEST, VALIDATION = "prompts/test.jsonl", "prompts/validation.jsonl"
TRAINING = ("pairs/train.jsonl", "prompts/user.txt", "prompts/caption.txt", "prompts/label.txt", "prompts/styled.txt")
CHOSEN_WITH = ("pairs/valid.jsonl", "prompts/valid.txt")  # what trainings validate on
DEMO = "prompts/eval.jsonl"


def write(folder: Path, seed: int) -> dict[str, int]:
    """Writes both files below `folder`, which holds the files of `prompts.write_all`; their numbers of lines.

    UserError where one of those is missing.
    """
    taken = {normalise(text) for name in (*TRAINING, *CHOSEN_WITH, DEMO) for _, text in texts_of_file(folder / name)}
    test = _sets(seed, "test", HELD_OUT_CONTENTS, TEST_SIZE, taken)
    test += [{"prompt": text, "set": "label"} for text in prompts.labels()[1] if _take(text, taken)]
    validation = _sets(seed, "validation", TRAIN_CONTENTS, VALIDATION_SIZE, taken)
    files = {TEST: test, VALIDATION: validation}
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}


def _sets(seed: int, split: str, contents: Sequence[Content], size: int, taken: set[str]) -> list[dict[str, Any]]:
    """`size` rows of each of the six sets; contents take turns in a shuffled order. Adds the texts to `taken`.

    ValueError where the world has too few texts.
    """
    rows = []
    for name in SETS:
        key = (seed, "evaluation-sets", VERSION, split, name)
        found: list[dict[str, Any]] = []
        for turn, (content, rng) in enumerate(prompts.in_turns(contents, *key)):
            if len(found) == size:
                break
            if turn > 50 * size:
                raise ValueError(f"the miniature world has fewer than {size} texts left for the set {name} of {split}")
            row = _row(name, content, rng)
            if row is not None and _take(row["prompt"], taken):
                found.append(row)
        rows += found
    return rows


def _row(name: str, content: Content, rng: np.random.Generator) -> dict[str, Any] | None:
    """One draw for a set, None where it is none of its kind."""
    if name in KINDS:
        pairs = {pair["kind"]: pair for pair in prompts.pairs_of_target(content, "", rng)}
        source, target = pairs[name]["source"], pairs[name]["target"]
        if name == "MCM" and source == pairs["MC"]["source"]:
            return None
        return {"prompt": source, "set": name, "human": target}
    if name == "in-domain":
        caption = prompts.user_caption(content, rng)
        return {"prompt": caption, "set": name, "human": grammar.prompt(caption, prompts.engineer(content, rng))}
    return {"prompt": prompts.user_caption(content, rng, grammar.CAPTION_TEMPLATES), "set": name}


def _take(text: str, taken: set[str]) -> bool:
    """Whether a text was free; it no longer is."""
    same = normalise(text)
    free = same not in taken
    taken.add(same)
    return free
