"""The `promptist` command. Verbs import what they need when they run: `promptist --help` loads no torch."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from promptist import __version__
from promptist.errors import UserError, run_main

# Verbs whose options are parsed by the function that does the work.
_DELEGATED = {
    "demo": ("promptist.demo", "run"),
    "world": ("promptist.synthetic.cli", "main"),
    "data": ("promptist.evaluation.data_cli", "main"),
    "humaneval": ("promptist.humaneval.cli", "main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code; 64 is bad input."""
    return run_main(_main, argv)


def _main(argv: list[str]) -> int | None:
    if argv and argv[0] in _DELEGATED:
        module, function = _DELEGATED[argv[0]]
        code: int | None = getattr(importlib.import_module(module), function)(argv[1:])
        return code
    arguments = _parser().parse_args(argv)
    code = arguments.run(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="promptist", description="Optimise prompts for text-to-image models: demo, use, look at runs."
    )
    parser.add_argument("--version", action="version", version=f"promptist {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verbs.add_parser("demo", add_help=False, help="train it all in the miniature world")

    optimize = verbs.add_parser("optimize", help="rewrite prompts with a trained model")
    optimize.add_argument("prompt", nargs="+", help="the user's prompt; several are rewritten one a line")
    optimize.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="exported Hugging Face folder (default: that of the newest finished PPO run)",
    )
    _add_root(optimize)
    optimize.set_defaults(run=_optimize)

    report = verbs.add_parser("report", help="write the page of an evaluation, or of a run that may still be going on")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="of a finished evaluation, or of an SFT or PPO run")
    report.set_defaults(run=_report)

    compare = verbs.add_parser(
        "compare", help="say in words which of two methods is better at what, and how sure that is"
    )
    compare.add_argument("a", metavar="A", help="a method of the evaluation, e.g. ppo, or EVAL:METHOD")
    compare.add_argument("b", metavar="B", help="the method to compare it with, e.g. sft")
    compare.add_argument(
        "--in", dest="folder", type=Path, metavar="EVAL", help="folder of the evaluation (default: the newest finished)"
    )
    compare.add_argument("--metric", metavar="M", help="one metric only (default: the reward by set, other scores)")
    _add_root(compare)
    compare.set_defaults(run=_compare)

    status = verbs.add_parser("status", help="queue, progress, time left, checkpoint, attempts, alarms of each run")
    status.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of runs (default: all below --root)"
    )
    _add_root(status)
    status.set_defaults(run=_status)

    logs = verbs.add_parser("logs", help="print the log of a run, or follow it through its attempts")
    logs.add_argument("run_folder", type=Path, metavar="RUN", help="run folder")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run is done")
    logs.add_argument("--rank", type=int, metavar="R", help="(default: the first training rank, which leads)")
    logs.add_argument("--attempt", type=int, metavar="N", help="(default: the newest)")
    logs.set_defaults(run=_logs)

    doctor = verbs.add_parser("doctor", help="inside an allocation: check all that a job of this config needs")
    doctor.add_argument("config", type=Path, help="YAML file")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="as for the job")
    doctor.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds for each check (300)")
    doctor.set_defaults(run=_doctor)

    prefetch = verbs.add_parser("prefetch", help="fetch the models that configs need, on a login node")
    prefetch.add_argument("words", nargs="+", metavar="CONFIG", help="YAML files, and overrides key=value for all")
    prefetch.set_defaults(run=_prefetch)

    verbs.add_parser("data", add_help=False, help="look at files of prompts and pairs: check-disjoint, suffixes")
    verbs.add_parser("world", add_help=False, help="the miniature world: train, quality, show")
    verbs.add_parser("humaneval", add_help=False, help="blinded human ratings of an evaluation's pictures: make, score")
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where the runs are (default: runs)")


def _optimize(arguments: argparse.Namespace) -> None:
    from promptist.cluster.status import newest_export

    folder: Path | None = arguments.model
    if folder is None:
        folder = newest_export(arguments.root)
        if folder is None:
            raise UserError(
                f"there is no finished PPO run with an export below {arguments.root}: run `make demo` first, "
                "or name a model with --model FOLDER"
            )
        # Beside the answer, not in it: stdout holds the rewrites alone.
        print(f"model: {folder} (newest finished PPO run; --model names another)", file=sys.stderr)

    from promptist.optimize import Promptist

    print(*Promptist.from_pretrained(folder)(arguments.prompt), sep="\n")


def _report(arguments: argparse.Namespace) -> None:
    from promptist.evaluation.report import write_report

    print(write_report(arguments.folder))


def _compare(arguments: argparse.Namespace) -> None:
    from promptist.evaluation.comparison import report, sides

    ours, theirs = sides((arguments.a, arguments.b), arguments.folder, arguments.root)
    print(report(ours, theirs, arguments.metric))


def _status(arguments: argparse.Namespace) -> None:
    from promptist.cluster.status import find_runs, look, table
    from promptist.evaluation.alarms import count

    for folder in arguments.runs:
        if not find_runs(folder):
            raise UserError(f"{folder} is not a run folder: it has no config.yaml, nor has any folder below it")
    runs = [run for folder in arguments.runs or [arguments.root] for run in find_runs(folder)]
    if not runs:
        raise UserError(f"there is no run below {arguments.root}: name another folder with --root")
    print(table(look(runs, count)))


def _logs(arguments: argparse.Namespace) -> int:
    from promptist.cluster.logs import show

    try:
        return show(arguments.run_folder, arguments.rank, arguments.attempt, arguments.follow)
    except BrokenPipeError:  # `| head` has seen enough; what is still buffered must not be flushed into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from promptist.cluster import doctor

    return doctor.main(arguments.config, arguments.overrides, arguments.timeout)


def _prefetch(arguments: argparse.Namespace) -> int:
    from promptist.cluster import prefetch

    configs = [Path(word) for word in arguments.words if "=" not in word]
    if not configs:
        raise UserError("name a config file, e.g. promptist prefetch configs/paper/ppo.yaml")
    return prefetch.main(configs, [word for word in arguments.words if "=" in word])


if __name__ == "__main__":
    sys.exit(main())
