"""The Lava target without Lava: what its passes keep, what a program computes, and what is refused. What Lava itself
makes of it is in tests/vendor."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lavanets import lava_network
from torch import nn
from zoo import ZOO, build, example_input

import snncc
from snncc.compiled import CompiledModel
from snncc.engine import Simulation, TorchEngine
from snncc.ir import CompileError, Graph, InputError
from snncc.ir.diagnostics import errors
from snncc.ir.loihi import AtrLif, CubaLif
from snncc.ir.types import Array
from snncc.targets.lava.lower import longest
from snncc.targets.lava.program import Connection, Program

T = 8
# No max pooling, and every layer behind an activation.
TAKEN = [name for name in ZOO if name not in ("vgg", "resnet18", "functional")]


@lru_cache
def compiled(name: str, reset: str) -> tuple[CompiledModel, Array]:
    x = np.asarray(example_input(ZOO[name].input_shape, 2, seed=1))
    return snncc.compile(build(name), "lava", calibration=x, reset=reset, timesteps=T, bias="keep", selfcheck=False), x


def generated(seed: int, **options: Any) -> tuple[CompiledModel, Array]:
    model, shape = lava_network(np.random.default_rng(seed))
    x = np.random.default_rng(seed).standard_normal((3, *shape)).astype(np.float32)
    return snncc.compile(model, "lava", calibration=x, timesteps=T, bias="keep", selfcheck=False, **options), x


def drifting(reset: str = "subtract", **options: Any) -> CompiledModel:
    """One layer: what its neurons get is their threshold, or as much less, in each step."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    x = np.ones((4, 2), np.float32)
    return snncc.compile(
        net, "lava", calibration=x, **{"reset": reset, "timesteps": T, "selfcheck": False, "bias": "keep", **options}
    )


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_more_steps_than_compiled_for_are_right_or_refused(reset: str) -> None:
    """Potentials saturate at 24 bits: what was 1.0 became 0.52 at twice the steps, and 0.13 at eight times."""
    model, x = drifting(reset), np.array([[1.0, 1.0]])
    usual, most = model.simulate(x).output, longest(model.graph, 2**20)
    assert T <= most < 2**20
    for steps in (T + 1, 2 * T, most):
        if steps <= most:
            np.testing.assert_allclose(model.simulate(x, steps).output, usual, atol=1 / T)
    with pytest.raises(InputError, match="SNN043") as caught:
        model.simulate(x, most + 1)
    assert caught.value.diagnostics[0].hint == f"compile with timesteps={most + 1}"
    followed = drifting(reset, timesteps=most + 1)
    np.testing.assert_allclose(followed.simulate(x).output, usual, atol=0.1)


def test_the_runner_knows_for_how_many_steps_potentials_fit() -> None:
    model, x = drifting(), np.array([[1.0, 1.0]])
    network = json.loads(model.target.files(model.graph, model.options)["network.json"])
    assert T <= network["longest"] < 100 * T
    model.simulate(x, network["longest"])
    with pytest.raises(InputError, match="SNN043"):
        model.simulate(x, network["longest"] + 1)


def test_counts_above_those_compiled_for_are_refused_where_sums_wrap() -> None:
    """Thirty spikes in a step gave 0: sums wrap around at 24 bits, here and in Lava."""
    net = nn.Sequential(nn.Linear(64, 2, bias=False), nn.ReLU())
    nn.init.constant_(net[0].weight, 1.0)
    x = np.ones((T, 2, 64), np.float32)
    model = snncc.compile(net, "lava", calibration=x[0], encoding="spikes", timesteps=T, selfcheck=False)
    usual = model.simulate(x).output
    for count in (2, 30, 3000):
        with suppress(InputError):
            assert (model.simulate(x * count).output >= usual).all()
    with pytest.raises(InputError, match="SNN044"):
        model.simulate(x * 3000)


@pytest.mark.parametrize("target", ["reference", "lava", "lynxi", "speck2b"])
def test_numbers_beyond_all_bounds_are_said(target: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2, bias=False), nn.ReLU())
    x = np.random.default_rng(0).random((4, 1, 4, 4))
    model = snncc.compile(net, target, calibration=x, timesteps=T, selfcheck=False, bias="keep")
    for value in (np.float64(3e38), np.uint64(2**64 - 1), np.float64(1e12)):
        with suppress(InputError):
            assert np.isfinite(model.simulate(np.full((1, 1, 4, 4), value)).output).all()
    for steps in (0, -1, 2**30, 2.5):
        with pytest.raises(InputError, match="SNN070"):
            model.simulate(x, steps)  # type: ignore[arg-type]


