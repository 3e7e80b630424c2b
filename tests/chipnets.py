"""Generated networks that a DYNAP-CNN chip may take: chains with every option that it has, and branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo import drawn


def chip_network(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, int, int]]:
    """A chain drawn from ``rng`` in eval mode, and its input shape. Geometry is always legal for torch; most chains,
    not all, fit a chip. Equal seeds give equal networks."""
    return drawn(rng, _layers)


def _layers(rng: np.random.Generator) -> tuple[list[nn.Module], tuple[int, int, int]]:
    def coin(p: float = 0.5) -> bool:
        return bool(rng.random() < p)

    def pick(*options: int) -> int:
        return int(rng.choice(options))

    height = int(rng.integers(1, 25))
    shape = (pick(1, 2, 3), height, height if coin(0.8) else int(rng.integers(1, 25)))
    channels, size, layers = shape[0], list(shape[1:]), list[nn.Module]()
    for _ in range(pick(1, 2, 3, 4)):
        kernel = pick(1, 2, 3, 3, 5, min(size[0], 16))
        least = max(0, -(-(kernel - min(size)) // 2))  # so much that the kernel fits
        padding = tuple(max(least, pick(0, 0, 1, 2)) for _ in size)
        stride = tuple(pick(1, 1, 2, 4, 8) if coin(0.3) else 1 for _ in size)
        groups = pick(1, channels, channels) if coin(0.3) else 1
        out = groups * pick(1, 2, 3, 5) if groups > 1 else pick(1, 3, 4, 7, 8, 12)
        norm = coin()
        options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups, "bias": coin()}
        layers += [nn.Conv2d(channels, out, kernel, **options), *([nn.BatchNorm2d(out)] if norm else [])]
        layers.append(nn.ReLU6() if coin(0.2) else nn.ReLU())
        channels = out
        size = [(n + 2 * p - kernel) // s + 1 for n, p, s in zip(size, padding, stride, strict=True)]
        if coin(0.4) and (pooling := pick(2, 2, 4)) <= min(size):
            layers.append(nn.AvgPool2d(pooling))
            size = [n // pooling for n in size]
        if coin(0.1):
            layers.append(nn.Dropout2d(0.3))
    if size[0] != size[1] or coin(0.2):
        if not isinstance(layers[-1], nn.AvgPool2d):
            return layers, shape
        return [*layers, nn.Conv2d(channels, 5, 1, bias=coin())], shape
    features = channels * size[0] * size[1]
    layers.append(nn.Flatten())
    if coin(0.3):
        layers += [nn.Linear(features, 8, bias=coin()), nn.ReLU()]
        features = 8
    return [*layers, nn.Linear(features, pick(2, 5, 10), bias=coin())], shape


class _Block(nn.Module):
    """Two branches of one map that meet: added as currents or as activations, or concatenated."""

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        super().__init__()
        self.join = str(rng.choice(["currents", "activations", "concat"]))
        self.stride = int(rng.choice([1, 1, 2]))
        kernel = int(rng.choice([1, 3]))
        out = channels if self.stride == 1 else int(rng.choice([3, 6]))
        self.left = nn.Conv2d(channels, out, 3, self.stride, 1, bias=bool(rng.random() < 0.5))
        self.inner = nn.Conv2d(out, out, kernel, padding=kernel // 2, groups=int(rng.choice([1, out])))
        same = self.stride == 1 and self.join == "currents" and rng.random() < 0.5
        self.right = nn.Identity() if same else nn.Conv2d(channels, out, 1, self.stride, bias=False)
        self.channels = 2 * out if self.join == "concat" else out

    def forward(self, x: Tensor) -> Tensor:
        left = self.inner(torch.relu(self.left(x)))
        right = self.right(x)
        if self.join == "currents":
            return torch.relu(left + right)
        if self.join == "activations":
            return torch.relu(left) + torch.relu(right)
        return torch.cat([torch.relu(left), torch.relu(right)], 1)


class GraphNetwork(nn.Module):
    """A stem, one or two blocks with branches, and a head, perhaps with a second exit."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        super().__init__()
        channels = int(rng.choice([4, 6]))
        self.stem = nn.Conv2d(2, channels, 3, padding=1, bias=bool(rng.random() < 0.5))
        self.blocks = nn.ModuleList()
        for _ in range(int(rng.choice([1, 1, 2]))):
            self.blocks.append(_Block(rng, channels))
            channels, size = self.blocks[-1].channels, size // self.blocks[-1].stride
        self.pool = nn.AvgPool2d(2) if rng.random() < 0.5 and size % 2 == 0 else nn.Identity()
        size = size // 2 if isinstance(self.pool, nn.AvgPool2d) else size
        self.head = nn.Linear(channels * size * size, 5)
        self.exit = nn.Linear(channels * size * size, 3) if rng.random() < 0.25 else None

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = self.pool(x).flatten(1)
        return self.head(x) if self.exit is None else (self.head(x), self.exit(torch.relu(x)))


def graph_network(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network with branches drawn from ``rng`` in eval mode, and its input shape; most of them fit a chip."""
    size = int(rng.choice([4, 8]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        return GraphNetwork(rng, size).eval(), (2, size, size)
