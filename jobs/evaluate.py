"""The evaluation job: `python -m jobs.evaluate CONFIG key=value ...`, or with prompts dealt to several ranks
`mpirun -n 2 python -m mpi4py -m jobs.evaluate CONFIG ...`.

Rewrites, paints and measures what is missing in the run folder, then writes its tables and report.html. The
same command run again paints nothing that is finished, also after a change of prompts, methods or images.
As an array: `shard=3/16` does a sixteenth of the prompts, also while other shards are at work in the same folder, and
`reduce=16`, when all are finished, writes tables and report without any model.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptist.cluster import preemption
from promptist.cluster.launch import pick_device, share_cores
from promptist.cluster.metrics import METRICS
from promptist.cluster.roles import World, join_world
from promptist.cluster.run_folder import RunConfig, RunFolder, open_run, write_atomically
from promptist.config import load
from promptist.errors import EXIT_STOPPED, UserError, run_main
from promptist.evaluation.evaluate import (
    NAMESPACE,
    TABLE,
    Painter,
    Plan,
    Rewriter,
    table,
    unfinished,
    work,
    write_table,
)
from promptist.evaluation.methods import MethodConfig, check_methods, model_fingerprint, model_folder
from promptist.evaluation.prompts import EvalPrompt, fingerprint, load_eval_prompts
from promptist.evaluation.report import META, build_report
from promptist.evaluation.shards import FOLDER, Note, Shard, collect_notes, config_inputs, inputs_of
from promptist.evaluation.store import Store
from promptist.reward.model import RewardConfig

if TYPE_CHECKING:
    from promptist.optimize import Promptist

log = logging.getLogger(__name__)


@dataclass
class EvalJob:
    """Everything `python -m jobs.evaluate CONFIG` reads.

    `prompts`: JSONL with `prompt`, `set` and optional `human`. `images` per prompt and method, with the
    noises 0..images-1 of namespace "eval"; of them the first `pictures` are kept as files. `run.seed` seeds
    the bootstrap only. `shard` (`3/16`) and `reduce` (16) belong on the command line, one of them at a time.
    """

    run: RunConfig
    reward: RewardConfig
    prompts: str
    methods: list[MethodConfig] = field(default_factory=list)
    images: int = 3  # paper: pictures per prompt
    pictures: int = 2  # ours
    shard: str | None = None
    reduce: int | None = None

    def __post_init__(self) -> None:
        check_methods(self.methods)
        if self.images < 1:
            raise UserError(f"images must be at least 1, not {self.images}")
        if not 1 <= self.pictures <= self.images:
            raise UserError(
                f"pictures is {self.pictures}: keep at least 1 and at most the {self.images} of `images`"
            )
        if self.shard is not None and self.reduce is not None:
            raise UserError("shard and reduce are both set: reduce by its own command, when all shards are finished")
        if self.shard is not None:
            Shard.parse(self.shard)
        if self.reduce is not None and self.reduce < 1:
            raise UserError(f"reduce is {self.reduce}: write how many shards there are, at least 1")


def main(argv: list[str]) -> int:
    """Evaluate what a config file asks for, or a shard of it, or reduce shards to a report; 0 when done,
    `EXIT_STOPPED` when stopped by a signal."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.evaluate", description="Compare prompt optimisers on held-out prompts."
    )
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. images=8, shard=3/16, reduce=16")
    arguments = parser.parse_args(argv)
    job = load(EvalJob, arguments.config, arguments.overrides)
    prompts = load_eval_prompts(job.prompts)
    # A missing model is better known now than after an hour of painting.
    decoder = None if job.reduce else common_decoder(job.methods)

    world = join_world()
    # Finished work is addressed by its content, so no change of the config can mix it up.
    recorded = replace(job, shard=None, reduce=None)
    run = open_run(job.run, recorded, world, may_change={f.name for f in fields(EvalJob)})
    # Before the first one writes, all ranks have read the same record.
    store = Store(run.path / FOLDER, f"attempt_{run.attempt:04d}_rank_{world.rank:05d}")
    world.barrier_all()
    if job.reduce is None:
        shard = Shard.parse(job.shard) if job.shard else Shard()
        if not evaluate(job, prompts, shard, decoder, world, run, store):
            return EXIT_STOPPED
    if job.shard is None:
        if world.leads:
            reduce(job, prompts, job.reduce or 1, run, store)
        world.barrier_all()
    return 0


def evaluate(
    job: EvalJob, prompts: list[EvalPrompt], shard: Shard, decoder: dict[str, Any] | None, world: World, run: RunFolder,
    store: Store,
) -> bool:  # fmt: skip
    """Do what is missing of a shard and note that it is finished; False where a signal stopped it before."""
    stop = preemption.install()
    share_cores(world)
    seen = _look(job, prompts, shard, run, store) if world.leads else ({}, {}, False)
    world.barrier_all()  # hashing models takes a while, and a broadcast that waits burns its core
    models, inputs, finished = world.share_all(seen)
    name = f"shard {shard} of {run.path}" if job.shard else str(run.path)
    if finished:
        if world.leads and job.shard:
            print(f"{name} is finished", flush=True)
        return True
    if world.leads:
        (run.path / "done.json").unlink(missing_ok=True)  # a run with work to do is not done
    plan = _plan(job, prompts, models)
    part = shard.part(prompts)

    def load_painter() -> tuple[Painter, str]:
        from promptist.reward.model import RewardModel
        from promptist.reward.service import on_own_device

        model = RewardModel(on_own_device(job.reward, world), run.path)
        return model.measure, model.fingerprint

    painter = work(plan, part, run.path, store, world, rewriter(world), load_painter, stop) if part else ""
    if painter is None:
        return False
    if world.leads:
        Note(inputs, painter, decoder).write(run.path, shard)
        log.info("eval | %s: all %d prompts are finished", name, len(part))
    return True


