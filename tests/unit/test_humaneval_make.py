"""`promptist humaneval make`: what is drawn, and that nothing in the raters' folder tells who painted what."""

from __future__ import annotations

import hashlib
import json
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from promptist.errors import UserError
from promptist.evaluation.table import read_table, write_table
from promptist.humaneval.cli import main
from promptist.humaneval.study import Showing, Study, draw
from tests.helpers_humaneval import SETS, SIDE, write_evaluation


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "eval"
    write_evaluation(folder)
    return folder


def make(evaluation: Path, out: Path, *options: str) -> Study:
    if "--pairs" not in options:
        options = ("--pairs", "ppo:user", "ppo:human", *options)
    if "--prompts" not in options:
        options = (*options, "--prompts", "8")
    main(["make", str(evaluation), "--out", str(out), *options])
    return Study.read(out)


@pytest.fixture(scope="module")
def out(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "out"
    make(evaluation, folder, "--raters", "4")
    return folder


def rate_files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out / "rate")): p.read_bytes() for p in (out / "rate").rglob("*") if p.is_file()}


def test_pictures_are_those_that_the_key_says(evaluation: Path, out: Path) -> None:
    study, table = Study.read(out), read_table(evaluation)
    paths = {(p.prompt, p.method, p.replica, p.seed): p.path for p in table.pictures}
    assert {f"pictures/{name}.png" for pair in study.shown for name in pair.pictures} | {"index.html"} == set(
        rate_files(out)
    )
    for pair in study.shown:
        for name, method, replica in zip(pair.pictures, (pair.first, pair.second), pair.replicas, strict=True):
            shown = np.asarray(Image.open(out / "rate/pictures" / f"{name}.png"))
            kept = np.asarray(Image.open(evaluation / paths[pair.prompt, method, replica, pair.noise]))
            np.testing.assert_array_equal(shown, kept)


def test_no_method_name_in_the_raters_folder(evaluation: Path, out: Path) -> None:
    key = (out / "key.json").read_text()
    assert all(f'"{name}"' in key for name in ("ppo", "user", "human", "PPO", "User input", "in-domain"))
    for name, data in rate_files(out).items():
        for told in (b"ppo", b"human-", b"user input", b"sft", b'in-domain"', b"replica", str(evaluation).encode()):
            assert told not in data.lower(), (name, told)
        assert not any(word in name for word in ("ppo", "user", "human"))
    study = Study.read(out)
    found = rate_files(out)["index.html"].decode()
    data = json.loads(found.split('id="data">')[1].split("</script>")[0])
    assert set(data) == {"study", "prompts", "orders"}
    assert set(data["prompts"]) == {pair.id for pair in study.shown}
    assert data["orders"] == [[[s.pair, s.left, s.right] for s in order] for order in study.orders]


def test_files_differ_in_pixels_alone(out: Path) -> None:
    files = [p for p in (out / "rate").rglob("*") if p.is_file()]
    pictures = [p for p in files if p.suffix == ".png"]
    for path in pictures:
        kinds, data = [], path.read_bytes()[8:]
        while data:  # length, kind, content, checksum
            kinds.append(data[4:8])
            data = data[12 + int.from_bytes(data[:4], "big") :]
        assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
        with Image.open(path) as picture:
            assert (picture.size, picture.mode, picture.info) == ((SIDE, SIDE), "RGB", {})
    assert len({(p.stat().st_mtime, stat.S_IMODE(p.stat().st_mode)) for p in files}) == 1
    # The evaluation kept two noises: a method that is in both comparisons is not shown twice with one picture.
    assert len({hashlib.sha256(p.read_bytes()).hexdigest() for p in pictures}) == len(pictures)


def test_ids_tell_nothing_about_the_method(evaluation: Path) -> None:
    """The order of the ids within a pair does not follow the method: over 200 studies of 16 pairs, both orders come
    about equally often (99.9 % bounds of a fair coin)."""
    table = read_table(evaluation)
    higher = total = 0
    for seed in range(200):
        pairs = draw(
            table, "hash", [("ppo", "user"), ("ppo", "human")], prompts=8, sets=table.sets, raters=1, repeat=0,
            seed=seed, identical=lambda one, other: False,
        ).shown  # fmt: skip
        higher += sum(pair.pictures[0] > pair.pictures[1] for pair in pairs)
        total += len(pairs)
    low, high = binom.interval(0.999, total, 0.5)
    assert total == 3200
    assert low <= higher <= high


