"""What a compile or a check of a whole network says: how much, and of what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import build, example_input

import snncc
from snncc.ir import CompileError, Severity
from snncc.ir.diagnostics import render_all


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        first = [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()] if expand > 1 else []
        self.conv = nn.Sequential(
            *first,
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def mobilenet_v2() -> nn.Module:
    torch.manual_seed(0)
    blocks, inputs = [], 32
    for expand, outputs, n, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                       (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
        for i in range(n):
            blocks.append(Inverted(inputs, outputs, stride if i == 0 else 1, expand))
            inputs = outputs
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(), *blocks,
        nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(1280, 1000),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("target", ["speck2f", "lava"])
def test_a_large_network_that_does_not_fit_is_told_in_a_page(target: str) -> None:
    found = snncc.check(mobilenet_v2(), target, example_input=torch.rand(1, 3, 64, 64))
    text = str(CompileError(found))
    assert len(found) > 10 and len(text) < 3000
    assert text.rpartition("\n\n")[2].startswith("error")


@pytest.mark.parametrize("target", ["reference", "lynxi", "speck2f"])
def test_a_clean_network_says_nothing(target: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False), nn.ReLU())
    with torch.no_grad():
        net[1].weight[:] = torch.eye(4).repeat_interleave(4, 1)
    x = torch.eye(4).repeat_interleave(4, 1).reshape(4, 1, 4, 4) * 0.9
    assert snncc.compile(net, target, calibration=x).diagnostics == ()


@pytest.mark.parametrize(
    ("target", "severity"),
    [("reference", Severity.NOTE), ("lava", Severity.NOTE), ("lynxi", Severity.NOTE), ("speck2b", Severity.WARNING)],
)
def test_a_bias_is_a_warning_where_it_costs_something(target: str, severity: Severity) -> None:
    found = snncc.check(build("chip_bias"), target, example_input=example_input((1, 28, 28), 2))
    assert {d.severity for d in found if d.code == "SNN020"} == {severity}
    assert len([text for text in render_all(found) if "SNN020" in text]) == 1
