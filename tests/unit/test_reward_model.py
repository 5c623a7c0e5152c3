"""The real pipeline, CLIP and head with random weights: pictures equal diffusers', purity, refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from promptist.errors import UserError
from promptist.reward.clip import ClipConfig, ClipEncoder
from promptist.reward.diffusion import DiffusionConfig, Painter, set_attention
from promptist.reward.messages import ImageRequest
from promptist.reward.model import MeasurementError, RewardConfig, RewardModel
from tests.helpers_reward import EMBED, SIZE, make_tiny_reward


def config_of(section: dict[str, Any]) -> RewardConfig:
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardConfig), section))
    assert isinstance(config, RewardConfig)
    return config


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_tiny_reward(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def model(section: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return RewardModel(config_of(section), tmp_path_factory.mktemp("run"))


REQUESTS = [
    ImageRequest(prompt, "a red boat", "train", k)
    for prompt in ("a red boat", "a red boat, golden hour", "stars over the sea")
    for k in (0, 3)
]


def test_pictures_equal_the_pipelines_own(model: RewardModel) -> None:
    """Picture i belongs to prompt i and noise i, and is what `StableDiffusionPipeline.__call__` paints."""
    painter = model.painter
    requests = REQUESTS[1:4]  # a full batch: three prompts and noises, no two pairs alike
    expected = painter.pipeline(
        [request.prompt for request in requests],
        latents=torch.stack([painter.noise(request) for request in requests]),
        num_inference_steps=2,
        guidance_scale=7.5,
        height=SIZE,
        width=SIZE,
        output_type="pt",
    ).images
    painted = painter.paint(requests)
    assert painted.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(painted, expected)
    spread = (painted[:, None] - painted[None]).abs().amax((2, 3, 4))
    assert spread[~torch.eye(3, dtype=torch.bool)].min() > 1e-3  # or a shuffled batch would pass, too


def test_without_guidance(section: dict[str, Any]) -> None:
    painter = Painter(DiffusionConfig(**{**section["diffusion"], "guidance": 1.0, "scheduler": "ddim"}))
    request = REQUESTS[2]
    expected = painter.pipeline(
        [request.prompt, "", ""],
        latents=torch.stack([painter.noise(request), *torch.zeros(2, *painter.latent_shape)]),
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="pt",
    ).images[:1]
    assert torch.equal(painter.paint([request]), expected)


def test_the_solver_is_dpm_solver_pp_with_offset(model: RewardModel) -> None:
    settings = model.painter.pipeline.scheduler.config
    assert type(model.painter.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert (settings.algorithm_type, settings.solver_order, settings.steps_offset) == ("dpmsolver++", 2, 1)
    assert settings.beta_schedule == "scaled_linear"  # carried over from the folder
    assert model.painter.pipeline.safety_checker is None


def test_noise_belongs_to_namespace_source_and_key_only(model: RewardModel) -> None:
    noise = model.painter.noise
    base = noise(ImageRequest("y", "x", "train", 1))
    assert torch.equal(base, noise(ImageRequest("another rewrite", "x", "train", 1)))
    for other in (("x2", "train", 1), ("x", "valid", 1), ("x", "eval", 1), ("x", "train", 2)):
        assert not torch.equal(base, noise(ImageRequest("y", *other)))
    assert base.mean().abs() < 0.3
    assert abs(base.std() - 1) < 0.3


def test_neighbours_slot_order_and_number_change_no_bit(model: RewardModel) -> None:
    together = model.measure(REQUESTS)
    assert len({m.cosine for m in together}) == len(REQUESTS)  # or equality would say nothing
    assert [model.measure([request])[0] for request in REQUESTS] == together
    order = [4, 0, 5, 2, 1, 3]
    assert model.measure([REQUESTS[i] for i in order]) == [together[i] for i in order]
    assert model.measure(REQUESTS[1:]) == together[1:]


def test_measurement_equals_open_clip_on_the_kept_png(model: RewardModel, section: dict[str, Any]) -> None:
    """PNG -> open_clip's own transform, model and tokenizer -> cosine; and the head by hand."""
    request = ImageRequest("a red boat, oil painting", "a red boat", "eval", 1, keep_picture=True)
    [measured] = model.measure([request])
    assert measured.picture is not None
    assert model.run_folder is not None
    picture = Image.open(model.run_folder / measured.picture)
    folder = section["clip"]["model"]
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=f"{folder}/bpe.txt.gz")(["a red boat"])
    clip.eval()
    with torch.inference_mode():
        image = clip.encode_image(transform(picture)[None], normalize=True)
        text = clip.encode_text(tokens, normalize=True)
    assert measured.cosine == pytest.approx((image @ text.T).item(), abs=1e-5)
    weight = model.head.weight.double()
    assert measured.aesthetic == pytest.approx((image[0].double() @ weight).item() + 5, abs=1e-5)
    # Content-addressed: the same picture again is the same file.
    files = sorted(model.run_folder.rglob("*.png"))
    assert model.measure([request]) == [measured]
    assert sorted(model.run_folder.rglob("*.png")) == files
    assert not list(model.run_folder.rglob("*.tmp"))