def test_seed_alone_does_not_give_the_ids_away(evaluation: Path, out: Path, tmp_path: Path) -> None:
    """Another table, same prompts and seed: prompts stay, all ids change."""
    other = tmp_path / "other"
    table = write_evaluation(other)
    write_table(other, replace(table, measures=[replace(m, value=m.value + 1) for m in table.measures]))
    ours, theirs = Study.read(out), make(other, tmp_path / "out", "--raters", "4")
    assert [(p.prompt, p.noise, p.replicas) for p in ours.pairs] == [
        (p.prompt, p.noise, p.replicas) for p in theirs.pairs
    ]
    assert not {p.id for p in ours.pairs} & {p.id for p in theirs.pairs}
    assert not {i for p in ours.shown for i in p.pictures} & {i for p in theirs.shown for i in p.pictures}


def test_same_options_same_bytes(evaluation: Path, out: Path, tmp_path: Path) -> None:
    again = make(evaluation, tmp_path / "again", "--raters", "4")
    assert rate_files(tmp_path / "again") == rate_files(out)
    assert (tmp_path / "again/key.json").read_bytes() == (out / "key.json").read_bytes()
    other = make(evaluation, tmp_path / "other", "--raters", "4", "--seed", "1")
    assert other.hash != again.hash
    assert other.orders != again.orders


def test_prompts_are_drawn_evenly_over_sets(evaluation: Path, tmp_path: Path) -> None:
    study = make(evaluation, tmp_path / "a", "--pairs", "ppo:user", "--prompts", "11", "--repeat", "2")
    # Dealt one each in turn: labels are used up at 2, then in-domain is first.
    assert Counter(pair.set for pair in study.pairs) == {"in-domain": 5, "captions": 4, "labels": 2}
    assert len({pair.prompt for pair in study.pairs}) == 11
    study = make(evaluation, tmp_path / "b", "--pairs", "ppo:user", "--prompts", "6", "--sets", "captions", "labels",
                 "--repeat", "1")  # fmt: skip
    assert Counter(pair.set for pair in study.pairs) == {"captions": 4, "labels": 2}


def test_comparisons_share_prompts(out: Path) -> None:
    by = {name: {p.prompt for p in Study.read(out).pairs if p.comparison == name} for name in ("ppo:user", "ppo:human")}
    assert {p for p in by["ppo:user"] if "in-domain" in p} <= by["ppo:human"]


def test_sides_and_sequence(out: Path) -> None:
    study = Study.read(out)
    pairs = {pair.id: pair for pair in study.shown}
    left_of: list[dict[str, str]] = []
    for order in study.orders:
        first: dict[str, tuple[int, Showing]] = {}
        again: list[str] = []
        for place, showing in enumerate(order):
            assert {showing.left, showing.right} == set(pairs[showing.pair].pictures)
            if showing.pair not in first:
                first[showing.pair] = place, showing
                continue
            before, shown = first[showing.pair]
            assert (showing.left, showing.right) == (shown.right, shown.left)
            assert place - before > len(pairs) // 6
            again.append(showing.pair)
        assert set(first) == set(pairs)
        assert len(set(again)) == len(again) == study.repeat == 5
        for name in study.comparisons:
            left = [s.left == pairs[s.pair].pictures[0] for _, s in first.values() if pairs[s.pair].comparison == name]
            assert abs(2 * sum(left) - len(left)) <= 1  # half, or as near as an odd number allows
        left_of.append({pair: shown.left for pair, (_, shown) in first.items()})
    assert len({tuple(sides) for sides in left_of}) == 4  # sequences of their own
    for one, other in ((0, 1), (2, 3)):  # raters come in twos with opposite sides
        assert all(left_of[one][pair] != left_of[other][pair] for pair in pairs)


