"""Prompt and pair files: what is read and which sentence a broken file gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from promptist.data.pairs import Pair, PairDataConfig, read_pairs
from promptist.data.prompts import (
    Prompt,
    PromptDataConfig,
    PromptSource,
    drop_long,
    read_prompts,
    read_sources,
)
from promptist.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "user.txt", "a red boat\r\n a cat \u2028 on a mat\nlast")
    assert read_prompts(path, "coco") == [
        Prompt("a red boat", "coco", "user:1"),
        Prompt("a cat \u2028 on a mat", "coco", "user:2"),
        Prompt("last", "coco", "user:3"),
    ]


def test_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", '{"prompt": " a boat "}\n{"prompt": "a cat", "sort": "label", "id": 7}\n'
    )
    assert read_prompts(path) == [Prompt("a boat", "user", "p:1"), Prompt("a cat", "label", "7")]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path / "p.txt", b"\xef\xbb\xbfa boat\n"))[0].text == "a boat"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", "", r"p\.txt holds no prompt"),
        ("p.txt", "a\n\nb\n", r"p\.txt:2 is blank"),
        ("p.txt", "a\n  \t\n", r"p\.txt:2 is blank"),
        ("p.txt", "a\n\n", r"p\.txt:2 is blank"),
        ("p.txt", b"a\n\xff\n", r"p\.txt:2 is not UTF-8"),
        ("p.jsonl", "", r"p\.jsonl holds no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt":\n', r"p\.jsonl:2 is not valid JSON"),
        ("p.jsonl", '["a"]\n', r"p\.jsonl:1 must be a JSON object, not list"),
        ("p.jsonl", '{"text": "a"}\n', r"p\.jsonl:1 has no `prompt`"),
        ("p.jsonl", '{"prompt": " "}\n', r"p\.jsonl:1: `prompt` must be non-empty text"),
        ("p.jsonl", '{"prompt": 3}\n', r"p\.jsonl:1: `prompt` must be non-empty text, not 3"),
    ],
)
def test_broken_prompt_files(tmp_path: Path, name: str, content: str | bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_prompts(write(tmp_path / name, content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt does not exist"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path)


def test_sources_keep_their_order_and_sort(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "x\ny\n"), write(tmp_path / "b.txt", "z\n")
    sources = read_sources([PromptSource(str(a), "user"), PromptSource(str(b), "label", 0.5)])
    assert [[(p.text, p.sort) for p in s] for s in sources] == [
        [("x", "user"), ("y", "user")],
        [("z", "label")],
    ]
    with pytest.raises(UserError, match=r"data\.prompts is empty"):
        read_sources([])


def test_long_prompts_are_left_out_and_counted(tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [Prompt("a boat", "user", "1"), Prompt("z" * 500, "user", "2")]
    assert drop_long(prompts, tiny_tokenizer, 40) == prompts[:1]
    assert "1 of 2 prompts left out" in caplog.text
    with pytest.raises(UserError, match="max_prompt_tokens=1 "):
        drop_long(prompts, tiny_tokenizer, 1)


def test_pairs(tmp_path: Path) -> None:
    record = {"source": "a boat ", "target": "a boat, oil", "kind": "MC", "group": 12}
    path = write(tmp_path / "pairs.jsonl", json.dumps(record) + "\n")
    assert read_pairs(path) == [Pair("a boat", "a boat, oil", "MC", "12")]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target": None}, "has no `target`"),
        ({"target": ""}, "`target` must be non-empty"),
        ({"source": 1}, "`source` must be non-empty text, not 1"),
        ({"kind": None}, "has no `kind`"),
        ({"group": None}, "has no `group`"),
    ],
)
def test_broken_pairs_name_file_and_line(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    good = {"source": "a", "target": "b", "kind": "MC", "group": "1"}
    bad = {k: v for k, v in {**good, **change}.items() if v is not None}
    path = write(tmp_path / "pairs.jsonl", f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(UserError, match=rf"pairs\.jsonl:2.*{sentence}"):
        read_pairs(path)


def test_empty_pair_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pair"):
        read_pairs(write(tmp_path / "pairs.jsonl", ""))


def test_bad_values_of_the_configs() -> None:
    with pytest.raises(UserError, match="weight"):
        PromptSource("p.txt", weight=0.0)
    with pytest.raises(UserError, match="max_prompt_tokens"):
        PromptDataConfig(max_prompt_tokens=0)
    with pytest.raises(UserError, match="max_length"):
        PairDataConfig(max_length=1)
