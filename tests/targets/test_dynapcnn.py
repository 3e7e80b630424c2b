"""The DYNAP-CNN target from a torch model to its configuration: what it takes is exact, the rest is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from chipnets import chip_network
from chipsim import read_outputs, run_chip
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import GRAPH_ZOO, SEQUENTIAL_ZOO, build, example_input, random_model, settle

import snncc
from snncc import CompileError, Diagnostic, InputError
from snncc.ir import Severity, Stage, ops
from snncc.ir.diagnostics import errors
from snncc.ir.interp import run
from snncc.ir.types import per_channel
from snncc.passes.base import Relation
from snncc.passes.relation import compare
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import Config, Destination, from_json, problems
from snncc.targets.dynapcnn.lower import Reader

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
CHIP_ZOO = SEQUENTIAL_ZOO | GRAPH_ZOO


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


class Function(nn.Module):
    """Layers by name, and a function that calls them."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def inputs(*shapes: tuple[int, ...], batch: int = 4, seed: int = 1) -> tuple[Tensor, ...]:
    return tuple(example_input(shape, batch, seed + i) for i, shape in enumerate(shapes))


def seeded(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> nn.Module:
    """The network in eval mode; with the shape of its input, as if trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make().eval()
        if len(shapes) == 1:
            settle(net, *inputs(*shapes, batch=16))
        return net


@cache
def compiled(name: str, chip: str, **options: Any) -> snncc.CompiledModel:
    (x,) = inputs(CHIP_ZOO[name].input_shape, batch=6)
    return snncc.compile(
        build(name), chip, calibration=x, **{"bias": "keep", "timesteps": 16, "selfcheck": False, **options}
    )


def written(model: snncc.CompiledModel) -> Config:
    """The configuration as it is read back from its file."""
    config = from_json(str(model.target.files(model.graph, model.options)["config.json"]))
    assert problems(config) == []
    return config


# --- what it computes -----------------------------------------------------------------------------------------------


def check_exact(model: snncc.CompiledModel, *xs: Tensor, steps: int = 16) -> Config:
    """The simulation's spikes are in every layer those of the written configuration, run by itself."""
    done = model.simulate(xs if len(xs) > 1 else xs[0], steps, record="spikes")
    config, store = written(model), model.graph.store
    encoded = [n.name for n in model.graph.nodes if isinstance(n.op, ops.Encode)]
    sent = run_chip(config, *(done.spikes[name] for name in encoded))
    layers = Reader(model.graph, CHIPS[model.target.name]).layers
    assert sorted(layer.name for layer in layers) == sorted(sent)
    for layer in layers:
        theirs = sent[layer.name]
        if theirs.shape[2] > layer.output[0]:  # for the readout block: silent channels between
            theirs = theirs[:, :, ::4]
        np.testing.assert_array_equal(done.spikes[layer.sends], theirs.reshape(done.spikes[layer.sends].shape))
    for name, ours, counted in zip(model.graph.outputs, done.outputs, read_outputs(config, sent), strict=True):
        unit = np.asarray(per_channel(model.graph[name].type.unit, store, counted.ndim - 2))
        np.testing.assert_allclose(ours.ravel(), (counted.sum(0) / steps * unit).ravel(), rtol=1e-6)
    check_neurons(model, config)
    return config


def check_neurons(model: snncc.CompiledModel, config: Config) -> None:
    """Floors and initial potentials are the graph's, too, whether a neuron comes near them or not."""
    cores = {core.name: core for core in config.cores}
    for layer in Reader(model.graph, CHIPS[model.target.name]).layers:
        assert layer.neuron is not None and isinstance(layer.neuron.op, ops.If)
        core, neuron = cores[layer.name], layer.neuron.op
        assert (core.threshold_high, core.threshold_low) == (neuron.threshold, neuron.v_min)
        assert core.return_to_zero == (neuron.reset == "zero")
        v0 = np.broadcast_to(per_channel(neuron.v0, model.graph.store, 3), layer.output)
        initial = np.zeros(core.output_shape) if core.initial is None else core.initial
        np.testing.assert_array_equal(initial[:: 4 if core.output_shape != layer.output else 1], v0)
        assert layer.node.place == f"core {core.index}"


def network(model: nn.Module, *xs: Tensor) -> list[Array]:
    """The network's own scores."""
    with torch.no_grad():
        found = model(*xs)
    return [y.numpy() for y in (found if isinstance(found, tuple) else (found,))]


def check_close(model: snncc.CompiledModel, net: nn.Module, *xs: Tensor) -> None:
    """The scores are the network's: exactly before weights are rounded, and nearly after it and in 64 time steps. All
    that comes between the integers and the chip keeps every spike."""
    arrays = [x.numpy().astype(np.float64) for x in xs]
    stages = {record.label.partition("{")[0]: record.graph for record in model.records}
    for difference in compare(stages["quantize"], model.graph, Relation.EXACT, *arrays, timesteps=4):
        assert difference.holds, difference
    floats, integers = (run(stages[label], *arrays) for label in ("lower-pooling", "quantize"))
    done = model.simulate(xs if len(xs) > 1 else xs[0], 64)
    for name, wanted, spiked in zip(model.graph.outputs, network(net, *xs), done.outputs, strict=True):
        scores, scale = wanted.clip(0).ravel(), np.abs(wanted).max()  # spikes have none below 0
        np.testing.assert_allclose(floats[name].ravel(), scores, atol=1e-4 * scale)
        assert np.abs(integers[name].ravel() - scores).mean() < 0.1 * scale
        assert np.abs(spiked.ravel() - scores).mean() < 0.1 * scale


@pytest.mark.parametrize("chip", ["dynapcnn", "speck2b", "speck2f"])
@pytest.mark.parametrize("name", CHIP_ZOO)
def test_zoo(name: str, chip: str) -> None:
    model = compiled(name, chip)
    (x,) = inputs(CHIP_ZOO[name].input_shape, batch=2, seed=5)
    config = check_exact(model, x, steps=6)
    assert config.chip == CHIPS[chip] and model.graph.stage is Stage.MAPPED
    assert len({core.index for core in config.cores}) == len(config.cores)
    cores = {core.name: core for core in config.cores}
    rows = [row for row in model.report if "core" in row]
    assert len(rows) == len(model.report)
    assert {row["layer"] for row in rows} <= set(cores)
    for row in rows:
        core, has = cores[row["layer"]], CHIPS[chip].cores[row["core"]]
        assert row["core"] == core.index
        for what, size in zip(("kernel", "neuron", "bias"), has.words, strict=True):
            assert row[f"{what}_used"] + row[f"{what}_free"] == size and row[f"{what}_free"] >= 0


@pytest.mark.parametrize("name", CHIP_ZOO)
def test_zoo_scores(name: str) -> None:
    (x,) = inputs(CHIP_ZOO[name].input_shape, batch=6)
    model = snncc.compile(build(name), "speck2f", calibration=x, bias="keep", threshold="max")
    check_close(model, build(name), x[:2])


@pytest.mark.parametrize("name", ["chip_small", "chip_mlp", "chip_lenet"])
def test_zoo_on_the_minis(name: str) -> None:
    (x,) = inputs(SEQUENTIAL_ZOO[name].input_shape, batch=2, seed=5)
    config = check_exact(compiled(name, "speck2cmini"), x)
    for core in config.cores:  # three cores have no bias memory
        assert not core.leaks or core.index in (3, 4)


@pytest.mark.parametrize("options", [{"reset": "zero"}, {"bias": "strip"}, {"per": "layer"}, {"v0": 0.0}])
@pytest.mark.parametrize("name", ["chip_bias", "chip_exits"])
def test_zoo_with_options(name: str, options: dict[str, Any]) -> None:
    (x,) = inputs(CHIP_ZOO[name].input_shape, batch=2, seed=5)
    model = compiled(name, "speck2b", **options)
    done = model.simulate(x, record="spikes")
    assert all(done.spikes[row["neuron"]].any() for row in model.report)
    check_exact(model, x)


def test_what_is_split_is_one_layer_to_the_user() -> None:
    model = compiled("chip_split", "speck2b")
    parts = [layer for layer in Reader(model.graph, CHIPS["speck2b"]).layers if layer.name.startswith("conv2d_0")]
    assert [layer.name for layer in parts] == [f"conv2d_0.{i}" for i in range(len(parts))] and len(parts) > 1
    assert sum(layer.output[0] for layer in parts) == 24
    (joined,) = (n for n in model.graph.nodes if n.args == tuple(layer.sends for layer in parts))
    assert isinstance(joined.op, ops.Concat)
    assert joined.place == ", ".join(layer.node.place for layer in parts)
    assert {s.module for layer in parts for s in layer.node.loc} == {"0"}


# --- what is taken, and why it is exact -------------------------------------------------------------------------------


def conv(c_in: int, c_out: int, k: Any, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, k, **options), nn.ReLU()]


