"""What a study shows to whom: pairs of pictures, and for each rater an order and sides.

Everything is a draw of `promptist.rng`, so the same evaluation and options give the same study, byte by byte. Which
prompts are rated depends on the seed alone. What could unblind (ids, sides, order) is also keyed by the hash of the
evaluation's table, which raters do not have: the seed and this source code do not tell them who painted what.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptist import rng
from promptist.errors import UserError
from promptist.evaluation.table import Table

FORMAT, VERSION = "promptist-humaneval-key", 1
KEY = "key.json"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one prompt at one noise. `first` and `second` are methods, in the order of the comparison's name;
    `replicas` and `pictures` (opaque ids) follow it. Identical pictures are never shown and have no ids."""

    id: str
    first: str
    second: str
    prompt: str
    set: str
    noise: int
    replicas: tuple[int, int]
    pictures: tuple[str, str]

    @property
    def comparison(self) -> str:
        return f"{self.first}:{self.second}"

    @property
    def identical(self) -> bool:
        return not self.pictures[0]


@dataclass(frozen=True, slots=True)
class Showing:
    """One question to a rater: ids of the pair, of the picture called A (left) and of B."""

    pair: str
    left: str
    right: str


@dataclass(frozen=True)
class Study:
    """A drawn study: the secret that `key.json` holds. `orders[r]` are the showings of rater r + 1; `hash` is of all
    that raters get, pictures included."""

    seed: int
    evaluation: str
    table: str
    repeat: int
    labels: dict[str, str]
    pairs: list[Pair]
    orders: list[list[Showing]]
    hash: str = ""

    @property
    def comparisons(self) -> list[str]:
        return list(dict.fromkeys(pair.comparison for pair in self.pairs))

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(pair.set for pair in self.pairs))

    @property
    def shown(self) -> list[Pair]:
        return [pair for pair in self.pairs if not pair.identical]

    def public(self) -> dict[str, Any]:
        """What the page may know: prompts by the pairs' ids, and every rater's order. Sorted by id, which says
        nothing."""
        return {
            "prompts": {pair.id: pair.prompt for pair in sorted(self.shown, key=lambda pair: pair.id)},
            "orders": [[[s.pair, s.left, s.right] for s in order] for order in self.orders],
        }

    def write(self, path: Path) -> None:
        """`key.json`, readable by its owner alone."""
        path.touch(mode=0o600)
        path.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Study:
        """Inverse of `write`; UserError where `folder` is no study."""
        path = folder / KEY
        if not path.is_file():
            raise UserError(f"{folder} is no study ({KEY} is missing): name the folder that `humaneval make` wrote")
        try:
            found = json.loads(path.read_text())
            if (found.pop("format"), found.pop("version")) != (FORMAT, VERSION):
                raise UserError(f"{path} was written by another version of the suite: score with that version")
            pairs = [
                Pair(**{**pair, "replicas": tuple(pair["replicas"]), "pictures": tuple(pair["pictures"])})
                for pair in found.pop("pairs")
            ]
            orders = [[Showing(**showing) for showing in order] for order in found.pop("orders")]
            return cls(**found, pairs=pairs, orders=orders)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it, without it nothing can be unblinded") from None


def comparison(text: str, table: Table) -> tuple[str, str]:
    """`ppo:user` -> ("ppo", "user"), both methods of the evaluation."""
    methods = tuple(text.split(":"))
    if len(methods) != 2 or methods[0] == methods[1]:
        raise UserError(f"--pairs {text}: name two different methods, as in ppo:user")
    for method in methods:
        if method not in table.methods:
            raise UserError(f"--pairs {text}: the evaluation has no method {method!r}, only {', '.join(table.methods)}")
    return methods[0], methods[1]