def as_matrix(connection: Connection) -> Array:
    """What a connection computes, by brute force: the answer to every unit vector."""
    shape = connection.shape
    if connection.kind == "sparse":
        assert connection.rows is not None and connection.columns is not None and connection.values is not None
        assert connection.values.dtype == np.int8
        matrix = np.zeros(shape)
        np.add.at(matrix, (connection.rows, connection.columns), connection.values.astype(float))
        return matrix * 2.0**connection.exponent
    assert connection.weight is not None and connection.weight.dtype == np.int8 and not connection.delay
    if connection.kind == "dense":
        return connection.weight.astype(float)
    g = connection.geometry
    units = torch.eye(shape[1], dtype=torch.float64).reshape(shape[1], *g["input_shape"])
    weight = torch.from_numpy(connection.weight.astype(float))
    answer = F.conv2d(units, weight, None, g["stride"], g["padding"], g["dilation"], g["groups"])
    return answer.reshape(shape[1], -1).numpy().T


def check_currents(program: Program, done: Simulation) -> Counter[str]:
    """Hold what the connections bring to every population against what the graph says flows into its neurons. In
    layer time, delays only make up for ways of unequal length."""
    seen: Counter[str] = Counter()
    depth = {name: 0 for name, _, _ in program.inputs} | {p.name: p.depth for p in program.populations}
    for population, connections in program.layers():
        operand = done.graph[population.name].args[0]
        wanted = done.values[operand].reshape(-1, population.size)
        got = np.zeros_like(wanted)
        for c in connections:
            sent = done.spikes[c.source] if c.source in done.spikes else done.values[c.source]
            got += sent.reshape(len(wanted), -1).astype(float) @ as_matrix(c).T
            assert c.delay == population.depth - 1 - depth[c.source] >= 0
            seen.update([c.kind, *(["delay"] if c.delay else []), *(["exponent"] if c.exponent else [])])
        np.testing.assert_array_equal(got, wanted)
    return seen


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("name", TAKEN)
def test_the_zoo(name: str, reset: str) -> None:
    """Lava's neurons send what the integer stage's neurons send, and the program's connections compute its sums."""
    model, x = compiled(name, reset)
    before = next(r.graph for r in model.records if r.label.startswith("quantize"))
    program = Program(model.graph)
    assert not program.diagnostics
    done = model.simulate(x, record="all")
    check_currents(program, done)
    assert all(done.counts[p.name] for p in program.populations)
    assert same_spikes(before, model, x)


def same_spikes(before: Graph, model: CompiledModel, x: Array) -> bool:
    wanted = TorchEngine().simulate(before, x, timesteps=T, record="spikes").spikes
    got = model.simulate(x, record="spikes").spikes
    return all(np.array_equal(wanted[name], got[name]) for name in wanted)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), reset=st.sampled_from(["subtract", "zero"]))
def test_generated_networks(seed: int, reset: str) -> None:
    model, x = generated(seed, reset=reset)
    before = next(r.graph for r in model.records if r.label.startswith("quantize"))
    assert same_spikes(before, model, x)
    check_currents(Program(model.graph), model.simulate(x, record="all"))


def test_generated_networks_have_everything() -> None:
    """The generator, and so the test above, reaches every kind of connection."""
    seen: Counter[str] = Counter()
    for seed in (*range(8), 33, 51):
        model, x = generated(seed)
        seen += check_currents(Program(model.graph), model.simulate(x, record="all"))
    assert seen.keys() == {"conv", "dense", "sparse", "delay", "exponent"}


# --- neurons --------------------------------------------------------------------------------------------------------


def test_neurons_by_reset() -> None:
    for reset, kind in (("subtract", AtrLif), ("zero", CubaLif)):
        model, _ = compiled("lenet_bn", reset)
        neurons = [n.op for n in model.graph.nodes if isinstance(n.op, AtrLif | CubaLif)]
        assert len(neurons) == 4 and all(isinstance(op, kind) for op in neurons)
        assert not any(getattr(n.op, "bias", None) is not None and n.op.mnemonic == "conv2d" for n in model.graph.nodes)


