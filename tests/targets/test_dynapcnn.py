"""The DYNAP-CNN target from a torch model to its configuration: what fits is exact, the rest is refused by name."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from chipnets import chip_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import SEQUENTIAL_ZOO, build, example_input

import snncc
from snncc import CompileError, Diagnostic, InputError
from snncc.engine import Simulation
from snncc.ir import Graph, Severity, Stage, ops
from snncc.ir.diagnostics import errors
from snncc.passes.base import Context
from snncc.passes.place import Conflict, Group, match, place_groups
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import Config, CoreConfig, from_json, problems

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Chain(nn.Module):
    """Layers one after the other, called from this file, so that diagnostics have a line to name."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)  # every layer's line
        return x


LINE = inspect.getsourcelines(Chain)[1] + next(
    i for i, line in enumerate(inspect.getsourcelines(Chain)[0]) if "every layer's line" in line
)


@cache
def compiled(name: str, chip: str, bias: str = "keep", reset: str = "subtract") -> snncc.CompiledModel:
    x = example_input(SEQUENTIAL_ZOO[name].input_shape, 6, seed=1)
    return snncc.compile(build(name), chip, calibration=x, bias=bias, reset=reset, timesteps=16)


def decoded(model: snncc.CompiledModel) -> Config:
    return from_json(str(model.target.files(model.graph, model.options)["config.json"]))


# --- what fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", ["dynapcnn", "speck2b"])
@pytest.mark.parametrize("name", SEQUENTIAL_ZOO)
def test_zoo_compiles(name: str, chip: str) -> None:
    model = compiled(name, chip)
    assert model.graph.stage is Stage.MAPPED
    config = decoded(model)
    assert problems(config) == []
    assert config.chip == CHIPS[chip]
    layers = [row for row in model.report if "core" in row]
    assert len(layers) == len(model.report) == len(config.cores)
    assert len({row["core"] for row in layers}) == len(layers)
    for row, core in zip(layers, config.cores, strict=True):
        assert (row["layer"], row["core"]) == (core.name, core.index)
        has = CHIPS[chip].cores[row["core"]]
        for what, used, size in zip(
            ("kernel", "neuron", "bias"), core.memory, (has.kernel_words, has.neuron_words, has.bias_words), strict=True
        ):
            assert (row[f"{what}_used"], row[f"{what}_free"]) == (used, size - used)
            assert row[f"{what}_free"] >= 0
    assert_same_integers(model.graph, config)


def assert_same_integers(graph: Graph, config: Config) -> None:
    """The decoded configuration has exactly the integers of the mapped graph."""
    weighted = [n for n in graph.nodes if isinstance(n.op, ops.Weighted)]
    shape = (*graph.inputs[0].type.shape, 1, 1)[:3]
    for i, (node, core) in enumerate(zip(weighted, config.cores, strict=True)):
        op = node.op
        assert isinstance(op, ops.Conv2d | ops.Linear)
        weight = graph.value(op.weight)
        assert node.place == f"core {core.index}"
        assert core.input_shape == shape
        if isinstance(op, ops.Conv2d):
            weight = np.concatenate(
                [
                    np.pad(part, ((0, 0), (g * part.shape[1], (op.groups - 1 - g) * part.shape[1]), (0, 0), (0, 0)))
                    for g, part in enumerate(np.split(weight, op.groups))
                ]
            )
            assert (core.stride, core.padding) == (op.stride, op.padding[::2])
        else:
            weight = weight.reshape(len(weight), *shape)
            assert (core.stride, core.padding) == ((1, 1), (0, 0))
        assert core.weights.dtype == np.int8
        np.testing.assert_array_equal(core.weights, weight)
        if op.bias is not None and graph.value(op.bias).any():
            np.testing.assert_array_equal(core.biases, graph.value(op.bias))
        else:
            assert core.biases is None
        assert core.output_shape == (*node.type.shape, 1, 1)[:3]
        neuron, pooling, read = None, 1, node
        while (users := graph.users[read.name]) and not isinstance(users[0].op, ops.Weighted):
            (read,) = users
            neuron = read.op if isinstance(read.op, ops.If) else neuron
            pooling *= read.op.kernel[0] if isinstance(read.op, ops.SumPool) else 1
        assert isinstance(neuron, ops.If)
        assert (core.threshold_high, core.threshold_low) == (neuron.threshold, neuron.v_min)
        assert core.return_to_zero == (neuron.reset == "zero")
        v0 = graph.value(neuron.v0) if not isinstance(neuron.v0, int) else np.full(core.output_shape[0], neuron.v0)
        np.testing.assert_array_equal(core.initial, np.broadcast_to(v0[:, None, None], core.output_shape))
        shape = (core.output_shape[0], core.output_shape[1] // pooling, core.output_shape[2] // pooling)
        if i + 1 < len(config.cores):
            (destination,) = core.destinations
            after = config.cores[i + 1]
            assert (destination.layer, destination.pooling, destination.feature_shift) == (after.index, pooling, 0)
            assert not core.monitor
        else:
            assert (core.destinations, core.monitor) == ((), True)
    assert config.inputs == (config.cores[0].index,)
    assert [r.core for r in config.readouts] == [config.cores[-1].index]


def test_groups_are_expanded() -> None:
    net = Chain(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 3),
    ).eval()  # fmt: skip
    model = snncc.compile(net, "speck2b", calibration=example_input((4, 6, 6), 4), bias="keep")
    assert_same_integers(model.graph, decoded(model))


