"""The remedies, each against hand-computed numbers or another implementation, and off by default."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from scipy.stats import entropy as scipy_entropy

from promptist.config import load
from promptist.decoding.config import DecodingConfig
from promptist.decoding.pick import place_of
from promptist.errors import UserError
from promptist.reward.terms import FidelityConfig, GateConfig, TermsConfig, combine, gated, learned_score
from promptist.rl import ppo
from promptist.rl import update as updating
from promptist.rl.config import PPOConfig, PPOJob
from promptist.rl.records import Rollout
from promptist.rl.remedies import diversity_rewards, learned_scores, next_kl_coef
from promptist.rl.rollout import pick_beams
from tests.helpers_ppo import make_tiny_job

ORACLES = Path(os.environ.get("PROMPTIST_ORACLES", Path(__file__).parents[2] / ".venv" / "oracles"))
TRL = ORACLES / "trl-0.11.4"
TERMS = {"slope": 10.0, "offset": 2.0, "images": 1}


@pytest.mark.parametrize(
    ("gain", "change", "expected"),
    [
        (0.8, 0.0, 0.8),  # as relevant as the plain prompt: in full
        (0.8, 0.3, 0.8),  # more relevant: no more than in full
        (0.8, -0.01, 0.6),  # a quarter of the tolerance lost, a quarter of the credit
        (0.8, -0.04, 0.0),
        (0.8, -0.5, 0.0),  # never negative
        (-0.8, -0.5, -0.8),  # a loss is a loss
        (-0.8, 0.5, -0.8),
    ],
)
def test_gate_by_hand(gain: float, change: float, expected: float) -> None:
    assert gated(gain, change, GateConfig(tolerance=0.04)) == pytest.approx(expected)


def test_gate_acts_per_picture_and_leaves_the_score_alone() -> None:
    """Two pictures with a gain of 1 each: one as relevant as the plain one, one that has lost twice the tolerance."""
    terms = TermsConfig(**TERMS, gate=GateConfig(tolerance=0.05))
    measured = ([0.30, 0.10], [6.0, 6.0], [0.30, 0.20], [5.0, 5.0])
    plain = combine(measured[0], measured[1], measured[3], terms)
    assert plain.score == pytest.approx(1.0 - 0.5)  # hinge: 10 * 0.1 - 2 = -1 for the second
    # The mean change, half the tolerance per picture, would let half of the credit through as well, but not this half.
    assert learned_score(*measured, terms) == pytest.approx((1.0 + 0.0) / 2 - 0.5)


def test_fidelity_by_hand() -> None:
    """Reward per unit of cosine gained or lost against the plain prompt, beside the hinge, up to the limit."""
    measured = ([0.35, 0.25, 0.25], [5.5] * 3, [0.30, 0.40, 0.20], [5.0] * 3)
    for limit, change in ((1.0, (0.05 - 0.15 + 0.05) / 3), (0.1, (0.05 - 0.10 + 0.05) / 3), (0.01, -0.01 / -3)):
        terms = TermsConfig(**TERMS, fidelity=FidelityConfig(4.0, limit))
        assert learned_score(*measured, terms) == pytest.approx(0.5 + 4.0 * change)
    both = TermsConfig(**TERMS, gate=GateConfig(0.3), fidelity=FidelityConfig(4.0, 1.0))
    assert learned_score(*measured, both) == pytest.approx((0.5 + 0.25 + 0.5) / 3 + 4.0 * (0.05 - 0.15 + 0.05) / 3)


def test_without_remedies_training_learns_from_the_score() -> None:
    values = ([0.31, 0.17], [5.7, 6.1], [0.3, 0.4], [5.2, 5.0])
    terms = TermsConfig()
    assert not terms.remedied
    assert learned_score(*values, terms) == combine(values[0], values[1], values[3], terms).score


def test_rarity_is_counted_over_the_batch() -> None:
    a, b, c = frozenset({"rainbow"}), frozenset({"4k", "rainbow"}), frozenset[str]()
    assert diversity_rewards([a, b, a, c, a, c], 0.5) == pytest.approx([-0.5 * math.log(n) for n in (3, 1, 3, 2, 3, 2)])


def test_rarity_is_the_gradient_of_the_entropy_of_suffixes() -> None:
    """A softmax over suffixes: REINFORCE with the reward -log p is the gradient of scipy's entropy."""
    counts = np.array([5, 3, 1, 1])
    suffixes = [i for i, n in enumerate(counts) for _ in range(n)]
    logits = torch.tensor(np.log(counts / counts.sum()), requires_grad=True)
    p = logits.softmax(0)
    reward = torch.tensor(diversity_rewards(suffixes, 1.0), dtype=torch.float64)
    (reward * torch.log(p[suffixes])).mean().backward()  # empirical shares are those of the policy
    assert logits.grad is not None
    numerical, step = [], 1e-6
    for i in range(4):
        moved = [logits.detach().numpy() + step * sign * np.eye(4)[i] for sign in (1, -1)]
        high, low = (scipy_entropy(np.exp(m) / np.exp(m).sum()) for m in moved)
        numerical.append((high - low) / (2 * step))
    assert logits.grad.numpy() == pytest.approx(np.array(numerical), abs=1e-7)


