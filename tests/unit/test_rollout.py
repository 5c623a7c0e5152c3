"""Rollouts: tensors against the plain model, records, figures, and the update's use of every rollout."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from promptist.config import load
from promptist.decoding.decode import decode, pad_batch
from promptist.errors import UserError
from promptist.models.engine import StepResult
from promptist.models.policy import load_policy
from promptist.models.tokens import TokenSum
from promptist.models.value import load_value
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.terms import TermsConfig
from promptist.rl import update as updating
from promptist.rl import validation as validating
from promptist.rl.config import PPOConfig, PPOJob
from promptist.rl.journal import rollout_metrics
from promptist.rl.prompts import PromptStream
from promptist.rl.records import Rollout, read_rollouts, suffix, text_metrics, write_rollouts
from promptist.rl.rollout import (
    ask_networks,
    enter_measurements,
    enter_tokens,
    requests_of,
    roll_out,
    round_up,
    tensors_of,
)
from promptist.rl.validation import Validation
from tests.helpers_ppo import make_tiny_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> PPOJob:
    return load(PPOJob, make_tiny_job(tmp_path_factory.mktemp("rollout")))


@pytest.fixture(scope="module")
def nets(job: PPOJob) -> Any:
    """The networks without engines; the reference differs from the policy, or an exchange would go unseen."""
    from promptist.data.text import load_tokenizer

    policy, reference = load_policy(job.model), load_policy(job.model).requires_grad_(False)
    value = load_value(job.model, job.value)
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
        torch.nn.init.ones_(value.head[-1].weight)

    @contextmanager
    def decoder() -> Any:
        with torch.no_grad():
            yield policy

    return SimpleNamespace(
        policy=policy,
        reference=reference,
        value=value,
        decoder=decoder,
        tokenizer=load_tokenizer(job.model.path),
        device=torch.device("cpu"),
    )


def roll(nets: Any, job: PPOJob, rank: int = 0, ranks: int = 1, iteration: int = 0) -> list[Rollout]:
    rows, width = PromptStream(job, nets.tokenizer).batch(iteration, rank, ranks)
    return [r for chunk in roll_out(nets, job, iteration, rows, width, 6) for r in chunk]


def record(row: int = 0, x: str = "a red boat", y: str = "a red boat, oil painting", **more: Any) -> Rollout:
    known: dict[str, Any] = {
        "prompt_ids": [5, 6, 7 + row],
        "response_ids": [8, 9, 10][: 1 + row % 3],
        "finish_reason": "eos",
        "policy_version": 2,
        "iteration": 2,
        "ks": [4, 1],
    }
    return Rollout(row=row, x=x, y=y, **{**known, **more})


def test_what_the_networks_say_equals_the_bare_model_on_each_unpadded_sequence(
    nets: Any, job: PPOJob
) -> None:
    rollouts = roll(nets, job)
    rollouts[0].response_ids = rollouts[0].response_ids[:2]  # unequal lengths
    width = round_up(max(len(r.response_ids) for r in rollouts))
    batch = tensors_of(rollouts, 24, width, 0, nets.device)
    for _ in ask_networks(nets, batch, 2):
        pass
    enter_tokens(rollouts, batch)
    for i, r in enumerate(rollouts):
        ids = torch.tensor([r.prompt_ids + r.response_ids])
        start, end = len(r.prompt_ids) - 1, ids.shape[1] - 1
        with torch.no_grad():
            for name, model in (("logprobs", nets.policy), ("ref_logprobs", nets.reference)):
                logp = model(ids).logits.log_softmax(-1)[0]
                expected = [float(logp[t, ids[0, t + 1]]) for t in range(start, end)]
                assert getattr(r, name) == pytest.approx(expected, abs=1e-4)
                if name == "logprobs":
                    entropy = -(logp.exp() * logp).sum(-1)[start:end]
            hidden = nets.value.trunk(ids).last_hidden_state
            values = nets.value.head(hidden)[0, start:end, 0]
        assert r.values == pytest.approx(values.tolist(), abs=1e-4)
        assert batch.entropy[i, : len(entropy)].tolist() == pytest.approx(entropy.tolist(), abs=1e-4)
        assert batch.logprobs[i, len(r.response_ids) :].abs().sum() == 0
    assert batch.tokens == sum(len(r.response_ids) for r in rollouts)


def test_the_ratio_is_exactly_one_with_a_graph_too(nets: Any, job: PPOJob) -> None:
    rollouts = roll(nets, job)
    batch = tensors_of(rollouts, 24, 8, 0, nets.device)
    for _ in ask_networks(nets, batch, 2):
        pass
    for part in batch.split(2):
        again = updating.forward_logprobs(nets.policy, *part.layout)
        assert again.requires_grad
        assert torch.equal(again.detach(), part.logprobs)


def test_rollouts_do_not_depend_on_the_number_of_ranks(nets: Any, job: PPOJob) -> None:
    whole = roll(nets, job)
    assert roll(nets, job, 0, 2) + roll(nets, job, 1, 2) == whole
    assert [r.row for r in whole] == list(range(job.ppo.batch))
    assert roll(nets, job, iteration=1) != whole
    eos = nets.tokenizer.eos_token_id
    for r in whole:
        assert 1 <= len(r.response_ids) <= 6
        assert (r.finish_reason == "eos") == (r.response_ids[-1] == eos)
        assert len(set(r.ks)) == job.reward.terms.images


def test_a_group_is_several_beams_of_one_prompt_under_one_noise(nets: Any, job: PPOJob) -> None:
    """Prompts are those of the smaller batch, rewrites are beams of theirs, and no number of ranks changes any."""
    grouped = replace(job, ppo=replace(job.ppo, group=2))
    whole = roll(nets, grouped)
    assert roll(nets, grouped, 0, 2) + roll(nets, grouped, 1, 2) == whole
    assert [r.row for r in whole] == list(range(8))
    rows, width = PromptStream(grouped, nets.tokenizer).batch(0, 0, 1)
    assert [r.x for r in whole] == [row.x for row in rows for _ in range(2)]
    eos = nets.tokenizer.eos_token_id
    for first, second, row in zip(whole[::2], whole[1::2], rows, strict=True):
        assert first.ks == second.ks
        ids, mask = pad_batch([row.ids] * 2, 2, width, eos)
        found = decode(nets.policy, ids, mask, 6, job.decoding, eos, eos, 3)
        beams = [found.sequences[0, i, : found.lengths[0, i]].tolist() for i in range(3)]
        assert beams.index(first.response_ids) != beams.index(second.response_ids)


def test_without_a_value_network_nothing_asks_for_values(
    nets: Any, job: PPOJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = SimpleNamespace(**{**vars(nets), "value": None})
    rollouts = roll(nets, job)
    batch = tensors_of(rollouts, 24, 8, 0, nets.device)
    for _ in ask_networks(alone, batch, 2):  # type: ignore[arg-type]
        pass
    enter_tokens(rollouts, batch, valued=False)
    assert all(r.values == [] and len(r.logprobs) == len(r.response_ids) for r in rollouts)
    stepped: list[Any] = []

    def spy(engine: Any, parts: list[Any], loss: Any, count: int, step: int) -> StepResult:
        stepped.append(engine)
        return StepResult(0.0, dict.fromkeys(loss(parts[0]).stats, 0.0), count, 0.0, 0.0)

    monkeypatch.setattr(updating, "global_step", spy)
    monkeypatch.setattr(updating, "greatest", lambda value, device: value)
    figures = updating.update(alone, batch, 2, PPOConfig(epochs=3), first_step=0)  # type: ignore[arg-type]
    assert stepped == [nets.policy] * 3
    assert not [name for name in figures if "value" in name]


def test_every_rollout_is_trained_on_once_per_epoch(
    nets: Any, job: PPOJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = [record(row) for row in range(8)]
    batch = tensors_of(rollouts, 8, 8, 0, nets.device)
    seen: dict[int, list[Counter[int]]] = {id(nets.policy): [], id(nets.value): []}

    def spy(engine: Any, parts: list[Any], loss: Any, count: int, step: int) -> StepResult:
        assert count == batch.tokens == sum(int(loss(part).count) for part in parts)
        seen[id(engine)].append(Counter(int(row[7]) for part in parts for row in part.input_ids))
        found: TokenSum = loss(parts[0])
        return StepResult(0.0, dict.fromkeys(found.stats, 0.0), count, 0.0, 0.0)

    monkeypatch.setattr(updating, "global_step", spy)
    monkeypatch.setattr(updating, "greatest", lambda value, device: value)
    updating.update(nets, batch, 2, PPOConfig(epochs=3), first_step=0)
    # The last prompt token, 7 + row, names the rollout.
    once = Counter({7 + row: 1 for row in range(8)})
    assert list(seen.values()) == [[once] * 3, [once] * 3]


def test_measurements_return_to_the_picture_they_belong_to() -> None:
    rollout = record()
    requests = requests_of(rollout, "train", keep=True)
    assert [(r.prompt, r.source, r.k, r.keep_picture) for r in requests] == [
        (rollout.y, rollout.x, 4, True),
        (rollout.y, rollout.x, 1, False),
        (rollout.x, rollout.x, 4, True),
        (rollout.x, rollout.x, 1, False),
    ]
    enter_measurements(rollout, [Measurement(0.1 * i, float(i), {}, f"{i}.png") for i in range(4)])
    assert (rollout.cosine_y, rollout.aesthetic_y) == ([0.0, 0.1], [0.0, 1.0])
    assert (rollout.cosine_x, rollout.aesthetic_x) == ([0.2, pytest.approx(0.3)], [2.0, 3.0])
    assert (rollout.picture_y, rollout.picture_x) == ("0.png", "2.png")


def test_an_empty_rewrite_paints_the_prompt_and_is_counted() -> None:
    empty = record(y="")
    assert [r.prompt for r in requests_of(empty, "train", keep=False)] == [empty.x] * 4
    known = {"logprobs": [-1.0], "ref_logprobs": [-1.5], "response_ids": [3]}
    figures = text_metrics([record(y="", **known), record(1, **known)])
    assert (figures["empty"], figures["eos"], figures["length"], figures["kl"]) == (0.5, 1.0, 1.0, 0.5)


def test_rollout_metrics_by_hand() -> None:
    measured = {
        "cosine_y": [0.5, 0.1], "aesthetic_y": [6.0, 5.0], "cosine_x": [0.3, 0.2], "aesthetic_x": [5.0, 5.0]
    }  # fmt: skip
    tokens = {"response_ids": [1, 2], "logprobs": [-1.0, -2.0], "ref_logprobs": [-2.0, -4.0]}
    figures = rollout_metrics(
        [record(**measured, **tokens)], TermsConfig(slope=10.0, offset=2.0), kl_coef=0.2
    )
    # Per picture min(10 cos - 2, 0): 0 and -1; aesthetic +1 and 0; KL 1 + 2.
    assert figures["relevance"] == pytest.approx(-0.5)
    assert figures["aesthetic"] == pytest.approx(0.5)
    assert figures["score"] == pytest.approx(0.0)
    assert figures["cosine_change"] == pytest.approx(0.05)
    assert figures["reward"] == pytest.approx(-0.6)
    assert (figures["kl"], figures["kl_per_token"]) == (pytest.approx(3.0), pytest.approx(1.5))


def test_diversity_counts_what_was_added() -> None:
    assert suffix("a red boat", "a Red boat, oil painting, a detailed boat") == "oil painting detailed"
    known = {"logprobs": [0.0], "ref_logprobs": [0.0], "response_ids": [3]}
    three = [record(x=x, y=f"{x}, artstation", **known) for x in ("a boat", "a cat")] + [
        record(x="a cat", y="a cat, oil", **known)
    ]
    figures = text_metrics(three)
    assert (figures["distinct"], figures["distinct_suffix"]) == (1.0, pytest.approx(2 / 3))
    assert figures["top_suffix"] == pytest.approx(2 / 3)
    sets = [record(x="a cat", y=y, **known) for y in ("a cat, oil, 4k", "a cat, 4k, oil", "a cat, oil", "")]
    assert text_metrics(sets)["top_suffix"] == 0.5  # one addition in two orders


def test_records_survive_parquet_bit_by_bit(tmp_path: Path) -> None:
    odd = float(torch.tensor(0.1))
    rollouts = [record(1, logprobs=[odd, -3.5]), record(0, y="", picture_y="images/é.png")]
    write_rollouts(tmp_path / "step_000003.parquet", rollouts)
    assert read_rollouts(tmp_path / "step_000003.parquet") == [rollouts[1], rollouts[0]]


class Asked:
    """A reward client that keeps what it is asked for; a measurement is a function of its request."""

    def __init__(self) -> None:
        self.requests: list[ImageRequest] = []

    def submit(self, requests: list[ImageRequest]) -> list[ImageRequest]:
        self.requests += requests
        return requests

    def collect(self, tickets: list[ImageRequest]) -> list[Measurement]:
        return [Measurement(len(r.prompt) / 200 + r.k / 50, float(len(r.prompt))) for r in tickets]

    def metrics(self) -> dict[str, float]:
        return {}


def test_bug_validation_has_a_fixed_length_fixed_noise_and_no_duplicates(
    nets: Any, job: PPOJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever training drew before, and however many ranks share the work."""
    limits: list[int] = []

    def decode(*args: Any) -> Any:
        limits.append(args[3])
        return plain_decode(*args)

    plain_decode = validating.decode
    monkeypatch.setattr(validating, "decode", decode)
    monkeypatch.setattr(validating, "gather", lambda items: items)
    asked, figures = [Asked(), Asked()], []
    for client, step in zip(asked, (0, 7), strict=True):
        figures.append(Validation(job, nets.tokenizer, 0, 1)(nets, client, step))  # type: ignore[arg-type]
        roll(nets, job, iteration=step)  # another length, other noises
    assert asked[0].requests == asked[1].requests
    assert figures[0] == figures[1]
    assert figures[0]["valid/prompts"] == 5
    assert set(limits) == {job.ppo.validation_new_tokens}
    # Each prompt once as it is and once rewritten, with every noise, from the noises training never sees.
    ks = range(job.ppo.validation_images)
    assert Counter((r.source, r.k) for r in asked[0].requests) == Counter(
        {(f"the {x} on a hill", k): 2 for x in ("red boat", "red house", "red tree", "red cat", "red ball") for k in ks}
    )
    assert {r.namespace for r in asked[0].requests} == {"valid"}
    shared = Asked()
    for rank in range(2):
        Validation(job, nets.tokenizer, rank, 2)(nets, shared, 0)  # type: ignore[arg-type]
    assert shared.requests == asked[0].requests


def test_validation_prompts_are_different_and_shared_out_without_padding(job: PPOJob, nets: Any) -> None:
    parts = [Validation(job, nets.tokenizer, rank, 2)._mine for rank in range(2)]
    texts = [x for part in parts for _, x, _ in part]
    assert len(texts) == len(set(texts)) == 5
    assert texts == Validation(job, nets.tokenizer, 0, 1).prompts


@pytest.mark.parametrize(
    ("ranks", "message"), [(3, "does not divide by 3 training ranks"), (8, "zero.micro_batch = 2 does not")]
)
def test_sizes_that_do_not_fit_are_refused(job: PPOJob, ranks: int, message: str) -> None:
    assert job.per_rank(2) == 4
    with pytest.raises(UserError, match=message):
        job.per_rank(ranks)


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"clip": 0.0}, {"lam": 1.5}, {"new_tokens_max": 3}, {"kl_coef": -0.1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"ppo.{next(iter(wrong))}"):
        PPOConfig(**wrong)
