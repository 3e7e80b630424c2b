"""Generated networks for Loihi: graphs with shortcuts, branches of unequal depth, pooling, padding, groups, strides and
dilation, small enough for Lava to run many of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from zoo import drawn

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


class LeNet(nn.Module):
    """Two convolutions with average pooling, two linear layers, for (1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(400, 84), nn.ReLU(), nn.Linear(84, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class VggLike(nn.Module):
    """Pairs of 3 x 3 convolutions with batch norm, pooling between them, for (1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = list[nn.Module](), 1
        for width in (8, 16):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.AvgPool2d(2))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 49, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ResNet8(nn.Module):
    """Three stages of one residual block each (He et al. 2016, for CIFAR), for (1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()

        def conv(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
            made = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
            return nn.Sequential(made, nn.BatchNorm2d(out))

        self.stem = nn.Sequential(conv(1, 8), nn.ReLU())
        self.stages = nn.Sequential(
            *(
                _Residual(
                    nn.Sequential(conv(channels, out, stride=stride), nn.ReLU(), conv(out, out)),
                    nn.Identity() if stride == 1 else conv(channels, out, 1, stride),
                )
                for channels, out, stride in ((8, 8, 1), (8, 16, 2), (16, 32, 2))
            )
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)))


def trained(name: str, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """LeNet, VggLike or ResNet8 after an epoch on images (N, 1, 28, 28) with classes (N,); in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = {"LeNet": LeNet, "VggLike": VggLike, "ResNet8": ResNet8}[name]()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net.eval()


def lava_network(rng: np.random.Generator) -> tuple[nn.Module, Shape]:
    """A network drawn from ``rng`` in eval mode, and its input shape. Equal seeds give equal networks."""
    return drawn(rng, _layers)


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
