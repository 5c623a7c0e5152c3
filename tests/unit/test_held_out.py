"""Held-out scorers: against hand computations by open_clip, transformers and the heads' own layers; refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from promptist.cluster.needs import painter_needs
from promptist.cluster.prefetch import get
from promptist.errors import UserError
from promptist.reward.aesthetic import AestheticConfig
from promptist.reward.clip import ClipConfig, ClipEncoder
from promptist.reward.held_out import Batch, HeldOut, HeldOutConfig, HingeConfig, check_held_out
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.model import MeasurementError, RewardConfig, RewardModel
from tests.helpers_reward import EMBED, make_tiny_reward, write_tiny_clip, write_tiny_pickscore
from tests.unit.test_reward_aesthetic import FIVE, LINEAR, RELU, real

SOURCES = ("a red boat", "the stars", "a cat on the beach")
REQUESTS = [ImageRequest(f"{x}, golden hour", x, "eval", k, keep_picture=True) for k, x in enumerate(SOURCES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward, another CLIP of another width with its head, another head for the reward's CLIP, and a PickScore."""
    root = tmp_path_factory.mktemp("held out")
    section = make_tiny_reward(root)
    (root / "reward.json").write_text(json.dumps(section))
    torch.manual_seed(3)
    write_tiny_clip(root / "rival", embed=20, mean=[0.4, 0.5, 0.6])
    save_file({"weight": torch.randn(1, 20), "bias": torch.tensor([4.0])}, root / "rival" / "aesthetic.safetensors")
    save_file({"weight": torch.randn(1, EMBED), "bias": torch.tensor([1.0])}, root / "v1.safetensors")
    write_tiny_pickscore(root / "pick")
    return root


def reward_config(folder: Path, **change: Any) -> RewardConfig:
    section = json.loads((folder / "reward.json").read_text()) | change
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardConfig), section))
    assert isinstance(config, RewardConfig)
    return config


def rival(folder: Path) -> HeldOutConfig:
    head = AestheticConfig(str(folder / "rival" / "aesthetic.safetensors"))
    clip = ClipConfig(str(folder / "rival"), None, "float32")
    return HeldOutConfig("rival", clip=clip, aesthetic=head, terms=HingeConfig(4.0, 2.0))


def all_three(folder: Path) -> list[HeldOutConfig]:
    v1 = HeldOutConfig("v1", head=str(folder / "v1.safetensors"))
    return [rival(folder), v1, HeldOutConfig("pick", pickscore=str(folder / "pick"))]


def encoder(folder: Path) -> ClipEncoder:
    return ClipEncoder(reward_config(folder).clip, "cpu", 3)


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return RewardModel(reward_config(folder), tmp_path_factory.mktemp("run"), held_out=all_three(folder))


@pytest.fixture(scope="module")
def measured(model: RewardModel) -> list[Measurement]:
    return model.measure(REQUESTS)


@pytest.fixture(scope="module")
def pictures(model: RewardModel, measured: list[Measurement]) -> list[Image.Image]:
    assert model.run_folder is not None
    return [Image.open(model.run_folder / str(one.picture)) for one in measured]


def every_pair(oracle: Callable[[Image.Image, str], float], pictures: list[Image.Image]) -> np.ndarray:
    """[pictures, prompts]"""
    return np.array([[oracle(picture, source) for source in SOURCES] for picture in pictures])


def on_the_diagonal(found: list[float], pairs: np.ndarray, tolerance: float) -> None:
    """Picture k is scored with prompt k. A scorer of row 0 or column 0 (as in PAE's code) is far off."""
    away = np.abs(pairs[:, :, None] - np.diag(pairs)).min(1)[~np.eye(len(pairs), dtype=bool)]
    assert away.min() > 20 * tolerance, "the pairs are too alike to tell"
    assert found == pytest.approx(np.diag(pairs).tolist(), abs=tolerance)


def test_scorers_are_named_in_the_measurement(measured: list[Measurement]) -> None:
    for one in measured:
        assert list(one.extra) == ["rival.cosine", "rival.aesthetic", "v1.aesthetic", "pick.score"]
    assert Measurement(1, 2).extra == {}


