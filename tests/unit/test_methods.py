"""Rows of the comparison: what their config may say, and the texts of those that need no model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from promptist.errors import UserError
from promptist.evaluation.methods import MethodConfig, append, check_methods, label, texts_of
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.random_modifiers import Pool, read_pool

USER = MethodConfig("user", "user")
PROMPTS = [EvalPrompt("a red boat", "in", "a red boat, 8k"), EvalPrompt("a cat", "out")]


def test_a_config_with_every_kind() -> None:
    rows = [
        USER,
        MethodConfig("human", "human"),
        MethodConfig("sft", "model", paths=["runs/a", "runs/b"]),
        MethodConfig("ppo", "model", "runs/c"),
        MethodConfig("suffix", "suffix", text="8k"),
        MethodConfig("random", "random", pairs="pairs.jsonl"),
        MethodConfig("best-of", "best_of"),
        MethodConfig("other", "file", "rewrites.jsonl"),
        MethodConfig("curve", "checkpoints", "runs/c"),
    ]
    check_methods(rows)
    assert [row.models for row in rows] == [[], [], ["runs/a", "runs/b"], ["runs/c"], [], [], [], [], []]
    assert [label(name) for name in ("sft", "ppo@24", "best-of", "my-own")] == [
        "SFT",
        "PPO, step 24",
        "Best plain picture",
        "my-own",
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (MethodConfig("sft", "model"), "needs a `path` to a model or run folder, or `paths`"),
        (MethodConfig("sft", "model", "a", paths=["b"]), "not both"),
        (MethodConfig("sft", "model", paths=["a", "a"]), "stands twice"),
        (MethodConfig("sft", "model", paths=["a", ""]), "is empty"),
        (MethodConfig("sft", "model", "a", text="8k"), "takes no `text`"),
        (MethodConfig("best", "best_of", "a"), "takes no `path`"),
        (MethodConfig("s", "suffix"), "needs a `text`"),
        (MethodConfig("s", "suffix", text=""), "needs a `text`"),
        (MethodConfig("r", "random"), "needs `pairs`"),
        (MethodConfig("f", "file", pairs="x", path="y"), "takes no `pairs`"),
        (MethodConfig("c", "checkpoints"), "needs a `path` to a run folder"),
        (MethodConfig("c", "checkpoints", paths=["a"]), "takes no `paths`"),
        (MethodConfig("human", "suffix", text="8k"), "bear their kind"),
        (MethodConfig("best", "best-of"), "use one of user, human, model"),
    ],
)
def test_what_a_row_may_not_say(row: MethodConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_methods([USER, row])


@pytest.mark.parametrize(
    ("x", "text", "y"),
    [
        ("a cat", "8k, hdr", "a cat, 8k, hdr"),
        (" a cat. ", " , 8k ", "a cat, 8k"),
        ("a cat!", "8k", "a cat!, 8k"),
        ("a cat", " ", ""),
        ("...", "8k", "8k"),
    ],
)
def test_append(x: str, text: str, y: str) -> None:
    assert append(x, text) == y


def test_texts_without_a_file() -> None:
    assert texts_of(USER, PROMPTS) == {"a red boat": "", "a cat": ""}
    assert texts_of(MethodConfig("best", "best_of"), PROMPTS) == {"a red boat": "", "a cat": ""}
    assert texts_of(MethodConfig("human", "human"), PROMPTS) == {"a red boat": "a red boat, 8k"}
    suffix = texts_of(MethodConfig("s", "suffix", text="rainbow, 4k"), PROMPTS)
    assert suffix == {"a red boat": "a red boat, rainbow, 4k", "a cat": "a cat, rainbow, 4k"}
    with pytest.raises(ValueError, match="do not come from the config"):
        texts_of(MethodConfig("ppo", "model", "x"), PROMPTS)


def _lines(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_rewrites_made_elsewhere(tmp_path: Path) -> None:
    path = _lines(
        tmp_path / "rewrites.jsonl",
        {"prompt": "a dog", "rewrite": "nobody asks for it"},
        {"prompt": "a cat ", "rewrite": ""},
        {"prompt": "a red boat", "rewrite": " a red boat, by monet "},
        {"prompt": "a cat", "rewrite": ""},
    )
    assert texts_of(MethodConfig("o", "file", path), PROMPTS) == {"a red boat": "a red boat, by monet", "a cat": ""}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"prompt": "a dog", "rewrite": "x"}], r"2 of the evaluation's 2 prompts, the first is 'a red boat'"),
        ([{"prompt": "a red boat", "rewrite": "x"}], "1 of the evaluation's 2 prompts, the first is 'a cat'"),
        ([{"prompt": "a cat"}], r"rewrites.jsonl:1 has no text `rewrite`"),
        ([{"prompt": "a cat", "rewrite": "x"}, {"prompt": "a cat", "rewrite": "y"}], "another rewrite of 'a cat'"),
    ],
)
def test_broken_rewrites(tmp_path: Path, records: list[object], words: str) -> None:
    path = _lines(tmp_path / "rewrites.jsonl", *records)
    with pytest.raises(UserError, match=words):
        texts_of(MethodConfig("o", "file", path), PROMPTS)


def test_the_pool_holds_what_targets_add_to_their_plain_source(tmp_path: Path) -> None:
    target = "a red boat, Golden hour, 8k"
    path = _lines(
        tmp_path / "pairs.jsonl",
        {"source": "a red boat, 8k", "target": target, "kind": "MCM", "group": "0"},
        {"source": "a red boat", "target": target, "kind": "MC", "group": "0"},
        {"source": "boat in red with golden hour and 8k", "target": target, "kind": "RTP", "group": "0"},
        {"source": "cat, 8k", "target": "cat, fog, 8k"},  # without kind and group, as other tools write pairs
        {"source": "cat", "target": "cat, fog, 8k"},
        {"source": "dog", "target": "dog"},
    )
    assert read_pool(path).targets == [["golden hour", "8k"], ["fog", "8k"], []]


def test_pairs_that_add_nothing_are_refused(tmp_path: Path) -> None:
    path = _lines(tmp_path / "pairs.jsonl", {"source": "cat", "target": "cat"})
    with pytest.raises(UserError, match="no target adds a modifier"):
        read_pool(path)


def test_drawn_modifiers_are_distributed_as_in_the_targets() -> None:
    pool = Pool([["fog", "8k"], ["fog"], ["fog"], []])
    draws = [pool.draw(f"a cat number {i}") for i in range(2_000)]
    sizes, first = Counter(map(len, draws)), Counter(draw[0] for draw in draws if draw)
    # Of 2,000 draws: sizes 0, 1, 2 with probability 1/4, 1/2, 1/4; the first modifier is fog with 3/4 (four sigma).
    assert {n: pytest.approx(2_000 * p, abs=90) for n, p in ((0, 0.25), (1, 0.5), (2, 0.25))} == sizes
    assert first["fog"] / sum(first.values()) == pytest.approx(0.75, abs=0.045)
    assert all(len(set(draw)) == len(draw) for draw in draws)


def test_a_draw_depends_on_the_prompt_alone_and_leaves_out_what_it_has() -> None:
    pool = Pool([["fog", "dark forest", "8k"]])
    assert pool.draw("a cat") == Pool(pool.targets).draw(" a cat ")
    assert len({tuple(pool.draw(f"a cat number {i}")) for i in range(50)}) == 6  # all orders of three
    assert sorted(pool.draw("a forest in 8k")) == ["fog"]
    assert pool.draw("fog, dark forest, 8k") == []


def test_a_random_row_without_anything_to_add_leaves_the_prompt_as_it_is(tmp_path: Path) -> None:
    pairs = _lines(tmp_path / "pairs.jsonl", {"source": "a boat", "target": "a boat, fog"})
    row = MethodConfig("r", "random", pairs=pairs)
    assert texts_of(row, [EvalPrompt("fog", "in"), EvalPrompt("a cat", "in")]) == {"fog": "", "a cat": "a cat, fog"}


def test_most_frequent_suffixes() -> None:
    pool = Pool([["a", "b"], ["b", "a"], ["b", "a"], ["c"], [], ["d"]])
    assert pool.suffixes() == [("b, a", 3), ("c", 1), ("d", 1)]
