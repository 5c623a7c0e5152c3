"""The aesthetic predictor: an affine map of the L2-normalised CLIP image embedding.

The paper's head (`sac+logos+ava1-l14-linearMSE.pth`,
github.com/christophschuhmann/improved-aesthetic-predictor) is stored as five linear layers with dropout and
no activation between them. In evaluation that is one affine map, folded here once at load: `score = w . e +
b`. Single linear heads (`sa_0_4_vit_l_14_linear.pth`, or safetensors with `weight` and `bias`) are the same
thing without the folding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from promptist.errors import UserError

_AFFINE_LAYERS = (0, 2, 4, 6, 7)
"""Positions of the linear layers in the five-layer head: dropout sits at 1, 3 and 5, and there is no place
for an activation.
"""
_NORM_TOLERANCE = 2e-2
"""Half precision embeddings normalised in float32 are far closer than this; raw CLIP embeddings have a norm
near 10.
"""


@dataclass
class AestheticConfig:
    """`path`: .pth or .safetensors file of an affine head over the embedding of `reward.clip`."""

    path: str


class AestheticHead:
    """`score(embeddings)`: [N, E] unit vectors to [N] scores."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        """`weight` [E] and `bias` of the folded map."""
        self.weight = weight.to(torch.float32)
        self.bias = bias

    @classmethod
    def load(
        cls, path: str | Path, dimension: int, key: str = "reward.aesthetic.path", clip: str = "reward.clip"
    ) -> AestheticHead:
        """The head in `path` for embeddings of `dimension`; UserError if it is missing, not affine, or of
        another size. `key` and `clip` are what the config calls the path and the CLIP model.
        """
        weight, bias = fold(_read(Path(path).expanduser(), key), str(path))
        if weight.numel() != dimension:
            raise UserError(
                f"the aesthetic head {path} takes embeddings of {weight.numel()} numbers, but "
                f"{clip} gives {dimension}; "
                "use the head that was trained on this CLIP model"
            )
        return cls(weight, bias)

    def to(self, device: torch.device | str) -> AestheticHead:
        """The same head on `device`."""
        return AestheticHead(self.weight.to(device), self.bias)

    def score(self, embeddings: Tensor) -> Tensor:
        """embeddings [N, E], each of length 1 -> scores [N] float32. ValueError if they are not."""
        embeddings = embeddings.float()
        norms = torch.linalg.vector_norm(embeddings, dim=-1)
        worst = (norms - 1).abs().max().item() if len(norms) else 0.0
        if not worst <= _NORM_TOLERANCE:  # also refuses NaN
            raise ValueError(
                f"the aesthetic head takes embeddings of length 1; these are up to {worst:.3g} away: "
                "normalise them, or look for NaN"
            )
        # A sum per row, not a matrix product: its result does not depend on how many rows come along.
        return (embeddings * self.weight).sum(-1) + self.bias


def fold(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, float]:
    """The affine map (weight [E] float64, bias) that a head's state dict computes; UserError naming `name` if
    it is not affine.
    """
    if set(state) == {"weight", "bias"}:
        return _vector(state["weight"], state["bias"], name)
    layers = sorted({int(match[1]) for key in state if (match := re.fullmatch(r"layers\.(\d+)\.(weight|bias)", key))})
    if len(state) != 2 * len(layers) or not layers:
        raise UserError(
            f"{name} is no aesthetic head that promptist knows: it holds {', '.join(sorted(state)[:4])} ...; "
            "use a five-layer linearMSE file, or one with a single weight and bias"
        )
    if tuple(layers) != _AFFINE_LAYERS:
        raise UserError(
            f"the aesthetic head {name} has its linear layers at {', '.join(map(str, layers))}, "
            "which leaves room for "
            "activations between them, so it is not an affine map; use a linearMSE head"
        )
    weight = torch.eye(state["layers.0.weight"].shape[1], dtype=torch.float64)
    bias = torch.zeros(weight.shape[0], dtype=torch.float64)
    for layer in layers:
        w, b = state[f"layers.{layer}.weight"].double(), state[f"layers.{layer}.bias"].double()
        if w.shape[1] != weight.shape[0]:
            raise UserError(f"the aesthetic head {name} is damaged: layer {layer} does not fit the one before it")
        weight, bias = w @ weight, w @ bias + b
    return _vector(weight, bias, name)


def _vector(weight: Tensor, bias: Tensor, name: str) -> tuple[Tensor, float]:
    weight = weight.double()
    if weight.numel() != weight.shape[-1] or bias.numel() != 1:
        raise UserError(
            f"the aesthetic head {name} has {weight.numel() // weight.shape[-1]} outputs; an "
            "aesthetic score is one number"
        )
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise UserError(f"the aesthetic head {name} holds NaN or infinite weights; get the file again")
    return weight.reshape(-1), float(bias.double().item())


def _read(path: Path, key: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"the aesthetic head {path} does not exist; set {key} to a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            # The published files hold tensors saved on cuda:0.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen types for a damaged file
        raise UserError(
            f"the aesthetic head {path} cannot be read ({type(error).__name__}: {error}); get the file again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"the aesthetic head {path} holds no state dict; save model.state_dict(), not the model")
    return dict(state)
