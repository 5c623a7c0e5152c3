"""A second judge that no training reward ever sees: another CLIP and another aesthetic head for held-out scores.

It shares neither weights nor draws with the first (`contrastive.py`): another image tower (EdgeNeXt, convolutions with
attention, where the first is a ResNet), another text tower and vocabulary, another seed throughout, pictures of a fixed
pool of which every other one went through the autoencoder, and crops, mirroring and colour jitter in place of blur and
noise. What it learned by heart is therefore not what a rewriter learned to please.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from promptist import rng as counter_rng
from promptist.errors import UserError
from promptist.synthetic import contrastive, scenes
from promptist.synthetic.contrastive import Clip
from promptist.synthetic.render import SIZE
from promptist.synthetic.scenes import Scene
from promptist.synthetic.training import atomic_save, train
from promptist.synthetic.vocabulary import CONTEXT, clip_vocabulary, train_clip_merges

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STEPS, BATCH, PEAK_LR = 1000, 128, 2e-3
POOL = 20_000
EMBED = 96
FOLDER, HEAD = "rival", "aesthetic.safetensors"
LAYER_SCALE = 0.1  # timm starts at 1e-6, for deeper networks and hundreds of epochs


def own_seed(seed: int) -> int:
    """The seed of everything of the rival, in the world of `seed`."""
    return counter_rng.integer(0, 2**31 - 1, seed, "rival")


def model_config(vocabulary: int) -> dict[str, Any]:
    """open_clip's model_cfg."""
    return {
        "embed_dim": EMBED,
        "vision_cfg": {
            "image_size": SIZE,
            "timm_model_name": "edgenext_xx_small",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocabulary,
            "width": 96,
            "heads": 4,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"},
        },
    }


def untrained(merges: list[str]) -> Clip:
    """The model with random weights."""
    model = contrastive.build(model_config(len(clip_vocabulary(merges))))
    for name, parameter in model.visual.named_parameters():
        if "gamma" in name:
            parameter.data.fill_(LAYER_SCALE)
    return model


def pool(folder: Path, vae: AutoencoderKL, seed: int) -> tuple[list[Scene], torch.Tensor]:
    """The training pictures: scenes, and pictures uint8 [POOL, 3, 64, 64], every other one through the autoencoder.

    Kept in `folder`, so that training that goes on need not paint them again.
    """
    rng = counter_rng.generator(seed, "pool")
    drawn = [scenes.sample_scene(rng) for _ in range(POOL)]
    path = folder / "rival-pictures.pt"
    if not path.exists():
        parts = []
        for start in range(0, POOL, 1000):
            part = torch.from_numpy(scenes.render_scenes(drawn[start : start + 1000], rng))
            part[1::2] = contrastive.reconstruct(vae, part[1::2])
            parts.append(((part + 1) * 127.5).round().to(torch.uint8))
        folder.mkdir(parents=True, exist_ok=True)
        atomic_save(torch.cat(parts), path)
    pictures: torch.Tensor = torch.load(path, weights_only=True)
    return drawn, pictures


def augment(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random crops of at least 82 % of the side, mirroring, and slight changes of brightness, contrast and tint.

    Pictures [N, 3, 64, 64] in -1..1. Slight, because colours are content and styles of this world.
    """
    count = len(pictures)
    side = rng.uniform(0.82, 1.0, count)
    shift = rng.uniform(-1, 1, (count, 2)) * (1 - side)[:, None]
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0] = side * rng.choice((-1.0, 1.0), count)
    theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = functional.affine_grid(torch.from_numpy(theta), list(pictures.shape), align_corners=False)
    cropped = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    contrast = torch.from_numpy(rng.uniform(0.92, 1.08, (count, 1, 1, 1)).astype(np.float32))
    tint = torch.from_numpy(rng.normal(0, 0.03, (count, 3, 1, 1)).astype(np.float32))
    brightness = torch.from_numpy(rng.normal(0, 0.04, (count, 1, 1, 1)).astype(np.float32))
    return (cropped * contrast + tint + brightness).clamp(-1, 1)


def train_rival(
    folder: Path, merges: list[str], vae: AutoencoderKL, seed: int, *, steps: int = STEPS, device: str = "cpu"
) -> Clip:
    """Trains (or goes on training) the rival's contrastive model."""
    drawn, pictures = pool(folder, vae, seed)
    places = np.array([scene.content.place for scene in drawn])
    colours = np.array([scene.content.colour for scene in drawn])
    torch.manual_seed(seed)
    model = untrained(merges).to(device)
    tokenizer = contrastive.tokenizer_of(merges, folder / FOLDER)

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = counter_rng.generator(seed, "rival", step)
        place, some = contrastive.topic(rng)
        about = np.isin(colours, list(some)) & ((places == place) if place is not None else True)
        chosen = rng.choice(np.flatnonzero(about), BATCH, replace=False)
        pairs = [contrastive.describe(drawn[i].content, drawn[i].phrases, rng) for i in chosen]
        batch = augment(pictures[torch.from_numpy(chosen)].float() / 127.5 - 1, rng)
        return contrastive.step_loss(model, tokenizer, pairs, contrastive.normalise(batch).to(device), device)

    weights = train(
        FOLDER, folder, {FOLDER: model}, loss_of_step, steps=steps, peak_lr=PEAK_LR, weight_decay=0.05, ema_decay=0.995
    )
    model.load_state_dict(weights[FOLDER])
    return model.eval()


def add_rival(build: Path, out: Path, seed: int, *, device: str = "cpu") -> None:
    """Trains the rival for the world in `out` and writes it there as `rival/`: an open_clip folder and its head.

    Its autoencoder is the world's own, as written, so that it comes out the same whether the rest was trained before
    or has long been there.
    """
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    if not (out / "diffusion" / "vae").is_dir():
        raise UserError(
            f"{out} holds no miniature world that a rival could judge: build it with `promptist world train`"
        )
    vae = AutoencoderKL.from_pretrained(
        out / "diffusion" / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False
    ).eval()
    own = own_seed(seed)
    merges = train_clip_merges(own)
    model = train_rival(build, merges, vae, own, device=device).cpu()
    folder = out / FOLDER
    contrastive.write_clip(model, merges, folder, model_config(len(clip_vocabulary(merges))))
    weight, bias, r2 = contrastive.train_head(model, vae, own)
    save_file({"weight": weight[None], "bias": torch.tensor([bias])}, folder / HEAD)
    facts = {"seed": own, "aesthetic_head_r2_on_held_out_renders": round(r2, 4)}
    (folder / "rival.json").write_text(json.dumps(facts, indent=2) + "\n")
