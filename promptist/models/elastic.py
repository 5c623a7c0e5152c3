"""Going on with another number of training ranks.

ZeRO shards belong to their number of ranks. `convert` writes a checkpoint again as a DeepSpeed universal one, from
which any number of ranks loads, with moments, step counters and schedule: a file per parameter instead of one per
rank. It is run before the ranks start (`python -m promptist.cluster.prepare`), never by them: it starts worker
processes, and a process must not fork once MPI or CUDA is up. Nothing here needs torch.distributed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptist.cluster import checkpoint
from promptist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

TAG = "engine"
"""The folder inside `policy/` and `value/` that DeepSpeed writes; there is one, so no `latest` file is needed."""

ZERO = "zero"
"""The folder inside it that makes it a universal one."""

_WORKERS = 4
"""Processes that convert at a time, each holding one rank's shard in memory."""
_SAID = 1500
"""Characters of a failed conversion's last words."""


def convert(path: Path) -> Path:
    """Write `step_000200.universal` beside the intact checkpoint `path`, for any number of ranks; returns its path.

    Every engine in it is converted, everything else copied, and `path` itself only read. An intact conversion is
    left alone. Raises UserError on a full disk and where the conversion runs out of memory.
    """
    found = universal_of(path)
    if found is not None:
        return found
    log.info("converting %s for another number of training ranks", path)
    return checkpoint.save_universal(path, lambda folder: _write(path, folder))


def universal_of(path: Path) -> Path | None:
    """The intact universal form of the checkpoint `path`; a damaged one is skipped with a sentence in the log."""
    return checkpoint.find_universal(path)


def find_to_resume(folder: Path, ranks: int, job: str) -> Path | None:
    """As `checkpoint.find_to_resume`, for `ranks` training ranks: the universal form where others wrote the newest.

    Raises UserError where that was not converted; `job` (`sft`, `ppo`) goes into the command that does it.
    """
    path = checkpoint.find_to_resume(folder)
    if path is None or (wrote := checkpoint.world_size(path)) == ranks:
        return path
    found = universal_of(path)
    if found is None:
        raise UserError(
            f"checkpoint {path} was written by {wrote} training ranks and this run has {ranks}: convert it with "
            f"`python -m promptist.cluster.prepare {job} CONFIG --train-ranks {ranks}`, or start {wrote} as before"
        )
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Whole weights of the engine in `folder` (`.../policy`) on the CPU, whatever the number of ranks that saved it.

    Of an ordinary checkpoint, by one process. In the training precision under ZeRO 0 to 2, in float32 under ZeRO 3.
    """
    whole = folder / TAG / "mp_rank_00_model_states.pt"
    if whole.is_file():
        import torch

        weights: dict[str, Tensor] = torch.load(whole, map_location="cpu", weights_only=False)["module"]
        return weights
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It prints, and draws bars.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG))


def _write(path: Path, target: Path) -> None:
    """The universal form of all that is in the checkpoint `path`, into `target`."""
    engines = []
    for item in sorted(path.iterdir()):
        if list((item / TAG).glob("*_optim_states.pt")):
            engines.append(item.name)
        elif item.is_dir():
            # ZeRO 0 shards nothing.
            shutil.copytree(item, target / item.name)
        elif item.name != checkpoint.COMPLETE:
            shutil.copy2(item, target / item.name)
    if engines:
        # A process of its own: DeepSpeed talks on both streams, takes a look at the devices when it is imported, and
        # starts workers by fork.
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path), str(target), *engines],
            env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode < 0 or "BrokenProcessPool" in done.stdout:
            raise UserError(
                f"the conversion of {path} was killed, most likely for want of memory: it needs as much as "
                f"{_WORKERS} ranks' shards together; ask for more host memory or start as many ranks as before"
            )
        if done.returncode:
            raise RuntimeError(f"{path} could not be converted: {done.stdout[-_SAID:].strip()}")


def _convert_engines(source: Path, target: Path, engines: list[str]) -> None:
    """Each engine folder by DeepSpeed's own script, as a library; its slices lie inside `target` meanwhile."""
    import argparse

    from deepspeed.checkpoint import ds_to_universal

    workers = max(1, min(_WORKERS, len(os.sched_getaffinity(0))))
    for name in engines:
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(source / name / TAG),
                output_folder=str(target / name / TAG),
                num_extract_workers=workers,
                num_merge_workers=workers,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
        # It names a path, and paths to checkpoints are nowhere stored.
        (target / name / "latest_universal").unlink(missing_ok=True)
        _drop_shards(target / name / TAG / ZERO / "optimizer_state.pt")


def _drop_shards(path: Path) -> None:
    """Take the first rank's tensors out of the optimiser's common state: under ZeRO 3 DeepSpeed leaves them in, each
    rank would load them, and only the step counter is read."""
    import torch

    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    inner = state.get("optimizer_state_dict")
    if inner is None:
        return
    state.pop("fp32_flat_groups", None)
    inner["state"] = {i: {"step": found["step"].clone()} for i, found in inner["state"].items()}
    slim = path.with_suffix(".slim")
    torch.save(state, slim)
    os.replace(slim, path)


if __name__ == "__main__":
    _convert_engines(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
