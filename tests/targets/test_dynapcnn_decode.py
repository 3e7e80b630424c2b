"""A configuration read back into a graph does what its cores do, spike for spike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import ceil, log2
from typing import Any

import numpy as np
import pytest
from chipconfigs import build, corners
from chipsim import read_outputs, run_chip

from snncc.ir import Graph, Stage, ops, verify
from snncc.ir.diagnostics import InputError
from snncc.ir.interp import simulate
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import (
    Config,
    ConfigError,
    CoreConfig,
    Destination,
    InputRoute,
    Monitor,
    Readout,
    Sensor,
    from_json,
    problems,
    to_json,
)
from snncc.targets.dynapcnn.decode import decode, read_config, read_writes

Array = np.ndarray[Any, Any]


def one(index: int, name: str, into: tuple[int, int, int], out: int, **changes: Any) -> CoreConfig:
    """A core with a kernel of one pixel and weights that make spikes."""
    rng = np.random.default_rng(index)
    weights = rng.integers(1, 9, (out, into[0], 1, 1)).astype(np.int8)
    core = CoreConfig(index, name, into, (out, *into[1:]), 1, (1, 1), (0, 0), weights, 7, -50)
    return replace(core, **changes)


def spikes_for(config: Config, seed: int, steps: int = 6) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.poisson(0.7, (steps, 2, *shape)) for shape in config.input_shapes]


def assert_same(config: Config, graph: Graph, seed: int = 0, some: bool = True) -> int:
    """The graph and the cores have the same spikes. Returns how many."""
    verify(graph)
    inputs = spikes_for(config, seed)
    sent = run_chip(config, *inputs)
    trace = simulate(graph, *inputs, timesteps=len(inputs[0]))
    neurons = {node.place: node.name for node in graph.nodes if isinstance(node.op, ops.If)}
    assert neurons.keys() == {f"core {core.index}" for core in config.cores}
    for core in config.cores:
        np.testing.assert_array_equal(trace.values[neurons[f"core {core.index}"]], sent[core.name], core.name)
    for name, expected in zip(graph.outputs, read_outputs(config, sent), strict=True):
        np.testing.assert_array_equal(trace.values[name], expected)
        assert graph[name].type.unit == 1.0
    return sum(int(each.sum()) for each in sent.values())


@pytest.mark.parametrize("chip", ["speck2b", "speck2f", "speck2cmini"])
def test_generated_configurations(chip: str) -> None:
    """With branches, concatenation and (speck2f) addition, shifts, both resets, biases, several inputs and outputs."""
    met, spikes, additions = set[str](), 0, 0
    for i in range(120):
        config = build(CHIPS[chip], np.random.default_rng([3, i]), initial="channel", gentle=True)
        graph = decode(to_json(config))
        spikes += assert_same(config, graph, i)
        met |= {node.op.mnemonic for node in graph.nodes}
        additions += sum(isinstance(node.op, ops.Add) for node in graph.nodes)
        assert graph.canonical() == decode(config).canonical()
    assert spikes > 30_000
    assert {"reshape", "pad", "sum_pool", "concat", "conv2d", "if"} <= met
    assert bool(additions) == CHIPS[chip].adds


def test_the_form_of_the_graph() -> None:
    first = one(2, "conv1", (1, 4, 6), 3, biases=np.array([1, 0, -1], np.int16), destinations=(Destination(5, 2, 0),))
    first = replace(first, initial=np.broadcast_to(np.int16(3), (3, 4, 6)))
    starts = np.broadcast_to(np.array([[[1]], [[2]]], np.int16), (2, 2, 3))
    second = one(5, "conv2", (3, 2, 3), 2, return_to_zero=True, initial=starts, monitor=True)
    config = Config(
        CHIPS["speck2b"], (first, second), (InputRoute(2, (1, 4, 6)),), (Readout(5),), ((1, 4, 6),),
        monitors=(Monitor("relu2", 5),),
    )  # fmt: skip
    graph = decode(config)
    assert graph.stage is Stage.MAPPED
    assert [(node.name, node.op.mnemonic, node.args, node.place) for node in graph.nodes] == [
        ("input", "input", (), ""),
        ("input.spikes", "encode", ("input",), ""),
        ("conv1", "conv2d", ("input.spikes",), "core 2"),
        ("conv1.spikes", "if", ("conv1",), "core 2"),
        ("conv1.spikes.pool", "sum_pool", ("conv1.spikes",), "core 2"),
        ("conv2", "conv2d", ("conv1.spikes.pool",), "core 5"),
        ("relu2", "if", ("conv2",), "core 5"),
    ]
    assert graph.outputs == ("relu2",)
    conv, neuron, after = graph["conv1"].op, graph["conv1.spikes"].op, graph["relu2"].op
    assert isinstance(conv, ops.Conv2d) and conv.bias is not None and isinstance(neuron, ops.If)
    assert (conv.weight.dtype, conv.bias.dtype) == ("i8", "i16")
    assert (neuron.threshold, neuron.v0, neuron.reset, neuron.v_min) == (7, 3, "subtract", -50)
    assert isinstance(after, ops.If) and after.reset == "zero" and not isinstance(after.v0, int | float)
    np.testing.assert_array_equal(graph.value(after.v0), [1, 2])
    assert_same(config, graph)


def joined(destination: Destination, channels: int, chip: str = "speck2f") -> Config:
    """Two cores of two channels; the first feeds channels 0 and 1 of the last, the second goes where it is told."""
    weights = np.ones((1, channels, 1, 1), np.int8)
    cores = (
        one(0, "a", (1, 4, 4), 2, destinations=(Destination(3, 2),)),
        one(1, "b", (1, 4, 4), 2, destinations=(destination,), threshold_high=3),
        one(3, "c", (channels, 2, 2), 1, weights=weights, monitor=True),
    )
    routes = (InputRoute(0, (1, 4, 4)), InputRoute(1, (1, 4, 4)))
    return Config(CHIPS[chip], cores, routes, (Readout(3),), ((1, 4, 4),))


def test_sources_that_meet_in_some_channels() -> None:
    config = joined(Destination(3, 2, 1), 3)
    graph = decode(to_json(config))
    assert [graph[arg].op.mnemonic for arg in graph["c"].args] == ["add"]
    assert [graph[arg].op.mnemonic for arg in graph["c.add"].args] == ["pad", "pad"]
    assert assert_same(config, graph)


def test_channels_that_nothing_feeds() -> None:
    config = joined(Destination(3, 2, 3), 7)
    last = config.cores[2].weights.copy()
    last[:, [2, 5, 6]] = 0
    config = replace(config, cores=(*config.cores[:2], replace(config.cores[2], weights=last)))
    graph = decode(to_json(config))
    assert [graph[arg].op.mnemonic for arg in graph["c.concat"].args] == ["sum_pool", "pad"]
    assert graph["b.spikes.pool.pad"].op == ops.Pad((1, 0, 0), (2, 0, 0))
    assert assert_same(config, graph)


def test_every_threshold_counts_one_exactly() -> None:
    for threshold in (1, 3, 49, 103, 239, 1193, 2**15 - 1):
        config = joined(Destination(3, 2), 2)
        cores = tuple(replace(core, threshold_high=threshold) for core in config.cores)
        graph = decode(replace(config, cores=cores))
        assert {node.type.unit for node in graph.nodes if isinstance(node.op, ops.If)} == {1.0}


def test_what_the_host_does() -> None:
    """Two inputs into one core: one flat, laid into a larger map; one pooled."""
    core = one(0, "conv", (3, 2, 3), 2, monitor=True)
    routes = (InputRoute(0, (2, 2, 3)), InputRoute(0, (1, 6, 10), 3, 2, 1))
    config = Config(CHIPS["speck2"], (core,), routes, (Readout(0),), ((10,), (1, 6, 10)))
    graph = decode(to_json(config))
    mnemonics = [node.op.mnemonic for node in graph.nodes]
    assert mnemonics == ["input", "encode"] * 2 + ["pad", "reshape", "sum_pool", "concat", "conv2d", "if"]
    assert {node.place for node in graph.nodes} == {"", "core 0"}
    assert assert_same(config, graph)


def test_outputs() -> None:
    """One over two cores, one of every fourth channel."""
    weights = np.zeros((9, 1, 1, 1), np.int8)
    weights[::4] = 5
    cores = (
        one(0, "conv.0", (1, 2, 2), 2, monitor=True),
        one(1, "conv.1", (1, 2, 2), 3, monitor=True),
        one(2, "fc", (1, 2, 2), 9, weights=weights, monitor=True, destinations=(Destination(12),)),
    )
    routes = tuple(InputRoute(i, (1, 2, 2)) for i in range(3))
    readouts = (Readout(2, 0, 4, 1), Readout(1, 2), Readout(0))
    monitors = (Monitor("relu", 0), Monitor("relu", 1, 2))
    config = Config(CHIPS["speck2f"], cores, routes, readouts, ((1, 2, 2),), monitors=monitors)
    graph = decode(to_json(config))
    assert graph.outputs == ("relu", "fc.spikes.read")
    assert decode(replace(config, monitors=())).outputs == ("output0", "fc.spikes.read")
    assert graph["relu"].args == ("conv.0.spikes", "conv.1.spikes")
    assert [graph[name].type.shape for name in graph.outputs] == [(5, 2, 2), (3, 2, 2)]
    assert assert_same(config, graph)


def test_names_that_are_no_identifiers() -> None:
    config = joined(Destination(3, 2, 2), 4)
    names = ("0", "0", "input")
    cores = tuple(replace(core, name=name) for core, name in zip(config.cores, names, strict=True))
    graph = decode(replace(config, cores=cores))
    assert [node.name for node in graph.nodes if isinstance(node.op, ops.Conv2d)] == ["_0", "_0.0", "input.0"]
    verify(graph)


# --- without our header ---------------------------------------------------------------------------------------------


def bare(config: Config) -> str:
    """What samna keeps of it."""
    return json.dumps({"value0": json.loads(to_json(config))["value0"]})


def unnamed(graph: Graph) -> tuple[Any, ...]:
    return graph.canonical()


def test_a_text_of_samnas() -> None:
    config = joined(Destination(3, 2, 2), 4, "speck2b")
    graph = decode(bare(config), "speck2b")
    assert unnamed(graph) == unnamed(decode(config))
    assert [node.name for node in graph.nodes if isinstance(node.op, ops.Conv2d)] == ["core0", "core1", "core3"]
    assert_same(replace(config, cores=tuple(replace(c, name=f"core{c.index}") for c in config.cores)), graph)


def test_inputs_and_outputs_are_found_in_the_wiring() -> None:
    """Ends are read whether monitored or not; what nothing feeds, the host does: of one shape, from one input."""
    ends = {4: (2, 3, 3), 6: (2, 3, 3), 8: (1, 2, 2)}
    cores = [one(i, f"core{i}", shape, 2, monitor=True) for i, shape in ends.items()]
    routes = tuple(InputRoute(i, shape, index=int(i == 8)) for i, shape in ends.items())
    readouts = tuple(Readout(i, output=n) for n, i in enumerate(ends))
    config = Config(CHIPS["dynapcnn"], tuple(cores), routes, readouts, ((2, 3, 3), (1, 2, 2)))
    found = read_config(bare(config), "dynapcnn")
    assert (found.inputs, found.readouts, found.input_shapes) == (routes, readouts, config.input_shapes)
    assert problems(found) == []
    weights = np.zeros((9, 1, 1, 1), np.int8)
    weights[::4] = 5
    core = one(2, "fc", (1, 2, 2), 9, weights=weights, monitor=True, destinations=(Destination(12),))
    read = (Readout(2, step=4),)
    config = Config(CHIPS["speck2e"], (core,), (InputRoute(2, (1, 2, 2)),), read, ((1, 2, 2),))
    text = bare(config).replace('"monitorEnable": true', '"monitorEnable": false')
    assert read_config(text, "speck2e").readouts == read


@pytest.mark.parametrize(
    ("sensor", "chip"),
    [
        (Sensor(size=(8, 6), origin=(3, 4), merge=True, on=False, mirror=(True, False)), "dynapcnn"),
        (Sensor((4, 2), (0, 0), (32, 64), mirror_diagonal=False), "speck2b"),
        (Sensor((4, 2), (1, 2), (3, 3), mirror_diagonal=True), "speck2f"),
    ],
)
def test_the_sensor_is_found(sensor: Sensor, chip: str) -> None:
    core = one(1, "core1", sensor.shape, 2, monitor=True)
    config = Config(CHIPS[chip], (core,), (InputRoute(1, sensor.shape),), (Readout(1),), (sensor.shape,), sensor)
    found = read_config(bare(config), chip)
    assert (found.sensor, found.inputs, found.input_shapes) == (sensor, config.inputs, config.input_shapes)
    assert decode(bare(config), chip).canonical() == decode(config).canonical()


# --- what cannot be read --------------------------------------------------------------------------------------------

GOOD = joined(Destination(3, 2, 2), 4, "speck2b")


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    data = json.loads(to_json(GOOD))
    change(data)
    return json.dumps(data)


def core_of(data: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = data["value0"]["cnnLayers"][f"value{index}"]
    return found


BROKEN_TEXTS: dict[str, tuple[str, str]] = {
    "no JSON": ("hello", "Expecting value"),
    "a list": ("[1, 2]", "this is not a configuration"),
    "something else": ("{}", "does not name its chip"),
    "an unknown chip": (edited(lambda d: d["snncc"].update(chip="loihi")), "KeyError 'loihi'"),
    "no weights": (edited(lambda d: core_of(d, 0).pop("weights")), "KeyError 'weights'"),
    "too few weights": (edited(lambda d: core_of(d, 0)["weights"]["values"].pop()), "cannot reshape"),
    "a large weight": (edited(lambda d: core_of(d, 0)["weights"]["values"].__setitem__(0, 200)), "200 out of bounds"),
    "a dead cell": (
        edited(lambda d: core_of(d, 0)["weightsKillBit"]["values"].__setitem__(0, True)), "memory cells",
    ),
    "another order": (edited(lambda d: core_of(d, 0)["weights"]["offsets"].update(value0=7)), "a: weights in another"),
    "a third destination": (
        edited(lambda d: core_of(d, 0)["destinations"].update(value2=core_of(d, 1)["destinations"]["value0"])),
        "a: 3 destinations",
    ),
    "another output": (
        edited(lambda d: core_of(d, 0)["dimensions"]["outputShape"]["size"].update(x=3)),
        "its convolution",
    ),
    "another size": (edited(lambda d: core_of(d, 0)["destinations"]["value0"].update(pooling=4)), "cannot concatenate"),
    "other channels": (edited(lambda d: core_of(d, 1)["destinations"]["value0"].update(featureShift=3)), "c: channels"),
    "to nowhere": (edited(lambda d: core_of(d, 1)["destinations"]["value0"].update(layer=12)), "destination 12 is not"),
    "a cycle": (edited(lambda d: core_of(d, 3)["destinations"]["value0"].update(layer=0, enable=True)), "cycle"),
    "threshold 0": (edited(lambda d: core_of(d, 3).update(thresholdHigh=0)), "c: its threshold is 0"),
    "nothing": (edited(lambda d: d["snncc"].update(inputs=[])), "nothing feeds it"),
    "no such input": (edited(lambda d: d["snncc"]["inputs"][0].__setitem__(4, 1)), "IndexError"),
    "potentials that differ": (
        edited(lambda d: core_of(d, 0)["neuronsInitialValue"]["values"].__setitem__(0, 1)),
        "a: initial potentials that differ within a channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_TEXTS)
def test_a_broken_text(what: str) -> None:
    text, words = BROKEN_TEXTS[what]
    with pytest.raises(InputError, match=words) as caught:
        decode(text)
    assert [found.code for found in caught.value.diagnostics] == ["SNN071"]


def test_a_text_without_a_chip() -> None:
    for chip, words in ((None, "none was given"), ("loihi", "no chip is named 'loihi'")):
        with pytest.raises(InputError, match=words):
            decode(bare(GOOD), chip)
    unused = re.sub('("enable"|"monitorEnable"): true', r"\1: false", bare(GOOD))
    with pytest.raises(InputError, match="uses no core"):
        decode(unused, "speck2b")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_what_has_no_problems_is_written_and_read(chip: Any) -> None:
    """And nothing else is written, however odd."""
    written = 0
    for config, _ in corners(chip, 250, seed=11):
        if problems(config):
            with pytest.raises(ConfigError):
                to_json(config)
            continue
        written += 1
        text = to_json(config)
        assert to_json(from_json(text)) == text
        uniform = [core.initial is None or not np.ptp(core.initial, axis=(1, 2)).any() for core in config.cores]
        if all(uniform):
            verify(decode(text))
            continue
        with pytest.raises(InputError, match="initial potentials that differ within a channel"):
            decode(text)
    assert written > 80


# --- memory writes --------------------------------------------------------------------------------------------------


def writes_of(config: Config) -> list[tuple[str, int, int, int]]:
    """Word by word, as the documents say it."""

    def bits(n: int) -> int:
        return ceil(log2(n))

    written = []
    for core in config.cores:
        c_bits, f_bits, y_bits, x_bits = map(bits, (core.input_shape[0], *core.output_shape))
        biases = np.zeros(core.output_shape[0], int) if core.biases is None else core.biases
        initial = np.zeros(core.output_shape, int) if core.initial is None else core.initial
        for (f, c, y, x), weight in np.ndenumerate(core.weights):
            address = (y * core.kernel + x) << (c_bits + f_bits) | f << c_bits | c
            written.append(("WriteWeightValue", core.index, address, int(weight)))
        written += [("WriteBiasValue", core.index, f, int(bias)) for f, bias in enumerate(biases)]
        for (f, y, x), value in np.ndenumerate(initial):
            high, low, low_bits = (x, y, y_bits) if config.chip.neuron_major == "x" else (y, x, x_bits)
            address = high << (low_bits + f_bits) | low << f_bits | f
            written.append(("WriteNeuronValue", core.index, address, int(value)))
    return written


@pytest.mark.parametrize("chip", ["dynapcnn", "speck2b"])
def test_memory_writes_are_read_back(chip: str) -> None:
    for i in range(20):
        config = build(CHIPS[chip], np.random.default_rng([5, i]), gentle=True)
        memories = read_writes(writes_of(config), config)
        for core in config.cores:
            np.testing.assert_array_equal(memories[core.index].weights, core.weights)
            np.testing.assert_array_equal(memories[core.index].biases, 0 if core.biases is None else core.biases)
            np.testing.assert_array_equal(memories[core.index].initial, 0 if core.initial is None else core.initial)


def test_writes_that_belong_to_nothing() -> None:
    config = joined(Destination(3, 2, 2), 3, "speck2b")  # channels in: 3 of 4 addresses
    good = writes_of(config)
    assert read_writes([*good, ("WriteBiasValue", 5, 0, 0)], config)
    wrong = {
        "c: WriteWeightValue at 3, where nothing is": [*good, ("WriteWeightValue", 3, 3, 1)],
        "a: WriteBiasValue at 2, where nothing is": [*good, ("WriteBiasValue", 0, 2, 0)],
        "a: WriteNeuronValue at 32, where nothing is": [*good, ("WriteNeuronValue", 0, 32, 0)],
        "a: WriteBiasValue twice at one address": [*good, ("WriteBiasValue", 0, 1, 0)],
        "a: no WriteWeightValue at 0": good[1:],
        "c: no WriteNeuronValue at 3": good[:-1],
        "core 5 is not in use, but has WriteWeightValue [(0, 4)]": [*good, ("WriteWeightValue", 5, 0, 4)],
        "core 9 is not in use": [*good, ("WriteWeightValue", 9, 0, 0)],
        "WriteKillBit is no write of a memory": [*good, ("WriteKillBit", 0, 0, 0)],
        "and 60 more": [],
    }
    for words, writes in wrong.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            read_writes(writes, config)
