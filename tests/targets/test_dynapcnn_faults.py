"""What the vendor's own compiler gets wrong (sinabs 3.1.3, reproduced): here it is right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from chipsim import read_outputs, run_chip
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import SEQUENTIAL_ZOO, build, example_input

import snncc
from snncc.ir import ops
from snncc.ir.diagnostics import errors
from snncc.ir.interp import run
from snncc.ir.types import Array, per_channel
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import Config, problems
from snncc.targets.dynapcnn.placement import Demand, Plan, Search


def compiled(net: nn.Module, x: Tensor, chip: str = "speck2b", **options: Any) -> tuple[snncc.CompiledModel, Config]:
    model = snncc.compile(
        net.eval(), chip, calibration=x, **{"bias": "keep", "threshold": "max", "selfcheck": False, **options}
    )
    config = model.target.config(model.graph, model.options)  # type: ignore[attr-defined]
    assert problems(config) == []
    return model, config


def scores(model: snncc.CompiledModel, config: Config, x: Tensor, steps: int = 64) -> Array:
    """What the cores count, from the configuration alone, in real numbers; the simulation says the same."""
    done = model.simulate(x, steps, record="spikes")
    (encoded,) = (done.spikes[n.name] for n in model.graph.nodes if isinstance(n.op, ops.Encode))
    (counts,) = read_outputs(config, run_chip(config, encoded))
    unit = per_channel(model.graph[model.graph.outputs[0]].type.unit, model.graph.store, 3)
    found: Array = (counts.sum(0) / steps * unit).reshape(len(x), -1)
    np.testing.assert_allclose(done.output.reshape(len(x), -1), found, rtol=1e-6)
    return found


def close(net: nn.Module, model: snncc.CompiledModel, config: Config, x: Tensor, within: float = 0.1) -> None:
    """The scores of the chip are the network's, and those of the float network before quantization exactly."""
    with torch.no_grad():
        wanted = net(x).reshape(len(x), -1).clamp(min=0).numpy()
    assert wanted.max() > 0
    floats = next(r.graph for r in reversed(model.records) if r.graph.stage.value == "snn")
    exact = run(floats, x.numpy().astype(np.float64))[floats.outputs[0]].reshape(wanted.shape)
    np.testing.assert_allclose(exact, wanted, atol=1e-4 * wanted.max())
    assert np.abs(scores(model, config, x) - wanted).max() < within * wanted.max()


class Net(nn.Module):
    """Layers by name, and a function that calls them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


# --- 1: the defaults make all weights zero ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENTIAL_ZOO)
def test_1_with_the_defaults_weights_are_not_zero(name: str) -> None:
    x = example_input(SEQUENTIAL_ZOO[name].input_shape, 4)
    model = snncc.compile(build(name), "speck2b", calibration=x)
    config = model.target.config(model.graph, model.options)  # type: ignore[attr-defined]
    for core in config.cores:
        assert np.abs(core.weights).max() > 63  # 8 bits are used
        assert core.threshold_high > 1 and core.threshold_low < -1
    done = model.simulate(x)
    assert all(count > 0 for count in done.counts.values())


# --- 2: an edge is dropped ------------------------------------------------------------------------------------------


ADDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a + b": lambda a, b: a + b,
    "torch.add": torch.add,
    "a.add(b)": lambda a, b: a.add(b),
    "a += b": lambda a, b: a.add_(b),
}


@pytest.mark.parametrize("chip", ["speck2b", "speck2f"])
@pytest.mark.parametrize("how", ADDS)
def test_2_every_way_to_add_is_an_edge(how: str, chip: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head(ADDS[how](torch.relu(self.b(x)), torch.relu(self.c(x))).flatten(1))

    c = nn.Conv2d
    net = Net(forward, a=c(1, 4, 3, padding=1), b=c(4, 4, 3, padding=1), c=c(4, 4, 1), head=nn.Linear(144, 5))
    x = example_input((1, 6, 6), 4)
    model, config = compiled(net, x, chip)
    assert len(config.readouts) == 1  # one end, which both branches reach
    to = {core.name: [d.layer for d in core.destinations] for core in config.cores}
    (end,) = (core.index for core in config.cores if core.name == "head")
    assert to["b"] == to["c"] == [end]
    close(net, model, config, x)


# --- 3: average pooling on one branch of a residual ------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, 4])
@pytest.mark.parametrize("chip", ["speck2b", "speck2f"])
def test_3_average_pooling_on_one_branch(chip: str, window: int) -> None:
    """The factors of the branches are 1 / window^2 and 1, to the last bit: each has weights of its own."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head(F.avg_pool2d(x, window) + torch.relu(self.b(x)))

    net = Net(forward, a=nn.Conv2d(1, 4, 3, padding=1), b=nn.Conv2d(4, 4, window, window), head=nn.Conv2d(4, 3, 1))
    x = example_input((1, 12, 12), 4)
    model, config = compiled(net, x, chip)
    close(net, model, config, x)


def test_3_a_pooled_shortcut_of_currents() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return torch.relu(self.b(x) + F.avg_pool2d(x, 2))

    net = Net(forward, a=nn.Conv2d(1, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, 2, 1))
    x = example_input((1, 8, 8), 4)
    model, config = compiled(net, x)
    close(net, model, config, x)


