"""Modifiers as training targets have them, drawn at random: what a prompt gains by modifiers that were not chosen for
it; and the most frequent suffixes of the targets, of which the best fixed one is found by an evaluation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from promptist import rng
from promptist.data.modifiers import added
from promptist.data.prompts import parse_record, read_lines, text_field
from promptist.errors import UserError

TRIES = 1_000
"""Draws for one prompt, those in vain included: a small pool may hold less than is wanted."""


@dataclass(frozen=True)
class Pool:
    """The modifiers of each training target, in its order; a target without any is an empty list."""

    targets: list[list[str]]

    @cached_property
    def _places(self) -> list[str]:
        return [modifier for target in self.targets for modifier in target]

    def draw(self, x: str) -> list[str]:
        """Modifiers for x: as many as a random target has, each that of a random place in the targets, so that
        frequent ones come often; none twice and none that has words of x. Fewer where `TRIES` draws find no more.

        A pure function of pool and x (blanks around it aside).
        """
        generator = rng.generator("random-modifiers", x.strip())
        wanted = len(self.targets[int(generator.integers(len(self.targets)))])
        drawn: list[str] = []
        for place in generator.integers(len(self._places), size=TRIES).tolist():
            if len(drawn) == wanted:
                break
            modifier = self._places[place]
            if modifier not in drawn and added(x, modifier) == [modifier]:
                drawn.append(modifier)
        return drawn

    def suffixes(self) -> list[tuple[str, int]]:
        """Suffixes as unordered sets of modifiers, most frequent first, with the number of their targets; each as the
        text in which it stands most often. Equally frequent ones are in the order of their text."""
        texts: dict[frozenset[str], Counter[str]] = {}
        for target in self.targets:
            if target:
                texts.setdefault(frozenset(target), Counter())[", ".join(target)] += 1
        found = [(min(t for t in c if c[t] == max(c.values())), c.total()) for c in texts.values()]
        return sorted(found, key=lambda row: (-row[1], row[0]))


def read_pool(path: str | Path) -> Pool:
    """The pool of a JSONL file of pairs with `source` and `target`.

    Pairs with the same `group`, else with the same target, are one target. Its modifiers are what it adds to its plain
    source: that of `kind` MC where there is one (paper section 2.2), else that to which it adds most. UserError naming
    file and line, and where no target adds anything.
    """
    path = Path(path)
    plain: dict[str, tuple[str, str]] = {}
    others: dict[str, list[tuple[str, str]]] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        record = parse_record(line, where)
        pair = text_field(record, "source", where), text_field(record, "target", where)
        group = str(record.get("group", pair[1]))
        others.setdefault(group, []).append(pair)
        if record.get("kind") == "MC":
            plain.setdefault(group, pair)
    targets = [
        added(*plain[group]) if group in plain else max((added(*pair) for pair in pairs), key=len)
        for group, pairs in others.items()
    ]
    if not any(targets):
        raise UserError(f"{path}: no target adds a modifier to its source, so there is nothing to draw from")
    return Pool(targets)
