"""`promptist data`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from promptist.cli import main


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [("a boat", "a boat, fog, 8k"), ("a cat", "a cat, 8k, fog"), ("a dog", 'a dog, "HDR": yes')]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": x, "target": y}) + "\n" for x, y in rows))
    return path


def test_disjoint(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("a fish\na bird\n")
    assert main(["data", "check-disjoint", str(tmp_path / "labels.txt"), str(pairs)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{tmp_path / 'labels.txt'}: 2 prompts (labels 2), fingerprint ")
    assert out[1:] == [f"{pairs}: none of them among its 6 texts"]


def test_not_disjoint(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("a fish\nA cat.\n")
    assert main(["data", "check-disjoint", str(tmp_path / "labels.txt"), str(pairs)]) == 64
    assert f"{pairs}:2 has 'A cat.', which is an evaluation prompt" in capsys.readouterr().err


def test_suffixes_are_rows_of_an_evaluation(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from promptist.evaluation.methods import MethodConfig, check_methods

    assert main(["data", "suffixes", str(pairs), "--top", "5"]) == 0
    out = capsys.readouterr().out
    assert "# 2 of 3 targets" in out
    rows = [MethodConfig(**row) for row in yaml.safe_load("methods:\n  - {name: user, kind: user}\n" + out)["methods"]]
    check_methods(rows)
    assert [row.text for row in rows] == [None, "8k, fog", "hdr yes"]


def test_top_must_be_positive(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "suffixes", str(pairs), "--top", "0"]) == 64
    assert "ask for at least 1" in capsys.readouterr().err
