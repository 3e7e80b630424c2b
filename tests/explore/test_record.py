"""The record of a compile: what it says is what the stages hold."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import any_graph
from torch import nn
from zoo import SEQUENTIAL_ZOO, ZOO, build, example_input

import snncc
from snncc.compilation import FEW, spread
from snncc.explore import SCHEMA, differences, record
from snncc.ir import Diagnostic, Graph, Severity, parse, print_graph
from snncc.passes.base import StageRecord

ROOT = Path(__file__).parents[2]


@lru_cache
def compiled(name: str) -> snncc.CompiledModel:
    x = example_input({**ZOO, **SEQUENTIAL_ZOO}[name].input_shape, 8, seed=1).numpy()
    return snncc.compile(build(name), "speck2f" if name.startswith("chip") else "reference", calibration=x, timesteps=4)


@lru_cache
def of(name: str) -> dict[str, Any]:
    return compiled(name).record()


def test_it_is_json_and_says_what_the_stages_hold() -> None:
    model, data = compiled("resnet18"), of("resnet18")
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (data["schema"], data["network"], data["target"]) == (SCHEMA, "ResNet", "reference")
    assert [stage["label"] for stage in data["stages"]] == [r.label for r in model.records]
    for stage, here in zip(data["stages"], model.records, strict=True):
        assert stage["changed"] == here.changed
        assert stage["seconds"] == here.seconds >= 0
        assert stage["memory"] == here.memory >= 0
        assert parse(stage["text"]) == here.graph
        assert [node["name"] for node in stage["nodes"]] == [node.name for node in here.graph.nodes]
        for node in stage["nodes"]:
            assert node["args"] == list(here.graph[node["name"]].args)
            assert node["type"]["shape"] == list(here.graph[node["name"]].type.shape)
            assert node["text"] in stage["text"]
    assert sum(stage["memory"] for stage in data["stages"]) >= 0
    first, *rest = data["stages"]
    assert first["diff"] == []
    for stage in rest:
        assert bool(stage["diff"]) <= stage["changed"]
        assert (stage["nodes_changed"] + stage["nodes_removed"] > 0) <= stage["changed"]


def test_every_node_of_the_last_stage_leads_to_the_users_line_and_to_all_its_forms() -> None:
    """In two steps: its places, and who shares them."""
    data = of("resnet18")
    by_place = [{place for node in stage["nodes"] for place in node["places"]} for stage in data["stages"]]
    files = data["sources"]
    for node in data["stages"][-1]["nodes"]:
        assert node["places"], node["name"]
        for number in node["places"]:
            place = data["places"][number]
            assert files[place["file"]].splitlines()[place["line"] - 1].strip()
        assert all(by & set(node["places"]) for by in by_place), node["name"]


def test_numbers_are_those_of_the_network() -> None:
    model, data = compiled("mlp"), of("mlp")
    x = model.sample[0][0]
    first = data["stages"][0]
    scores = model.network(x, "ann")
    numbers = next(n["numbers"] for n in first["nodes"] if n["name"] == first["outputs"][0])
    assert numbers["min"] == pytest.approx(scores.min(), rel=1e-5)
    assert numbers["max"] == pytest.approx(scores.max(), rel=1e-5)
    assert numbers["rms"] == pytest.approx(float(np.sqrt((scores**2).mean())), rel=1e-5)
    last = next(s for s in reversed(data["stages"]) if s["changed"])
    end = next(n["numbers"] for n in last["nodes"] if n["name"] == last["outputs"][0])
    rates = model.network(x, last["stage"])
    assert end["error"] == pytest.approx(np.linalg.norm(rates - scores) / np.linalg.norm(scores), rel=1e-4)
    assert 0 < end["error"] < 0.5
    assert all(
        "numbers" not in node
        for stage in data["stages"]
        if not stage["changed"]
        for node in stage["nodes"][1:]
        if stage["index"]
    )


def test_an_error_is_from_the_value_that_a_node_stands_for() -> None:
    """A convolution that took a batch norm in stands for what the batch norm gave, not for its own value before."""
    data = of("lenet_bn")
    folded = next(s for s in data["stages"] if s["pass"] == "fold-batch-norm")
    errors = {n["name"]: n["numbers"].get("error") for n in folded["nodes"]}
    assert errors["conv2d_0"] < 1e-5 and errors["relu_2"] < 1e-5


def test_histograms_count_what_is_there() -> None:
    model, data = compiled("lenet_bn"), of("lenet_bn")
    for stage, here in zip(data["stages"], model.records, strict=True):
        for node in stage["nodes"]:
            if "weight" in node["attributes"]:
                value = here.graph.value(here.graph[node["name"]].op.weight)  # type: ignore[attr-defined]
                found = data["params"][node["attributes"]["weight"]["digest"]]
                assert (found["min"], found["max"]) == (value.min(), value.max())
                assert found["mean"] == pytest.approx(float(value.mean()), rel=1e-4, abs=1e-6)
                assert found["zeros"] == pytest.approx(float((value == 0).mean()))
                assert sum(found["histogram"]) == value.size
                if value.dtype.kind == "i" and len(found["histogram"]) == int(value.max()) - int(value.min()) + 1:
                    one = int(value.reshape(-1)[0])
                    assert found["histogram"][one - int(value.min())] == (value == one).sum()
            numbers = node.get("numbers")
            if numbers and numbers["histogram"]:
                assert sum(numbers["histogram"]) == 8 * int(np.prod(node["type"]["shape"]))
                assert numbers["histogram"][0] > 0 and numbers["histogram"][-1] > 0


def test_spread_of_what_has_none() -> None:
    assert spread(np.full(5, 2.5))["histogram"] == []
    assert spread(np.array([1.0, np.inf]))["histogram"] == []
    assert spread(np.array([-128, 127, 127], np.int8))["histogram"] == [1, *[0] * 254, 2]
    many = np.arange(10**6) % 7
    assert sum(spread(many)["histogram"]) <= FEW and min(spread(many)["histogram"]) > 0


def test_a_model_that_was_trained_on_is_not_measured() -> None:
    """Its first stages share its memory, and would be another network's."""
    x = example_input(ZOO["mlp"].input_shape, 8, seed=1).numpy()
    model = build("mlp")
    compiled = snncc.compile(model, calibration=x, timesteps=4)
    with torch.no_grad():
        model[4].weight.add_(1.0)  # type: ignore[index]
        model[7].weight.add_(1.0)  # type: ignore[index]
    with pytest.raises(snncc.InputError) as caught:
        compiled.record()
    assert [d.code for d in caught.value.diagnostics] == ["SNN073"]
    assert compiled.report == snncc.compile(build("mlp"), calibration=x, timesteps=4).report  # measured by the compile


