"""What raters saved: read, checked against the study, unblinded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptist.errors import UserError
from promptist.humaneval.study import Study

FORMAT, VERSION = "promptist-humaneval-ratings", 1
CHOICES = ("left", "right", "equal")


@dataclass(frozen=True, slots=True)
class Rating:
    """One answer, unblinded. `value` is +1 where the first method of the comparison was preferred, -1 where the
    second, 0 for equally good; `again` marks the second, swapped showing of a pair; `seconds` is how long both
    pictures stood there."""

    rater: int
    place: int
    pair: str
    comparison: str
    set: str
    prompt: str
    noise: int
    left: str
    right: str
    choice: str
    preferred: str
    value: int
    again: bool
    seconds: float


def read_ratings(study: Study, paths: Sequence[Path], allow_incomplete: bool = False) -> list[Rating]:
    """The ratings of all files, by rater and place. UserError for a file that is no result of this study, was
    changed, is of a rater that another file has, or is not finished (unless `allow_incomplete`)."""
    by_rater: dict[int, tuple[Path, list[Rating]]] = {}
    for path in paths:
        rater, answers = _read(study, path)
        if rater in by_rater:
            raise UserError(
                f"{path} and {by_rater[rater][0]} are both of rater {rater}: name one of them; every rater needs a "
                "number of their own"
            )
        missing = sum(answer is None for answer in answers)
        if missing and not allow_incomplete:
            raise UserError(
                f"{path}: rater {rater} answered {len(answers) - missing} of {len(answers)} pairs; let them go on from "
                "this file on the page, or score what there is with --allow-incomplete"
            )
        if missing == len(answers):
            raise UserError(f"{path}: rater {rater} answered nothing: leave the file out")
        by_rater[rater] = path, _unblind(study, path, rater, answers)
    return [rating for rater in sorted(by_rater) for rating in by_rater[rater][1]]


def _read(study: Study, path: Path) -> tuple[int, list[Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name the files that raters saved") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a rater's file ({error}): ask the rater to save it again") from None
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path} is not a file that a rater saved from the page of this version of the suite")
    if found.get("study") != study.hash:
        raise UserError(
            f"{path} belongs to study {found.get('study')}, the key is of study {study.hash}: score it with its own"
        )
    rater, answers = found.get("rater"), found.get("answers")
    if not isinstance(rater, int) or not 1 <= rater <= len(study.orders):
        raise UserError(f"{path}: the study has raters 1 to {len(study.orders)}, none is {rater!r}")
    if not isinstance(answers, list) or len(answers) != len(study.orders[rater - 1]):
        raise UserError(
            f"{path}: rater {rater} has {len(study.orders[rater - 1])} pairs to answer; the file was changed"
        )
    return rater, answers


def _unblind(study: Study, path: Path, rater: int, answers: Sequence[Any]) -> list[Rating]:
    pairs = {pair.id: pair for pair in study.pairs}
    ratings, seen = [], set()
    for place, (answer, showing) in enumerate(zip(answers, study.orders[rater - 1], strict=True), start=1):
        again = showing.pair in seen
        seen.add(showing.pair)
        if answer is None:
            continue
        try:
            ids = answer["pair"], answer["left"], answer["right"]
            choice, seconds = answer["choice"], float(answer["ms"]) / 1000
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: answer {place} lacks an id, the choice or the time; the file was changed"
            ) from None
        if ids != (showing.pair, showing.left, showing.right):
            raise UserError(
                f"{path}: answer {place} is about pair {ids[0]} with pictures {ids[1]} and {ids[2]}, which rater "
                f"{rater} was not shown there; the file was changed"
            )
        if choice not in CHOICES:
            raise UserError(
                f"{path}: answer {place} is {choice!r}, not one of {', '.join(CHOICES)}; the file was changed"
            )
        pair = pairs[showing.pair]
        methods = (pair.first, pair.second) if showing.left == pair.pictures[0] else (pair.second, pair.first)
        preferred = {"left": methods[0], "right": methods[1], "equal": ""}[choice]
        value = {pair.first: 1, pair.second: -1, "": 0}[preferred]
        ratings.append(
            Rating(
                rater, place, pair.id, pair.comparison, pair.set, pair.prompt, pair.noise, *methods, choice, preferred,
                value, again, seconds,
            )
        )  # fmt: skip
    return ratings
