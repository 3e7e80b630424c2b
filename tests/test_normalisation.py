"""A shift in front of a padded convolution: the padding is zero, so a window in it gets less of the shift. On every
target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from chipsim import read_outputs, run_chip
from torch import Tensor, nn

import snncc
from snncc.targets.dynapcnn.target import Dynapcnn

FRONTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalised": lambda x: (x - 0.1307) / 0.3081,
    "affine": lambda x: x * 2.0 + 0.4,
    "channels": lambda x: (
        (x - torch.tensor([0.49, 0.48, 0.45])[:, None, None]) / torch.tensor([0.2, 0.25, 0.26])[:, None, None]
    ),
}
TARGETS = ("reference", "lava", "speck2f", "lynxi")


class Normalised(nn.Module):
    def __init__(self, front: Callable[[Tensor], Tensor] | None, padding: str | int = 1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean = torch.tensor([0.5, 0.4, 0.3])
        self.norm.running_var = torch.tensor([0.1, 0.2, 0.3])
        self.front = front
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=padding), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 10), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(x) if self.front is None else self.front(x))


def images(n: int = 32) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def distance(got: np.ndarray, meant: Tensor) -> float:
    """The mean distance, in parts of the largest output."""
    want = meant.detach().numpy()
    return float(np.abs(got - want).mean() / np.abs(want).max())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("front", [*FRONTS, "batch norm"])
def test_a_normalised_network(target: str, front: str) -> None:
    net, x = Normalised(FRONTS.get(front)).eval(), images()
    model = snncc.compile(net, target, calibration=x, timesteps=64, bias="keep")
    assert distance(model.network(x, stage="folded"), net(x)) < 1e-5
    assert distance(model.network(x, stage="int"), net(x)) < 0.02
    assert distance(model.simulate(x, timesteps=64).output, net(x)) < 0.03


@pytest.mark.parametrize("target", TARGETS[:3])
@pytest.mark.parametrize("encoding", ["rate", "bernoulli"])
def test_encodings_with_spikes(target: str, encoding: str) -> None:
    net, x = Normalised(FRONTS["normalised"]).eval(), images()
    model = snncc.compile(net, target, calibration=x, timesteps=256, bias="keep", encoding=encoding)
    assert distance(model.simulate(x, timesteps=256).output, net(x)) < 0.04


def test_the_cores_get_the_shift_from_the_host() -> None:
    """What is written computes what is simulated, and the cost is told."""
    net, x = Normalised(FRONTS["channels"]).eval(), images(2)
    model = snncc.compile(net, "speck2f", calibration=images(), timesteps=16, bias="keep")
    assert isinstance(model.target, Dynapcnn)
    (note,) = (d for d in model.diagnostics if d.code == "SNN036")
    assert "64 events" in note.message
    config = model.target.config(model.graph, model.options)
    (ones,) = config.host_biases[:1]
    assert (ones.rows, ones.columns) == (tuple(range(8)), tuple(range(8)))
    encode = next(n.name for n in model.graph.nodes if n.op.mnemonic == "encode")
    steps = model.simulate(x, timesteps=16, record=[encode, *model.graph.outputs])
    (counts,) = read_outputs(config, run_chip(config, steps.spikes[encode]))
    output = steps.spikes[model.graph.outputs[0]]
    np.testing.assert_array_equal(counts.reshape(output.shape), output)


class Complement(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1059)
        self.conv = nn.Conv2d(1, 1, 1, padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(1 - torch.relu(x))


def test_ones_beside_spikes_of_a_core() -> None:
    """On a speck2b, they come through a core that sees nothing else. Was read back as one without an input: SNN092."""
    x = images()[:, :1, :4, :4]
    model = snncc.compile(Complement().eval(), "speck2b", calibration=x, timesteps=16)
    assert any(node.name.endswith("ones.relay") for node in model.graph.nodes)
    assert model.verify(x[:2]) == []


def test_the_sensor_has_no_ones() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, 4), nn.ReLU()
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x * 2.0 + 0.5)

    with pytest.raises(snncc.CompileError) as caught:
        snncc.compile(Net().eval(), "speck2f", calibration=torch.rand(4, 2, 32, 32), sensor="32x32+0+0", bias="keep")
    assert "SNN036" in {d.code for d in caught.value.diagnostics}


@pytest.mark.parametrize("target", TARGETS[:3])
def test_a_norm_of_a_sum_in_front_of_a_padded_layer(target: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.c, self.fc = nn.Conv2d(4, 4, 3, padding=(1, 1)), nn.Linear(256, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu() + self.b(x).relu()
            return self.fc(self.c(y * 1.5 - 0.3).relu().flatten(1)).relu()

    net, x = Net().eval(), images()
    if target == "lava":
        with pytest.raises(snncc.CompileError, match="SNN032"):  # a sum of two layers' spikes is no spike
            snncc.compile(net, target, calibration=x, bias="keep")
        return
    model = snncc.compile(net, target, calibration=x, timesteps=64, bias="keep")
    assert distance(model.network(x, stage="folded"), net(x)) < 1e-5
    assert distance(model.simulate(x, timesteps=64).output, net(x)) < 0.04


@pytest.mark.parametrize("target", ["speck2b", "speck2f"])
def test_a_batch_norm_of_flattened_maps(target: str) -> None:
    """It has a factor for each pixel, which no kernel over channels has."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    norm.running_mean, norm.running_var = torch.rand(8), torch.rand(8) + 0.5
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), norm, nn.ReLU()).eval()
    x = torch.rand(32, 2, 2, 2)
    model = snncc.compile(net, target, calibration=x, timesteps=64, bias="keep")
    assert isinstance(model.target, Dynapcnn)
    config = model.target.config(model.graph, model.options)
    assert config.cores[-1].weights.size == 8 * 2 * 2 * 2
    assert distance(model.simulate(x, timesteps=64).output, net(x)) < 0.05


def test_what_follows_from_a_refusal_is_not_said() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.rest = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.b(self.a(x)))

    with pytest.raises(snncc.CompileError) as caught:
        snncc.compile(Net().eval(), "speck2f", calibration=images(), bias="keep")
    assert {d.code for d in caught.value.diagnostics if d.severity.value == "error"} == {"SNN032"}


def test_a_norm_behind_a_layer_along_the_last_axis_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.fc(x) + x).relu()

    with pytest.raises(snncc.CompileError, match="SNN032"):
        snncc.compile(Net().eval(), "lava", calibration=torch.rand(8, 2, 4, 4), bias="keep")
