"""What one does with a network compiled for a DYNAP-CNN chip: decode it, simulate its events, see how it fits."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from chipnets import graph_network
from chipsim import run_chip
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import GRAPH_ZOO, SEQUENTIAL_ZOO, build, example_input

import snncc
from snncc import InputError
from snncc.engine import TorchEngine
from snncc.ir import Stage, ops
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import Config, to_json, with_own_biases
from snncc.targets.dynapcnn.decode import decode
from snncc.targets.dynapcnn.lower import Reader, _tiles, to_config
from snncc.targets.dynapcnn.mapping import bound

SMALL = ("chip_residual", "chip_branches", "chip_exits", "chip_preact", "chip_mlp", "chip_bias")


@cache
def compiled(name: str, chip: str, reset: str = "subtract") -> snncc.CompiledModel:
    x = example_input({**SEQUENTIAL_ZOO, **GRAPH_ZOO}[name].input_shape, 8, seed=1)
    return snncc.compile(build(name), chip, calibration=x, bias="keep", reset=reset, timesteps=8, selfcheck=False)


def config(model: snncc.CompiledModel) -> Config:
    found = model.target.config(model.graph, model.options)  # type: ignore[attr-defined]
    assert isinstance(found, Config)
    return found


def assert_equal(a: Config, b: Config) -> None:
    """The same cores, whatever the order of what has none."""
    assert (a.chip, a.input_shapes) == (b.chip, b.input_shapes)
    for name in ("inputs", "readouts", "monitors"):
        assert set(getattr(a, name)) == set(getattr(b, name)), name
    left, right = ({core.index: core for core in c.cores} for c in (a, b))
    assert left.keys() == right.keys()
    for index, core in left.items():
        for field in dataclasses.fields(core):
            one, other = getattr(core, field.name), getattr(right[index], field.name)
            if field.name == "destinations":
                assert set(one) == set(other)
            elif field.name in ("weights", "biases", "initial"):
                np.testing.assert_array_equal(0 if one is None else one, 0 if other is None else other)
            else:
                assert one == other, f"{core.name}: {field.name}"


# --- decode ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", ["speck2b", "speck2f"])
@pytest.mark.parametrize("name", SMALL)
def test_a_configuration_reads_back_to_the_network(name: str, chip: str) -> None:
    """From the text alone: the same spikes out, and the same configuration again."""
    model = compiled(name, chip)
    before = config(model)
    graph = decode(to_json(before))
    assert graph.stage is Stage.MAPPED
    assert_equal(to_config(graph, CHIPS[chip]), before)
    x = example_input(model.graph.inputs[0].type.shape, 2, seed=3)
    done = model.simulate(x, record="spikes")
    (encoded,) = (n.name for n in model.graph.nodes if isinstance(n.op, ops.Encode))
    again = TorchEngine().simulate(graph, done.spikes[encoded], timesteps=8)
    for out, decoded in zip(model.graph.outputs, again.outputs, strict=True):
        np.testing.assert_array_equal(done.spikes[out].sum(axis=0).reshape(2, -1), np.rint(8 * decoded).reshape(2, -1))


# --- events ---------------------------------------------------------------------------------------------------------


def test_event_by_event() -> None:
    model = compiled("chip_residual", "speck2b")
    x = example_input((2, 16, 16), 4, seed=2)
    done = model.simulate(x, 32, order="depth-first", record="spikes")
    assert done.output.shape == (4, 10) and done.timesteps == 32
    layers = {row["layer"] for row in model.report}
    assert done.synops.keys() == layers and all(n.shape == (4,) and n.all() for n in done.synops.values())
    for name, spikes in done.spikes.items():
        assert spikes.shape == (32, 4, *model.graph[name].type.shape)
        assert spikes.sum() == done.counts[name]
    unit = model.graph.value(model.graph[model.graph.outputs[0]].type.unit)  # type: ignore[arg-type]
    np.testing.assert_allclose(done.output, done.spikes[model.graph.outputs[0]].sum(axis=0) * unit / 32)
    other = model.simulate(x, 32, order="breadth-first")
    assert np.corrcoef(done.output.ravel(), other.output.ravel())[0, 1] > 0.9


def test_events_and_steps_compared() -> None:
    model = compiled("chip_lenet", "speck2b")
    found = model.compare_events(example_input((1, 28, 28), 4, seed=2), 16)
    assert (found["order"], found["timesteps"], found["samples"]) == ("depth-first", 16, 4)
    assert 0 <= found["same_class"] <= 1
    assert [row["layer"] for row in found["layers"]] == [row["neuron"] for row in model.report]
    assert all(row["step"] and row["events"] and row["correlation"] > 0.5 for row in found["layers"])
    assert [row["layer"] for row in found["power"]] == [*(row["layer"] for row in model.report), "at rest", "all"]
    slow = model.compare_events(example_input((1, 28, 28), 4, seed=2), 16, timestep_us=10_000)["power"]
    assert slow[0]["energy_low"] == found["power"][0]["energy_low"] > 0
    assert slow[0]["power_low"] == pytest.approx(found["power"][0]["power_low"] / 10)


def test_what_has_no_events() -> None:
    x = example_input((1, 8, 8), 2)
    model = snncc.compile(build("chip_small"), calibration=x)
    with pytest.raises(InputError, match="does not work event by event"):
        model.simulate(x, order="depth-first")
    chip = compiled("chip_bias", "speck2b")
    with pytest.raises(InputError, match="of the last stage"):
        chip.simulate(example_input((1, 28, 28), 2), stage="snn", order="depth-first")
    with pytest.raises(InputError, match="sideways"):
        chip.simulate(example_input((1, 28, 28), 2), order="sideways")


# --- biases of the host ---------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 16), st.sampled_from([1, 2, 4, 8]), st.integers(0, 7))
def test_every_window_sees_one_pixel_of_the_tiles(n: int, kernel: int, stride: int, padding: int) -> None:
    windows = (n + 2 * padding - kernel) // stride + 1
    if windows < 1 or padding >= kernel:  # (such a padding has windows that see nothing)
        return
    if (found := _tiles(n, windows, kernel, stride, padding)) is None:
        assert padding  # without, one tap and a pixel for each window will do
        return
    taps, pixels = found
    assert all(0 <= pixel < n for pixel in pixels)
    for window in range(windows):
        seen = [p for p in pixels if taps.start <= p + padding - window * stride < taps.stop]
        assert len(seen) == 1


def test_the_host_gives_the_biases_of_the_first_layer() -> None:
    """A neuron fires at events only: a bias that the clock adds would wait for one. Deeper layers have the clock's."""
    model = compiled("chip_bias", "speck2b")
    first, *deeper = config(model).cores
    (bias,) = config(model).host_biases
    layer, *_ = Reader(model.graph, CHIPS["speck2b"]).layers
    assert first.biases is None and all(core.leaks for core in deeper)
    assert (bias.core, bias.first) == (first.index, 1)
    own = with_own_biases(config(model)).cores[0]
    np.testing.assert_array_equal(own.biases, model.graph.value(layer.node.op.bias))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(own.weights, first.weights[:, :1])
    assert model.report[0]["kernel_used"] == first.memory[0] > layer.words(8, True)[0]
    seen = snncc.compile(build("chip_bias"), "speck2b", calibration=example_input((1, 28, 28), 8), sensor="auto")
    assert config(seen).host_biases == () and config(seen).cores[0].leaks  # no host, then