def test_minis_keep_biases_off_cores_without_bias_memory() -> None:
    net = Chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    model = snncc.compile(net, "speck2cmini", calibration=example_input((1, 6, 6), 4), bias="keep")
    assert sorted(row["core"] for row in model.report) == [3, 4]


# --- what it computes -----------------------------------------------------------------------------------------------


def run_chip(config: Config, spikes: Array) -> dict[str, Array]:
    """What the cores do to input spikes (T, N, C, H, W), from the configuration alone: spikes (T, N, ...) by layer."""
    cores, arriving, sent = {core.index: core for core in config.cores}, spikes.astype(np.int64), dict[str, Array]()
    index: int | None = config.inputs[0]
    while index is not None:
        core = cores[index]
        sent[core.name] = run_core(core, arriving)
        index = None
        for destination in core.destinations:
            index = destination.layer
            shift = int(math.log2(destination.pooling))
            arriving = np.zeros((*spikes.shape[:2], *cores[index].input_shape), np.int64)
            _, h, w = cores[index].input_shape
            for y, x in itertools.product(*map(range, core.output_shape[1:])):
                if y >> shift < h and x >> shift < w:
                    arriving[..., y >> shift, x >> shift] += sent[core.name][..., y, x]
    return sent


def run_core(core: CoreConfig, arriving: Array) -> Array:
    t, n = arriving.shape[:2]
    (sy, sx), (py, px), (f, h, w), k = core.stride, core.padding, core.output_shape, core.kernel
    padded = np.pad(arriving, ((0, 0), (0, 0), (0, 0), (py, py + sy), (px, px + sx)))
    current = np.zeros((t, n, f, h, w), np.int64)
    for y, x in itertools.product(range(k), repeat=2):
        window = padded[:, :, :, y : y + sy * h : sy, x : x + sx * w : sx]
        current += np.einsum("fc,tnchw->tnfhw", core.weights[:, :, y, x].astype(np.int64), window)
    v = np.zeros((n, f, h, w), np.int64) + (0 if core.initial is None else core.initial)
    bias = np.zeros(f, np.int64) if core.biases is None else core.biases.astype(np.int64)
    out = np.zeros_like(current)
    for step in range(t):
        v = v + current[step] + bias[:, None, None]
        out[step] = v >= core.threshold_high
        v = np.where(out[step] == 1, 0 if core.return_to_zero else v - core.threshold_high, v)
        v = np.maximum(v, core.threshold_low)
    return out


