"""Builds the miniature world from nothing and writes it in the standard on-disk formats.

assets/diffusion/               diffusers StableDiffusionPipeline folder
assets/clip/                    open_clip_config.json, open_clip_model.safetensors, bpe.txt.gz
assets/aesthetic.safetensors    affine head over that CLIP's embedding
assets/gpt2/                    config.json and byte-level BPE tokenizer of the small GPT-2 (weights come from SFT)
assets/judge.safetensors        classifier for quality checks only
assets/world.json               seed, versions, what was measured while building
assets/rival/                   another CLIP with its own aesthetic head, for held-out scores (rival.py)
"""

from __future__ import annotations

import json
import shutil
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch

from promptist.errors import UserError
from promptist.synthetic import contrastive, diffusion, evaluation_sets, judge, prompts, rival, vae, vocabulary

SEED = 1
SIZE_LIMIT = 24 * 2**20
GPT2 = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128}


def assets() -> Path:
    """The shipped world's folder."""
    return Path(str(resources.files("promptist.synthetic") / "assets"))


def stages(build: Path, seed: int, device: str) -> dict[str, Any]:
    """Trains every part but the rival that is not finished yet, in the order in which they need each other."""
    merges = vocabulary.train_clip_merges(seed)
    autoencoder = vae.train_vae(build, seed, device=device)
    unet, text_encoder = diffusion.train_diffusion(build, autoencoder, merges, seed, device=device)
    autoencoder = vae.train_decoder(autoencoder, build, seed, device=device)
    clip = contrastive.train_clip(build, merges, seed, device=device)
    return {
        "merges": merges,
        "vae": autoencoder,
        "unet": unet,
        "text_encoder": text_encoder,
        "clip": clip,
        "judge": judge.train_judge(build, seed),
    }


def build_world(build: Path, out: Path, *, seed: int = SEED, device: str = "cpu") -> None:
    """Trains the whole world (resuming what ``build`` holds), writes it to ``out``; refuses one too large to ship."""
    write_world(stages(build, seed, device), out, seed)
    rival.add_rival(build, out, seed, device=device)
    check_size(out)


def write_world(parts: dict[str, Any], out: Path, seed: int) -> None:
    """Writes all parts but the rival in half precision."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    pipe = diffusion.pipeline(parts["vae"], parts["unet"], parts["text_encoder"], parts["merges"])
    weight, bias, r2 = contrastive.train_head(parts["clip"].cpu(), parts["vae"].cpu(), seed)
    pipe.to(dtype=torch.float16).save_pretrained(out / "diffusion")
    model_cfg = contrastive.model_config(len(vocabulary.clip_vocabulary(parts["merges"])))
    contrastive.write_clip(parts["clip"], parts["merges"], out / "clip", model_cfg)
    save_file({"weight": weight[None], "bias": torch.tensor([bias])}, out / "aesthetic.safetensors")
    judge.write_judge(parts["judge"], out)
    write_gpt2(out / "gpt2", seed)
    versions = {
        name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "open_clip_torch", "tokenizers")
    }
    facts = {"seed": seed, "versions": versions, "aesthetic_head_r2_on_held_out_renders": round(r2, 4)}
    (out / "world.json").write_text(json.dumps(facts, indent=2) + "\n")


def check_size(out: Path) -> None:
    """UserError where a world is too large to ship."""
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if size > SIZE_LIMIT:
        raise UserError(
            f"the world in {out} takes {size / 2**20:.1f} MB, more than the {SIZE_LIMIT / 2**20:.0f} MB "
            "that may be shipped: make a model smaller"
        )


def write_gpt2(folder: Path, seed: int) -> None:
    """config.json and tokenizer of the language model that SFT trains from scratch."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        prompts.corpus_for_gpt2(seed),
        vocab_size=vocabulary.GPT2_VOCABULARY,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, model_max_length=GPT2["n_positions"], **special
    )
    fast.save_pretrained(folder)
    end = fast.convert_tokens_to_ids("<|endoftext|>")
    config = GPT2Config(
        **GPT2,
        vocab_size=len(fast),
        bos_token_id=end,
        eos_token_id=end,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        architectures=["GPT2LMHeadModel"],
    )
    config.save_pretrained(folder)


def unpack(folder: Path, seed: int = SEED) -> dict[str, int]:
    """Copies the shipped world below ``folder`` and writes prompts, pairs and evaluation sets beside it."""
    source = assets()
    if not (source / "world.json").exists():
        raise UserError(f"{source} holds no miniature world: build it with `promptist world train`")
    for item in source.iterdir():
        target = folder / item.name
        if item.is_dir():
            shutil.copytree(item, target, dirs_exist_ok=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(item, target)
    return prompts.write_all(folder, seed) | evaluation_sets.write(folder, seed)
