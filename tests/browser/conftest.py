"""`page` and `phone`: a headless Chromium's page that fails its test on any console error, uncaught exception, or
request for anything but a local file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.helpers_browser import DESKTOP, NAMES, PHONE, find_chromium, launch, watch


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A playwright `Browser`; skips where playwright or a Chromium is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: install the extra `test`")
    path = find_chromium()
    if path is None:
        pytest.skip(f"no Chromium: install one of {', '.join(NAMES)}, or set PROMPTIST_CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        found = launch(playwright, path)
        yield found
        found.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`new_page(**context_options) -> Page`, in a context (storage, downloads) of its own; judged after the test."""
    contexts, troubles = [], []

    def make(**options: Any) -> Any:
        context = browser.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        made = context.new_page()
        made.set_default_timeout(20_000)
        troubles.append(watch(made))
        return made

    yield make
    for context in contexts:
        context.close()
    found = [trouble for of_page in troubles for trouble in of_page]
    assert not found, "the page did what it must not do:\n" + "\n".join(found)


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    """A playwright `Page` as wide as a desktop's."""
    return new_page()


@pytest.fixture
def phone(new_page: Callable[..., Any]) -> Any:
    """A `Page` as narrow as a phone's, with touch."""
    return new_page(**PHONE)
