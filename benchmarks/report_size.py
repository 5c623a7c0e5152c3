"""How large a report is, and how soon it is usable.

    python -m benchmarks.report_size [--prompts 2000] [--replicas 1] [--openings 5] [--folder FOLDER]

Makes an evaluation of 7 sets and the methods user, human, sft and ppo (`--replicas` trainings of the last two, two
noises each, all pictures kept), builds its report, opens the page from disk in headless Chromium (the system's, or
PROMPTIST_CHROMIUM) and prints one table. `usable`: from the start of the navigation until the tables stand, the first
cards are shown and the search answers; `pictures`: until the embedded pictures are at hand as well (the page marks both
moments itself). `main thread`: CPU seconds of the page's main thread until then, and `browser` those of all its
processes, from a new tab on: what an idle core would need, and other programs on the machine hardly change. `search`:
from a key press to the cards of what was found. All are the best of several openings, each in a context of its own. The
first row is a page with nothing on it: what browser and machine take for themselves.

The pictures are 1/f noise in muted colours with a few sharp edges, PNG of 256 pixels: such noise has the spectrum of
photographs, and no smooth sky. A bank of 200 is linked to all names.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from promptist.evaluation.report import build_report
from promptist.evaluation.table import Measure, Picture, Table, Text, write_table
from promptist.rng import generator
from tests.helpers_browser import DESKTOP, PHONE, find_chromium, launch, watch

SETS = ("MC", "MCM", "RMC", "RTP", "in-domain", "out-of-domain", "labels")
METRICS = ("cosine", "aesthetic", "relevance", "gain", "reward", "rival.aesthetic", "rival.reward")
BANK, PIXELS, NOISES = 200, 256, 2
WORDS = [
    "a", "the", "of", "in", "on", "with", "under", "portrait", "castle", "river", "mountain", "city", "girl", "robot",
    "cat", "forest", "night", "sunset", "detailed", "lighting", "by", "artist", "oil", "painting", "digital", "art",
    "smooth", "sharp", "focus", "illustration", "trending", "highly", "intricate",
]  # fmt: skip


def picture(number: int) -> Image.Image:
    """1/f noise [PIXELS, PIXELS, 3] with three rectangles of other noise."""
    random = generator("report-size", "picture", number)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(PIXELS), np.fft.rfftfreq(PIXELS), indexing="ij"))
    frequency[0, 0] = 1.0

    def noise() -> Any:
        white = random.normal(size=(4, PIXELS, PIXELS))
        grey, *colours = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(PIXELS, PIXELS))
        pink = grey + 0.35 * np.array(colours)
        return np.clip(128 + 55 * pink / pink.std(), 0, 255)

    canvas = noise()
    for _ in range(3):
        (top, left), (height, width) = random.integers(0, PIXELS // 2, 2), random.integers(20, PIXELS // 2, 2)
        canvas[:, top : top + height, left : left + width] = noise()[:, :height, :width]
    return Image.fromarray(canvas.astype(np.uint8).transpose(1, 2, 0))


def make_evaluation(folder: Path, prompts: int, replicas: int) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "bank").mkdir()
    bank = [folder / "bank" / f"{i}.png" for i in range(BANK)]
    for i, path in enumerate(bank):
        picture(i).save(path)
    random = generator("report-size", "evaluation")
    table = Table([], [], [], {"seed": 0, "images": NOISES, "terms": {"slope": 20.0, "offset": 5.6}})
    rows = [("user", 0), ("human", 0), *((m, r) for m in ("sft", "ppo") for r in range(replicas))]
    for i in range(prompts):
        x, name = f"{' '.join(random.choice(WORDS, 12))} {i}", SETS[i % len(SETS)]
        for j, (method, replica) in enumerate(rows):
            y = "" if method == "user" else f"{x}, {', '.join(random.choice(WORDS, 12))}"
            table.texts.append(Text(x, name, method, replica, y))
            values = random.normal(0.05 * j, 0.3, (NOISES, len(METRICS)))
            for k in range(NOISES):
                table.measures.extend(
                    Measure(x, name, method, replica, k, metric, float(value))
                    for metric, value in zip(METRICS, values[k], strict=True)
                )
                hashed = f"{(i * len(rows) + j) * NOISES + k:032x}"  # as long as the names of a real evaluation
                path = f"images/{hashed[-2:]}/{hashed}.png"
                (folder / path).parent.mkdir(exist_ok=True)
                os.link(bank[random.integers(BANK)], folder / path)
                table.pictures.append(Picture(x, method, replica, k, path))
    write_table(folder, table)


SEARCH = """async () => {
  const box = document.getElementById("query");
  const began = performance.now();
  box.value = "castle robot";
  box.dispatchEvent(new Event("input"));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - began;
}"""


def browser_cpu() -> float:
    """CPU seconds of all children of this process that live, or have died in the browser's care."""
    found = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += sum(process.cpu_times()[:4])  # own and of ended children, user and system
    return found


