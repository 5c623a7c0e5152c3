"""Log-ratios of rewrites against transformers' own loss, text by text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from promptist.data.text import load_tokenizer, prompt_ids, response_ids
from promptist.errors import UserError
from promptist.evaluation.kl import BATCH, log_ratios
from promptist.models.policy import ModelConfig, load_reference
from promptist.optimize import Promptist, RewriteSettings
from tests.helpers_models import write_tiny_gpt2

WIDTH = 12
REWRITES = {f"a red boat {i}" + " on the sea" * (i % 5): "a boat, pqz " * (i % 7) for i in range(2 * BATCH + 3)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> tuple[Promptist, Path]:
    root = tmp_path_factory.mktemp("kl")
    write_tiny_gpt2(root / "sft", tiny_tokenizer_folder, seed=1)
    folder = write_tiny_gpt2(root / "ppo", tiny_tokenizer_folder, seed=2)
    return Promptist.from_pretrained(folder, "cpu", settings=RewriteSettings(max_new_tokens=WIDTH)), root / "sft"


def reference(folder: Path) -> tuple[torch.nn.Module, object]:
    return load_reference(ModelConfig(str(folder))), load_tokenizer(folder)


@torch.no_grad()
def by_transformers(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    """log p(response | prompt) by the model's own loss: no padding, no batch."""
    ids = torch.tensor([prompt + response])
    labels = torch.tensor([[-100] * len(prompt) + response])
    return -float(model(ids, labels=labels).loss) * len(response)


def test_ratios_are_differences_of_transformers_losses(models: tuple[Promptist, Path]) -> None:
    policy, folder = models
    theirs, tokenizer = reference(folder)
    found = log_ratios(policy, theirs, tokenizer, REWRITES)
    assert list(found) == list(REWRITES)
    lengths = []
    for x, y in REWRITES.items():
        prompt, response = prompt_ids(tokenizer, x), response_ids(tokenizer, y)[:WIDTH]
        lengths.append(len(response))
        expected = by_transformers(policy.model, prompt, response) - by_transformers(theirs, prompt, response)
        assert found[x] == pytest.approx(expected, abs=1e-4)
    assert min(lengths) == 1 and max(lengths) == WIDTH  # left as it is: EOS alone; cut: no EOS
    assert response_ids(tokenizer, max(REWRITES.values(), key=len))[WIDTH:]


def test_a_model_is_at_no_distance_from_itself(models: tuple[Promptist, Path]) -> None:
    policy, _ = models
    assert set(log_ratios(policy, policy.model, policy.tokenizer, REWRITES).values()) == {0.0}


def test_a_ratio_does_not_depend_on_its_neighbours(models: tuple[Promptist, Path]) -> None:
    policy, folder = models
    theirs = reference(folder)
    together = log_ratios(policy, *theirs, REWRITES)
    backwards = log_ratios(policy, *theirs, dict(reversed(REWRITES.items())))
    alone = {x: log_ratios(policy, *theirs, {x: y})[x] for x, y in list(REWRITES.items())[:5]}
    assert together == backwards and alone == {x: together[x] for x in alone}
    assert log_ratios(policy, *theirs, {}) == {}


def test_models_that_do_not_fit_each_other(models: tuple[Promptist, Path], tmp_path: Path) -> None:
    from tests.helpers_ppo import make_tiny_policy

    policy, folder = models
    with pytest.raises(UserError, match="into other tokens"):
        log_ratios(policy, *reference(make_tiny_policy(tmp_path / "other")), {"a violet xylophone": "q"})
    short, tokenizer = reference(folder)
    short.config.max_position_embeddings = 8
    with pytest.raises(UserError, match="the `reference` reads 8"):
        log_ratios(policy, short, tokenizer, REWRITES)
