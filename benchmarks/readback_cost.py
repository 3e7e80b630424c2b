"""What it costs in a compile to read back what is written and hold it against the last stage.

    python benchmarks/readback_cost.py

T = 32, 64 calibration samples, one thread.
"""

from __future__ import annotations

import time
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import snncc
from snncc import api
from snncc.readback import require


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        way = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.way = nn.Identity() if inputs == outputs else way

    def forward(self, x: Tensor) -> Tensor:
        """The block's activations."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.way(x))


def digits() -> nn.Module:
    """The network of the README, for 8 x 8 pixels."""
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))


def lenet() -> nn.Module:
    """For 28 x 28 pixels."""
    first = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)]
    last = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*first, nn.Flatten(), *last)


def resnet18(width: int = 64) -> nn.Module:
    """ResNet-18 for 32 x 32 pixels, of some width."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    for inputs, outputs in pairwise(widths):
        layers += [Block(inputs, outputs, 1 if inputs == outputs else 2), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * width, 10))


NETWORKS: dict[str, tuple[Any, tuple[int, int, int], tuple[str, ...]]] = {
    "digits": (digits, (1, 8, 8), ("reference", "speck2f", "lava", "lynxi")),
    "LeNet": (lenet, (1, 28, 28), ("reference", "speck2f", "lava", "lynxi")),
    "ResNet-18, a quarter as wide": (lambda: resnet18(16), (3, 32, 32), ("reference", "lava", "lynxi")),
    "ResNet-18": (resnet18, (3, 32, 32), ("reference", "lynxi")),
}


def main() -> None:
    """Prints a table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    spent = 0.0

    def timed(*arguments: Any) -> None:
        nonlocal spent
        begin = time.perf_counter()
        require(*arguments)
        spent = time.perf_counter() - begin

    api.require = timed
    print("| network | target | compile | of it, reading back |\n|---|---|---|---|")
    for warm in (True, False):  # torch's and onnx's own imports are nobody's cost
        for name, (make, shape, targets) in NETWORKS.items():
            torch.manual_seed(0)
            model, x = make().eval(), np.random.default_rng(0).random((64, *shape)).astype(np.float32)
            for target in targets:
                if warm and name != "digits":
                    continue
                options: dict[str, Any] = {"oversize": True} if target == "lynxi" else {}
                begin = time.perf_counter()
                snncc.compile(model, target, calibration=x, timesteps=32, **options)
                seconds = time.perf_counter() - begin
                if not warm:
                    print(f"| {name} | `{target}` | {seconds:.2f} s | {spent:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
