"""Loading, freezing, exporting a policy, and its log-probabilities, against an unpadded forward pass and
scipy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from promptist.errors import UserError
from promptist.models.policy import ModelConfig, export_policy, forward_logprobs, load_policy, load_reference
from promptist.models.tokens import length_mask
from promptist.rl import ppo
from tests.helpers_models import ragged_batch, write_tiny_gpt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    return write_tiny_gpt2(tmp_path_factory.mktemp("gpt2"), tiny_tokenizer_folder)


def load(folder: Path, **options: Any) -> Any:
    return load_policy(ModelConfig(path=str(folder), **options))


def test_logprobs_equal_unpadded_rows(folder: Path) -> None:
    model = load(folder).double()
    ids, prompts, responses, width = ragged_batch(model.config.vocab_size)
    ours = forward_logprobs(model, ids, prompts, responses, width).detach()
    for n, (p, r) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True)):
        start = ids.shape[1] - width - p
        row = ids[n, start : start + p + r]
        oracle = log_softmax(model(row[None]).logits[0].detach().numpy(), axis=-1)
        expected = [oracle[p - 1 + t, row[p + t]] for t in range(r)]
        np.testing.assert_allclose(ours[n, :r], expected, atol=1e-9)
        assert not ours[n, r:].any()


def test_logits_are_computed_on_response_positions_only(folder: Path) -> None:
    model = load(folder)
    ids, prompts, responses, width = ragged_batch(model.config.vocab_size)
    seen: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    forward_logprobs(model, ids, prompts, responses, width)
    assert seen == [width] and width < ids.shape[1]


def test_no_position_past_the_table_is_asked_for(folder: Path) -> None:
    """A prompt padded to nearly all of the 64 positions leaves no room to count on through padding."""
    model = load(folder)
    ids = torch.ones(2, 64 + 20, dtype=torch.long)
    out = forward_logprobs(model, ids, torch.tensor([44, 60]), torch.tensor([20, 4]), 40)
    assert torch.isfinite(out).all()


def test_bug_ratio_is_exactly_one_before_the_first_step(folder: Path) -> None:
    """The folder's config asks for dropout; in training mode two passes must still agree in every bit."""
    model = load(folder)
    assert model.training
    batch = ragged_batch(model.config.vocab_size)
    with torch.no_grad():
        old = forward_logprobs(model, *batch)
    mask = length_mask(batch[2], batch[3])
    loss = ppo.policy_loss(forward_logprobs(model, *batch), old, torch.ones_like(old), mask, 0.2)
    assert float(loss.stats["ratio"]) == float(loss.count)
    for module in model.modules():  # the same check sees the bug when it is put back
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    loss = ppo.policy_loss(forward_logprobs(model, *batch), old, torch.ones_like(old), mask, 0.2)
    assert float(loss.stats["ratio"]) != float(loss.count)


def test_bug_full_fine_tuning_runs(folder: Path) -> None:
    model = load(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = ragged_batch(model.config.vocab_size)
    forward_logprobs(model, *batch).sum().neg().backward()
    torch.optim.Adam(model.parameters(), lr=1e-2).step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still


@pytest.mark.parametrize("trainable_blocks", [None, 1])
def test_bug_the_reference_never_moves(folder: Path, trainable_blocks: int | None) -> None:
    """Neither full nor top-block training of the policy, embeddings included, may reach the reference."""
    config = ModelConfig(path=str(folder), trainable_blocks=trainable_blocks)
    policy, reference = load_policy(config), load_reference(config)
    batch = ragged_batch(policy.config.vocab_size)
    before = forward_logprobs(reference, *batch)
    assert torch.equal(before, forward_logprobs(policy, *batch).detach())
    forward_logprobs(policy, *batch).sum().neg().backward()
    torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-2).step()
    assert not torch.equal(forward_logprobs(policy, *batch).detach(), before)
    assert torch.equal(forward_logprobs(reference, *batch), before)
    assert not any(p.requires_grad for p in reference.parameters()) and not reference.training


def test_trainable_blocks_leave_top_norm_and_embeddings(folder: Path) -> None:
    model = load(folder, trainable_blocks=2)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("transformer.h.0.") for name in frozen)
    assert len(frozen) == len(list(model.transformer.h[0].parameters()))
    with pytest.raises(UserError, match="3 blocks"):
        load(folder, trainable_blocks=4)


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load(folder, gradient_checkpointing=checkpointing)
        forward_logprobs(model, *ragged_batch(model.config.vocab_size)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(gradients[0], gradients[1]) and gradients[0].abs().sum() > 0


def test_bug_the_seed_is_really_applied_to_new_weights(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    config = ModelConfig(
        path=str(write_tiny_gpt2(tmp_path, tiny_tokenizer_folder, weights=False)), init="scratch"
    )
    torch.manual_seed(99)
    state = torch.get_rng_state()
    one, same, other = (load_policy(config, seed).transformer.wte.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())  # and nothing is drawn from the global stream


def test_export_is_a_hugging_face_folder(folder: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    from promptist.data.text import load_tokenizer

    model = load(folder)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(0.5)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):  # the second replaces the first
        export_policy(model, state, tiny_tokenizer, tmp_path / "export")
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith(".bin") for name in names) and len(list(tmp_path.iterdir())) == 1
    again = load(tmp_path / "export")
    batch = ragged_batch(model.config.vocab_size)
    assert torch.equal(forward_logprobs(again, *batch), forward_logprobs(model, *batch))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert load_tokenizer(tmp_path / "export")("a red boat") == tiny_tokenizer("a red boat")


def test_bad_paths_are_one_sentence(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path / "empty")
    bare = write_tiny_gpt2(tmp_path / "bare", tiny_tokenizer_folder, weights=False)
    with pytest.raises(UserError, match="init=scratch"):
        load(bare)
    (bare / "config.json").write_text("{")
    with pytest.raises(UserError, match="could not be loaded"):
        load(bare, init="scratch")
    with pytest.raises(UserError, match="trainable_blocks"):
        ModelConfig(path="x", trainable_blocks=0)
