"""Real samna on what the compiler makes of torch networks: it takes every one that our placement takes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chipnets import chip_network, graph_network
from samna_sdk import Samna
from zoo import GRAPH_ZOO, SEQUENTIAL_ZOO, build, example_input

import snncc
from snncc.ir import ops
from snncc.ir.types import per_channel
from snncc.targets.dynapcnn import run
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import with_own_biases
from snncc.targets.dynapcnn.decode import read_writes
from snncc.targets.dynapcnn.lower import Reader

pytestmark = pytest.mark.vendor
VALIDATED = [name for name, chip in CHIPS.items() if chip.validated]
VERSION = "samna 0.7.1.0"


@pytest.fixture
def python(sdk_python: Callable[[str], Path]) -> Path:
    return sdk_python("samna")


def zoo(name: str, chip: str) -> snncc.CompiledModel:
    x = example_input({**SEQUENTIAL_ZOO, **GRAPH_ZOO}[name].input_shape, 4, seed=1)
    return snncc.compile(build(name), chip, calibration=x, bias="keep")


def judge(python: Path, folder: Path, models: Sequence[snncc.CompiledModel]) -> list[dict[str, Any]]:
    """What the emitted runner says of each configuration: samna is started once for all."""
    paths = [folder / f"{i}.json" for i in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        path.write_text(str(model.target.files(model.graph, model.options)["config.json"]), encoding="utf-8")
    line = [python, run.__file__, "--validate", "--json", *paths]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return [json.loads(answer) for answer in done.stdout.splitlines()]


def test_samna_takes_the_zoo(python: Path, tmp_path: Path) -> None:
    asked = [(name, chip) for chip in VALIDATED for name in (*SEQUENTIAL_ZOO, *GRAPH_ZOO)]
    answers = judge(python, tmp_path, [zoo(*each) for each in asked])
    assert [(a["valid"], a["message"], a["chip"], a["version"]) for a in answers] == [
        (True, "", chip, VERSION) for _, chip in asked
    ]


def test_samna_takes_generated_networks(python: Path, tmp_path: Path) -> None:
    models: list[snncc.CompiledModel] = []
    seed = 0
    while len(models) < 40:
        seed += 1
        net, shape = chip_network(np.random.default_rng(seed))
        chip = VALIDATED[seed % len(VALIDATED)]
        try:
            x = example_input(shape, 4, seed)
            models.append(snncc.compile(net, chip, calibration=x, bias="strip" if seed % 3 else "keep"))
        except snncc.CompileError:
            assert seed < 80, "too few of the generated networks are legal"
    answers = judge(python, tmp_path, models)
    assert [(a["valid"], a["message"]) for a in answers] == [(True, "")] * 40
    assert {a["chip"] for a in answers} == set(VALIDATED)


def test_memory_writes_are_our_integers(samna: Samna) -> None:
    """Of 100 generated networks, chains and branches: what samna would write to the chip's memories is the mapped
    graph's weights, biases and initial potentials, none missing, none extra."""
    models: list[snncc.CompiledModel] = []
    seed, chains = 0, 0
    while len(models) < 100:
        seed += 1
        branches = seed % 5 > 1
        net, shape = (graph_network if branches else chip_network)(np.random.default_rng(seed))
        try:
            x = example_input(shape, 4, seed)
            models.append(snncc.compile(net, VALIDATED[seed % len(VALIDATED)], calibration=x, bias="keep"))
            chains += not branches
        except snncc.CompileError:
            assert seed < 160, "too few of the generated networks are legal"
    assert 20 < chains < 60
    texts = [str(model.target.files(model.graph, model.options)["config.json"]) for model in models]
    relays = hosted = 0
    for model, read in zip(models, samna.read_back(texts), strict=True):
        graph, chip = model.graph, CHIPS[model.target.name]
        config = model.target.config(graph, model.options)  # type: ignore[attr-defined]
        memories, reader = read_writes(read["writes"], config), Reader(graph, chip)
        # Biases that the host gives are weights on the chip, and then the core's own memory of them holds none.
        assert not any(np.any(memories[core.index].biases) for core in config.cores if core.biases is None)
        cores = (
            replace(
                core,
                weights=memories[core.index].weights,
                biases=None if core.biases is None else memories[core.index].biases,
            )
            for core in config.cores
        )
        written = {core.index: core for core in with_own_biases(replace(config, cores=tuple(cores))).cores}
        hosted += bool(config.host_biases)
        assert memories.keys() == {layer.core for layer in reader.layers}
        for layer in reader.layers:
            op, neuron = layer.node.op, layer.neuron
            assert isinstance(op, ops.Weighted) and neuron is not None and isinstance(neuron.op, ops.If)
            held = memories[layer.core]
            np.testing.assert_array_equal(written[layer.core].weights, reader.kernel(layer))
            biases = written[layer.core].biases
            wanted = 0 if op.bias is None else graph.value(op.bias)
            np.testing.assert_array_equal(0 if biases is None else biases, wanted)
            v0 = np.asarray(per_channel(neuron.op.v0, graph.store, 3))
            np.testing.assert_array_equal(held.initial, np.broadcast_to(v0, layer.output))
            relays += ".relay" in neuron.name or ".slice" in neuron.name
    assert relays and hosted  # the generator is worth its name


def test_validate(python: Path) -> None:
    assert zoo("chip_small", "speck2b").validate(python) == snncc.Validation(True, "", VERSION)


def test_a_saved_folder_stands_alone(python: Path, tmp_path: Path) -> None:
    """Moved elsewhere, with the SDK's own Python in isolated mode: nothing of snncc can be on its path."""
    zoo("chip_small", "dynapcnn").save(tmp_path / "built")
    moved = (tmp_path / "built").rename(tmp_path / "moved")
    gone = subprocess.run([python, "-I", "-c", "import snncc"], cwd=moved, capture_output=True, text=True, check=False)
    assert "No module named 'snncc'" in gone.stderr
    done = subprocess.run([python, "-I", "run.py"], cwd=moved, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{moved / 'config.json'} (dynapcnn, {VERSION}): valid\n"
    loaded = snncc.load(moved)
    assert loaded.validate(python) == snncc.Validation(True, "", VERSION)


@pytest.mark.parametrize("name", ["chip_small", "chip_mlp"])
def test_run_without_a_board(python: Path, name: str) -> None:
    """The input gets as far as the search for a board."""
    x = example_input(SEQUENTIAL_ZOO[name].input_shape, 2)
    with pytest.raises(snncc.InputError, match="no board found: looked for Speck2bTestboard") as caught:
        zoo(name, "speck2b").run(x, 4, python=python)
    assert [d.code for d in caught.value.diagnostics] == ["SNN081"]


def test_a_chip_that_this_samna_lacks(python: Path) -> None:
    with pytest.raises(snncc.InputError, match=rf"{VERSION}, .* does not know speck2f") as caught:
        zoo("chip_small", "speck2f").validate(python)
    assert [d.code for d in caught.value.diagnostics] == ["SNN080"]
