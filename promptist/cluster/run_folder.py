"""The folder of a run: everything that is needed to read it, resume it or submit it again.

runs/NAME/  config.yaml  env.json  done.json
            logs/attempt_N/RANK.log   metrics.jsonl   tensorboard/   rollouts/   images/
            checkpoints/step_000200/   export/
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from promptist import config as configs
from promptist.cluster.roles import World
from promptist.errors import UserError

log = logging.getLogger(__name__)

# Keys that say where and how a run runs, not what it computes. Jobs add their own (e.g. the number of
# iterations).
MAY_CHANGE = frozenset({"run.root", "checkpoint", "logging", "roles"})
_PACKAGES = [
    "promptist",
    "torch",
    "deepspeed",
    "transformers",
    "diffusers",
    "open_clip_torch",
    "xformers",
    "mpi4py",
    "mpich",
    "openmpi",
    "submitit",
    "numpy",
    "omegaconf",
]


@dataclass
class RunConfig:
    """Name and place of the run, and the seed of all its randomness."""

    name: str = "run"
    root: str = "runs"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.name, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise UserError(f"run.name must be letters, digits, `.`, `_` and `-`, not {self.name!r}")
        if isinstance(self.seed, int) and self.seed < 0:
            raise UserError(f"run.seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder. `attempt` counts the starts of this run from 1."""

    path: Path
    attempt: int

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def is_done(self) -> bool:
        """Whether an earlier attempt finished the run."""
        return (self.path / "done.json").exists()

    def mark_done(self, summary: dict[str, Any]) -> None:
        """Write `done.json` (call on the leading rank, last)."""
        write_atomically(self.path / "done.json", json.dumps(summary, indent=2, sort_keys=True) + "\n")

    def summary(self) -> dict[str, Any]:
        """What `mark_done` wrote."""
        result: dict[str, Any] = json.loads((self.path / "done.json").read_text("utf-8"))
        return result


def open_run(run: RunConfig, cfg: Any, world: World, may_change: Collection[str] = ()) -> RunFolder:
    """Make or reopen `root/name` and start logging into it. Every rank of the world calls it, reward ranks
    too.

    `cfg` is the whole config, kept in `config.yaml`; a reopened run's config may differ below `MAY_CHANGE`
    and `may_change` only, else UserError naming the keys. All ranks log to `logs/attempt_N/RANK.log`, the
    leading one to the console as well.
    """
    path = Path(run.root) / run.name
    attempt = world.share_all(_prepare(path, cfg, frozenset(may_change) | MAY_CHANGE) if world.leads else 0)
    folder = RunFolder(path, attempt)
    logs = path / "logs" / f"attempt_{attempt}"
    _start_logging(logs / f"{world.rank:05d}.log", console=world.leads)
    hardware = (
        [_hardware()] if world.comm is None else world.comm.gather(_hardware(), root=world.train_ranks[0])
    )
    if world.leads:
        text = json.dumps(_environment(world, hardware, attempt), indent=2) + "\n"
        write_atomically(path / "env.json", text)
        write_atomically(logs / "env.json", text)
    return folder


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader, or a crash, sees the old or the new content, never a part.

    Several processes may write the same file: the last one's content stays.
    """
    temporary = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def source() -> dict[str, str | None]:
    """`commit` of the code and `diff` to it, null and empty where the source folder is no git repository."""
    return {"commit": _git("rev-parse", "HEAD").strip() or None, "diff": _git("diff", "HEAD")}


def _prepare(path: Path, cfg: Any, may_change: frozenset[str]) -> int:
    """Folders and `config.yaml`; the number of this attempt."""
    try:
        (path / "logs").mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "rollouts", "images"):
            (path / name).mkdir(exist_ok=True)
        saved = path / "config.yaml"
        if saved.exists():
            configs.check_resume(saved, cfg, may_change)
        write_atomically(saved, configs.to_yaml(cfg))
        return _next_attempt(path / "logs")
    except OSError as error:
        raise UserError(
            f"the run folder {path} cannot be written ({error.strerror}): set run.root to a place that can"
        ) from error


def _next_attempt(logs: Path) -> int:
    """The number of this attempt, whose log folder is made.

    Evaluation shards open the same run at the same time: whoever makes the folder has the number.
    """
    numbers = [int(p.name[8:]) for p in logs.glob("attempt_*") if p.name[8:].isdigit()]
    attempt = max(numbers, default=0) + 1
    while True:
        try:
            (logs / f"attempt_{attempt}").mkdir()
            return attempt
        except FileExistsError:
            attempt += 1


def _start_logging(file: Path, console: bool) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "promptist", False):  # an earlier run opened by this process
            root.removeHandler(handler)
            handler.close()
    to_file = logging.FileHandler(file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [to_file]
    if console:
        to_console = logging.StreamHandler(sys.stderr)
        to_console.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        to_console.addFilter(_ours_or_serious)
        handlers.append(to_console)
    for handler in handlers:
        handler.promptist = True  # type: ignore[attr-defined]
        handler.setLevel(logging.INFO)
        root.addHandler(handler)
    root.setLevel(logging.INFO)


def _ours_or_serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.split(".")[0] in ("promptist", "jobs", "__main__")


def _hardware() -> dict[str, Any]:
    return {"host": socket.gethostname(), "cpus": len(os.sched_getaffinity(0)), "gpus": _gpus()}


def _gpus() -> list[str]:
    """Models of the host's NVIDIA GPUs, read from the driver: asking CUDA would initialise it."""
    models = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"Model:\s*(.+)", file.read_text("utf-8", "replace"))
        models.append(found.group(1).strip() if found else "unknown")
    return models


def _environment(world: World, hardware: list[dict[str, Any]], attempt: int) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        **source(),
        "ranks": [{"rank": r, "role": world.roles[r], **facts} for r, facts in enumerate(hardware)],
        "slurm": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(("SLURM_JOB_", "SLURM_ARRAY_"))
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*args: str) -> str:
    """Output of git in the source folder, empty where there is no git or no repository.

    subprocess starts it by vfork: a plain fork after MPI_Init may corrupt memory registered with the network
    card.
    """
    source = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *args], cwd=source, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