def draw(
    table: Table,
    table_hash: str,
    comparisons: Sequence[tuple[str, str]],
    *,
    prompts: int,
    sets: Sequence[str],
    raters: int,
    repeat: int,
    seed: int,
    identical: Callable[[str, str], bool],
    evaluation: str = "",
    labels: dict[str, str] | None = None,
) -> Study:
    """Draw `prompts` prompts for each comparison, evenly over the `sets` that have both pictures, then every order.

    `identical(path, path)` tells whether two kept pictures are the same: such a pair is a tie that nobody needs to
    judge. UserError where pictures were not kept for enough prompts, or `repeat` asks for more than the study holds.
    """
    secret: tuple[str | int, ...] = ("humaneval", seed, table_hash)
    paths = {(p.prompt, p.method, p.replica, p.seed): p.path for p in table.pictures}
    used: dict[str, set[int]] = {}
    pairs: list[Pair] = []
    for first, second in comparisons:
        kept = {name: _kept(table, first, second, name) for name in sets}
        for name, count in zip(sets, _evenly(prompts, [len(kept[name]) for name in sets], first, second), strict=True):
            # Keyed by set alone: comparisons share their prompts as far as they can.
            of_set = [prompt for prompt, its_set in table.set_of.items() if its_set == name]
            drawn = [of_set[i] for i in rng.permutation(len(of_set), "humaneval prompts", seed, name)]
            for prompt in [prompt for prompt in drawn if prompt in kept[name]][:count]:
                # Another noise for each comparison: the same picture twice would tell which method is in both.
                noises = sorted(set(kept[name][prompt]) - used.get(prompt, set())) or sorted(kept[name][prompt])
                noise = noises[rng.integer(0, len(noises) - 1, "humaneval noise", seed, first, second, prompt)]
                used.setdefault(prompt, set()).add(noise)
                options = kept[name][prompt][noise]
                replicas = options[rng.integer(0, len(options) - 1, "humaneval replica", seed, first, second, prompt)]
                same = identical(paths[prompt, first, replicas[0], noise], paths[prompt, second, replicas[1], noise])
                ids = [_id(*secret, kind, len(pairs)) for kind in ("pair", "first", "second")]
                pictures = ("", "") if same else (ids[1], ids[2])
                pairs.append(Pair(ids[0], first, second, prompt, name, noise, replicas, pictures))
    shown = [pair for pair in pairs if not pair.identical]
    if not shown:
        raise UserError("both pictures of every pair are the same: there is nothing to rate, compare other methods")
    orders = [_order(shown, r, repeat, secret) for r in range(raters)]
    return Study(seed, evaluation, table_hash, repeat, labels or {}, pairs, orders)


def study_hash(public: dict[str, Any], pictures: dict[str, str]) -> str:
    """16 hex digits of the page's data and of the pictures' own hashes."""
    text = json.dumps({**public, "pictures": pictures}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _id(*parts: str | int) -> str:
    return f"{rng.key(*parts):032x}"[:12]


def _kept(table: Table, first: str, second: str, set_name: str) -> dict[str, dict[int, list[tuple[int, int]]]]:
    """prompt -> noise -> pairs of replicas whose pictures were kept. Where both methods were trained with the same
    training seed, only these two are compared: PPO starts from the SFT model of its own seed."""
    replicas: dict[tuple[str, str, int], list[int]] = {}
    for picture in table.pictures:
        replicas.setdefault((picture.prompt, picture.method, picture.seed), []).append(picture.replica)
    found: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for (prompt, method, noise), ours in replicas.items():
        theirs = replicas.get((prompt, second, noise))
        if method != first or not theirs or table.set_of.get(prompt) != set_name:
            continue
        options = [(a, b) for a in sorted(ours) for b in sorted(theirs)]
        alike = [option for option in options if option[0] == option[1]]
        trained = len(table.replicas(first)) > 1 and len(table.replicas(second)) > 1
        found.setdefault(prompt, {})[noise] = alike if trained and alike else options
    return {prompt: found[prompt] for prompt in table.set_of if prompt in found}


def _evenly(count: int, sizes: Sequence[int], first: str, second: str) -> list[int]:
    """`count` dealt over groups of `sizes`, one each in turn until a group is used up."""
    if count > sum(sizes):
        raise UserError(
            f"--prompts {count}: only {sum(sizes)} prompts have pictures of both {first} and {second} at one noise; "
            "ask for fewer, or evaluate with more kept `pictures`"
        )
    dealt = [0] * len(sizes)
    while sum(dealt) < count:
        for i, size in enumerate(sizes):
            if dealt[i] < size and sum(dealt) < count:
                dealt[i] += 1
    return dealt


def _order(pairs: Sequence[Pair], rater: int, repeat: int, secret: tuple[str | int, ...]) -> list[Showing]:
    """Showings of one rater (counted from 0): all pairs once, then `repeat` of the first third again, swapped,
    somewhere in the last half.

    Each method of a comparison is on the left for half of its pairs. Raters come in twos with opposite sides.
    """
    if repeat > len(pairs) // 3:
        raise UserError(f"--repeat {repeat} is too much for {len(pairs)} pairs to show: repeat a third of them at most")
    first_left: dict[str, bool] = {}
    for name in dict.fromkeys(pair.comparison for pair in pairs):
        own = [pair for pair in pairs if pair.comparison == name]
        for place, i in enumerate(rng.permutation(len(own), *secret, "sides", rater // 2, name)):
            first_left[own[i].id] = (2 * place < len(own)) != bool(rater % 2)
    sequence = [pairs[i] for i in rng.permutation(len(pairs), *secret, "sequence", rater)]
    again = [sequence[i] for i in rng.permutation(len(pairs) // 3, *secret, "again", rater)[:repeat]]
    half = len(sequence) - len(sequence) // 2
    tail = [(pair, False) for pair in sequence[half:]] + [(pair, True) for pair in again]
    tail = [tail[i] for i in rng.permutation(len(tail), *secret, "tail", rater)]
    return [
        Showing(pair.id, *(pair.pictures if first_left[pair.id] != swapped else pair.pictures[::-1]))
        for pair, swapped in [(pair, False) for pair in sequence[:half]] + tail
    ]
