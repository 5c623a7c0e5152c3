"""The miniature world's CLIP (open_clip, convolutional image tower) and its affine aesthetic head."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional

from promptist import rng as counter_rng
from promptist.synthetic import grammar, scenes
from promptist.synthetic.grammar import Content
from promptist.synthetic.render import SIZE
from promptist.synthetic.training import train
from promptist.synthetic.vocabulary import CONTEXT, clip_vocabulary, write_open_clip_bpe

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STEPS, BATCH, PEAK_LR = 1400, 128, 1.5e-3
EMBED = 128
MEAN, STD = (0.5, 0.5, 0.5), (0.27, 0.27, 0.27)
Clip: TypeAlias = Any
"""`open_clip.CLIP`: open_clip has no types, and torch takes any attribute of a module for a tensor."""


def model_config(vocabulary: int) -> dict[str, Any]:
    """open_clip's model_cfg. A ResNet tower: texture styles get lost in the patches of a small ViT."""
    return {
        "embed_dim": EMBED,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 24, "patch_size": None},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocabulary,
            "width": 128,
            "heads": 4,
            "layers": 3,
            "tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"},
        },
    }


def build(config: dict[str, Any]) -> Clip:
    """The model of an open_clip model_cfg, with random weights."""
    import open_clip

    text = {key: value for key, value in config["text_cfg"].items() if key != "tokenizer_kwargs"}
    return open_clip.CLIP(embed_dim=config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=text)


@dataclass(frozen=True)
class Pair:
    """A picture's scene and the text it is trained with; ``open`` names what the text leaves unsaid."""

    content: Content
    phrases: tuple[str, ...]
    text: str
    said_colour: bool
    said_place: bool
    said_phrases: frozenset[str]

    def fits(self, other: Pair) -> bool:
        """Whether this text is also true of the other picture (then it is no negative)."""
        return (
            self.content.object == other.content.object
            and (not self.said_colour or self.content.colour == other.content.colour)
            and (not self.said_place or self.content.place == other.content.place)
            and self.said_phrases <= set(other.phrases)
        )


def topic(rng: np.random.Generator) -> tuple[str | None, set[str]]:
    """Place (None: any) and colours of a batch. Two of three share one place and half have three colours: objects
    matter then."""
    place = grammar.PLACES[rng.integers(len(grammar.PLACES))] if rng.random() < 0.67 else None
    return place, set(rng.choice(grammar.COLOURS, size=3 if rng.random() < 0.5 else 8, replace=False).tolist())


def sample_batch(rng: np.random.Generator, size: int) -> list[Pair]:
    """Pairs of a batch about the contents of one `topic`."""
    place, colours = topic(rng)
    pool = [c for c in scenes.TRAIN_CONTENTS if place is None or (c.place == place and c.colour in colours)]
    pairs = []
    for _ in range(size):
        phrases = scenes.sample_scene(rng).phrases
        pairs.append(describe(pool[rng.integers(len(pool))], phrases, rng))
    return pairs


def describe(content: Content, phrases: tuple[str, ...], rng: np.random.Generator) -> Pair:
    """A text for a picture: one caption of ten is a label; half of the styled pictures go with their plain caption."""
    label = rng.random() < 0.10
    if label:
        template = grammar.LABEL_TEMPLATES[rng.integers(len(grammar.LABEL_TEMPLATES))]
        text = grammar.caption(content, template, int(rng.integers(6)))
        said_colour = "{colour}" in template
    else:
        text = scenes.sample_caption(content, rng, labels=0.0)
        said_colour = True
    # Relevance is always asked of the plain prompt.
    said = phrases if rng.random() < 0.5 else ()
    return Pair(content, phrases, grammar.prompt(text, said), said_colour, not label, frozenset(said))


def soften(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random blur and noise, [N, 3, H, W]: generated pictures are never as crisp as rendered ones."""
    amount = torch.from_numpy(rng.uniform(0, 1, (len(pictures), 1, 1, 1)).astype(np.float32)) ** 2
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    blurred = functional.avg_pool2d(padded, 3, stride=1)
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    sigma = torch.from_numpy(rng.uniform(0, 0.10, (len(pictures), 1, 1, 1)).astype(np.float32))
    return (pictures * (1 - amount) + blurred * amount + noise * sigma).clamp(-1, 1)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """-1..1 to the model's own mean and deviation."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return ((pictures + 1) / 2 - mean.to(pictures)) / std.to(pictures)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy; pairs in ``same`` [text, image] (true although off the diagonal) are left out."""
    logits = scale * text @ image.T
    logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def step_loss(
    model: Clip, tokenizer: Any, pairs: list[Pair], pictures: torch.Tensor, device: str
) -> tuple[torch.Tensor, dict[str, float]]:
    """One training step: the contrastive loss of normalised pictures [N, 3, 64, 64] with the texts of their pairs, and
    how often the picture found for a text has its object and its colour."""
    same = torch.tensor([[a.fits(b) for b in pairs] for a in pairs], device=device)
    model.train()
    with torch.autocast(device, torch.bfloat16):
        image = functional.normalize(model.encode_image(pictures).float(), dim=-1)
        text = functional.normalize(model.encode_text(tokenizer([p.text for p in pairs]).to(device)).float(), dim=-1)
    model.logit_scale.data.clamp_(max=float(np.log(60.0)))
    loss = contrastive_loss(image, text, model.logit_scale.exp(), same)
    with torch.no_grad():
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=device)
        found = (text @ image.T).masked_fill(others, -2).argmax(1)
        chosen = [pairs[int(index)].content for index in found]
        right = np.mean([a.content.object == b.object for a, b in zip(pairs, chosen, strict=True)])
        colour = np.mean([a.content.colour == b.colour for a, b in zip(pairs, chosen, strict=True)])
    return loss, {"object": float(right), "colour": float(colour)}


