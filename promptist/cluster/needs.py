"""The models and tokenizers that a config needs: where each must lie, and where it can be fetched from.

`promptist prefetch` fetches them on a login node; `promptist doctor`, inside a job, only looks whether they are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from promptist import config as configs
from promptist.errors import UserError

if TYPE_CHECKING:
    from promptist.models.policy import ModelConfig
    from promptist.reward.clip import ClipConfig
    from promptist.reward.held_out import HeldOutConfig
    from promptist.reward.model import RewardConfig

_HUB_TIMEOUT_S = 15.0
_WITHOUT_WEIGHTS = ["*.json", "*.txt", "*.model"]
_WEIGHTS_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PICKSCORE = (("config.json",), ("model.safetensors", "pytorch_model.bin", *_WEIGHTS_INDEX))
_PROCESSOR = (("preprocessor_config.json",), ("tokenizer_config.json",), ("tokenizer.json", "vocab.json"))
_AESTHETIC = {  # name of the published file: (address, SHA-256)
    "sac+logos+ava1-l14-linearMSE.pth": (
        "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
    "sa_0_4_vit_l_14_linear.pth": (
        "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    ),
}


@dataclass(frozen=True)
class Need:
    """One model. `find()` gives the complete folder or file, without asking any network, or raises a UserError that
    says what is missing; `fetch()` gets it from where it is published, None where it is not published. `made_by_run`:
    it lies below run.root, so an earlier job is to write it."""

    key: str
    name: str
    find: Callable[[], Path]
    fetch: Callable[[], object] | None = None
    made_by_run: bool = False


def load_job(config: str | Path, overrides: list[str] | None = None) -> tuple[str, Any]:
    """(sft, ppo or evaluate; its config) of a config file, told apart by their sections. UserError as `config.load`."""
    found = configs.keys(config)
    if "ppo" in found:
        from promptist.rl.config import PPOJob

        return "ppo", configs.load(PPOJob, config, overrides or [])
    if "sft" in found:
        from promptist.sft.config import SFTJob

        return "sft", configs.load(SFTJob, config, overrides or [])
    if "methods" in found:
        from jobs.evaluate import EvalJob

        return "evaluate", configs.load(EvalJob, config, overrides or [])
    raise UserError(f"{config} is the config of no job: it has none of the sections `ppo`, `sft` and `methods`")


def needs_of(job: Any) -> list[Need]:
    """Everything that a job of `load_job` loads, the policy first."""
    needs = []
    if hasattr(job, "model"):
        needs.append(_policy("model.path", job.model, job.run.root))
    for number, method in enumerate(getattr(job, "methods", [])):
        for path in method.models:
            needs.append(_method(f"methods.{number}.path", path, job.run.root))
        if method.kind == "checkpoints":
            needs.append(_checkpoints(f"methods.{number}.path", method.path, job.run.root))
    needs += [_method("reference", path, job.run.root) for path in getattr(job, "reference", [])]
    return needs + painter_needs(job)


def painter_needs(job: Any) -> list[Need]:
    """What a rank that paints loads: the reward's models and an evaluation's held-out scorers; none for SFT."""
    if not hasattr(job, "reward"):
        return []
    held_out = [need for scorer in getattr(job, "held_out", []) for need in _held_out(scorer)]
    return [*reward_needs(job.reward), *held_out]


def reward_needs(reward: RewardConfig) -> list[Need]:
    """What a reward rank loads."""
    path = reward.diffusion.path
    diffusion = Need(
        "reward.diffusion.path", path, lambda: _find_pipeline(path),
        None if is_local(path) else lambda: _fetch_pipeline(path),
    )  # fmt: skip
    return [diffusion, *_clip(reward.clip), _head("reward.aesthetic.path", reward.aesthetic.path)]


def _head(key: str, path: str) -> Need:
    head = Path(path).expanduser()
    known = _AESTHETIC.get(head.name)
    return Need(
        key, str(head), lambda: _find_file(head, key), None if known is None else lambda: _fetch_file(head, *known)
    )  # fmt: skip


def _held_out(scorer: HeldOutConfig) -> list[Need]:
    key, needs = f"held_out.{scorer.name}", []
    if scorer.clip is not None:
        needs += _clip(scorer.clip, f"{key}.clip")
    if scorer.aesthetic is not None:
        needs.append(_head(f"{key}.aesthetic.path", scorer.aesthetic.path))
    if scorer.head is not None:
        needs.append(_head(f"{key}.head", scorer.head))
    if scorer.pickscore is not None:
        needs.append(_hugging_face(f"{key}.pickscore", scorer.pickscore, _PICKSCORE, weights=True))
        processor = scorer.processor or scorer.pickscore
        needs.append(_hugging_face(f"{key}.processor", processor, _PROCESSOR, weights=False))
    return needs


def _hugging_face(key: str, name: str, files: Sequence[tuple[str, ...]], weights: bool) -> Need:
    """A folder or hub model that holds one of each tuple of `files`."""

    def find() -> Path:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            if is_local(name):
                raise UserError(f"the folder {name} does not exist; set {key}")
            folder = _snapshot(name)
        for names in files:
            if not any((folder / file).is_file() for file in names):
                raise UserError(f"{folder} has no {names[0]}; set {key} to a whole model, or get it again")
        return folder

    return Need(key, name, find, None if is_local(name) else lambda: _fetch_policy(name, weights=weights))


def is_local(path: str) -> bool:
    """Whether a name in a config can only be a path: anything else may be a hub's `model` or `owner/model`."""
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


