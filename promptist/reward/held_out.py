"""Scorers that no training reward contains: whether a rewriter got better, or only better at its own reward.

Three kinds. Another CLIP model with its own aesthetic head; another affine head over the reward's own CLIP embedding,
which costs nothing (LAION's first head `sa_0_4_vit_l_14_linear.pth`, and `ava+logos-l14-linearMSE.pth`); PickScore
(Kirstain et al., *Pick-a-Pic*, NeurIPS 2023, equation 1), a CLIP-H tuned on people's choices between two pictures.

All score a picture against the user's prompt x, never against what was painted, and picture k against prompt k.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from promptist.errors import UserError
from promptist.reward.aesthetic import AestheticConfig, AestheticHead
from promptist.reward.clip import DTYPES, ClipConfig, ClipEncoder
from promptist.reward.digest import hash_tensors, vocabulary

_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass
class HingeConfig:
    """relevance = min(slope * cosine - offset, 0), with the slope and offset of the scorer's own CLIP."""

    slope: float
    offset: float

    def __post_init__(self) -> None:
        if not self.slope > 0:
            raise UserError(f"a held-out scorer has terms.slope {self.slope}; it must be positive")


@dataclass
class HeldOutConfig:
    """One held-out scorer, of exactly one kind; its metrics are called by its `name`.

    `clip` and `aesthetic`: another CLIP with its head, giving `NAME.cosine` and `NAME.aesthetic`; `terms`: its hinge,
    for those who derive a relevance from the cosine. `head`: file of another affine head over the embedding of
    `reward.clip`, giving `NAME.aesthetic`. `pickscore`: folder or hub name of PickScore's CLIPModel, giving
    `NAME.score`, in the precision of `reward.clip`; `processor`: folder or hub name of its tokenizer and image
    settings, where they do not lie with the model.
    """

    name: str
    clip: ClipConfig | None = None
    aesthetic: AestheticConfig | None = None
    terms: HingeConfig | None = None
    head: str | None = None
    pickscore: str | None = None
    processor: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"the held-out scorer {self.name!r} cannot be called so: metrics are named after it, so use letters, "
                "digits, _ and -, a letter first"
            )
        own = self.clip is not None or self.aesthetic is not None
        if own + (self.head is not None) + (self.pickscore is not None) != 1:
            raise UserError(
                f"the held-out scorer {self.name} must be of exactly one kind: set `clip` and `aesthetic`, or `head`, "
                "or `pickscore`"
            )
        if own and (self.clip is None or self.aesthetic is None):
            raise UserError(
                f"the held-out scorer {self.name} has {'no aesthetic' if self.clip else 'no clip'}: a head belongs to "
                "one CLIP model, so set both"
            )
        if self.terms is not None and not own:
            raise UserError(f"the held-out scorer {self.name} has terms, which only one with a clip of its own needs")
        if self.processor is not None and self.pickscore is None:
            raise UserError(f"the held-out scorer {self.name} has a processor, which only a pickscore needs")


def check_held_out(configs: Sequence[HeldOutConfig]) -> None:
    """UserError where two scorers have one name."""
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two held-out scorers are called {name}; give each a name of its own")


class Batch:
    """Pictures [N, 3, H, W] in [0, 1] and the prompts they are scored against, N at most the encoders' batch.

    Encoded once per CLIP model, however many scorers ask for it.
    """

    def __init__(self, pictures: Tensor, sources: Sequence[str]) -> None:
        self.pictures, self.sources = pictures, sources
        self._images: dict[int, Tensor] = {}
        self._texts: dict[int, Tensor] = {}

    def images(self, encoder: ClipEncoder) -> Tensor:
        """Unit embeddings [N, E] of the pictures."""
        if id(encoder) not in self._images:
            self._images[id(encoder)] = encoder.encode_images(self.pictures)
        return self._images[id(encoder)]

    def cosines(self, encoder: ClipEncoder) -> Tensor:
        """cos(text(source k), image k), [N]."""
        if id(encoder) not in self._texts:
            self._texts[id(encoder)] = encoder.encode_texts(self.sources)
        return (self.images(encoder) * self._texts[id(encoder)]).sum(-1)


class Scorer(Protocol):
    """`score`: numbers [N] by their name behind the scorer's; `tell`: what decides them, into a hashlib object."""

    def score(self, batch: Batch) -> dict[str, Tensor]: ...
    def tell(self, digest: Any) -> None: ...


class HeadScorer:
    """Another affine head over the reward's embedding."""

    def __init__(self, encoder: ClipEncoder, head: AestheticHead) -> None:
        self.encoder, self.head = encoder, head

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {"aesthetic": self.head.score(batch.images(self.encoder))}

    def tell(self, digest: Any) -> None:
        hash_tensors(digest, [("w", self.head.weight), ("b", torch.tensor(self.head.bias))])


