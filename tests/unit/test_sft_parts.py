"""The parts of supervised fine-tuning: batches, the choice of a checkpoint, optimiser and schedule, config
checks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptist.data.order import Order
from promptist.data.pairs import Pair, read_pairs
from promptist.errors import UserError
from promptist.models.engine import OptimizerConfig, ZeroConfig, build_optimizer, lr_factor
from promptist.models.policy import ModelConfig, forward_logprobs, load_policy
from promptist.sft.batches import Example, collate, deal, tokenise
from promptist.sft.candidates import Candidates, folder_of, prune
from promptist.sft.config import SFTConfig, SFTJob
from tests.helpers_models import write_pairs, write_tiny_gpt2

CPU = torch.device("cpu")


def test_loss_is_on_the_target_only(tmp_path: Path, tiny_tokenizer: Any, tiny_tokenizer_folder: Path) -> None:
    """Equal to Hugging Face's own loss with the source's labels set to -100, summed over unpadded pairs."""
    model = load_policy(ModelConfig(path=str(write_tiny_gpt2(tmp_path / "m", tiny_tokenizer_folder))))
    pairs = read_pairs(write_pairs(tmp_path / "p.jsonl", 5, seed=1))
    examples = tokenise(pairs, tiny_tokenizer, 64, "p")
    batch = collate(examples, int(tiny_tokenizer.eos_token_id), CPU)
    ours = -forward_logprobs(model, *batch.layout).sum(1)
    for n, example in enumerate(examples):
        ids = torch.tensor([example.prompt + example.response])
        labels = torch.tensor([[-100] * len(example.prompt) + example.response])
        oracle = model(ids, labels=labels).loss * len(example.response)
        assert math.isclose(float(ours[n].detach()), float(oracle.detach()), rel_tol=1e-5)
        assert example.response[-1] == tiny_tokenizer.eos_token_id


def test_long_pairs_are_left_out_and_said_so(tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [Pair("a boat", "a boat", "MC", "0"), Pair("a boat", "boat " * 200, "MC", "1")]
    assert len(tokenise(pairs, tiny_tokenizer, 40, "pairs.jsonl")) == 1
    assert "1 of 2 pairs of pairs.jsonl" in caplog.text
    with pytest.raises(UserError, match=r"data\.max_length"):
        tokenise(pairs, tiny_tokenizer, 2, "pairs.jsonl")


@pytest.mark.parametrize(("ranks", "micro"), [(1, 4), (2, 3), (3, 4), (4, 1)])
def test_deal_gives_every_row_to_one_rank_once(ranks: int, micro: int) -> None:
    examples = [Example([1], [1] * ((7 * i) % 11 + 1), str(i)) for i in range(ranks * micro * 3)]
    parts = [deal(examples, rank, ranks, micro) for rank in range(ranks)]
    assert {len(part) for part in parts} == {3}
    assert sorted(e.kind for part in parts for group in part for e in group) == sorted(
        e.kind for e in examples
    )
    assert all(len(group) == micro for part in parts for group in part)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("under_fit", [0.0, 0.02, 0.2])
def test_candidates_hold_what_the_rule_chooses_at_the_end(seed: int, under_fit: float) -> None:
    """The rule read over the whole history at once; the chosen weights must have been kept at every moment
    since.
    """
    draws = np.random.default_rng(seed)
    losses = (2 + np.abs(np.linspace(-1, 0.6, 30)) + 0.05 * draws.standard_normal(30)).round(2).tolist()
    candidates, weights = Candidates(under_fit), set()
    for step, loss in enumerate(losses):
        if candidates.offer(step, loss):
            weights.add(step)
        weights &= set(candidates.steps)
        past = losses[: step + 1]
        within = [i for i, value in enumerate(past) if value <= min(past) * (1 + under_fit)]
        assert candidates.chosen == (within[0], past[within[0]])
        assert candidates.best == (past.index(min(past)), min(past))
        assert {candidates.chosen[0], candidates.best[0]} <= weights


def test_prune_removes_other_weights_only(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        folder_of(tmp_path, step).mkdir()
    prune(tmp_path, [2])
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_bug_weight_decay_is_really_applied(name: str) -> None:
    """Against Adam written out in numpy: L2 enters the gradient, decoupled decay the weight; vectors have
    none.
    """
    module = torch.nn.Linear(4, 3).double()
    config = OptimizerConfig(name=name, lr=0.1, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.3)  # type: ignore[arg-type]
    optimizer = build_optimizer(module, config)
    oracle = {n: (p.detach().numpy().copy(), 0.0, 0.0) for n, p in module.named_parameters()}
    for step in range(1, 6):
        optimizer.zero_grad()
        (module(torch.arange(8.0).double().reshape(2, 4)).sin()).sum().backward()
        for n, parameter in module.named_parameters():
            assert parameter.grad is not None
            decay = 0.3 if n == "weight" else 0.0
            w, m, v = oracle[n]
            g = parameter.grad.numpy() + (decay * w if name == "adam" else 0.0)
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
            w = w * (1 - 0.1 * decay) if name == "adamw" else w
            w = w - 0.1 * (m / (1 - 0.8**step)) / (np.sqrt(v / (1 - 0.9**step)) + 1e-6)
            oracle[n] = (w, m, v)
        optimizer.step()
        for n, parameter in module.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), oracle[n][0], atol=1e-12)


def test_schedules() -> None:
    def rates(schedule: str, warmup: int) -> list[float]:
        config = OptimizerConfig(schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
        return [round(lr_factor(config, step, 6), 6) for step in range(6)]

    assert rates("constant", 0) == [1.0] * 6
    assert rates("constant", 4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates("linear", 2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates("cosine", 2) == [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]


def test_bug_the_seed_is_really_applied_to_the_order() -> None:
    rows = [Order([50], 10, seed, purpose="sft").rows(0).tolist() for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


def test_bad_values_name_their_key() -> None:
    for make, key in (
        (lambda: SFTConfig(steps=0), "sft.steps"),
        (lambda: SFTConfig(under_fit=1.0), "sft.under_fit"),
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr"),
        (lambda: OptimizerConfig(betas=[0.9]), "optimizer.betas"),
        (lambda: ZeroConfig(stage=4), "zero.stage"),
        (lambda: ZeroConfig(micro_batch=0), "zero.micro_batch"),
        (lambda: ZeroConfig(stage=0, offload_optimizer=True), "zero.offload_optimizer"),
    ):
        with pytest.raises(UserError, match=key):
            make()  # type: ignore[no-untyped-call]
    job = SFTJob(run=None, model=None, data=None, sft=SFTConfig(batch=12), zero=ZeroConfig(micro_batch=4))  # type: ignore[arg-type]
    assert job.micro_batches(3) == 1
    with pytest.raises(UserError, match=r"sft\.batch = 12"):
        job.micro_batches(2)