def reduce(job: EvalJob, prompts: list[EvalPrompt], of: int, run: RunFolder, store: Store) -> None:
    """Tables and report from what `of` shards have finished. Needs no model: the shards noted what theirs were.

    UserError where a shard is missing, or was computed from something else.
    """
    expected = config_inputs(inputs_of(fingerprint(prompts), job.methods, {}, job.images, job.pictures, job.reward))
    notes = collect_notes(run.path, of, expected)
    models = {row["name"]: row["model"] for row in notes[0].inputs["methods"] if row["model"]}
    plan, painter = _plan(job, prompts, models), next(note.painter for note in notes if note.painter)
    for shard in (Shard(i + 1, of) for i in range(of)):
        lost = unfinished(plan, shard.part(prompts), store, painter, run.path)
        if lost:
            raise UserError(
                f"shard {shard} of {run.path} was finished, but what it recorded of {lost[0].x!r} is no longer there: "
                f"run `python -m jobs.evaluate CONFIG{f' shard={shard}' if of > 1 else ''}` again"
            )
    rows = table(plan, store, painter)
    write_table(run.path / TABLE, rows)
    about = describe(job, plan, painter, next(note.decoder for note in notes if note.painter))
    write_atomically(run.path / META, json.dumps(about, indent=1) + "\n")
    report = build_report(run.path)
    run.mark_done({"images": len(rows), "prompts": len(prompts), "report": report.name})
    log.info("eval | report: %s", report)


def _look(
    job: EvalJob, prompts: list[EvalPrompt], shard: Shard, run: RunFolder, store: Store
) -> tuple[dict[str, str], dict[str, Any], bool]:
    """Fingerprints of the models, what the shard is to be computed from, and whether it has been already."""
    models = {m.name: model_fingerprint(model_folder(m.path)) for m in job.methods if m.path}
    inputs = inputs_of(fingerprint(prompts), job.methods, models, job.images, job.pictures, job.reward)
    note = Note.read(run.path, shard)
    if note is None or note.inputs != inputs:
        return models, inputs, False
    part = shard.part(prompts)
    return models, inputs, not unfinished(_plan(job, prompts, models), part, store, note.painter, run.path)


def _plan(job: EvalJob, prompts: list[EvalPrompt], models: dict[str, str]) -> Plan:
    return Plan(prompts, job.methods, models, job.images, job.pictures, job.reward.diffusion.batch)


def common_decoder(methods: Sequence[MethodConfig]) -> dict[str, Any] | None:
    """The one decoder of all model rows, as `promptist optimize` uses it; None without model rows.

    UserError where the folders' settings differ: the rows would then differ in more than their weights.
    """
    from promptist.optimize import RewriteSettings

    folders = [model_folder(m.path) for m in methods if m.path]
    settings = [RewriteSettings.of_folder(folder) for folder in folders]
    for folder, own in zip(folders, settings, strict=True):
        if own != settings[0]:
            raise UserError(
                f"{folder} and {folders[0]} decode differently: give both the same promptist.json"
            )
    return asdict(settings[0]) if settings else None


def rewriter(world: World) -> Rewriter:
    """Rewrites by the decoder of `promptist optimize`, one model in memory at a time."""
    loaded: dict[Path, Promptist] = {}

    def rewrite(folder: Path, prompts: list[str]) -> list[str]:
        from promptist.optimize import Promptist

        if folder not in loaded:
            loaded.clear()
            loaded[folder] = Promptist.from_pretrained(folder, device=str(pick_device(world)))
        return loaded[folder].rewrites(prompts)

    return rewrite


def describe(job: EvalJob, plan: Plan, painter: str, decoder: dict[str, Any] | None) -> dict[str, Any]:
    """What `evaluation.json` holds: all that a reader of the table must know to read it, or to repeat it."""
    return {
        "version": 1,
        "seed": job.run.seed,
        "namespace": NAMESPACE,
        "images": plan.images,
        "prompts": fingerprint(plan.prompts),
        "painter": painter,
        "decoder": decoder,
        "terms": {"slope": job.reward.terms.slope, "offset": job.reward.terms.offset},
        "methods": [
            {**asdict(m), "model": plan.models.get(m.name)} for m in plan.methods
        ],
        "runs": {m.name: str(run) for m in plan.methods if m.name in ("sft", "ppo") and (run := _run_of(m))},
    }


def _run_of(method: MethodConfig) -> Path | None:
    """The folder of the run that trained a method's model; None where the model is from elsewhere."""
    assert method.path is not None
    path = Path(method.path)
    return next((run for run in (path, path.parent) if (run / METRICS).is_file()), None)


if __name__ == "__main__":
    sys.exit(run_main(main))
