"""A small classifier of objects and colours that judges generated pictures. It takes no part in any reward."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from promptist import rng as counter_rng
from promptist.synthetic import grammar, scenes
from promptist.synthetic.contrastive import soften
from promptist.synthetic.grammar import Content
from promptist.synthetic.training import train

STEPS, BATCH, PEAK_LR = 900, 64, 3e-3
FILE = "judge.safetensors"


class Judge(nn.Module):
    """Pictures in -1..1 [N, 3, 64, 64] to logits over objects [N, 10] and colours [N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU())
                for a, b in pairwise(widths)
            )
        )
        self.objects = nn.Linear(64 * 16, len(grammar.OBJECTS))
        self.colours = nn.Linear(64 * 16, len(grammar.COLOURS))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.layers(pictures).flatten(1)
        return self.objects(hidden), self.colours(hidden)


def _labels(contents: list[Content]) -> tuple[torch.Tensor, torch.Tensor]:
    objects = torch.tensor([grammar.OBJECTS.index(content.object) for content in contents])
    return objects, torch.tensor([grammar.COLOURS.index(content.colour) for content in contents])


def train_judge(folder: Path, seed: int, *, steps: int = STEPS) -> Judge:
    """Trains on plain renders of training contents, blurred and noised at random (generated pictures are softer)."""
    torch.manual_seed(seed)
    judge = Judge()

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = counter_rng.generator(seed, "judge", step)
        contents = [scenes.TRAIN_CONTENTS[i] for i in rng.integers(len(scenes.TRAIN_CONTENTS), size=BATCH)]
        pictures = torch.from_numpy(scenes.render_scenes([scenes.Scene(c, ()) for c in contents], rng))
        objects, colours = judge(soften(pictures, rng))
        true_objects, true_colours = _labels(contents)
        loss = functional.cross_entropy(objects, true_objects) + functional.cross_entropy(colours, true_colours)
        right = (objects.argmax(1) == true_objects) & (colours.argmax(1) == true_colours)
        return loss, {"right": right.float().mean().item()}

    weights = train("judge", folder, {"judge": judge}, loss_of_step, steps=steps, peak_lr=PEAK_LR, ema_decay=0.98)
    judge.load_state_dict(weights["judge"])
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, pictures: torch.Tensor, contents: list[Content]) -> tuple[np.ndarray, np.ndarray]:
    """Whether object and colour are right, bool [N] each, for pictures in -1..1."""
    objects, colours = (torch.cat(parts) for parts in zip(*(judge(part) for part in pictures.split(64)), strict=True))
    true_objects, true_colours = _labels(contents)
    return (objects.argmax(1) == true_objects).numpy(), (colours.argmax(1) == true_colours).numpy()


def held_out_accuracy(judge: Judge, seed: int, count: int = 960) -> float:
    """Share of crisp plain renders of held-out contents with object and colour both right."""
    rng = counter_rng.generator(seed, "judge-test")
    contents = [scenes.HELD_OUT_CONTENTS[i % len(scenes.HELD_OUT_CONTENTS)] for i in range(count)]
    pictures = torch.from_numpy(scenes.render_scenes([scenes.Scene(c, ()) for c in contents], rng))
    objects, colours = verdicts(judge, pictures, contents)
    return float((objects & colours).mean())


def write_judge(judge: Judge, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, folder / FILE)


def load_judge(folder: Path) -> Judge:
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(folder / FILE).items()})
    return judge.eval()