def test_another_clip_is_open_clips_own_and_on_the_diagonal(
    folder: Path, measured: list[Measurement], pictures: list[Image.Image]
) -> None:
    import open_clip

    place = folder / "rival"
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{place}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{place}", bpe_path=f"{place}/bpe.txt.gz")
    clip.eval()
    head = load_file(place / "aesthetic.safetensors")

    @torch.inference_mode()
    def image(picture: Image.Image) -> torch.Tensor:
        return clip.encode_image(transform(picture)[None], normalize=True)[0]

    @torch.inference_mode()
    def cosine(picture: Image.Image, source: str) -> float:
        return float(image(picture) @ clip.encode_text(tokenizer([source]), normalize=True)[0])

    on_the_diagonal([one.extra["rival.cosine"] for one in measured], every_pair(cosine, pictures), 1e-5)
    expected = [float(image(picture) @ head["weight"][0] + 4.0) for picture in pictures]
    assert [one.extra["rival.aesthetic"] for one in measured] == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == len(expected)


def test_the_rewards_own_cosine_is_on_the_diagonal(
    model: RewardModel, measured: list[Measurement], pictures: list[Image.Image]
) -> None:
    """The same for the training reward, over pictures of different prompts in one batch."""

    def cosine(picture: Image.Image, source: str) -> float:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        return float(model.clip.encode_images(pixels)[0] @ model.clip.encode_texts([source])[0])

    on_the_diagonal([one.cosine for one in measured], every_pair(cosine, pictures), 1e-6)


def test_pickscore_is_transformers_own_and_on_the_diagonal(
    folder: Path, measured: list[Measurement], pictures: list[Image.Image]
) -> None:
    """By the recipe of the model's card: its processor on PIL pictures, features, norms, logit scale; one at a time."""
    from transformers import AutoModel, AutoProcessor

    card, processor = AutoModel.from_pretrained(folder / "pick").eval(), AutoProcessor.from_pretrained(folder / "pick")

    @torch.inference_mode()
    def score(picture: Image.Image, source: str) -> float:
        images = processor(images=picture, return_tensors="pt")
        texts = processor(text=source, padding=True, truncation=True, max_length=24, return_tensors="pt")
        image = card.get_image_features(**images).pooler_output
        text = card.get_text_features(**texts).pooler_output
        image, text = image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
        return float(card.logit_scale.exp() * (text @ image.T)[0, 0])

    on_the_diagonal([one.extra["pick.score"] for one in measured], every_pair(score, pictures), 1e-4)


def test_pickscore_cuts_long_prompts_and_knows_the_scale(folder: Path, tmp_path: Path) -> None:
    scorer = HeldOut([HeldOutConfig("pick", pickscore=str(folder / "pick"))], encoder(folder)).scorers["pick"]
    pictures = torch.rand(2, 3, 16, 16)
    long = scorer.score(Batch(pictures, ["a red boat " * 40, "a red boat " * 30]))["score"]
    assert torch.isfinite(long).all()
    shutil.copytree(folder / "pick", tmp_path / "pick")
    state = load_file(tmp_path / "pick" / "model.safetensors")
    state["logit_scale"] += torch.tensor(2.0).log()
    save_file(state, tmp_path / "pick" / "model.safetensors", metadata={"format": "pt"})
    doubled = HeldOut([HeldOutConfig("pick", pickscore=str(tmp_path / "pick"))], encoder(folder)).scorers["pick"]
    short = Batch(pictures, ["the sea", "a boat"])
    assert torch.allclose(doubled.score(short)["score"], 2 * scorer.score(short)["score"], rtol=1e-5)


def test_neighbours_and_slot_change_no_bit(model: RewardModel, measured: list[Measurement]) -> None:
    assert model.measure(REQUESTS[::-1])[::-1] == measured
    assert [model.measure([request])[0] for request in REQUESTS] == measured


def test_the_reward_itself_is_not_touched(folder: Path, model: RewardModel, measured: list[Measurement]) -> None:
    alone = RewardModel(reward_config(folder), model.run_folder).measure(REQUESTS)
    assert [(one.cosine, one.aesthetic, one.picture) for one in alone] == [
        (one.cosine, one.aesthetic, one.picture) for one in measured
    ]


