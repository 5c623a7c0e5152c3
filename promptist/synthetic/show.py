"""A contact sheet: rendered pictures above, generated ones below, plain and with each modifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from promptist import rng as counter_rng
from promptist.reward.model import RewardConfig, RewardModel
from promptist.synthetic import grammar, scenes
from promptist.synthetic.quality import paint
from promptist.synthetic.world import SEED

COLUMNS = 12


def contact_sheet(config: RewardConfig, path: Path) -> Path:
    """Held-out contents (two rows rendered, the same generated) and one picture of each modifier, likewise."""
    contents = [scenes.HELD_OUT_CONTENTS[i * 4 % len(scenes.HELD_OUT_CONTENTS)] for i in range(2 * COLUMNS)]
    drawn = [scenes.Scene(content, ()) for content in contents]
    drawn += [scenes.Scene(contents[i % len(contents)], (m.phrase,)) for i, m in enumerate(grammar.MODIFIERS)]
    drawn += [scenes.Scene(content, ()) for content in contents[: -len(drawn) % COLUMNS]]
    rng = counter_rng.generator(SEED, "contact-sheet")
    rendered = scenes.render_scenes(drawn, rng)
    plain = [grammar.caption(s.content, grammar.USER_TEMPLATES[0]) for s in drawn]
    prompts = [grammar.prompt(text, s.phrases) for text, s in zip(plain, drawn, strict=True)]
    generated = paint(RewardModel(config), prompts, plain, [0] * len(drawn), "contact sheet").pictures.numpy()
    rows = []
    for start in range(0, len(drawn), COLUMNS):
        for pictures in (rendered, generated):
            strip = (
                ((pictures[start : start + COLUMNS].transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255).astype(np.uint8)
            )
            rows.append(np.concatenate(list(strip), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.LANCZOS).save(path)
    return path
