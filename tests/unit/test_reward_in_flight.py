"""The record of measurements since the last checkpoint: what a stopped or killed run need not paint again."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptist.errors import UserError
from promptist.reward.cache import PlainCache
from promptist.reward.client import CachedRewards, LocalRewards
from promptist.reward.in_flight import InFlight, RecordedRewards
from promptist.reward.messages import ImageRequest
from tests.unit.test_reward_cache import FakeModel, plain

REWRITES = [ImageRequest(f"{x}, oil painting", x, "train", k) for x in ("a boat", "a cat") for k in range(3)]


def client(folder: Path, rank: int = 0, ranks: int = 1) -> tuple[CachedRewards, FakeModel]:
    model = FakeModel()
    recorded = RecordedRewards(LocalRewards(model), InFlight(folder / "in_flight", model.fingerprint, rank, ranks))
    return CachedRewards(recorded, PlainCache(folder / "cache", model.fingerprint, rank, ranks)), model


def painted(model: FakeModel) -> list[ImageRequest]:
    return [request for batch in model.batches for request in batch]


def test_next_attempt_paints_only_what_is_missing_and_counts_as_if_undisturbed(tmp_path: Path) -> None:
    requests = [*REWRITES, plain("a boat"), plain("a cat")]
    calm, calm_model = client(tmp_path / "calm")
    calm.begin(3)
    expected = calm.collect(calm.submit(requests))
    first, first_model = client(tmp_path / "killed")
    first.begin(3)
    first.collect(first.submit(requests[:4]))  # then the process dies
    second, second_model = client(tmp_path / "killed")
    second.begin(3)
    assert second.collect(second.submit(requests)) == expected
    assert painted(first_model) + painted(second_model) == painted(calm_model) == requests
    figures, undisturbed = second.metrics(), calm.metrics()
    for name in ("reward/images", "reward/truncated", "reward/hit_rate"):
        assert figures[name] == undisturbed[name]
    assert undisturbed["reward/images"] == 8


def test_pictures_that_nobody_collected_are_kept_too(tmp_path: Path) -> None:
    first, model = client(tmp_path)
    first.begin(0)
    tickets = first.submit(REWRITES)
    first.collect(tickets[:1])  # one batch of four is painted for it
    first.close()
    assert len(painted(model)) == 4
    second, again = client(tmp_path)
    second.begin(0)
    second.collect(second.submit(REWRITES))
    assert painted(again) == REWRITES[4:]


def test_checkpoint_makes_earlier_iterations_superfluous(tmp_path: Path) -> None:
    first, _ = client(tmp_path)
    for iteration in range(3):
        first.begin(iteration)
        first.collect(first.submit(REWRITES[2 * iteration : 2 * iteration + 2]))
    first.committed(2)
    again, model = client(tmp_path)
    again.begin(2)
    again.collect(again.submit(REWRITES))
    assert painted(model) == REWRITES[:4]


def test_all_ranks_entries_count_whatever_the_number_of_ranks(tmp_path: Path) -> None:
    for rank in range(3):
        one, _ = client(tmp_path, rank, 3)
        one.begin(1)
        one.collect(one.submit(REWRITES[2 * rank : 2 * rank + 2]))
    alone, model = client(tmp_path)
    alone.begin(1)
    alone.collect(alone.submit(REWRITES))
    assert painted(model) == []
    alone.committed(2)
    assert [path.name for path in (tmp_path / "in_flight").iterdir()] == ["00000.jsonl"]


def test_torn_line_is_painted_again(tmp_path: Path) -> None:
    first, _ = client(tmp_path)
    first.begin(0)
    first.collect(first.submit(REWRITES[:2]))
    file = tmp_path / "in_flight" / "00000.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    for expected in ([REWRITES[1]], []):
        again, model = client(tmp_path)
        again.begin(0)
        again.collect(again.submit(REWRITES[:2]))
        assert painted(model) == expected


def test_another_generator_knows_nothing(tmp_path: Path) -> None:
    record = InFlight(tmp_path, "one")
    record.begin(0)
    record.put([(REWRITES[0], FakeModel().measure([REWRITES[0]])[0])])
    other = InFlight(tmp_path, "other")
    other.begin(0)
    assert other.get(REWRITES[0]) is None


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    record = InFlight(tmp_path, "one")
    record.begin(0)
    record._own = Path("/dev/full")
    with pytest.raises(UserError, match="disk is full"):
        record.put([(REWRITES[0], FakeModel().measure([REWRITES[0]])[0])])