def head(features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, 4)]


def chain(*layers: nn.Module | list[nn.Module]) -> nn.Module:
    return Chain(*(m for layer in layers for m in (layer if isinstance(layer, list) else [layer])))


def residual(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return self.head(torch.relu(self.c(torch.relu(self.b(x))) + x).flatten(1))


def sums(self: Any, x: Tensor) -> Tensor:
    y, z = torch.relu(self.a(x)), torch.relu(self.b(x))
    return self.head((y + z).flatten(1))


def downsample(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return self.head(torch.relu(self.c(torch.relu(self.b(x))) + self.d(x)).flatten(1))


def odd_rows(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return torch.relu(self.c(torch.relu(self.b(x))) + x[:, :, 1::2, 1::2])


def beside_the_input(self: Any, x: Tensor) -> Tensor:
    return torch.relu(self.b(torch.cat([torch.relu(self.a(x)), x], 1)))


def three_readers(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return self.head(torch.cat([torch.relu(f(x)) for f in (self.b, self.c, self.d)], 1).flatten(1))


def three_outputs(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    x = torch.relu(self.a(x))
    return torch.relu(self.b(x)), torch.relu(self.c(x)), torch.relu(self.d(x))


def five_readers(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return torch.cat([torch.relu(f(x)) for f in (self.b, self.c, self.d, self.e, self.f)], 1)


def readers_of_all_kinds(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    x = torch.relu(self.a(x))
    y = torch.relu(self.b(torch.cat([x, F.avg_pool2d(x, 1), torch.relu(self.c(x))], 1)))
    return y, torch.relu(self.d(F.avg_pool2d(x, 2))), self.e(F.avg_pool2d(x, 4).flatten(1))


def shared(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x)))))).flatten(1))


def heads_of_two_sizes(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    y = F.avg_pool2d(torch.relu(self.b(x)), 2)
    return self.head(torch.cat([x.flatten(1), y.flatten(1)], 1))


class ImageAndVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 4), nn.Linear(5, 6), nn.Linear(10, 4)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        return self.head(torch.cat([torch.relu(self.a(x)).flatten(1), torch.relu(self.b(v))], 1))


def two_outputs(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.relu(self.a(x))
    return torch.relu(self.b(x)), self.head(x.flatten(1))


def same_output_twice(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = self.head(torch.relu(self.a(x)).flatten(1))
    return x, x


C = nn.Conv2d
# The network, its inputs, and what makes it one kernel in front of each neuron, with just the spikes that it asks for.
ACCEPTED: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], str]] = {
    "kernel 3 x 5": (
        lambda: chain(conv(1, 4, (3, 5)), conv(4, 4, 1)), ((1, 8, 10),), "a 5 x 5 kernel with zeros, padded above",
    ),
    "kernel 5 x 1, stride 2 x 1": (
        lambda: chain(conv(2, 4, (5, 1), stride=(2, 1), padding=(2, 0)), head(4 * 4 * 5)), ((2, 8, 5),),
        "as wide as it is high, the other columns zero",
    ),
    "linear over 3 x 5": (lambda: chain(conv(1, 2, 1), head(30)), ((1, 3, 5),), "a 5 x 5 kernel over a padded map"),
    "padding same of an even kernel": (
        lambda: chain(conv(1, 4, 4, padding="same"), head(256)), ((1, 8, 8),), "one row more of zeros: 5 x 5",
    ),
    "padding of 1 row and 3 columns": (
        lambda: chain(conv(1, 4, 3, padding=(1, 3)), head(4 * 6 * 10)), ((1, 6, 6),), "y and x are independent",
    ),
    "pooling 3": (
        lambda: chain(conv(1, 4, 1), nn.AvgPool2d(3), head(16)), ((1, 6, 6),), "the linear layer's kernel averages",
    ),
    "pooling 3 in front of a convolution": (
        lambda: chain(conv(1, 4, 1), nn.AvgPool2d(2, 2), conv(4, 4, 2), nn.AvgPool2d(3, 1), head(4)), ((1, 8, 8),),
        "averaging is a part of the kernel",
    ),
    "pooling 2, then 4": (
        lambda: chain(conv(1, 4, 1), nn.AvgPool2d(2), nn.AvgPool2d(4), head(16)), ((1, 16, 16),),
        "by 4, the rest in the kernel",
    ),
    "pooling windows that overlap": (
        lambda: chain(conv(1, 4, 1), nn.AvgPool2d(2, 1), head(36)), ((1, 4, 4),), "a kernel",
    ),
    "pooling with padding": (
        lambda: chain(conv(1, 4, 1), nn.AvgPool2d(2, 2, 1), head(36)), ((1, 4, 4),), "a kernel: the zeros count",
    ),
    "pooling before the first layer": (
        lambda: chain(nn.AvgPool2d(2), conv(1, 4, 1), head(16)), ((1, 4, 4),), "the host halves the coordinates",
    ),
    "pooling of currents": (
        lambda: chain(nn.Conv2d(1, 4, 1), nn.AvgPool2d(2), nn.ReLU(), head(16)), ((1, 4, 4),),
        "one kernel of 2 x 2, stride 2",
    ),
    "global pooling": (
        lambda: chain(conv(1, 4, 3), nn.AdaptiveAvgPool2d(1), head(4)), ((1, 8, 8),), "a linear layer over all",
    ),
    "dilation 2": (lambda: chain(conv(1, 4, 3, dilation=2), head(64)), ((1, 8, 8),), "a 5 x 5 kernel with zeros"),
    "no activation between": (
        lambda: chain(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), head(64)), ((1, 8, 8),), "one kernel of 5 x 5",
    ),
    "an inverted bottleneck": (
        lambda: chain(nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3), nn.ReLU6(), head(108)), ((2, 8, 8),),
        "folded, then one kernel",
    ),
    "groups": (
        lambda: chain(conv(4, 8, 3, groups=2), conv(8, 8, 3, groups=8, padding=1), head(128)), ((4, 6, 6),), "zeros",
    ),
    "more neurons than a core has": (
        lambda: chain(conv(1, 20, 1), conv(20, 1, 4, stride=4)), ((1, 64, 64),), "channels on two cores",
    ),
    "both memories together": (
        lambda: chain(conv(64, 48, 3, padding=1), conv(48, 4, 4, stride=4)), ((64, 24, 24),),
        "channels on several cores",
    ),
    "more weights than a core has": (
        lambda: chain(conv(2, 64, 1), conv(64, 128, 3), head(512)), ((2, 4, 4),), "channels on several cores",
    ),
    "groups on several cores": (
        lambda: chain(conv(96, 96, 3, groups=96), head(384)), ((96, 4, 4),), "rows of the dense kernel",
    ),
    "a residual block": (
        lambda: Function(residual, a=C(1, 4, 1), b=C(4, 6, 3, 1, 1), c=C(6, 4, 3, 1, 1), head=nn.Linear(144, 4)),
        ((1, 6, 6),), "the shortcut has weights of one in the same kernel",
    ),
    "a sum of activations": (
        lambda: Function(sums, a=C(1, 4, 3, padding=1), b=C(1, 4, 1), head=nn.Linear(64, 4)),
        ((1, 4, 4),), "both with the same weights",
    ),
    "a shortcut of stride 2": (
        lambda: Function(
            downsample, a=C(1, 4, 1), b=C(4, 8, 3, 2, 1), c=C(8, 8, 3, 1, 1), d=C(4, 8, 1, 2), head=nn.Linear(128, 4)
        ),
        ((1, 8, 8),), "a core passes on every other row and column",
    ),
    "a shortcut of every other row, from the second on": (
        lambda: Function(odd_rows, a=C(1, 4, 1), b=C(4, 4, 3, 2, 1), c=C(4, 4, 3, 1, 1)), ((1, 8, 8),),
        "a core passes on those",
    ),
    "the input beside a layer": (
        lambda: Function(beside_the_input, a=C(2, 4, 3, 1, 1), b=C(6, 3, 3)), ((2, 6, 6),),
        "the host sends to both, or a core passes it on",
    ),
    "three readers": (
        lambda: Function(
            three_readers, a=C(1, 4, 3), b=C(4, 2, 1), c=C(4, 3, 1), d=C(4, 4, 3, 1, 1), head=nn.Linear(144, 4)
        ),
        ((1, 6, 6),), "a relay",
    ),
    "five readers": (
        lambda: Function(five_readers, a=C(1, 4, 3), **{name: C(4, i + 1, 1) for i, name in enumerate("bcdef")}),
        ((1, 6, 6),), "relays that feed relays",
    ),
    "readers of all kinds": (
        lambda: Function(
            readers_of_all_kinds, a=C(1, 4, 1), b=C(10, 3, 1), c=C(4, 2, 3, 1, 1), d=C(4, 2, 2),
            e=nn.Linear(16, 3),
        ),
        ((1, 8, 8),), "what relays pass on is pooled, flattened and concatenated as before",
    ),
    "a wide layer with three readers": (
        lambda: Function(three_outputs, a=C(128, 512, 1), b=C(512, 4, 1), c=C(512, 3, 2), d=C(512, 2, 1, 2)),
        ((128, 4, 4),), "two halves with a relay each",
    ),
    "three readers, one of them in parts": (
        lambda: Function(three_outputs, a=C(1, 32, 1), b=C(32, 300, 3, 1, 1), c=C(32, 3, 2), d=C(32, 2, 1, 2)),
        ((1, 4, 4),), "each part is a reader",
    ),
    "a layer that is used twice": (
        lambda: Function(shared, a=C(1, 4, 3), b=C(4, 4, 3, padding=1), head=nn.Linear(64, 4)), ((1, 6, 6),),
        "two cores",
    ),
    "heads of two sizes": (
        lambda: Function(heads_of_two_sizes, a=C(1, 4, 3), b=C(4, 2, 1), head=nn.Linear(72, 4)), ((1, 6, 6),),
        "weights of the pooled map, spread over the whole",
    ),
    "an image and a vector": (
        ImageAndVector,
        ((1, 4, 4), (5,)),
        "two inputs",
    ),
    "two outputs": (
        lambda: Function(two_outputs, a=C(1, 4, 3), b=C(4, 2, 1), head=nn.Linear(64, 4)), ((1, 6, 6),), "two readouts",
    ),
    "one output twice": (
        lambda: Function(same_output_twice, a=C(1, 4, 3), head=nn.Linear(64, 4)), ((1, 6, 6),), "two readouts of one",
    ),
    "a linear layer over 16 x 16": (lambda: chain(conv(1, 2, 1), head(512)), ((1, 16, 16),), "the largest kernel"),
    "a linear layer over 28 x 28 pixels": (lambda: chain(head(784)), ((1, 28, 28),), "the host lays them out anew"),
    "a linear layer over 2000 values": (
        lambda: chain(nn.Linear(2000, 8), nn.ReLU(), nn.Linear(8, 4)), ((2000,),), "2 x 2 pixels of 500 channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("chip", ["speck2b", "speck2f"])
@pytest.mark.parametrize("what", ACCEPTED)
def test_accepted(what: str, chip: str) -> None:
    make, shapes, _ = ACCEPTED[what]
    net, xs = seeded(make, *shapes), inputs(*shapes)
    model = snncc.compile(net, chip, calibration=[xs], bias="keep", threshold="max")
    check_exact(model, *(x[:2] for x in xs), steps=8)
    check_close(model, net, *(x[:2] for x in xs))


# --- what is refused ------------------------------------------------------------------------------------------------


def plain(c_in: int, c_out: int, k: Any, **options: Any) -> list[nn.Module]:
    return conv(c_in, c_out, k, bias=False, **options)


# The layers and the input; then code, module, limit and amount.
REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, int, int | None, int | None]]] = {
    "kernel 17": (lambda: chain(plain(1, 4, 17), head(256)), (1, 24, 24), ("SNN050", 0, 16, 17)),
    "kernel 9 with dilation 2": (
        lambda: chain(plain(1, 4, 9, dilation=2), head(256)), (1, 24, 24), ("SNN062", 0, 16, 17),
    ),
    "linear over 17 x 17": (lambda: chain(plain(1, 2, 1), head(578)), (1, 17, 17), ("SNN050", 3, 16, 17)),
    "layers that make a kernel of 17": (
        lambda: chain(nn.Conv2d(1, 2, 9), nn.Conv2d(2, 2, 9), nn.ReLU(), head(128)), (1, 24, 24), ("SNN050", 1, 16, 17),
    ),
    "even kernel with odd differences": (
        lambda: chain(plain(1, 4, (2, 3), padding=(0, 1)), head(112)), (1, 8, 4), ("SNN050", 0, None, None),
    ),
    "stride 3": (lambda: chain(plain(1, 4, 3, stride=3), head(64)), (1, 12, 12), ("SNN051", 0, 2, 3)),
    "stride 16": (lambda: chain(plain(1, 4, 3, stride=16), head(16)), (1, 32, 32), ("SNN051", 0, 8, 16)),
    "pooling by 3, a stride that no kernel has": (
        lambda: chain(plain(1, 4, 1), nn.AvgPool2d(3), plain(4, 4, 1), head(16)), (1, 6, 6), ("SNN053", 2, 2, 3),
    ),
    "padding 8": (lambda: chain(plain(1, 4, 9, padding=8), head(324)), (1, 1, 1), ("SNN052", 0, 7, 8)),
    "1025 input features": (
        lambda: chain(plain(1, 1025, 1), nn.AvgPool2d(4), head(1025)), (1, 4, 4), ("SNN054", 4, 1024, 1025),
    ),
    "128 x 128 output": (
        lambda: chain(plain(1, 1, 1), nn.AvgPool2d(4), plain(1, 1, 3, stride=8)), (1, 128, 128), ("SNN055", 0, 64, 128),
    ),
    "129 x 129 input": (
        lambda: chain(plain(1, 1, 1, stride=4), plain(1, 1, 3, stride=8)), (1, 129, 129), ("SNN055", 0, 128, 129),
    ),
    "weight memory": (lambda: chain(plain(64, 512, 3), head(2048)), (64, 4, 4), ("SNN056", 0, 65536, 524288)),
    "one channel's weights": (lambda: chain(plain(512, 1, 16)), (512, 16, 16), ("SNN056", 0, 65536, 131072)),
    "neuron memory": (
        lambda: chain(plain(1, 96, 1), plain(96, 1, 4, stride=4)), (1, 64, 64), ("SNN057", 0, 65536, 393216),
    ),
    # 64 Ki weights are for cores 5 and 6 alone, which have 16 Ki neurons.
    "both memories together": (
        lambda: chain(plain(64, 96, 3, padding=1), plain(96, 4, 4, stride=4)), (64, 64, 64),
        ("SNN056", 0, 65536, 131072),
    ),
    "10 layers on 9 cores": (
        lambda: chain(*(plain(2, 2, 1) for _ in range(10))), (2, 4, 4), ("SNN059", 18, 9, 10),
    ),
    "groups that do not fit when expanded": (
        lambda: chain(plain(256, 256, 3, groups=256), plain(256, 4, 1)), (256, 4, 4), ("SNN063", 0, 65536, 1048576),
    ),
    "max pooling": (lambda: chain(plain(1, 4, 1), nn.MaxPool2d(2), head(16)), (1, 4, 4), ("SNN031", 2, None, None)),
    "uneven adaptive pooling": (
        lambda: chain(plain(1, 4, 1), nn.AdaptiveAvgPool2d(3), head(36)), (1, 7, 7), ("SNN031", 2, None, None),
    ),
    "uneven pooling": (
        lambda: chain(plain(1, 4, 1), nn.AvgPool2d(2, 2, 1, count_include_pad=False), head(36)), (1, 4, 4),
        ("SNN053", 2, None, None),
    ),
    "a padding that sees a bias": (
        lambda: chain(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), plain(2, 2, 1)), (1, 4, 4),
        ("SNN032", 1, None, None),
    ),
    "a padding that sees windows over the edge": (
        lambda: chain(C(1, 2, 3, padding=1, bias=False), C(2, 2, 3, padding=1), nn.ReLU(), plain(2, 2, 1)), (1, 4, 4),
        ("SNN032", 1, None, None),
    ),
    "padding by reflection": (
        lambda: chain(plain(1, 2, 1), plain(2, 2, 3, padding=1, padding_mode="reflect")), (1, 4, 4),
        ("SNN064", 2, None, None),
    ),
    "an end in pooling": (
        lambda: chain(plain(1, 4, 3), nn.AvgPool2d(2)), (1, 8, 8), ("SNN061", 2, None, None),
    ),
    "a view that moves rows to channels": (
        lambda: chain(plain(1, 4, 1), nn.Flatten(), nn.Unflatten(1, (16, 2, 2)), plain(16, 2, 2)), (1, 4, 4),
        ("SNN064", 3, None, None),
    ),
}  # fmt: skip
SEVERAL = {"both memories together", "1025 input features"}  # where more than one thing is wrong


