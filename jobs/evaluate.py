"""The evaluation job: `python -m jobs.evaluate CONFIG key=value ...`, or with prompts dealt to several ranks
`mpirun -n 2 python -m mpi4py -m jobs.evaluate CONFIG ...`.

Rewrites, paints and measures what is missing in the run folder, then writes its tables and report.html. The
same command run again paints nothing that is finished, also after a change of prompts, methods or images.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptist.cluster.launch import pick_device, share_cores
from promptist.cluster.metrics import METRICS
from promptist.cluster.roles import World, join_world
from promptist.cluster.run_folder import RunConfig, open_run, write_atomically
from promptist.config import load
from promptist.errors import UserError, run_main
from promptist.evaluation.evaluate import NAMESPACE, Painter, Plan, Rewriter, evaluate
from promptist.evaluation.methods import MethodConfig, check_methods, model_fingerprint, model_folder
from promptist.evaluation.prompts import fingerprint, load_eval_prompts
from promptist.evaluation.report import META, build_report
from promptist.reward.model import RewardConfig

if TYPE_CHECKING:
    from promptist.optimize import Promptist

log = logging.getLogger(__name__)


@dataclass
class EvalJob:
    """Everything `python -m jobs.evaluate CONFIG` reads.

    `prompts`: JSONL with `prompt`, `set` and optional `human`. `images` per prompt and method, with the
    noises 0..images-1 of namespace "eval"; of them the first `pictures` are kept as files. `run.seed` seeds
    the bootstrap only.
    """

    run: RunConfig
    reward: RewardConfig
    prompts: str
    methods: list[MethodConfig] = field(default_factory=list)
    images: int = 3  # paper: pictures per prompt
    pictures: int = 2  # ours

    def __post_init__(self) -> None:
        check_methods(self.methods)
        if self.images < 1:
            raise UserError(f"images must be at least 1, not {self.images}")
        if not 1 <= self.pictures <= self.images:
            raise UserError(
                f"pictures is {self.pictures}: keep at least 1 and at most the {self.images} of `images`"
            )


def main(argv: list[str]) -> int:
    """Evaluate what a config file asks for and write the report; 0 when done."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.evaluate", description="Compare prompt optimisers on held-out prompts."
    )
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. images=8")
    arguments = parser.parse_args(argv)
    job = load(EvalJob, arguments.config, arguments.overrides)
    prompts = load_eval_prompts(job.prompts)
    decoder = common_decoder(
        job.methods
    )  # a missing model is better known now than after an hour of painting

    world = join_world()
    # Finished work is addressed by its content, so no change of the config can mix it up.
    run = open_run(job.run, job, world, may_change={f.name for f in fields(EvalJob)})
    share_cores(world)
    plan = Plan(prompts, job.methods, job.images, job.pictures, job.reward.diffusion.batch)
    painter = ""

    def load_painter() -> tuple[Painter, str]:
        nonlocal painter
        from promptist.reward.model import RewardModel
        from promptist.reward.service import on_own_device

        model = RewardModel(on_own_device(job.reward, world), run.path)
        painter = model.fingerprint
        return model.measure, painter

    rows = evaluate(plan, run.path, world, rewriter(world), load_painter)
    if rows is not None:
        write_atomically(run.path / META, json.dumps(describe(job, plan, painter, decoder), indent=1) + "\n")
        report = build_report(run.path)
        run.mark_done({"images": len(rows), "prompts": len(prompts), "report": report.name})
        log.info("eval | report: %s", report)
    return 0


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
            {**asdict(m), "model": model_fingerprint(model_folder(m.path)) if m.path else None}
            for m in plan.methods
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
