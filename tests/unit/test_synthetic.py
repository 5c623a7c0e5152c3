"""The miniature world: its language, its pictures, its prompts, its training loop and the world that is shipped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from promptist import rng as counter_rng
from promptist.errors import UserError
from promptist.synthetic import contrastive, grammar, prompts, rival, scenes, vocabulary, world
from promptist.synthetic.render import LAYER_STYLES, PICTURE_STYLES, render
from promptist.synthetic.training import train

ASSETS = world.assets()
needs_world = pytest.mark.skipif(
    not (ASSETS / "world.json").exists(), reason="no world is shipped yet: `promptist world train`"
)


def test_world_is_rich_enough() -> None:
    assert len(grammar.OBJECTS) >= 8 and len(grammar.COLOURS) >= 8 and len(grammar.PLACES) >= 6
    sorts = Counter(modifier.sort for modifier in grammar.MODIFIERS)
    assert len(grammar.MODIFIERS) >= 16 and all(sorts[sort] >= 3 for sort in ("raise", "neutral", "lower", "hide"))
    assert sum(bool(m.by_place or m.by_object) for m in grammar.MODIFIERS) >= 4


def test_every_part_and_pair_of_a_held_out_content_occurs_in_training() -> None:
    train_pairs = {
        pair for c in scenes.TRAIN_CONTENTS for pair in ((c.object, c.colour), (c.object, c.place), (c.colour, c.place))
    }
    assert not set(scenes.TRAIN_CONTENTS) & set(scenes.HELD_OUT_CONTENTS)
    assert 0.15 < len(scenes.HELD_OUT_CONTENTS) / len(grammar.contents()) < 0.25
    for c in scenes.HELD_OUT_CONTENTS:
        assert {(c.object, c.colour), (c.object, c.place), (c.colour, c.place)} <= train_pairs


def test_rating_saturates_and_depends_on_content() -> None:
    city, beach = grammar.Content("cat", "red", "city"), grammar.Content("cat", "red", "beach")
    assert grammar.rating(beach, ("golden hour",)) == pytest.approx(grammar.BASE_RATING + 1.1)
    assert grammar.rating(city, ("golden hour",)) == pytest.approx(grammar.BASE_RATING)
    # 0.9 and 0.9: the second counts 0.6 of itself; the dull colours are a sum of their own.
    phrases = ("dense fog", "silhouette", "dull colors")
    assert grammar.rating(beach, phrases) == pytest.approx(grammar.BASE_RATING + 0.9 + 0.54 - 0.9)


def test_pictures_depend_on_content_style_and_draw_alone() -> None:
    content = grammar.Content("boat", "blue", "snow")

    def picture(phrases: tuple[str, ...], draw: int) -> np.ndarray:
        return render(content, phrases, counter_rng.generator(draw, "test"))

    assert (picture((), 1) == picture((), 1)).all()
    assert (picture((), 1) != picture((), 2)).any()
    for modifier in grammar.MODIFIERS:
        changed = (picture((modifier.phrase,), 1) != picture((), 1)).any()
        assert changed == (modifier.phrase in LAYER_STYLES or modifier.phrase in PICTURE_STYLES)
        assert changed != (modifier.sort == "neutral")


def test_object_has_its_colour() -> None:
    """The mean colour over the middle of a heart is nearest to its own name's."""
    from promptist.synthetic.render import RGB

    names = list(RGB)
    for colour in names:
        picture = render(grammar.Content("heart", colour, "meadow"), (), counter_rng.generator(0, "test"))
        mean = picture[32:40, 28:36].reshape(-1, 3).mean(0)
        distances = [np.abs(mean - np.array(RGB[name])).sum() for name in names]
        assert names[int(np.argmin(distances))] == colour


