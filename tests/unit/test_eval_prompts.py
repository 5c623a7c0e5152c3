"""Files of evaluation prompts, their fingerprint, and that training files do not hold them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from promptist.data.disjoint import check_disjoint, normalise
from promptist.errors import UserError
from promptist.evaluation.prompts import EvalPrompt, fingerprint, load_eval_prompts

PROMPTS = [EvalPrompt("a red boat", "in", "a red boat, 8k"), EvalPrompt("a cat", "out")]


def _jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_one_file_or_several(tmp_path: Path) -> None:
    both = _jsonl(
        tmp_path / "a.jsonl",
        {"prompt": " a red boat", "set": "in", "human": "a red boat, 8k"},
        {"prompt": "a cat", "set": "out", "id": 3},
    )
    (tmp_path / "labels.txt").write_text("tench\ngreat white shark \n")
    labels = [EvalPrompt("tench", "labels"), EvalPrompt("great white shark", "labels")]
    assert load_eval_prompts(both) == load_eval_prompts([str(both)]) == PROMPTS
    assert load_eval_prompts([tmp_path / "labels.txt", both]) == labels + PROMPTS


def test_a_prompt_stands_once_over_all_files(tmp_path: Path) -> None:
    one = _jsonl(tmp_path / "a.jsonl", {"prompt": "tench", "set": "in"})
    (tmp_path / "labels.txt").write_text("shark\ntench\n")
    with pytest.raises(UserError, match=r"labels.txt:2 repeats the prompt of .*a.jsonl:1"):
        load_eval_prompts([one, tmp_path / "labels.txt"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", "a.jsonl holds no prompt"),
        ("a.jsonl", '{"prompt": "a"}\n', "a.jsonl:1 has no `set`"),
        ("a.jsonl", '{"prompt": "a", "set": "all"}\n', "the set name `all` is kept"),
        ("all.txt", "a cat\n", "the set name `all` is kept"),
        ("a.txt", "a cat\n\na dog\n", "a.txt:2 is blank"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        load_eval_prompts(tmp_path / name)


def test_no_file_at_all() -> None:
    with pytest.raises(UserError, match="prompts names no file"):
        load_eval_prompts([])


def test_the_fingerprint_is_of_content_and_order() -> None:
    known = fingerprint(PROMPTS)
    assert known == "014ac7cc5f6f7e5875f6aa765966701b"  # changes with VERSION only
    others = [
        PROMPTS[::-1],
        PROMPTS[:1],
        [replace(PROMPTS[0], human=None), PROMPTS[1]],
        [replace(PROMPTS[0], set="out"), PROMPTS[1]],
    ]
    assert len({known, *map(fingerprint, others)}) == 5


@pytest.mark.parametrize("same", ["A  red\tboat", " a red boat!!", "ａ red boat .", "a red boat,"])
def test_what_makes_two_prompts_the_same(same: str) -> None:
    assert normalise(same) == normalise("a red boat")


@pytest.mark.parametrize("other", ["a red boats", "red boat", "a red, boat", "a red boat 2"])
def test_what_does_not(other: str) -> None:
    assert normalise(other) != normalise("a red boat")


def test_files_without_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog\n{broken\n")
    pairs = _jsonl(tmp_path / "b.jsonl", {"source": "a bird", "target": "a bird, 8k"}, {"prompt": "a fish"})
    counts = check_disjoint([p.x for p in PROMPTS], [tmp_path / "a.txt", str(pairs)])
    assert counts == {str(tmp_path / "a.txt"): 2, str(pairs): 3}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "A Cat."}, r"b.jsonl:2 has 'a cat', which is an evaluation prompt: remove"),
        ({"source": "a  cat", "target": "x"}, r"b.jsonl:2 has 'a cat'"),
        ({"source": "x", "target": "a cat,"}, r"b.jsonl:2 has 'a cat'"),
        ({"source": "a cat", "target": "a red boat"}, "and 1 more of the evaluation's prompts"),
        ({"text": "a cat"}, r"b.jsonl:2 has none of the texts prompt, source, target"),
        ({"prompt": 3}, r"b.jsonl:2 has none of the texts"),
    ],
)
def test_a_prompt_that_was_trained_on(tmp_path: Path, record: object, words: str) -> None:
    path = _jsonl(tmp_path / "b.jsonl", {"prompt": "a dog"}, record)
    with pytest.raises(UserError, match=words):
        check_disjoint([p.x for p in PROMPTS], [path])


def test_a_prompt_in_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a dog\nA RED boat\na red boat\n")
    with pytest.raises(UserError, match=r"train.txt:2 has 'a red boat', which is an evaluation prompt: remove"):
        check_disjoint([p.x for p in PROMPTS], [tmp_path / "train.txt"])
