"""Supervised fine-tuning: teacher forcing on `x Rephrase: y`, loss on y alone (Hao et al. 2023, section 2.2).

One step is a function of (seed, step): the batch comes from a counter-based order and nothing else is random,
so that a resumed run repeats the undisturbed one bit by bit on the CPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from promptist.cluster import checkpoint
from promptist.cluster.launch import init_training
from promptist.cluster.metrics import MetricLog, progress_line
from promptist.cluster.preemption import Preemption
from promptist.cluster.roles import World
from promptist.cluster.run_folder import RunFolder
from promptist.data.order import Order
from promptist.data.pairs import read_pairs
from promptist.data.text import load_tokenizer
from promptist.errors import UserError
from promptist.models import elastic
from promptist.models.engine import (
    build_engine,
    consolidated_state_dict,
    gathered,
    global_step,
    load_engine,
    save_engine,
    sum_over_ranks,
)
from promptist.models.policy import export_policy, forward_logprobs, load_policy, read_architecture
from promptist.models.tokens import TokenSum
from promptist.sft.batches import Batch, Example, collate, deal, tokenise
from promptist.sft.candidates import Candidates, export, folder_of, prune
from promptist.sft.config import SFTJob

log = logging.getLogger(__name__)

CANDIDATES, EXPORT, EXPORT_BEST = "candidates", "export", "export-best"
PROGRESS_S = 5.0
"""Seconds between progress lines; a validation always prints one."""


def train(job: SFTJob, world: World, run: RunFolder, stop: Preemption) -> bool:
    """Train to the end, or until `stop` is agreed on (False). Collective over all ranks.

    Leaves `export/` (the slightly under-fitted weights) and `export-best/` (best validation loss) in the run
    folder.
    """
    accumulation = job.micro_batches(world.group_size)
    device = init_training(world)
    tokenizer = load_tokenizer(job.model.path)
    pad = int(tokenizer.eos_token_id)
    examples = _read(job.data.train, job, tokenizer)
    held_out = _read(job.data.valid, job, tokenizer)
    order = Order([len(examples)], job.sft.batch, job.run.seed, purpose="sft")
    model = load_policy(job.model, job.run.seed)
    _check_positions(model.config, job)
    engine = build_engine(model, job.optimizer, job.zero, job.sft.steps, accumulation)
    metrics = MetricLog(run.path, job.logging, world.group_rank)
    candidates = Candidates(job.sft.under_fit)
    start = _resume(engine, run, world, metrics, candidates)
    weights = run.path / CANDIDATES

    def loss(batch: Batch) -> TokenSum:
        return TokenSum(-forward_logprobs(engine, *batch.layout).sum(), batch.response_lengths.sum(), {})

    def all_reduce_max(flag: int) -> int:
        return int(sum_over_ranks(torch.tensor([flag]), engine).item() > 0)

    began = printed = time.monotonic()
    for step in range(start + 1, job.sft.steps + 1):
        rows = [examples[row] for row in order.rows(step - 1)]
        parts = deal(rows, world.group_rank, world.group_size, job.zero.micro_batch)
        local = [collate(part, pad, device) for part in parts]
        tokens = sum(len(row.response) for part in parts for row in part)
        result = global_step(engine, local, loss, tokens, step)

        last = step == job.sft.steps
        seconds = (time.monotonic() - began) / (step - start)
        record: dict[str, Any] = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "tokens": result.count,
            "epoch": order.epoch(step),
            "time/step": seconds,
        }
        validated = last or step % job.sft.validate_every == 0
        if validated:
            record |= validate(engine, held_out, pad, world, device, job.zero.micro_batch)
            if candidates.offer(step, record["valid/loss"]):
                _write_weights(engine, tokenizer, folder_of(weights, step))
        metrics.log(step, record)
        if validated or last or time.monotonic() - printed > PROGRESS_S:
            printed = time.monotonic()
            names = [name for name in ("loss", "valid/loss", "epoch") if name in record]
            shown: dict[str, float | str] = {name: float(record[name]) for name in names}
            log.info("%s", progress_line("sft", step, job.sft.steps, shown, seconds))

        stopping = stop.agreed(all_reduce_max)
        if last or stopping or step % job.checkpoint.every == 0:
            _save(engine, run, world, step, candidates, job.checkpoint.keep_last)
        if stopping and not last:
            log.info("stopped by a signal after step %d; the same command goes on from there", step)
            metrics.close()
            return False

    metrics.close()
    _finish(run, world, candidates, job)
    return True


def validate(
    engine: Any, examples: Sequence[Example], pad: int, world: World, device: torch.device, micro_batch: int
) -> dict[str, float]:
    """Mean loss per target token over all ranks: `valid/loss`, and `valid/KIND` for each source kind
    (collective).
    """
    kinds = sorted({example.kind for example in examples})
    sums = torch.zeros(len(kinds), 2, dtype=torch.float64)
    ordered = sorted(examples, key=lambda example: example.length)
    groups = [ordered[i : i + micro_batch] for i in range(0, len(ordered), micro_batch)]
    # With the weights gathered no forward pass is collective, so ranks may have different numbers of groups.
    with torch.no_grad(), gathered(engine) as module:
        for group in groups[world.group_rank :: world.group_size]:
            batch = collate(group, pad, device)
            row_losses = -forward_logprobs(module, *batch.layout).double().sum(1).cpu()
            for kind, row_loss, length in zip(
                batch.kinds, row_losses, batch.response_lengths.cpu(), strict=True
            ):
                sums[kinds.index(kind)] += torch.stack([row_loss, length.double()])
    sums = sum_over_ranks(sums, engine)
    per_kind = {
        f"valid/{kind}": float(total / count) for kind, (total, count) in zip(kinds, sums, strict=True)
    }
    total, count = sums.sum(0)
    return {"valid/loss": float(total / count), **per_kind}


def check_inputs(job: SFTJob) -> None:
    """Refuse missing files before a run folder records the config, which could not be corrected afterwards."""
    _check_positions(read_architecture(job.model), job)
    for key, path in (("data.train", job.data.train), ("data.valid", job.data.valid)):
        if not Path(path).is_file():
            raise UserError(f"{key} = {path!r} is not a file; give a JSONL file of pairs")


def _read(path: str, job: SFTJob, tokenizer: Any) -> list[Example]:
    return tokenise(read_pairs(path), tokenizer, job.data.max_length, path)


def _check_positions(architecture: Any, job: SFTJob) -> None:
    positions = getattr(architecture, "max_position_embeddings", None)
    if positions is not None and job.data.max_length > positions:
        raise UserError(
            f"data.max_length = {job.data.max_length} is more than the {positions} positions of "
            f"{job.model.path}; lower it"
        )


def _resume(engine: Any, run: RunFolder, world: World, metrics: MetricLog, candidates: Candidates) -> int:
    """Load the newest checkpoint, if there is one; the number of finished steps."""
    path = world.share(elastic.find_to_resume(run.checkpoints, world.group_size, "sft") if world.leads else None)
    if path is None:
        metrics.cut_back(0)
        return 0
    load_engine(engine, path / "policy")
    state = checkpoint.read_state(path)
    candidates.kept = [(int(step), float(loss)) for step, loss in state["candidates"]]
    step = int(state["step"])
    metrics.cut_back(step)
    log.info("resumed from %s after step %d", path, step)
    return step


def _save(engine: Any, run: RunFolder, world: World, step: int, candidates: Candidates, keep: int) -> None:
    checkpoint.save(
        run.checkpoints,
        step,
        lambda folder: save_engine(engine, folder / "policy"),
        rank=world.group_rank,
        world_size=world.group_size,
        barrier=world.barrier,
        state={"candidates": candidates.kept},
    )
    if world.leads:
        checkpoint.keep_last(run.checkpoints, keep)
        prune(run.path / CANDIDATES, candidates.steps)


def _write_weights(engine: Any, tokenizer: Any, folder: Path) -> None:
    state = consolidated_state_dict(engine)
    if state is not None:
        export_policy(engine.module, state, tokenizer, folder)


def _finish(run: RunFolder, world: World, candidates: Candidates, job: SFTJob) -> None:
    (chosen, chosen_loss), (best, best_loss) = candidates.chosen, candidates.best
    if world.leads:
        weights = run.path / CANDIDATES
        export(folder_of(weights, chosen), run.path / EXPORT)
        export(folder_of(weights, best), run.path / EXPORT_BEST)
        run.mark_done(
            {
                "steps": job.sft.steps,
                "export": {"step": chosen, "valid_loss": chosen_loss},
                "export-best": {"step": best, "valid_loss": best_loss},
                "rule": f"earliest validation within {job.sft.under_fit:g} of the best loss",
            }
        )
        prune(weights, ())
        log.info("finished: %s holds step %d (validation loss %.4f)", run.path / EXPORT, chosen, chosen_loss)
        log.info("%s holds step %d (validation loss %.4f, the best)", run.path / EXPORT_BEST, best, best_loss)
    world.barrier()
