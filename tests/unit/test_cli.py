"""The `promptist` command: verbs, what they pass on, exit codes."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from promptist import __version__, cli
from tests.helpers_runs import make_run


def test_help_loads_no_torch_and_no_mpi() -> None:
    probe = (
        "import sys; from promptist import cli; code = cli.main(['--help']); "
        "heavy = {'torch', 'mpi4py', 'transformers', 'diffusers', 'deepspeed'} & set(sys.modules); "
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "optimize", "report", "status", "logs", "doctor", "prefetch", "world"):
        assert f"\n    {verb} " in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"promptist {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["paint"], ["optimize"], ["status", "--rood", "x"]])
def test_wrong_command_line_is_argparse_error(argv: list[str]) -> None:
    assert cli.main(argv) == 2


@pytest.mark.parametrize(
    ("verb", "module", "function"),
    [("demo", "promptist.demo", "run"), ("world", "promptist.synthetic.cli", "main")],
)
def test_options_of_delegated_verbs_arrive_untouched(
    verb: str, module: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    fake = types.ModuleType(module)
    setattr(fake, function, lambda argv: seen.append(argv) or 7)
    monkeypatch.setitem(sys.modules, module, fake)
    assert cli.main([verb, "--help", "--seed", "3", "show"]) == 7
    assert seen == [["--help", "--seed", "3", "show"]]


def fake_optimizer(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    folders: list[Path] = []

    class Promptist:
        @classmethod
        def from_pretrained(cls, folder: Path) -> Promptist:
            folders.append(Path(folder))
            return cls()

        def __call__(self, prompts: list[str]) -> list[str]:
            return [f"{prompt}, golden hour" for prompt in prompts]

    fake = types.ModuleType("promptist.optimize")
    fake.Promptist = Promptist  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "promptist.optimize", fake)
    return folders


def test_optimize_takes_the_ppo_run_that_finished_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = fake_optimizer(monkeypatch)
    make_run(tmp_path / "a", "ppo", 5, 5, done=100.0, export=True)
    newest = make_run(tmp_path / "demo/ppo", "ppo", 5, 5, done=200.0, export=True)
    make_run(tmp_path / "demo/sft", "sft", 5, 5, done=300.0, export=True)
    make_run(tmp_path / "unfinished", "ppo", 5, 3, export=True)
    make_run(tmp_path / "without-export", "ppo", 5, 5, done=400.0)
    assert cli.main(["optimize", "a red boat", "a cat", "--root", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert output.out == "a red boat, golden hour\na cat, golden hour\n"
    assert str(newest / "export") in output.err
    assert folders == [newest / "export"]


def test_optimize_takes_the_model_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = fake_optimizer(monkeypatch)
    assert cli.main(["optimize", "a red boat", "--model", str(tmp_path)]) == 0
    assert folders == [tmp_path]
    assert capsys.readouterr().out == "a red boat, golden hour\n"


def test_optimize_without_any_run_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "a red boat", "--root", str(tmp_path / "none")]) == 64
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "make demo" in error
    assert "--model" in error