@pytest.mark.parametrize(
    ("name", "reset"),
    [("chip_small", "subtract"), ("chip_mlp", "subtract"), ("chip_bias", "subtract"), ("chip_bias", "zero"),
     ("chip_lenet", "subtract")],
)  # fmt: skip
def test_simulation_is_what_the_configuration_does(name: str, reset: str) -> None:
    model = compiled(name, "speck2b", reset=reset)
    x = example_input(SEQUENTIAL_ZOO[name].input_shape, 3, seed=5)
    done = model.simulate(x, 16, record="spikes")
    config = decoded(model)
    (encoded,) = (n.name for n in model.graph.nodes if isinstance(n.op, ops.Encode))
    spikes = done.spikes[encoded].reshape(16, 3, *config.cores[0].input_shape)
    assert_same_spikes(model, run_chip(config, spikes), done)
    assert done.spikes[encoded].any() and done.counts[model.report[-1]["neuron"]]
    unit = model.graph[model.graph.outputs[0]].type.unit
    unit = unit if isinstance(unit, float) else model.graph.value(unit)  # type: ignore[arg-type]
    counts = run_chip(config, spikes)[config.cores[-1].name].sum(0).reshape(3, -1)
    np.testing.assert_allclose(done.output.reshape(3, -1), counts * unit / 16)


def assert_same_spikes(model: snncc.CompiledModel, sent: Mapping[str, Array], done: Simulation) -> None:
    for row in model.report:
        ours = done.spikes[row["neuron"]]
        np.testing.assert_array_equal(ours, sent[row["layer"]].reshape(ours.shape), row["layer"])


# --- what is refused ------------------------------------------------------------------------------------------------


def conv(c_in: int, c_out: int, k: int, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, k, bias=False, **options), nn.ReLU()]


def head(features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, 4, bias=False)]


