"""The explorer: how large its page of a ResNet-50 is and how soon it shows, and how soon a recompile of a LeNet shows
in the live page after its file was saved.

    python benchmarks/explorer.py [--runs 9]

Needs Chromium (`make browser` installs it). Prints medians and ranges. A page counts from the start of the navigation
until it has drawn itself (the browser's first contentful paint, and the page's own mark), in a fresh browser each time;
a recompile from the end of the write to the file until the changed network stands in the page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Playwright, sync_playwright
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def launched(playwright: Playwright) -> Browser:
    """A fresh browser."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit("no Chromium here: make browser")
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-background-networking"])


def page_of_resnet50(path: Path) -> float:
    """Write the page; the seconds that the record took."""
    import zoo

    import snncc

    model = zoo._seeded(partial(zoo.resnet, zoo.Bottleneck, (3, 4, 6, 3)), (3, 96, 96), 0, batch=4)
    x = np.random.default_rng(0).random((4, 3, 224, 224), dtype=np.float32)
    compiled = snncc.compile(model, "reference", calibration=x, timesteps=8, bias="keep")
    assert compiled.report  # which every folder has, too
    begin = time.perf_counter()
    compiled.explore(path)
    return time.perf_counter() - begin


def opens(playwright: Playwright, path: Path, words: str) -> tuple[float, float]:
    """Seconds to the first contentful paint, and until the page says that it is ready."""
    browser = launched(playwright)
    page = browser.new_page(viewport={"width": 1500, "height": 880})
    page.goto(f"{path.as_uri()}#{words}")
    page.wait_for_selector("html[data-ready]", state="attached")
    paint = page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    found = paint.json_value() / 1000, float(page.evaluate("() => +document.documentElement.dataset.ready")) / 1000
    browser.close()
    return found


def shows(playwright: Playwright, runs: int) -> list[float]:
    """Seconds from a save to the page."""
    import lenet

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = Path(shutil.copy(ROOT / "examples/lenet.py", folder))
        np.save(folder / "images.npy", lenet.data()[0][:64])
        line = [sys.executable, "-m", "snncc", "explore", "lenet.py:LeNet", "--calibration", "images.npy"]
        line += ["--target", "speck2f", "--bias", "keep", "--watch", "--json", "--no-open"]
        with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            browser = launched(playwright)
            page = browser.new_page(viewport={"width": 1500, "height": 880})
            page.goto(f"{url}#view=graph")
            page.wait_for_selector(".leaf[data-n='fc1'] .note:text-is('linear 64')", state="attached", timeout=60_000)
            text, found = file.read_text(encoding="utf-8"), []
            for i in track(range(runs), "recompile", transient=True):
                n = 40 + i
                fresh = text.replace("16 * 4 * 4, 64)", f"16 * 4 * 4, {n})").replace(
                    "Linear(64, 10)", f"Linear({n}, 10)"
                )
                time.sleep(0.7)  # a person does not save in the midst of a compile
                file.write_text(fresh, encoding="utf-8")
                begin = time.perf_counter()
                # In every frame: what waits for a selector looks only every half second in the end.
                shown = "n => document.querySelector(\".leaf[data-n='fc1'] .note\")?.textContent === `linear ${n}`"
                page.wait_for_function(shown, arg=n, timeout=60_000)
                found.append(time.perf_counter() - begin)
            browser.close()
            server.send_signal(signal.SIGINT)
            server.communicate()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("what", "median", "from", "to"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def row(what: str, seconds: list[float]) -> None:
        table.add_row(what, *(f"{s:.2f} s" for s in (statistics.median(seconds), min(seconds), max(seconds))))

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as name:
        path = Path(name) / "resnet50.html"
        wrote = page_of_resnet50(path)
        for view in ("text", "graph", "numbers"):
            times = [opens(playwright, path, f"view={view}") for _ in track(range(runs), view, transient=True)]
            row(f"ResNet-50, {view}: first paint", [paint for paint, _ in times])
            row(f"ResNet-50, {view}: ready", [ready for _, ready in times])
        row("LeNet: from save to page", shows(playwright, runs))
        size = path.stat().st_size / 1e6
    out = Console()
    out.print(table)
    out.print(f"ResNet-50's page: {size:.2f} MB, written in {wrote:.1f} s (measuring included; once)")


if __name__ == "__main__":
    main()
