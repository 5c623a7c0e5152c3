"""The score of a rewrite, worked out by hand, and the draw of noise keys."""

from __future__ import annotations

import pytest

from promptist.errors import UserError
from promptist.reward.terms import TermsConfig, combine, noise_keys


def test_hinge_is_taken_per_picture_before_the_mean() -> None:
    # Cosine 0.20: 20 * 0.20 - 5.6 = -1.6. Cosine 0.40 lies above the hinge and cannot make up for it.
    score = combine([0.20, 0.40], [6.0, 6.5], [5.0, 5.25], TermsConfig(images=2))
    assert score.relevance == pytest.approx(-0.8)
    assert score.aesthetic == pytest.approx((1.0 + 1.25) / 2)
    assert score.score == pytest.approx(1.125 - 0.8)


def test_own_slope_and_offset() -> None:
    score = combine([0.5], [0.0], [0.0], TermsConfig(slope=4, offset=3, images=1))
    assert score.score == pytest.approx(-1.0)


def test_unchanged_prompt_scores_its_relevance_only() -> None:
    score = combine([0.25], [5.5], [5.5], TermsConfig(images=1))
    assert (score.aesthetic, score.score) == (0.0, pytest.approx(-0.6))


@pytest.mark.parametrize("cosines", [[], [0.1]])
def test_every_picture_needs_its_pair(cosines: list[float]) -> None:
    with pytest.raises(ValueError, match="noise key"):
        combine(cosines, [1.0] * len(cosines), [], TermsConfig(images=1))


def test_noise_keys_are_distinct_repeatable_and_cover_the_bank() -> None:
    drawn = [noise_keys(1, visit, row, images=3, bank=16) for visit in range(40) for row in range(5)]
    assert all(len(set(ks)) == 3 and min(ks) >= 0 and max(ks) < 16 for ks in drawn)
    assert drawn[7] == noise_keys(1, 1, 2, images=3, bank=16)
    assert {k for ks in drawn for k in ks} == set(range(16))
    assert len({tuple(ks) for ks in drawn}) > 150  # another visit, other noises
    assert noise_keys(1, 0, 0, images=16, bank=16) != noise_keys(2, 0, 0, images=16, bank=16)


@pytest.mark.parametrize(
    ("values", "key"),
    [({"images": 0}, "images"), ({"images": 5, "bank": 4}, "bank"), ({"slope": 0}, "slope")],
)
def test_bad_terms(values: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=rf"reward\.terms\.{key}"):
        TermsConfig(**values)  # type: ignore[arg-type]
