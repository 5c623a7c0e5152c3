"""Hashes of loaded models. The weights as loaded rather than their files: a folder, a hub name and a moved copy are the
same model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def vocabulary(tokenizer: Any) -> str:
    """A text that differs where two tokenizers do."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps Hugging Face tokenizers
    if hasattr(inner, "backend_tokenizer"):
        return str(inner.backend_tokenizer.to_str()) + str(inner.model_max_length)
    if hasattr(inner, "bpe_ranks"):
        return repr((sorted(inner.bpe_ranks.items()), inner.context_length))
    return repr(sorted(inner.get_vocab().items()))


def hash_tensors(digest: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Put names, shapes, types and bytes of `tensors` into a hashlib object."""
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