# ------------------------------------------------------------------------------------------------ language models


def _policy(key: str, model: ModelConfig, root: str) -> Need:
    path = model.path
    if is_local(path):
        made = Path(path).absolute().is_relative_to(Path(root).absolute())
        return Need(key, path, lambda: _whole_policy(replace(model, path=str(Path(path).expanduser()))), None, made)
    return Need(
        key, path, lambda: _whole_policy(replace(model, path=str(_snapshot(path)))),
        lambda: _fetch_policy(path, weights=model.init == "pretrained"),
    )  # fmt: skip


def _method(key: str, path: str, root: str) -> Need:
    def find() -> Path:
        from promptist.evaluation.methods import model_folder
        from promptist.export import is_checkpoint
        from promptist.models.policy import ModelConfig

        return Path(path) if is_checkpoint(path) else _whole_policy(ModelConfig(str(model_folder(path))))

    return Need(key, path, find, None, Path(path).absolute().is_relative_to(Path(root).absolute()))


def _checkpoints(key: str, run: str, root: str) -> Need:
    from promptist.export import checkpoints_of

    made = Path(run).absolute().is_relative_to(Path(root).absolute())
    return Need(key, run, lambda: checkpoints_of(run)[-1].parent, None, made)


def _whole_policy(model: ModelConfig) -> Path:
    from promptist.data.text import load_tokenizer
    from promptist.models.policy import check_path

    check_path(model)
    folder = Path(model.path)
    if model.init == "pretrained":
        for index in (folder / name for name in _WEIGHTS_INDEX if (folder / name).is_file()):
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            if lost := sorted(shard for shard in shards if not (folder / shard).is_file()):
                raise UserError(f"{folder} lacks {lost[0]}, which its {index.name} names: get the model again")
    load_tokenizer(folder)
    return folder


def _fetch_policy(name: str, weights: bool) -> None:
    require_hub()
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=_WITHOUT_WEIGHTS + (["*.safetensors"] if weights else [])))
    if weights and not any(folder.glob("*.safetensors")):
        snapshot_download(name, allow_patterns=["pytorch_model*.bin"])


# ---------------------------------------------------------------------------------------------------- reward models


