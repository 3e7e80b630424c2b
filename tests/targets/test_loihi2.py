"""Networks divided over Loihi 2's cores: the formulas against what Lava's own compiler printed, every limit passed by
one, and the loads counted again synapse by synapse."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from passes.build import Net
from zoo import SEQUENTIAL_ZOO, ZOO, build, example_input

import snncc
from snncc.ir import Graph, Severity, Stage, ops
from snncc.ir.loihi import AtrLif, CubaLif, Delta, Sigma, SigmaDelta
from snncc.ir.types import Array
from snncc.passes.base import Context
from snncc.targets.lava.loihi2 import (
    LOIHI2,
    Chip,
    Partition,
    PlaceOnCores,
    Share,
    kernel_words,
    list_words,
    partition,
    weight_bits,
)
from snncc.targets.lava.program import NEURONS, Connection, Program

E = LOIHI2.estimates


def chip(**estimates: Any) -> Chip:
    return replace(LOIHI2, estimates=replace(E, **estimates))


def weights(*shape: int, bits: int = 8) -> Array:
    """Integers that need so many bits."""
    made = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, np.int8)
    made.flat[0], made.flat[-1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return made


def network(shape: tuple[int, ...], *layers: tuple[Any, ...], neuron: Any = None) -> Graph:
    """A graph of ("conv", channels, kernel, stride, padding, bits) and ("dense", neurons, bits), each with neurons."""
    net = Net(*shape, stage=Stage.INT, high=1.0)
    for i, (kind, size, *rest) in enumerate(layers):
        below = net.nodes[net.last].type
        if kind == "conv":
            kernel, stride, (y, x), bits = rest
            made = net.param(weights(size, below.shape[0], kernel, kernel, bits=bits), np.int8)
            net(ops.Conv2d(made, None, stride, (y, y, x, x)), name=f"layer{i}")
        else:
            if len(below.shape) > 1:
                net(ops.Flatten(), name=f"flatten{i}")
            net(ops.Linear(net.param(weights(size, below.size, bits=rest[0]), np.int8), None), name=f"layer{i}")
        net(neuron or CubaLif(10), name=f"neuron{i}")
    graph: Graph = net.graph()
    return graph


def divide(graph: Graph, on: Chip = LOIHI2) -> Partition:
    return partition(Program(graph), on)


# --- against Lava's own compiler -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axons", "synapses", "bits", "words"),
    [  # words of a core from lava-dl's notebooks; bits from the weights in its .net files
        (784, 50, 8, 12544),  # mnist/run: 78.40 % of 16,000
        (128, 64, 8, 2688),  # 16.80 %
        (64, 10, 8, 256),  # 1.60 %
        (256, 200, 8, 16128),  # oxford/run: allocation of core 0, whose weights have 7 bits
        (200, 256, 8, 16200),
        (2560, 100, 4, 66560),  # pilotnet_sdnn/benchmark
        (2560, 17, 4, 12800),
        (100, 50, 6, 1500),
        (50, 10, 5, 150),
        (10, 1, 4, 10),
        (2560, 100, 3, 61440),  # pilotnet_snn/benchmark
        (100, 50, 4, 1300),
    ],
)
def test_lists_take_what_lava_prints(axons: int, synapses: int, bits: int, words: int) -> None:
    assert axons * list_words(np.array(synapses), bits) == words


@pytest.mark.parametrize(
    ("outputs", "inputs", "kernel", "bits", "words"),
    [
        (24, 3, 3, 6, 81),  # pilotnet_sdnn/benchmark
        (36, 24, 3, 5, 864),
        (48, 36, 3, 4, 1620),
        (64, 48, 3, 5, 2592),
        (64, 64, 3, 4, 2880),
        (24, 3, 3, 5, 81),  # pilotnet_snn/benchmark, where it differs
        (36, 24, 3, 4, 864),
        (64, 48, 3, 4, 2160),
    ],
)
def test_kernels_take_what_lava_prints(outputs: int, inputs: int, kernel: int, bits: int, words: int) -> None:
    assert kernel_words((outputs, inputs, kernel, kernel), 1, bits, outputs) == words


def test_percentages_are_those_that_lava_prints() -> None:
    """Rows of mnist/run and yolo_kp/run: percent of neurons, synapses and of all, from the columns' amounts."""
    rows = [  # axons in, neurons, synapses, axons out, AxonMem; percent of neurons, synapses, total
        ((784, 50, 12544, 50, 0), (1.22, 78.40, 67.14)),
        ((128, 64, 2688, 64, 0), (1.56, 16.80, 14.72)),
        ((1, 3584, 13824, 56, 28), (87.52, 86.40, 87.47)),
        ((1, 3584, 12672, 28, 28), (87.52, 79.20, 81.57)),
        ((1, 3584, 576, 112, 56), (87.52, 3.60, 21.65)),
    ]
    for amounts, printed in rows:
        _, neurons, synapses, *_ = amounts
        found = (neurons / E.state_words, synapses / E.synapse_words, sum(amounts) / E.core_words)
        assert [100 * f for f in found] == pytest.approx(printed, abs=0.0101)


