"""`promptist data check-disjoint | suffixes`: looks at prompts and pairs before they are used."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from promptist.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Entry of `promptist data`."""
    parser = argparse.ArgumentParser(prog="promptist data", description="Look at files of prompts and pairs.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    check = verbs.add_parser(
        "check-disjoint",
        help="see that no evaluation prompt occurs in training files",
        description="Compared without case, spacing and punctuation at the end; exit code 64 where one occurs.",
    )
    check.add_argument("evaluation", type=Path, metavar="EVAL", help="evaluation prompts: JSONL, or text")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE", help="training prompts or pairs: JSONL, or text")
    check.set_defaults(run=_check)

    suffixes = verbs.add_parser(
        "suffixes",
        help="the most frequent suffixes of training targets, as rows of an evaluation",
        description="Prints rows for `methods` of an evaluation config. On validation prompts, the best of them is the "
        "best fixed suffix.",
    )
    suffixes.add_argument("pairs", type=Path, metavar="PAIRS", help="JSONL with `source` and `target`")
    suffixes.add_argument("--top", type=int, default=20, metavar="N", help="how many (20)")
    suffixes.set_defaults(run=_suffixes)

    options = parser.parse_args(list(argv))
    options.run(options)
    return 0


def _check(options: argparse.Namespace) -> None:
    from promptist.data.disjoint import check_disjoint
    from promptist.evaluation.prompts import fingerprint, load_eval_prompts

    prompts = load_eval_prompts(options.evaluation)
    counts = check_disjoint([prompt.x for prompt in prompts], options.files)
    sets = ", ".join(f"{name} {count}" for name, count in Counter(prompt.set for prompt in prompts).items())
    print(f"{options.evaluation}: {len(prompts)} prompts ({sets}), fingerprint {fingerprint(prompts)}")
    for file, count in counts.items():
        print(f"{file}: none of them among its {count} texts")


def _suffixes(options: argparse.Namespace) -> None:
    from promptist.evaluation.random_modifiers import read_pool

    if options.top < 1:
        raise UserError(f"--top is {options.top}: ask for at least 1 suffix")
    pool = read_pool(options.pairs)
    for number, (text, count) in enumerate(pool.suffixes()[: options.top], start=1):
        share = f"{count} of {len(pool.targets)} targets"
        print(
            f"  - {{name: suffix-{number:02d}, kind: suffix, text: {json.dumps(text, ensure_ascii=False)}}}  # {share}"
        )