# --- 4: the epsilon of batch norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_4_the_epsilon_of_batch_norm(eps: float) -> None:
    """At a variance of 1e-5, the default epsilon is half of what the root is taken of: 41 % are at stake."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, eps=eps), nn.ReLU(), nn.Conv2d(4, 3, 6))
    norm, x = net[1], example_input((1, 8, 8), 4)
    with torch.no_grad():
        net[0].weight.mul_(0.003)
        mean = net[0](x).mean((0, 2, 3))
        norm.running_var.fill_(1e-5)
        norm.running_mean.copy_(mean)
    model, config = compiled(net, x)
    close(net, model, config, x)


# --- 5: biases of 8 bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [3.0, 8.0])
def test_5_biases_have_16_bits(times: float) -> None:
    """Biases that are larger than any weight and differ little: in 8 bits with the weights they would be the same."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 4), nn.ReLU())
    with torch.no_grad():
        for layer in net[0], net[2]:
            layer.bias.copy_(times * layer.weight.abs().max() * (1 - 0.004 * torch.arange(len(layer.bias))))
    x = example_input((1, 6, 6), 4)
    model, config = compiled(net, x, per="layer", timesteps=16)
    weighted = [n for n in model.graph.nodes if isinstance(n.op, ops.Weighted)]
    for node, layer in zip(weighted, (net[0], net[2]), strict=True):
        bias, store = model.graph.value(node.op.bias), model.graph.store  # type: ignore[attr-defined]
        assert bias.dtype == np.int16 and bias.max() > 127 and len(set(bias.tolist())) == len(bias)
        np.testing.assert_allclose(bias * per_channel(node.type.unit, store, 1), layer.bias.detach(), rtol=2e-3)
        assert np.abs(model.graph.value(node.op.weight)).max() > 100  # type: ignore[attr-defined]
    close(net, model, config, x)


# --- 6: one scale for weights, biases and thresholds ------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_6_large_thresholds_leave_the_weights_their_bits(channels: int) -> None:
    """Activations that are much larger than one weight, as many inputs add up."""
    net = nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU(), nn.Conv2d(channels, 3, 6), nn.ReLU())
    with torch.no_grad():
        for layer in net[0], net[2]:
            layer.weight.abs_()
    x = example_input((1, 8, 8), 4)
    model, config = compiled(net, x, per="layer")
    for core in config.cores:
        assert np.abs(core.weights).max() == 127
    assert config.cores[1].threshold_high > 127 * channels
    close(net, model, config, x)


# --- 7: errors that name nothing --------------------------------------------------------------------------------------


def test_7_no_placement_names_layers_and_limits() -> None:
    layers = [nn.Conv2d(1, 256, 1, bias=False), nn.ReLU(), nn.Conv2d(256, 1, 16, padding=7, bias=False), nn.ReLU()]
    net = nn.Sequential(*layers, *deepcopy(layers), *deepcopy(layers))
    found, _ = errors(snncc.check(net, "speck2b", example_input=example_input((1, 6, 6), 4)))
    assert found.code == "SNN060" and [s.module for s in found.loc] == ["2", "6", "10"]
    assert "all need one of cores 5, 6" in found.message
    assert "limit: 2 cores, found 3" in found.render()


def test_7_a_layer_that_is_too_large_names_itself_and_the_amount() -> None:
    net = nn.Sequential(nn.Conv2d(64, 512, 3, bias=False), nn.ReLU())
    found, _ = errors(snncc.check(net, "speck2b", example_input=example_input((64, 4, 4), 2)))
    assert (found.code, found.limit, found.found) == ("SNN056", 65536, 524288)
    assert found.loc.sources[0].module == "0"


@pytest.mark.parametrize("readers", [3, 4])
def test_7_a_fan_out_of_three_is_relayed(readers: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        parts = [torch.relu(getattr(self, f"b{i}")(x)) for i in range(readers)]
        return self.head(torch.cat(parts, 1).flatten(1))

    branches = {f"b{i}": nn.Conv2d(4, 2, 1) for i in range(readers)}
    net = Net(forward, a=nn.Conv2d(1, 4, 3), **branches, head=nn.Linear(readers * 32, 4))
    x = example_input((1, 6, 6), 4)
    model, config = compiled(net, x)
    assert max(len(core.destinations) for core in config.cores) == 2
    close(net, model, config, x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kernel", [3, 4, (3, 5), (2, 5)])
def test_7_padding_same(kernel: Any) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, kernel, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    x = example_input((1, 8, 8), 4)
    model, config = compiled(net, x)
    close(net, model, config, x)


@pytest.mark.parametrize("chip", ["speck2b", "speck2f"])
def test_7_a_plain_mlp(chip: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    x = example_input((1, 28, 28), 4)
    model, config = compiled(net, x, chip)
    close(net, model, config, x)


# --- 8: the mapping ---------------------------------------------------------------------------------------------------


def test_8_a_placement_is_found_wherever_one_exists() -> None:
    """The first core that fits is another layer's only one, at every step but the last (see test_dynapcnn_placement,
    which compares with brute force)."""
    sizes = ([(1, 16)] * 2, [(1, 32)] * 2, [(1, 64)] * 3, [(64, 1)] * 2)
    wants = [(kernel * 1024, neurons * 1024, 0) for some in sizes for kernel, neurons in some]
    demands = [Demand(f"layer{i}", 1, lambda _, need=need: need, (1, 1)) for i, need in enumerate(wants)]  # type: ignore[misc]
    found = Search(demands, CHIPS["speck2b"], tuple(range(9))).run()
    assert isinstance(found, Plan)
    assert [found.parts[d.name][0].core for d in demands] == [7, 8, 3, 4, 0, 1, 2, 5, 6]
