"""DeepSpeed engines: one per trained network, any number of them in a process, ZeRO 0 to 3.

Three things are done here that DeepSpeed leaves to its caller, because each was found wrong elsewhere:

- the gradient is that of (sum over real tokens of all ranks and micro-batches) / (their number), where
DeepSpeed averages the
  ranks' means with equal weight (`global_step`);
- decoding under ZeRO-3 gathers the weights once and takes the hooks off, instead of gathering at every layer
of every token
  (`gathered`);
- optimiser and schedule are torch's own, handed over as objects, so that what the config says is what is
applied.

torch.distributed must be up (`promptist.cluster.launch`) and hold the training ranks and no one else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from promptist.errors import UserError
from promptist.models.elastic import TAG, ZERO
from promptist.models.tokens import TokenSum

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Batch = TypeVar("Batch")

PERSISTENCE_THRESHOLD = 100_000
"""ZeRO-3 keeps parameters with fewer elements whole on every rank (DeepSpeed's default)."""


@dataclass
class OptimizerConfig:
    """Adam as the paper names it: `adam` adds the decay to the gradient (L2), `adamw` decouples it.

    Biases and LayerNorm parameters are not decayed, the gradient is clipped and the schedule is a choice:
    ours, the paper says nothing about them.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 5e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-6
    weight_decay: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: constant, or down to 0 at the last step along a line or a half cosine."""
    warmup_steps: int = 0
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 clips nothing."""

    def __post_init__(self) -> None:
        if self.name not in ("adam", "adamw"):
            raise UserError(f"optimizer.name is {self.name!r}; use adam or adamw")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise UserError(f"optimizer.schedule is {self.schedule!r}; use constant, linear or cosine")
        if not self.lr > 0:
            raise UserError(f"optimizer.lr is {self.lr}; it must be above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas is {list(self.betas)}; give two numbers in [0, 1)")
        if self.eps <= 0 or self.weight_decay < 0 or self.warmup_steps < 0 or self.grad_clip < 0:
            raise UserError("optimizer: eps must be above 0; weight_decay, warmup_steps and grad_clip at least 0")


@dataclass
class ZeroConfig:
    """How a network is spread over the training ranks."""

    stage: int = 1
    """0 copies everything; 1 shards the optimiser, 2 also gradients, 3 also weights."""
    micro_batch: int = 8
    """Rows of one forward pass on one rank. Changes speed and memory, not the result (beyond rounding)."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in host memory."""

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise UserError(f"zero.stage is {self.stage}; use 0, 1, 2 or 3")
        if self.micro_batch < 1:
            raise UserError(f"zero.micro_batch is {self.micro_batch}; it must be at least 1")
        if self.offload_optimizer and self.stage == 0:
            raise UserError("zero.offload_optimizer needs zero.stage 1, 2 or 3")


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did. `loss` and `stats` are global means per token; `lr` is the rate this step
    used."""

    loss: float
    stats: dict[str, float]
    count: int
    """Real tokens of all ranks."""
    grad_norm: float
    """Global 2-norm before clipping."""
    lr: float


def build_engine(
    module: nn.Module,
    optimizer: OptimizerConfig,
    zero: ZeroConfig,
    total_steps: int,
    gradient_accumulation: int,
) -> DeepSpeedEngine:
    """Wrap a whole CPU module. Its parameters' dtype (float32 or bfloat16) is the training precision.

    `total_steps`: optimiser steps of the run (the schedule's length); `gradient_accumulation`: micro-batches
    per step and rank.
    """
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not dist.is_initialized():
        raise RuntimeError("build_engine needs torch.distributed; call promptist.cluster.launch first")
    client = build_optimizer(module, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(client, lambda step: lr_factor(optimizer, step, total_steps))
    numel = sum(parameter.numel() for parameter in module.parameters())
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=client,
        lr_scheduler=schedule,
        config=_deepspeed_config(module, optimizer, zero, gradient_accumulation, numel),
    )
    return engine


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """torch's Adam or AdamW over the trainable parameters: matrices and embeddings decayed, vectors not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    beta1, beta2 = config.betas
    return kind([group for group in groups if group["params"]], lr=config.lr, betas=(beta1, beta2), eps=config.eps)


def lr_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Multiplier of the learning rate for the step with index `step` (0-based) of `total_steps`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = min((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), 1.0)
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def global_step(
    engine: DeepSpeedEngine,
    micro_batches: Sequence[Batch],
    loss: Callable[[Batch], TokenSum],
    local_count: int,
    step: int,
) -> StepResult:
    """One optimiser step on the mean of `loss` over the real tokens of all ranks and micro-batches
    (collective).

    `loss(micro_batch)` returns sums; `local_count` is the number of real tokens in this rank's
    `micro_batches`, needed before the first backward pass. Every rank brings exactly the engine's number of
    micro-batches (an empty mask is allowed). Raises UserError, naming `step`, on a loss or gradient norm that
    is not finite: on every rank, before anything is saved.
    """
    expected = engine.gradient_accumulation_steps()
    if len(micro_batches) != expected:
        raise ValueError(f"{len(micro_batches)} micro-batches for an engine that accumulates {expected}")
    count = int(sum_over_ranks(torch.tensor([local_count]), engine).item())
    if count < 1:
        raise ValueError(f"step {step}: no real token on any rank")
    # DeepSpeed divides the ranks' summed gradients by their number; scale_wrt_gas=False stops it from
    # dividing by the micro-batches.
    scale = dist.get_world_size() / count
    lr = float(engine.get_lr()[0])
    names: list[str] = []
    sums = torch.zeros(0, dtype=torch.float64)
    seen = 0
    norm = math.nan
    for index, micro_batch in enumerate(micro_batches):
        part = loss(micro_batch)
        names = ["loss", *part.stats]
        row = torch.stack([part.total.detach(), *part.stats.values()]).double().cpu()
        sums = row if index == 0 else sums + row
        seen += int(part.count)
        engine.backward(part.total * scale, scale_wrt_gas=False)
        if index == expected - 1:
            if seen != local_count:
                raise ValueError(f"step {step}: {seen} real tokens in the micro-batches, {local_count} announced")
            sums = sum_over_ranks(sums, engine) / count
            _check_finite(step, "loss", float(sums[0]))
            norm = _plain_grad_norm(engine)
        engine.step()
    if math.isnan(norm):
        norm = float(engine.get_global_grad_norm())
    # DeepSpeed marks a norm it could not compute by -1 or inf and skips the update.
    _check_finite(step, "gradient norm", norm if norm >= 0 else math.nan)
    means = dict(zip(names, sums.tolist(), strict=True))
    return StepResult(loss=means.pop("loss"), stats=means, count=count, grad_norm=norm, lr=lr)


def sum_over_ranks(total: Tensor, engine: DeepSpeedEngine) -> Tensor:
    """`total` (any shape, CPU) added up over the training ranks (collective)."""
    moved = total.to(engine.device, copy=True)
    dist.all_reduce(moved)
    return moved.cpu()


@contextmanager
def gathered(engine: DeepSpeedEngine) -> Iterator[Any]:
    """The bare module, whole and in eval mode, for decoding under `torch.no_grad()` (collective under
    ZeRO-3).

    ZeRO-3: one gather of all parameters, its per-layer hooks removed meanwhile, both restored on exit;
    nothing that is changed in the weights survives. Other stages hold whole weights already.
    """
    module = engine.module
    module.eval()
    try:
        if engine.zero_optimization_stage() < 3:
            yield module
            return
        import deepspeed

        offload = engine.optimizer.parameter_offload
        offload.partition_all_parameters()
        with deepspeed.zero.GatheredParameters(list(module.parameters())):
            _remove_zero3_hooks(offload)
            try:
                yield module
            finally:
                _add_zero3_hooks(offload)
    finally:
        module.train()


def consolidated_state_dict(engine: DeepSpeedEngine) -> dict[str, Tensor] | None:
    """Whole weights as CPU tensors on rank 0, None on the others (collective)."""
    with gathered(engine) as module, torch.no_grad():
        if dist.get_rank() != 0:
            return None
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def save_engine(engine: DeepSpeedEngine, folder: str | Path) -> None:
    """Write weights, optimiser and schedule shards into `folder` (collective). The caller commits the
    checkpoint."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)


def load_engine(engine: DeepSpeedEngine, folder: str | Path) -> None:
    """Restore what `save_engine` wrote at the same number of training ranks, or a universal form of it at any
    (collective). The ZeRO stage is that of the saved engine."""
    # DeepSpeed meets a missing folder with a bare assertion.
    saved = Path(folder) / TAG
    if not saved.is_dir():
        raise UserError(f"checkpoint folder {folder} holds no engine state; remove it to resume from an older one")
    # Asked for at each load, not in the engine's config: checkpoints that this engine saves are ordinary ones.
    universal = (saved / ZERO).is_dir()
    engine._config.load_universal_checkpoint = universal
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    engine.load_checkpoint(str(folder), tag=TAG)
    engine._config.load_universal_checkpoint = False
    if universal and engine.zero_optimization_stage() == 3:
        _part_groups(engine.optimizer.optimizer, decays)


def _part_groups(optimizer: torch.optim.Optimizer, decays: Sequence[float]) -> None:
    """Undo what DeepSpeed (0.19.8) does to an optimiser that it fills from a ZeRO-3 universal checkpoint.

    All groups get the options of the first, so that biases would be decayed, too; and all share one step counter,
    which each group then counts on: Adam's bias correction would run ahead.
    """
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


def _deepspeed_config(
    module: nn.Module, optimizer: OptimizerConfig, zero: ZeroConfig, gradient_accumulation: int, numel: int
) -> dict[str, Any]:
    dtype = next(module.parameters()).dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"engines train in float32 or bfloat16, not {dtype}; set model.dtype")
    stage: dict[str, Any] = {
        "stage": zero.stage,
        # No larger than the model: the buckets are allocated whole.
        "reduce_bucket_size": min(numel, 500_000_000),
        # Overlap would let the order of reductions, and with it the last bits, vary from run to run.
        "overlap_comm": False,
        "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD,
    }
    if zero.offload_optimizer:
        stage["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": zero.micro_batch,
        "gradient_accumulation_steps": gradient_accumulation,
        "gradient_clipping": optimizer.grad_clip,
        "zero_optimization": stage,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": None,
    }


def _plain_grad_norm(engine: DeepSpeedEngine) -> float:
    """The gradient norm where DeepSpeed keeps none (stage 0 in float32, gradients already reduced), else
    NaN."""
    if engine.zero_optimization_stage() > 0 or engine.bfloat16_enabled():
        return math.nan
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _check_finite(step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"step {step}: the {what} is {value}; training has diverged and nothing was saved, "
            "lower optimizer.lr (or set optimizer.grad_clip) and start again from the last checkpoint"
        )


def _remove_zero3_hooks(offload: Any) -> None:
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []


def _add_zero3_hooks(offload: Any) -> None:
    def start_of_forward(*_: Any) -> None:
        offload.get_param_coordinator().reset_step()

    offload.fwd_pre_hook = offload.module.register_forward_pre_hook(start_of_forward)
    offload._register_deepspeed_module(offload.module)
