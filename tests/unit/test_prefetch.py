"""`promptist prefetch`: what configs need, where it is found, what is fetched, and what is said where that fails."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from promptist import cli
from promptist.cluster import needs, prefetch
from promptist.errors import UserError
from tests.helpers_ppo import make_tiny_job


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a PPO job whose models lie in folders."""
    return make_tiny_job(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the hub itself is never asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(needs, "require_hub", lambda: None)
    return tmp_path / "hub"


def put(cache: Path, name: str, folder: Path) -> Path:
    """Lay out a model as the hub's client does; returns its snapshot."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (home / "blobs").mkdir()
    shutil.copytree(folder, snapshot)
    for file in [path for path in snapshot.rglob("*") if path.is_file()]:
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.move(file, blob)
        file.symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs/main").write_text("0" * 40)
    return snapshot


def config_with(path: Path, target: Path, **values: Any) -> Path:
    """A copy of a config with dotted keys (`__` for the dot) changed."""
    config = yaml.safe_load(path.read_text())
    for dotted, value in values.items():
        *sections, key = dotted.split("__")
        section = config
        for name in sections:
            section = section[name]
        section[key] = value
    target.write_text(yaml.safe_dump(config))
    return target


def lines(text: str) -> dict[str, str]:
    """{key of the config: its line}, the last one of each."""
    return {line.split()[1]: line for line in text.splitlines() if line.split()[0] in ("ok", "FAIL", "later")}


def test_local_folders_are_checked(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prefetch", str(tiny)]) == 0
    said = capsys.readouterr()
    folder = tiny.parent
    bytes_of = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in (folder / "policy",)}
    assert lines(said.out)["model.path"] == (
        f"ok    model.path {folder}/policy: {bytes_of[folder / 'policy'] / 1000:.1f} kB in {folder}/policy"
    )
    assert set(lines(said.out)) == {
        "model.path", "reward.diffusion.path", "reward.clip.model", "reward.aesthetic.path",
    }  # fmt: skip
    assert "HF_HUB_OFFLINE=1" in said.err


@pytest.mark.parametrize(
    ("lost", "key", "words"),
    [
        ("policy/model.safetensors", "model.path", "holds no weights"),
        ("policy/config.json", "model.path", "has no config.json"),
        ("policy/tokenizer.json", "model.path", "tokenizer"),
        ("reward/sd/unet/diffusion_pytorch_model.safetensors", "reward.diffusion.path", "unet/ lacks its files"),
        ("reward/sd/model_index.json", "reward.diffusion.path", "model_index.json cannot be read"),
        ("reward/clip/open_clip_model.safetensors", "reward.clip.model", "has no open_clip_model.safetensors"),
        ("reward/aesthetic.safetensors", "reward.aesthetic.path", "set reward.aesthetic.path to where it is"),
    ],
)
def test_what_is_missing_is_named(
    tiny: Path, lost: str, key: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.parent / lost
    path.rename(path.with_suffix(".away"))
    try:
        assert cli.main(["prefetch", str(tiny)]) == 64
    finally:
        path.with_suffix(".away").rename(path)
    said = capsys.readouterr()
    failed = [line for line in said.out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and failed[0].startswith(f"FAIL  {key} ")
    assert words in failed[0]
    assert "1 of 4 are missing" in said.err


def test_what_an_earlier_job_makes_comes_later(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tiny.parent / "runs"
    assert cli.main(["prefetch", str(tiny), f"model.path={runs}/sft/export"]) == 0
    assert lines(capsys.readouterr().out)["model.path"].startswith(f"later model.path {runs}/sft/export: ")
    assert cli.main(["prefetch", str(tiny), f"model.path={tmp_path}/sft/export"]) == 64


def test_an_evaluation_and_several_configs(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = yaml.safe_load(tiny.read_text())
    methods = [
        {"name": "user", "kind": "user"},
        {"name": "sft", "kind": "model", "path": str(tiny.parent / "policy")},
        {"name": "ppo", "kind": "model", "path": str(tiny.parent / "runs/ppo")},
    ]
    evaluation = tmp_path / "eval.yaml"
    prompts = str(tiny.parent / "eval.jsonl")
    evaluation.write_text(
        yaml.safe_dump({"run": job["run"], "reward": job["reward"], "prompts": prompts, "methods": methods})
    )
    assert cli.main(["prefetch", str(tiny), str(evaluation)]) == 0
    found = lines(capsys.readouterr().out)
    assert len(found) == 6  # the reward models, which both need, once
    assert found["methods.1.path"].startswith("ok ") and found["methods.2.path"].startswith("later ")


@pytest.fixture
def published(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has me/policy and me/sd; the names that were asked of it."""
    shelf = {"me/policy": tiny.parent / "policy", "me/sd": tiny.parent / "reward/sd"}
    asked: list[str] = []
    real = huggingface_hub.snapshot_download

    def download(name: str, local_files_only: bool = False, **rest: Any) -> str:
        if not local_files_only:
            asked.append(name)
            put(cache, name, shelf[name])
        return real(name, local_files_only=True)

    def pipeline(name: str, **rest: Any) -> str:
        assert rest == {"safety_checker": None}
        return download(name)

    from diffusers import StableDiffusionPipeline

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(StableDiffusionPipeline, "download", pipeline)
    return asked


def test_hub_models_are_fetched_once(
    tiny: Path, tmp_path: Path, cache: Path, published: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_with(tiny, tmp_path / "hub.yaml", model__path="me/policy", reward__diffusion__path="me/sd")
    assert cli.main(["prefetch", str(config)]) == 0
    said = capsys.readouterr()
    assert published == ["me/policy", "me/sd"]
    snapshot = cache / "models--me--sd/snapshots" / ("0" * 40)
    size = sum(f.stat().st_size for f in (tiny.parent / "reward/sd").rglob("*") if f.is_file())
    assert lines(said.out)["reward.diffusion.path"] == (
        f"ok    reward.diffusion.path me/sd: {size / 1000:.1f} kB in {snapshot}"
    )
    assert str(cache) in said.err
    assert cli.main(["prefetch", str(config)]) == 0
    assert len(published) == 2


def test_clip_weights_in_the_cache(tiny: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = needs.load_job(
        config_with(tiny, tmp_path / "c.yaml", reward__clip={"model": "ViT-L-14-quickgelu", "pretrained": "openai"})
    )[1]
    need = next(n for n in needs.reward_needs(job.reward) if n.key == "reward.clip.model")
    with pytest.raises(UserError, match="are not in"):
        need.find()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/open_clip_model.safetensors").write_bytes(b"1234")
    snapshot = put(cache, "timm/vit_large_patch14_clip_224.openai", tmp_path / "clip")
    assert need.find() == snapshot / "open_clip_model.safetensors"
    assert needs.size(need.find()) == 4


def error_of(kind: str) -> Exception:
    from huggingface_hub import errors

    if kind in ("gated", "unknown"):  # made without the answer of a server, which differs from client to client
        of_kind = errors.GatedRepoError if kind == "gated" else errors.RepositoryNotFoundError
        return of_kind.__new__(of_kind)
    try:
        try:
            raise OSError("Network is unreachable")
        except OSError as error:
            raise errors.LocalEntryNotFoundError("cannot find the requested files") from error
    except errors.LocalEntryNotFoundError as error:
        return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gated", "hf auth login"),
        ("unknown", "the hub has no such model, or it is private; correct model.path"),
        ("network", "cannot be fetched (OSError: Network is unreachable); run this on a host"),
    ],
)
def test_one_sentence_for_what_a_hub_says(
    tiny: Path, tmp_path: Path, cache: Path, kind: str, words: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    error = error_of(kind)

    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    config = config_with(tiny, tmp_path / "hub.yaml", model__path="me/policy")
    assert cli.main(["prefetch", str(config)]) == 64
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and words in failed[0]


def test_a_hub_that_is_not_to_be_asked_or_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it"):
        needs.require_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached .*Connection refused"):
        needs.require_hub()

    def answers(*_: Any, **__: Any) -> None:
        raise urllib.error.HTTPError("http://hub", 404, "no page", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(needs, "urlopen", answers)
    needs.require_hub()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, bytes], None]:
    """`mirror(expected, sent)`: the published head is `expected`, its address sends `sent`."""

    def serve(expected: bytes, sent: bytes) -> None:
        class Answer:
            def __enter__(self) -> Answer:
                return self

            def __exit__(self, *_: object) -> None: ...

            def read(self) -> bytes:
                return sent

        monkeypatch.setattr(needs, "urlopen", lambda *_, **__: Answer())
        known = {"head.pth": ("http://heads/head.pth", hashlib.sha256(expected).hexdigest())}
        monkeypatch.setattr(needs, "_AESTHETIC", known)

    return serve


def test_a_published_aesthetic_head_is_fetched_to_its_path(
    tiny: Path, tmp_path: Path, mirror: Callable[[bytes, bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "weights/head.pth"
    command = ["prefetch", str(tiny), f"reward.aesthetic.path={target}"]
    mirror(b"head", b"a login page")
    assert cli.main(command) == 64
    assert "is not the published file" in capsys.readouterr().out
    assert not target.exists()
    mirror(b"head", b"head")
    assert cli.main(command) == 0
    assert target.read_bytes() == b"head" and list(target.parent.iterdir()) == [target]


def test_the_addresses_of_published_heads_match_real_files(data_folder: Path) -> None:
    for name, (_, sha256) in needs._AESTHETIC.items():
        file = data_folder / "aesthetic" / name
        if not file.is_file():
            pytest.skip(f"{file} is not here")
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def test_bad_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prefetch", "run.seed=1"]) == 64
    assert "name a config file" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text("run: {name: a}\n")
    assert cli.main(["prefetch", str(tmp_path / "x.yaml")]) == 64
    assert "is the config of no job" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"), [(652, "652 B"), (3_714_759, "3.7 MB"), (6.43e9, "6.4 GB"), (2e16, "20000.0 TB")]
)
def test_sizes(size: float, text: str) -> None:
    assert prefetch.readable(size) == text