def assert_says(found: Diagnostic, code: str, module: str, limit: int | None, amount: int | None) -> None:
    assert (found.code, found.severity, found.limit, found.found) == (code, Severity.ERROR, limit, amount)
    (source,) = [s for s in found.loc if s.module == module]
    assert (source.file, source.line) == (__file__, LINE)
    text = found.render()
    assert f"`{module}`" in text and "x = layer(x)" in text
    assert found.message.startswith("`")  # the layer's name
    if limit is not None:
        assert f"limit: {limit:,}" in text and f"found {amount:,}" in text


def told(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The errors, without the widths that are proposed then: test_chip_hints.py has those."""
    return [d for d in errors(found) if d.code != "SNN048"]


def refused(model: nn.Module, *shapes: tuple[int, ...], chip: str = "speck2b", **options: Any) -> list[Diagnostic]:
    return told(snncc.check(model.eval(), chip, example_input=inputs(*shapes)[0], **options))


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    make, shape, (code, index, limit, amount) = REFUSED[what]
    first, *rest = refused(make(), shape)
    assert_says(first, code, f"layers.{index}", limit, amount)
    assert not rest or what in SEVERAL


@pytest.mark.parametrize("what", REFUSED)
def test_compile_says_each_once(what: str) -> None:
    make, shape, expected = REFUSED[what]
    with pytest.raises(CompileError) as caught:
        snncc.compile(make().eval(), "speck2b", calibration=example_input(shape, 4), bias="keep")
    said = [(d.code, d.loc.sources) for d in errors(caught.value.diagnostics)]
    assert len(said) == len(set(said))
    assert expected[0] in {code for code, _ in said}


def test_the_host_sends_beside_other_cores_where_it_may() -> None:
    net, (x,) = seeded(ACCEPTED["the input beside a layer"][0]), inputs((2, 6, 6))
    found = {}
    for chip in "speck2b", "speck2f":
        model = snncc.compile(net, chip, calibration=x, bias="keep")
        found[chip] = len(written(model).cores), {d.code for d in model.diagnostics if "pass it on" in d.message}
    assert found == {"speck2b": (3, {"SNN061"}), "speck2f": (2, set())}


def test_what_has_the_same_weights_meets_in_one_channel_where_it_may() -> None:
    """A layer that is called twice has the same thresholds twice, and so has what reads the sum the same weights."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head((torch.relu(self.a(x)) + torch.relu(self.a(x))).flatten(1))

    net, (x,) = seeded(lambda: Function(forward, a=C(1, 4, 1), head=nn.Linear(64, 3))), inputs((1, 4, 4))
    for chip, channels in ("speck2b", 8), ("speck2f", 4):
        model = snncc.compile(net, chip, calibration=x, bias="keep", threshold="max")
        assert check_exact(model, x).cores[-1].input_shape == (channels, 4, 4)
        check_close(model, net, x)


def test_a_linear_layer_along_the_last_axis() -> None:
    found = errors(
        snncc.check(chain(nn.Linear(16, 3), nn.ReLU()).eval(), "speck2b", example_input=torch.rand(2, 2, 16))
    )
    assert [d.code for d in found] == ["SNN064"] and "along the last axis of (2, 3)" in found[0].message


def test_several_at_once() -> None:
    """One compile lists everything, with every layer's own name."""
    net = Chain(
        nn.Conv2d(1, 4, 17), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, stride=3), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 9, dilation=2, padding=8), nn.Sigmoid(), *head(800)
    )  # fmt: skip
    (unknown,) = refused(net, (1, 140, 140))
    assert unknown.code == "SNN001"  # what the front end does not know hides the rest
    net.layers[7] = nn.ReLU()
    with pytest.raises(CompileError) as caught:
        snncc.compile(net.eval(), "speck2b", calibration=example_input((1, 140, 140), 4) - 0.5, bias="error")
    found = [(d.code, d.loc.sources[0].module) for d in errors(caught.value.diagnostics)]
    assert set(found) == {
        ("SNN050", "layers.0"),
        ("SNN055", "layers.0"),
        ("SNN031", "layers.2"),
        ("SNN051", "layers.3"),
        ("SNN062", "layers.6"),
        ("SNN052", "layers.6"),
        ("SNN020", "layers.0"),
        ("SNN020", "layers.3"),
        ("SNN020", "layers.6"),
        ("SNN020", "layers.9"),
    }  # and once those are mended, SNN012 of the input, which only calibration sees


