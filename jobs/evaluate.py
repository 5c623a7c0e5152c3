"""The evaluation job: `python -m jobs.evaluate CONFIG key=value ...`, or with prompts dealt to several ranks
`mpirun -n 2 python -m mpi4py -m jobs.evaluate CONFIG ...`.

Rewrites, paints and measures what is missing in the run folder, then writes its tables and report.html. The
same command run again paints nothing that is finished, also after a change of prompts, methods or images.
As an array: `shard=3/16` does a sixteenth of the prompts, also while other shards are at work in the same folder, and
`reduce=16`, when all are finished, writes tables and report without any model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from promptist.cluster import preemption
from promptist.cluster.launch import share_cores
from promptist.cluster.metrics import METRICS
from promptist.cluster.roles import World, join_world
from promptist.cluster.run_folder import RunConfig, RunFolder, open_run, write_atomically
from promptist.config import load
from promptist.data.disjoint import check_disjoint
from promptist.errors import EXIT_STOPPED, UserError, run_main
from promptist.evaluation import timings
from promptist.evaluation.entries import EXPORTS, check_models, entries_of, plain_texts, runs_of
from promptist.evaluation.evaluate import NAMESPACE, Painter, Tools, unfinished, work
from promptist.evaluation.fidelity import Lexicon, text_metrics
from promptist.evaluation.lengths import Counter, Ruler, encoder_ruler, language_ruler
from promptist.evaluation.measures import Scoring, build_table
from promptist.evaluation.methods import MethodConfig, check_methods, model_folder
from promptist.evaluation.plan import Entry, Plan
from promptist.evaluation.policies import Policies, decoders_of
from promptist.evaluation.prompts import EvalPrompt, fingerprint, load_eval_prompts
from promptist.evaluation.report import build_report
from promptist.evaluation.shards import FOLDER, Inputs, Note, Shard, collect_notes
from promptist.evaluation.store import Store
from promptist.evaluation.table import VERSION, write_table
from promptist.export import is_checkpoint
from promptist.reward.held_out import HeldOutConfig, check_held_out
from promptist.reward.model import RewardConfig

log = logging.getLogger(__name__)

ABOUT = "evaluation.json"
"""The metadata of the table, for people and for programs without parquet."""


@dataclass
class EvalJob:
    """Everything `python -m jobs.evaluate CONFIG` reads.

    `prompts`: one file or several; an evaluation prompt that occurs in one of `disjoint_from` is an error. `held_out`:
    scorers that training never saw. `reference`: the SFT model against which the rewrites' log-ratios are taken, one
    for all or one per replica. `lexicon`: classes of words for the text metrics, beside the colours. `decoders`: `same`
    refuses model rows whose folders decode differently, `own` lets them, and the report says so. `images` per prompt
    and method, with the noises 0..images-1 of namespace "eval"; of them the first `pictures` are kept as files.
    `run.seed` seeds the bootstrap only. `shard` (`3/16`) and `reduce` (16) belong on the command line, one of them at a
    time.
    """

    run: RunConfig
    reward: RewardConfig
    prompts: Any  # a list after loading
    disjoint_from: list[str] = field(default_factory=list)
    methods: list[MethodConfig] = field(default_factory=list)
    held_out: list[HeldOutConfig] = field(default_factory=list)
    reference: Any = None  # a list after loading
    lexicon: str | None = None
    decoders: Literal["same", "own"] = "same"
    images: int = 3  # paper: pictures per prompt
    pictures: int = 2  # ours
    shard: str | None = None
    reduce: int | None = None

    def __post_init__(self) -> None:
        self.prompts = _as_list("prompts", self.prompts)
        self.reference = _as_list("reference", self.reference)
        if not self.prompts:
            raise UserError("prompts is empty: name a file of evaluation prompts, or several")
        check_methods(self.methods)
        check_held_out(self.held_out)
        for scorer in self.held_out:
            same = (scorer.clip, scorer.aesthetic) == (self.reward.clip, self.reward.aesthetic)
            if same or scorer.head == self.reward.aesthetic.path:
                raise UserError(f"held_out: {scorer.name} is the training reward itself, so it is not held out")
        if self.decoders not in ("same", "own"):
            raise UserError(f"decoders is {self.decoders!r}; use same or own")
        if self.images < 1:
            raise UserError(f"images must be at least 1, not {self.images}")
        if self.images < 2 and (best := [m.name for m in self.methods if m.kind == "best_of"]):
            raise UserError(f"methods: {best[0]!r} chooses among the plain pictures, of which there is 1: raise images")
        if not 1 <= self.pictures <= self.images:
            raise UserError(f"pictures is {self.pictures}: keep at least 1 and at most the {self.images} of `images`")
        if self.shard is not None and self.reduce is not None:
            raise UserError("shard and reduce are both set: reduce by its own command, when all shards are finished")
        if self.shard is not None:
            Shard.parse(self.shard)
        if self.reduce is not None and self.reduce < 1:
            raise UserError(f"reduce is {self.reduce}: write how many shards there are, at least 1")


def _as_list(key: str, value: Any) -> list[str]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
        raise UserError(f"{key} must be a path or a list of paths, not {value!r}")
    return found


@dataclass(frozen=True)
class Known:
    """What the leading rank has found out and the others need: the rows, what a shard is computed from, how the models
    decode, and whether the shard is finished."""

    entries: list[Entry]
    inputs: dict[str, Any]
    decoders: dict[str, Any]
    finished: bool


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
    prompts, texts = read_inputs(job)
    # A missing model is better known now than after an hour of painting.
    if not job.reduce:
        check_models(job.methods, job.reference)
        known = {m.name: [model_folder(p) for p in m.models if not is_checkpoint(p)] for m in job.methods}
        decoders_of(known, job.decoders == "same")

    world = join_world()
    # Finished work is addressed by its content, so no change of the config can mix it up.
    recorded = replace(job, shard=None, reduce=None)
    run = open_run(job.run, recorded, world, may_change={f.name for f in fields(EvalJob)})
    # Before the first one writes, all ranks have read the same record.
    writer = f"attempt_{run.attempt:04d}_rank_{world.rank:05d}"
    store = Store(run.path / FOLDER, writer)
    world.barrier_all()
    inputs = Inputs(
        fingerprint(prompts), job.methods, texts, job.reference, job.images, job.pictures, job.reward, job.held_out
    )
    if job.reduce is None:
        shard = Shard.parse(job.shard) if job.shard else Shard()
        if not evaluate(job, prompts, inputs, shard, world, run, store, timings.Clock(run.path, writer)):
            return EXIT_STOPPED
    if job.shard is None:
        if world.leads:
            reduce(job, prompts, inputs, job.reduce or 1, run, store)
        world.barrier_all()
    return 0


def read_inputs(job: EvalJob) -> tuple[list[EvalPrompt], dict[str, dict[str, str]]]:
    """The prompts of a config, and what the methods without a model make of them.

    UserError where a file is missing or broken, and where a prompt was trained on.
    """
    prompts = load_eval_prompts(job.prompts)
    check_disjoint([prompt.x for prompt in prompts], job.disjoint_from)
    Lexicon.load(job.lexicon)
    return prompts, plain_texts(job.methods, prompts)


def evaluate(
    job: EvalJob, prompts: list[EvalPrompt], inputs: Inputs, shard: Shard, world: World, run: RunFolder, store: Store,
    clock: timings.Clock,
) -> bool:  # fmt: skip
    """Do what is missing of a shard and note that it is finished; False where a signal stopped it before."""
    stop = preemption.install()
    share_cores(world)
    seen = _look(job, prompts, inputs, shard, run, store) if world.leads else None
    world.barrier_all()  # hashing models takes a while, and a broadcast that waits burns its core
    known = world.share_all(seen)
    assert known is not None  # the leading rank's
    name = f"shard {shard} of {run.path}" if job.shard else str(run.path)
    if known.finished:
        if world.leads and job.shard:
            print(f"{name} is finished", flush=True)
        return True
    if world.leads:
        (run.path / "done.json").unlink(missing_ok=True)  # a run with work to do is not done
    rulers = _rulers(job, known.entries)
    plan = _plan(job, prompts, inputs, known.entries, [ruler for ruler, _ in rulers])
    part = shard.part(prompts)

    def load_painter() -> tuple[Painter, str]:
        from promptist.reward.model import RewardModel
        from promptist.reward.service import on_own_device

        model = RewardModel(on_own_device(job.reward, world), run.path, held_out=job.held_out)
        return model.measure, model.fingerprint

    policies = Policies(world)
    count = {ruler.fingerprint: counter for ruler, counter in rulers}
    tools = Tools(policies.rewrite, policies.log_ratios, count, load_painter)
    painter = work(plan, part, run.path, store, world, tools, clock, stop) if part else ""
    if painter is None:
        return False
    if world.leads:
        Note(known.inputs, painter, known.decoders, [asdict(ruler) for ruler, _ in rulers]).write(run.path, shard)
        log.info("eval | %s: all %d prompts are finished", name, len(part))
    return True


def reduce(job: EvalJob, prompts: list[EvalPrompt], inputs: Inputs, of: int, run: RunFolder, store: Store) -> None:
    """Tables and report from what `of` shards have finished. Needs no model: the shards noted what theirs were.

    UserError where a shard is missing, or was computed from something else.
    """
    notes = collect_notes(run.path, of, inputs)
    note = next(note for note in notes if note.painter)
    plan = _plan(job, prompts, inputs, note.entries, [Ruler(**ruler) for ruler in note.rulers])
    for shard in (Shard(i + 1, of) for i in range(of)):
        lost = unfinished(plan, shard.part(prompts), store, note.painter, run.path)
        if lost:
            raise UserError(
                f"shard {shard} of {run.path} was finished, but what it recorded of {lost[0].x!r} is no longer there: "
                f"run `python -m jobs.evaluate CONFIG{f' shard={shard}' if of > 1 else ''}` again"
            )
    lexicon = Lexicon.load(job.lexicon)
    scoring = Scoring(
        job.reward.terms,
        {scorer.name: scorer.terms for scorer in job.held_out},
        lambda x, y: text_metrics(x, y, lexicon),
    )
    about = describe(job, plan, note)
    table = build_table(plan, store, note.painter, scoring, about)
    write_table(run.path, table)
    write_atomically(run.path / ABOUT, json.dumps({"version": VERSION, **about}, indent=1) + "\n")
    write_atomically(run.path / timings.SUMMARY, json.dumps(timings.summarise(run.path), indent=1) + "\n")
    report = build_report(run.path)
    run.mark_done({"measurements": len(table.measures), "prompts": len(prompts), "report": report.name})
    log.info("eval | report: %s", report)


def describe(job: EvalJob, plan: Plan, note: Note) -> dict[str, Any]:
    """What `evaluation.json` and the metadata of the table hold: all that a reader must know to read it, or to repeat
    it."""
    decoders = list(note.decoders.values())
    settings = {
        "inputs": {k: v for k, v in note.inputs.items() if k not in ("files", "entries")},
        "terms": asdict(job.reward.terms), "held_out": [asdict(scorer) for scorer in job.held_out],
        "lexicon": Path(job.lexicon).read_text("utf-8") if job.lexicon else None, "seed": job.run.seed,
    }  # fmt: skip
    models: dict[str, list[str]] = {}
    for entry in plan.entries:
        if entry.model:
            models.setdefault(entry.method, []).append(entry.model)
    return {
        "seed": job.run.seed,
        "namespace": NAMESPACE,
        "images": plan.images,
        "pictures": plan.pictures,
        "prompts": fingerprint(plan.prompts),
        "prompt_files": job.prompts,
        "config": hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest(),
        "painter": note.painter,
        "decoder": decoders[0] if decoders and all(own == decoders[0] for own in decoders) else None,
        "decoders": note.decoders,
        "terms": {"slope": job.reward.terms.slope, "offset": job.reward.terms.offset},
        "held_out": [asdict(scorer) for scorer in job.held_out],
        "lengths": [asdict(ruler) for ruler in plan.rulers],
        "methods": [asdict(method) for method in job.methods],
        "models": models,
        "reference": job.reference,
        "runs": runs_of(job.methods, METRICS),
    }


def _look(job: EvalJob, prompts: list[EvalPrompt], inputs: Inputs, shard: Shard, run: RunFolder, store: Store) -> Known:
    """The rows, with checkpoints exported and models hashed, and whether all is done already."""
    entries = entries_of(job.methods, job.reference, run.path / EXPORTS)
    folders: dict[str, list[Path]] = {}
    for entry in entries:
        if entry.folder is not None:
            folders.setdefault(entry.method, []).append(entry.folder)
    decoders = decoders_of(folders, job.decoders == "same")
    recorded = inputs.as_json(entries)
    note = Note.read(run.path, shard)
    if note is None or note.inputs != recorded:
        return Known(entries, recorded, decoders, False)
    plan = _plan(job, prompts, inputs, entries, [Ruler(**ruler) for ruler in note.rulers])
    missing = unfinished(plan, shard.part(prompts), store, note.painter, run.path)
    return Known(entries, recorded, decoders, not missing)


def _plan(
    job: EvalJob, prompts: list[EvalPrompt], inputs: Inputs, entries: list[Entry], rulers: Sequence[Ruler]
) -> Plan:
    return Plan(prompts, entries, inputs.texts, job.images, job.pictures, job.reward.diffusion.batch, tuple(rulers))


def _rulers(job: EvalJob, entries: Sequence[Entry]) -> list[tuple[Ruler, Counter]]:
    """How lengths are measured: in tokens of the language model (where there is one) and of the text encoder."""
    references = [entry.reference_folder for entry in entries if entry.reference_folder]
    folder = next(iter(references + [entry.folder for entry in entries if entry.folder]), None)
    return [*([language_ruler(folder)] if folder else []), encoder_ruler(job.reward.diffusion.path)]


if __name__ == "__main__":
    sys.exit(run_main(main))
