"""Generated networks of spiking neurons, as they are trained with spikingjelly: its neurons' names and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo import Concat, drawn


class IFNode(nn.Module):
    """Integrate and fire, one step in a call, with spikingjelly's attributes and update."""

    def __init__(self, v_threshold: Any = 1.0, v_reset: float | None = 0.0) -> None:
        super().__init__()
        self.v_threshold, self.v_reset, self.step_mode = v_threshold, v_reset, "s"
        self.v: Tensor | None = None

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return v + x

    def forward(self, x: Tensor) -> Tensor:
        rest = self.v_reset or 0.0
        v = self.charge(torch.full_like(x, rest) if self.v is None else self.v, x)
        theta = torch.as_tensor(self.v_threshold)
        theta = theta.reshape(-1, *[1] * (x.dim() - 2)) if theta.numel() > 1 else theta
        spikes = (v >= theta).to(x.dtype)
        self.v = v - spikes * theta if self.v_reset is None else (1 - spikes) * v + spikes * rest
        return spikes


class LIFNode(IFNode):
    """The same with a leak."""

    def __init__(self, tau: float = 2.0, decay_input: bool = True, **others: Any) -> None:
        super().__init__(**others)
        self.tau, self.decay_input = tau, decay_input

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        away = v - (self.v_reset or 0.0)
        return v + (x - away) / self.tau if self.decay_input else v - away / self.tau + x


class Add(nn.Module):
    """A residual sum in front of a neuron."""

    def __init__(self, body: nn.Module, neuron: nn.Module) -> None:
        super().__init__()
        self.body, self.neuron = body, neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x + self.body(x))


class TwoInputs(nn.Module):
    """Two inputs of 6 and 4 features that meet, and two outputs: 2 scores, and the 5 spikes before them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.relu(self.a(x) + self.b(y))
        return self.c(z), z


def reset(network: nn.Module) -> None:
    """Forget all states."""
    for module in network.modules():
        if isinstance(module, IFNode):
            module.v = None


def spiking_network(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network drawn from ``rng``, in eval mode, and its input shape; equal seeds give equal networks."""
    return drawn(rng, _layers)


def _layers(rng: np.random.Generator) -> tuple[list[nn.Module], tuple[int, ...]]:
    def coin(p: float = 0.5) -> bool:
        return bool(rng.random() < p)

    def neuron(channels: int) -> nn.Module:
        rest = [None, 0.0, 0.25, -0.5][int(rng.integers(4))]
        theta: Any = float(rng.choice([0.5, 0.75, 1.0]))
        if coin(0.25):
            theta = torch.from_numpy(rng.uniform(0.5, 1.5, channels).astype(np.float32))
        common = {"v_threshold": theta, "v_reset": rest}
        if coin():
            return IFNode(**common)
        return LIFNode(tau=float(rng.choice([1.25, 2.0, 3.0])), decay_input=coin(), **common)

    def conv(c_in: int, c_out: int, k: int, groups: int = 1) -> list[nn.Module]:
        body: list[nn.Module] = [nn.Conv2d(c_in, c_out, k, padding=k // 2, groups=groups, bias=coin())]
        return [*body, nn.BatchNorm2d(c_out)] if coin() else body

    channels, size, c = int(rng.choice([1, 2])), int(rng.choice([6, 8, 9])), 4
    shape, layers = (channels, size, size), [*conv(channels, c, 3), neuron(c)]
    for _ in range(int(rng.integers(1, 4))):
        kind = str(rng.choice(["conv", "depthwise", "residual", "concat", "max", "average"]))
        if kind in ("conv", "depthwise"):
            layers += [*conv(c, c, 3, c if kind == "depthwise" else 1), neuron(c)]
        elif kind == "residual":
            body = nn.Sequential(*conv(c, c, 3), neuron(c), *conv(c, c, 1))
            layers.append(Add(body, neuron(c)))
        elif kind == "concat":
            layers.append(Concat(nn.Sequential(*conv(c, 3, 1), neuron(3)), nn.Sequential(*conv(c, 2, 3), neuron(2))))
            c = 5
        elif size >= 4:
            k = int(rng.choice([2, 3]))
            layers.append(nn.MaxPool2d(k) if kind == "max" else nn.AvgPool2d(k))
            size //= k
    layers.append(nn.Flatten())
    features = c * size * size
    if coin():
        layers += [nn.Linear(features, 8), neuron(8)]
        features = 8
    return [*layers, nn.Linear(features, 5)], shape
