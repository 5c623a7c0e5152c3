"""The aesthetic head: folding against the layers as published, refusals, normalisation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from promptist.errors import UserError
from promptist.reward.aesthetic import AestheticHead

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("PROMPTIST_TEST_DATA", REPO.parent / "shared" / "data")) / "aesthetic"
FIVE, LINEAR, RELU = (
    DATA / name
    for name in (
        "sac+logos+ava1-l14-linearMSE.pth",
        "sa_0_4_vit_l_14_linear.pth",
        "ava+logos-l14-reluMSE.pth",
    )
)


def real(path: Path) -> Path:
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the test data folder (PROMPTIST_TEST_DATA)")
    return path


def unit(n: int, dimension: int = 768) -> torch.Tensor:
    noise = torch.randn(n, dimension, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(noise, dim=-1)


def test_folded_head_equals_the_five_layers() -> None:
    head = AestheticHead.load(real(FIVE), 768)
    state = torch.load(FIVE, map_location="cpu", weights_only=True)
    layers = torch.nn.Sequential(
        torch.nn.Linear(768, 1024),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(1024, 128),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(128, 64),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(64, 16),
        torch.nn.Linear(16, 1),
    ).eval()
    layers.load_state_dict({key.removeprefix("layers."): value for key, value in state.items()})
    embeddings = unit(10_000)
    with torch.inference_mode():
        expected = layers(embeddings).squeeze(1)
    assert (head.score(embeddings) - expected).abs().max() < 1e-5
    # Published figures of this head: norm and bias of the folded map.
    assert head.weight.norm().item() == pytest.approx(17.9956, abs=1e-3)
    assert head.bias == pytest.approx(5.236646, abs=1e-5)


def test_single_linear_head() -> None:
    head = AestheticHead.load(real(LINEAR), 768)
    state = torch.load(LINEAR, map_location="cpu", weights_only=True)
    expected = torch.nn.functional.linear(unit(100), state["weight"], state["bias"]).squeeze(1)
    assert torch.allclose(head.score(unit(100)), expected, atol=1e-5)


def test_head_with_activations_is_refused() -> None:
    with pytest.raises(UserError, match="not an affine map"):
        AestheticHead.load(real(RELU), 768)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_file({"weight": torch.ones(1, 12), "bias": torch.tensor([2.0])}, tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def test_safetensors_head(small: Path) -> None:
    vector = torch.zeros(1, 12)
    vector[0, 3] = 1
    assert AestheticHead.load(small, 12).score(vector).tolist() == [3.0]


def test_wrong_dimension(small: Path) -> None:
    with pytest.raises(UserError, match=r"12 numbers, but reward\.clip gives 768"):
        AestheticHead.load(small, 768)


@pytest.mark.parametrize("embeddings", [15 * unit(3, 12), torch.full((1, 12), float("nan"))])
def test_embeddings_must_be_normalised(small: Path, embeddings: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="length 1"):
        AestheticHead.load(small, 12).score(embeddings)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"weight": torch.ones(2, 12), "bias": torch.ones(2)}, "2 outputs"),
        ({"weight": torch.full((1, 12), float("inf")), "bias": torch.ones(1)}, "NaN or infinite"),
        ({"head.weight": torch.ones(1, 12)}, "no aesthetic head"),
        (
            {f"layers.{i}.{n}": torch.ones(2, 2) for i in (0, 3, 6) for n in ("weight", "bias")},
            "not an affine map",
        ),
    ],
)
def test_bad_heads(tmp_path: Path, state: dict[str, torch.Tensor], words: str) -> None:
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=words):
        AestheticHead.load(tmp_path / "bad.pth", 12)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        AestheticHead.load(tmp_path / "none.pth", 12)
    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04half")
    with pytest.raises(UserError, match="cannot be read"):
        AestheticHead.load(tmp_path / "half.pth", 12)