def measured(row: int, y: str, aesthetic: float) -> Rollout:
    return Rollout(
        row=row, iteration=0, x="a red boat", y=y, prompt_ids=[1], response_ids=[2], finish_reason="eos",
        policy_version=0, ks=[0], cosine_y=[0.25], aesthetic_y=[aesthetic], cosine_x=[0.3], aesthetic_x=[5.0],
    )  # fmt: skip


def test_scores_stand_by_row_whatever_the_order_of_the_ranks() -> None:
    rollouts = [
        measured(2, "a red boat, rainbow", 5.2),
        measured(0, "a red boat, 4k, rainbow", 5.4),
        measured(1, "red boat, rainbow, 4k", 5.6),  # the same set in another order
    ]
    terms = TermsConfig(**TERMS, fidelity=FidelityConfig(2.0, 1.0))
    rarity = [-0.1 * math.log(2), -0.1 * math.log(2), 0.0]
    expected = [gain + 2.0 * -0.05 + r for gain, r in zip((0.4, 0.6, 0.2), rarity, strict=True)]
    assert learned_scores(rollouts, terms, 0.1) == pytest.approx(expected)
    assert learned_scores(rollouts, terms, 0.0) == pytest.approx([0.3, 0.5, 0.1])


def test_kl_controller_is_that_of_trl() -> None:
    """`AdaptiveKLController` of trl 0.11.4, fed the KL of one iteration after the other."""
    if not TRL.is_dir():
        pytest.skip(f"no trl 0.11.4 in {TRL}")
    kls, target, horizon, batch = [0.0, 0.3, 5.9, 6.1, 6.0, 40.0, 7.1, -0.2], 6.0, 2_000.0, 48
    script = (
        "from trl.trainer.utils import AdaptiveKLController\n"
        f"control = AdaptiveKLController(0.2, {target}, {horizon})\n"
        f"for kl in {kls}:\n    control.update(kl, {batch}); print(repr(float(control.value)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(TRL), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    coef, ours = 0.2, []
    for kl in kls:
        coef = next_kl_coef(coef, kl, target, batch, horizon)
        ours.append(coef)
    assert ours == pytest.approx([float(line) for line in done.stdout.split()[-len(kls) :]], rel=1e-12)


def test_leave_one_out_by_loops() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 0.0, -3.0, 0.0], dtype=torch.float64)
    expected = []
    for i in range(6):
        others = [float(returns[j]) for j in range(6) if j // 3 == i // 3 and j != i]
        expected.append(float(returns[i]) - sum(others) / len(others))
    assert ppo.leave_one_out(returns, 3).tolist() == pytest.approx(expected)
    assert expected[:3] == [-3.0, -1.5, 4.5]
    for group in (1, 4):
        with pytest.raises(ValueError, match="no groups"):
            ppo.leave_one_out(returns, group)


def fake_batch() -> Any:
    """Four rewrites of two prompts, two tokens wide, the second one token long."""
    from promptist.rl.rollout import Batch

    logprobs = torch.tensor([[-1.0, -2.0], [-1.0, 0.0], [-0.5, -0.5], [-3.0, -1.0]])
    ref = torch.tensor([[-2.0, -2.0], [-1.5, 0.0], [-0.5, -1.5], [-1.0, -1.0]])
    zeros = torch.zeros(4, 2)
    return Batch(
        input_ids=torch.zeros(4, 3, dtype=torch.long), prompt_lengths=torch.ones(4, dtype=torch.long),
        response_lengths=torch.tensor([2, 1, 2, 2]), width=2, logprobs=logprobs, ref_logprobs=ref,
        values=zeros.clone(), entropy=zeros.clone(), advantages=zeros.clone(), returns=zeros.clone(),
    )  # fmt: skip


@pytest.mark.parametrize("whiten", [False, True])
def test_group_baseline_by_hand(monkeypatch: pytest.MonkeyPatch, whiten: bool) -> None:
    """Return = score - coefficient * KL of the whole rewrite; KLs are 1, 0.5, 1, -2."""
    monkeypatch.setattr(updating.dist, "all_reduce", lambda tensor: None)
    batch = fake_batch()
    config = PPOConfig(batch=4, group=2, baseline="group", whiten_advantages=whiten)
    assert updating.assign_advantages(batch, [1.0, 0.0, 0.5, 0.5], config, kl_coef=0.4) == {}
    # Returns 0.6, -0.2, 0.1, 1.3.
    rows = [0.8, -0.8, -1.2, 1.2]
    tokens = np.array([rows[0]] * 2 + [rows[1]] + [rows[2]] * 2 + [rows[3]] * 2)
    if whiten:
        tokens = (tokens - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    assert batch.advantages[batch.mask].numpy() == pytest.approx(tokens, rel=1e-5)
    assert batch.advantages[1, 1] == 0  # padding
    assert torch.equal(batch.returns, torch.zeros(4, 2))  # nothing to fit


def test_beams_of_a_group_differ_and_all_ranks_of_beams_are_used() -> None:
    drawn = [pick_beams(8, 3, 1, iteration, row) for iteration in range(60) for row in range(20)]
    assert all(len(set(beams)) == 3 and min(beams) >= 0 and max(beams) < 8 for beams in drawn)
    counts = Counter(beam for beams in drawn for beam in beams)
    assert chisquare([counts[i] for i in range(8)]).pvalue > 1e-3
    assert pick_beams(8, 3, 1, 5, 7) == drawn[5 * 20 + 7]
    assert pick_beams(8, 3, 2, 5, 7) != pick_beams(8, 3, 1, 5, 7)


def test_hash_uses_all_beams_evenly_and_knows_a_prompt_again() -> None:
    prompts = [f"a {colour} boat number {i}" for i in range(200) for colour in ("red", "blue", "green", "white")]
    places = [place_of("hash", 8, 0, x) for x in prompts]
    counts = Counter(places)
    assert chisquare([counts[i] for i in range(8)]).pvalue > 1e-3
    assert [place_of("hash", 8, 0, f" {x}\n") for x in prompts] == places
    assert [place_of("hash", 8, 1, x) for x in prompts] != places
    assert {place_of("best", 1, 0, x) for x in prompts} == {0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group": 3}, "divide ppo.batch"),
        ({"group": 0}, "at least 1"),
        ({"baseline": "group"}, "set ppo.group to 2"),
        ({"baseline": "median"}, "value or group"),
        ({"kl_schedule": "adaptive"}, "needs a target"),
        ({"kl_target": 5.0}, "do not go together"),
        ({"kl_schedule": "adaptive", "kl_target": 0.0}, "above 0"),
        ({"kl_schedule": "adaptive", "kl_target": 5.0, "kl_coef": 0.0}, "above 0"),
        ({"kl_horizon": 100.0}, "at least one batch"),
        ({"diversity_coef": -0.1}, "must not be negative"),
        ({"validation_pick": "any"}, "use best or hash"),
        ({"validation_pick": "hash", "validation_decoding": DecodingConfig("greedy")}, "has one response"),
        ({"validation_decoding": DecodingConfig("sample")}, "must not depend on chance"),
    ],
)
def test_impossible_remedies_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PPOConfig(**wrong)


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [(GateConfig, (0.0,), "gate"), (FidelityConfig, (0.0, 0.1), "fidelity"), (FidelityConfig, (5.0, -0.1), "fidelity")],
)
def test_impossible_terms_are_refused(section: Any, values: tuple[float, ...], key: str) -> None:
    with pytest.raises(UserError, match=rf"reward\.terms\.{key}"):
        section(*values)


def test_groups_must_fit_beams_and_ranks(tmp_path: Path) -> None:
    path = make_tiny_job(tmp_path)  # batch 8, chunk 2, micro-batch 2, 3 beams
    job = load(PPOJob, path, ["ppo.group=2"])
    assert (job.per_rank(1), job.per_rank(2)) == (8, 4)
    with pytest.raises(UserError, match="4 prompts does not divide by 3"):
        job.per_rank(3)
    with pytest.raises(UserError, match="does not divide the 1 prompts"):
        job.per_rank(4)
    with pytest.raises(UserError, match=r"more than the 3 that decoding\.method diverse_beam"):
        load(PPOJob, path, ["ppo.group=4"])
    assert load(PPOJob, path, ["ppo.group=4", "decoding.method=sample"]).ppo.group == 4
