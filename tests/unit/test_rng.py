"""Counter-based randomness against hand-written hashing and a hand-written Philox."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptist import rng

MASK = (1 << 64) - 1
PARTS = st.lists(st.one_of(st.integers(-(10**30), 10**30), st.text(max_size=8)), max_size=5)


def philox4x64(key: int, counter: int) -> list[int]:
    """Philox4x64-10 as in Salmon et al. 2011, section 3.3: four 64-bit words of one counter value."""
    k0, k1 = key & MASK, key >> 64
    x = [(counter >> (64 * i)) & MASK for i in range(4)]
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(p1 >> 64) ^ x[1] ^ k0, p1 & MASK, (p0 >> 64) ^ x[3] ^ k1, p0 & MASK]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return x


def test_key_is_blake2b_over_typed_length_prefixed_parts() -> None:
    data = b"s" + (5).to_bytes(8, "little") + b"noise" + b"i" + (2).to_bytes(8, "little") + b"-3"
    assert rng.key("noise", -3) == int.from_bytes(blake2b(data, digest_size=16).digest(), "little")


def test_bits_are_philox() -> None:
    ours = rng.generator(7, "bits").bit_generator.random_raw(8)
    expected = philox4x64(rng.key(7, "bits"), 1) + philox4x64(rng.key(7, "bits"), 2)
    assert ours.tolist() == expected


def test_golden_values() -> None:
    """A change here makes old runs impossible to resume or repeat: never update these numbers by the way."""
    assert rng.key() == 0x7076A68E75884D4E40BDEFD94169E6CA
    assert rng.key("a", 1) == 0x5791AA01B3722A3397F5F827B3C349E7
    assert rng.normal((4,), 7, "noise", 3).tolist() == [
        0.21254216134548187,
        0.9240949153900146,
        0.3470602333545685,
        -1.2969266176223755,
    ]
    assert rng.permutation(8, 7, "epoch", 0).tolist() == [5, 3, 1, 4, 7, 6, 0, 2]
    assert [rng.integer(15, 75, 7, "new_tokens", i) for i in range(6)] == [69, 45, 74, 53, 18, 51]
    assert rng.uniform(7, "u") == 0.01674806025539821


@given(PARTS, PARTS)
def test_different_parts_have_different_keys(a: list[str | int], b: list[str | int]) -> None:
    same = len(a) == len(b) and all(type(p) is type(q) and p == q for p, q in zip(a, b, strict=False))
    assert (rng.key(*a) == rng.key(*b)) == same


@pytest.mark.parametrize(
    ("a", "b"), [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), ((12,), (1, 2)), ((), ("",))]
)
def test_neighbouring_parts_do_not_run_together(a: tuple[str | int, ...], b: tuple[str | int, ...]) -> None:
    assert rng.key(*a) != rng.key(*b)


def test_draws_do_not_depend_on_what_was_drawn_before() -> None:
    alone = rng.normal((3, 5), 1, "row", 4)
    for row in (9, 2, 0):
        rng.normal((100,), 1, "row", row)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert torch.equal(rng.normal((3, 5), 1, "row", 4), alone)


def test_normal_is_normal() -> None:
    """Moments of 10^6 draws within five standard errors, and no correlation between neighbouring keys."""
    draws = rng.normal((1000, 1000), 0, "moments")
    assert draws.dtype == torch.float32
    assert draws.shape == (1000, 1000)
    z = draws.double()
    assert abs(z.mean()) < 5e-3
    assert abs(z.var() - 1) < 5 * (2 / 1e6) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / 1e6) ** 0.5
    a, b = rng.normal((10**5,), 0, "k", 0).double(), rng.normal((10**5,), 0, "k", 1).double()
    assert abs((a * b).mean()) < 5 / 10**2.5


@given(st.integers(1, 200), st.integers(0, 2**31))
def test_permutation_holds_every_row_once(n: int, seed: int) -> None:
    order = rng.permutation(n, seed, "p")
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_integer_reaches_both_ends_evenly() -> None:
    drawn = np.bincount([rng.integer(15, 18, 0, "ends", i) for i in range(4000)], minlength=19)
    assert drawn[:15].sum() == 0
    assert np.all(np.abs(drawn[15:] - 1000) < 5 * 1000**0.5)
    assert rng.integer(4, 4, "one") == 4
    with pytest.raises(ValueError, match="no integer"):
        rng.integer(5, 4, "none")


@pytest.mark.parametrize("part", [1.0, True, None, (1,)])
def test_parts_of_other_types_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="random key"):
        rng.key("a", part)  # type: ignore[arg-type]


def test_numpy_integers_count_as_integers() -> None:
    assert rng.key("a", np.int64(3)) == rng.key("a", 3)  # type: ignore[arg-type]