def test_a_picture_is_encoded_once_per_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads over the reward's CLIP, also when it is named again, cost no encoding."""
    config = reward_config(folder)
    again = HeldOutConfig("again", clip=config.clip, aesthetic=AestheticConfig(str(folder / "v1.safetensors")))
    v1 = HeldOutConfig("v1", head=str(folder / "v1.safetensors"))
    model = RewardModel(config, held_out=[again, v1, rival(folder)])
    calls: list[ClipEncoder] = []
    plain = ClipEncoder.encode_images
    monkeypatch.setattr(ClipEncoder, "encode_images", lambda self, p: calls.append(self) or plain(self, p))  # type: ignore[func-returns-value]
    [one] = model.measure([ImageRequest("x", "x", "eval", 0)])
    assert len(calls) == 2 and calls.count(model.clip) == 1
    assert one.extra["again.cosine"] == one.cosine
    assert one.extra["again.aesthetic"] == one.extra["v1.aesthetic"] != one.aesthetic


def test_nan_names_prompt_and_scorer(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "pick", tmp_path / "pick")
    state = load_file(tmp_path / "pick" / "model.safetensors")
    state["logit_scale"] *= float("nan")
    save_file(state, tmp_path / "pick" / "model.safetensors", metadata={"format": "pt"})
    pick = HeldOutConfig("pick", pickscore=str(tmp_path / "pick"))
    with pytest.raises(MeasurementError, match=r"'a red boat' has pick\.score nan"):
        RewardModel(reward_config(folder), held_out=[pick]).measure([ImageRequest("a red boat", "x", "eval", 0)])


def test_fingerprint_covers_them(folder: Path, model: RewardModel, tmp_path: Path) -> None:
    config = reward_config(folder)
    without = RewardModel(config).fingerprint
    both = [rival(folder), HeldOutConfig("v1", head=str(folder / "v1.safetensors"))]
    base = RewardModel(config, held_out=both).fingerprint
    assert len({without, base, model.fingerprint}) == 3
    unhinged = [HeldOutConfig("rival", clip=both[0].clip, aesthetic=both[0].aesthetic), both[1]]
    assert RewardModel(config, held_out=unhinged).fingerprint == base  # terms change no measurement
    save_file({"weight": torch.ones(1, EMBED), "bias": torch.tensor([1.0])}, tmp_path / "v1.safetensors")
    other = [both[0], HeldOutConfig("v1", head=str(tmp_path / "v1.safetensors"))]
    renamed = [both[0], HeldOutConfig("v2", head=str(folder / "v1.safetensors"))]
    assert len({base, *(RewardModel(config, held_out=them).fingerprint for them in (other, renamed))}) == 3