def _find_pipeline(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if is_local(path):
            raise UserError(f"the diffusion pipeline folder {path} does not exist; set reward.diffusion.path")
        folder = _snapshot(path)
    try:
        parts = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no diffusers pipeline: its model_index.json cannot be read ({error})") from error
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if name not in parts:
            raise UserError(f"{folder} is no Stable Diffusion pipeline: its model_index.json names no {name}")
        files = {file.suffix for file in (folder / name).glob("*") if file.is_file()}
        weighty = name in ("unet", "vae", "text_encoder")
        if ".json" not in files or (weighty and not files & {".safetensors", ".bin"}):
            raise UserError(f"the diffusion pipeline in {folder} is not whole: {name}/ lacks its files; get it again")
    return folder


def _fetch_pipeline(name: str) -> None:
    require_hub()
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.download(name, safety_checker=None)  # as it is loaded: reward/diffusion.py


def _clip(clip: ClipConfig, room: str = "reward.clip") -> list[Need]:
    key, name = f"{room}.model", clip.model
    if Path(name).expanduser().is_dir() or is_local(name):
        return [Need(key, name, lambda: _find_clip_folder(Path(name).expanduser(), key))]
    from promptist.reward.clip import check_activation

    check_activation(clip, room)
    import open_clip

    assert clip.pretrained is not None  # check_activation
    weights = Path(clip.pretrained)
    tag = open_clip.get_pretrained_cfg(name, clip.pretrained)
    needs = []
    if tag:
        needs.append(
            Need(
                key,
                f"{name} {clip.pretrained}",
                lambda: _find_clip_weights(tag, f"{room}.pretrained"),
                lambda: _fetch_clip_weights(tag),
            )
        )
    else:
        file_key = f"{room}.pretrained"
        needs.append(Need(file_key, str(weights), lambda: _find_file(weights, file_key)))
    tokenizer = open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name")
    if tokenizer:
        needs.append(
            Need(f"{key} (tokenizer)", tokenizer, lambda: _snapshot(tokenizer), lambda: _fetch_policy(tokenizer, False))
        )
    return needs


def _find_clip_folder(folder: Path, key: str) -> Path:
    for names in (("open_clip_config.json",), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")):
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"the CLIP folder {folder} has no {names[0]}; set {key} to a complete one")
    return folder


def _find_clip_weights(tag: dict[str, Any], key: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    if not tag.get("hf_hub"):
        return _find_file(Path("~/.cache/clip").expanduser() / Path(tag["url"]).name, key)
    repository, file = os.path.split(tag["hf_hub"])
    file = file or "open_clip_pytorch_model.bin"
    for name in ("open_clip_model.safetensors", f"{Path(file).stem}.safetensors", file):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    raise UserError(f"the weights {tag['hf_hub']} are not in {cache_folder()}")


def _fetch_clip_weights(tag: dict[str, Any]) -> None:
    require_hub()
    from open_clip.pretrained import download_pretrained

    download_pretrained(tag)


# ------------------------------------------------------------------------------------------------------------ files


def cache_folder() -> Path:
    """Where hub models are kept: below HF_HOME."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def require_hub() -> None:
    """UserError where the hub cannot be asked: its clients would try again for minutes before they say so."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError("it is not in the cache and HF_HUB_OFFLINE is set: unset it to fetch")
    try:
        urlopen(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S).close()
    except HTTPError:
        return  # it answers
    except OSError as error:
        raise UserError(
            f"it is not in the cache and {constants.ENDPOINT} cannot be reached ({error}): run this on a host that "
            "reaches it, or copy the model here and name its path in the config"
        ) from error


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; those of a cache are links to where the content lies."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def _snapshot(name: str) -> Path:
    """The folder of a hub model in the cache; UserError where there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:  # of its dozen kinds, incomplete ones included
        raise UserError(f"{name} is not in {cache_folder()}: fetch it by `promptist prefetch`") from error


def _find_file(path: Path, key: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} does not exist; set {key} to where it is")
    return path


def _fetch_file(path: Path, address: str, sha256: str) -> None:
    with urlopen(address, timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise OSError(f"what {address} holds is not the published file")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    part.write_bytes(content)
    part.replace(path)
