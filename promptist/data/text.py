"""How a prompt x and its rewrite y become tokens and come back.

`x Rephrase: y<eos>` with x and y tokenised apart, so that the same x gives the same tokens in training and in
use, whatever follows it. Padding is EOS; masks come from lengths, never from comparing tokens with the pad.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptist.errors import UserError

SEPARATOR = " Rephrase:"


def load_tokenizer(path: str | Path) -> Any:
    """The fast tokenizer of a Hugging Face model folder (or hub name), pad token = EOS.

    Raises UserError if the folder is missing, holds no tokenizer, or the tokenizer has no EOS.
    """
    from transformers import AutoTokenizer

    name = str(path)
    # A hub name is `gpt2` or `owner/gpt2`; anything else can only be a folder, and a missing one should be
    # named so.
    if not Path(name).exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise UserError(f"the model folder {name} does not exist: correct `model.path`")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"no tokenizer could be loaded from {name}: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"the tokenizer in {name} is not a fast one: save it with a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer in {name} has no eos_token: rewrites could not end; set one and save it again"
        )
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: Any, x: str) -> list[int]:
    """Token ids of `x.strip() + " Rephrase:"`."""
    return _encode(tokenizer, x.strip() + SEPARATOR)


def response_ids(tokenizer: Any, y: str) -> list[int]:
    """Token ids of `" " + y.strip()`, then EOS. An empty y is EOS alone."""
    y = y.strip()
    return (_encode(tokenizer, " " + y) if y else []) + [int(tokenizer.eos_token_id)]


def decode_response(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of response ids alone: up to the first EOS, stripped."""
    ids = [int(i) for i in ids]
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    # Cleaning up spaces would not be undone by `response_ids`: "a , b" must stay "a , b".
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()


def effective_prompt(x: str, y: str) -> str:
    """What is painted for the rewrite y of x: y, or x itself where y is empty ("leave the prompt as it
    is")."""
    return y.strip() or x.strip()


def _encode(tokenizer: Any, text: str) -> list[int]:
    # split_special_tokens: a user who types "<|endoftext|>" gets those characters, not the end of the text.
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return [int(i) for i in encoded["input_ids"]]
