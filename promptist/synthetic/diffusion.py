"""The miniature world's text-to-image model: a diffusers StableDiffusionPipeline with a small UNet and text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel

from promptist import rng as counter_rng
from promptist.synthetic import scenes
from promptist.synthetic.render import SIZE
from promptist.synthetic.training import atomic_save, train
from promptist.synthetic.vocabulary import CONTEXT, clip_vocabulary, diffusers_tokenizer

STEPS, BATCH, PEAK_LR = 5000, 48, 1e-3
PICTURES = 30_000  # rendered and encoded once; captions and noise are fresh at every step
DROP_CAPTION = 0.1  # for classifier-free guidance
SNR_CAP = (
    5.0  # the last bits of noise count less than shapes and colours (after min-SNR weighting, Hang et al., ICCV 2023)
)
LATENT = SIZE // 4

# The cosine schedule ends in pure noise, so a picture's brightness is the model's own choice: several styles are
# about brightness, and few sampling steps cannot make up for a schedule that leaks it.
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_text_encoder(merges: list[str]) -> CLIPTextModel:
    vocabulary = clip_vocabulary(merges)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=vocabulary["<start_of_text>"],
            eos_token_id=vocabulary["<end_of_text>"],
            pad_token_id=vocabulary["<end_of_text>"],
        )
    )


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKL, folder: Path, seed: int, *, count: int = PICTURES, device: str = "cpu"
) -> torch.Tensor:
    """Scaled latents [count, 4, 16, 16] of rendered scenes, kept in ``folder/latents.pt`` (float16)."""
    path = folder / "latents.pt"
    if path.exists():
        kept: torch.Tensor = torch.load(path, weights_only=True)
        if len(kept) == count:
            return kept
    from tqdm import tqdm

    parts = []
    for start in tqdm(range(0, count, 96), desc="latents", mininterval=5.0):
        indices = range(start, min(start + 96, count))
        pictures = np.concatenate([_picture(seed, index) for index in indices])
        with torch.autocast(device, torch.bfloat16):
            mean = vae.encode(torch.from_numpy(pictures).to(device)).latent_dist.mean
        parts.append((mean.float() * vae.config.scaling_factor).half().cpu())
    latents = torch.cat(parts)
    atomic_save(latents, path)
    return latents


def _scene(seed: int, index: int) -> scenes.Scene:
    return scenes.sample_scene(counter_rng.generator(seed, "diffusion-scene", index))


def _picture(seed: int, index: int) -> np.ndarray:
    return scenes.render_scenes([_scene(seed, index)], counter_rng.generator(seed, "diffusion-render", index))


def train_diffusion(
    folder: Path, vae: AutoencoderKL, merges: list[str], seed: int, *, steps: int = STEPS, device: str = "cpu"
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains UNet and text encoder together by v-prediction on the latents of rendered scenes."""
    latents = encode_pictures(vae, folder, seed, device=device)
    drawn = [_scene(seed, index) for index in range(len(latents))]
    torch.manual_seed(seed)
    unet, text_encoder = build_unet().to(device), build_text_encoder(merges).to(device)
    tokenizer = diffusers_tokenizer(merges)
    noise_schedule = DDPMScheduler(**SCHEDULE)
    alphas = noise_schedule.alphas_cumprod.to(device)

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = counter_rng.generator(seed, "diffusion", step)
        chosen = rng.integers(len(latents), size=BATCH)
        captions = ["" if rng.random() < DROP_CAPTION else scenes.sample_prompt(drawn[i], rng) for i in chosen]
        ids = tokenizer(
            captions, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        ).input_ids.to(device)
        clean = latents[torch.from_numpy(chosen)].float().to(device)
        noise = counter_rng.normal(tuple(clean.shape), seed, "diffusion-noise", step).to(device)
        # One draw per stratum: every batch sees the whole range of noise levels.
        times = torch.from_numpy(((np.arange(BATCH) + rng.random(BATCH)) * (1000 / BATCH)).astype(np.int64)).to(device)
        noisy = noise_schedule.add_noise(clean, noise, times)
        target = noise_schedule.get_velocity(clean, noise, times)
        # The flash kernel's backward is several times slower on CPUs than plain matrix products.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, torch.bfloat16):
            text = text_encoder(ids).last_hidden_state
            predicted = unet(noisy, times, text).sample.float()
        alpha = alphas[times]
        snr = alpha / (1 - alpha)
        weight = (SNR_CAP / snr).clamp(max=1.0)
        errors = (predicted - target).pow(2).mean(dim=(1, 2, 3))
        return (weight * errors).sum() / weight.sum(), {"plain": errors.mean().item()}

    modules = {"unet": unet, "text_encoder": text_encoder}
    weights = train(
        "diffusion",
        folder,
        modules,
        loss_of_step,
        steps=steps,
        peak_lr=PEAK_LR,
        warmup=200,
        weight_decay=1e-3,
        ema_decay=0.999,
    )
    for name, module in modules.items():
        module.load_state_dict(weights[name])
    return unet.eval(), text_encoder.eval()


def pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, merges: list[str]
) -> StableDiffusionPipeline:
    """The finished pipeline with DPM-Solver++; ``trailing`` spacing starts at the pure noise the schedule ends in."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=diffusers_tokenizer(merges),
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(
            **SCHEDULE, algorithm_type="dpmsolver++", solver_order=2, steps_offset=1, timestep_spacing="trailing"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
