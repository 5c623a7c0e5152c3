"""The PPO maths against trl 0.11.4 and against plain Python loops, in float64 to 1e-6; each known bug has a
test that names it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax as scipy_log_softmax
from scipy.stats import entropy as scipy_entropy

from promptist.rl import ppo

TOLERANCE = 1e-6
GAMMA, LAM, KL, CLIP, VALUE_CLIP = 0.97, 0.9, 0.2, 0.2, 0.15
ORACLES = Path(os.environ.get("PROMPTIST_ORACLES", Path(__file__).parents[2] / ".venv" / "oracles"))
TRL = ORACLES / "trl-0.11.4"

# Runs in a process of its own: the oracle brings other versions of shared packages.
TRL_SCRIPT = """
import json, sys
from types import SimpleNamespace as NS
import torch
from trl import PPOTrainer
from trl.core import logprobs_from_logits, entropy_from_logits
def run(c):
    t = {k: torch.tensor(v, dtype=torch.float64) for k, v in c["tensors"].items()}
    ids, mask = torch.tensor(c["tokens"]), torch.tensor(c["mask"])
    me = NS(
        config=NS(kl_penalty="kl", whiten_rewards=False, gamma=c["gamma"], lam=c["lam"], cliprange=c["clip"],
                  cliprange_value=c["value_clip"], vf_coef=1.0, ratio_threshold=1e9),
        kl_ctl=NS(value=c["kl"]),
    )
    me._kl_penalty = lambda a, b: PPOTrainer._kl_penalty(me, a, b)
    logprobs = logprobs_from_logits(t["logits"], ids)
    rewards, _, kls = PPOTrainer.compute_rewards(me, t["scores"], t["old_logprobs"], t["ref_logprobs"], mask)
    _, advantages, returns = PPOTrainer.compute_advantages(me, t["old_values"], rewards, mask)
    logits = t["logits"].requires_grad_()
    values = t["values"].requires_grad_()
    new = logprobs_from_logits(logits, ids)
    pg, vf, stats = PPOTrainer.loss(
        me, t["old_logprobs"], t["old_values"], logits, values, new, mask, advantages, returns)
    (pg + vf).backward()
    out = dict(logprobs=logprobs, kl=kls, rewards=rewards, advantages=advantages, returns=returns, policy=pg,
    value=vf,
               entropy=entropy_from_logits(t["logits"]), grad_logits=logits.grad, grad_values=values.grad)
    out.update({k: v for k, v in stats.items() if torch.is_tensor(v) and v.ndim == 0})
    return {k: v.detach().tolist() for k, v in out.items()}

json.dump([run(c) for c in json.load(open(sys.argv[1]))], open(sys.argv[2], "w"))
"""


def make_case(seed: int = 0, rows: int = 5, width: int = 7, vocab: int = 11) -> dict[str, torch.Tensor]:
    """Random ragged batch in float64; padding holds the zeros of the contract."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (rows,), generator=g)
    lengths[0], lengths[1] = width, 1
    mask = ppo.length_mask(lengths, width)
    logits = normal(rows, width, vocab)
    tokens = torch.randint(0, vocab, (rows, width), generator=g)
    logprobs = ppo.token_logprobs(logits, tokens).masked_fill(~mask, 0.0)
    old = (logprobs + 0.3 * normal(rows, width)).masked_fill(~mask, 0.0)
    return {
        "lengths": lengths,
        "mask": mask,
        "logits": logits,
        "tokens": tokens,
        "logprobs": logprobs,
        "old_logprobs": old,
        "ref_logprobs": (old + 0.5 * normal(rows, width)).masked_fill(~mask, 0.0),
        "values": normal(rows, width).masked_fill(~mask, 0.0),
        "old_values": normal(rows, width).masked_fill(~mask, 0.0),
        "scores": normal(rows),
    }


