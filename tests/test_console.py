"""The table of a network that is divided over many cores."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from zoo import build, example_input

import snncc
from snncc.console import core_table, limits_view, partition_table
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
