"""`promptist humaneval make | score`."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from promptist.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Entry of `promptist humaneval`."""
    parser = argparse.ArgumentParser(
        prog="promptist humaneval", description="Let people compare the pictures of an evaluation, blinded."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    make = verbs.add_parser("make", help="write the rating page and its key")
    make.add_argument(
        "evaluation", type=Path, metavar="EVAL", help="folder of a finished evaluation with kept pictures"
    )
    make.add_argument(
        "--pairs", nargs="+", required=True, metavar="A:B", help="methods to compare, e.g. ppo:user ppo:human"
    )
    make.add_argument("--prompts", type=_positive, default=60, metavar="N", help="prompts of each comparison (60)")
    make.add_argument("--sets", nargs="+", metavar="SET", help="prompt sets to draw from (default: all)")
    make.add_argument("--raters", type=_positive, default=3, metavar="N", help="how many people will rate (3)")
    make.add_argument(
        "--repeat", type=_not_negative, default=5, metavar="N", help="pairs that each rater sees twice, swapped (5)"
    )
    make.add_argument("--seed", type=int, default=0, help="another draw of prompts, sides and order (0)")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for rate/ and key.json")
    make.set_defaults(run=_make)
    score = verbs.add_parser("score", help="unblind and aggregate what raters saved")
    score.add_argument("folder", type=Path, metavar="DIR", help="folder that `make` wrote")
    score.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json", help="one file for each rater")
    score.add_argument("--allow-incomplete", action="store_true", help="accept raters who did not answer everything")
    score.set_defaults(run=_score)
    options = parser.parse_args(list(argv))
    options.run(options)
    return 0


def _make(options: argparse.Namespace) -> None:
    from promptist.evaluation.methods import label
    from promptist.evaluation.table import MEASUREMENTS, read_table
    from promptist.humaneval import rate, study

    folder: Path = options.evaluation
    table = read_table(folder)
    comparisons = [study.comparison(text, table) for text in options.pairs]
    if len({frozenset(pair) for pair in comparisons}) < len(comparisons):
        raise UserError("--pairs names the same two methods twice: name each pair once")
    sets = options.sets or table.sets
    for name in sets:
        if name not in table.sets:
            raise UserError(f"--sets: the evaluation has no set {name!r}, only {', '.join(table.sets)}")
    drawn = study.draw(
        table,
        hashlib.sha256((folder / MEASUREMENTS).read_bytes()).hexdigest(),
        comparisons,
        prompts=options.prompts,
        sets=list(dict.fromkeys(sets)),
        raters=options.raters,
        repeat=options.repeat,
        seed=options.seed,
        identical=lambda one, other: rate.identical(folder / one, folder / other),
        evaluation=folder.name,
        labels={method: label(method) for pair in comparisons for method in pair},
    )
    made = rate.write(options.out, drawn, table, folder)
    _say(f"Study {made.hash}: {len(made.pairs)} pairs, {len(made.sets)} sets, {options.raters} raters.")
    for name in made.comparisons:
        own = [pair for pair in made.pairs if pair.comparison == name]
        by_set = ", ".join(f"{s} {n}" for s in made.sets if (n := sum(pair.set == s for pair in own)))
        same = sum(pair.identical for pair in own)
        tail = f"; {same} with the same picture twice, not shown and counted as equally good" if same else ""
        _say(f"{name}: {len(own)} prompts ({by_set}){tail}.")
    twice = len(made.shown) - len({(p.prompt, p.noise) for p in made.shown})
    if twice:
        _say(
            f"{twice} pairs share prompt and noise with another comparison's, as too few noises were kept: a rater may "
            "recognise a picture."
        )
    _say(
        f"Each rater answers {len(made.orders[0])} questions. Give them {options.out / 'rate'} (whole), rater r opens "
        f"index.html?rater=r. Keep {options.out / study.KEY} from them: it tells who painted what. Then: "
        f"promptist humaneval score {options.out} ratings-*.json"
    )


def _score(options: argparse.Namespace) -> None:
    from promptist.humaneval.bars import save_bars
    from promptist.humaneval.ratings import Rating, read_ratings
    from promptist.humaneval.scores import Preference, score
    from promptist.humaneval.study import Study
    from promptist.humaneval.words import markdown, summary

    study = Study.read(options.folder)
    ratings = read_ratings(study, options.results, options.allow_incomplete)
    found = score(study, ratings)
    out: Path = options.folder / "scores"
    out.mkdir(exist_ok=True)
    (out / "scores.json").write_text(json.dumps(found.as_dict(), indent=1) + "\n")
    _csv(out / "scores.csv", [_flat(asdict(preference)) for preference in found.preferences], Preference)
    _csv(out / "ratings.csv", [asdict(rating) for rating in ratings], Rating)
    save_bars(out, found.preferences, study.labels)
    (out / "summary.md").write_text(markdown(found, study.labels), encoding="utf-8")
    for sentence in summary(found, study.labels):
        _say(sentence)
    print(out / "summary.md")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Shares and intervals as columns of their own."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("shares", "intervals"):
            for part, inner in zip(("first", "equal", "second"), value, strict=True):
                if name == "shares":
                    flat[f"share_{part}"] = inner
                else:
                    flat[f"share_{part}_low"], flat[f"share_{part}_high"] = inner
        elif name.endswith("_interval"):
            stem = name.removesuffix("_interval")
            flat[f"{stem}_low"], flat[f"{stem}_high"] = value or (None, None)
        else:
            flat[name] = value
    return flat


def _csv(path: Path, rows: Sequence[Mapping[str, Any]], kind: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [f.name for f in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _say(sentence: str) -> None:
    print(textwrap.fill(sentence, 100, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value