def test_pictures_need_a_folder(section: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no run folder"):
        RewardModel(config_of(section)).measure([ImageRequest("x", "x", "train", 0, keep_picture=True)])


def test_long_prompts_are_marked(model: RewardModel) -> None:
    measured = model.measure([ImageRequest("x " * 60, "x", "train", 0), REQUESTS[0]])
    assert [m.truncated for m in measured] == [True, False]


def test_nan_names_its_prompt(section: dict[str, Any]) -> None:
    broken = RewardModel(config_of(section))
    plain = broken.painter.paint
    broken.painter.paint = lambda requests: torch.stack(  # type: ignore[method-assign]
        [
            p * float("nan") if "stars" in r.prompt else p
            for r, p in zip(requests, plain(requests), strict=True)
        ]
    )
    with pytest.raises(MeasurementError, match=r"stars over the sea.*NaN") as caught:
        broken.measure(REQUESTS)
    assert caught.value.request == REQUESTS[4]


def test_fingerprint_is_of_the_generator_alone(
    section: dict[str, Any], model: RewardModel, tmp_path: Path
) -> None:
    def fingerprint(change: dict[str, Any]) -> str:
        changed = copy.deepcopy(section)
        for dotted, value in change.items():
            room, key = dotted.split(".")
            changed[room][key] = value
        return RewardModel(config_of(changed)).fingerprint

    moved = make_tiny_reward(tmp_path / "moved")
    assert RewardModel(config_of(moved)).fingerprint == model.fingerprint
    assert fingerprint({"terms.slope": 4.0}) == model.fingerprint
    assert fingerprint({"diffusion.steps": 3}) != model.fingerprint
    assert fingerprint({"diffusion.guidance": 3.0}) != model.fingerprint
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1, EMBED), "bias": torch.ones(1)}, tmp_path / "other.safetensors")
    assert fingerprint({"aesthetic.path": str(tmp_path / "other.safetensors")}) != model.fingerprint