def test_a_layer_of_zeros() -> None:
    net = chain(plain(1, 4, 1), head(64)).eval()
    nn.init.zeros_(net.layers[0].weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(CompileError, match="all weights are zero") as caught:
        snncc.compile(net, "speck2b", calibration=example_input((1, 4, 4), 4))
    (found,) = errors(caught.value.diagnostics)
    assert (found.code, found.loc.sources[0].module) == ("SNN066", "layers.0")


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (plain(64, 512, 3), (64, 4, 4), "even split over all 9 cores, 272 of its 512 channels fit"),
        (plain(512, 10, 16), (512, 16, 16), "not even one of its output channels fits"),
        (plain(256, 256, 3, groups=256), (256, 4, 4), "its groups are expanded to a dense kernel"),
    ],
)
def test_what_does_not_fit_even_when_split_says_how_much_does(
    layer: list[nn.Module], shape: tuple[int, ...], words: str
) -> None:
    (found,) = refused(chain(layer), shape)
    assert "the largest core has 65,536" in found.message and words in found.message


# --- placement ------------------------------------------------------------------------------------------------------


def test_placement_conflict_names_what_conflicts() -> None:
    """One channel cannot be split, and 256 x 16 x 16 weights fit on cores 5 and 6 alone: three are one too many. The
    layers between them are innocent."""
    large, small = partial(plain, 256, 1, 16, padding=7), partial(plain, 1, 256, 1)
    net = chain(small(), large(), small(), large(), small(), large(), head(9))
    (found,) = refused(net, (1, 6, 6))
    assert (found.code, found.limit, found.found) == ("SNN060", 2, 3)
    assert [s.module for s in found.loc] == ["layers.2", "layers.6", "layers.10"]
    assert found.message == ("no placement exists: `layers.2`, `layers.6`, `layers.10` all need one of cores 5, 6")
    with pytest.raises(CompileError) as caught:
        snncc.compile(net.eval(), "speck2b", calibration=example_input((1, 6, 6), 4))
    assert [d.code for d in told(caught.value.diagnostics)] == ["SNN060"]
    assert not refused(chain(small(), large(), small(), large(), head(16)), (1, 6, 6))


