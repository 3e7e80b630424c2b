"""The explorer's page in a browser: every view, of compiles that succeed and that fail."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from browser.networks import lenet, of_zoo
from browser.window import Window
from playwright.sync_api import Page, expect
from torch import nn

import snncc
from snncc.compilation import Compilation
from snncc.explore.html import drawn


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def show(pages: Path, name: str, compiled: Compilation) -> Path:
    path = pages / f"{name}.html"
    return path if path.exists() else compiled.explore(path)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=re.compile(f"^{name}", re.IGNORECASE)).click()
    expect(page.get_by_role("tab", name=re.compile(f"^{name}", re.IGNORECASE))).to_have_attribute(
        "aria-selected", "true"
    )


def choose(page: Page, stage: int) -> None:
    page.locator(".passes li button").nth(stage).click()


def named(page: Page, selector: str) -> set[str]:
    names = page.eval_on_selector_all(selector, "all => all.map(e => e.dataset.n)")
    return set(names)


# --- every view ------------------------------------------------------------------------------------------------------


def test_every_view_of_a_lenet(window: Window, pages: Path) -> None:
    compiled = lenet()
    record, last = drawn(compiled.record()), len(compiled.records) - 1
    names = {node.name for node in compiled.records[-1].graph.nodes}
    page = window.open(show(pages, "lenet", compiled))
    expect(page).to_have_title("LeNet on speck2f · snncc")
    expect(page.locator(".verdict")).to_have_text("✓ compiled")
    assert page.locator(".passes li").count() == last + 1
    unchanged = [s["index"] for s in record["stages"] if not s["changed"]]
    assert page.eval_on_selector_all(".passes li", "all => all.map(e => e.classList.contains('unchanged'))") == [
        i in unchanged for i in range(last + 1)
    ]
    # The source has its line numbers, and how many nodes come from each line.
    line = page.locator(".cm-line", has_text="self.norm2(self.conv2(x))")
    expect(line).to_be_visible()
    expect(page.locator(".counts .count:visible").first).to_be_visible()
    window.picture("start")

    # text: every node of both stages, and the words that differ
    assert named(page, ".line.b[data-n]") == names
    quantize = next(s["index"] for s in record["stages"] if s["pass"] == "quantize")
    choose(page, quantize)
    expect(page.locator(".line.b .fresh").first).to_be_visible()
    line.hover()
    lit = {
        n.name
        for n in compiled.records[quantize].graph.nodes
        if any("conv2" in s.module or "norm2" in s.module for s in n.loc)
    }
    assert lit and lit <= named(page, ".line.b.lit")
    assert named(page, ".line.a.lit") and named(page, ".line.b.lit") < {
        n.name for n in compiled.records[quantize].graph.nodes
    }
    line.click()
    window.picture("text")
    page.keyboard.press("Escape")
    page.get_by_label("changed only").check()
    assert page.locator(".passes li").count() == last + 1 - len(unchanged)
    page.get_by_label("changed only").uncheck()

    # graph
    tab(page, "graph")
    choose(page, 0)
    assert named(page, ".leaf") == {n.name for n in compiled.records[0].graph.nodes}
    choose(page, last)
    assert named(page, ".leaf") == names
    page.locator(".leaf[data-n='conv2']").click()
    expect(page.locator(".details .node-name")).to_have_text("conv2")
    expect(page.locator(".leaf.chosen")).to_have_count(1)
    expect(page.locator(".cm-line.lit")).to_have_text(re.compile(r"self\.norm2\(self\.conv2\(x\)\)"))
    window.picture("graph")
    before = page.locator("svg.canvas > g").get_attribute("transform")
    page.locator("svg.canvas").hover()
    page.mouse.wheel(0, -300)
    page.wait_for_function("t => document.querySelector('svg.canvas > g').getAttribute('transform') !== t", arg=before)
    page.get_by_role("button", name="fit").click()
    page.wait_for_function("t => document.querySelector('svg.canvas > g').getAttribute('transform') === t", arg=before)

    # numbers
    tab(page, "numbers")
    check = record["selfcheck"]
    assert named(page, ".losses tbody tr") == {layer["name"] for layer in check["layers"]}
    kept = [f"{100 * (1 - check[name]['changed']):.1f} % keep their class" for name in ("network", "simulated")]
    assert [text.partition(";")[0] for text in page.locator(".losses .figures dd").all_text_contents()] == kept
    assert named(page, ".numbers section:not(.losses) tbody tr") == {row["layer"] for row in record["report"]}
    page.locator(".numbers tbody tr[data-n='conv2']").click()
    charts = page.locator(".chosen-numbers .chart")
    expect(charts).to_have_count(3)
    expect(charts.nth(0).locator(".bars")).to_have_count(2)  # in float, and in integers
    expect(charts.nth(1).locator(".rule.threshold")).to_have_count(1)
    assert charts.nth(1).locator(".grid line").count() > 10
    window.picture("numbers")

    # chip
    tab(page, "chip")
    rooms = record["chip"]["rooms"]
    assert page.locator(".room:not(.host)").count() == len(rooms)
    for room in rooms:
        box = page.locator(f".room[data-room='{room['name']}']")
        assert box.locator(".memory").count() == 3
        assert named(page, f".room[data-room='{room['name']}'] [data-n]") == {
            n["name"] for n in record["stages"][-1]["nodes"] if n.get("place") == room["place"]
        }
    places = {n["name"]: n.get("place", "") for n in record["stages"][-1]["nodes"]}
    ways = {(places[a], places[n["name"]]) for n in record["stages"][-1]["nodes"] for a in n["args"]}
    assert page.locator(".wire").count() == len({(a, b) for a, b in ways if a != b})
    page.locator(".tenant[data-n='conv2']").click()
    expect(page.locator(".details .node-name")).to_have_text("conv2")
    window.picture("chip")

    # diagnostics
    tab(page, "diagnostics")
    assert page.locator(".diagnostics article").count() == len(record["diagnostics"])


def test_a_residual_network(window: Window, pages: Path) -> None:
    compiled = of_zoo("resnet18", "lynxi")
    last = compiled.records[-1].graph
    page = window.open(show(pages, "resnet18", compiled), "view=graph")
    expect(page.locator(".verdict")).to_have_text("✓ compiled")
    page.get_by_role("button", name="open all").click()
    assert named(page, ".leaf") == {n.name for n in last.nodes}
    assert page.locator(".group").count() >= 8
    # An edge can be followed from the box of one module into that of the next.
    page.get_by_role("button", name=re.compile("^shut all")).click()
    assert page.locator(".leaf").count() < len(last.nodes)
    page.locator(".shut").first.click()
    # What is looked for is shown: the boxes around it open.
    page.get_by_role("button", name=re.compile("^shut all")).click()
    page.keyboard.press("/")
    page.keyboard.type("stages.1.0.add")
    page.keyboard.press("Enter")
    expect(page.locator(".leaf.chosen")).to_be_in_viewport()
    # What one shuts then stays shut. (Its title may be out of sight.)
    page.get_by_role("button", name="shut stages").dispatch_event("click")
    expect(page.locator(".leaf.chosen")).to_have_count(0)
    page.get_by_role("button", name="open all").click()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("stages.1.0.add")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("+")
    window.picture("resnet18-graph")
    tab(page, "text")
    assert named(page, ".line.b[data-n]") == {n.name for n in last.nodes}
    tab(page, "numbers")
    assert page.locator(".numbers section:not(.losses) tbody tr").count() == len(
        compiled.record(numbers=False)["report"]
    )
    page.locator(".numbers tbody tr[data-n='stages.0.0.conv1']").click()
    expect(page.locator(".chosen-numbers .chart")).to_have_count(3)
    window.picture("resnet18-numbers")
    tab(page, "chip")
    expect(page.locator(".room:not(.host)")).to_have_count(1)
    tab(page, "diagnostics")
    window.picture("resnet18-diagnostics")


def test_many_cores(window: Window, pages: Path) -> None:
    compiled = of_zoo("conv_variants", "lava")
    page = window.open(show(pages, "lava", compiled), "view=chip")
    rooms = compiled.record(numbers=False)["chip"]["rooms"]
    assert len(rooms) > 1 and page.locator(".room:not(.host)").count() == len(rooms)
    assert page.locator(".room:not(.host):not(.free)").count() == len(rooms)
    window.picture("lava-chip")


def test_a_compile_that_fails(window: Window, pages: Path) -> None:
    failed = of_zoo("resnet18", "speck2f")
    page = window.open(show(pages, "failed", failed))
    expect(page.get_by_role("tab", name=re.compile("diagnostics"))).to_have_attribute("aria-selected", "true")
    errors = [d for d in failed.diagnostics if d.severity.value == "error"]
    expect(page.locator(".verdict")).to_have_text(f"✗ {len(errors)} errors")
    assert page.locator("article.error").count() == len(errors)
    expect(page.locator(".passes li.failed .name")).to_have_text(f"✗ {failed.records[-1].label.partition('{')[0]}")
    # At its place in the source, and from the list to it.
    where = errors[0].loc.sources[0]
    page.locator("article.error .where button").first.click()
    expect(page.locator(".details h3").first).to_have_text(f"zoo.py:{where.line}")
    expect(page.locator(".cm-line.chosen")).to_be_visible()
    expect(page.locator(".code .said.error").first).to_contain_text(errors[0].code)
    window.picture("failed")
    tab(page, "graph")
    page.get_by_role("button", name="open all").click()
    assert page.locator(".flag.error").count() >= 1
    tab(page, "chip")
    assert page.locator(".fits tbody tr").count() == len(failed.record(numbers=False)["fits"]) > 0
    window.picture("failed-chip")
    tab(page, "numbers")
    assert page.locator(".numbers tbody tr").count() > 0
    tab(page, "text")


def test_a_network_that_cannot_be_traced(window: Window, pages: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.GLU())
    with pytest.raises(snncc.CompileError) as caught:
        snncc.compile(net, calibration=np.ones((4, 4), np.float32))
    page = window.open(show(pages, "untraced", caught.value.compilation))
    expect(page.locator("article.error")).to_contain_text("SNN001")
    for name in ("text", "graph", "numbers", "chip"):
        tab(page, name)
        expect(page.locator("article.error")).to_contain_text("SNN001")


# --- from any node to everything that it comes from ------------------------------------------------------------------


def test_every_node_of_the_last_stage_leads_everywhere_in_two_clicks(window: Window, pages: Path) -> None:
    """One click on the node: its line is in sight, and every form is named. A second: any of them."""
    compiled = of_zoo("resnet18")
    record = drawn(compiled.record())
    stages, last = record["stages"], len(record["stages"]) - 1
    page = window.open(show(pages, "resnet18-reference", compiled), f"view=text&stage={last}&with={last - 1}")
    places = record["places"]
    reached = 0
    for node in stages[last]["nodes"]:
        page.locator(f".line.b[data-n='{node['name']}']").click(position={"x": 4, "y": 4})
        expect(page.locator(".details .node-name")).to_have_text(node["name"])
        # its source: the line is lit, and in sight
        place = places[node["places"][0]]
        text = record["sources"][place["file"]].splitlines()[place["line"] - 1]
        expect(page.locator(".cm-line.lit", has_text=text.strip()).first).to_be_in_viewport()
        # its forms: in every stage at least one, and all that share a place with it
        found: dict[int, set[str]] = {}
        rows = page.eval_on_selector_all(
            ".details .forms button", "all => all.map(e => [e.dataset.form, e.lastChild.textContent.trim()])"
        )
        for span, name in rows:
            first, end = map(int, span.split())
            for i in range(first, end + 1):
                found.setdefault(i, set()).add(name)
        for stage in stages:
            forms = {
                n["name"] for n in stage["nodes"] if set(n["places"]) & set(node["places"]) or n["name"] == node["name"]
            }
            assert found[stage["index"]] == forms != set(), (node["name"], stage["label"])
        # and the second click
        for i, (span, name) in enumerate(rows):
            page.locator(".details .forms button").nth(i).click()
            expect(page.locator(".details .node-name")).to_have_text(name)
            assert f"in={span.split()[0]}" in page.url
            expect(page.locator(f".line.chosen[data-n='{name}']").first).to_be_in_viewport()
            reached += 1
            back = f"view=text&stage={last}&with={last - 1}&node={node['name']}&in={last}"
            page.evaluate("words => { location.hash = words }", back)
            expect(page.locator(".details .node-name")).to_have_text(node["name"])
    assert reached >= 3 * len(stages[last]["nodes"])


# --- the link, the keys, the colours ---------------------------------------------------------------------------------


def test_a_link_restores_the_view(window: Window, pages: Path) -> None:
    path = show(pages, "lenet", lenet())
    page = window.open(path)
    tab(page, "graph")
    choose(page, len(lenet().records) - 1)
    page.get_by_role("button", name="shut fc2").click()
    page.locator(".leaf[data-n='conv1']").click()
    page.keyboard.press("t")
    page.keyboard.press("h")
    words = page.url.partition("#")[2]
    again = window.open(path, words)
    expect(again.get_by_role("tab", name="graph")).to_have_attribute("aria-selected", "true")
    expect(again.locator(".passes li.right .n")).to_have_text(f"{len(lenet().records) - 1:02}")
    expect(again.locator(".details .node-name")).to_have_text("conv1")
    expect(again.get_by_role("button", name="open fc2")).to_have_count(1)
    expect(again.locator("html")).to_have_attribute("data-theme", "dark")
    expect(again.get_by_label("changed only")).to_be_checked()
    assert again.url.partition("#")[2] == words
    for words in ("view=nothing&stage=99&with=-1", "node=%3Cb%3E&in=1", "%%%", "stage=1e9&in=zz&line=x", "__proto__=1"):
        window.open(path, words)
        expect(page.locator(".passes li.right")).to_have_count(1)


def test_the_keys(window: Window, pages: Path) -> None:
    compiled = lenet()
    page = window.open(show(pages, "lenet", compiled))
    for i, name in enumerate(("text", "graph", "numbers", "chip", "diagnostics")):
        page.keyboard.press(str(i + 1))
        expect(page.get_by_role("tab", name=re.compile(name))).to_have_attribute("aria-selected", "true")
    page.keyboard.press("1")
    now = int(page.locator(".passes li.right .n").inner_text())
    page.keyboard.press("k")
    expect(page.locator(".passes li.right .n")).to_have_text(f"{now - 1:02}")
    page.keyboard.press("j")
    expect(page.locator(".passes li.right .n")).to_have_text(f"{now:02}")
    page.keyboard.press("[")
    expect(page.locator(".passes li.left .n")).to_have_text(f"{now - 2:02}")
    nodes = [n.name for n in compiled.records[now].graph.nodes]
    for name in nodes[:3]:
        page.keyboard.press("ArrowDown")
        expect(page.locator(".details .node-name")).to_have_text(name)
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".details .node-name")).to_have_text(nodes[1])
    page.keyboard.press("ArrowRight")
    expect(page.locator(".details .node-name")).to_have_text(nodes[2])
    page.keyboard.press("N")
    expect(page.locator(".details p").first).to_contain_text(f"stage {now - 1:02}")
    page.keyboard.press("/")
    page.keyboard.type("conv2")
    expect(page.locator(".search li").first).to_contain_text("conv2")
    page.keyboard.press("Enter")
    expect(page.locator(".details .node-name")).to_have_text("conv2")
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_visible()
    window.picture("keys")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator(".details .node-name")).to_have_count(0)
    # Everything is reached with Tab.
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.closest('.pane, header')?.className ?? ''"))
    assert {"top", "pane passes", "pane view"} <= seen


def test_dark(window: Window, pages: Path) -> None:
    window.page.emulate_media(color_scheme="dark")
    page = window.open(show(pages, "lenet", lenet()), "view=numbers&node=conv1&in=0")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour))) < 60
    window.picture("dark")
    page.keyboard.press("t")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(map(int, re.findall(r"\d+", colour))) > 200


def test_a_narrow_window(window: Window, pages: Path) -> None:
    window.page.set_viewport_size({"width": 420, "height": 800})
    page = window.open(show(pages, "lenet", lenet()))
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    tab(page, "graph")
    expect(page.locator(".leaf").first).to_be_attached()


# --- what must not happen --------------------------------------------------------------------------------------------


def test_hostile_names_are_text(window: Window, pages: Path) -> None:
    torch.manual_seed(0)
    attack = "</script><script>hit=1</script><img src=x onerror=hit=1>"
    names = [
        attack,
        "quotes\"'`&amp;",
        "\u202eright to left \u2067",
        "x" * 10_000,
        "__proto__",
        "constructor",
        "{{a}}${b}",
    ]
    model = nn.Sequential()
    for name in names:
        model.add_module(name, nn.Linear(4, 4))
        model.add_module(f"{name}_relu", nn.ReLU())
    for target in ("reference", "lynxi"):
        compiled = snncc.compile(model, target, calibration=np.ones((4, 4), np.float32), bias="keep")
        page = window.open(show(pages, f"hostile-{target}", compiled))
        last = compiled.records[-1].graph
        assert named(page, ".line.b[data-n]") == {n.name for n in last.nodes}
        for view in ("text", "graph", "numbers", "chip", "diagnostics"):
            tab(page, view)
        tab(page, "text")
        found = set()
        for i in range(len(last.nodes)):
            page.locator(".line.b[data-n]").nth(i).click(position={"x": 4, "y": 4})
            found |= set(page.locator(".sources-of em").all_inner_texts())
        shown = {text.strip() for text in found}
        assert attack in shown or attack[:79] + "…" in shown
        assert any(text.startswith("x" * 70) and len(text) < 100 for text in shown)
        assert page.evaluate("window.hit") is None
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    window.picture("hostile")


def test_in_a_notebook(window: Window, pages: Path) -> None:
    """Jupyter puts what _repr_html_ says into its own page."""
    path = pages / "notebook.html"
    path.write_text(f"<!doctype html><h1>notebook</h1>{lenet()._repr_html_()}", encoding="utf-8")
    window.page.goto(path.as_uri())
    frame = window.page.frame_locator("iframe")
    expect(frame.locator(".verdict")).to_have_text("✓ compiled")
    frame.get_by_role("tab", name="graph").click()
    expect(frame.locator(".leaf").first).to_be_visible()
    frame.locator(".leaf[data-n='conv1']").click()
    expect(frame.locator(".details .node-name")).to_have_text("conv1")


def test_a_page_holds_its_policy(window: Window, pages: Path) -> None:
    """Nothing that gets into the page could reach out of it."""
    text = show(pages, "lenet", lenet()).read_text(encoding="utf-8")
    assert html.unescape(re.findall(r'Content-Security-Policy" content="([^"]+)"', text)[0]).startswith(
        "default-src 'none'"
    )
    assert text.count("</script>") == 3
    page = window.open(pages / "lenet.html")
    failed = page.evaluate("fetch('http://127.0.0.1:9/').then(() => false, () => true)")
    assert failed
    assert any("Content Security Policy" in line for line in window.said)
    window.said.clear()


def test_of_a_folder(window: Window, pages: Path) -> None:
    compiled = lenet()
    assert isinstance(compiled, snncc.CompiledModel)
    loaded = snncc.load(compiled.save(pages / "folder"))
    page = window.open(show(pages, "loaded", loaded))
    expect(page.locator(".verdict")).to_have_text("✓ compiled")
    tab(page, "numbers")
    expect(page.locator(".numbers .hint").first).to_contain_text("not measured")
    assert page.locator(".numbers table").last.locator("tbody tr").count() == len(loaded.report)
    tab(page, "chip")
    assert page.locator(".room .memory").count() > 0