def test_identical_pictures_are_not_shown(evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make(
        evaluation, tmp_path / "out", "--pairs", "ppo:user", "--prompts", str(sum(SETS.values())), "--repeat", "1"
    )
    assert {p.prompt for p in study.pairs if p.identical} == {
        "a in-domain prompt number 0",
        "a in-domain prompt number 1",
    }
    assert "2 with the same picture twice, not shown and counted as equally good" in " ".join(
        capsys.readouterr().out.split()
    )


def test_replicas_of_one_training_seed_are_compared(tmp_path: Path) -> None:
    """Where both methods have several trainings, one of the same seed stands against the other."""
    table = write_evaluation(tmp_path / "eval", same=0, replicas=3)
    texts = table.texts + [replace(t, method="sft") for t in table.texts if t.method == "ppo"]
    pictures = list(table.pictures)
    for i, picture in enumerate(p for p in table.pictures if p.method == "ppo"):
        path = f"images/other-{i}.png"
        Image.fromarray(np.full((SIDE, SIDE, 3), i, np.uint8)).save(tmp_path / "eval" / path)
        pictures.append(replace(picture, method="sft", path=path))
    write_table(tmp_path / "eval", replace(table, texts=texts, pictures=pictures))
    study = make(tmp_path / "eval", tmp_path / "out", "--pairs", "ppo:sft", "ppo:user", "--prompts", "15")
    assert all(a == b for a, b in (p.replicas for p in study.pairs if p.second == "sft"))
    assert {p.replicas for p in study.pairs if p.second == "sft"} == {(0, 0), (1, 1), (2, 2)}
    assert {p.replicas for p in study.pairs if p.second == "user"} == {(0, 0), (1, 0), (2, 0)}


def test_key_is_for_its_owner_alone(out: Path) -> None:
    assert stat.S_IMODE((out / "key.json").stat().st_mode) == 0o600
    assert not list((out / "rate").rglob("key*"))


def test_a_prompt_cannot_end_the_data(tmp_path: Path) -> None:
    table = write_evaluation(tmp_path / "eval", same=0)
    nasty = "</script><script>alert(1)</script> <!-- & \u2028"
    renamed = {table.texts[0].prompt: nasty}
    rows = [[replace(row, prompt=renamed.get(row.prompt, row.prompt)) for row in part]
            for part in (table.measures, table.texts, table.pictures)]  # fmt: skip
    write_table(tmp_path / "eval", replace(table, measures=rows[0], texts=rows[1], pictures=rows[2]))
    make(tmp_path / "eval", tmp_path / "out", "--pairs", "ppo:user", "--prompts", "15")
    text = (tmp_path / "out/rate/index.html").read_text()
    assert text.count("</script>") == 2
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert nasty in data["prompts"].values()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pairs", "ppo"], "name two different methods"),
        (["--pairs", "ppo:ppo"], "name two different methods"),
        (["--pairs", "ppo:sft"], "no method 'sft', only user, ppo, human"),
        (["--pairs", "ppo:user", "user:ppo"], "the same two methods twice"),
        (["--sets", "other"], "no set 'other', only in-domain, captions, labels"),
        (["--prompts", "9"], "only 8 prompts have pictures of both ppo and human"),
        (["--repeat", "6"], "--repeat 6 is too much for 15 pairs"),
    ],
)
def test_bad_input(evaluation: Path, tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(evaluation, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_bad_folders(evaluation: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        make(evaluation, out)
    write_evaluation(tmp_path / "left", same=99)
    with pytest.raises(UserError, match="nothing to rate"):
        make(tmp_path / "left", tmp_path / "out", "--pairs", "ppo:user")
    with pytest.raises(UserError, match="no finished evaluation"):
        make(tmp_path, tmp_path / "out")
    write_evaluation(tmp_path / "eval", size=lambda method: 24 + (method == "human"))
    with pytest.raises(UserError, match="raters would see which is which"):
        make(tmp_path / "eval", tmp_path / "out")
    write_evaluation(tmp_path / "gone")
    for path in (tmp_path / "gone/images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        make(tmp_path / "gone", tmp_path / "out")
