"""Rewrite prompts with a trained model: what `promptist optimize`, a Python user and the evaluation call.

Decoding is that of the authors' demo: beam search, 8 beams, length penalty -1.0 (their score divides by
length ** -1, so it favours short rewrites), at most 75 new tokens. A model folder may say otherwise in
`promptist.json`: `{"decoding": {...}, "max_new_tokens": 40, "pick": "hash"}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, overload

from promptist.data.text import decode_response, effective_prompt, load_tokenizer, prompt_ids
from promptist.decoding.config import DecodingConfig
from promptist.decoding.decode import decode, pad_batch
from promptist.decoding.pick import PICK_SEED, Pick, asked_for, check_pick, keys_of, place_of
from promptist.errors import UserError

SETTINGS = "promptist.json"
BATCH = 4  # prompts decoded together; on a CPU the weights, not the rows, set the pace of so few
BUCKET = 16  # prompts are padded to a multiple of this many tokens


def _demo_decoding() -> DecodingConfig:
    return DecodingConfig(method="beam", beams=8, groups=1, length_penalty=-1.0)


@dataclass
class RewriteSettings:
    """How a model's rewrites are decoded; the contents of `promptist.json`.

    `pick`: `best` takes the response that the search ranks first; with `hash` prompt text and `pick_seed` decide which
    beam it is, or what is drawn by method `sample` (docs/remedies.md). The same prompt always gets the same rewrite.
    """

    decoding: DecodingConfig = field(default_factory=_demo_decoding)
    max_new_tokens: int = 75
    pick: Pick = "best"
    pick_seed: int = PICK_SEED

    def __post_init__(self) -> None:
        check_pick("pick", self.pick, self.decoding)
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")

    @classmethod
    def of_folder(cls, folder: Path) -> RewriteSettings:
        """Those of a model folder, the demo's where it has no `promptist.json`. Raises UserError on a
        broken file."""
        path = folder / SETTINGS
        if not path.is_file():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = _only_known(cls, values)
            if "decoding" in found:
                found["decoding"] = DecodingConfig(**_only_known(DecodingConfig, found["decoding"]))
            return cls(**found)
        except (ValueError, TypeError) as error:  # JSON's own error is a ValueError
            raise UserError(f"{path} is not a valid settings file ({error}); correct or remove it") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


class Promptist:
    """A prompt optimiser: `Promptist.from_pretrained(folder)("a red boat")` returns the rewritten prompt."""

    def __init__(
        self, model: Any, tokenizer: Any, settings: RewriteSettings | None = None, batch: int = BATCH
    ) -> None:
        """`model`: a Hugging Face causal LM, in evaluation mode on its device; `batch`: prompts decoded
        together."""
        self.model, self.tokenizer = model, tokenizer
        self.settings = settings or RewriteSettings()
        self.batch = batch

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch: int = BATCH,
        settings: RewriteSettings | None = None,
    ) -> Promptist:
        """Load an exported folder (or a Hugging Face hub name).

        `device`: by default the GPU if there is one. `settings` replace those of the folder's
        `promptist.json`. Only with float32 on a CPU does a text get the same rewrite whatever the other
        texts of the call. Raises UserError if the folder is missing or incomplete.
        """
        import torch

        from promptist.models.policy import ModelConfig, load_reference

        tokenizer = load_tokenizer(folder)
        model = load_reference(ModelConfig(path=str(folder), dtype=dtype))
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = model.to(target)
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # what torch raises for no GPU, a wrong number, a wrong name
            raise UserError(
                f"the model cannot be put on device {target!r} ({str(error).splitlines()[0]}); use cpu"
            ) from error
        return cls(model, tokenizer, settings or RewriteSettings.of_folder(Path(folder)), batch)

    @overload
    def __call__(self, prompt: str) -> str: ...

    @overload
    def __call__(self, prompt: list[str]) -> list[str]: ...

    def __call__(self, prompt: str | list[str]) -> str | list[str]:
        """The better prompt of each prompt. Where the model writes nothing, that is the prompt itself.

        Raises UserError on an empty prompt and on one too long for the model's positions.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rewrites = [effective_prompt(x, y) for x, y in zip(prompts, self.rewrites(prompts), strict=True)]
        return rewrites[0] if isinstance(prompt, str) else rewrites

    def rewrites(self, prompts: Sequence[str], progress: Callable[[int], object] | None = None) -> list[str]:
        """What the model writes for each prompt, "" where it writes nothing; `progress(n)` after every n
        more prompts."""
        settings = self.settings
        return rewrite_all(
            self.model,
            self.tokenizer,
            prompts,
            settings.decoding,
            settings.max_new_tokens,
            self.batch,
            progress,
            settings.pick,
            settings.pick_seed,
        )


def rewrite_all(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    decoding: DecodingConfig,
    max_new_tokens: int,
    batch: int = BATCH,
    progress: Callable[[int], object] | None = None,
    pick: Pick = "best",
    pick_seed: int = PICK_SEED,
) -> list[str]:
    """The rewrite of each prompt by `decoding`: the first response or, by `hash`, the one that its text decides; ""
    where the model writes nothing.

    A prompt's padded length comes from its own length, and every batch has `batch` rows: in float32 on a
    CPU a rewrite depends on its prompt alone, bit for bit. `progress(n)` is called after every n more
    prompts.
    """
    encoded = [_encode(model, tokenizer, x, max_new_tokens) for x in prompts]
    by_length: dict[int, list[int]] = {}
    for place, ids in enumerate(encoded):
        by_length.setdefault(-(-len(ids) // BUCKET) * BUCKET, []).append(place)
    eos = int(tokenizer.eos_token_id)
    device = next(model.parameters()).device
    rewrites = [""] * len(encoded)
    count = asked_for(pick, decoding)
    for length, places in by_length.items():
        for start in range(0, len(places), batch):
            chunk = places[start : start + batch]
            input_ids, mask = pad_batch([encoded[place] for place in chunk], batch, length, eos)
            found = decode(
                model,
                input_ids.to(device),
                mask.to(device),
                max_new_tokens,
                decoding,
                eos,
                eos,
                num_return=count,
                keys=keys_of(decoding, pick_seed, [prompts[place] for place in chunk]),
            )
            for i, place in enumerate(chunk):
                beam = place_of(pick, count, pick_seed, prompts[place])
                response = found.sequences[i, beam, : found.lengths[i, beam]].tolist()
                rewrites[place] = decode_response(tokenizer, response)
            if progress:
                progress(len(chunk))
    return rewrites


def _encode(model: Any, tokenizer: Any, x: str, max_new_tokens: int) -> list[int]:
    if not x.strip():
        raise UserError("a prompt is empty: there is nothing to rewrite; write what the picture should show")
    ids = prompt_ids(tokenizer, x)
    room = int(model.config.max_position_embeddings) - max_new_tokens
    if len(ids) > room:
        raise UserError(
            f"the prompt {x.strip()[:40]!r}... is {len(ids)} tokens long, and the model takes {max(room, 0)} beside "
            f"{max_new_tokens} new ones; shorten it"
        )
    return ids


def _only_known(section: type, values: Any) -> dict[str, Any]:
    """`values` if it is a map of fields of the dataclass `section`, else ValueError."""
    if not isinstance(values, dict):
        raise ValueError(f"expected a map, found {values!r}")
    unknown = set(values) - {f.name for f in fields(section)}
    if unknown:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}")
    return values
