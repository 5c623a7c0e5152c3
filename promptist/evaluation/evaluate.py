"""Rewrite, paint and measure every (method, replica, prompt) of an evaluation, as far as it has not been done.

Prompts are dealt to the shards in turn, those of a shard to its ranks. Noise depends on (x, k) alone, batches are
padded to one fixed shape, rewrites do not depend on their batch: the numbers of shards, ranks and attempts change no
number of the table (`measures.py`).
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from promptist.cluster.metrics import progress_line
from promptist.cluster.preemption import Preemption
from promptist.cluster.roles import World
from promptist.errors import UserError
from promptist.evaluation.lengths import Counter
from promptist.evaluation.measures import text_of
from promptist.evaluation.plan import Entry, Plan
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.store import ImageKey, Store
from promptist.evaluation.timings import PICTURE, RATIO, REWRITE, Clock
from promptist.reward.messages import ImageRequest, Measurement

log = logging.getLogger(__name__)

NAMESPACE = "eval"
REWRITE_CHUNK = 32

T = TypeVar("T")
Painter = Callable[[list[ImageRequest]], list[Measurement]]
Rewriter = Callable[[Path, list[str]], tuple[list[str], list[float]]]
Ratios = Callable[[Path, Path, Mapping[str, str]], dict[str, float]]


@dataclass(frozen=True)
class Tools:
    """What does the work, and loads its models when first asked.

    `rewrite(folder, prompts)`: one rewrite per prompt by the model in a folder, and the seconds each took;
    `log_ratios(folder, reference_folder, {x: y})`: as `kl.log_ratios`; `count`: by the fingerprint of a ruler, texts to
    lengths; `load_painter()`: the measuring function and the fingerprint of everything its numbers depend on.
    """

    rewrite: Rewriter
    log_ratios: Ratios
    count: Mapping[str, Counter]
    load_painter: Callable[[], tuple[Painter, str]]


class Stopped(Exception):
    """A signal asked to stop; what is finished is in the store."""


@dataclass(frozen=True)
class _Desk:
    """A rank's share of the work and where it is recorded."""

    plan: Plan
    mine: Sequence[EvalPrompt]
    folder: Path
    store: Store
    clock: Clock
    stop: Preemption

    def check(self) -> None:
        if self.stop.requested is not None:
            raise Stopped


def work(
    plan: Plan, prompts: Sequence[EvalPrompt], folder: Path, store: Store, world: World, tools: Tools, clock: Clock,
    stop: Preemption,
) -> str | None:  # fmt: skip
    """Do what is missing of `prompts` (this shard's part of the plan's) in the run folder `folder`: each rank its own
    share.

    The painter is loaded after the rewrites, so that the policies and the diffusion model need not fit into memory
    together. Returns its fingerprint, None where a signal stopped any rank. Collective: afterwards rank 0's store holds
    the work of all.
    """
    desk, painter = _Desk(plan, prompts[world.rank :: world.size], folder, store, clock, stop), ""
    try:
        for entry in plan.entries:
            if entry.model:
                _rewrite_missing(desk, entry, tools)
        _count_missing(desk, tools)
        desk.check()
        paint, painter = tools.load_painter()
        _paint_missing(desk, paint, painter)
        stopped = False
    except Stopped:
        log.info("eval | stopping on %s: what is finished is kept", stop.requested)
        stopped = True
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {folder} is full: what is finished is kept, free some space and run the same command again"
        ) from error
    parts = _gather(world, (stopped, store.added))
    for _, lines in parts[1:]:
        store.merge(lines)
    return world.share_all(None if any(stopped for stopped, _ in parts) else painter)


def unfinished(plan: Plan, prompts: Sequence[EvalPrompt], store: Store, painter: str, folder: Path) -> list[EvalPrompt]:
    """Those of `prompts` of which a rewrite, a log-ratio, a length, a measurement or a kept picture is missing."""

    def is_whole(prompt: EvalPrompt) -> bool:
        entries = [entry for entry in plan.entries if plan.applies(entry, prompt.x)]
        if any(text_of(plan, entry, prompt, store) is None for entry in entries):
            return False
        if any(e.reference and (e.model, e.reference, prompt.x) not in store.ratios for e in entries):
            return False
        painted = _painted(plan, prompt, store)
        if any((ruler.fingerprint, y) not in store.lengths for ruler in plan.rulers for y in painted):
            return False
        return not _missing_images(plan, [prompt], store, painter, folder)

    return [prompt for prompt in prompts if not is_whole(prompt)]


def _painted(plan: Plan, prompt: EvalPrompt, store: Store) -> dict[str, str]:
    """What is painted for a prompt -> the first method that paints it."""
    painted: dict[str, str] = {}
    for entry in plan.entries:
        y = text_of(plan, entry, prompt, store)
        if y is not None:
            painted.setdefault(y or prompt.x, entry.method)
    return painted