def test_networks_take_about_the_cores_that_lava_gives_them() -> None:
    """Lava's compiler halves until it fits; we look for the fewest tiles, so we never take more."""
    mnist = divide(network((784,), ("dense", 128, 8), ("dense", 64, 8), ("dense", 10, 8)))
    assert [s.cores for s in mnist.shares] == [3, 1, 1]  # as Lava
    old = chip(synapse_words=12_000)  # what these notebooks' version had
    oxford = divide(network((200,), ("dense", 256, 8), ("dense", 200, 8)), old)
    assert [s.cores for s in oxford.shares] == [2, 2]  # Lava: 3, 2
    convs = [(24, (2, 2), (0, 0), 6), (36, (2, 2), (0, 0), 5), (48, (2, 2), (0, 0), 4), (64, (1, 2), (0, 1), 5)]
    layers = [*(("conv", c, 3, s, p, b) for c, s, p, b in convs), ("conv", 64, 3, (1, 1), (0, 0), 4)]
    dense = [("dense", 100, 4), ("dense", 50, 6), ("dense", 10, 5), ("dense", 1, 4)]
    pilotnet = divide(network((3, 200, 66), *layers, *dense, neuron=SigmaDelta()), old)
    lava = [25, 13, 3, 3, 2, 12, 1, 1, 1]
    ours = [s.cores for s in pilotnet.shares]
    assert ours == [20, 7, 2, 2, 1, 7, 1, 1, 1] and all(a <= b for a, b in zip(ours, lava, strict=True))
    assert (pilotnet.dominant.population, pilotnet.resource(pilotnet.dominant)) == ("neuron0", "state_words")


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ([0], 1), ([1, 0], 1), ([0, 9], 4), ([-1, 1], 2), ([-128, 127], 8), ([-64, 63], 8), ([-32, 31], 6),
        ([-33, 31], 8), ([-10, 12], 4), ([-98, 124], 8), ([-4, 0], 1), ([-128], 1), ([-127], 8), ([0, 127], 8),
    ],
)  # fmt: skip
def test_weight_bits(values: list[int], bits: int) -> None:
    assert weight_bits(np.array(values, np.int8)) == bits


# --- every limit, passed by one --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("neuron", "words"), [(CubaLif(1), 1), (AtrLif(1), 2)])
def test_neurons_of_a_core(neuron: Any, words: int) -> None:
    most = 4095 // words
    for size, cores in ((most, 1), (most + 1, 2)):
        assert divide(network((1,), ("dense", size, 2), neuron=neuron)).cores == cores


RESOURCES = ("state_words", "synapse_words", "core_words", "axons_in", "axons_out")


@pytest.mark.parametrize("shape", [(12,), (3, 6, 6)])
@pytest.mark.parametrize("resource", ["neurons", *RESOURCES])
def test_each_limit(resource: str, shape: tuple[int, ...]) -> None:
    # 24 channels are runs of 16 and 8: two cores can have one each.
    layer = ("dense", 12, 8) if len(shape) == 1 else ("conv", 24, 3, (1, 1), (1, 1), 8)
    graph = network(shape, layer)
    whole = divide(graph).shares[0]
    assert whole.cores == 1

    def limited(limit: int) -> tuple[Partition, Share]:
        on = replace(LOIHI2, neurons_per_core=limit) if resource == "neurons" else chip(**{resource: limit})
        made = divide(graph, on)
        return made, made.shares[0]

    assert replace(limited(whole.used[resource])[1], cores_unshared=whole.cores_unshared) == whole
    if resource == "axons_in" and len(shape) == 1:
        return  # every core of a dense layer has all axons: no division helps
    made, share = limited(whole.used[resource] - 1)
    assert share.cores == 2 and share.used[resource] < whole.used[resource] and not made.diagnostics
    assert made.resource(share) == resource and share.cores_by[resource] == 2
    assert all(share.cores_by[r] == 1 for r in whole.used if r != resource)


