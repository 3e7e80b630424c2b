"""SLAYER's blocks where there is no lava-dl: what is refused, and what blocks are fed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from passes.build import Net
from torch import nn

import snncc
from snncc.compiled import CompiledModel
from snncc.ir import CompileError, Graph, InputError, Stage, ops
from snncc.ir.loihi import Delta, Sigma, SigmaDelta
from snncc.ir.types import Array
from snncc.targets import Options
from snncc.targets.lava import blocks, encoded


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x) + x)


def compiled(*layers: nn.Module, **options: Any) -> tuple[CompiledModel, Array]:
    x = np.random.default_rng(0).random((4, 1, 6, 6)).astype(np.float32)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), *layers).eval()
    return snncc.compile(
        net, "lava", calibration=x, timesteps=5, **{"bias": "keep", "reset": "zero", "selfcheck": False} | options
    ), x


LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))


@pytest.mark.parametrize(
    ("layers", "options", "words", "hint"),
    [
        ([LINEAR], {"reset": "subtract"}, "no atr_lif neurons", "reset='zero'"),
        ([LINEAR], {"v0": 0.25}, "neurons start at 0", "processes"),
        ([Residual(), LINEAR], {}, "it is a sequence", "processes"),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], {}, "not through one layer", "processes"),
    ],
)
def test_what_blocks_cannot_hold(layers: list[nn.Module], options: dict[str, Any], words: str, hint: str) -> None:
    model, _ = compiled(*layers, **options)
    with pytest.raises(CompileError, match="SLAYER's blocks") as caught:
        blocks(model)
    assert {d.code for d in caught.value.diagnostics} == {"SNN067"}
    assert any(words in d.message and hint in d.hint for d in caught.value.diagnostics)


@dataclass
class ByHand:
    graph: Graph
    options: Options


def messages(encoding: str = "constant", threshold: int = 0, activation: str = "relu", bias: Any = 0) -> ByHand:
    net = Net(2, 3, 3, stage=Stage.INT, encoding=encoding, low=0.0, high=1.0)
    net(Delta(threshold))
    net(ops.Conv2d(net.param(np.ones((2, 2, 1, 1)), np.int8)))
    net(SigmaDelta(net.param(np.broadcast_to(bias, (2, 3, 3)), np.int32), shift=2, activation=activation))
    net(ops.Conv2d(net.param(np.ones((2, 2, 3, 3)), np.int8)))
    net(Sigma())
    return ByHand(net.graph(), Options())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoding": "rate"}, "its input is constant"),
        ({"threshold": 3}, "send every change"),
        ({"activation": "none"}, "rounds negative messages otherwise"),
        ({"bias": np.arange(9).reshape(3, 3)}, "one bias per channel"),
    ],
)
def test_what_blocks_cannot_hold_of_messages(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CompileError) as caught:
        blocks(messages(**options))
    (found,) = caught.value.diagnostics
    assert (found.code, words in found.message) == ("SNN067", True)


def test_messages_through_branches() -> None:
    net = Net(2, 3, 3, stage=Stage.INT, low=0.0, high=1.0)
    delta = net(Delta())
    conv = net(ops.Conv2d(net.param(np.ones((2, 2, 1, 1)), np.int8)))
    net(ops.Add(), net(SigmaDelta(), conv), delta)
    net(Sigma())
    with pytest.raises(CompileError, match="it is a sequence"):
        blocks(ByHand(net.graph(), Options()))


def test_without_lava_dl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lava", None)
    for model in (compiled(LINEAR)[0], messages()):
        with pytest.raises(InputError, match="need lava-dl") as caught:
            blocks(model)
        assert [d.code for d in caught.value.diagnostics] == ["SNN080"]
        assert "python -m snncc.sdk build lava" in caught.value.diagnostics[0].hint


@pytest.mark.parametrize("encoding", ["constant", "rate", "spikes"])
def test_the_blocks_are_fed_what_the_simulation_is(encoding: str) -> None:
    model, x = compiled(LINEAR, encoding=encoding)
    if encoding == "spikes":
        x = np.random.default_rng(0).integers(0, 3, (5, 4, 1, 6, 6))
    done = model.simulate(x, 5, record="all")
    wanted = (done.spikes | done.values)["input.encode"]
    assert np.array_equal(encoded(model, x, 5).numpy(), np.moveaxis(wanted, 0, -1))
    assert encoded(model, x[:5]).shape[-1] == 5
    with pytest.raises(InputError, match="must have shape"):
        encoded(model, x[..., 1:])
