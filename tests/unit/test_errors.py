"""How a job's process ends, alone (with several ranks: tests/distributed/test_launch.py)."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest

from promptist.errors import ENDING, EXIT_BAD_INPUT, EXIT_STOPPED, UserError, run_main


def test_success_passes_arguments_and_gives_zero() -> None:
    seen: list[str] = []
    assert run_main(lambda argv: seen.extend(argv), ["a", "b=1"]) == 0
    assert seen == ["a", "b=1"]


def test_own_exit_code_is_kept() -> None:
    assert run_main(lambda argv: 3, []) == 3


def test_user_error_is_one_sentence_and_64(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise UserError("the file prompts.txt does not exist")

    assert run_main(main, []) == EXIT_BAD_INPUT == 64
    assert capsys.readouterr().err == "error: the file prompts.txt does not exist\n"


def test_other_errors_show_their_traceback_and_give_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise ZeroDivisionError("ours")

    assert run_main(main, []) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: ours" in err


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (2, 2), ("text", 1)])
def test_sys_exit_inside_keeps_its_meaning(code: object, expected: int) -> None:
    def main(argv: list[str]) -> None:
        sys.exit(code)  # type: ignore[arg-type]

    assert run_main(main, []) == expected


def test_interrupt_gives_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert run_main(main, []) == 130


def test_full_disk_is_one_sentence_wherever_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    def write(argv: list[str]) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("the picture could not be kept") from error

    assert run_main(write, []) == 64
    assert "error: the disk is full" in capsys.readouterr().err


def test_ending_is_told_once_where_the_scheduler_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An abort turns exit codes into signals: the first rank's word counts, later ones do not replace it."""
    ending = tmp_path / "1.0.ending"
    monkeypatch.setenv(ENDING, str(ending))

    def refuse(argv: list[str]) -> None:
        raise UserError("the file is missing")

    assert run_main(lambda argv: 0, []) == 0
    assert not ending.exists()
    assert run_main(refuse, []) == 64
    assert json.loads(ending.read_text()) == {"code": 64, "sentence": "the file is missing"}
    assert run_main(lambda argv: EXIT_STOPPED, []) == 75
    assert json.loads(ending.read_text())["code"] == 64
