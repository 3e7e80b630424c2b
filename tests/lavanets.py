"""Generated networks for Loihi: graphs with shortcuts, branches of unequal depth, pooling, padding, groups, strides and
dilation, small enough for Lava to run many of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

Shape = tuple[int, int, int]


class _Residual(nn.Module):
    """``relu(body(x) + way(x))``; the way around is the identity or a projection."""

    def __init__(self, body: nn.Module, way: nn.Module) -> None:
        super().__init__()
        self.body, self.way, self.relu = body, way, nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.way(x))


class _Branches(nn.Module):
    """The concatenation of several branches."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class _Part(nn.Module):
    """Every other channel, from the second on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1::2]


def lava_network(rng: np.random.Generator) -> tuple[nn.Module, Shape]:
    """A network drawn from ``rng`` in eval mode, and its input shape. Equal seeds give equal networks."""
    seed = int(rng.integers(2**31))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, shape = _layers(rng)
        model = nn.Sequential(*layers).eval()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.1, 0.5)
    return model, shape


def _layers(rng: np.random.Generator) -> tuple[list[nn.Module], Shape]:
    def coin(p: float = 0.5) -> bool:
        return bool(rng.random() < p)

    def pick(*options: int) -> int:
        return int(rng.choice(options))

    def conv(channels: int, out: int, kernel: int, **options: Any) -> nn.Module:
        bias = coin()
        made: list[nn.Module] = [nn.Conv2d(channels, out, kernel, bias=bias, **options)]
        return nn.Sequential(*made, *([nn.BatchNorm2d(out)] if coin(0.3) else []))

    def same(channels: int, out: int) -> nn.Module:
        """A convolution that keeps the size."""
        kernel, dilation = pick(1, 3, 3), pick(1, 1, 2)
        return conv(channels, out, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    shape = (pick(1, 2, 3), pick(4, 5, 7, 8), pick(4, 6, 7, 8))
    channels, size, layers = shape[0], [*shape[1:]], list[nn.Module]()
    for _ in range(pick(1, 2, 2, 3)):
        kind = rng.choice(["conv", "conv", "residual", "branches", "depthwise", "pool", "pad", "part"])
        if kind == "conv":
            kernel = min(pick(1, 2, 3), *size)
            stride, padding = pick(1, 1, 2), (pick(0, 1) if kernel > 1 else 0, pick(0, 1) if kernel > 1 else 0)
            groups = channels if channels > 1 and coin(0.2) else 1
            out = groups * pick(1, 2) if groups > 1 else pick(2, 3, 4)
            layers += [conv(channels, out, kernel, stride=stride, padding=padding, groups=groups), nn.ReLU()]
            size = [(n + 2 * p - kernel) // stride + 1 for n, p in zip(size, padding, strict=True)]
            channels = out
        elif kind == "residual":
            out = channels if coin(0.6) else pick(2, 3)
            body = [same(channels, out), *([nn.ReLU(), same(out, out)] if coin(0.7) else [])]
            if coin(0.3):
                body += [nn.ReLU(), same(out, out)]
            way: nn.Module = (
                nn.Identity() if out == channels and coin(0.7) else nn.Conv2d(channels, out, 1, bias=coin())
            )
            layers.append(_Residual(nn.Sequential(*body), way))
            channels = out
        elif kind == "branches":
            outs = [pick(1, 2), pick(1, 2, 3)]
            branches: list[nn.Module] = [nn.Sequential(same(channels, outs[0]), nn.ReLU())]
            branches.append(nn.Sequential(same(channels, outs[1]), nn.ReLU(), same(outs[1], outs[1]), nn.ReLU()))
            if coin(0.3):
                branches.append(nn.Identity())
                outs.append(channels)
            layers.append(_Branches(branches))
            channels = sum(outs)
        elif kind == "depthwise":
            layers += [conv(channels, channels, 3, padding=1, groups=channels), nn.ReLU6() if coin() else nn.ReLU()]
        elif kind == "pool" and min(size) >= 2:
            kernel, stride = pick(2, 2, min(3, *size)), 2
            padding = pick(0, 0, 1)
            layers.append(nn.AvgPool2d(kernel, stride, padding))
            size = [(n + 2 * padding - kernel) // stride + 1 for n in size]
        elif kind == "pad":
            left, right, top, bottom = pick(0, 1), pick(0, 1, 2), pick(0, 1), pick(0, 1)
            layers.append(nn.ZeroPad2d((left, right, top, bottom)))
            size = [size[0] + top + bottom, size[1] + left + right]
        elif kind == "part" and channels > 2:
            layers.append(_Part())
            channels = len(range(1, channels, 2))
    end = rng.choice(["linear", "linear", "mlp", "average", "map"])
    if end == "map":  # an output that is a feature map
        return [*layers, nn.Conv2d(channels, 3, 1, bias=coin())], shape
    if end == "average":
        head: list[nn.Module] = [nn.Conv2d(channels, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return [*layers, *head], shape
    features = channels * size[0] * size[1]
    layers.append(nn.Flatten())
    if end == "mlp":
        layers += [nn.Linear(features, 6, bias=coin()), nn.ReLU()]
        features = 6
    return [*layers, nn.Linear(features, pick(2, 5), bias=coin())], shape