EMPTY = """<!doctype html><link rel="icon" href="data:,"><title>empty</title><input id="query">
<script>performance.mark("usable"); performance.mark("complete")</script>"""


def open_page(browser: Any, report: Path, options: dict[str, Any]) -> dict[str, float]:
    began = browser_cpu()
    context = browser.new_context(**options)
    page = context.new_page()
    troubles = watch(page)
    page.goto("about:blank")
    meter = context.new_cdp_session(page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.set_default_timeout(120_000)
    page.goto(report.as_uri(), wait_until="load")
    page.wait_for_function("performance.getEntriesByName('complete').length")
    usable, pictures = (
        page.evaluate(f"performance.getEntriesByName('{mark}')[0].startTime") for mark in ("usable", "complete")
    )
    figures = {m["name"]: m["value"] for m in meter.send("Performance.getMetrics")["metrics"]}
    spent = browser_cpu() - began
    search = page.evaluate(SEARCH)
    context.close()
    if troubles:
        raise SystemExit(f"the page complained: {troubles}")
    return {
        "usable": usable / 1000,
        "pictures": pictures / 1000,
        "thread": figures["TaskDuration"],
        "browser": spent,
        "search": search / 1000,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--openings", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the evaluation, kept (default: temporary)")
    arguments = parser.parse_args()
    path = find_chromium()
    if path is None:
        raise SystemExit("no Chromium: install one, or set PROMPTIST_CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="report-size-"))
    try:
        if not (folder / "measurements.parquet").is_file():
            make_evaluation(folder, arguments.prompts, arguments.replicas)
        began = time.process_time()
        report = build_report(folder, {})
        built = time.process_time() - began
        with sync_playwright() as playwright:
            browser = launch(playwright, path)
            empty = folder / "empty.html"
            empty.write_text(EMPTY)
            pages = (
                ("empty page", empty, DESKTOP),
                ("report, desktop", report, DESKTOP),
                ("report, phone", report, PHONE),
            )
            found = {name: [open_page(browser, page, kind) for _ in range(arguments.openings)]
                     for name, page, kind in pages}  # fmt: skip
            browser.close()
        size, pictures = report.stat().st_size / 1e6, len(list((folder / "images").rglob("*.png")))
        trained = f"{arguments.replicas} training(s) of SFT and PPO"
        print(f"{arguments.prompts} prompts x 4 methods, {trained}, {pictures} pictures")
        print(f"report.html {size:.1f} MB, built in {built:.0f} s of CPU\n")
        load = os.getloadavg()[0]
        print(f"load of the machine while opening: {load:.1f}")
        print(
            "| opened as | usable, s | pictures, s | main thread, CPU s | browser, CPU s | search, s |\n|"
            + " --- |" * 6
        )
        for name, runs in found.items():
            best = (
                f"{min(run[key] for run in runs):.2f}" for key in ("usable", "pictures", "thread", "browser", "search")
            )
            print(f"| {name} | {' | '.join(best)} |")
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