def test_a_compile_that_fails_has_a_record() -> None:
    x = example_input(ZOO["resnet18"].input_shape, 4, seed=1).numpy()
    with pytest.raises(snncc.CompileError) as caught:
        snncc.compile(build("resnet18"), "speck2f", calibration=x, timesteps=4)
    data = caught.value.compilation.record()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["ok"] is False and data["diagnostics"] == [d.to_json() for d in caught.value.diagnostics]
    assert [s["failed"] for s in data["stages"]] == [False] * (len(data["stages"]) - 1) + [True]
    assert data["fits"] == snncc.check(build("resnet18"), "speck2f", calibration=x, timesteps=4).layers != []
    assert data["chip"] == data["mapping"] == {} and data["report"] == []
    with pytest.raises(snncc.CompileError) as caught:  # could not even be traced
        snncc.compile(nn.Sequential(nn.Linear(4, 4), nn.GLU()), calibration=np.ones((4, 4), np.float32))
    data = caught.value.compilation.record()
    assert (data["ok"], data["stages"], data["diagnostics"][0]["code"]) == (False, [], "SNN001")


def test_the_rooms_of_a_chip_hold_what_its_memories_say() -> None:
    model, data = compiled("chip_lenet"), of("chip_lenet")
    rooms = {room["place"]: room for room in data["chip"]["rooms"]}
    assert len(rooms) == len(model.target.limits()["cores"])
    rows = {row["layer"]: row for row in model.report}
    for node in data["stages"][-1]["nodes"]:
        if node["name"] in rows:
            memories = {m["name"]: (m["used"], m["size"]) for m in rooms[node["place"]]["memories"]}
            row = rows[node["name"]]
            assert memories == {
                m: (row[f"{m}_used"], row[f"{m}_used"] + row[f"{m}_free"]) for m in ("kernel", "neuron", "bias")
            }


def test_of_a_folder(tmp_path: Path) -> None:
    loaded = snncc.load(compiled("mlp").save(tmp_path / "net"))
    data, fresh = loaded.record(sources=False), of("mlp")
    assert data["sources"] == {}
    assert data["places"] == fresh["places"]
    assert [s["text"] for s in data["stages"]] == [s["text"] for s in fresh["stages"]]
    assert not any("numbers" in node for stage in data["stages"] for node in stage["nodes"])


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """What ends a script, quotes, right-to-left text, ten thousand characters."""
    torch.manual_seed(0)
    names = ["</script><b>", "quotes\"'`", "\u202eright to left", "x" * 10_000]
    model = nn.Sequential()
    for name in names:
        model.add_module(name, nn.Linear(4, 4))
        model.add_module(f"{name}_relu", nn.ReLU())
    data = snncc.compile(model, calibration=np.ones((4, 4), np.float32), bias="keep").record()
    assert json.loads(json.dumps(data)) == data
    modules = {place["module"] for place in data["places"]}
    assert modules >= set(names)


def test_a_reader_may_have_other_records() -> None:
    """Any stages in order: the record is of what it is given."""
    graph = compiled("mlp").records[0].graph
    said = Diagnostic("SNN020", "a bias", severity=Severity.NOTE)
    data = record([StageRecord("trace", graph, 0.5, True, (said,), 7)], target="mine")
    assert (data["target"], data["stages"][0]["memory"], data["stages"][0]["seconds"]) == ("mine", 7, 0.5)
    assert data["stages"][0]["diagnostics"] == [said.to_json()]
    assert record([])["stages"] == []


@settings(max_examples=100)
@given(any_graph, any_graph)
def test_a_diff_makes_one_text_of_the_other(before: Graph, after: Graph) -> None:
    old, new = (print_graph(graph, locations=False).splitlines() for graph in (before, after))
    found = differences(before, after, locations=False, context=10**6)
    body = [line for line in found if not line.startswith("@@")]
    if before == after:
        assert found == []
    elif old != new:
        assert [line[1:] for line in body if line[0] in " -"] == old
        assert [line[1:] for line in body if line[0] in " +"] == new


def test_the_documentation_names_every_key() -> None:
    text = (ROOT / "docs/record.md").read_text(encoding="utf-8")
    known, data = set(re.findall(r"`(\w+)`", text)), of("mlp")
    assert SCHEMA in text
    room = of("chip_lenet")["chip"]["rooms"][0]
    params, numbers = data["params"].values(), data["stages"][0]["nodes"][0]["numbers"]
    parts = (data, data["stages"][-1], *data["stages"][-1]["nodes"], *data["places"], *params, numbers)
    for part in (*parts, room, *room["memories"], of("chip_lenet")["chip"]):
        assert set(part) <= known, set(part) - known