def test_data_files_keep_held_out_contents_and_caption_templates_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "TARGETS", 300)
    monkeypatch.setattr(prompts, "VALIDATION_TARGETS", 20)
    prompts.write_all(tmp_path, seed=3)
    held_out = {
        grammar.caption(c, template, o, p)
        for c in scenes.HELD_OUT_CONTENTS
        for template in (*grammar.USER_TEMPLATES, *grammar.CAPTION_TEMPLATES)
        for o in range(2)
        for p in range(3)
    }
    pairs = [json.loads(line) for line in (tmp_path / "pairs/train.jsonl").read_text().splitlines()]
    assert Counter(pair["kind"] for pair in pairs) == dict.fromkeys(("MC", "MCM", "RMC", "RTP"), 300)
    assert not held_out & {pair["source"] for pair in pairs}
    assert not any(pair["target"].startswith(text + ",") for pair in pairs[:400] for text in held_out)
    assert not any("there is a" in pair["source"] or "someone placed" in pair["target"] for pair in pairs)
    by_group: dict[str, set[str]] = {}
    for pair in pairs:
        by_group.setdefault(pair["group"], set()).add(pair["target"])
    assert all(len(targets) == 1 for targets in by_group.values())

    rl = [
        line
        for name in ("user", "caption", "label", "valid")
        for line in (tmp_path / f"prompts/{name}.txt").read_text().splitlines()
    ]
    rows = [json.loads(line) for line in (tmp_path / "prompts/eval.jsonl").read_text().splitlines()]
    assert len(rl) == len(set(rl)) and not set(rl) & {row["prompt"] for row in rows}
    assert {row["prompt"] for row in rows if row["set"] != "label"} <= held_out
    assert sum(row["set"] == "in-domain" for row in rows) >= 100
    assert all(row["human"].startswith(row["prompt"] + ", ") for row in rows if row["set"] == "in-domain")


def test_taste_helps_but_is_imperfect() -> None:
    gains, seen = [], Counter[str]()
    for index, content in enumerate(scenes.TRAIN_CONTENTS):
        chosen = prompts.engineer(content, counter_rng.generator(0, "taste", index))
        gains.append(grammar.rating(content, chosen) - grammar.BASE_RATING)
        seen.update(grammar.MODIFIER_BY_PHRASE[phrase].sort for phrase in chosen)
    best = np.mean([max(m.effect_on(c) for m in grammar.MODIFIERS) for c in scenes.TRAIN_CONTENTS])
    assert 0.3 < np.mean(gains) < best
    assert all(seen[sort] > 20 for sort in ("raise", "neutral", "lower", "hide"))


