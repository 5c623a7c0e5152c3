"""`promptist world train | quality | show | unpack | prompts`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

DIFFUSION = {
    "dtype": "float32",
    "device": "cpu",
    "steps": 6,
    "guidance": 3.0,
    "size": 64,
    "batch": 16,
    "attention": "sdpa",
}


def main(argv: Sequence[str]) -> int:
    """Entry of `promptist world`; exit code 1 when `quality` finds a demand unmet."""
    parser = argparse.ArgumentParser(
        prog="promptist world", description="The miniature world: build it, measure it, look at it."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    train = verbs.add_parser(
        "train", help="retrain everything from nothing (hours on two cores, minutes on a GPU; resumable)"
    )
    train.add_argument("--build", type=Path, default=Path("world-build"), help="folder of the unfinished parts")
    train.add_argument(
        "--out", type=Path, default=None, help="where the world goes (default: the package's own assets)"
    )
    train.add_argument("--seed", type=int, default=None)
    train.add_argument("--device", default="cpu", help="cpu or cuda")
    train.add_argument(
        "--only", choices=["rival"], default=None, help="train this part alone, for the world that --out holds already"
    )
    quality = verbs.add_parser("quality", help="measure the world on held-out captions")
    quality.add_argument("--world", type=Path, default=None, help="folder of the world (default: the shipped one)")
    quality.add_argument(
        "--out", type=Path, default=Path("runs/world-quality"), help="folder for quality.json and quality.md"
    )
    quality.add_argument("--plain", type=int, default=288, help="plain captions")
    quality.add_argument("--per-modifier", type=int, default=48, help="pictures of each modifier")
    show = verbs.add_parser("show", help="write a contact sheet of rendered and generated pictures")
    show.add_argument("--world", type=Path, default=None)
    show.add_argument("--out", type=Path, default=Path("runs/world-quality/contact-sheet.png"))
    unpack = verbs.add_parser("unpack", help="copy the shipped world and write the demo's prompts beside it")
    unpack.add_argument("folder", type=Path)
    sets = verbs.add_parser("prompts", help="write the evaluation sets of a world that was unpacked without them")
    sets.add_argument("folder", type=Path)
    options = parser.parse_args(list(argv))

    import torch

    torch.set_num_threads(1)
    from promptist.synthetic import rival, world

    if options.verb == "train":
        seed = world.SEED if options.seed is None else options.seed
        make = rival.add_rival if options.only else world.build_world
        make(options.build, options.out or world.assets(), seed=seed, device=options.device)
        return 0
    if options.verb == "unpack":
        _print_files(options.folder, world.unpack(options.folder))
        return 0
    if options.verb == "prompts":
        from promptist.synthetic import evaluation_sets

        _print_files(options.folder, evaluation_sets.write(options.folder, world.SEED))
        return 0
    folder = options.world or world.assets()
    if options.verb == "show":
        from promptist.synthetic.show import contact_sheet

        print(contact_sheet(reward_config(folder), options.out))
        return 0
    from promptist.synthetic import quality as figures

    result = figures.measure(
        reward_config(folder), rival_config(folder), folder, plain=options.plain, per_modifier=options.per_modifier
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "quality.json").write_text(json.dumps(result, indent=2) + "\n")
    text = figures.markdown(result)
    (options.out / "quality.md").write_text(text)
    print(text)
    return 0 if all(figures.verdict(result).values()) else 1


def reward_config(folder: Path):  # type: ignore[no-untyped-def]
    """The demo's reward settings for the world in ``folder``."""
    from promptist.reward.aesthetic import AestheticConfig
    from promptist.reward.clip import ClipConfig
    from promptist.reward.diffusion import DiffusionConfig
    from promptist.reward.model import RewardConfig

    return RewardConfig(
        diffusion=DiffusionConfig(path=str(folder / "diffusion"), **DIFFUSION),  # type: ignore[arg-type]
        clip=ClipConfig(model=str(folder / "clip"), pretrained=None, dtype="float32"),
        aesthetic=AestheticConfig(path=str(folder / "aesthetic.safetensors")),
    )


def _print_files(folder: Path, files: dict[str, int]) -> None:
    for name, lines in files.items():
        print(f"{folder / name}: {lines} lines")


def rival_config(folder: Path):  # type: ignore[no-untyped-def]
    """The held-out scorer of the world in ``folder``."""
    from promptist.reward.aesthetic import AestheticConfig
    from promptist.reward.clip import ClipConfig
    from promptist.reward.held_out import HeldOutConfig
    from promptist.synthetic.rival import FOLDER, HEAD

    return HeldOutConfig(
        FOLDER,
        clip=ClipConfig(model=str(folder / FOLDER), pretrained=None, dtype="float32"),
        aesthetic=AestheticConfig(path=str(folder / FOLDER / HEAD)),
    )
