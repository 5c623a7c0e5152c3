"""Which of a prompt's responses becomes its rewrite, at validation and in use.

`best` is the one the search ranks first. `hash` is one of the beams, decided by the text of the prompt: over prompts
the beams are used evenly, as in training, where one of them is picked at random, and the same prompt always gets the
same rewrite (docs/remedies.md).
"""

from __future__ import annotations

from typing import Literal

from promptist import rng
from promptist.decoding.config import DecodingConfig
from promptist.errors import UserError

Pick = Literal["best", "hash"]

PICK_SEED = 0
"""The seed of validation, and of a model folder that names none."""


def check_pick(key: str, pick: Pick, decoding: DecodingConfig) -> None:
    """UserError, naming the config key, for an unknown way to pick and for a hash over a single response."""
    if pick not in ("best", "hash"):
        raise UserError(f"{key} is {pick!r}; use best or hash")
    if pick == "hash" and (decoding.method not in ("beam", "diverse_beam") or decoding.beams < 2):
        raise UserError(
            f"{key} = hash picks one of several beams, and {decoding.method} with {decoding.beams} beams returns one "
            "response: use diverse_beam or beam with at least 2 beams, or best"
        )


def asked_for(pick: Pick, decoding: DecodingConfig) -> int:
    """How many responses of a prompt are decoded for one rewrite."""
    return decoding.beams if pick == "hash" else 1


def place_of(pick: Pick, count: int, seed: int, x: str) -> int:
    """The place, of `count` responses best first, of the one that becomes the rewrite of x.

    By `hash` it is uniform over prompts and a pure function of seed and text (blanks around it aside).
    """
    return rng.integer(0, count - 1, "pick-rewrite", seed, x.strip()) if pick == "hash" else 0