# The layers and the input; then code, module, limit and amount.
REFUSED: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...], tuple[str, int, int | None, int | None]]] = {
    "kernel 17": (lambda: [*conv(1, 4, 17), *head(256)], (1, 24, 24), ("SNN050", 0, 16, 17)),
    "linear over 17 x 17": (lambda: [*conv(1, 2, 1), *head(578)], (1, 17, 17), ("SNN050", 3, 16, 17)),
    "kernel 3 x 5": (lambda: [*conv(1, 4, (3, 5)), *conv(4, 4, 1)], (1, 8, 10), ("SNN050", 0, None, None)),  # type: ignore[arg-type]
    "linear over 3 x 5": (lambda: [*conv(1, 2, 1), *head(30)], (1, 3, 5), ("SNN050", 3, None, None)),
    "stride 3": (lambda: [*conv(1, 4, 3, stride=3), *head(64)], (1, 12, 12), ("SNN051", 0, 2, 3)),
    "stride 16": (lambda: [*conv(1, 4, 3, stride=16), *head(16)], (1, 32, 32), ("SNN051", 0, 8, 16)),
    "padding 8": (lambda: [*conv(1, 4, 9, padding=8), *head(324)], (1, 1, 1), ("SNN052", 0, 7, 8)),
    "padding same of an even kernel": (
        lambda: [*conv(1, 4, 4, padding="same"), *head(256)], (1, 8, 8), ("SNN052", 0, None, None),
    ),
    "pooling 3": (lambda: [*conv(1, 4, 1), nn.AvgPool2d(3), *head(16)], (1, 6, 6), ("SNN053", 2, 2, 3)),
    "pooling 2, then 4": (
        lambda: [*conv(1, 4, 1), nn.AvgPool2d(2), nn.AvgPool2d(4), *head(16)], (1, 16, 16), ("SNN053", 3, 4, 8),
    ),
    "pooling windows that overlap": (
        lambda: [*conv(1, 4, 1), nn.AvgPool2d(2, 1), *head(36)], (1, 4, 4), ("SNN053", 2, None, None),
    ),
    "pooling with padding": (
        lambda: [*conv(1, 4, 1), nn.AvgPool2d(2, 2, 1), *head(36)], (1, 4, 4), ("SNN053", 2, None, None),
    ),
    "pooling before the first layer": (
        lambda: [nn.AvgPool2d(2), *conv(1, 4, 1), *head(16)], (1, 4, 4), ("SNN053", 0, None, None),
    ),
    "pooling of currents": (
        lambda: [nn.Conv2d(1, 4, 1), nn.AvgPool2d(2), nn.ReLU(), *head(16)], (1, 4, 4), ("SNN053", 1, None, None),
    ),
    "1025 features": (
        lambda: [*conv(1, 1025, 1), nn.AvgPool2d(4), *head(1025)], (1, 4, 4), ("SNN054", 0, 1024, 1025),
    ),
    "128 x 128 output": (
        lambda: [*conv(1, 1, 1), nn.AvgPool2d(4), *conv(1, 1, 3, stride=8)], (1, 128, 128), ("SNN055", 0, 64, 128),
    ),
    "129 x 129 input": (
        lambda: [*conv(1, 1, 1, stride=4), *conv(1, 1, 3, stride=8)], (1, 129, 129), ("SNN055", 0, 128, 129),
    ),
    "weight memory": (lambda: [*conv(64, 512, 3), *head(2048)], (64, 4, 4), ("SNN056", 0, 65536, 524288)),
    "neuron memory": (
        lambda: [*conv(1, 20, 1), *conv(20, 1, 4, stride=4)], (1, 64, 64), ("SNN057", 0, 65536, 81920),
    ),
    # 64 Ki weights are for cores 5 and 6 alone, which have 16 Ki neurons.
    "both memories together": (
        lambda: [*conv(64, 64, 3, padding=1), *conv(64, 4, 4, stride=4)], (64, 32, 32), ("SNN057", 0, 16384, 65536),
    ),
    "10 layers on 9 cores": (lambda: [m for _ in range(10) for m in conv(2, 2, 1)], (2, 4, 4), ("SNN059", 18, 9, 10)),
    "groups that do not fit when expanded": (
        lambda: [*conv(128, 128, 3, groups=128), *conv(128, 4, 1)], (128, 4, 4), ("SNN063", 0, 65536, 262144),
    ),
    "max pooling": (lambda: [*conv(1, 4, 1), nn.MaxPool2d(2), *head(16)], (1, 4, 4), ("SNN031", 2, None, None)),
    "uneven adaptive pooling": (
        lambda: [*conv(1, 4, 1), nn.AdaptiveAvgPool2d(3), *head(36)], (1, 7, 7), ("SNN031", 2, None, None),
    ),
    "dilation 2": (lambda: [*conv(1, 4, 3, dilation=2), *head(64)], (1, 8, 8), ("SNN062", 0, 1, 2)),
    "no activation between": (
        lambda: [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), *head(64)], (1, 8, 8), ("SNN032", 1, None, None),
    ),
    "an end in pooling": (
        lambda: [*conv(1, 4, 3), nn.AvgPool2d(2)], (1, 8, 8), ("SNN061", 2, None, None),
    ),
    "a view that moves rows to channels": (
        lambda: [*conv(1, 4, 1), nn.Flatten(), nn.Unflatten(1, (16, 2, 2)), *conv(16, 2, 2)], (1, 4, 4),
        ("SNN064", 3, None, None),
    ),
}  # fmt: skip


def assert_says(found: Diagnostic, code: str, module: str, limit: int | None, amount: int | None) -> None:
    assert (found.code, found.severity, found.limit, found.found) == (code, Severity.ERROR, limit, amount)
    (source,) = [s for s in found.loc if s.module == module]
    assert (source.file, source.line) == (__file__, LINE)
    text = found.render()
    assert f"`{module}`" in text and "x = layer(x)" in text
    assert found.message.startswith("`")  # the layer's name
    if limit is not None:
        assert f"limit: {limit:,}" in text and f"found {amount:,}" in text


def refused(model: nn.Module, shape: tuple[int, ...], chip: str = "speck2b") -> list[Diagnostic]:
    return errors(snncc.check(model.eval(), chip, example_input=example_input(shape)))


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    layers, shape, (code, index, limit, amount) = REFUSED[what]
    first, *rest = refused(Chain(*layers()), shape)
    assert_says(first, code, f"layers.{index}", limit, amount)
    assert not rest or what == "1025 features"