def test_thresholds_leave_room_for_the_charge() -> None:
    """ATRLIF's potential is never reset: a spike in each step has to fit into 24 bits."""
    for timesteps in (4, 64, 1000):
        x = np.asarray(example_input(ZOO["mlp"].input_shape, 4, seed=1))
        model = snncc.compile(build("mlp"), "lava", calibration=x, timesteps=timesteps, bias="keep")
        thetas = [n.op.theta for n in model.graph.nodes if isinstance(n.op, AtrLif)]
        assert thetas and max(thetas) <= 4095
        assert 2 * max(thetas) * (timesteps + 1) <= 131071


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(model: nn.Module, shape: tuple[int, ...], **options: Any) -> list[tuple[str, str]]:
    x = np.random.default_rng(0).random((4, *shape)).astype(np.float32)
    with pytest.raises((CompileError, InputError)) as caught:
        snncc.compile(model, "lava", calibration=x, bias="keep", **options)
    return [(d.code, d.message) for d in caught.value.diagnostics if d.severity.value == "error"]


CONV = nn.Conv2d(1, 2, 3)


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        (nn.Sequential(CONV, nn.ReLU(), nn.MaxPool2d(2)), "SNN031", "max pooling"),
        (nn.Sequential(CONV, nn.Conv2d(2, 2, 1), nn.ReLU()), "SNN032", "no activation stands between"),
        (nn.Sequential(nn.ConstantPad2d(1, 0.5), CONV, nn.ReLU()), "SNN052", "pads with 0.5"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "SNN064", "no layer with weights"),
        (nn.Sequential(CONV, nn.Sigmoid()), "SNN001", ""),
    ],
)
def test_what_no_synapse_computes(model: nn.Module, code: str, words: str) -> None:
    found = refused(model.eval(), (1, 6, 6))
    assert code in [c for c, _ in found]
    assert any(words in text for c, text in found if c == code)


def test_what_the_placement_cannot_read_hides_nothing() -> None:
    x = np.asarray(example_input(ZOO["resnet18"].input_shape, 4))
    with pytest.raises(CompileError) as caught:
        snncc.compile(build("resnet18"), "lava", calibration=x, bias="keep", timesteps=4)
    assert [d.code for d in errors(caught.value.diagnostics)] == ["SNN031"]
    until = caught.value.compilation
    assert [r.failed for r in until.records] == [False] * (len(until.records) - 1) + [True]
    assert until.records[-1].graph is until.records[-2].graph
    assert until.diagnostics == caught.value.diagnostics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_bits": 9}, "SNN082 weights have 8 bits"),
        ({"form": "netx"}, "SNN083 netx has no neurons that subtract"),
        ({"form": "hdf5"}, "SNN070 is unknown"),
    ],
)
def test_refused_options(options: dict[str, Any], words: str) -> None:
    code, _, words = words.partition(" ")
    found = refused(nn.Sequential(CONV, nn.ReLU()).eval(), (1, 6, 6), **options)
    assert [c for c, _ in found] == [code] and words in found[0][1]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({}, 0),
        ({"reset": "zero"}, 0),
        ({"neuron": "sigma-delta"}, 3),
    ],  # half a step, so that shifts round to the nearest
)
def test_the_report_counts_biases_that_are_in_the_neurons(options: dict[str, Any], last: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3, bias=False), nn.ReLU()).eval()
    x = np.random.default_rng(0).random((4, 1, 6, 6)).astype(np.float32)
    rows = snncc.compile(net, "lava", calibration=x, timesteps=T, **options).report
    assert [row["biases"] for row in rows if row["layer"] in ("conv2d_0", "linear_3")] == [5, last]


@pytest.mark.parametrize("target", ["reference", "lava", "lynxi"])  # chips take no core without weights
@pytest.mark.parametrize("zero", [0, 3])
def test_layers_of_zeros_give_numbers(target: str, zero: int) -> None:
    """An all-zero layer in front of a linear one gave NaN."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()
    )
    nn.init.zeros_(net[zero].weight)
    nn.init.zeros_(net[zero].bias)
    x = np.random.default_rng(0).random((8, 1, 4, 4)).astype(np.float32)
    model = snncc.compile(net, target, calibration=x, bias="keep", timesteps=32, selfcheck=False)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    for got in model.simulate(x).output, model.network(x, "int"):
        np.testing.assert_allclose(got, wanted, atol=0.05 * np.abs(wanted).max() + 1e-9)
