"""The miniature world's image autoencoder: diffusers' AutoencoderKL, 64 pixels to 16 x 16 x 4 latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from promptist import rng as counter_rng
from promptist.synthetic.render import SIZE
from promptist.synthetic.scenes import render_scenes, sample_scene
from promptist.synthetic.training import train

# First both halves; then the encoder is frozen, so that the diffusion model can start on its latents while the decoder
# goes on learning to paint them sharply.
STEPS, DECODER_STEPS, BATCH, PEAK_LR = 1400, 1000, 24, 2e-3


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 on pixels and on differences of neighbours: without the second term, outlines come out soft."""
    pixels = (output - target).abs().mean()
    across = (output.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
    down = (output.diff(dim=-2) - target.diff(dim=-2)).abs().mean()
    return pixels + across + down


def train_vae(folder: Path, seed: int, *, steps: int = STEPS, device: str = "cpu") -> AutoencoderKL:
    """Trains (or goes on training) the autoencoder; its scaling factor is set so that latents have unit variance."""
    torch.manual_seed(seed)
    vae = build().to(device)

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pictures = _pictures(seed, "vae", step).to(device)
        noise = counter_rng.normal((BATCH, 4, SIZE // 4, SIZE // 4), seed, "vae-noise", step).to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            output = vae.decode(mean + noise * (0.5 * logvar).exp()).sample.float()
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        return reconstruction_loss(output, pictures) + 1e-3 * kl, {"psnr": psnr(output, pictures), "kl": kl.item()}

    weights = train("vae", folder, {"vae": vae}, loss_of_step, steps=steps, peak_lr=PEAK_LR, ema_decay=0.995)
    vae.load_state_dict(weights["vae"])
    vae.register_to_config(scaling_factor=1.0 / float(_latent_std(vae, seed, device)))
    return vae.eval()


def train_decoder(
    vae: AutoencoderKL, folder: Path, seed: int, *, steps: int = DECODER_STEPS, device: str = "cpu"
) -> AutoencoderKL:
    """Goes on training the decoder of a finished autoencoder on its frozen latents (the posterior's mean)."""
    halves = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pictures = _pictures(seed, "vae-decoder", step).to(device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mean
            output = vae.decode(latents).sample.float()
        return reconstruction_loss(output, pictures), {"psnr": psnr(output, pictures)}

    weights = train("vae-decoder", folder, halves, loss_of_step, steps=steps, peak_lr=PEAK_LR / 2, ema_decay=0.995)
    for name, half in halves.items():
        half.load_state_dict(weights[name])
    return vae.eval()


def _pictures(seed: int, purpose: str, step: int) -> torch.Tensor:
    rng = counter_rng.generator(seed, purpose, step)
    return torch.from_numpy(render_scenes([sample_scene(rng) for _ in range(BATCH)], rng))


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1."""
    return float(-10 * torch.log10(((output.detach() - target) / 2).pow(2).mean()))


@torch.no_grad()
def _latent_std(vae: AutoencoderKL, seed: int, device: str) -> torch.Tensor:
    rng = counter_rng.generator(seed, "vae-scale")
    pictures = torch.from_numpy(render_scenes([sample_scene(rng) for _ in range(256)], rng)).to(device)
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(32)]).std()
