"""The table of a network that is divided over many cores."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from zoo import build, example_input

import snncc
from snncc.api import Checked
from snncc.compiled import Report
from snncc.console import core_table, fits_table, limits_view, partition_table, simulation_table
from snncc.ir import CompileError, Diagnostic, Loc, Source
from snncc.targets import find


@pytest.fixture(scope="module")
def compiled() -> snncc.CompiledModel:
    x = example_input((3, 16, 16), 4).numpy()
    return snncc.compile(build("resnet_a"), "lava", calibration=x, bias="keep")


def text(made: object, width: int) -> str:
    out = Console(width=width, file=io.StringIO(), record=True, highlight=False)
    out.print(made)
    return "\n".join(line.rstrip() for line in out.export_text().splitlines())


@pytest.mark.parametrize("width", [80, 100, 140])
def test_partition(compiled: snncc.CompiledModel, width: int) -> None:
    table = core_table(compiled, width)
    assert table is not None and len(table.rows) == len(compiled.mapping["populations"])
    shown = text(table, width)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    assert ("█" in shown) == (width >= 100)
    assert ("chip 0 cores 2-3" in shown) == (width >= 120)
    assert shown.startswith("11 cores of Loihi 2, 1 chip\n") and "axons est." in shown
    first = next(line for line in shown.splitlines() if "conv1" in line)
    assert first.split()[:2] == ["conv1", "2"] and "50.0 %" in first
    words = " ".join(shown.split())
    assert "most cores: blocks.0.conv2 + relu.scale, 2 of 11, for neuron state (50.0 % full)" in words
    assert "form: process (" in words and "estimated by a core's limits" in words


def test_chips_and_cores_that_are_too_full(compiled: snncc.CompiledModel) -> None:
    row = compiled.mapping["populations"][0]
    full = row | {"fill": row["fill"] | {"core_words": 157.0}, "cores": 1234}
    shown = text(partition_table(compiled.mapping | {"chips": 11, "cores": 1234, "populations": [full]}), 140)
    assert "1,234 cores of Loihi 2, 11 chips" in shown and "████████ 157.0 %" in shown


def test_names_are_no_markup(compiled: snncc.CompiledModel) -> None:
    mapping = compiled.mapping
    named = {"layers": ["[red]a[/red]"]}
    made = partition_table(
        mapping
        | {"why": "[bold]b", "dominant": mapping["dominant"] | named}
        | {"populations": [mapping["populations"][0] | named]},
    )
    shown = text(made, 140)
    assert shown.count("[red]a[/red]") == 2 and "[bold]b" in shown


def test_targets_without_cores(compiled: snncc.CompiledModel) -> None:
    x = example_input((20,), 4).numpy()
    assert core_table(snncc.compile(build("mlp"), "reference", calibration=x, bias="keep")) is None


def test_limits_name_the_estimates() -> None:
    shown = text(limits_view(find("lava")), 100)
    assert "usable neurocores" in shown and "axons in (est.)" in shown and "kernel words" not in shown
    assert "kernel words" in text(limits_view(find("speck2b")), 100)


# --- what is printed of results ---------------------------------------------------------------------------------------


def test_results_print_as_a_line(compiled: snncc.CompiledModel) -> None:
    x = example_input((3, 16, 16), 4)
    small = (
        compiled, compiled.graph, compiled.records[0], compiled.simulate(x, 4, record="all"), compiled.selfcheck,
        compiled.target, compiled.options, find("speck2f"), Diagnostic("SNN001", "a" * 10**4),
    )  # fmt: skip
    assert max(len(repr(each)) for each in small) < 400
    assert repr(compiled).startswith("<ResNetA on lava: 11 layers, T = 32; output off by ")
    assert max(len(repr(each)) for each in compiled.stages.values()) < 100
    failed = snncc.check(build("resnet_a"), "speck2f", example_input=x)
    assert str(failed) == str(CompileError(failed))
    assert str(Checked([], [])) == "nothing stands in the way"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_report_prints_as_a_table(compiled: snncc.CompiledModel, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = str(compiled.report)
    lines = shown.splitlines()
    assert lines[0] == "ResNetA on lava" and max(map(len, lines)) <= width and "…" not in shown
    assert {"layer", "synops", "clipping", "rounding", "time", "error"} <= set(lines[2].split())
    (first,) = (line for line in lines if line.split()[:1] == ["conv1"])
    row = compiled.report[0]
    assert f"{100 * row['time']:.1f} %" in first and f"{100 * row['clipping']:.1f} %" in first
    assert ("weights" in lines[2].split()) == (width >= 100)
    assert repr(compiled.report) == shown and json.loads(json.dumps(compiled.report)) == compiled.report


def test_a_report_of_many_layers_is_of_those_that_matter() -> None:
    rows = [
        {
            "layer": f"conv{i}",
            "shape": [4, 8, 8],
            "weights": 100,
            "biases": 0,
            "neurons": 256,
            "synops": 5,
            "error": 0.1,
        }
        for i in range(150)
    ]
    rows[20]["weights"], rows[77]["synops"], rows[140]["reset"] = 9999, 10**6, 0.3
    report = Report(rows, "Net on lava")
    lines = str(report).splitlines()
    assert lines[0] == "Net on lava: 30 of 150 layers, those that lose or take most" and len(lines) <= 40
    names = [line.split()[0] for line in lines if line.lstrip().startswith("conv")]
    assert {"conv20", "conv77", "conv140"} <= set(names) and names == sorted(names, key=lambda name: int(name[4:]))
    assert "24,899 weights, 38,400 neurons" in " ".join(lines)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_what_fits_a_chip_is_not_cut(width: int) -> None:
    big = nn.Sequential(nn.Conv2d(1, 512, 4), nn.ReLU(), nn.Conv2d(512, 512, 5), nn.ReLU()).eval()
    found = snncc.check(big, "speck2f", example_input=torch.zeros(1, 1, 12, 12))
    shown = text(fits_table(found.layers, find("speck2f"), width), width)
    lines = shown.splitlines()
    assert "…" not in shown and max(map(len, lines)) <= width and len(lines) < 24
    assert any(line.split()[0] == "conv2d_2" and "of 512" in line for line in lines if line.strip())
    assert (("kernel" in lines[3]), ("to fit one core" in shown)) == (width >= 100, width >= 140)


def test_a_simulation_as_a_table() -> None:
    shown = text(simulation_table({"relu": 0.25}, {"conv": 123456.0}), 80).splitlines()
    assert [line.split() for line in shown[3:5]] == [["relu", "0.250"], ["conv", "123", "k"]]


def test_a_line_of_source_is_not_longer_than_a_page(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("x" * 500)
    said = Diagnostic("SNN001", "gelu is unknown", Loc((Source("a", str(file), 1),))).render()
    assert f"1 | {'x' * 97}...\n" in said
