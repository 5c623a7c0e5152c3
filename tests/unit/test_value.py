"""The value network: what its values may see, where it starts, and that it shares nothing with the policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from promptist.errors import UserError
from promptist.models.policy import ModelConfig, load_policy
from promptist.models.value import ValueConfig, ValueModel, forward_values, load_value
from tests.helpers_models import ragged_batch, write_tiny_gpt2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> ModelConfig:
    return ModelConfig(path=str(write_tiny_gpt2(tmp_path_factory.mktemp("gpt2"), tiny_tokenizer_folder)))


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> ValueModel:
    return load_value(config, ValueConfig(head_init="default")).double()


def test_values_equal_unpadded_rows_and_a_numpy_head(model: ValueModel) -> None:
    ids, prompts, responses, width = ragged_batch(model.trunk.config.vocab_size)
    ours = forward_values(model, ids, prompts, responses, width).detach()
    first, last = model.head[0], model.head[2]
    w1, b1, w2, b2 = (t.detach().numpy() for t in (first.weight, first.bias, last.weight, last.bias))
    for n, (p, r) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True)):
        start = ids.shape[1] - width - p
        hidden = model.trunk(ids[n : n + 1, start : start + p + r]).last_hidden_state[0].detach().numpy()
        oracle = np.maximum(hidden @ w1.T + b1, 0) @ w2.T + b2
        np.testing.assert_allclose(ours[n, :r], oracle[p - 1 : p - 1 + r, 0], atol=1e-9)
        assert not ours[n, r:].any()


def test_bug_values_align_with_tokens(model: ValueModel) -> None:
    """Value t is that of the state before token t: it changes with tokens before t and with no later one."""
    ids, prompts, responses, width = ragged_batch(model.trunk.config.vocab_size)
    before = forward_values(model, ids, prompts, responses, width).detach()
    changed = ids.clone()
    t, column = 3, ids.shape[1] - width + 3
    assert responses[0] > t + 1
    changed[0, column] = changed[0, column] % 100 + 1
    difference = (forward_values(model, changed, prompts, responses, width).detach() - before)[0]
    assert not difference[: t + 1].any() and (difference[t + 1 :].abs() > 0).all()


def test_zero_head_starts_at_zero_and_learns(config: ModelConfig) -> None:
    model = load_value(config, ValueConfig())
    batch = ragged_batch(model.trunk.config.vocab_size)
    values = forward_values(model, *batch)
    assert not values.any()
    (values - 1).square().sum().backward()
    torch.optim.Adam(model.parameters(), lr=1e-2).step()
    assert forward_values(model, *batch).abs().sum() > 0


def test_separate_from_the_policy_and_whole(config: ModelConfig) -> None:
    """Its trunk starts with the policy's numbers in memory of its own, every block trainable whatever the
    policy's.
    """
    frozen = ModelConfig(path=config.path, trainable_blocks=1)
    policy, value = load_policy(frozen), load_value(frozen, ValueConfig())
    assert torch.equal(policy.transformer.wte.weight, value.trunk.wte.weight)
    assert not {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in value.parameters()}
    assert all(p.requires_grad for p in value.parameters())


def test_seed_fixes_the_head_and_head_shape(config: ModelConfig) -> None:
    one, same, other = (load_value(config, ValueConfig(), seed).head[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert tuple(one.shape) == (32, 16)
    with pytest.raises(UserError, match="head_init"):
        ValueConfig(head_init="ones")  # type: ignore[arg-type]