class ClipScorer(HeadScorer):
    """Another CLIP with its own head."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {"cosine": batch.cosines(self.encoder), **super().score(batch)}

    def tell(self, digest: Any) -> None:
        encoder = self.encoder
        digest.update(repr((encoder.config.dtype, encoder.size, encoder.interpolation)).encode())
        digest.update(vocabulary(encoder.tokenizer).encode())
        hash_tensors(digest, encoder.model.state_dict().items())
        hash_tensors(digest, [("mean", encoder.mean), ("std", encoder.std)])
        super().tell(digest)


class PickScorer:
    """PickScore: exp(logit scale) * cos(text(x), image), by the model's own tokenizer and image settings."""

    def __init__(self, config: HeldOutConfig, dtype: str, device: torch.device, batch: int) -> None:
        """UserError where model or processor are missing or no CLIP."""
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        path = _path(config.pickscore)
        processor = _path(config.processor) or path
        try:
            model, info = CLIPModel.from_pretrained(path, dtype=DTYPES[dtype], output_loading_info=True)
            self.tokenizer = AutoTokenizer.from_pretrained(processor)
            self.settings = AutoImageProcessor.from_pretrained(processor)
        except Exception as error:  # OSError, ValueError, KeyError, safetensors and hub errors
            raise UserError(
                f"held_out.{config.name}: the PickScore model {path} with the processor {processor} cannot be loaded "
                f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); set pickscore (and processor) to "
                "folders, or to hub names that `promptist prefetch` has fetched"
            ) from error
        if lacking := sorted(info["missing_keys"]):  # which transformers fills with random numbers
            raise UserError(
                f"held_out.{config.name}: {path} is no CLIPModel as PickScore is: it lacks {len(lacking)} of its "
                f"weights, such as {lacking[0]}"
            )
        self.model = model.eval().requires_grad_(False).to(device)
        self.dtype, self.device, self.batch = DTYPES[dtype], device, batch
        self.context: int = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def score(self, batch: Batch) -> dict[str, Tensor]:
        count = len(batch.sources)
        sources = [*batch.sources, *[""] * (self.batch - count)]
        tokens = self.tokenizer(
            sources, padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
        ).to(self.device)
        pictures = torch.zeros(self.batch, *batch.pictures.shape[1:], dtype=torch.uint8, device=self.device)
        pictures[:count] = (batch.pictures * 255).round().to(torch.uint8)
        pixels = self.settings(list(pictures), return_tensors="pt").pixel_values.to(self.device, self.dtype)
        images = _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)
        texts = _unit(self.model.get_text_features(**tokens).pooler_output)
        score = self.model.logit_scale.float().exp() * (texts * images).sum(-1)
        return {"score": score[:count]}

    def tell(self, digest: Any) -> None:
        digest.update(vocabulary(self.tokenizer).encode())
        digest.update(repr((str(self.dtype), sorted(self.settings.to_dict().items(), key=str))).encode())
        hash_tensors(digest, self.model.state_dict().items())


class HeldOut:
    """The held-out scorers of a reward model, in the order of their configs."""

    def __init__(self, configs: Sequence[HeldOutConfig], encoder: ClipEncoder) -> None:
        """Load what is not loaded yet; `encoder` is the reward's CLIP, on whose device and in whose batches all work.

        UserError where a file is missing, is no such scorer, or a head does not fit its CLIP.
        """
        check_held_out(configs)
        encoders = [encoder]
        self.scorers = {config.name: _load(config, encoders) for config in configs}

    def score(self, batch: Batch) -> list[dict[str, float]]:
        """`{"NAME.metric": value}` for each picture."""
        scores: list[dict[str, float]] = [{} for _ in batch.sources]
        for name, scorer in self.scorers.items():
            for metric, values in scorer.score(batch).items():
                for one, value in zip(scores, values.tolist(), strict=True):
                    one[f"{name}.{metric}"] = value
        return scores

    def tell(self, digest: Any) -> None:
        """Put what decides all scores into a hashlib object."""
        for name, scorer in self.scorers.items():
            digest.update(repr(("held out", name, type(scorer).__name__)).encode())
            scorer.tell(digest)


def _load(config: HeldOutConfig, encoders: list[ClipEncoder]) -> Scorer:
    """The scorer of a config; a CLIP model that is not among `encoders` is loaded and joins them."""
    first, key = encoders[0], f"held_out.{config.name}"
    if config.pickscore is not None:
        return PickScorer(config, first.config.dtype, first.device, first.batch)
    if config.head is not None:
        head = AestheticHead.load(config.head, first.dimension, f"{key}.head")
        return HeadScorer(first, head.to(first.device))
    assert config.clip is not None and config.aesthetic is not None  # HeldOutConfig
    encoder = next((one for one in encoders if one.config == config.clip), None)
    if encoder is None:
        encoder = ClipEncoder(config.clip, first.device, first.batch, f"{key}.clip")
        encoders.append(encoder)
    head = AestheticHead.load(config.aesthetic.path, encoder.dimension, f"{key}.aesthetic.path", f"{key}.clip")
    return ClipScorer(encoder, head.to(first.device))


def _path(name: str | None) -> str | None:
    """A name of the config with its `~` read, where that is a folder; else a hub's name."""
    if name is None:
        return None
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=-1)
