"""A reward world with random weights, written in a second in the formats the production loaders read.

Used wherever a test needs real Stable Diffusion + CLIP + aesthetic code paths and no meaning in the pictures.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SIZE = 16  # pixels
TEXT_TOKENS = 24  # of both text encoders, start and end included
EMBED = 12
_MERGES = ["r e", "b o", "bo a", "a t</w>", "s t", "o u", "re d</w>"]


def _vocabulary() -> list[str]:
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merged = [merge.replace(" ", "") for merge in _MERGES]
    return letters + [letter + "</w>" for letter in letters] + merged + ["<start_of_text>", "<end_of_text>"]


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(_vocabulary())},
        merges=[tuple(merge.split()) for merge in _MERGES],
        bos_token="<start_of_text>",
        eos_token="<end_of_text>",
        unk_token="<end_of_text>",
        pad_token="<end_of_text>",
        model_max_length=TEXT_TOKENS,
    )


def _text_config() -> dict[str, Any]:
    """A transformers CLIPTextConfig, but for the projection."""
    vocab = _tokenizer().get_vocab()
    return {
        "vocab_size": len(vocab),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": TEXT_TOKENS,
        "bos_token_id": vocab["<start_of_text>"],
        "eos_token_id": vocab["<end_of_text>"],
        "pad_token_id": vocab["<end_of_text>"],
    }


def write_tiny_pickscore(folder: Path) -> None:
    """A transformers CLIPModel with tokenizer and image settings, random weights of the caller's random state.

    As in PickScore's CLIP-H: exact GELU, bicubic to the shortest edge, OpenAI's mean and deviation.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 12, "patch_size": 4}
    text = _text_config()
    config = CLIPConfig(
        text_config={**text, "hidden_act": "gelu"}, vision_config={**vision, "hidden_act": "gelu"}, projection_dim=EMBED
    )
    model = CLIPModel(config)
    for parameter in model.parameters():  # initialised so small that all pictures look alike
        if parameter.ndim > 1:
            parameter.data.mul_(20)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}).save_pretrained(folder)


def _write_pipeline(folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(**_text_config()))
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            steps_offset=1,
            clip_sample=False,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def write_tiny_clip(folder: Path, embed: int = EMBED, mean: Sequence[float] = (0.5, 0.45, 0.4)) -> None:
    """An open_clip folder with random weights, of the caller's random state."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    with gzip.open(folder / "bpe.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join(["#version: 0.2", *_MERGES]))  # no newline at the end: it would add an empty merge
    model_cfg: dict[str, Any] = {
        "embed_dim": embed,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
        "text_cfg": {
            "context_length": TEXT_TOKENS,
            "vocab_size": len(_vocabulary()),
            "width": 16,
            "heads": 2,
            "layers": 1,
            "tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"},
        },
    }
    preprocess_cfg = {"mean": list(mean), "std": [0.25, 0.26, 0.27], "interpolation": "bicubic"}
    model = open_clip.CLIP(
        **{name: model_cfg[name] for name in ("embed_dim", "quick_gelu")},
        vision_cfg=model_cfg["vision_cfg"],
        text_cfg={k: v for k, v in model_cfg["text_cfg"].items() if k != "tokenizer_kwargs"},
    )
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


def make_tiny_reward(folder: str | Path, *, images: int = 2, batch: int = 3) -> dict[str, Any]:
    """Write `sd/`, `clip/` and `aesthetic.safetensors` below `folder`; the matching `reward` section as a
    dict.

    Random weights under a fixed torch seed (the caller's random state is left alone), 16 px, two diffusion
    steps: a batch takes a few milliseconds on one core.
    """
    from safetensors.torch import save_file

    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        _write_pipeline(root / "sd")
        write_tiny_clip(root / "clip")
        head = {"weight": torch.randn(1, EMBED), "bias": torch.tensor([5.0])}
        save_file(head, root / "aesthetic.safetensors")
    return {
        "diffusion": {
            "path": str(root / "sd"),
            "dtype": "float32",
            "device": "cpu",
            "scheduler": "dpmsolver++",
            "steps": 2,
            "guidance": 7.5,
            "size": SIZE,
            "batch": batch,
            "attention": "sdpa",
            "safety_checker": "none",
        },
        "clip": {"model": str(root / "clip"), "pretrained": None, "dtype": "float32"},
        "aesthetic": {"path": str(root / "aesthetic.safetensors")},
        "terms": {"slope": 20.0, "offset": 5.6, "images": images, "bank": 4},
        "deadline_s": 60.0,
        "window": 2,
    }
