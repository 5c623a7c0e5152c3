"""CLIP through open_clip: unit embeddings of pictures and texts, in batches of one fixed shape.

Relevance and the aesthetic score share one encoding of each picture. Pictures are preprocessed as tensors on
the device, as open_clip's own PIL transform does it (bicubic with antialiasing, the model's own mean and
deviation).
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from promptist.errors import UserError

_PRECISION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONFIG_FILE = "open_clip_config.json"


@dataclass
class ClipConfig:
    """`model`: an open_clip name (`ViT-L-14-quickgelu`) with `pretrained` a tag (`openai`) or a weights file;
    or a folder with open_clip_config.json and weights, and `pretrained` null.

    A folder with a vocabulary of its own names it in open_clip_config.json as
    `text_cfg.tokenizer_kwargs.bpe_path`, a gzipped merges file relative to the folder.
    """

    model: str = "ViT-L-14-quickgelu"
    pretrained: str | None = "openai"
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"reward.clip.dtype is {self.dtype!r}; use {' or '.join(DTYPES)}")


class ClipEncoder:
    """Unit embeddings [N, `dimension`] float32 of any number of pictures or texts, computed `batch` at a
    time.
    """

    def __init__(self, config: ClipConfig, device: torch.device | str, batch: int, key: str = "reward.clip") -> None:
        """Load model, preprocessing and tokenizer; UserError if they are missing, damaged or do not belong
        together, naming the config's `key`.
        """
        self.config = config
        self.device = torch.device(device)
        self.batch = batch
        self.dtype = DTYPES[config.dtype]
        self.model, self.tokenizer = _load(config, self.device, key)
        visual = self.model.visual
        settings = visual.preprocess_cfg
        self.size = _side(visual.image_size, key)
        self.interpolation: str = settings["interpolation"]
        self.mean = torch.tensor(settings["mean"], device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(settings["std"], device=self.device).view(1, 3, 1, 1)
        self.dimension = int(self.encode_texts([""]).shape[1])

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Square pictures [N, 3, H, H] in [0, 1] -> normalised input [N, 3, size, size], float32."""
        if pictures.shape[-1] != pictures.shape[-2]:
            raise ValueError(f"pictures of {tuple(pictures.shape)} are not square")
        pictures = pictures.to(self.device, torch.float32)
        if pictures.shape[-1] != self.size:
            pictures = functional.interpolate(
                pictures,
                size=(self.size, self.size),
                mode=self.interpolation,
                antialias=True,
                align_corners=False,
            ).clamp(0, 1)  # bicubic overshoots at edges; PIL's 8 bits clip there too
        return (pictures - self.mean) / self.std

    @torch.inference_mode()
    def encode_images(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, H, H] in [0, 1] -> unit embeddings [N, dimension] float32."""
        encoded = []
        for start in range(0, len(pictures), self.batch):
            part = self.preprocess(pictures[start : start + self.batch])
            padded = torch.zeros(self.batch, *part.shape[1:], device=self.device)
            padded[: len(part)] = part
            encoded.append(_unit(self.model.encode_image(padded.to(self.dtype)))[: len(part)])
        return torch.cat(encoded)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit embeddings [N, dimension] float32; what exceeds the context is cut, as CLIP does."""
        encoded = []
        for start in range(0, len(texts), self.batch):
            part = list(texts[start : start + self.batch])
            tokens = self.tokenizer(part + [""] * (self.batch - len(part))).to(self.device)
            encoded.append(_unit(self.model.encode_text(tokens))[: len(part)])
        return torch.cat(encoded)


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=-1)


def _side(image_size: int | Sequence[int], key: str) -> int:
    sides = {image_size} if isinstance(image_size, int) else set(image_size)
    if len(sides) != 1:
        raise UserError(f"the CLIP model takes pictures of {image_size}, which are not square; use another {key}.model")
    return int(sides.pop())


def _load(config: ClipConfig, device: torch.device, key: str) -> tuple[Any, Any]:
    import open_clip

    folder = Path(config.model).expanduser()
    if folder.is_dir():
        if config.pretrained is not None:
            raise UserError(
                f"{key}.model is the folder {config.model}, which holds its own weights; "
                f"set {key}.pretrained to null instead of {config.pretrained!r}"
            )
        name, tokenizer_options = f"local-dir:{folder}", _tokenizer_options(folder, key)
    else:
        check_activation(config, key)
        name, tokenizer_options = config.model, {}
    try:
        model = open_clip.create_model(
            name,
            pretrained=config.pretrained,
            precision=_PRECISION[config.dtype],
            device=device,
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(name, **tokenizer_options)
    except Exception as error:  # RuntimeError, ValueError, FileNotFoundError, OSError, safetensors and hub errors
        raise UserError(
            f"the CLIP model {config.model} with weights {config.pretrained} cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); set {key} to "
            "an open_clip name and tag, "
            "or to a folder with open_clip_config.json and weights"
        ) from error
    return model.eval().requires_grad_(False), tokenizer


def check_activation(config: ClipConfig, key: str = "reward.clip") -> None:
    """UserError where a built-in architecture and its weights disagree about QuickGELU, which open_clip only
    warns of.

    OpenAI's weights were trained with QuickGELU; under exact GELU the embeddings are quietly worse.
    """
    import open_clip

    architecture = open_clip.get_model_config(config.model)
    if architecture is None:
        raise UserError(
            f"{key}.model {config.model!r} is neither a folder nor an open_clip model; "
            "the paper's is ViT-L-14-quickgelu with pretrained openai"
        )
    if config.pretrained is None:
        raise UserError(
            f"{key}.model {config.model} needs weights: set {key}.pretrained to a tag such as openai, or a file"
        )
    tag = open_clip.get_pretrained_cfg(config.model, config.pretrained)
    if tag:
        trained_quick = bool(tag.get("quick_gelu", False))
    elif Path(config.pretrained).is_file():
        if not _is_torchscript(Path(config.pretrained)):
            return  # a plain state dict does not tell how it was trained
        trained_quick = True  # OpenAI's own files are the only ones in TorchScript
    else:
        raise UserError(
            f"{key}.pretrained {config.pretrained!r} is neither a file nor a tag of "
            f"{config.model}; it has "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(config.model)) or 'none'}"
        )
    if trained_quick != bool(architecture.get("quick_gelu", False)):
        base = config.model.removesuffix("-quickgelu")
        raise UserError(
            f"the weights {config.pretrained} were trained with{'' if trained_quick else 'out'} "
            "QuickGELU and "
            f"{key}.model {config.model} is with{'out' if trained_quick else ''} it; "
            f"use {base + '-quickgelu' if trained_quick else base}"
        )


def _tokenizer_options(folder: Path, key: str) -> dict[str, str]:
    """open_clip reads a relative `bpe_path` from the working directory; a model folder means its own."""
    import json

    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        bpe = config["model_cfg"]["text_cfg"].get("tokenizer_kwargs", {}).get("bpe_path")
    except FileNotFoundError:
        raise UserError(f"the CLIP folder {folder} has no {CONFIG_FILE}; set {key}.model to a complete one") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} is not an open_clip config ({error!r}); write the folder again"
        ) from error
    if bpe is None:
        return {}
    if not (folder / bpe).is_file():
        raise UserError(
            f"{folder / CONFIG_FILE} names the vocabulary {bpe}, which is not in the folder; write the folder again"
        )
    return {"bpe_path": str(folder / bpe)}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
