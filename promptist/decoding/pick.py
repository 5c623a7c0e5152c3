"""Which of the responses a decoder could give becomes the rewrite of a prompt, at validation and in use.

`best` is the one a search ranks first. With `hash` the text of the prompt decides what chance decides in training: the
beam of a beam search, or the draws of `sample`. Over prompts the beams are used evenly and the samples are independent,
and the same prompt always gets the same rewrite (docs/remedies.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from promptist import rng
from promptist.decoding.config import DecodingConfig
from promptist.errors import UserError

Pick = Literal["best", "hash"]

PICK_SEED = 0
"""The seed of validation, and of a model folder that names none."""

_PURPOSE = "pick-rewrite"


def check_pick(key: str, pick: Pick, decoding: DecodingConfig) -> None:
    """UserError, naming the config key, for an unknown way to pick, draws that nothing fixes, and a hash that has
    nothing to decide."""
    if pick not in ("best", "hash"):
        raise UserError(f"{key} is {pick!r}; use best or hash")
    if pick == "best" and decoding.method == "sample":
        raise UserError(
            f"{key} = best goes with decoding method beam, diverse_beam or greedy: a rewrite must not depend on "
            "chance, and with method sample only hash fixes the draws"
        )
    if pick == "hash" and (decoding.method == "greedy" or (decoding.method != "sample" and decoding.beams < 2)):
        raise UserError(
            f"{key} = hash picks one of several beams or fixes the draws of a sample, and {decoding.method} with "
            f"{decoding.beams} beams has one response: use sample, diverse_beam or beam with at least 2 beams, or best"
        )


def asked_for(pick: Pick, decoding: DecodingConfig) -> int:
    """How many responses of a prompt are decoded for one rewrite."""
    return decoding.beams if pick == "hash" and decoding.method != "sample" else 1


def place_of(pick: Pick, count: int, seed: int, x: str) -> int:
    """The place, of `count` responses best first, of the one that becomes the rewrite of x.

    By `hash` it is uniform over prompts and a pure function of seed and text (blanks around it aside).
    """
    return rng.integer(0, count - 1, _PURPOSE, seed, x.strip()) if pick == "hash" else 0


def keys_of(decoding: DecodingConfig, seed: int, prompts: Sequence[str]) -> list[tuple[str | int, ...]] | None:
    """What `decode` draws the samples of the prompts with; None for a method without draws."""
    return [(_PURPOSE, seed, x.strip()) for x in prompts] if decoding.method == "sample" else None
