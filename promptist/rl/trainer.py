"""The PPO training loop of a training rank: `train` is one iteration after the other, read top to bottom.

Sources: Hao et al. 2023, section 2.3 and appendix A; the mathematics stands in `promptist/rl/ppo.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from statistics import fmean

import torch

from promptist import rng
from promptist.cluster.metrics import MetricLog
from promptist.cluster.preemption import Preemption, Stopped
from promptist.cluster.roles import World
from promptist.cluster.run_folder import RunFolder
from promptist.data.text import load_tokenizer
from promptist.reward.service import RewardClient, Ticket, connect
from promptist.rl import journal
from promptist.rl.collect import gather, greatest, total
from promptist.rl.config import PPOJob
from promptist.rl.networks import Networks
from promptist.rl.progress import finish, newest, resume, save
from promptist.rl.prompts import PromptStream
from promptist.rl.records import Rollout
from promptist.rl.remedies import learned_scores, next_kl_coef
from promptist.rl.rollout import (
    Batch,
    ask_networks,
    enter_measurements,
    enter_tokens,
    requests_of,
    roll_out,
    round_up,
    tensors_of,
)
from promptist.rl.update import assign_advantages, update
from promptist.rl.validation import Validation

log = logging.getLogger(__name__)


def train(job: PPOJob, world: World, run: RunFolder, stop: Preemption, device: torch.device) -> bool:
    """Train until the last iteration or a request to stop; True if the run is finished.

    All training ranks call it, with torch.distributed up; it resumes from the newest complete checkpoint.
    Raises UserError on bad input and on divergence, RewardError for a failed picture or a silent reward rank.
    """
    ppo, leads = job.ppo, world.leads
    resume_from = newest(run, world)
    tokenizer = load_tokenizer(job.model.path)
    prompts = PromptStream(job, tokenizer)
    validation = Validation(job, tokenizer, world.group_rank, world.group_size)
    client = connect(world, job.reward, run.path)
    nets = Networks.build(job, tokenizer, device, job.per_rank(world.group_size) // job.zero.micro_batch)
    metric_log = MetricLog(run.path, job.logging, world.group_rank)
    progress = resume(resume_from, nets, metric_log, ppo.kl_coef)
    committed = None if resume_from is None else progress.step
    saving_s = 0.0

    def all_reduce_max(flag: int) -> int:
        return int(greatest(flag, device))

    def commit() -> None:
        nonlocal committed, saving_s
        if committed == progress.step:
            return  # stopped before anything was learned since
        start = time.monotonic()
        save(nets, run, world, progress, job.checkpoint.keep_last)
        client.committed(progress.step)
        committed = progress.step
        saving_s = time.monotonic() - start

    client.begin(progress.step)
    if resume_from is None:
        metrics = validation(nets, client, 0)
        progress.consider(0, metrics["valid/score"])
        metric_log.log(0, metrics)
        log.info("ppo 0/%d | SFT model | valid %.3f", ppo.iterations, metrics["valid/score"])

    for iteration in range(progress.step, ppo.iterations):
        step, watch = iteration + 1, journal.Stopwatch()
        client.begin(iteration)
        kept = job.logging.samples if journal.is_due(step, job.logging.samples_every) else 0
        new_tokens = rng.integer(ppo.new_tokens_min, ppo.new_tokens_max, job.run.seed, "new-tokens", iteration)
        try:
            rollouts, batch, painting = collect_rollouts(
                nets, job, world, iteration, prompts, new_tokens, kept, client, watch,
                check_stop=lambda: stop.check(all_reduce_max),
            )  # fmt: skip
        except Stopped:
            # Nothing has been learned in this iteration: it starts again, with the scores it already has.
            commit()
            log.info("stopped by a signal in iteration %d; the same command goes on from step %d", step, iteration)
            break

        everyone = gather(rollouts)
        metrics = journal.rollout_metrics(everyone, job.reward.terms, progress.kl_coef)
        with watch.phase("update"):
            scores = learned_scores(everyone, job.reward.terms, ppo.diversity_coef)
            own = [scores[r.row] for r in rollouts]
            learned = assign_advantages(batch, own, ppo, progress.kl_coef)
            learned |= update(nets, batch, job.zero.micro_batch, ppo, first_step=iteration * ppo.epochs)
        progress.step = step

        metrics |= {
            "entropy": total(float(batch.entropy.sum()), device) / total(batch.tokens, device),
            **learned,
            "new_tokens": new_tokens,
            "visits": prompts.order.epoch(step),
            **journal.painting_metrics(gather([painting])),
        }
        if job.reward.terms.remedied or ppo.diversity_coef > 0:
            metrics["learned"] = fmean(scores)
        if ppo.kl_target is not None:
            metrics["kl_coef"] = progress.kl_coef
            progress.kl_coef = next_kl_coef(progress.kl_coef, metrics["kl"], ppo.kl_target, ppo.batch, ppo.kl_horizon)
        if step == ppo.iterations or journal.is_due(step, ppo.validate_every):
            with watch.phase("validate"):
                metrics |= validation(nets, client, step)
        improved = "valid/score" in metrics and progress.consider(step, metrics["valid/score"])

        if leads and ppo.keep_rollouts:
            journal.write_all(run.path, step, everyone)
        if leads and kept:
            journal.write_samples(run.path, step, [r for r in everyone if r.row < kept], job.reward.terms)
        metrics |= watch.metrics(metrics["images"], painting)
        metrics["time/eta_s"] = progress.pace(metrics["time/iteration"]) * (ppo.iterations - step)
        metrics["time/save"] = saving_s  # of the last checkpoint: this iteration's comes after its metrics
        metric_log.log(step, metrics)
        log.info("%s", journal.line(step, ppo.iterations, metrics))

        stopping = stop.agreed(all_reduce_max)
        if improved or stopping or step == ppo.iterations or journal.is_due(step, job.checkpoint.every):
            commit()
        if stopping and step < ppo.iterations:
            log.info("stopped by a signal after iteration %d; the same command goes on from there", step)
            break

    client.close()
    metric_log.close()
    if progress.step < ppo.iterations:
        return False
    finish(nets, job, run, world, progress)
    return True


def collect_rollouts(
    nets: Networks,
    job: PPOJob,
    world: World,
    iteration: int,
    prompts: PromptStream,
    new_tokens: int,
    kept: int,
    client: RewardClient,
    watch: journal.Stopwatch,
    check_stop: Callable[[], None],
) -> tuple[list[Rollout], Batch, dict[str, float]]:
    """The measured rollouts of this rank, their tensors, and the reward client's figures (collective).

    Of the first `kept` rows of the global batch the pictures are kept. The reward ranks paint the first chunk while
    the next is decoded, and all through the forward passes. `check_stop` is called between chunks of work, at the
    same places on all ranks, and may raise `Stopped`: nothing has changed then.
    """
    rows, prompt_width = prompts.batch(iteration, world.group_rank, world.group_size)
    rollouts: list[Rollout] = []
    tickets: list[list[Ticket]] = []
    decoding = roll_out(nets, job, iteration, rows, prompt_width, new_tokens)
    # Closed before anything else is done: under ZeRO-3 it holds the gathered weights.
    with watch.phase("decode"), closing(decoding):
        for chunk in decoding:
            tickets += [client.submit(requests_of(r, "train", keep=r.row < kept)) for r in chunk]
            rollouts += chunk
            check_stop()
        client.flush()

    # What policy, reference and value network say about every token.
    with watch.phase("forward"):
        longest = int(greatest(max(len(r.response_ids) for r in rollouts), nets.device))
        eos = int(nets.tokenizer.eos_token_id)
        batch = tensors_of(rollouts, prompt_width, round_up(longest), eos, nets.device)
        for _ in ask_networks(nets, batch, job.zero.micro_batch):
            client.poll()
            check_stop()
        enter_tokens(rollouts, batch, valued=nets.value is not None)

    with watch.phase("wait"):
        for i, (rollout, asked) in enumerate(zip(rollouts, tickets, strict=True)):
            if i % job.ppo.chunk == 0:
                check_stop()
            enter_measurements(rollout, client.collect(asked))
        painting = client.metrics()
    return rollouts, batch, painting