def test_a_neuron_with_too_many_inputs() -> None:
    def found(inputs: int) -> Any:
        made = divide(network((inputs,), ("dense", 1, 8)))
        assert made.cores == 1
        return made.diagnostics

    assert found(9_999) == ()  # a word and an axon for each, the neuron, and its axon: 20,000 words
    (warning,) = found(10_000)
    assert (warning.code, warning.severity) == ("SNN056", Severity.WARNING)
    assert (warning.limit, warning.found) == (20_000, 20_002)
    assert "neuron0" in warning.message and warning.loc.sources[0].module == "layer0"
    (warning,) = found(196_608)
    assert warning.severity is Severity.WARNING
    (error,) = found(196_609)
    assert (error.code, error.severity, error.limit, error.found) == ("SNN056", Severity.ERROR, 196_608, 196_609)


def test_chips_and_boards() -> None:
    tiny = replace(LOIHI2, neurons_per_core=1)
    for cores, chips in ((120, 1), (121, 2), (960, 8)):
        made = divide(network((1,), ("dense", cores, 2)), tiny)
        assert (made.cores, made.chips, made.diagnostics) == (cores, chips, ())
    (note,) = divide(network((1,), ("dense", 961, 2)), tiny).diagnostics
    assert (note.code, note.severity, note.limit, note.found) == ("SNN060", Severity.WARNING, 8, 9)


def test_places_are_in_order_over_chips() -> None:
    tiny = replace(LOIHI2, neurons_per_core=1)
    made = divide(network((1,), ("dense", 118, 2), ("dense", 1, 2), ("dense", 123, 2), ("dense", 1, 2)), tiny)
    assert [made.place(f"neuron{i}") for i in range(4)] == [
        "chip 0 cores 0-117",
        "chip 0 core 118",
        "chip 0 core 119, chip 1 cores 0-119, chip 2 cores 0-1",
        "chip 2 core 2",
    ]


def test_a_network_of_messages() -> None:
    """Neurons that read the input itself take cores, too, without synapses."""
    net = Net(2, 4, 4, stage=Stage.INT, high=1.0)
    net(Delta(), name="delta")
    net(ops.Conv2d(net.param(weights(2, 2, 1, 1), np.int8), None), name="conv")
    net(SigmaDelta(), name="relu")
    net(ops.Affine(net.param(weights(2), np.int8), None), name="scale")
    net(Sigma(), name="scores")
    made = divide(net.graph())
    assert [(s.population, s.cores, s.used["synapse_words"]) for s in made.shares] == [
        ("delta", 1, 0), ("relu", 1, 2), ("scores", 1, 2)
    ]  # fmt: skip
    assert set(made.usage()) == {"conv", "scale"} and made.shares[0].used["axons_in"] == 32
    assert set(E.neuron_words) == {neuron.mnemonic for neuron in NEURONS}


# --- what is counted -------------------------------------------------------------------------------------------------


def test_kernels_of_groups() -> None:
    # Depthwise: every channel is a run of one; a channel's 9 elements are words of their own.
    assert kernel_words((8, 1, 3, 3), 8, 8, 8) == 8 * 9
    assert kernel_words((8, 1, 3, 3), 8, 8, 3) == 3 * 9
    # Two groups of 6 on cores of 4: the second core has 2 channels of each, runs of one word each.
    assert kernel_words((12, 5, 1, 1), 2, 8, 4) == 2 * 5
    assert kernel_words((12, 5, 1, 1), 2, 8, 12) == 2 * kernel_words((6, 5, 1, 1), 1, 8, 6)


