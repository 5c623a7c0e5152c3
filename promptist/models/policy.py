"""The policy: a causal language model from a Hugging Face folder, and its log-probabilities of a response.

The same loader serves the SFT model, the PPO policy and the frozen reference. Dropout is 0 everywhere (Hao et
al. 2023, appendix A): with it, the probability ratio would differ from 1 before the first PPO step.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from promptist import rng
from promptist.errors import UserError
from promptist.models.tokens import length_mask, token_logprobs

# Loaded where it is used: reading a job's config (prepare, submit, status) must not take seconds.
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass
class ModelConfig:
    """A causal language model; `path` is a Hugging Face folder or hub name."""

    path: str
    init: Literal["pretrained", "scratch"] = "pretrained"
    """`scratch`: random weights from the folder's config.json and the run's seed (the demo's small GPT-2)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    trainable_blocks: int | None = None
    """Train only this many top blocks, with the final norm, head and embeddings; null trains everything."""
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.init not in ("pretrained", "scratch"):
            raise UserError(f"model.init is {self.init!r}; use pretrained or scratch")
        if self.dtype not in DTYPES:
            raise UserError(f"model.dtype is {self.dtype!r}; use one of {', '.join(DTYPES)}")
        if self.trainable_blocks is not None and self.trainable_blocks < 1:
            raise UserError("model.trainable_blocks must be at least 1; use null to train every block")


def load_policy(config: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """The trainable causal LM on the CPU, whole and in training mode, dropout 0.

    `seed` is used by `init: scratch` alone. Never call this under `deepspeed.zero.Init`: Hugging Face
    initialises weights after they have been partitioned there, which silently leaves torch's default
    initialisation.
    """
    model = _load(config, seed)
    freeze_lower_blocks(model, config.trainable_blocks)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def load_reference(config: ModelConfig) -> PreTrainedModel:
    """The frozen SFT model against which KL is measured: a copy of its own, shares no tensor with the
    policy."""
    model = _load(config, seed=0)
    return model.requires_grad_(False).eval()


def load_trunk(config: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """The network below the head of `config`'s model, a copy of its own with every block trainable (for the
    value)."""
    return load_policy(replace(config, trainable_blocks=None), seed).base_model


def forward_logprobs(
    model: nn.Module, input_ids: Tensor, prompt_lengths: Tensor, response_lengths: Tensor, width: int
) -> Tensor:
    """`log pi(y_t | x, y_<t)` of every response token, `[N, width]` in at least float32, 0 past the length.

    input_ids `[N, P + width]`: prompts left-padded to P, responses right-padded to `width`; lengths `[N]`.
    `model` is the module or its DeepSpeed engine. Logits are computed on the response's positions alone: with
    a vocabulary of 50,257 they would otherwise be the largest tensor of the step.
    """
    mask, positions, keep = layout(input_ids, prompt_lengths, response_lengths, width)
    logits = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=keep,
        use_cache=False,
    ).logits
    logprobs = token_logprobs(logits, input_ids[:, -width:])
    return logprobs.masked_fill(~length_mask(response_lengths, width), 0.0)


def layout(
    input_ids: Tensor, prompt_lengths: Tensor, response_lengths: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`(attention_mask [N, P + width] int64, position_ids [N, P + width], columns [width])` of a rollout
    batch.

    The prediction of response token t, and the value of the state before it, stand in column `P - 1 + t`.
    """
    total = input_ids.shape[1]
    prompt_width = total - width
    if prompt_width < 1 or width < 1:
        raise ValueError(
            f"a batch of {total} columns has no room for a prompt and a response of {width} tokens"
        )
    column = torch.arange(total, device=input_ids.device)[None, :]
    start = (prompt_width - prompt_lengths)[:, None]
    end = (prompt_width + response_lengths)[:, None]
    mask = (column >= start) & (column < end)
    # Columns that are padding repeat the last real position: counting on could pass the end of the position
    # table.
    positions = torch.minimum(column - start, end - start - 1).clamp_min(0)
    keep = torch.arange(prompt_width - 1, total - 1, device=input_ids.device)
    return mask.long(), positions, keep


def export_policy(
    module: PreTrainedModel, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Write weights, config and tokenizer as a Hugging Face folder (safetensors), replacing an older one as a
    whole.

    `state` is the whole CPU state dict (`consolidated_state_dict`); under ZeRO-3 the module itself holds only
    shards.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = dict(state)
    for name in tied_names(module):
        weights.pop(name, None)
    module.save_pretrained(partial, state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def tied_names(module: nn.Module) -> list[str]:
    """Names of parameters that are another name of an earlier parameter (GPT-2's head is its embedding)."""
    every = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    first = {name for name, _ in module.named_parameters()}
    return [name for name in every if name not in first]


def freeze_lower_blocks(model: PreTrainedModel, trainable_blocks: int | None) -> None:
    """Freeze all transformer blocks but the top `trainable_blocks`; embeddings, final norm and head stay
    trainable."""
    if trainable_blocks is None:
        return
    depth = int(model.config.num_hidden_layers)
    blocks = next(
        (
            child
            for child in model.base_model.children()
            if isinstance(child, nn.ModuleList) and len(child) == depth
        ),
        None,
    )
    if blocks is None:
        raise UserError(
            f"model.trainable_blocks: no blocks recognised in a {type(model).__name__}; set it to null"
        )
    if trainable_blocks > depth:
        raise UserError(f"model.trainable_blocks is {trainable_blocks}, but the model has {depth} blocks")
    for block in blocks[: depth - trainable_blocks]:
        block.requires_grad_(False)


def read_architecture(config: ModelConfig) -> Any:
    """The Hugging Face config in `config.path`, without dropout. Raises UserError where there is none."""
    check_path(config)
    from transformers import AutoConfig

    try:
        architecture = AutoConfig.from_pretrained(config.path)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise _unloadable(config, error) from error
    for name, value in architecture.to_dict().items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, (int, float)):
            setattr(architecture, name, 0.0)
    return architecture


def _load(config: ModelConfig, seed: int) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    architecture = read_architecture(config)
    options: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": DTYPES[config.dtype]}
    try:
        if config.init == "pretrained":
            model = AutoModelForCausalLM.from_pretrained(config.path, config=architecture, **options)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(rng.key(seed, "init", "policy") % 2**63)
                model = AutoModelForCausalLM.from_config(architecture, **options)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise _unloadable(config, error) from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def _unloadable(config: ModelConfig, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"model.path {config.path!r} could not be loaded as a causal language model ({reason}); "
        "give a Hugging Face folder, or prefetch the hub model"
    )


def check_path(config: ModelConfig) -> None:
    """A path that can only be a folder must exist: asking the hub for it would end in a sentence about the
    network."""
    path = Path(config.path).expanduser()
    if not path.is_dir():
        if path.is_absolute() or config.path.startswith((".", "~")) or config.path.count("/") > 1:
            raise UserError(
                f"model folder {config.path} does not exist; set model.path to a Hugging Face folder"
            )
        return
    if not (path / "config.json").is_file():
        raise UserError(
            f"model folder {config.path} has no config.json; set model.path to a Hugging Face folder"
        )
    if config.init == "pretrained" and not any((path / name).is_file() for name in WEIGHT_FILES):
        raise UserError(
            f"model folder {config.path} holds no weights; set model.init=scratch or point to a trained model"
        )
