"""Diversity of rewrites: suffixes by hand, entropy against scipy, self-BLEU against nltk."""

from __future__ import annotations

import math

import numpy as np
import pytest

from promptist.data.words import clauses, words
from promptist.evaluation.diversity import diversity, self_bleu

REWRITES = [
    ("a red boat", "a red boat, rainbow, 4k"),
    ("a cat", "a cat, 4k, rainbow"),
    ("a dog", "a dog, 4k, Rainbow."),
    ("a bird", "a bird, fog"),
    ("a fish", ""),
    ("a tree", "a tree"),
]


def test_suffixes_by_hand() -> None:
    found = diversity(REWRITES)
    assert found.count == 6
    assert (found.top_suffix, found.top_suffix_share) == ("4k, rainbow", 3 / 6)
    assert found.unchanged == 2 / 6
    assert found.distinct_suffixes == 3 / 6
    assert found.distinct_modifiers == 3
    assert found.modifiers == (("4k", 3), ("rainbow", 3), ("fog", 1))
    assert {**found.figures, "suffix_entropy": 0, "self_bleu": 0} == {
        "top_suffix_share": 0.5, "unchanged": 1 / 3, "distinct_suffixes": 0.5, "suffix_entropy": 0,
        "distinct_modifiers": 3.0, "self_bleu": 0,
    }  # fmt: skip


def test_entropy_against_scipy() -> None:
    from scipy.stats import entropy

    assert diversity(REWRITES).suffix_entropy == pytest.approx(entropy([3, 1, 2]))


def test_a_collapsed_policy_and_one_that_never_repeats_itself() -> None:
    same = diversity([(f"a cat number {i}", f"a cat number {i}, fog") for i in range(8)])
    assert (same.top_suffix_share, same.suffix_entropy, same.distinct_suffixes) == (1.0, 0.0, 1 / 8)
    other = diversity([("a cat", f"a cat, style {i}") for i in range(8)])
    assert (other.top_suffix_share, other.distinct_suffixes, other.distinct_modifiers) == (1 / 8, 1.0, 8)
    assert other.suffix_entropy == pytest.approx(math.log(8))


def test_a_method_that_leaves_all_as_it_is_counts_as_uniform() -> None:
    found = diversity([("a cat", ""), ("a dog", "a dog")])
    assert (found.top_suffix, found.top_suffix_share, found.unchanged) == ("", 1.0, 1.0)
    assert found.modifiers == ()


def test_one_rewrite_has_no_self_bleu() -> None:
    assert diversity([("a cat", "a cat, fog")]).self_bleu is None
    assert "self_bleu" not in diversity([("a cat", "a cat, fog")]).figures
    with pytest.raises(ValueError, match="at least two"):
        self_bleu(["a cat"])
    with pytest.raises(ValueError, match="no rewrite"):
        diversity([])


def _texts(seed: int, count: int, vocabulary: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [
        " ".join(f"w{i}" for i in generator.integers(vocabulary, size=generator.integers(1, 14))) for _ in range(count)
    ]


@pytest.mark.parametrize(
    "texts",
    [
        *[_texts(seed, 12, vocabulary) for seed, vocabulary in enumerate((2, 3, 5, 8, 40))],
        ["a cat, 4k, rainbow", "a cat, 4k, rainbow", "a dog, fog"],
        ["a", "b"],
        ["a a a a", "a a", "a"],
        [y or x for x, y in REWRITES],
    ],
)
def test_self_bleu_against_nltk(texts: list[str]) -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    rows = [[word for clause in clauses(text) for word in words(clause)] for text in texts]
    smooth = bleu.SmoothingFunction().method1
    expected = [
        bleu.sentence_bleu(rows[:i] + rows[i + 1 :], row, smoothing_function=smooth) for i, row in enumerate(rows)
    ]
    assert self_bleu(texts) == pytest.approx(np.mean(expected), rel=1e-9)


def test_self_bleu_of_equal_texts_is_one() -> None:
    assert self_bleu(["a cat on a mat, fog"] * 5) == pytest.approx(1.0)
