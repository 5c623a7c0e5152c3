"""One training loop for every part of the miniature world: seeded by step, stoppable, resumed where it stopped."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

SAVE_SECONDS = 60.0


def atomic_save(state: Any, path: Path) -> None:
    """Writes a torch file so that a kill leaves the old one or the new one, never half of it."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine decay to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Ema:
    """Exponential moving average of a module's parameters, with the usual warm-up of the decay."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone().float() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value.float(), 1 - decay)
            else:
                self.shadow[name].copy_(value)


def train(
    name: str,
    folder: Path,
    modules: dict[str, torch.nn.Module],
    loss_of_step: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    peak_lr: float,
    warmup: int = 100,
    weight_decay: float = 0.01,
    grad_clip: float = 1.0,
    ema_decay: float | None = None,
    on_report: Callable[[int], None] | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """Trains ``modules`` jointly for ``steps`` steps and returns their (averaged, if ``ema_decay``) weights.

    ``loss_of_step(step)`` draws its batch from the step number alone, so an interrupted run repeats nothing and skips
    nothing. State lies in ``folder/name.pt``; a finished stage returns at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    averages = {key: Ema(module, ema_decay) for key, module in modules.items()} if ema_decay else {}
    start = 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        for key, average in averages.items():
            average.shadow = state["averages"][key]
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    def weights() -> dict[str, dict[str, torch.Tensor]]:
        return {
            key: averages[key].shadow if key in averages else module.state_dict() for key, module in modules.items()
        }

    def save(step: int) -> None:
        state = {
            "step": step,
            "modules": {key: module.state_dict() for key, module in modules.items()},
            "averages": {key: average.shadow for key, average in averages.items()},
            "optimizer": optimizer.state_dict(),
        }
        atomic_save(state, path)

    if start >= steps:
        return weights()
    stop = {"asked": False}

    def ask_to_stop(*_: Any) -> None:
        stop["asked"] = True

    previous = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    saved_at = time.monotonic()
    smooth: dict[str, float] = {}
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=5.0)
    for step in bar:
        rate = learning_rate(step, steps, peak_lr, warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss, report = loss_of_step(step)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"{name}: the loss is {loss.item()} at step {step}; the last good state is in {path}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
        optimizer.step()
        for key, average in averages.items():
            average.update(modules[key], step)
        for key, value in {"loss": loss.item(), **report}.items():
            smooth[key] = 0.95 * smooth.get(key, value) + 0.05 * value
        if step % 10 == 0:
            bar.set_postfix({key: f"{value:.4g}" for key, value in smooth.items()}, refresh=False)
        if stop["asked"] or time.monotonic() - saved_at > SAVE_SECONDS or step == steps - 1:
            save(step + 1)
            saved_at = time.monotonic()
            if on_report is not None:
                on_report(step + 1)
        if stop["asked"]:
            bar.close()
            raise SystemExit(f"{name}: stopped at step {step + 1} of {steps}; the same command goes on from here")
    for number, handler in previous.items():
        signal.signal(number, handler)
    return weights()
