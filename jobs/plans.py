"""What is going to be submitted, and whether it can work: checked before a job has waited in the queue for nothing.

A plan is a list of stages, each of which waits for the one before it; a stage is one job, or one array.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptist import config as configs
from promptist.cluster.metrics import METRICS, read_metrics
from promptist.cluster.roles import assign
from promptist.cluster.run_folder import MAY_CHANGE
from promptist.cluster.site import ClusterConfig, gpu_hours, nodes_of_ranks, seconds
from promptist.cluster.submission import FOLDER, Submission, Work
from promptist.errors import UserError

if TYPE_CHECKING:
    from jobs.evaluate import EvalJob
    from promptist.optimize import RewriteSettings
    from promptist.rl.config import PPOJob
    from promptist.sft.config import SFTJob

UNBROKEN = ("update", "validate", "step")
"""Phases (`time/PHASE` in a run's metrics) that follow each other without a look for signals; a rollout is
interrupted."""


@dataclass(frozen=True)
class Stage:
    """A submission, with what a reader wants to know of it."""

    submission: Submission
    roles: Counter[str]  # ranks of one task: train, reward, both (one process alone), evaluate, reduce

    @property
    def kind(self) -> str:
        return self.submission.kind

    @property
    def gpu_hours(self) -> float:
        """At most, all tasks of an array together."""
        return gpu_hours(self.submission.components) * len(self.submission.works)

    @property
    def train_ranks(self) -> int | None:
        """None where nothing is trained."""
        return (self.roles["train"] + self.roles["both"]) or None


def plan_training(
    kind: str, config: Path, overrides: Sequence[str], site: ClusterConfig, sweep: Sequence[str] = ()
) -> list[Stage]:
    """The SFT or PPO (`kind`) run of a config, or with `sweep` (`ppo.kl_coef=0.1,0.2`, ...) an array of the product of
    all values, each run with a name of its own. UserError where one of them could not run."""
    jobs = [load_job(kind, config, own) for own in sweep_overrides(kind, config, overrides, sweep)]
    roles, *_ = [_check_training(kind, job, site) for job in jobs]
    works = tuple(Work(run_of(job), kind, job) for job in jobs)
    if len(works) == 1:
        return [_stage(works, site, roles)]
    if len(site.of(kind)) > 1:
        raise UserError("SLURM has no arrays of heterogeneous jobs: leave out cluster.ppo_reward, or submit run by run")
    base = load_job(kind, config, overrides).run
    # By content: another sweep of the same run must not replace the files that this one's tasks read when they restart.
    digest = hashlib.blake2b("\n".join(work.run.name for work in works).encode(), digest_size=4).hexdigest()
    folder = Path(base.root) / f"{base.name}.sweep-{digest}" / FOLDER
    return [_stage(works, site, roles, name=f"{base.name}.sweep", folder=folder)]


def plan_evaluation(config: Path, overrides: Sequence[str], site: ClusterConfig, shards: int = 1) -> list[Stage]:
    """One evaluation, or `shards` of it as an array and the reducer after them. UserError where they could not run."""
    job = load_job("eval", config, overrides)
    _check_evaluation(job, site)
    return _evaluation(job, site, shards)


def plan_pipeline(
    sft: Path, ppo: Path, evaluation: Path, overrides: Sequence[str], site: ClusterConfig, shards: int = 1
) -> list[Stage]:
    """SFT, then PPO from its export, then an evaluation of both.

    `overrides` hold for all three, or with a prefix for one: `ppo:run.seed=1`. PPO's `model.path` becomes the export of
    the SFT run, the paths of the evaluation's rows `sft` and `ppo` the two runs. UserError where one could not run.
    """
    own = {kind: _overrides_of(kind, overrides) for kind in ("sft", "ppo", "eval")}
    sft_job: SFTJob = load_job("sft", sft, own["sft"])
    sft_run = run_of(sft_job)
    ppo_job: PPOJob = load_job("ppo", ppo, [*own["ppo"], f"model.path={sft_run / 'export'}", "model.init=pretrained"])
    eval_job: EvalJob = load_job("eval", evaluation, own["eval"])
    runs = {"sft": sft_run, "ppo": run_of(ppo_job)}
    paths = [*runs.values(), run_of(eval_job)]
    if len(set(paths)) < len(paths):
        raise UserError(f"the stages of a pipeline need runs of their own, not {', '.join(map(str, paths))}: name them")
    rows = [
        replace(row, path=str(runs[row.name]), paths=[]) if row.name in runs and row.kind == "model" else row
        for row in eval_job.methods
    ]
    if ("ppo", "model") not in [(row.name, row.kind) for row in rows]:
        raise UserError(f"{evaluation} has no row named ppo in `methods`: add it, or nothing of this is evaluated")
    eval_job = replace(eval_job, methods=rows, reference=[str(sft_run)] if eval_job.reference else [])
    sft_roles = _check_training("sft", sft_job, site)
    # The export does not exist yet; its architecture and tokenizer are those of the model that SFT starts from.
    ppo_roles = _check_training("ppo", ppo_job, site, inputs=replace(ppo_job, model=sft_job.model))
    from promptist.optimize import RewriteSettings

    # What the exports will say of themselves: that of SFT nothing, that of PPO how it was validated.
    ppo_settings = RewriteSettings(
        ppo_job.ppo.validation_decoding, ppo_job.ppo.validation_new_tokens, ppo_job.ppo.validation_pick
    )
    _check_evaluation(eval_job, site, made={sft_run: RewriteSettings(), runs["ppo"]: ppo_settings})
    return [
        _stage((Work(sft_run, "sft", sft_job),), site, sft_roles),
        _stage((Work(runs["ppo"], "ppo", ppo_job),), site, ppo_roles),
        *_evaluation(eval_job, site, shards),
    ]


def sweep_overrides(kind: str, config: Path, overrides: Sequence[str], sweep: Sequence[str]) -> list[list[str]]:
    """`overrides` of each run of a sweep; its name is that of the config and its values, `ppo-kl_coef0.1-seed2`."""
    if not sweep:
        return [list(overrides)]
    axes = [(key, _values(text, key, raw)) for text in sweep for key, _, raw in [text.partition("=")]]
    keys = [key for key, _ in axes]
    repeated = [key for key in keys if keys.count(key) > 1 or key == "run.name"]
    if repeated:
        raise UserError(f"--sweep: {repeated[0]} stands twice" if repeated[0] != "run.name" else
                        "--sweep: run.name is made from the values, sweep other keys")  # fmt: skip
    leaves = [key.split(".")[-1] for key in keys]
    labels = [leaf if leaves.count(leaf) == 1 else key for leaf, key in zip(leaves, keys, strict=True)]
    base = load_job(kind, config, overrides).run.name
    runs: dict[str, list[str]] = {}
    for values in itertools.product(*(values for _, values in axes)):
        parts = [f"{label}{value}" for label, value in zip(labels, values, strict=True)]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([base, *parts]))
        if name in runs:
            raise UserError(f"--sweep: two of its runs would be called {name}; leave out the value that stands twice")
        pairs = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        runs[name] = [*overrides, *pairs, f"run.name={name}"]
    return list(runs.values())


def load_job(kind: str, config: Path, overrides: Sequence[str]) -> Any:
    """The config of a job of kind sft, ppo or eval; UserError where it is wrong."""
    if kind == "sft":
        from promptist.sft.config import SFTJob

        return configs.load(SFTJob, config, overrides)
    if kind == "ppo":
        from promptist.rl.config import PPOJob

        return configs.load(PPOJob, config, overrides)
    from jobs.evaluate import EvalJob

    return configs.load(EvalJob, config, overrides)


def run_of(job: Any) -> Path:
    """The run folder of a job's config."""
    return Path(job.run.root) / job.run.name


def _stage(
    works: tuple[Work, ...], site: ClusterConfig, roles: Counter[str], stem: str = "submit", name: str | None = None,
    folder: Path | None = None,
) -> Stage:  # fmt: skip
    run = works[0].run
    own = site.of(works[0].kind)
    return Stage(Submission(name or run.name, folder or run / FOLDER, works, site, own, stem), roles)


def _evaluation(job: EvalJob, site: ClusterConfig, shards: int) -> list[Stage]:
    if shards < 1:
        raise UserError(f"--shards must be at least 1, not {shards}")
    run, roles = run_of(job), Counter({"evaluate": site.eval.tasks})
    if shards == 1:
        return [_stage((Work(run, "eval", job),), site, roles)]
    works = tuple(Work(run, "eval", job, (f"shard={i}/{shards}",)) for i in range(1, shards + 1))
    reducer = (Work(run, "reduce", job, (f"reduce={shards}",)),)
    return [
        _stage(works, site, roles),
        _stage(reducer, site, Counter({"reduce": site.reduce.tasks}), "reduce", f"{run.name}-reduce"),
    ]


# ------------------------------------------------------------------------------------------------------------ checks


def _check_training(kind: str, job: Any, site: ClusterConfig, inputs: Any = None) -> Counter[str]:
    """Ranks by role; UserError where the run could not work. `inputs`: the config whose files are looked at."""
    components = site.of(kind)
    nodes = nodes_of_ranks(components)
    _check_site(kind, job, site)
    if kind == "sft":
        from promptist.sft.trainer import check_inputs as check_sft_inputs

        job.micro_batches(len(nodes))
        check_sft_inputs(inputs or job)
        _check_resume(job, frozenset())
        return Counter({"train": len(nodes)})
    from promptist.rl.config import MAY_CHANGE_ON_RESUME
    from promptist.rl.inputs import check_inputs as check_ppo_inputs

    if len(components) > 1 and job.roles.reward_nodes != components[1].nodes:
        raise UserError(
            f"cluster.ppo_reward has {components[1].nodes} nodes that are to paint, but roles.reward_nodes is "
            f"{job.roles.reward_nodes}: set roles.reward_per_node=null roles.reward_nodes={components[1].nodes}"
        )
    roles: Counter[str] = Counter(assign(nodes, job.roles))
    job.per_rank(roles["train"] + roles["both"])
    check_ppo_inputs(inputs or job)
    _check_resume(job, MAY_CHANGE_ON_RESUME)
    return roles


def _check_evaluation(job: EvalJob, site: ClusterConfig, made: Mapping[Path, RewriteSettings] | None = None) -> None:
    """`made`: run folders that earlier stages fill, and how the models there will decode."""
    from jobs.evaluate import read_inputs
    from promptist.evaluation.entries import check_models
    from promptist.evaluation.methods import model_folder
    from promptist.evaluation.policies import decoders_of
    from promptist.export import is_checkpoint

    if job.shard is not None or job.reduce is not None:
        raise UserError("shard and reduce are set by the submission: give --shards N instead")
    _check_site("eval", job, site)
    _check_site("reduce", job, site)
    read_inputs(job)
    runs = made or {}
    there = [row for row in job.methods if not any(_run_above(Path(p), runs) for p in [row.path or "", *row.paths])]
    check_models(there, [path for path in job.reference if not _run_above(Path(path), runs)])
    folders = {row.name: [model_folder(path) for path in row.models if not is_checkpoint(path)] for row in there}
    decoders_of(folders, job.decoders == "same")
    if made and job.decoders == "same":
        from promptist.optimize import RewriteSettings

        settings = [(name, RewriteSettings.of_folder(own[0])) for name, own in folders.items() if own]
        to_come = [(row, _run_above(Path(path), runs)) for row in job.methods for path in row.models]
        settings += [(row.name, runs[run]) for row, run in to_come if run is not None]
        for name, own in settings:
            if own != settings[0][1]:
                raise UserError(
                    f"the evaluation's rows {settings[0][0]} and {name} would decode differently: an export of SFT by "
                    "beam search with 8 beams and 75 tokens, one of PPO as ppo.validation_decoding, "
                    "ppo.validation_new_tokens and ppo.validation_pick say; make these the same, or set "
                    "eval:decoders=own to compare models with their decoders"
                )
    _check_resume(job, frozenset(field.name for field in fields(job)))


def _check_site(kind: str, job: Any, site: ClusterConfig) -> None:
    components = site.of(kind)
    if site.mpi == "none" and sum(component.tasks for component in components) > 1:
        raise UserError(f"mpi in the cluster config is none, but {kind} has several tasks: name pmi2 or pmix")
    lead = site.signal_lead_s
    for own in components:
        if 2 * lead > seconds(own.time):
            raise UserError(
                f"signal_lead_s = {lead} in the cluster config is more than half of the time limit of {kind} "
                f"({own.time}): lower it, or give the job more time"
            )
    needed = _longest(run_of(job) / METRICS)
    if needed > lead:
        raise UserError(
            f"signal_lead_s = {lead} in the cluster config is too short: {run_of(job)} took {needed:.0f} s from a look "
            "for signals to the end of a save, so it would be killed before that"
        )


def _longest(metrics: Path) -> float:
    """Seconds from a signal to the end of the next save, at worst, by what a run has logged; 0 without a log."""
    if not metrics.is_file():
        return 0.0
    records = read_metrics(metrics)
    unbroken = max((sum(_time(record, phase) for phase in UNBROKEN) for record in records), default=0.0)
    return unbroken + max((_time(record, "save") for record in records), default=0.0)


def _time(record: dict[str, Any], phase: str) -> float:
    value = record.get(f"time/{phase}")
    return float(value) if isinstance(value, (int, float)) else 0.0


def _check_resume(job: Any, may_change: frozenset[str]) -> None:
    """UserError where the run folder holds a run of another config, as the job itself would say after its wait."""
    saved = run_of(job) / "config.yaml"
    if saved.exists():
        configs.check_resume(saved, job, may_change | MAY_CHANGE)


def _run_above(path: Path, runs: Iterable[Path]) -> Path | None:
    """The run that `path` belongs to, if it is one of these."""
    return next((run for run in runs if path == run or run in path.parents), None)


def _overrides_of(kind: str, overrides: Sequence[str]) -> list[str]:
    """Those without a prefix, and those with that of `kind`."""
    chosen = []
    for text in overrides:
        prefix, colon, _ = text.partition("=")[0].partition(":")
        if not colon:
            chosen.append(text)
        elif prefix == kind:
            chosen.append(text.removeprefix(f"{kind}:"))
        elif prefix not in ("sft", "ppo", "eval"):
            raise UserError(f"the override `{text}` begins with `{prefix}:`, which is no stage: sft:, ppo: or eval:")
    return chosen


def _values(text: str, key: str, raw: str) -> list[str]:
    """[`0.1`, `[1,2]`] of `0.1,[1,2]`."""
    values = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", raw)
    if not key or not values or "=" not in text:
        raise UserError(f"--sweep takes key=value,value, such as run.seed=1,2, not `{text}`")
    return [value.strip() for value in values]