@pytest.mark.parametrize(("side", "target"), [(64, 16), (16, 16), (12, 16), (512, 224)])
def test_preprocessing_equals_open_clips(model: RewardModel, side: int, target: int) -> None:
    """Against open_clip's PIL transform, in grey levels.

    PIL rounds to 8 bits after each of its two passes, hence one level; on white noise the first also clips.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((max(2, side // 4),) * 2).resize((side, side))
    mean, std = (0.5, 0.45, 0.4), (0.25, 0.26, 0.27)
    settings = PreprocessCfg(size=target, mean=mean, std=std, interpolation="bicubic", resize_mode="shortest")
    encoder = copy.copy(model.clip)
    encoder.size = target
    deviation = torch.tensor(std).view(3, 1, 1)
    for picture, worst in ((smooth, 1.1), (Image.fromarray(noise), 9.0)):
        expected = image_transform_v2(settings, is_train=False)(picture)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        ours = encoder.preprocess(pixels)[0]
        assert ours.shape == (3, target, target)
        levels = ((ours - expected) * deviation).abs() * 255
        assert levels.max() < worst
        assert levels.mean() < 0.5


def test_xformers_asked_for_and_unable(section: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="xformers cannot run on cpu"):
        Painter(DiffusionConfig(**{**section["diffusion"], "attention": "xformers"}))


def test_the_attention_that_runs_is_looked_at(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = model.painter.pipeline.unet
    assert set_attention(unet, "auto", torch.device("cpu")) == "AttnProcessor2_0"
    # A diffusers that accepts the wish and silently changes nothing must be found out.
    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", lambda: None)
    with pytest.raises(UserError, match="gives AttnProcessor2_0 instead of XFormersAttnProcessor"):
        set_attention(unet, "xformers", torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "/nowhere/sd"}, "does not exist"),
        ({"size": SIZE + 1}, "multiple of 2"),
        ({"dtype": "int8"}, r"reward\.diffusion\.dtype"),
        ({"batch": 0}, r"reward\.diffusion\.batch"),
        ({"safety_checker": "default"}, r"reward\.diffusion\.safety_checker"),
        ({"device": "gpu"}, "cpu, cuda"),
        ({"device": "cuda:63"}, "sees"),
    ],
)
def test_bad_diffusion_settings(section: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Painter(DiffusionConfig(**{**section["diffusion"], **change}))


def test_a_folder_without_its_unet(section: dict[str, Any], tmp_path: Path) -> None:
    world = make_tiny_reward(tmp_path)
    for file in (tmp_path / "sd" / "unet").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        Painter(DiffusionConfig(**world["diffusion"]))


@pytest.mark.parametrize(
    ("model_name", "pretrained", "words"),
    [
        ("ViT-L-14", "openai", "use ViT-L-14-quickgelu"),  # open_clip only warns
        ("ViT-L-14-quickgelu", "laion2b_s32b_b82k", "neither a file nor a tag"),
        ("ViT-H-14-quickgelu", "laion2b_s32b_b79k", "neither a file nor a tag"),
        ("ViT-L-15", "openai", "neither a folder nor an open_clip model"),
        ("ViT-L-14-quickgelu", None, r"needs weights: set reward\.clip\.pretrained"),
    ],
)
def test_clip_names_that_do_not_fit(model_name: str, pretrained: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClipEncoder(ClipConfig(model_name, pretrained, "float32"), "cpu", 2)


def test_openai_weights_file_needs_quickgelu(tmp_path: Path) -> None:
    """OpenAI's own files are TorchScript; they are known by that, not by their name."""
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="use ViT-B-32-quickgelu"):
        ClipEncoder(ClipConfig("ViT-B-32", str(tmp_path / "weights.pt"), "float32"), "cpu", 2)


def test_bad_clip_folders(section: dict[str, Any], tmp_path: Path) -> None:
    def load(folder: Path, pretrained: str | None = None) -> None:
        ClipEncoder(ClipConfig(str(folder), pretrained, "float32"), "cpu", 2)

    with pytest.raises(UserError, match="holds its own weights"):
        load(Path(section["clip"]["model"]), "openai")
    with pytest.raises(UserError, match=r"no open_clip_config\.json"):
        load(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="not an open_clip config"):
        load(tmp_path)
    config = json.loads((Path(section["clip"]["model"]) / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"vocabulary bpe\.txt\.gz"):
        load(tmp_path)
    (tmp_path / "bpe.txt.gz").write_bytes((Path(section["clip"]["model"]) / "bpe.txt.gz").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):  # no weights: never random ones
        load(tmp_path)


def test_head_of_another_clip(section: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, tmp_path / "l14.safetensors")
    changed = {**section, "aesthetic": {"path": str(tmp_path / "l14.safetensors")}}
    with pytest.raises(UserError, match=f"768 numbers, but reward.clip gives {EMBED}"):
        RewardModel(config_of(changed))