def tokenizer_of(merges: list[str], folder: Path) -> Any:
    """open_clip's tokenizer of these merges, read from a file that is written to `folder`."""
    import open_clip

    bpe = folder / "bpe.txt.gz"
    write_open_clip_bpe(merges, bpe)
    return open_clip.SimpleTokenizer(bpe_path=str(bpe), context_length=CONTEXT)


def train_clip(folder: Path, merges: list[str], seed: int, *, steps: int = STEPS, device: str = "cpu") -> Clip:
    """Trains (or goes on training) the contrastive model."""
    torch.manual_seed(seed)
    model = build(model_config(len(clip_vocabulary(merges)))).to(device)
    tokenizer = tokenizer_of(merges, folder)

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = counter_rng.generator(seed, "clip", step)
        pairs = sample_batch(rng, BATCH)
        pictures = torch.from_numpy(scenes.render_scenes([scenes.Scene(p.content, p.phrases) for p in pairs], rng))
        return step_loss(model, tokenizer, pairs, normalise(soften(pictures, rng)).to(device), device)

    weights = train(
        "clip", folder, {"clip": model}, loss_of_step, steps=steps, peak_lr=PEAK_LR, weight_decay=0.05, ema_decay=0.995
    )
    model.load_state_dict(weights["clip"])
    return model.eval()


def write_clip(
    model: Clip, merges: list[str], folder: Path, model_cfg: dict[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """open_clip's local folder: open_clip_config.json, open_clip_model.safetensors and the BPE file beside them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_open_clip_bpe(merges, folder / "bpe.txt.gz")
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")


@torch.no_grad()
def embed_pictures(model: Clip, pictures: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """L2-normalised image embeddings [N, 128] of pictures in -1..1."""
    return torch.cat(
        [functional.normalize(model.encode_image(normalise(part)).float(), dim=-1) for part in pictures.split(batch)]
    )


RATER_NOISE = 0.25


def train_head(
    model: torch.nn.Module, vae: AutoencoderKL, seed: int, *, pictures: int = 8000
) -> tuple[torch.Tensor, float, float]:
    """The aesthetic head: ridge regression of noisy procedural ratings on embeddings of training pictures.

    Every other picture goes through the autoencoder first: the head will mostly see generated pictures. Returns
    weight [128], bias, and R² on fresh renders of held-out contents (noise-free ratings).
    """
    from sklearn.linear_model import Ridge

    def sample(count: int, purpose: str, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        rng = counter_rng.generator(seed, purpose)
        drawn = [scenes.sample_scene(rng) for _ in range(count)]
        if held_out:
            contents = scenes.HELD_OUT_CONTENTS
            drawn = [scenes.Scene(contents[i % len(contents)], s.phrases) for i, s in enumerate(drawn)]
        images = torch.from_numpy(scenes.render_scenes(drawn, rng))
        if not held_out:
            images = torch.cat([images[: count // 2], reconstruct(vae, images[count // 2 :])])
        ratings = np.array([grammar.rating(scene.content, scene.phrases) for scene in drawn])
        if not held_out:
            ratings = ratings + RATER_NOISE * rng.standard_normal(count)
        return embed_pictures(model, images).numpy(), ratings

    features, ratings = sample(pictures, "head-train", held_out=False)
    head = Ridge(alpha=1e-2).fit(features, ratings)
    features, ratings = sample(1000, "head-test", held_out=True)
    return torch.from_numpy(head.coef_).float(), float(head.intercept_), float(head.score(features, ratings))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: torch.Tensor, batch: int = 32) -> torch.Tensor:
    """Pictures in -1..1 [N, 3, H, W] through the autoencoder and back."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.float() for part in pictures.split(batch)]
    return torch.cat(parts).clamp(-1, 1)