def test_kernels_are_shared_and_the_alternative_is_an_estimate() -> None:
    made = divide(network((16, 32, 32), ("conv", 16, 3, (1, 1), (1, 1), 8)))
    row, whole = made.usage()["layer0"], made.mapping()
    synapses = 16 * 16 * (3 * 32 - 2) ** 2
    assert row["synapses"] == whole["synapses"] == synapses
    assert whole["populations"][0]["used"]["synapse_words"] == 16 * 9 * 3  # 16 channels of 8 bits: 3 words
    assert row["cores"] == 5 and row["estimates"]["cores_unshared"] == -(-synapses * 20 // 64 // 16_000)


def test_delays_are_stored_with_their_synapses() -> None:
    net = Net(4, stage=Stage.INT, high=1.0)
    first = net(ops.Linear(net.param(weights(4, 4), np.int8), None), name="first")
    a = net(CubaLif(10), first, name="a")
    b = net(ops.Linear(net.param(weights(4, 4), np.int8), None), a, name="second")
    b = net(CubaLif(10), b, name="b")
    near = net(ops.Linear(net.param(weights(4, 4), np.int8), None), b, name="near")
    far = net(ops.Linear(net.param(weights(4, 4), np.int8), None), a, name="far")
    net(ops.Add(), near, far)
    net(CubaLif(10), name="c")
    program = Program(net.graph())
    share = partition(program).shares[-1]
    delayed = next(c for c in program.connections if c.layer == "far")
    lists = Counter(np.asarray(delayed.columns).tolist()).values()
    assert delayed.delay == 1
    assert share.used["synapse_words"] == 4 * 2 + sum(-(-(n * (8 + 12 + 6) + 10) // 64) for n in lists)
    assert share.layers == {"near": 16, "far": delayed.synapses} and share.synapses == 16 + delayed.synapses


# --- whole networks --------------------------------------------------------------------------------------------------

NETWORKS = ["mlp", "lenet_bn", "resnet_a", "mobilenet", "bottleneck", "densenet", "conv_variants", "chip_nine"]


@pytest.fixture(scope="module")
def mapped() -> dict[str, snncc.CompiledModel]:
    made = {}
    for name in NETWORKS:
        x = example_input((ZOO | SEQUENTIAL_ZOO)[name].input_shape, 4).numpy()
        made[name] = snncc.compile(build(name), "lava", calibration=x, bias="keep", neuron="if")
    return made


SMALL = chip(core_words=3_000, synapse_words=2_400, state_words=800)  # small cores: everything is cut


@pytest.mark.parametrize("on", [LOIHI2, SMALL], ids=["loihi2", "small"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_core_holds_its_load(name: str, on: Chip, mapped: dict[str, snncc.CompiledModel]) -> None:
    """Each core's load counted again, one synapse after the other; cores follow each other without gaps."""
    program = Program(mapped[name].graph)
    made = partition(program, on)
    first = 0
    for population, share in zip(program.populations, made.shares, strict=True):
        assert (share.population, share.first, share.neurons) == (population.name, first, population.size)
        first += share.cores
        loads = list(_loads(program, population.name, share.tile, on))
        assert len(loads) == share.cores
        most = {r: max(load[r] for load in loads) for r in loads[0]}
        assert {r: share.used[r] for r in most} == most
        assert share.used["core_words"] >= sum(max(loads, key=lambda x: sum(x.values())).values())
        if not any(share.population in d.message for d in made.diagnostics):
            assert all(share.used[r] <= limit for r, limit in on.limits.items())
    assert made.cores == first
    json.dumps([made.usage(), made.mapping()])


def _loads(program: Program, name: str, tile: tuple[int, ...], on: Chip) -> Any:
    """State, synapses and axons in of every core."""
    population = program.by_name[name]
    size = (*population.shape, 1, 1)[:3]
    index = np.arange(population.size).reshape(size)
    for c, h, w in product(*(range(0, n, t) for n, t in zip(size, tile, strict=True))):
        mine = index[c : c + tile[0], h : h + tile[1], w : w + tile[2]]
        channels = mine.shape[0]
        words = axons = 0
        for connection in program.into(name):
            runs = [1 << i for i in range(12) if channels >> i & 1]
            if connection.kind == "conv":
                words += _kernel(connection, c, channels)
                axons += len(runs)
            elif connection.kind == "dense":
                assert connection.weight is not None
                lists = mine.size * (weight_bits(connection.weight) + 12) + 10
                words += connection.shape[1] * -(-lists // 64)
                axons += connection.shape[1]
            else:
                assert connection.values is not None and connection.rows is not None
                here = np.isin(connection.rows, mine)
                counts = Counter(np.asarray(connection.columns)[here].tolist())
                bits = weight_bits(connection.values) + 12 + (6 if connection.delay else 0)
                words += sum(-(-(n * bits + 10) // 64) for n in counts.values())
                axons += len(counts)
        state = mine.size * on.estimates.neuron_words[population.kind]
        yield {"state_words": state, "synapse_words": words, "axons_in": axons}


def _kernel(connection: Connection, start: int, channels: int) -> int:
    assert connection.weight is not None
    out, *rest = connection.weight.shape
    group = out // connection.geometry["groups"]
    spans = Counter(channel // group for channel in range(start, start + channels)).values()
    bits = weight_bits(connection.weight)
    words = sum(-(-((1 << i) * bits + 10) // 64) for span in spans for i in range(12) if span >> i & 1)
    return words * int(np.prod(rest))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_report_has_the_partition(name: str, mapped: dict[str, snncc.CompiledModel]) -> None:
    compiled = mapped[name]
    whole = compiled.mapping
    rows = {row["layer"]: row for row in compiled.report}
    assert whole["cores"] == sum(row["cores"] for row in whole["populations"])
    assert whole["neurons"] == sum(row["neurons"] for row in whole["populations"])
    assert whole["chips"] == -(-whole["cores"] // 120)
    most = max(row["cores"] for row in whole["populations"])
    assert whole["dominant"]["cores"] == most
    for population in whole["populations"]:
        assert compiled.graph[population["population"]].place == population["place"]
        for layer in population["layers"]:
            assert rows[layer]["place"] == population["place"] == compiled.graph[layer].place
            assert rows[layer]["cores"] == population["cores"]
    assert set(rows) == {layer for p in whole["populations"] for layer in p["layers"]}
    assert not {"axons_in", "axons_out"} & {key for row in whole["populations"] for key in (*row, *row["used"])}
    assert whole["estimates"]["axons_in"] == max(p["estimates"]["axons_in"] for p in whole["populations"])


def test_places_of_shape_operations_are_their_readers() -> None:
    net = Net(2, 4, 4, stage=Stage.INT, high=1.0)
    net(ops.Conv2d(net.param(weights(2, 2, 1, 1), np.int8), None), name="conv")
    a = net(CubaLif(10), name="a")
    flat = net(ops.Flatten(), a, name="flat")
    heads = []
    for name in ("b", "c"):
        net(ops.Linear(net.param(weights(3, 32), np.int8), None), flat, name=f"fc_{name}")
        heads.append(net(CubaLif(10), name=name))
    graph = net.graph(*heads)
    context = Context()
    placed = PlaceOnCores()(graph, context)
    assert placed.stage is Stage.MAPPED and context.diagnostics == []
    places = {node.name: node.place for node in placed.nodes}
    assert places == {
        "x": "",
        "x.encode": "",
        "conv": "chip 0 core 0",
        "a": "chip 0 core 0",
        "flat": "chip 0 core 1; chip 0 core 2",
        "fc_b": "chip 0 core 1",
        "b": "chip 0 core 1",
        "fc_c": "chip 0 core 2",
        "c": "chip 0 core 2",
    }
    assert replace(placed, nodes=tuple(replace(n, place="", loc=graph[n.name].loc) for n in placed.nodes)) == replace(
        graph, stage=Stage.MAPPED
    )


def test_a_reshaped_output_lies_with_its_neurons() -> None:
    net = Net(2, 4, 4, stage=Stage.INT, high=1.0)
    net(ops.Conv2d(net.param(weights(2, 2, 1, 1), np.int8), None), name="conv")
    net(CubaLif(10), name="neuron")
    net(ops.Flatten(), name="flat")
    assert PlaceOnCores()(net.graph())["flat"].place == "chip 0 core 0"


def test_the_pass_reports() -> None:
    context = Context()
    PlaceOnCores(replace(LOIHI2, chips_on_a_board=0))(network((4,), ("dense", 2, 8)), context)
    assert [(d.code, d.severity) for d in context.diagnostics] == [("SNN060", Severity.WARNING)]


def test_more_chips_than_there_are_is_an_error_unless_it_is_asked_for() -> None:
    graph, chip = network((4,), ("dense", 2, 8)), replace(LOIHI2, chips_on_a_board=0, most_chips=0)
    context = Context()
    PlaceOnCores(chip)(graph, context)
    (error,) = context.diagnostics
    assert (error.code, error.severity, error.limit, error.found) == ("SNN060", Severity.ERROR, 0, 1)
    assert "oversize=True" in error.hint
    context = Context()
    PlaceOnCores(chip, oversize=True)(graph, context)
    assert [(d.code, d.severity) for d in context.diagnostics] == [("SNN060", Severity.WARNING)]
