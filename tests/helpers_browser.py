"""A headless Chromium of the system for pages that open from disk, and what such a page must not do."""

from __future__ import annotations

import os
import shutil
from typing import Any

# Installed by the system's package manager; nothing is downloaded.
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",  # root in a container has no user namespaces
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True,
}  # fmt: skip
_LOCAL = ("file:", "data:", "blob:", "about:")


def find_chromium() -> str | None:
    """The browser's path: PROMPTIST_CHROMIUM if set, else the first of `NAMES` on the PATH, else None."""
    return os.environ.get("PROMPTIST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Any, path: str) -> Any:
    """A playwright `Browser`."""
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


def watch(page: Any) -> list[str]:
    """A list that fills with what `page` does wrong: console errors (a file that is missing is one), uncaught
    exceptions, requests for anything but local files."""
    troubles: list[str] = []
    page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(f"uncaught: {error}"))
    page.on(
        "request", lambda r: None if r.url.startswith(_LOCAL) else troubles.append(f"asked the network for {r.url}")
    )
    return troubles