def test_layers_that_must_be_split_conflict() -> None:
    large = partial(plain, 128, 128, 3, padding=1)
    (found,) = refused(chain(plain(1, 128, 1), large(), plain(128, 128, 1), large()), (1, 4, 4))
    assert (found.code, [s.module for s in found.loc]) == ("SNN060", ["layers.2", "layers.6"])
    assert "split over cores: at least `layers.2` 8, `layers.6` 8" in found.message
    assert (found.limit, found.found) == (9, 16)


def test_biases_compete_for_the_minis_bias_memory() -> None:
    layers = [conv(1, 4, 1), plain(4, 4, 1), conv(4, 4, 1), plain(4, 4, 1), conv(4, 4, 1)]
    (found,) = refused(chain(*layers), (1, 4, 4), chip="speck2cmini")
    assert (found.code, found.limit, found.found) == ("SNN060", 2, 3)
    assert [s.module for s in found.loc] == ["layers.0", "layers.4", "layers.8"] and "cores 3, 4" in found.message
    assert not refused(chain(*layers), (1, 4, 4), chip="speck2cmini", bias="strip")


def fan(n: int) -> nn.Module:
    """A map that ``n`` layers read."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head(torch.cat([torch.relu(getattr(self, f"b{i}")(x)) for i in range(n)], 1).flatten(1))

    return Function(forward, a=C(1, 4, 3), **{f"b{i}": C(4, 2, 1) for i in range(n)}, head=nn.Linear(n * 32, 4))


def test_a_fan_out_without_room_for_relays() -> None:
    """For n readers of one map it takes n - 2 relays: 1 + 5 + 1 layers and 3 relays are one core too many."""
    assert not refused(fan(4), (1, 6, 6))
    (found,) = refused(fan(5), (1, 6, 6))
    assert (found.code, found.limit) == ("SNN061", 2)
    assert [s.module for s in found.loc] == ["a", "b0", "b1", "b2", "b3", "b4", "head"]
    assert "fit, but not with the relays" in found.message and "a core has 2 destinations" in found.message


def test_relays_do_not_show_in_the_scores() -> None:
    net, (x,) = seeded(lambda: fan(4)), inputs((1, 6, 6))
    model = snncc.compile(net, "speck2b", calibration=x, bias="keep", threshold="max")
    config = check_exact(model, x)
    assert len(config.cores) == 1 + 4 + 1 + 2 and all(len(core.destinations) <= 2 for core in config.cores)
    check_close(model, net, x[:2])


def test_strides_that_cannot_meet() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        return torch.relu(self.c(a) + self.d(b))

    net = Function(forward, a=C(1, 4, 1), b=C(1, 4, 1, 2), c=C(4, 4, 3, 4, 1), d=C(4, 4, 1, 2, 0))
    assert not refused(net, (1, 12, 12))  # every fourth row, and every second of every second
    net.c, net.d = C(4, 4, 3, 3, 0), C(4, 4, 1, 2, 1)
    first, *_ = refused(net, (1, 12, 12))
    assert first.code == "SNN061"
    assert "cannot be read by one kernel: `relu_1` 6 x 6, `relu` 12 x 12, with strides 2x2 and 3x3" in first.message


def test_an_output_that_is_an_input() -> None:
    net = Function(lambda self, x: (x, torch.relu(self.a(x))), a=C(1, 2, 3))
    (found,) = refused(net, (1, 6, 6))
    assert "returns its input `x` as it is" in found.message
    # What only changes its shape gets neurons that repeat it.
    flat = seeded(lambda: Function(lambda self, x: (x.flatten(1), torch.relu(self.a(x))), a=C(1, 2, 3)))
    with torch.no_grad():
        flat.a.weight.abs_()  # type: ignore[union-attr,operator]
    (x,) = inputs((1, 6, 6))
    check_close(snncc.compile(flat, "speck2b", calibration=x, bias="keep", threshold="max"), flat, x)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoding": "constant"}, "SNN082: does not take encoding=.constant."),
        ({"weight_bits": 16}, "SNN082: have 8 bits"),
        ({"cores": (0, 9)}, "SNN082: has the cores 0 to 8"),
        ({"cores": (3, 3)}, "SNN070: each once"),
        ({"readout": True}, "SNN082: has no readout block"),
        ({"sensor": "auto", "encoding": "rate"}, "SNN083: what the sensor sends are spikes"),
        ({"neuron": "sigma-delta"}, "SNN082: does not take neuron"),
    ],
)
def test_refused_options(options: dict[str, Any], words: str) -> None:
    code, _, words = words.partition(": ")
    x = example_input((1, 8, 8), 4)
    with pytest.raises(InputError, match=words) as caught:
        snncc.compile(build("chip_small"), "speck2b", calibration=x, **options)
    assert [d.code for d in caught.value.diagnostics] == [code]
    assert [d.code for d in snncc.check(build("chip_small"), "speck2b", example_input=x, **options)] == [code]


def monitors(config: Config) -> set[int]:
    return {core.index for core in config.cores if core.monitor}


def test_monitored_are_the_outputs_and_what_is_asked_for() -> None:
    (x,) = inputs((1, 8, 8))
    ends = snncc.compile(build("chip_small"), "speck2b", calibration=x, bias="keep")
    output = {layer.core for layer in Reader(ends.graph, CHIPS["speck2b"]).layers if layer.sends in ends.graph.outputs}
    assert monitors(written(ends)) == output
    for name in ends.report[0]["layer"], ends.report[0]["neuron"]:  # by the layer's name or the neuron's
        model = snncc.compile(build("chip_small"), "speck2b", calibration=x, bias="keep", monitor=(name,))
        config = written(model)
        assert monitors(config) == output | {model.report[0]["core"]}
        (monitor,) = (m for m in config.monitors if m.core == model.report[0]["core"])
        assert (monitor.name, monitor.first) == (model.report[0]["neuron"], 0)


@pytest.mark.parametrize("name", ["conv2d_0", "relu_1"])
def test_all_parts_of_a_split_layer_are_monitored(name: str) -> None:
    (x,) = inputs(GRAPH_ZOO["chip_split"].input_shape, batch=2)
    model = snncc.compile(build("chip_split"), "speck2b", calibration=x, bias="keep", monitor=(name,))
    config = check_exact(model, x, steps=4)
    parts = sorted((m for m in config.monitors if m.name == "relu_1"), key=lambda m: m.first)
    cores = {core.index: core for core in config.cores}
    assert [m.first for m in parts] == list(np.cumsum([0, *(cores[m.core].output_shape[0] for m in parts)])[:-1])
    assert sum(cores[m.core].output_shape[0] for m in parts) == 24
    assert {m.core for m in parts} < monitors(config)


def test_a_name_to_monitor_that_is_none() -> None:
    with pytest.raises(InputError, match=r"no layer 'nobody' to monitor") as caught:
        snncc.compile(build("chip_small"), "speck2b", calibration=example_input((1, 8, 8), 4), monitor=("nobody",))
    (found,) = caught.value.diagnostics
    assert found.code == "SNN084" and "linear_4.relu" in found.hint


def test_only_the_cores_that_may_be_taken() -> None:
    (x,) = inputs((1, 8, 8))
    model = snncc.compile(build("chip_small"), "speck2b", calibration=x, bias="keep", cores=(7, 2))
    assert sorted(core.index for core in check_exact(model, x).cores) == [2, 7]
    (found,) = told(snncc.check(build("chip_small"), "speck2b", example_input=x, cores=(7,)))
    assert (found.code, found.limit, found.found) == ("SNN059", 1, 2)
    # Cores 0 to 2 have 16 Ki weights: not even in three parts.
    net = chain(plain(64, 64, 3, padding=1), plain(64, 4, 1))
    (found,) = refused(net, (64, 4, 4), cores=(0, 1, 2))
    assert (found.code, found.limit) == ("SNN056", 16384) and "over all 3 cores, 48 of its 64 channels" in found.message


@pytest.mark.parametrize(
    ("shape", "words", "chip", "fields"),
    [
        ((2, 32, 32), "auto", "speck2b", {"pooling": (4, 4), "origin": (0, 0), "merge": False}),
        ((1, 64, 64), "auto", "speck2f", {"pooling": (2, 2), "origin": (0, 0), "merge": True}),
        ((2, 60, 64), "auto", "speck2f", {"pooling": (2, 2), "origin": (2, 0), "size": (60, 64)}),
        ((2, 34, 34), "auto", "speck2f", {"pooling": (2, 2), "origin": (15, 15)}),
        ((2, 32, 32), "pooling=2 mirror-x", "speck2f", {"origin": (16, 16), "mirror": (False, True)}),
        ((2, 32, 32), "pooling=1 origin=0,96 mirror-y", "speck2b", {"origin": (0, 96), "mirror": (True, False)}),
        ((2, 32, 32), "mirror-diagonal off", "speck2b", {"mirror_diagonal": True, "on": False, "off": True}),
        ((1, 32, 32), "on", "speck2b", {"merge": True, "on": True, "off": False}),
    ],
)  # fmt: skip
def test_the_sensor_as_the_input(shape: tuple[int, int, int], words: str, chip: str, fields: dict[str, Any]) -> None:
    c, h, w = shape
    net = seeded(lambda: chain(plain(c, 2, 4, stride=4), plain(2, 2, 2, stride=2), head(2 * (h // 8) * (w // 8))))
    x = (torch.rand(6, 4, *shape, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    model = snncc.compile(net, chip, calibration=x[:, 0], sensor=words, bias="keep")
    config = written(model)
    assert config.sensor is not None
    assert {name: getattr(config.sensor, name) for name in fields} == fields
    assert config.sensor.shape == shape and [route.shape for route in config.inputs] == [shape]
    check_exact(model, x, steps=6)


@pytest.mark.parametrize(
    ("shape", "words", "code", "message"),
    [
        ((3, 8, 8), "auto", "SNN005", "1 or 2 channels"),
        ((2, 130, 8), "auto", "SNN005", "up to 128 x 128"),
        ((2, 8, 8), "pooling=3", "SNN070", "the chip has 1, 2, 4"),
        ((2, 40, 40), "pooling=4", "SNN070", "40 rows from"),
        ((2, 8, 8), "origin=125,0 pooling=1", "SNN070", "8 rows from 125 on, of 128"),
        ((2, 8, 8), "upside-down", "SNN070", "'upside-down', which is unknown"),
        ((2, 8, 8), "pooling=many", "SNN070", "no number"),
    ],
)
def test_a_sensor_that_cannot_be(shape: tuple[int, int, int], words: str, code: str, message: str) -> None:
    net = chain(plain(shape[0], 2, 1, stride=(8 if shape[1] > 64 else 1, 1)))
    found = refused(net, shape, sensor=words)
    assert [d.code for d in found if message in d.message] == [code]


def test_the_sensor_reaches_two_cores() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(f(x)) for f in (self.a, self.b, self.c)], 1)

    three = Function(forward, **{name: C(2, 2, 8, 8) for name in "abc"})
    assert not refused(three, (2, 32, 32))
    (found,) = refused(three, (2, 32, 32), sensor="auto")
    assert (found.code, found.limit) == ("SNN061", 2)
    wide = chain(plain(2, 48, 1), plain(48, 1, 8, stride=8))  # on three cores
    assert not refused(wide, (2, 64, 64))
    (found,) = refused(wide, (2, 64, 64), sensor="auto")
    assert found.code == "SNN061" and "split over more cores than the sensor reaches" in found.message


@pytest.mark.parametrize("classes", [1, 10, 15])
def test_the_readout_block(classes: int) -> None:
    """Class i is channel 4 * i, and goes to layer 12."""
    net, (x,) = seeded(lambda: chain(conv(1, 2, 3), nn.Flatten(), nn.Linear(32, classes))), inputs((1, 6, 6))
    model = snncc.compile(net, "speck2f", calibration=x, bias="keep", readout=True, threshold="max")
    config = check_exact(model, x)
    last = config.cores[-1]
    assert last.output_shape == (4 * (classes - 1) + 1, 1, 1)
    assert last.destinations == (Destination(12),)
    assert [r.step for r in config.readouts] == [4]
    between = [c for c in range(last.output_shape[0]) if c % 4]
    assert not last.weights[between].any() and last.weights[::4].any(axis=(1, 2, 3)).all()
    plain_model = snncc.compile(net, "speck2f", calibration=x, bias="keep", threshold="max")
    np.testing.assert_array_equal(model.simulate(x, 8).output, plain_model.simulate(x, 8).output)


def test_the_silent_channels_of_the_readout_take_memory_too() -> None:
    """512 x 16 weights fit any core, 512 x 64 do not."""
    net, (x,) = seeded(lambda: chain(conv(1, 512, 1), nn.Flatten(), nn.Linear(512, 15))), inputs((1, 1, 1))
    for readout, words in (False, 512 * 16), (True, 512 * 64):
        model = snncc.compile(net, "speck2f", calibration=x, bias="keep", readout=readout)
        last = written(model).cores[-1]
        assert last.memory[0] == words <= CHIPS["speck2f"].cores[last.index].kernel_words


def test_the_readout_block_has_15_classes() -> None:
    net, (x,) = seeded(lambda: chain(conv(1, 2, 3), nn.Flatten(), nn.Linear(32, 16))), inputs((1, 6, 6))
    with pytest.raises(CompileError) as caught:
        snncc.compile(net, "speck2f", calibration=x, bias="keep", readout=True)
    assert "readout" in errors(caught.value.diagnostics)[0].message


# --- the cut-off edge of pooling ------------------------------------------------------------------------------------


def edge(size: int, **options: Any) -> list[Diagnostic]:
    net = Chain(*plain(1, 4, 3, padding=1), nn.AvgPool2d(2), *plain(4, 4, 3, **options), nn.Flatten()).eval()
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


def test_the_host_cuts_the_edge_itself() -> None:
    net = chain(nn.AvgPool2d(2), plain(1, 4, 3, padding=1)).eval()
    assert not [d for d in snncc.check(net, "speck2b", example_input=example_input((1, 7, 7), 2)) if d.code == "SNN053"]


# --- generated ------------------------------------------------------------------------------------------------------

CODES = {f"SNN0{i}" for i in (*range(50, 64), 66)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(CHIPS)), st.sampled_from(["keep", "strip", "warn"]))
def test_generated_chains_compile_or_are_refused(seed: int, chip: str, bias: str) -> None:
    exact_or_refused(*chip_network(np.random.default_rng(seed)), chip, bias, seed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["dynapcnn", "speck2b", "speck2f"]), st.sampled_from(["keep", "strip"])
)
def test_generated_graphs_compile_or_are_refused(seed: int, chip: str, bias: str) -> None:
    exact_or_refused(*random_model(np.random.default_rng(seed)), chip, bias, seed)


def exact_or_refused(net: nn.Module, shape: tuple[int, ...], chip: str, bias: str, seed: int) -> None:
    (x,) = inputs(shape, batch=6, seed=seed % 1000)
    try:
        model = snncc.compile(net, chip, calibration=x, bias=bias, timesteps=8, selfcheck=False)
    except CompileError as error:
        found = {d.code for d in told(error.diagnostics)}
    else:
        found = set()
        check_exact(model, x[:2], steps=8)
    assert found <= CODES
