"""Spiking neurons that a model brings itself: what the front end makes of them fires as they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lynxinets import IFNode, LIFNode, reset, spiking_network
from torch import Tensor, nn
from zoo import example_input

import snncc
from snncc.engine import TorchEngine
from snncc.frontend import trace
from snncc.ir import Graph, Stage, interp, ops
from snncc.ir.diagnostics import errors
from snncc.passes.base import Context
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.lower_activations import LowerActivations
from snncc.passes.lower_pooling import LowerPooling


class ParametricLIFNode(LIFNode):
    """A trained leak: tau = 1 / sigmoid(w)."""

    def __init__(self, w: float, **others: Any) -> None:
        super().__init__(**others)
        del self.tau
        self.w = nn.Parameter(torch.tensor(w))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        away, decay = v - (self.v_reset or 0.0), self.w.sigmoid()
        return v + (x - away) * decay if self.decay_input else v - away * decay + x


def evaluate(graph: Graph, xs: list[Any]) -> list[Any]:
    values = TorchEngine().run(graph, *xs)
    return [values[name] for name in graph.outputs]


def spiking(model: nn.Module, x: Tensor) -> Graph:
    """The float spiking stage."""
    graph, found = trace(model, x, evaluate=evaluate)
    assert graph is not None, [d.message for d in found]
    assert not found
    context = Context()
    for p in (Canonicalize(), FoldBatchNorm(), LowerActivations(), LowerPooling()):
        graph = p(graph, context)
    assert not errors(context.diagnostics)
    return graph


def steps(model: nn.Module, x: Tensor, timesteps: int) -> np.ndarray[Any, Any]:
    reset(model)
    with torch.no_grad():
        found = np.stack([model(x).numpy() for _ in range(timesteps)])
    reset(model)
    return found


def neuron(kind: str, v_reset: float | None, decay_input: bool) -> nn.Module:
    common: dict[str, Any] = {"v_threshold": 1.0, "v_reset": v_reset}
    if kind == "IFNode":
        return IFNode(**common)
    if kind == "LIFNode":
        return LIFNode(tau=4.0, decay_input=decay_input, **common)
    return ParametricLIFNode(0.0, decay_input=decay_input, **common)  # tau = 2


@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, 0.25, -0.5])
@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_fires_as_the_model_does(kind: str, v_reset: float | None, decay_input: bool) -> None:
    """On a binary grid, where nothing is rounded: at thresholds, too."""
    rng = np.random.default_rng(0)
    body = nn.Conv2d(2, 3, 3, bias=True)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.copy_(torch.from_numpy(rng.integers(-8, 9, parameter.shape) / 16))
    model = nn.Sequential(body, neuron(kind, v_reset, decay_input), nn.Flatten()).eval()
    x = torch.from_numpy((rng.integers(-16, 17, (3, 2, 6, 6)) / 8).astype(np.float32))
    wanted = steps(model, x, 7)
    assert 0 < wanted.mean() < 1
    found = interp.simulate(spiking(model, x), x.numpy(), timesteps=7)
    np.testing.assert_array_equal(found.values[found.graph.outputs[0]], wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_generated_networks(seed: int) -> None:
    model, shape = spiking_network(np.random.default_rng(seed))
    x = torch.from_numpy(example_input(shape, 3, seed % 1000).numpy() * 2)
    graph = spiking(model, x)
    found = TorchEngine().simulate(graph, x.numpy(), timesteps=5).output
    np.testing.assert_allclose(found, steps(model, x, 5).mean(axis=0), rtol=1e-3, atol=1e-3)


def test_the_expected_operations() -> None:
    model = nn.Sequential(
        nn.Linear(4, 3), IFNode(v_threshold=0.75, v_reset=None), nn.Linear(3, 3),
        LIFNode(tau=4.0, v_threshold=1.0, v_reset=0.5), nn.Linear(3, 2),
        LIFNode(tau=4.0, decay_input=False, v_threshold=torch.tensor([1.0, 2.0])),
    ).eval()  # fmt: skip
    graph, found = trace(model, torch.zeros(2, 4))
    assert graph is not None
    assert not found
    assert graph.stage is Stage.ANN
    first, second, third = (node.op for node in graph.nodes if isinstance(node.op, ops.Lif))
    assert first == ops.Lif(0.75, 1.0, "subtract")
    assert second == ops.Lif(2.0, 0.75, "zero")  # half a unit above its rest, times tau
    assert isinstance(third, ops.Lif)
    assert (third.decay, third.reset) == (0.75, "zero")
    assert not isinstance(third.threshold, float | int)
    assert graph.value(third.threshold).tolist() == [1.0, 2.0]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 3), IFNode()).eval()
    model(torch.ones(2, 4))
    state, hooks = model[1].v, dict(model[1]._forward_hooks)
    trace(model, torch.zeros(2, 4), evaluate=evaluate)
    assert model[1].v is state
    assert dict(model[1]._forward_hooks) == hooks


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neuron = nn.Linear(4, 4), IFNode()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.layer(self.neuron(self.layer(x))))


class QIFNode(IFNode):
    """Of a kind that nobody here knows."""


def many_steps() -> nn.Module:
    node = IFNode()
    node.step_mode = "m"
    return node


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4), many_steps()), "SNN007", "many time steps at once (step_mode='m')"),
        (nn.Sequential(nn.Linear(4, 4), QIFNode()), "SNN001", "QIFNode is not known"),
        (Twice(), "SNN007", "called more than once, and has but one state"),
        (
            nn.Sequential(nn.Linear(4, 4), IFNode(0.5, 0.5)),
            "SNN007",
            "threshold does not lie above its reset potential",
        ),
        (nn.Sequential(nn.Linear(4, 4), LIFNode(tau=0.5)), "SNN007", "tau is 0.5, which is not at least 1"),
    ],
)
def test_refusals(model: nn.Module, code: str, words: str) -> None:
    graph, found = trace(model.eval(), torch.zeros(2, 4))
    assert graph is None
    assert [d.code for d in found] == [code]
    assert words in found[0].message
    assert found[0].loc.sources


def test_targets_that_do_not_take_them_say_so() -> None:
    x = np.random.default_rng(0).random((8, 4), dtype=np.float32)
    own = nn.Sequential(nn.Linear(4, 4), IFNode(), nn.Linear(4, 2))
    for target in ("reference", "lava", "speck2f"):
        found = snncc.check(own, target, calibration=x)
        (error,) = [d for d in found if d.code == "SNN035"]
        assert f"a spiking neuron of the network itself, which {target} does not take" in error.message
        assert found == [error]
        with pytest.raises(snncc.CompileError, match="SNN035"):
            snncc.compile(own, target, calibration=x)
    for options, word in (
        ({"reset": "zero"}, "reset='zero' means nothing"),
        ({"v0": 0.5}, "v0=0.5"),
        ({"bias": "fold"}, "fold"),
    ):
        with pytest.raises(snncc.InputError, match=word):
            snncc.compile(own, "lynxi", calibration=x, **options)
    mixed = nn.Sequential(nn.Linear(4, 4), IFNode(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    (error,) = [d for d in snncc.check(mixed, "lynxi", calibration=x) if d.code == "SNN035"]
    assert "is an activation (relu) in a network that has spiking neurons itself" in error.message
