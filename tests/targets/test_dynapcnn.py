"""The DYNAP-CNN target from a torch model to its configuration: what it takes is exact, the rest is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
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
from zoo import GRAPH_ZOO, SEQUENTIAL_ZOO, build, example_input, random_model

import snncc
from snncc import CompileError, Diagnostic, InputError
from snncc.engine import Simulation
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


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


@cache
def compiled(name: str, chip: str, **options: Any) -> snncc.CompiledModel:
    (x,) = inputs(CHIP_ZOO[name].input_shape, batch=6)
    return snncc.compile(build(name), chip, calibration=x, **{"bias": "keep", "timesteps": 16, **options})


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


@pytest.mark.parametrize(
    "options", [{"reset": "zero"}, {"bias": "fold"}, {"bias": "strip"}, {"per": "layer"}, {"v0": 0.0}]
)
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


def three_readers(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return self.head(torch.cat([torch.relu(f(x)) for f in (self.b, self.c, self.d)], 1).flatten(1))


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
        lambda: chain(conv(1, 4, 1), nn.AvgPool2d(2), nn.AvgPool2d(4), head(16)), ((1, 16, 16),), "by 4, the rest in the kernel",
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
        lambda: chain(conv(64, 64, 3, padding=1), conv(64, 4, 4, stride=4)), ((64, 32, 32),), "channels on several cores",
    ),
    "more weights than a core has": (
        lambda: chain(conv(2, 64, 1), conv(64, 128, 3), head(512)), ((2, 4, 4),), "channels on several cores",
    ),
    "groups on several cores": (
        lambda: chain(conv(96, 96, 3, groups=96), head(384)), ((96, 4, 4),), "rows of the dense kernel",
    ),
    "a residual block": (
        lambda: Function(residual, a=C(1, 4, 3, padding=1), b=C(4, 6, 3, padding=1), c=C(6, 4, 3, padding=1), head=nn.Linear(144, 4)),
        ((1, 6, 6),), "the shortcut has weights of one in the same kernel",
    ),
    "a sum of activations": (
        lambda: Function(sums, a=C(1, 4, 3, padding=1), b=C(1, 4, 1), head=nn.Linear(64, 4)),
        ((1, 4, 4),), "both with the same weights",
    ),
    "a shortcut of stride 2": (
        lambda: Function(downsample, a=C(1, 4, 3, padding=1), b=C(4, 8, 3, 2, 1), c=C(8, 8, 3, padding=1), d=C(4, 8, 1, 2), head=nn.Linear(128, 4)),
        ((1, 8, 8),), "a core passes on every other row and column",
    ),
    "three readers": (
        lambda: Function(three_readers, a=C(1, 4, 3), b=C(4, 2, 1), c=C(4, 3, 1), d=C(4, 4, 3, padding=1), head=nn.Linear(9 * 16, 4)),
        ((1, 6, 6),), "a relay",
    ),
    "a layer that is used twice": (
        lambda: Function(shared, a=C(1, 4, 3), b=C(4, 4, 3, padding=1), head=nn.Linear(64, 4)), ((1, 6, 6),), "two cores",
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
    net, xs = seeded(make), inputs(*shapes)
    model = snncc.compile(net, chip, calibration=[xs], bias="keep", threshold="max")
    check_exact(model, *(x[:2] for x in xs), steps=8)
    check_close(model, net, *(x[:2] for x in xs))
