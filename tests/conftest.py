"""Fixtures for every room's tests: several ranks by mpirun, the folder of real test data, a tiny
tokenizer."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Finished:
    """How a started command ended."""

    returncode: int
    stdout: str
    stderr: str

    def ok(self) -> Finished:
        """Itself, after a check that it succeeded; the output is in the failure."""
        assert self.returncode == 0, (
            f"exit code {self.returncode}\n{self.stdout[-5000:]}\n{self.stderr[-5000:]}"
        )
        return self


Mpirun = Callable[..., Finished]


def run_command(command: Sequence[str], timeout_s: float, env: dict[str, str] | None = None) -> Finished:
    """Run a command from the repository root; past its time it is killed with all its children."""
    process = subprocess.Popen(
        list(command),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        pytest.fail(
            f"no end after {timeout_s:.0f} s: {' '.join(command)}\n{stdout[-3000:]}\n{stderr[-3000:]}"
        )
    return Finished(process.returncode, stdout, stderr)


ONE_AFTER_THE_OTHER = """
import importlib, sys
from promptist.errors import run_main
main = importlib.import_module(sys.argv[1]).main
for run in sys.argv[3:]:
    code = run_main(main, [sys.argv[2], *run.split()])
    for stream in (sys.stdout, sys.stderr):
        print(f"== ended with {code}", file=stream, flush=True)
"""


def run_one_after_the_other(
    job: str, config: Path, runs: Sequence[str], timeout_s: float
) -> list[tuple[int, str, str]]:
    """`(exit code, stdout, stderr)` of `python -m JOB CONFIG` with each of `runs` (overrides, blanks between them).

    All in one process: to load torch and DeepSpeed takes longer than to refuse a config.
    """
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, job, str(config), *runs]
    done = run_command(command, timeout_s).ok()
    outs, errs = (re.split(r"^== ended with (\d+)\n", text, flags=re.M) for text in (done.stdout, done.stderr))
    assert len(outs) == len(errs) == 2 * len(runs) + 1, done
    return list(zip(map(int, outs[1::2]), outs[::2], errs[::2], strict=False))


@pytest.fixture(scope="session")
def mpirun(tmp_path_factory: pytest.TempPathFactory) -> Mpirun:
    """`mpirun(n, code_or_module, args=(), timeout_s=120, env=None) -> Finished`: n ranks under `python -m
    mpi4py`.

    `code_or_module` is a module name (`jobs.ppo`) or Python source (anything with a newline or a blank in
    it). Skips where this environment has no mpirun.
    """
    launcher = Path(sys.executable).parent / "mpirun"
    if not launcher.exists():
        pytest.skip(f"no mpirun beside {Path(sys.executable).name}: install the extra `local`")

    def start(
        n: int,
        code_or_module: str,
        args: Sequence[object] = (),
        timeout_s: float = 120,
        env: dict[str, str] | None = None,
    ) -> Finished:
        if any(c.isspace() for c in code_or_module):
            script = tmp_path_factory.mktemp("mpirun") / "script.py"
            script.write_text(code_or_module, encoding="utf-8")
            target = [str(script)]
        else:
            target = ["-m", code_or_module]
        command = [str(launcher), "-n", str(n), sys.executable, "-m", "mpi4py", *target, *map(str, args)]
        return run_command(command, timeout_s, env)

    return start


@pytest.fixture(autouse=True)
def log_levels_as_before() -> Iterator[None]:
    """Commands that run in this process (doctor, prefetch) quieten loggers; the next test wants to hear them."""
    names = ("promptist", "huggingface_hub", "diffusers", "open_clip")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real tokenizer, aesthetic heads and prompts; skips where it is absent."""
    folder = Path(os.environ.get("PROMPTIST_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real test data: set PROMPTIST_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with EOS, trained on a few sentences, in a Hugging Face folder."""
    from tests.helpers_text import train_byte_level_bpe

    tokenizer = train_byte_level_bpe(["a red boat on the sea Rephrase: a red boat, oil painting, detailed"] * 4)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_folder: Path) -> Any:
    from promptist.data.text import load_tokenizer

    return load_tokenizer(tiny_tokenizer_folder)
