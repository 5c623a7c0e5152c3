"""How far a PPO run is: what a checkpoint holds besides the engines, resuming from it, and the end of a
run."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from promptist.cluster import checkpoint
from promptist.cluster.metrics import MetricLog
from promptist.cluster.roles import World
from promptist.cluster.run_folder import RunFolder, write_atomically
from promptist.models import elastic
from promptist.models.policy import export_policy
from promptist.rl.config import PPOJob
from promptist.rl.networks import Networks

log = logging.getLogger(__name__)

PACE_MEMORY = 0.9
"""Weight of the past in the running mean of seconds per iteration behind the ETA."""


@dataclass
class Progress:
    """Finished iterations, the best validation so far (`best_step` 0 is the SFT model), and the KL coefficient of the
    next iteration.

    Everything else a run needs to go on is in the engines or a pure function of seed and iteration: order of
    the prompts, length draws, picked beams and noises.
    """

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    kl_coef: float = 0.0
    seconds_per_step: float | None = field(default=None, compare=False)

    def consider(self, step: int, score: float) -> bool:
        """Take a validation into account; True if it is the best so far."""
        if self.best_score is not None and score <= self.best_score:
            return False
        self.best_step, self.best_score = step, score
        return True

    def pace(self, seconds: float) -> float:
        """Running mean of the seconds per iteration, with the newest one taken in."""
        old = self.seconds_per_step
        self.seconds_per_step = seconds if old is None else PACE_MEMORY * old + (1 - PACE_MEMORY) * seconds
        return self.seconds_per_step


def newest(run: RunFolder, world: World) -> Path | None:
    """The folder to resume from, the same on all training ranks; None to start from the SFT model.

    The cache of plain pictures is cut back to it, so that it must not be open yet. Where another number of training
    ranks wrote the newest checkpoint it is its universal form; raises UserError where there is none.
    """
    return world.share(elastic.find_to_resume(run.checkpoints, world.group_size, "ppo") if world.leads else None)


def resume(found: Path | None, nets: Networks, metrics_log: MetricLog, kl_coef: float) -> Progress:
    """Load `found` into the engines, cut metrics and rollouts back to it, and say how far the run is
    (collective). `kl_coef`: that of the first iteration."""
    if found is None:
        metrics_log.cut_back(-1)  # an attempt that died before its first checkpoint may have left some
        return Progress(kl_coef=kl_coef)
    state = checkpoint.read_state(found)
    nets.load(found)
    metrics_log.cut_back(state["step"])
    progress = Progress(**{name: state[name] for name in ("step", "best_step", "best_score", "kl_coef")})
    log.info("resumed from %s, best validation %s at step %s", found, progress.best_score, progress.best_step)
    return progress


def save(nets: Networks, run: RunFolder, world: World, progress: Progress, keep: int) -> None:
    """Commit checkpoint `progress.step` and delete old ones, never the best (collective).

    No rank has state of its own: all randomness is a function of the iteration, and the cache of plain
    pictures is cut back to the checkpoint on resume.
    """
    state = {name: value for name, value in asdict(progress).items() if name != "seconds_per_step"}
    checkpoint.save(
        run.checkpoints,
        progress.step,
        nets.save,
        rank=world.group_rank,
        world_size=world.group_size,
        barrier=world.barrier,
        state=state,
    )
    if world.leads:
        checkpoint.keep_last(run.checkpoints, keep, progress.best_step)


def finish(nets: Networks, job: PPOJob, run: RunFolder, world: World, progress: Progress) -> None:
    """Write `export/` (the last policy), `export-best/` (the one of the best validation) and `done.json`
    (collective)."""
    _export(nets, job, run.path / "export", world)
    best = run.path / "export-best"
    if progress.best_step == progress.step:
        if world.leads:
            shutil.rmtree(best, ignore_errors=True)
            shutil.copytree(run.path / "export", best)
    elif progress.best_step:
        if world.leads:
            # Past the engine: another number of ranks may have saved it.
            saved = checkpoint.check(checkpoint.path_of(run.checkpoints, progress.best_step))
            nets.export_saved(saved, best)
            write_settings(job, best)
    elif world.leads:
        export_policy(nets.reference, nets.reference.state_dict(), nets.tokenizer, best)
        write_settings(job, best)
    world.barrier()
    if world.leads:
        summary = {
            "step": progress.step,
            "best_step": progress.best_step,
            "best_score": progress.best_score,
            "export": "export",
            "export_best": "export-best",
        }
        run.mark_done(summary)
        log.info(
            "finished: %s (last policy), %s (best validation %.3f after %d iterations)",
            run.path / "export",
            best,
            progress.best_score,
            progress.best_step,
        )


def _export(nets: Networks, job: PPOJob, folder: Path, world: World) -> None:
    nets.export(folder)
    if world.leads:
        write_settings(job, folder)


def write_settings(job: PPOJob, folder: Path) -> None:
    """How `promptist optimize` decodes with this model: as validation did."""
    decoding: dict[str, Any] = asdict(job.ppo.validation_decoding)
    settings = {"decoding": decoding, "max_new_tokens": job.ppo.validation_new_tokens, "pick": job.ppo.validation_pick}
    write_atomically(folder / "promptist.json", json.dumps(settings, indent=1) + "\n")
