"""Prompts to pictures: a Stable Diffusion pipeline driven in batches of one fixed shape.

The denoising loop is the pipeline's own, written out: prompts are tokenised once (so that cut prompts can be
counted), every batch is padded to `batch`, and the noise of each picture is a pure function of its request. A
picture therefore depends neither on its neighbours nor on its slot; on a CPU in float32 this holds bit by
bit. Classifier-free guidance (Ho & Salimans 2022) runs both halves as one UNet batch; the solver is
DPM-Solver++ 2M (Lu et al. 2022).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from promptist import rng
from promptist.errors import UserError
from promptist.reward.messages import ImageRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_XFORMERS, _SDPA = "XFormersAttnProcessor", "AttnProcessor2_0"


@dataclass
class DiffusionConfig:
    """`path`: a diffusers pipeline folder or hub name. Defaults: Hao et al. 2023, section 3.1 (20 steps of
    DPM-Solver, guidance 7.5 is the pipeline's default in the released code), 512 px, half precision.

    `size` in pixels, pictures are square; `batch` pictures per UNet call (twice that with guidance).
    """

    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    device: str = "cuda"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if there is one."""
    scheduler: Literal["dpmsolver++", "ddim"] = "dpmsolver++"
    steps: int = 20
    guidance: float = 7.5
    """Above 1 it steers towards the prompt; 1 or less paints without guidance, at half the cost."""
    size: int = 512
    batch: int = 8
    attention: Literal["xformers", "sdpa", "auto"] = "xformers"
    """`auto`: xformers on a GPU where it is installed, else torch's own attention."""
    safety_checker: Literal["none"] = "none"
    """Pictures are scored as they are, as in the released code; a black picture in place of one would be
    rewarded.
    """

    def __post_init__(self) -> None:
        for name, allowed in (
            ("dtype", tuple(DTYPES)),
            ("scheduler", ("dpmsolver++", "ddim")),
            ("attention", ("xformers", "sdpa", "auto")),
            ("safety_checker", ("none",)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"reward.diffusion.{name} is {getattr(self, name)!r}; use {' or '.join(allowed)}"
                )
        for name in ("steps", "size", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"reward.diffusion.{name} is {getattr(self, name)}; it must be at least 1")


def resolve_device(name: str) -> torch.device:
    """The torch device that a config names; UserError where this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"reward.diffusion.device is {name!r}; use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"reward.diffusion.device is {name}, but this process sees {torch.cuda.device_count()} GPUs; "
            "ask the scheduler for one per reward rank, or set it to cpu"
        )
    return device


class Painter:
    """Paints requests."""

    def __init__(self, config: DiffusionConfig) -> None:
        """Load the pipeline; UserError if it is missing, damaged, or cannot run as configured."""
        self.config = config
        self.device = resolve_device(config.device)
        self.pipeline = _load(config).to(self.device)
        self.attention = set_attention(self.pipeline.unet, config.attention, self.device)
        log.info("painting on %s in %s, attention processor %s", self.device, config.dtype, self.attention)
        factor = self.pipeline.vae_scale_factor
        if config.size % factor:
            raise UserError(
                f"reward.diffusion.size is {config.size} px, but the VAE of {config.path} works in "
                f"blocks of {factor}; "
                f"use a multiple of {factor}"
            )
        side = config.size // factor
        self.latent_shape = (self.pipeline.unet.config.in_channels, side, side)
        self._blank = self._embed([""] * config.batch)

    def noise(self, request: ImageRequest) -> Tensor:
        """The starting noise H(namespace, source, k) of a request: float32 `latent_shape` on the CPU."""
        return rng.normal(self.latent_shape, "image-noise", request.namespace, request.source, request.k)

    @torch.inference_mode()
    def paint(self, requests: Sequence[ImageRequest]) -> Tensor:
        """Pictures [N, 3, size, size] of N <= `batch` requests, float32 in [0, 1] on the painter's device."""
        batch = self.config.batch
        if not 0 < len(requests) <= batch:
            raise ValueError(f"{len(requests)} requests do not make one batch of at most {batch}")
        prompts = [request.prompt for request in requests]
        noise = torch.zeros(batch, *self.latent_shape)
        for slot, request in enumerate(requests):
            noise[slot] = self.noise(request)
        embedding = self._embed(prompts + [""] * (batch - len(requests)))
        latents = self._denoise(embedding, noise.to(self.device, embedding.dtype))
        vae = self.pipeline.vae
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return (pixels[: len(requests)] / 2 + 0.5).clamp(0, 1).float()

    def _denoise(self, embedding: Tensor, latents: Tensor) -> Tensor:
        """embedding [B, T, D], latents [B, C, h, w] at full noise -> clean latents."""
        scheduler, unet, guidance = self.pipeline.scheduler, self.pipeline.unet, self.config.guidance
        guided = guidance > 1
        condition = torch.cat([self._blank, embedding]) if guided else embedding
        scheduler.set_timesteps(self.config.steps, device=self.device)
        latents = latents * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            stacked = torch.cat([latents, latents]) if guided else latents
            stacked = scheduler.scale_model_input(stacked, step)
            predicted = unet(stacked, step, encoder_hidden_states=condition, return_dict=False)[0]
            if guided:
                blank, prompted = predicted.chunk(2)
                predicted = blank + guidance * (prompted - blank)
            latents = scheduler.step(predicted, step, latents, return_dict=False)[0]
        return latents

    @torch.inference_mode()
    def _embed(self, prompts: list[str]) -> Tensor:
        """Text embedding [B, T, D], cut and padded to the tokenizer's length as the pipeline does."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = (
            tokens.attention_mask.to(self.device)
            if getattr(encoder.config, "use_attention_mask", False)
            else None
        )
        return encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt is longer than the text encoder reads."""
        tokenizer = self.pipeline.tokenizer
        return len(tokenizer(prompt, verbose=False).input_ids) > tokenizer.model_max_length


def set_attention(unet: Any, wanted: str, device: torch.device) -> str:
    """Switch every attention layer of `unet` to `wanted` and return the processor class that now runs.

    diffusers' newer `set_attention_backend` silently changes nothing on Stable Diffusion 1.x UNets, hence the
    processors are set and then looked at. UserError if xformers is asked for and cannot run here.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    expected = _SDPA
    if wanted == "xformers" or (wanted == "auto" and device.type == "cuda" and _has_xformers()):
        expected = _XFORMERS
        try:
            # On a CUDA device this also runs a small attention, so that a wheel for another torch is found
            # out here.
            unet.enable_xformers_memory_efficient_attention()
        except Exception as error:  # ModuleNotFoundError, ValueError, or whatever the CUDA kernel raises
            raise UserError(
                f"reward.diffusion.attention is {wanted} but xformers cannot run on {device} ({error}); "
                "install promptist[xformers] and use a GPU, or set it to sdpa"
            ) from error
    else:
        unet.set_attn_processor(AttnProcessor2_0())
    running = {type(processor).__name__ for processor in unet.attn_processors.values()}
    if running != {expected}:
        raise UserError(
            f"reward.diffusion.attention {wanted} gives {', '.join(sorted(running))} instead of "
            f"{expected} in this UNet; use sdpa"
        )
    return expected


def _has_xformers() -> bool:
    from diffusers.utils import is_xformers_available

    return bool(is_xformers_available())


def _load(config: DiffusionConfig) -> StableDiffusionPipeline:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
    from diffusers.utils import is_accelerate_available

    if config.path.startswith((".", "/", "~")) and not Path(config.path).expanduser().is_dir():
        raise UserError(
            f"the diffusion pipeline folder {config.path} does not exist; set reward.diffusion.path"
        )
    # Given by a relative path like configs/world/sd, a folder wins over a hub name, as in diffusers.
    source = str(Path(config.path).expanduser()) if Path(config.path).expanduser().is_dir() else config.path
    try:
        with _quiet():
            pipeline = StableDiffusionPipeline.from_pretrained(
                source,
                dtype=DTYPES[config.dtype],
                safety_checker=None,
                requires_safety_checker=False,
                low_cpu_mem_usage=is_accelerate_available(),  # else a warning at every start
            )
    except Exception as error:  # what a bad folder raises varies: OSError, ValueError, KeyError ...
        raise UserError(
            f"the diffusion pipeline {config.path} cannot be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); "
            "set reward.diffusion.path to a StableDiffusionPipeline folder, or fetch it with "
            "`promptist prefetch`"
        ) from error
    if config.scheduler == "dpmsolver++":
        # Stable Diffusion was trained with steps_offset 1; with 0 the last step misses the cleanest noise
        # level.
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
            pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, steps_offset=1
        )
    else:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, steps_offset=1
        )
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.eval().requires_grad_(False)
    return pipeline


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers' and transformers' progress bars per weight file say nothing in the log of a batch job."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    bars = (diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled())
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars[0]:
            diffusers_logging.enable_progress_bar()
        if bars[1]:
            transformers_logging.enable_progress_bar()