def test_real_heads_beside_each_other(tmp_path: Path) -> None:
    """The published files on embeddings of 768 numbers: v2 by its five layers, v1 by its one."""
    five, linear = real(FIVE), real(LINEAR)
    section = make_tiny_reward(tmp_path)
    torch.manual_seed(5)
    write_tiny_clip(tmp_path / "wide", embed=768)
    (tmp_path / "reward.json").write_text(json.dumps(section))
    clip = {"model": str(tmp_path / "wide"), "pretrained": None, "dtype": "float32"}
    config = reward_config(tmp_path, clip=clip, aesthetic={"path": str(five)})
    model = RewardModel(config, tmp_path, held_out=[HeldOutConfig("v1", head=str(linear))])
    measured = model.measure(REQUESTS)
    layers = torch.load(five, map_location="cpu", weights_only=True)
    for one in measured:
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / str(one.picture)))).permute(2, 0, 1)[None] / 255
        hidden = embedding = model.clip.encode_images(pixels)
        for layer in (0, 2, 4, 6, 7):
            hidden = torch.nn.functional.linear(
                hidden, layers[f"layers.{layer}.weight"], layers[f"layers.{layer}.bias"]
            )
        assert one.aesthetic == pytest.approx(hidden.item(), abs=1e-5)
        v1 = torch.load(linear, map_location="cpu", weights_only=True)
        expected = torch.nn.functional.linear(embedding, v1["weight"], v1["bias"])
        assert one.extra["v1.aesthetic"] == pytest.approx(expected.item(), abs=1e-5)
    with pytest.raises(UserError, match="not an affine map; use a linearMSE head"):
        HeldOut([HeldOutConfig("relu", head=str(real(RELU)))], model.clip)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "exactly one kind"),
        ({"head": "a", "pickscore": "b"}, "exactly one kind"),
        ({"head": "a", "clip": ClipConfig()}, "exactly one kind"),
        ({"clip": ClipConfig()}, "no aesthetic"),
        ({"aesthetic": AestheticConfig("a")}, "no clip"),
        ({"head": "a", "terms": HingeConfig(1, 1)}, "has terms"),
        ({"head": "a", "processor": "b"}, "has a processor"),
        ({"head": "a", "name": "v1.5"}, "cannot be called so"),
        ({"head": "a", "name": ""}, "cannot be called so"),
    ],
)
def test_kinds_that_make_no_scorer(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        HeldOutConfig(**{"name": "held", **change})


def test_a_slope_that_rewards_nothing() -> None:
    with pytest.raises(UserError, match=r"terms\.slope 0"):
        HingeConfig(0.0, 1.0)


def test_two_of_one_name() -> None:
    with pytest.raises(UserError, match="two held-out scorers are called v1"):
        check_held_out([HeldOutConfig("v1", head="a"), HeldOutConfig("v1", head="b")])


def test_what_cannot_be_loaded_is_named(folder: Path, tmp_path: Path) -> None:
    clip = encoder(folder)

    def load(config: HeldOutConfig) -> None:
        HeldOut([config], clip)

    with pytest.raises(UserError, match=r"set held_out\.v1\.head to"):
        load(HeldOutConfig("v1", head=str(tmp_path / "none.pth")))
    save_file({"weight": torch.ones(1, 7), "bias": torch.ones(1)}, tmp_path / "seven.safetensors")
    with pytest.raises(UserError, match=f"7 numbers, but reward.clip gives {EMBED}"):
        load(HeldOutConfig("v1", head=str(tmp_path / "seven.safetensors")))
    wrong = HeldOutConfig("r", clip=rival(folder).clip, aesthetic=AestheticConfig(str(folder / "v1.safetensors")))
    with pytest.raises(UserError, match=rf"{EMBED} numbers, but held_out\.r\.clip gives 20"):
        load(wrong)
    for file in ("open_clip_config.json", "bpe.txt.gz"):
        shutil.copy(folder / "rival" / file, tmp_path)
    without_weights = ClipConfig(str(tmp_path), None, "float32")
    with pytest.raises(UserError, match=r"set held_out\.r\.clip to"):
        load(HeldOutConfig("r", clip=without_weights, aesthetic=AestheticConfig("a")))
    with pytest.raises(UserError, match=r"held_out\.p: the PickScore model .* cannot be loaded"):
        load(HeldOutConfig("p", pickscore=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match=r"no CLIPModel as PickScore is: it lacks .* such as"):
        load(HeldOutConfig("p", pickscore=str(folder / "sd" / "text_encoder"), processor=str(folder / "pick")))


def test_prefetch_and_doctor_look_for_them(folder: Path, tmp_path: Path) -> None:
    class Job:
        reward = reward_config(folder)
        held_out = all_three(folder)

    found = {need.key: need.find() for need in painter_needs(Job)}
    assert found["held_out.rival.clip.model"] == folder / "rival"
    assert found["held_out.v1.head"] == folder / "v1.safetensors"
    assert found["held_out.pick.pickscore"] == found["held_out.pick.processor"] == folder / "pick"
    shutil.copytree(folder / "pick", tmp_path / "pick", ignore=shutil.ignore_patterns("model.safetensors"))
    Job.held_out = [HeldOutConfig("p", pickscore=str(tmp_path / "pick"), processor=str(folder / "v1"))]
    [weights, processor] = painter_needs(Job)[-2:]
    with pytest.raises(UserError, match=r"has no model\.safetensors; set held_out\.p\.pickscore"):
        get(weights)
    with pytest.raises(UserError, match=r"does not exist; set held_out\.p\.processor"):
        get(processor)
