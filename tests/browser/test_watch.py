"""The live page: the file, the target or an option changes, and the page shows what becomes of it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browser.networks import EXAMPLE, example
from browser.window import Window
from playwright.sync_api import Page, expect

PATIENCE = 60_000  # milliseconds that anything may take


@dataclass
class Served:
    """The command at work, in a folder with a copy of the example."""

    file: Path
    url: str

    def change(self, old: str, new: str) -> None:
        """As an editor saves: a new file under the old name."""
        text = self.file.read_text(encoding="utf-8")
        assert text.count(old) == 1
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text.replace(old, new), encoding="utf-8")
        fresh.replace(self.file)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    file = Path(shutil.copy(EXAMPLE, tmp_path))
    np.save(tmp_path / "images.npy", example().data()[0][:64])
    line = [sys.executable, "-m", "snncc", "explore", "lenet.py:LeNet", "--calibration", "images.npy"]
    line += ["--target", "speck2f", "--bias", "keep", "--watch", "--json", "--no-open"]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield Served(file, json.loads(server.stdout.readline())["url"])
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)
    assert server.returncode == 0


def show(window: Window, served: Served, words: str) -> Page:
    page = window.open(served.url, words)
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    expect(page.locator(".live output").first).to_have_text(re.compile(r"live · \d"))
    return page


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    expect.set_options(timeout=PATIENCE)
    yield
    expect.set_options(timeout=5000)


def test_the_file_changes(window: Window, served: Served) -> None:
    page = show(window, served, "view=graph")
    expect(page.locator(".leaf[data-n='conv1'] .note")).to_have_text("conv2d 8\u00d724\u00d724")
    page.locator(".leaf[data-n='relu']").click()
    served.change(
        "nn.Conv2d(1, 8, 5, bias=False)\n        self.norm1 = nn.BatchNorm2d(8)",
        "nn.Conv2d(1, 6, 5, bias=False)\n        self.norm1 = nn.BatchNorm2d(6)",
    )
    expect(page.locator(".verdict")).to_have_text(re.compile("✗"))  # conv2 still takes 8 channels
    served.change("nn.Conv2d(8, 16", "nn.Conv2d(6, 16")
    expect(page.locator(".verdict")).to_have_text("✓ compiled")
    page.get_by_role("tab", name="graph").click()
    expect(page.locator(".leaf[data-n='conv1'] .note")).to_have_text("conv2d 6\u00d724\u00d724")
    expect(page.locator(".cm-line", has_text="nn.Conv2d(1, 6, 5, bias=False)")).to_have_count(1)
    # No Python, then Python again.
    served.change("def forward(self", "def forward(self self")
    expect(page.locator(".verdict")).to_have_text(re.compile("✗"))
    expect(page.locator(".code .said.error")).to_contain_text("SNN071")
    window.picture("live-error")
    served.change("def forward(self self", "def forward(self")
    expect(page.locator(".verdict")).to_have_text("✓ compiled")


def test_the_source_is_edited_in_the_page(window: Window, served: Served) -> None:
    page = show(window, served, "view=chip")
    line = page.locator(".cm-line", has_text="self.fc1 = nn.Linear")
    line.click()
    page.keyboard.press("End")
    for _ in "64)":
        page.keyboard.press("Backspace")
    page.keyboard.type("32)")
    expect(page.get_by_role("button", name="save")).to_be_visible()
    assert "4 * 4, 64)" in served.file.read_text(encoding="utf-8")
    page.keyboard.press("Control+s")
    expect(page.locator(".verdict")).to_have_text(re.compile("✗"))
    assert "4 * 4, 32)" in served.file.read_text(encoding="utf-8")
    page.locator(".cm-line", has_text="self.fc2 = nn.Linear").click()
    page.keyboard.press("End")
    for _ in "64, 10)":
        page.keyboard.press("Backspace")
    page.keyboard.type("32, 10)")
    page.get_by_role("button", name="save").click()
    expect(page.locator(".verdict")).to_have_text("✓ compiled")
    expect(page.get_by_role("button", name="save")).to_have_count(0)
    page.get_by_role("tab", name="chip").click()
    expect(page.locator(".room", has=page.locator("[data-n='fc1']"))).to_contain_text("8.19 k / 16.4 k")
    window.picture("live")
    # What somebody else wrote meanwhile is not written over.
    page.locator(".cm-line", has_text="return self.fc2(x)").click()
    page.keyboard.press("End")
    page.keyboard.type("  # mine")
    served.change("A LeNet for MNIST", "A network for MNIST")
    expect(page.locator(".live output").first).to_have_text(re.compile(r"live"))
    page.wait_for_function("() => document.documentElement.dataset.version >= 4")
    expect(page.locator(".cm-line", has_text="# mine")).to_have_count(1)
    window.said.clear()
    page.get_by_role("button", name="save").click()
    expect(page.get_by_role("alert")).to_contain_text("changed")
    assert "# mine" not in served.file.read_text(encoding="utf-8")
    page.get_by_role("button", name="discard").click()
    expect(page.locator(".cm-line", has_text="# mine")).to_have_count(0)
    expect(page.get_by_role("button", name="save")).to_have_count(0)
    assert all("409" in line for line in window.said)  # the browser says so of every refused request
    window.said.clear()


def test_target_and_options_change(window: Window, served: Served) -> None:
    page = show(window, served, "view=chip")
    expect(page.locator(".chip h3").first).to_have_text("speck2f")
    page.get_by_label("target").select_option("lava")
    expect(page.locator(".chip h3").first).to_have_text("Loihi 2")
    expect(page.get_by_role("heading", level=1)).to_have_text("snncc LeNet on lava")
    page.get_by_role("button", name="options").click()
    page.get_by_label("timesteps").fill("5")
    page.keyboard.press("Tab")
    expect(page.locator(".details dl").nth(1)).to_contain_text("timesteps5")
    window.picture("live-options")
    page.get_by_label("timesteps").fill("0")  # no such number
    page.keyboard.press("Tab")
    expect(page.get_by_role("alert")).to_contain_text("from 1")
    expect(page.locator(".details dl").nth(1)).to_contain_text("timesteps5")
    page.get_by_label("bias").select_option("error")
    expect(page.locator(".verdict")).to_have_text(re.compile("✗"))
    page.get_by_label("bias").select_option("keep")
    expect(page.locator(".verdict")).to_have_text("✓ compiled")
    assert all("400" in line for line in window.said)
    window.said.clear()


def test_the_server_ends(window: Window, tmp_path: Path, served: Served) -> None:
    page = show(window, served, "view=text")
    page.route("**/events", lambda route: route.abort())
    page.reload()
    expect(page.locator(".live output").first).to_have_text("server gone")
    window.said.clear()
