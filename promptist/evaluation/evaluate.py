"""Rewrite, paint and measure every (method, prompt) of an evaluation; the table that statistics and report read.

Prompts are dealt to the shards in turn, those of a shard to its ranks. Noise depends on (x, k) alone, batches are
padded to one fixed shape, rewrites do not depend on their batch: the numbers of shards, ranks and attempts change no
number of the table.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from promptist.cluster.metrics import progress_line
from promptist.cluster.preemption import Preemption
from promptist.cluster.roles import World
from promptist.errors import UserError
from promptist.evaluation.methods import MethodConfig, applies, model_folder
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.statistics import Row
from promptist.evaluation.store import ImageKey, Store
from promptist.reward.messages import ImageRequest, Measurement

log = logging.getLogger(__name__)

NAMESPACE = "eval"
REWRITE_CHUNK = 32
TABLE = "measurements.parquet"

T = TypeVar("T")
Painter = Callable[[list[ImageRequest]], list[Measurement]]
Rewriter = Callable[[Path, list[str]], list[str]]
Texts = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Plan:
    """What is compared. `models`: fingerprint of the model of each row that has one. `images` per prompt are painted,
    of which the first `pictures` are kept as files."""

    prompts: list[EvalPrompt]
    methods: list[MethodConfig]
    models: Mapping[str, str]
    images: int
    pictures: int
    batch: int


class Stopped(Exception):
    """A signal asked to stop; what is finished is in the store."""


def work(
    plan: Plan, prompts: Sequence[EvalPrompt], folder: Path, store: Store, world: World, rewrite: Rewriter,
    load_painter: Callable[[], tuple[Painter, str]], stop: Preemption,
) -> str | None:  # fmt: skip
    """Do what is missing of `prompts` (this shard's part of the plan's) in the run folder `folder`: each rank its own
    share.

    `rewrite(model_folder, prompts)` gives one rewrite per prompt; `load_painter()` gives the measuring function and
    the fingerprint of everything its numbers depend on. It is called after the rewrites, so that the policies and the
    diffusion model need not fit into memory together. Returns that fingerprint, None where a signal stopped any rank.
    Collective: afterwards rank 0's store holds the work of all.
    """
    mine, painter = prompts[world.rank :: world.size], ""
    try:
        texts = {method.name: _rewrite_missing(plan, method, mine, store, rewrite, stop) for method in plan.methods}
        _check(stop)
        paint, painter = load_painter()
        _paint_missing(plan, mine, texts, store, paint, painter, folder, stop)
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


def unfinished(
    plan: Plan, prompts: Sequence[EvalPrompt], store: Store, painter: str, folder: Path
) -> list[EvalPrompt]:
    """Those of `prompts` of which a rewrite, a measurement or a kept picture is missing."""

    def is_whole(prompt: EvalPrompt) -> bool:
        texts: Texts = {}
        for method in plan.methods:
            y = _known_rewrite(plan, method, prompt, store)
            if y is None and applies(method, prompt):
                return False
            texts[method.name] = {} if y is None else {prompt.x: y}
        return not _missing_images(plan, [prompt], texts, store, painter, folder)

    return [prompt for prompt in prompts if not is_whole(prompt)]


def table(plan: Plan, store: Store, painter: str) -> list[Row]:
    """The rows of a finished plan: by prompt in file order, then method in config order, then k."""
    return list(_rows(plan, store, painter))


def _known_rewrite(plan: Plan, method: MethodConfig, prompt: EvalPrompt, store: Store) -> str | None:
    """y of a method for a prompt; None where the method has none (`human`), or it is not finished."""
    if method.kind == "user":
        return prompt.x
    if method.kind == "human":
        return prompt.human
    return store.rewrites.get((plan.models[method.name], prompt.x))


def _rewrite_missing(
    plan: Plan, method: MethodConfig, mine: Sequence[EvalPrompt], store: Store, rewrite: Rewriter, stop: Preemption
) -> dict[str, str]:
    """x -> y for every prompt that has this method; y is empty where the model left the prompt alone."""
    if method.kind == "model":
        assert method.path is not None  # check_methods
        folder, model = model_folder(method.path), plan.models[method.name]
        missing = [p.x for p in mine if (model, p.x) not in store.rewrites]
        progress = Progress(f"rewriting by {method.name}", "prompts", len(missing))
        for chunk in _chunks(missing, REWRITE_CHUNK):
            _check(stop)
            found = rewrite(folder, chunk)
            store.add_rewrites(model, {x: y.strip() for x, y in zip(chunk, found, strict=True)})
            progress.advance(len(chunk))
    known = {p.x: _known_rewrite(plan, method, p, store) for p in mine}
    return {x: y for x, y in known.items() if y is not None}


def _missing_images(
    plan: Plan, prompts: Sequence[EvalPrompt], texts: Texts, store: Store, painter: str, folder: Path
) -> dict[ImageKey, ImageRequest]:
    wanted: dict[ImageKey, ImageRequest] = {}
    for prompt in prompts:
        for y in dict.fromkeys(
            texts[m.name][prompt.x] or prompt.x for m in plan.methods if applies(m, prompt)
        ):
            for k in range(plan.images):
                key = (painter, y, prompt.x, k)
                keep = k < plan.pictures
                if not _finished(store, key, keep, folder):
                    wanted[key] = ImageRequest(y, prompt.x, NAMESPACE, k, keep_picture=keep)
    return wanted


def _paint_missing(
    plan: Plan, mine: Sequence[EvalPrompt], texts: Texts, store: Store, paint: Painter, painter: str, folder: Path,
    stop: Preemption,
) -> None:  # fmt: skip
    wanted = _missing_images(plan, mine, texts, store, painter, folder)
    progress = Progress("painting", "images", len(wanted))
    # One diffusion batch at a time: what a killed attempt loses is at most that, and what a stop waits for.
    for chunk in _chunks(list(wanted), plan.batch):
        _check(stop)
        measured = paint([wanted[key] for key in chunk])
        store.add_images(dict(zip(chunk, measured, strict=True)))
        progress.advance(len(chunk))


def _check(stop: Preemption) -> None:
    if stop.requested is not None:
        raise Stopped


def _finished(store: Store, key: ImageKey, keep: bool, folder: Path) -> bool:
    done = store.images.get(key)
    return done is not None and (not keep or (done.picture is not None and (folder / done.picture).is_file()))


def _rows(plan: Plan, store: Store, painter: str) -> Iterator[Row]:
    for prompt in plan.prompts:
        for method in plan.methods:
            if not applies(method, prompt):
                continue
            y = _known_rewrite(plan, method, prompt, store)
            assert y is not None  # `unfinished` has been asked
            for k in range(plan.images):
                done = store.images[painter, y or prompt.x, prompt.x, k]
                picture = done.picture if k < plan.pictures else None
                yield Row(prompt.x, prompt.set, method.name, k, y, done.cosine, done.aesthetic, picture)


def _gather(world: World, part: T) -> list[T]:
    """The parts of all ranks on rank 0, this rank's own elsewhere."""
    if world.comm is None:
        return [part]
    # The ranks end at different times, and a gather that waits would burn the cores of the others.
    world.barrier_all()
    gathered: list[T] | None = world.comm.gather(part, root=0)
    return [part] if gathered is None else gathered


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Parquet, one row per image with the fields of `Row`; appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    schema = pa.schema(
        {
            "prompt": text, "set": text, "method": text, "k": pa.int32(), "rewrite": text,
            "cosine": number, "aesthetic": number, "picture": text,
        }
    )  # fmt: skip
    part = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), part)
    os.replace(part, path)


def read_table(path: Path) -> list[Row]:
    """Inverse of `write_table`; UserError where the file is missing or no such table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no finished evaluation ({path.name} is missing): run jobs.evaluate first"
        )
    try:
        return [Row(**row) for row in pq.read_table(path).to_pylist()]
    except (pa.ArrowException, TypeError) as error:
        raise UserError(
            f"{path} is not a table of this evaluation ({error}): delete it and evaluate again"
        ) from None


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