def run_ours(case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole chain, from logits to losses and gradients, in one piece."""
    mask, lengths = case["mask"], case["lengths"]
    rewards = ppo.token_rewards(case["scores"], case["old_logprobs"], case["ref_logprobs"], lengths, KL)
    raw, returns = ppo.gae(rewards, case["old_values"], mask, GAMMA, LAM)
    advantages = ppo.whiten(raw, mask, ppo.moments(raw, mask))
    logits = case["logits"].clone().requires_grad_()
    values = case["values"].clone().requires_grad_()
    new = ppo.token_logprobs(logits, case["tokens"])
    policy = ppo.policy_loss(new, case["old_logprobs"], advantages, mask, CLIP)
    value = ppo.value_loss(values, case["old_values"], returns, mask, VALUE_CLIP)
    (policy.total / policy.count + value.total / value.count).backward()
    assert logits.grad is not None and values.grad is not None
    return {
        "rewards": rewards,
        "returns": returns,
        "raw_advantages": raw,
        "advantages": advantages,
        "policy": (policy.total / policy.count).detach(),
        "value": (value.total / value.count).detach(),
        "grad_logits": logits.grad,
        "grad_values": values.grad,
        "policy/clipfrac": policy.stats["clip_fraction"] / policy.count,
        "policy/approxkl": policy.stats["approx_kl"] / policy.count,
        "val/clipfrac": value.stats["clip_fraction"] / value.count,
        "val/error": value.stats["squared_error"] / value.count,
        "val/vpred": value.stats["value"] / value.count,
    }


def close(a: object, b: object) -> bool:
    return bool(
        np.allclose(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64), rtol=0, atol=TOLERANCE)
    )


# ---- oracle 1: trl 0.11.4


@pytest.fixture(scope="module")
def trl_pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, dict]]:
    if not TRL.is_dir():
        pytest.skip(f"the oracle trl 0.11.4 is not installed (looked in {ORACLES}; set PROMPTIST_ORACLES)")
    folder = tmp_path_factory.mktemp("trl")
    cases = [make_case(seed) for seed in range(4)]
    floats = ("logits", "old_logprobs", "ref_logprobs", "values", "old_values", "scores")
    constants = {"gamma": GAMMA, "lam": LAM, "kl": KL, "clip": CLIP, "value_clip": VALUE_CLIP}
    jobs = [
        {
            "tensors": {k: case[k].tolist() for k in floats},
            "tokens": case["tokens"].tolist(),
            "mask": case["mask"].long().tolist(),
            **constants,
        }
        for case in cases
    ]
    (folder / "in.json").write_text(json.dumps(jobs))
    env = {**os.environ, "PYTHONPATH": str(TRL), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRL_SCRIPT, str(folder / "in.json"), str(folder / "out.json")],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return list(zip(cases, json.loads((folder / "out.json").read_text()), strict=True))


@pytest.mark.parametrize("index", range(4))
def test_chain_equals_trl(trl_pairs: list[tuple[dict, dict]], index: int) -> None:
    case, trl = trl_pairs[index]
    ours, mask = run_ours(case), case["mask"].numpy()
    for name in ("rewards", "returns", "advantages"):
        assert close(np.array(trl[name])[mask], ours[name].numpy()[mask]), name
    for name in ("policy", "value", "grad_logits", "grad_values", "policy/clipfrac", "policy/approxkl"):
        assert close(trl[name], ours[name]), name
    for name in ("val/clipfrac", "val/error", "val/vpred"):
        assert close(trl[name], ours[name]), name


def test_tokens_equal_trl(trl_pairs: list[tuple[dict, dict]]) -> None:
    case, trl = trl_pairs[0]
    assert close(trl["logprobs"], ppo.token_logprobs(case["logits"], case["tokens"]))
    assert close(trl["entropy"], ppo.token_entropy(case["logits"]))
    kl = ppo.kl_per_token(case["old_logprobs"], case["ref_logprobs"])
    assert close(trl["kl"], kl)


# ---- oracle 2: plain loops and scipy


def loops(case: dict[str, torch.Tensor]) -> dict[str, object]:
    """The same chain, row by row and token by token, straight from the papers' formulas."""
    lengths = case["lengths"].tolist()
    old, ref = case["old_logprobs"].tolist(), case["ref_logprobs"].tolist()
    old_v, new_v, scores = case["old_values"].tolist(), case["values"].tolist(), case["scores"].tolist()
    logp = scipy_log_softmax(case["logits"].numpy(), axis=-1)
    rewards, raw, returns = [], [], []
    for n, length in enumerate(lengths):
        r = [-KL * (old[n][t] - ref[n][t]) for t in range(length)]
        r[length - 1] += scores[n]
        delta = [
            r[t] + (GAMMA * old_v[n][t + 1] if t + 1 < length else 0.0) - old_v[n][t] for t in range(length)
        ]
        a = [sum((GAMMA * LAM) ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)]
        rewards.append(r)
        raw.append(a)
        returns.append([a[t] + old_v[n][t] for t in range(length)])
    flat = np.concatenate(raw)
    white = [[(x - flat.mean()) / math.sqrt(flat.var(ddof=1) + 1e-8) for x in a] for a in raw]
    policy = value = clipped = 0.0
    for n, length in enumerate(lengths):
        for t in range(length):
            ratio = math.exp(logp[n, t, int(case["tokens"][n, t])] - old[n][t])
            kept = min(max(ratio, 1 - CLIP), 1 + CLIP)
            policy += max(-white[n][t] * ratio, -white[n][t] * kept)
            clipped += -white[n][t] * kept > -white[n][t] * ratio
            near = old_v[n][t] + min(max(new_v[n][t] - old_v[n][t], -VALUE_CLIP), VALUE_CLIP)
            value += 0.5 * max((new_v[n][t] - returns[n][t]) ** 2, (near - returns[n][t]) ** 2)
    tokens = sum(lengths)
    return {
        "rewards": rewards,
        "returns": returns,
        "raw_advantages": raw,
        "advantages": white,
        "policy": policy / tokens,
        "value": value / tokens,
        "policy/clipfrac": clipped / tokens,
    }


@pytest.mark.parametrize("seed", range(5))
def test_chain_equals_plain_loops(seed: int) -> None:
    case = make_case(seed, rows=6, width=9)
    ours, oracle = run_ours(case), loops(case)
    for name in ("rewards", "returns", "raw_advantages", "advantages"):
        for n, length in enumerate(case["lengths"].tolist()):
            assert close(oracle[name][n], ours[name][n, :length]), name  # type: ignore[index]
            assert name == "returns" or not ours[name][n, length:].any()
    for name in ("policy", "value", "policy/clipfrac"):
        assert close(oracle[name], ours[name]), name


def test_entropy_equals_scipy() -> None:
    logits = make_case(3)["logits"]
    logits[0, 0, :4] = -torch.inf  # forbidden tokens
    probabilities = np.exp(scipy_log_softmax(logits.numpy(), axis=-1))
    assert close(scipy_entropy(probabilities, axis=-1), ppo.token_entropy(logits))


# ---- the global mean


@pytest.mark.parametrize("split", [[6], [3, 3], [1, 5], [2, 1, 3], [1, 1, 1, 1, 1, 1]])
def test_global_means_do_not_depend_on_the_split(split: list[int]) -> None:
    """Ranks and micro-batches are both just pieces: sums of pieces give the whole batch's loss, gradient and
    whitening."""
    case = make_case(7, rows=6, width=9)
    whole = run_ours(case)
    pieces = {k: v.split(split) for k, v in case.items()}
    parts = [{k: v[i] for k, v in pieces.items()} for i in range(len(split))]
    raws = []
    for part in parts:
        args = part["scores"], part["old_logprobs"], part["ref_logprobs"], part["lengths"], KL
        raws.append(ppo.gae(ppo.token_rewards(*args), part["old_values"], part["mask"], GAMMA, LAM))
    total = torch.stack(
        [ppo.moments(raw, part["mask"]) for (raw, _), part in zip(raws, parts, strict=True)]
    ).sum(0)
    tokens = sum(int(part["mask"].sum()) for part in parts)
    loss, grads = 0.0, []
    for part, (raw, returns) in zip(parts, raws, strict=True):
        mask = part["mask"]
        logits, values = part["logits"].clone().requires_grad_(), part["values"].clone().requires_grad_()
        new = ppo.token_logprobs(logits, part["tokens"])
        policy = ppo.policy_loss(new, part["old_logprobs"], ppo.whiten(raw, mask, total), mask, CLIP)
        value = ppo.value_loss(values, part["old_values"], returns, mask, VALUE_CLIP)
        ((policy.total + value.total) / tokens).backward()
        loss += float((policy.total + value.total).detach()) / tokens
        assert logits.grad is not None
        grads.append(logits.grad)
    assert close(loss, whole["policy"] + whole["value"])
    assert close(torch.cat(grads), whole["grad_logits"])


# ---- bugs of the released code, one test each


def test_bug_score_is_added_to_the_kl_term_not_written_over_it() -> None:
    case = make_case(1)
    args = case["old_logprobs"], case["ref_logprobs"], case["lengths"], KL
    with_score = ppo.token_rewards(case["scores"], *args)
    kl_only = ppo.token_rewards(torch.zeros_like(case["scores"]), *args)
    last = (case["lengths"] - 1).unsqueeze(1)
    kl_last = KL * (case["old_logprobs"] - case["ref_logprobs"]).gather(1, last).squeeze(1)
    assert kl_last.abs().min() > 1e-3
    assert close((with_score - kl_only).sum(1), case["scores"])
    assert close(with_score.gather(1, last).squeeze(1), case["scores"] - kl_last)


def test_bug_no_artificial_eos_a_cut_response_ends_on_its_last_real_token() -> None:
    """Rows are never made longer: the score of a row as wide as the batch stands in its last column, and none
    is lost."""
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    rewards = ppo.token_rewards(torch.tensor([2.0, 3.0]).double(), zeros, zeros, torch.tensor([4, 2]), KL)
    assert rewards.tolist() == [[0, 0, 0, 2], [0, 3, 0, 0]]
    with pytest.raises(ValueError, match=r"1\.\.4"):
        ppo.token_rewards(torch.zeros(1), zeros[:1], zeros[:1], torch.tensor([5]), KL)
    with pytest.raises(ValueError, match=r"1\.\.4"):
        ppo.token_rewards(torch.zeros(1), zeros[:1], zeros[:1], torch.tensor([0]), KL)


def test_bug_kl_is_measured_against_sft_with_its_sign() -> None:
    """Sampling from pi, the mean of the per-token term is KL(pi || pi_SFT) itself, not KL to the rollout
    policy (which is 0)."""
    pi = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    sft = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    exact = scipy_entropy(pi.exp().numpy(), sft.exp().numpy())
    assert exact > 0.3
    tokens = torch.arange(3)[None]
    estimate = ppo.kl_per_token(pi[tokens], sft[tokens])
    assert close((pi.exp() * estimate).sum(), exact)
    rewards = ppo.token_rewards(torch.zeros(1).double(), pi[tokens], sft[tokens], torch.tensor([3]), KL)
    assert close((pi.exp() * rewards).sum(), -KL * exact)


def test_bug_padding_stays_out_of_means_and_whitening() -> None:
    case = make_case(2)
    narrow = run_ours(case)
    wide = dict(case)
    rows, junk = len(case["lengths"]), 1e3
    for name in ("old_logprobs", "ref_logprobs", "values", "old_values", "logprobs"):
        wide[name] = torch.cat([case[name], torch.full((rows, 5), junk, dtype=torch.float64)], 1)
        wide[name][:, :7][~case["mask"]] = junk
    wide["mask"] = ppo.length_mask(case["lengths"], 12)
    wide["tokens"] = torch.cat([case["tokens"], torch.zeros(rows, 5, dtype=torch.long)], 1)
    wide["logits"] = torch.cat([case["logits"], torch.zeros(rows, 5, 11, dtype=torch.float64)], 1)
    padded = run_ours(wide)
    for name in ("policy", "value", "policy/clipfrac", "policy/approxkl", "val/error", "val/vpred"):
        assert close(narrow[name], padded[name]), name
    assert close(narrow["advantages"], padded["advantages"][:, :7]) and not padded["advantages"][:, 7:].any()
    real = padded["advantages"][wide["mask"]]
    assert abs(float(real.mean())) < TOLERANCE and abs(float(real.var()) - 1) < TOLERANCE


def test_bug_values_align_with_tokens() -> None:
    """A value that is exactly right before each token leaves no advantage; one that is a token late does."""
    rewards = torch.tensor([[0.1, -0.3, 0.5, 2.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    aligned, _ = ppo.gae(rewards, to_go, mask, gamma=1.0, lam=LAM)
    late, _ = ppo.gae(rewards, to_go.roll(1, 1), mask, gamma=1.0, lam=LAM)
    assert close(aligned, 0.0) and float(late.abs().min()) > 0.01


def test_bug_ratio_is_exactly_one_before_the_first_step() -> None:
    case = make_case(4)
    loss = ppo.policy_loss(case["logprobs"], case["logprobs"], case["values"], case["mask"], CLIP)
    assert float(loss.stats["ratio"]) == float(loss.count)
    assert float(loss.stats["clip_fraction"]) == 0 and float(loss.stats["approx_kl"]) == 0


def test_value_after_a_cut_response_is_zero() -> None:
    """Terminal by length: nothing is bootstrapped from padding, whatever stands there."""
    rewards = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.5, 99.0]], dtype=torch.float64)
    mask = ppo.length_mask(torch.tensor([2]), 3)
    advantages, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    assert advantages.tolist() == [[0.5, 0.5, 0.0]] and returns.tolist() == [[1.0, 1.0, 0.0]]


def test_whitening_survives_one_token_and_large_offsets() -> None:
    one, mask = torch.tensor([[3.0]]), torch.ones(1, 1, dtype=torch.bool)
    assert ppo.whiten(one, mask, ppo.moments(one, mask)).tolist() == [[0.0]]
    far = make_case(5)["values"] + 1e4
    mask = make_case(5)["mask"]
    white = ppo.whiten(far, mask, ppo.moments(far, mask))[mask]
    assert abs(float(white.mean())) < 1e-5 and abs(float(white.var()) - 1) < 1e-5


def test_a_forgotten_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        ppo.gae(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool), 1.0, 1.0)
