"""How different a method's rewrites are from each other, read off the texts of one set.

A suffix is what a rewrite adds to its prompt, as an unordered set of modifiers (`promptist/data/modifiers.py`). A
policy that has collapsed adds the same to every prompt. An empty suffix (nothing added) is counted as one, too: a
method that leaves all prompts as they are is as uniform as can be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from promptist.data.modifiers import added
from promptist.data.words import clauses, words

MAX_ORDER = 4
SMOOTHING = (
    0.1  # method 1 of Chen & Cherry (2014), A Systematic Comparison of Smoothing Techniques for Sentence-Level BLEU
)


@dataclass(frozen=True)
class Diversity:
    """Figures of N rewrites by one training of a method.

    - `top_suffix`, `top_suffix_share`: the most frequent suffix (its modifiers in the order in which they stand most
      often, "" for nothing added; the first of equally frequent ones by text) and the share of rewrites that have it.
    - `unchanged`: share of rewrites that add nothing.
    - `distinct_suffixes`: number of different suffixes over N; 1 where no two rewrites add the same.
    - `suffix_entropy`: entropy of the distribution of suffixes, nats; 0 where all add the same, at most log N.
    - `distinct_modifiers`: number of different modifiers.
    - `modifiers`: how many rewrites add each modifier, most frequent first.
    - `self_bleu`: as `self_bleu` of the painted texts; None for a single rewrite.
    """

    count: int
    top_suffix: str
    top_suffix_share: float
    unchanged: float
    distinct_suffixes: float
    suffix_entropy: float
    distinct_modifiers: int
    modifiers: tuple[tuple[str, int], ...]
    self_bleu: float | None

    @property
    def figures(self) -> dict[str, float]:
        """The single numbers by name, in order, for tables; `self_bleu` where there is one."""
        names = ("top_suffix_share", "unchanged", "distinct_suffixes", "suffix_entropy", "distinct_modifiers")
        bleu = {} if self.self_bleu is None else {"self_bleu": self.self_bleu}
        return {**{name: float(getattr(self, name)) for name in names}, **bleu}


def diversity(rewrites: Sequence[tuple[str, str]]) -> Diversity:
    """Figures of the pairs (x, y); an empty y leaves x as it is. ValueError for no pair."""
    if not rewrites:
        raise ValueError("there is no rewrite to measure the diversity of")
    n = len(rewrites)
    additions = [added(x, y) for x, y in rewrites]
    suffixes = Counter(map(frozenset, additions))
    written: dict[frozenset[str], Counter[str]] = {}
    for addition in additions:
        written.setdefault(frozenset(addition), Counter())[", ".join(addition)] += 1
    texts = {suffix: min(counts, key=lambda text: (-counts[text], text)) for suffix, counts in written.items()}
    top = min(suffixes, key=lambda suffix: (-suffixes[suffix], texts[suffix]))
    modifiers = Counter(modifier for addition in additions for modifier in addition)
    return Diversity(
        count=n,
        top_suffix=texts[top],
        top_suffix_share=suffixes[top] / n,
        unchanged=suffixes[frozenset()] / n,
        distinct_suffixes=len(suffixes) / n,
        suffix_entropy=-sum(c / n * math.log(c / n) for c in suffixes.values()) + 0.0,
        distinct_modifiers=len(modifiers),
        modifiers=tuple(sorted(modifiers.items(), key=lambda row: (-row[1], row[0]))),
        self_bleu=self_bleu([y.strip() or x for x, y in rewrites]) if n > 1 else None,
    )


def self_bleu(texts: Sequence[str]) -> float:
    """Mean over the texts of BLEU-4 with all other texts as references (Zhu et al. 2018, *Texygen*); 1 where all are
    the same, lower is more diverse.

    Words as `promptist/data/words.py` has them; precisions without a match are smoothed by method 1 of Chen & Cherry
    (2014) as in nltk, and the brevity penalty is against the reference of the closest length. The same number as nltk's
    `sentence_bleu`, in time linear in the number of texts: of every n-gram the two largest counts over the texts are
    enough to clip those of each. ValueError for less than two texts.
    """
    if len(texts) < 2:
        raise ValueError("self-BLEU compares texts with each other: give at least two")
    rows = [[word for clause in clauses(text) for word in words(clause)] for text in texts]
    grams = [[_ngrams(row, order) for row in rows] for order in range(1, MAX_ORDER + 1)]
    largest = [_two_largest(of_order) for of_order in grams]
    lengths = Counter(len(row) for row in rows)
    scores = []
    for i, row in enumerate(rows):
        matched = [_matched(of_order[i], most) for of_order, most in zip(grams, largest, strict=True)]
        scores.append(_bleu(matched, len(row), _closest(len(row), lengths)))
    return math.fsum(scores) / len(scores)


def _ngrams(row: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(row[i : i + order]) for i in range(len(row) - order + 1))


def _two_largest(counters: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int]]:
    """Of every n-gram its largest count in a text, and the largest in another one."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for counter in counters:
        for gram, count in counter.items():
            first, second = found.get(gram, (0, 0))
            found[gram] = (count, first) if count > first else (first, max(count, second))
    return found


def _matched(own: Counter[tuple[str, ...]], largest: dict[tuple[str, ...], tuple[int, int]]) -> int:
    """How many n-grams of a text some other text has as often. Its own count is the largest of all or no limit."""
    total = 0
    for gram, count in own.items():
        first, second = largest[gram]
        total += min(count, second if count == first else first)
    return total


def _closest(length: int, lengths: Counter[int]) -> int:
    """The length of another text that is nearest to `length`; the shorter of two as near."""
    others = lengths - Counter([length])
    return min(others, key=lambda other: (abs(other - length), other))


def _bleu(matched: Sequence[int], length: int, reference: int) -> float:
    if matched[0] == 0:
        return 0.0
    total = 0.0
    for order, hits in enumerate(matched, start=1):
        possible = max(length - order + 1, 1)
        total += math.log((hits or SMOOTHING) / possible)
    brevity = 1.0 if length > reference else math.exp(1 - reference / length)
    return brevity * math.exp(total / MAX_ORDER)
