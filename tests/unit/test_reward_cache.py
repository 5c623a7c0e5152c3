"""The cache of plain pictures and the one-process client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from promptist.errors import UserError
from promptist.reward.cache import PlainCache
from promptist.reward.client import CachedRewards, LocalRewards, RewardError
from promptist.reward.messages import ImageRequest, Measurement


class FakeModel:
    """Numbers that depend on the request alone; remembers the batches it was given."""

    batch = 4
    fingerprint = "fake"

    def __init__(self) -> None:
        self.batches: list[list[ImageRequest]] = []

    def measure(self, requests: Sequence[ImageRequest]) -> list[Measurement]:
        self.batches.append(list(requests))
        if any(request.prompt == "bad" for request in requests):
            raise ValueError("cannot paint this")
        return [
            Measurement(
                r.k + len(r.prompt) / 7, len(r.source) / 3, picture="p.png" if r.keep_picture else None
            )
            for r in requests
        ]


def plain(x: str, k: int = 0, keep: bool = False) -> ImageRequest:
    return ImageRequest(x, x, "train", k, keep)


VALUE = Measurement(0.1 + 0.2, -1 / 3, {"pick": 1e-17})


def test_entries_survive_a_restart_bit_by_bit(tmp_path: Path) -> None:
    first = PlainCache(tmp_path, "gen")
    first.begin(0)
    assert first.get(plain("a „boat“")) is None
    first.put(plain("a „boat“"), VALUE)
    assert first.get(plain("a „boat“")) == VALUE
    assert first.hit_rate == 0.5
    again = PlainCache(tmp_path, "gen")
    again.begin(1)
    assert again.get(plain("a „boat“")) == VALUE


def test_the_address_holds_generator_namespace_prompt_and_noise(tmp_path: Path) -> None:
    cache = PlainCache(tmp_path, "gen")
    cache.put(plain("x"), VALUE)
    for other in (plain("x", 1), plain("x2"), ImageRequest("x", "x", "valid", 0)):
        assert cache.get(other) is None
    with pytest.raises(ValueError, match="plain prompt"):
        cache.get(ImageRequest("y", "x", "train", 0))
    another = PlainCache(tmp_path, "another generator")
    another.begin(1)
    assert another.get(plain("x")) is None


def test_a_picture_is_no_hit_unless_it_was_kept(tmp_path: Path) -> None:
    kept = Measurement(1.0, 2.0, picture="p.png")
    cache = PlainCache(tmp_path, "gen")
    cache.put(plain("x"), VALUE)
    assert cache.get(plain("x", keep=True)) is None
    cache.put(plain("x"), kept)
    assert cache.get(plain("x", keep=True)) == kept
    again = PlainCache(tmp_path, "gen")
    again.begin(1)
    assert again.get(plain("x", keep=True)) == kept


def test_other_ranks_are_seen_from_the_next_iteration_on(tmp_path: Path) -> None:
    a, b = PlainCache(tmp_path, "gen", 0, 2), PlainCache(tmp_path, "gen", 1, 2)
    for cache in (a, b):
        cache.begin(0)
    a.put(plain("x"), VALUE)
    assert b.get(plain("x")) is None
    a.begin(1)
    a.put(plain("y"), VALUE)  # written before b has begun iteration 1: b must not see it yet
    b.begin(1)
    assert b.get(plain("x")) == VALUE
    assert b.get(plain("y")) is None
    b.begin(2)
    assert b.get(plain("y")) == VALUE


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for rank in range(3):
        cache = PlainCache(tmp_path, "gen", rank, 3)
        for iteration in range(4):
            cache.begin(iteration)
            cache.put(plain(f"x{iteration}", rank), VALUE)
    with open(tmp_path / "00000.jsonl", "a") as stream:
        stream.write('{"iteration": 3, "ke')  # killed in the middle of a line
    resumed = [PlainCache(tmp_path, "gen", rank, 2) for rank in range(2)]  # on two ranks instead of three
    for cache in resumed:
        cache.begin(2)
    for cache in resumed:
        for rank in range(3):
            found = [cache.get(plain(f"x{iteration}", rank)) for iteration in range(4)]
            assert found == [VALUE, VALUE, None, None]
    resumed[0].put(plain("new"), VALUE)
    left = {path.name: [json.loads(line)["iteration"] for line in path.open()] for path in tmp_path.iterdir()}
    assert left == {"00000.jsonl": [0, 1, 2], "00001.jsonl": [0, 1], "00002.jsonl": [0, 1]}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "00001.jsonl").write_text('{"iteration": 0}\n')
    with pytest.raises(UserError, match=r"00001\.jsonl is damaged"):
        PlainCache(tmp_path, "gen").begin(1)


def test_requests_of_several_calls_share_batches() -> None:
    model = FakeModel()
    client = LocalRewards(model)
    first = client.submit([plain("a"), plain("bb")])
    second = client.submit([plain("ccc"), plain("dddd"), plain("eeeee")])
    client.poll()
    assert [m.cosine for m in client.collect(second)] == [3 / 7, 4 / 7, 5 / 7]
    assert [len(batch) for batch in model.batches] == [4, 1]
    assert [m.cosine for m in client.collect(first)] == [1 / 7, 2 / 7]
    assert client.images == 5
    assert client.metrics()["reward/images"] == 5
    assert client.metrics()["reward/images"] == 0


def test_local_failure_names_the_prompt() -> None:
    client = LocalRewards(FakeModel())
    with pytest.raises(RewardError, match=r"'bad'.*cannot paint this"):
        client.collect(client.submit([plain("good"), plain("bad"), plain("fine")]))


def test_plain_pictures_are_painted_once(tmp_path: Path) -> None:
    model = FakeModel()
    client = CachedRewards(LocalRewards(model), PlainCache(tmp_path, "fake"))
    client.begin(0)
    rewrite = ImageRequest("y", "x", "train", 0)
    tickets = client.submit([rewrite, plain("x"), plain("x")])  # the third shares the second's ticket
    tickets += client.submit([plain("x"), rewrite])  # so does the first of these; rewrites are always painted
    values = client.collect(tickets)
    assert values[1] == values[2] == values[3] == Measurement(1 / 7, 1 / 3)
    assert values[0] == values[4]
    assert client.images == 3
    assert client.metrics()["reward/hit_rate"] == pytest.approx(2 / 3)
    client.begin(1)
    assert client.collect(client.submit([plain("x")])) == [values[1]]
    assert client.images == 3
    assert client.metrics()["reward/hit_rate"] == 1.0
    [kept] = client.collect(client.submit([plain("x", keep=True)]))
    assert kept.picture == "p.png"
    assert client.images == 4
