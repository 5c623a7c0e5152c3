"""`promptist prefetch`: on a login node, every model and tokenizer that configs need goes into the shared cache, so
that jobs can run with the hub offline."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from promptist.cluster.needs import Need, cache_folder, load_job, needs_of, size
from promptist.errors import EXIT_BAD_INPUT, UserError

_UNITS = ("B", "kB", "MB", "GB", "TB")


def main(configs: Sequence[Path], overrides: Sequence[str] = ()) -> int:
    """Print a line per model, fetching what is not here; 0 when all are, else 64. UserError for a broken config."""
    for name in ("huggingface_hub", "diffusers"):  # what matters of their warnings is in the line of the model
        logging.getLogger(name).setLevel(logging.ERROR)
    needs: dict[tuple[str, str], Need] = {}
    for config in configs:
        for need in needs_of(load_job(config, list(overrides))[1]):
            needs.setdefault((need.key, need.name), need)
    lost = 0
    for need in needs.values():
        line = f"{need.key} {need.name}"
        try:
            path = get(need)
        except UserError as error:
            lost += 1
            print(f"FAIL  {line}: {error}", flush=True)
            continue
        if path is None:
            print(f"later {line}: below run.root, an earlier job is to write it", flush=True)
        else:
            print(f"ok    {line}: {readable(size(path))} in {path}", flush=True)
    if lost:
        print(f"{lost} of {len(needs)} are missing", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(f"jobs may now run with HF_HUB_OFFLINE=1 and, as here, the cache {cache_folder()}", file=sys.stderr)
    return 0


def get(need: Need) -> Path | None:
    """Where a model lies, fetched if need be; None where an earlier job is to make it. UserError where it cannot be
    had."""
    try:
        return need.find()
    except UserError:
        if need.fetch is None and need.made_by_run and not Path(need.name).exists():
            return None
        if need.fetch is None:
            raise
    print(f"      {need.key} {need.name}: fetching ...", flush=True)
    try:
        need.fetch()
    except UserError:
        raise
    except Exception as error:  # of requests, httpx, urllib, diffusers, open_clip and the hub, each with its own
        raise UserError(_why(error, need)) from error
    return need.find()


def readable(size: float) -> str:
    """`6.4 GB`."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _why(error: BaseException, need: Need) -> str:
    """One sentence with a fix. The kind of the error that caused it all says most."""
    from huggingface_hub import errors

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, errors.GatedRepoError):
            return "its licence must be accepted on the hub first, then log in here by `hf auth login`"
        if isinstance(seen, errors.RepositoryNotFoundError):
            return f"the hub has no such model, or it is private; correct {need.key}, or log in by `hf auth login`"
        cause = seen.__cause__ or seen.__context__
        if cause is None:
            break
        seen = cause
    said = " ".join(str(seen).split())[:200]
    return (
        f"it cannot be fetched ({type(seen).__name__}: {said}); run this on a host that reaches the internet, or copy "
        f"the model here and set {need.key} to its path"
    )
