"""Netron draws every stage's text: all operations, and an edge for every operand."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser.networks import lenet, of_zoo
from playwright.sync_api import Browser, expect

SERVE = """
import sys, netron
netron.start(sys.argv[1], address=("127.0.0.1", int(sys.argv[2])), browse=False)
netron.wait()
"""


@contextmanager
def netron(file: Path) -> Iterator[str]:
    """Its own server; the page's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SERVE, str(file), str(port)]) as server:
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


@pytest.mark.parametrize("network", ["lenet", "resnet18"])
@pytest.mark.parametrize("stage", ["ann", "snn", "int"])
def test_netron_draws_a_stage(browser: Browser, tmp_path: Path, network: str, stage: str) -> None:
    compiled = lenet() if network == "lenet" else of_zoo(network, "lynxi")
    file = compiled.export(tmp_path / f"{network}-{stage}.mlir", stage)
    graph = compiled.stages[stage]
    context = browser.new_context(viewport={"width": 900, "height": 900})
    context.route(lambda url: not url.startswith("http://127.0.0.1:"), lambda route: route.abort())
    page = context.new_page()
    with netron(file) as url:
        for _ in range(100):
            try:
                page.goto(url)
            except Exception:  # noqa: BLE001, PERF203 (its server is not there yet)
                page.wait_for_timeout(200)
            else:
                break
        # The operations, the function's arguments, and what it returns.
        ends = len(graph.inputs) + len(graph.outputs)
        accept = page.get_by_text("Accept", exact=True)
        for _ in range(100):
            if accept.count() and accept.first.is_visible():
                accept.first.click()  # its licence
            if page.locator("g.node").count():
                break
            page.wait_for_timeout(200)
        expect(page.locator("g.node")).to_have_count(len(graph.nodes) + ends)
        expect(page.locator("path.edge-path")).to_have_count(sum(len(n.args) for n in graph.nodes) + ends)
    context.close()