@pytest.mark.parametrize("what", REFUSED)
def test_compile_says_each_once(what: str) -> None:
    layers, shape, expected = REFUSED[what]
    with pytest.raises(CompileError) as caught:
        snncc.compile(Chain(*layers()).eval(), "speck2b", calibration=example_input(shape, 4), bias="keep")
    said = [(d.code, d.loc.sources) for d in errors(caught.value.diagnostics)]
    assert len(said) == len(set(said))
    assert expected[0] in {code for code, _ in said}


class Branches(nn.Module):
    """Two branches, joined by a function; or not at all."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.join = join

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.a(x))
        y = torch.relu(self.b(x))
        z = torch.relu(self.c(x))
        return (y, z) if self.join is None else self.join(y, z)


@pytest.mark.parametrize(
    ("join", "op"), [(torch.add, "add"), (lambda y, z: torch.cat([y, z], 1), "concat"), (None, "")]
)
def test_branches(join: Callable[[Tensor, Tensor], Tensor] | None, op: str) -> None:
    found = refused(Branches(join), (1, 4, 4))
    assert {d.code for d in found} == {"SNN061"}
    readers, *joins = found
    assert "`b` and `c` both read it" in readers.message
    assert (readers.loc.sources[0].file, bool(readers.loc.sources[0].line)) == (__file__, True)
    assert bool(joins) == bool(op) or "second output" in joins[0].message
    if op:
        assert f"{op} joins 2 values" in joins[0].message


def test_several_at_once() -> None:
    """One compile lists everything, with every layer's own name."""
    net = Chain(
        nn.Conv2d(1, 4, 17), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, stride=3), nn.ReLU(), nn.AvgPool2d(3),
        nn.Conv2d(8, 8, 3, dilation=2, padding=2), nn.Sigmoid(), *head(72),
    )  # fmt: skip
    (unknown,) = refused(net, (1, 72, 72))
    assert unknown.code == "SNN001"  # what the front end does not know hides the rest
    net.layers[7] = nn.ReLU()
    with pytest.raises(CompileError) as caught:
        snncc.compile(net.eval(), "speck2b", calibration=example_input((1, 72, 72), 4) - 0.5, bias="error")
    found = [(d.code, next(iter(s.module for s in d.loc), "x")) for d in errors(caught.value.diagnostics)]
    assert found == [
        ("SNN050", "layers.0"),
        ("SNN031", "layers.2"),
        ("SNN051", "layers.3"),
        ("SNN053", "layers.5"),
        ("SNN062", "layers.6"),
        ("SNN020", "layers.0"),
        ("SNN020", "layers.3"),
        ("SNN020", "layers.6"),
        ("SNN012", "x"),
    ]


def test_placement_conflict_names_what_conflicts() -> None:
    """Each of the large layers fits on cores 5 and 6 alone: three are one too many. The small ones are innocent."""
    large = partial(conv, 64, 64, 3, padding=1)
    net = Chain(*conv(1, 64, 1), *large(), *conv(64, 64, 1), *large(), *large(), *head(1024))
    (found,) = refused(net, (1, 4, 4))
    assert (found.code, found.limit, found.found) == ("SNN060", 2, 3)
    assert [s.module for s in found.loc] == ["layers.2", "layers.6", "layers.8"]
    assert "core 5, core 6" in found.message and "core 4" not in found.message
    with pytest.raises(CompileError) as caught:
        snncc.compile(net.eval(), "speck2b", calibration=example_input((1, 4, 4), 4))
    assert [d.code for d in errors(caught.value.diagnostics)] == ["SNN060"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"encoding": "constant"}, "does not take encoding=.constant."), ({"weight_bits": 16}, "have 8 bits")],
)
def test_refused_options(options: dict[str, Any], words: str) -> None:
    x = example_input((1, 8, 8), 4)
    with pytest.raises(InputError, match=words) as caught:
        snncc.compile(build("chip_small"), "speck2b", calibration=x, **options)
    assert [d.code for d in caught.value.diagnostics] == ["SNN070"]
    assert [d.code for d in snncc.check(build("chip_small"), "speck2b", example_input=x, **options)] == ["SNN070"]


