"""The reward model: requests in, raw measurements out.

`measure` is a pure function of each request. Every UNet, VAE and CLIP call has one fixed shape, so
neighbours, slot and order change no bit on a CPU in float32 (tests/unit/test_reward_model.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from promptist.errors import UserError
from promptist.reward.aesthetic import AestheticConfig, AestheticHead
from promptist.reward.clip import ClipConfig, ClipEncoder
from promptist.reward.diffusion import DiffusionConfig, Painter
from promptist.reward.digest import hash_tensors, vocabulary
from promptist.reward.held_out import Batch, HeldOut, HeldOutConfig
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.terms import TermsConfig

PICTURES = "images"
"""Folder of kept pictures below the run folder."""
_NOT_IN_PICTURES = ("path", "device", "safety_checker")
"""Settings of a generator that do not change its pictures: the weights are hashed themselves."""


@dataclass
class RewardConfig:
    """The `reward` section. `deadline_s`: longest silence of a reward rank with work before the run stops, in
    seconds; `window`: diffusion batches in flight per reward rank and training rank.
    """

    diffusion: DiffusionConfig
    aesthetic: AestheticConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    terms: TermsConfig = field(default_factory=TermsConfig)
    deadline_s: float = 600.0
    window: int = 2

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise UserError(f"reward.deadline_s is {self.deadline_s}; it must be a positive number of seconds")
        if self.window < 1:
            raise UserError(f"reward.window is {self.window}; at least one batch must be in flight")


class MeasurementError(RuntimeError):
    """A picture that gave no usable number; `request` is the culprit."""

    def __init__(self, request: ImageRequest, reason: str) -> None:
        super().__init__(f"the picture of {request.prompt!r} {reason}")
        self.request = request


class RewardModel:
    """Stable Diffusion, CLIP, the aesthetic head and held-out scorers on one device.

    `batch`: pictures per call; `fingerprint`: hash of everything that decides a plain picture's numbers.
    """

    def __init__(
        self, config: RewardConfig, run_folder: str | Path | None = None, held_out: Sequence[HeldOutConfig] = ()
    ) -> None:
        """Load all models. Kept pictures go below `run_folder`/images; without one, requests may not ask for
        any. The numbers of `held_out` scorers are the measurements' `extra`; only evaluations have such scorers.
        """
        self.config = config
        self.batch = config.diffusion.batch
        self.run_folder = None if run_folder is None else Path(run_folder)
        self.painter = Painter(config.diffusion)
        self.clip = ClipEncoder(config.clip, self.painter.device, self.batch)
        self.head = AestheticHead.load(config.aesthetic.path, self.clip.dimension).to(self.painter.device)
        self.held_out = HeldOut(held_out, self.clip)
        self.fingerprint = self._fingerprint()

    def measure(self, requests: Sequence[ImageRequest]) -> list[Measurement]:
        """One measurement per request, in order. MeasurementError where a number is not finite."""
        measured: list[Measurement] = []
        for start in range(0, len(requests), self.batch):
            measured += self._measure_batch(requests[start : start + self.batch])
        return measured

    @torch.inference_mode()
    def _measure_batch(self, requests: Sequence[ImageRequest]) -> list[Measurement]:
        # Eight bits, as in a PNG: the picture that is kept, shown and scored again later is the picture
        # scored here.
        pixels = (self.painter.paint(requests) * 255).round()
        for request, finite in zip(requests, pixels.isfinite().flatten(1).all(1).tolist(), strict=True):
            if not finite:
                raise MeasurementError(
                    request,
                    f"holds NaN: the diffusion model overflows in {self.config.diffusion.dtype}, use another dtype",
                )
        batch = Batch(pixels / 255, [request.source for request in requests])
        cosines = batch.cosines(self.clip).tolist()
        aesthetics = self.head.score(batch.images(self.clip)).tolist()
        extras = self.held_out.score(batch)
        measured = []
        for request, cosine, aesthetic, extra, picture in zip(
            requests, cosines, aesthetics, extras, pixels, strict=True
        ):
            if not (math.isfinite(cosine) and math.isfinite(aesthetic)):
                raise MeasurementError(request, f"has cosine {cosine} and aesthetic score {aesthetic}")
            if wrong := [f"{name} {value}" for name, value in extra.items() if not math.isfinite(value)]:
                raise MeasurementError(request, f"has {', '.join(wrong)}")
            kept = self._keep(picture) if request.keep_picture else None
            cut = self.painter.cuts(request.prompt)
            measured.append(Measurement(cosine, aesthetic, extra, kept, cut))
        return measured

    def _keep(self, pixels: Tensor) -> str:
        """Write pixels [3, H, W] (whole numbers 0..255) as a PNG named by its content; its path below the run
        folder.
        """
        from PIL import Image

        if self.run_folder is None:
            raise UserError("a picture was to be kept, but the reward model has no run folder to keep it in")
        array = pixels.to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
        name = blake2b(repr(array.shape).encode() + array.tobytes(), digest_size=16).hexdigest()
        relative = Path(PICTURES, name[:2], f"{name}.png")
        path = self.run_folder / relative
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Several reward ranks may paint the same picture: each writes its own file, and the rename is
            # atomic.
            unfinished = path.with_suffix(f".{os.uname().nodename}.{os.getpid()}.tmp")
            Image.fromarray(array).save(unfinished, format="PNG")
            unfinished.replace(path)
        return relative.as_posix()

    def _fingerprint(self) -> str:
        """Hash of the loaded weights, vocabularies and the settings that change a picture's numbers."""
        pipeline, digest = self.painter.pipeline, blake2b(digest_size=16)
        settings = {k: v for k, v in asdict(self.config.diffusion).items() if k not in _NOT_IN_PICTURES}
        settings |= {"attention": self.painter.attention, "device": self.painter.device.type}
        digest.update(repr(sorted(settings.items())).encode())
        # diffusers' private entries hold lists in the order of a set, which differs from process to process.
        schedule = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
        digest.update(repr(sorted(schedule.items())).encode())
        digest.update(repr((self.config.clip.dtype, self.clip.size, self.clip.interpolation)).encode())
        digest.update(vocabulary(pipeline.tokenizer).encode())
        digest.update(vocabulary(self.clip.tokenizer).encode())
        modules = (pipeline.text_encoder, pipeline.unet, pipeline.vae, self.clip.model)
        hash_tensors(digest, (entry for module in modules for entry in module.state_dict().items()))
        hash_tensors(
            digest,
            [
                ("mean", self.clip.mean),
                ("std", self.clip.std),
                ("w", self.head.weight),
                ("b", torch.tensor(self.head.bias)),
            ],
        )
        self.held_out.tell(digest)
        return digest.hexdigest()
