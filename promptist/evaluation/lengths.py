"""Lengths of prompts in tokens: those of the language model, and those of the diffusion model's text encoder with the
number that it reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptist.errors import UserError

GPT2, CLIP = "gpt2_tokens", "clip_tokens"


@dataclass(frozen=True)
class Ruler:
    """A tokenizer as a measure of length, without the tokenizer: what a reader of the lengths must know.

    `metric`: GPT2 or CLIP; `source`: where the tokenizer lies; `fingerprint`: hash of its content; `limit`: how many
    tokens the model reads (77 for CLIP, its start and end tokens included, as in the lengths), None where it says none.
    """

    metric: str
    source: str
    fingerprint: str
    limit: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Counter = Callable[[Sequence[str]], list[int]]


def language_ruler(folder: str | Path) -> tuple[Ruler, Counter]:
    """Lengths by the tokenizer of a language model's folder (or hub name), as text alone: no start, no end."""
    from promptist.data.text import load_tokenizer

    tokenizer = load_tokenizer(folder)

    def count(texts: Sequence[str]) -> list[int]:
        found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    return Ruler(GPT2, str(folder), _fingerprint(tokenizer)), count


def encoder_ruler(pipeline: str) -> tuple[Ruler, Counter]:
    """Lengths by the tokenizer of a diffusers pipeline (folder or hub name), start and end tokens included, as its text
    encoder counts them. UserError where the pipeline has none."""
    from transformers import AutoTokenizer

    folder = Path(pipeline).expanduser()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if folder.is_dir() else pipeline, subfolder="tokenizer")
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"no tokenizer could be loaded from the diffusion pipeline {pipeline} ({reason}); set reward.diffusion.path"
        ) from error

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]

    return Ruler(CLIP, pipeline, _fingerprint(tokenizer), int(tokenizer.model_max_length)), count


def _fingerprint(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        content = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        # Whoever counted last with the tokenizer left its padding and truncation in there.
        state = json.loads(inner.to_str())
        content = json.dumps({k: v for k, v in state.items() if k not in ("padding", "truncation")}, sort_keys=True)
    return hashlib.blake2b(f"{tokenizer.model_max_length} {content}".encode(), digest_size=16).hexdigest()
