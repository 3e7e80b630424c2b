"""A browser for the tests of the explorer's page, and what holds for all of them: no message in its console, no error,
and no request but to the page itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from browser.window import Window
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("SNNCC_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(f"no browser: none of {', '.join(NAMES)} is here, nor does SNNCC_CHROMIUM name one")
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    context = browser.new_context(viewport={"width": 1500, "height": 880}, color_scheme="light")
    window = Window(context.new_page())
    window.page.on("console", lambda message: window.said.append(f"{message.type}: {message.text}"))
    window.page.on("pageerror", lambda error: window.said.append(f"error: {error}"))
    window.page.on("dialog", lambda dialog: window.said.append(f"dialog: {dialog.message}"))
    window.page.on("request", lambda request: window.asked.append(request.url))
    yield window
    context.close()
    assert window.said == []
    for url in window.asked:
        parts = urlparse(url)
        assert parts.scheme in ("file", "data", "about") or parts.hostname == "127.0.0.1", url
