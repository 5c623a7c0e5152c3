"""The order of rows: every row once per epoch, the sources' shares kept, nothing remembered."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptist.data.order import Order, shard

SOURCES = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 100)), min_size=1, max_size=4)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32))
def test_one_source_is_walked_epoch_by_epoch(size: int, batch: int, seed: int) -> None:
    order = Order([size], batch, seed)
    iterations = -(-3 * size // batch)
    batches = [order.rows(i) for i in range(iterations)]
    assert all(len(b) == batch for b in batches)
    # Rows are mixed within a batch, so counts are compared: after t draws each row was seen t // size times
    # or once more.
    seen: Counter[int] = Counter()
    for i, rows in enumerate(batches, start=1):
        seen.update(rows.tolist())
        least = i * batch // size
        assert {seen[r] for r in range(size)} <= {least, least + 1}


@settings(deadline=None)
@given(SOURCES, st.integers(1, 64), st.integers(0, 1000))
def test_shares_hold_in_each_batch_and_over_time(
    sources: list[tuple[int, float]], batch: int, seed: int
) -> None:
    sizes, weights = [s for s, _ in sources], [w for _, w in sources]
    order = Order(sizes, batch, seed, weights)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    share = np.array(weights) / sum(weights) * batch
    total = np.zeros(len(sizes))
    for i in range(40):
        rows = order.rows(i)
        assert rows.shape == (batch,)
        assert rows.dtype == np.int64
        counts = np.histogram(rows, bins=edges)[0]
        assert counts.sum() == batch
        assert np.all(np.abs(counts - share) < 1 + 1e-4)
        total += counts
    # The golden-ratio shift has discrepancy O(log n / n): far nearer than independent rounding (about
    # sqrt(40) / 2).
    assert np.all(np.abs(total - 40 * share) < 3.0)


@given(SOURCES, st.integers(1, 20), st.integers(0, 50), st.permutations(range(6)))
def test_any_iteration_can_be_asked_first(
    sources: list[tuple[int, float]], batch: int, seed: int, visits: list[int]
) -> None:
    sizes, weights = [s for s, _ in sources], [w for _, w in sources]
    in_order = [Order(sizes, batch, seed, weights).rows(i) for i in range(6)]
    resumed = Order(sizes, batch, seed, weights)
    for i in visits:
        np.testing.assert_array_equal(resumed.rows(i), in_order[i])


def test_rows_of_a_source_follow_each_other_across_batches() -> None:
    """No row of a weighted source comes twice before all have come once."""
    order = Order([7, 100], 10, seed=3, weights=[0.33, 0.67])
    drawn = Counter(int(r) for i in range(40) for r in order.rows(i) if r < 7)
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_epochs_seeds_and_purposes_differ() -> None:
    """In batches of one, whose own mixing would otherwise hide a repeated walk."""

    def walk(seed: int, purpose: str, epoch: int) -> tuple[int, ...]:
        order = Order([20], 1, seed, purpose=purpose)
        return tuple(int(order.rows(epoch * 20 + i)[0]) for i in range(20))

    assert len({walk(0, "ppo", 0), walk(0, "ppo", 1), walk(1, "ppo", 0), walk(0, "sft", 0)}) == 4


def test_sources_are_mixed_within_a_batch() -> None:
    rows = Order([1000, 1000], 200, seed=0).rows(0)
    assert 30 < np.sum(rows[:100] < 1000) < 70  # 50 expected; unmixed would be 100


def test_late_iterations_are_quick_and_right() -> None:
    order = Order([600_000, 600_000, 40_000], 256, seed=1, weights=[600, 600, 40])
    rows = order.rows(11_999)
    assert len(set(rows.tolist())) == 256


def test_golden_rows() -> None:
    """Resuming an old run needs these for ever."""
    assert Order([5, 3], 4, 1, [0.7, 0.3], "golden").rows(3).tolist() == [1, 3, 5, 3]


@pytest.mark.parametrize(
    ("sizes", "batch", "weights"),
    [([], 1, []), ([0], 1, [1]), ([1], 0, [1]), ([1], 1, [1, 2]), ([1], 1, [0.0])],
)
def test_impossible_orders_are_refused(sizes: list[int], batch: int, weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"cannot order|weights"):
        Order(sizes, batch, 0, weights)


@given(st.lists(st.integers(), max_size=50), st.integers(1, 12))
def test_shards_put_end_to_end_are_the_rows(rows: list[int], world: int) -> None:
    parts = [list(shard(rows, rank, world)) for rank in range(world)]
    assert [x for part in parts for x in part] == rows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shard_refuses_a_rank_outside_the_world() -> None:
    with pytest.raises(ValueError, match="rank 2"):
        shard([1, 2], 2, 2)