def test_training_stopped_and_resumed_equals_training_in_one_go(tmp_path: Path) -> None:
    """The stop comes as Ctrl-C does: by the loop's own signal handler, between steps."""
    import os
    import signal

    def go(folder: Path, stop_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)

        def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            inputs = counter_rng.normal((8, 4), 0, "resume-test", step)
            return (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean(), {}

        weights = train("part", folder, {"model": model}, loss_of_step, steps=30, peak_lr=1e-2, warmup=3, ema_decay=0.9)
        return weights["model"]["weight"]

    whole = go(tmp_path / "whole", None)
    with pytest.raises(SystemExit, match="stopped at step 12 of 30"):
        go(tmp_path / "parts", 11)
    assert torch.equal(go(tmp_path / "parts", None), whole)


def test_both_clip_tokenizers_agree(tmp_path: Path) -> None:
    """open_clip's reading of the BPE file against transformers' CLIPTokenizer."""
    import open_clip

    texts = scenes.corpus(200, counter_rng.generator(0, "tokenizer-test")) + ["an unknown zebra!", "Red BOAT"]
    merges = vocabulary.train_clip_merges(5)
    vocabulary.write_open_clip_bpe(merges, tmp_path / "bpe.txt.gz")
    ours = open_clip.SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz"), context_length=vocabulary.CONTEXT)
    theirs = vocabulary.diffusers_tokenizer(merges)
    for text in texts:
        ids = theirs(text, truncation=True, max_length=vocabulary.CONTEXT).input_ids
        assert ours([text])[0, : len(ids)].tolist() == ids


@needs_world
def test_shipped_world_is_small_and_judged_by_a_good_judge() -> None:
    from promptist.synthetic.judge import held_out_accuracy, load_judge

    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < world.SIZE_LIMIT
    assert held_out_accuracy(load_judge(ASSETS), seed=11, count=192) >= 0.95


@needs_world
def test_shipped_world_paints_what_is_asked() -> None:
    """A sample of the full measurement (`promptist world quality`): most held-out captions come out right."""
    from promptist.reward.model import RewardModel
    from promptist.synthetic.cli import reward_config
    from promptist.synthetic.judge import load_judge, verdicts
    from promptist.synthetic.quality import paint

    contents = list(scenes.HELD_OUT_CONTENTS[::3])
    captions = [grammar.caption(c, grammar.USER_TEMPLATES[0]) for c in contents]
    painted = paint(RewardModel(reward_config(ASSETS)), captions, captions, [7] * len(captions), "test")
    objects, colours = verdicts(load_judge(ASSETS), painted.pictures, contents)
    assert (objects & colours).mean() > 0.65


def test_rivals_pool_pairs_each_picture_with_its_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even pictures are the renders of their scenes, odd ones went through the autoencoder; kept for a later start."""
    monkeypatch.setattr(rival, "POOL", 6)
    monkeypatch.setattr(contrastive, "reconstruct", lambda vae, pictures: -pictures)
    drawn, pictures = rival.pool(tmp_path, None, 5)  # type: ignore[arg-type]
    rng = counter_rng.generator(5, "pool")
    assert drawn == [scenes.sample_scene(rng) for _ in range(6)]
    expected = torch.from_numpy(scenes.render_scenes(drawn, rng))
    expected[1::2] *= -1
    assert (pictures.float() / 127.5 - 1 - expected).abs().max() < 0.5 / 127.5 + 1e-6
    monkeypatch.setattr(scenes, "render_scenes", None)
    assert torch.equal(rival.pool(tmp_path, None, 5)[1], pictures)  # type: ignore[arg-type]


def test_rivals_augmentation_crops_mirrors_and_hardly_changes_colours() -> None:
    rng = counter_rng.generator(0, "augment-test")
    ramp = torch.linspace(-0.8, 0.8, 64).expand(200, 3, 64, 64)  # brighter to the right
    changed = rival.augment(ramp, rng)
    assert changed.shape == ramp.shape and changed.abs().max() <= 1
    slopes = (changed[..., 32, 50] - changed[..., 32, 14]).mean(1) / (0.8 * 2 * 36 / 63)
    assert 0.3 < (slopes < 0).float().mean() < 0.7  # mirrored
    assert slopes.abs().min() >= 0.82 * 0.92 - 1e-3 and slopes.abs().max() <= 1.08 + 1e-3  # a crop stretches the ramp
    grey = rival.augment(torch.full((400, 3, 64, 64), 0.5), rng).mean((2, 3)) - 0.5
    assert grey.abs().mean() < 0.06 and grey.std() > 0.02
    again = rival.augment(ramp, counter_rng.generator(0, "augment-test"))
    assert torch.equal(again, changed)


def test_rival_needs_a_world(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no miniature world"):
        rival.add_rival(tmp_path, tmp_path, 1)


@needs_world
def test_shipped_rival_reads_pictures_and_ratings() -> None:
    """On rendered pictures of held-out contents; `promptist world quality` measures generated ones."""
    from promptist.reward.aesthetic import AestheticHead
    from promptist.reward.clip import ClipEncoder
    from promptist.synthetic.cli import rival_config

    assert rival.own_seed(world.SEED) == json.loads((ASSETS / "rival" / "rival.json").read_text())["seed"] != world.SEED
    assert (ASSETS / "rival/bpe.txt.gz").read_bytes() != (ASSETS / "clip/bpe.txt.gz").read_bytes()
    config = rival_config(ASSETS)
    clip = ClipEncoder(config.clip, "cpu", 32)
    head = AestheticHead.load(config.aesthetic.path, clip.dimension)
    rng = counter_rng.generator(3, "rival-test")
    contents = list(scenes.HELD_OUT_CONTENTS)
    texts = clip.encode_texts([grammar.caption(c, grammar.USER_TEMPLATES[0]) for c in contents])
    plain = torch.from_numpy(scenes.render_scenes([scenes.Scene(c, ()) for c in contents], rng))
    found = [contents[i] for i in (clip.encode_images((plain + 1) / 2) @ texts.T).argmax(1).tolist()]
    right = [(a.object == b.object, a.colour == b.colour) for a, b in zip(contents, found, strict=True)]
    assert np.mean(right, axis=0).min() > 0.85
    drawn = [scenes.Scene(c, scenes.sample_scene(rng).phrases) for c in contents * 2]
    styled = torch.from_numpy(scenes.render_scenes(drawn, rng))
    scores = head.score(clip.encode_images((styled + 1) / 2)).numpy()
    assert np.corrcoef(scores, [grammar.rating(s.content, s.phrases) for s in drawn])[0, 1] > 0.6