# --- the bound of potentials ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_potentials_stay_within_the_bound(seed: int) -> None:
    """Event by event, in both orders, no potential leaves what `bound` proves for its layer, nor 16 bits."""
    from snncc.targets.dynapcnn import events

    net, shape = graph_network(np.random.default_rng(seed))
    x = example_input(shape, 8, seed)
    model = snncc.compile(net, "speck2f", calibration=x, bias="keep", threshold="max", timesteps=16)
    reader, spikes = Reader(model.graph, CHIPS["speck2f"]), model._encoded((x.numpy(),), 16)
    proved = 0
    for order in ("depth-first", "breadth-first"):
        run = events.simulate(config(model), spikes, order)
        for layer in reader.layers:
            found = bound(model.graph, layer, 16)
            if found is not None:
                proved += 1
                assert -(2**15) <= found[0] <= run.lowest[layer.name]
                assert run.highest[layer.name] <= found[1] < 2**15
    assert proved


def test_biases_leave_room_for_all_time_steps() -> None:
    """A bias of the size of the threshold adds up over 1,000 steps: everything shrinks until that fits 16 bits."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    with torch.no_grad():
        net[0].weight.mul_(0.1)
        net[0].bias.fill_(0.5)
    x = example_input((1, 8, 8), 8)
    long, short = (
        snncc.compile(net, "speck2b", calibration=x, bias="keep", threshold="max", timesteps=t) for t in (1000, 8)
    )
    first = {t: Reader(m.graph, CHIPS["speck2b"]).layers[0] for t, m in ((1000, long), (8, short))}
    assert (bound(long.graph, first[1000], 1000) or (0, 2**15))[1] < 2**15
    assert long.report[0]["threshold"] < short.report[0]["threshold"]
    assert not [d for d in long.diagnostics if d.code == "SNN065" and "conv2d_0" in d.message]


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_says_how_each_layer_fits() -> None:
    found = snncc.check(build("chip_split"), "speck2b", example_input=example_input((1, 64, 64)))
    rows = {row["layer"]: row for row in found.layers}
    wide, kernels = rows["conv2d_0"], rows["conv2d_7"]
    assert (wide["neuron"], wide["channels"], wide["holds"]) == (98304, 24, [16] * 3 + [8] * 2 + [4] * 4)
    assert wide["cores"] == [0, 1]
    assert wide["change"] == "with 16 instead of 24 output channels, or an output of 32 x 32 instead of 64 x 64"
    assert (kernels["kernel"], kernels["cores"], kernels["holds"][5]) == (98304, [5, 6], 128)
    assert "a kernel of 2 x 2 instead of 4 x 4" in kernels["change"]
    assert [row["change"] for row in found.layers].count("") == 3
    assert snncc.check(build("chip_small"), example_input=example_input((1, 8, 8))).layers == []


def test_check_says_it_of_what_does_not_fit() -> None:
    net = nn.Sequential(nn.Conv2d(64, 512, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 4)).eval()
    found = snncc.check(net, "speck2b", example_input=example_input((64, 4, 4)))
    assert [d.code for d in found if d.severity == "error"] == ["SNN056", "SNN048"]
    assert [row["cores"] for row in found.layers] == [[], []]
    ways = "with 64 instead of 512 output channels, or 8 instead of 64 input channels, or a kernel of 1 x 1 instead of"
    assert found.layers[0]["change"] == f"{ways} 3 x 3"


@pytest.mark.parametrize("cores", [(), (0, 0)])
def test_cores_that_are_no_choice(cores: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="SNN070"):
        snncc.compile(build("chip_small"), "speck2b", calibration=example_input((1, 8, 8), 4), cores=cores)


def test_what_the_readout_block_and_the_sensor_cannot_take_is_said_before_the_compile() -> None:
    def refusals(model: nn.Module, **options: object) -> list[str]:
        found = snncc.check(model, "speck2f", example_input=example_input((1, 8, 8)), **options)
        return [d.message for d in found if d.severity == "error"]

    wide = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16)).eval()
    assert refusals(wide, readout=True) == ["`linear_3.relu` has 16 classes, the readout block 15"]
    assert refusals(build("chip_exits"), readout=True) == ["`late.relu`: a second output; the readout block takes one"]
    (said,) = refusals(build("chip_mlp"), sensor="auto")
    assert "the sensor only sends its pixels as they are" in said


def test_a_network_on_the_sensor_has_a_report() -> None:
    model = snncc.compile(build("chip_small"), "speck2b", calibration=example_input((1, 8, 8), 4), sensor="auto")
    assert [row["core"] for row in model.report] == [0, 1]


class Strided(nn.Module):
    """The input is read with stride 2 beside a layer of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.head = nn.Conv2d(1, 4, 1, 2), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x))) + self.c(x)).flatten(1))


def test_a_strided_shortcut_from_the_input() -> None:
    torch.manual_seed(0)
    model = snncc.compile(Strided().eval(), "speck2b", calibration=(x := example_input((1, 8, 8), 8)), timesteps=64)
    done = model.simulate(x, record="spikes")
    (encoded,) = (n.name for n in model.graph.nodes if isinstance(n.op, ops.Encode))
    sent = run_chip(config(model), done.spikes[encoded])
    for layer in Reader(model.graph, CHIPS["speck2b"]).layers:
        ours = done.spikes[layer.sends]
        np.testing.assert_array_equal(ours, sent[layer.name].reshape(ours.shape))