def _rewrite_missing(desk: _Desk, entry: Entry, tools: Tools) -> None:
    """Rewrites of one model, and their log-ratios while it is in memory."""
    assert entry.folder is not None  # only the reducer knows none
    store, name = desk.store, entry.method + (f" {entry.replica}" if entry.replica else "")
    missing = [p.x for p in desk.mine if (entry.model, p.x) not in store.rewrites]
    progress = Progress(f"rewriting by {name}", "prompts", len(missing))
    for chunk in _chunks(missing, REWRITE_CHUNK):
        desk.check()
        found, seconds = tools.rewrite(entry.folder, chunk)
        store.add_rewrites(entry.model, {x: y.strip() for x, y in zip(chunk, found, strict=True)})
        desk.clock.add(REWRITE, entry.method, seconds)
        progress.advance(len(chunk))
    if not entry.reference:
        return
    assert entry.reference_folder is not None
    missing = [p.x for p in desk.mine if (entry.model, entry.reference, p.x) not in store.ratios]
    progress = Progress(f"log-ratios of {name}", "prompts", len(missing))
    for chunk in _chunks(missing, REWRITE_CHUNK):
        desk.check()
        began = time.perf_counter()
        rewrites = {x: store.rewrites[entry.model, x] for x in chunk}
        ratios = tools.log_ratios(entry.folder, entry.reference_folder, rewrites)
        store.add_ratios(entry.model, entry.reference, ratios)
        desk.clock.add(RATIO, entry.method, [(time.perf_counter() - began) / len(chunk)] * len(chunk))
        progress.advance(len(chunk))


def _count_missing(desk: _Desk, tools: Tools) -> None:
    texts = list(dict.fromkeys(y for prompt in desk.mine for y in _painted(desk.plan, prompt, desk.store)))
    for ruler in desk.plan.rulers:
        missing = [text for text in texts if (ruler.fingerprint, text) not in desk.store.lengths]
        if missing:
            counts = tools.count[ruler.fingerprint](missing)
            desk.store.add_lengths(ruler.fingerprint, dict(zip(missing, counts, strict=True)))


def _missing_images(
    plan: Plan, prompts: Sequence[EvalPrompt], store: Store, painter: str, folder: Path
) -> dict[ImageKey, tuple[ImageRequest, str]]:
    """Pictures to paint, each with the method that it is painted for."""
    wanted: dict[ImageKey, tuple[ImageRequest, str]] = {}
    for prompt in prompts:
        for y, method in _painted(plan, prompt, store).items():
            for k in range(plan.images):
                key, keep = (painter, y, prompt.x, k), plan.keeps(y, prompt.x, k)
                if not _finished(store, key, keep, folder):
                    wanted[key] = (ImageRequest(y, prompt.x, NAMESPACE, k, keep_picture=keep), method)
    return wanted


def _paint_missing(desk: _Desk, paint: Painter, painter: str) -> None:
    wanted = _missing_images(desk.plan, desk.mine, desk.store, painter, desk.folder)
    progress = Progress("painting", "images", len(wanted))
    # One diffusion batch at a time: what a killed attempt loses is at most that, and what a stop waits for.
    for chunk in _chunks(list(wanted), desk.plan.batch):
        desk.check()
        began = time.perf_counter()
        measured = paint([wanted[key][0] for key in chunk])
        each = (time.perf_counter() - began) / len(chunk)
        desk.store.add_images(dict(zip(chunk, measured, strict=True)))
        methods = [wanted[key][1] for key in chunk]
        for method in dict.fromkeys(methods):
            desk.clock.add(PICTURE, method, [each] * methods.count(method))
        progress.advance(len(chunk))


def _finished(store: Store, key: ImageKey, keep: bool, folder: Path) -> bool:
    done = store.images.get(key)
    return done is not None and (not keep or (done.picture is not None and (folder / done.picture).is_file()))


def _gather(world: World, part: T) -> list[T]:
    """The parts of all ranks on rank 0, this rank's own elsewhere."""
    if world.comm is None:
        return [part]
    # The ranks end at different times, and a gather that waits would burn the cores of the others.
    world.barrier_all()
    gathered: list[T] | None = world.comm.gather(part, root=0)
    return [part] if gathered is None else gathered


class Progress:
    """A log line every few seconds, with the rate and the time left."""

    def __init__(self, what: str, unit: str, total: int, every_s: float = 5.0) -> None:
        self.what, self.unit, self.total, self.every_s = what, unit, total, every_s
        self.done = 0
        self.start = self.last = time.monotonic()
        log.info("eval | %s: %s", what, f"{total} {unit} to do" if total else "nothing to do")

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < self.every_s and self.done < self.total:
            return
        self.last = now
        seconds = (now - self.start) / self.done
        rate = {f"{self.unit}/s": 1 / max(seconds, 1e-9)}
        log.info("%s", progress_line(f"eval | {self.what}", self.done, self.total, rate, seconds))


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
