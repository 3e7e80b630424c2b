"""A page in a browser, and what it did."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

PICTURES = Path(__file__).parents[2] / "build/pictures"


@dataclass
class Window:
    """A page, and what it did."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, address: str | Path, words: str = "") -> Page:
        """Go there, and wait until it shows something."""
        url = address.as_uri() if isinstance(address, Path) else address
        self.page.goto("about:blank")  # else a change of the words alone loads nothing
        self.page.goto(f"{url}#{words}" if words else url)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self.page

    def picture(self, name: str) -> None:
        """Take a picture for the documentation."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(150)  # what comes into sight in the next frame
        shot = Image.open(io.BytesIO(self.page.screenshot()))
        few = shot.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(PICTURES / f"{name}.png", optimize=True)  # less than half the size