def test_a_layer_of_zeros() -> None:
    net = Chain(*conv(1, 4, 1), *head(64)).eval()
    nn.init.zeros_(net.layers[0].weight)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="all weights are zero") as caught:
        snncc.compile(net, "speck2b", calibration=example_input((1, 4, 4), 4))
    (found,) = errors(caught.value.diagnostics)
    assert (found.code, found.loc.sources[0].module) == ("SNN066", "layers.0")


# --- the cut-off edge of pooling ------------------------------------------------------------------------------------


def edge(size: int, **options: Any) -> list[Diagnostic]:
    net = Chain(*conv(1, 4, 3, padding=1), nn.AvgPool2d(2), *conv(4, 4, 3, **options), nn.Flatten()).eval()
    found = snncc.check(net, "speck2b", calibration=example_input((1, size, size), 4))
    assert not errors(found)
    return [d for d in found if d.code == "SNN053"]


def test_an_edge_that_padding_brings_back_is_a_warning() -> None:
    rows, columns = edge(7, padding=1)
    assert {rows.severity, columns.severity} == {Severity.WARNING}
    assert "leaves 1 of 7 rows over" in rows.message and "row 3, just outside" in rows.message
    assert "columns" in columns.message
    assert rows.loc.sources[0].module == "layers.3"
    assert [d.message for d in edge(7, padding=(0, 1))] == [columns.message]


@pytest.mark.parametrize(("size", "options"), [(7, {}), (8, {"padding": 1}), (9, {"padding": 1, "stride": 4})])
def test_an_edge_out_of_reach_is_none(size: int, options: dict[str, Any]) -> None:
    """Without padding, without a remainder, or with a stride that steps over the edge."""
    assert edge(size, **options) == []


# --- generated ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(CHIPS)), st.sampled_from(["keep", "strip", "fold", "warn"]))
def test_generated_networks_compile_or_are_refused(seed: int, chip: str, bias: str) -> None:
    net, shape = chip_network(np.random.default_rng(seed))
    x = example_input(shape, 6, seed=seed % 1000)
    try:
        model = snncc.compile(net, chip, calibration=x, bias=bias, timesteps=8)
    except CompileError as error:
        refusals = {d.code for d in errors(error.diagnostics)}
        assert refusals <= {f"SNN0{i}" for i in (*range(50, 64), 66)}
        return
    config = decoded(model)
    assert problems(config) == []
    assert_same_integers(model.graph, config)
    done = model.simulate(x[:2], record="spikes")
    (encoded,) = (n.name for n in model.graph.nodes if isinstance(n.op, ops.Encode))
    assert_same_spikes(model, run_chip(config, done.spikes[encoded].reshape(8, 2, *config.cores[0].input_shape)), done)


choices = st.dictionaries(
    st.sampled_from("abcdefg"), st.lists(st.sampled_from("123456"), unique=True, max_size=4).map(tuple), max_size=7
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(choices)
def test_match_finds_a_matching_iff_there_is_one(choices: dict[str, tuple[str, ...]]) -> None:
    exists = any(len(set(places)) == len(choices) for places in itertools.product(*choices.values()))
    found = match(choices)
    assert isinstance(found, dict) == exists
    if isinstance(found, Conflict):  # a violator of Hall's condition
        assert len(set(found.items)) == len(found.items) and set(found.items) <= choices.keys()
        assert set(found.places) == {place for item in found.items for place in choices[item]}
        assert len(found.places) < len(found.items)
    else:
        assert found.keys() == choices.keys() and len(set(found.values())) == len(found)
        assert all(place in choices[item] for item, place in found.items())


def test_every_conflict_is_named() -> None:
    """Two sets of layers that are in each other's way, and one layer that is in nobody's."""
    context = Context()
    wanted = {"a": "1", "b": "1", "c": "2", "d": "34", "e": "34", "f": "34"}
    groups = [Group(name, (), tuple(places), Diagnostic.loc) for name, places in wanted.items()]
    assert place_groups(groups, context) is None
    found = [(d.message.partition(": ")[2], d.limit, d.found) for d in context.diagnostics]
    assert found == [("`a`, `b` all need one of 1", 1, 2), ("`d`, `e`, `f` all need one of 3, 4", 2, 3)]
