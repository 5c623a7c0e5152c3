"""What submitit pickles: the start of a job of `jobs/`, without any state. Where a run goes on, its start finds out."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from submitit.core.utils import DelayedSubmission

from promptist.errors import ENDING, EXIT_BAD_INPUT, UserError, run_main


class Task:
    """`python -m jobs.MODULE ARGUMENTS` as one rank of an srun step; the result is 0.

    A bad end leaves no result where the job may be queued again (after a stop and after a crash): submitit would take
    the job for finished. What becomes of it is said by its state. Bad input is final: an error with its sentence.
    """

    def __init__(self, module: str, arguments: list[str]) -> None:
        self.module = module
        self.arguments = arguments

    def __call__(self) -> int:
        # submitit's signal handlers are in place by now; those that the job installs replace them. Until then, while
        # there is nothing to save, submitit's simply queues the job again.
        code = run_main(importlib.import_module(f"jobs.{self.module}").main, self.arguments)
        if code == EXIT_BAD_INPUT:
            raise UserError(told_sentence() or f"jobs.{self.module} was given bad input: its log says which")
        if code != 0:
            leave(code)
        return 0

    def checkpoint(self) -> DelayedSubmission:
        """The same again: submitit calls this at a signal that comes before the job's own handlers."""
        return DelayedSubmission(self)

    def __repr__(self) -> str:
        return f"python -m jobs.{self.module} {' '.join(self.arguments)}"


def told_code() -> int | None:
    """Exit code that the first rank which ended badly wrote down; None where none did."""
    code = _ending().get("code")
    return code if isinstance(code, int) else None


def told_sentence() -> str | None:
    """The sentence that belongs to `told_code`."""
    sentence = _ending().get("sentence")
    return sentence if isinstance(sentence, str) and sentence else None


def _ending() -> dict[str, object]:
    try:
        content: dict[str, object] = json.loads(Path(os.environ[ENDING]).read_text("utf-8"))
        return content
    except (KeyError, OSError, ValueError):
        return {}


def leave(code: int) -> NoReturn:
    """End the process at once: submitit must not write a result."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)
