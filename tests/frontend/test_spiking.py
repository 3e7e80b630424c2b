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


class InPlace(IFNode):
    """Its state is one tensor that it changes."""

    def forward(self, x: Tensor) -> Tensor:
        self.v = torch.zeros_like(x) if self.v is None else self.v
        self.v += x
        return (self.v >= self.v_threshold).to(x.dtype)


InPlace.__name__ = "IFNode"


@pytest.mark.parametrize("kind", [IFNode, InPlace])
@pytest.mark.parametrize("samples", [2, 5])
def test_the_model_is_left_as_it_was(samples: int, kind: type[IFNode]) -> None:
    """Its state, too, that may be left from a batch of any size."""
    model = nn.Sequential(nn.Linear(4, 3), kind()).eval()
    with torch.no_grad():
        model(torch.ones(samples, 4))
    state, before = model[1].v, [dict(vars(m)) for m in model.modules()]
    values = state.clone()
    graph, found = trace(model, torch.ones(2, 4), evaluate=evaluate)
    assert graph is not None
    assert not found
    assert model[1].v is state
    assert torch.equal(state, values)
    assert [vars(m) for m in model.modules()] == before


def test_a_replaced_forward_comes_back() -> None:
    model = nn.Sequential(nn.Linear(4, 3), IFNode()).eval()
    mine = model[1].forward = lambda x: (x >= 1.0).to(x.dtype)
    graph, found = trace(model, torch.ones(2, 4), evaluate=evaluate)
    assert graph is not None
    assert not found
    assert model[1].forward is mine


def test_a_network_may_keep_the_threshold_of_its_neurons() -> None:
    model = nn.Sequential(nn.Linear(4, 3), IFNode(0.5)).eval()
    model.v_threshold = 0.5
    graph, found = trace(model, torch.ones(2, 4), evaluate=evaluate)
    assert graph is not None
    assert not found
    assert [node.op.mnemonic for node in graph.nodes] == ["input", "linear", "lif"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neuron = nn.Linear(4, 4), IFNode()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.layer(self.neuron(self.layer(x))))


class QIFNode(IFNode):
    """Of a kind that nobody here knows."""


class Handed(nn.Module):
    """A neuron that is handed its state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neuron = nn.Linear(4, 4), QIFNode()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.neuron(x, x)  # type: ignore[no-any-return]


def many_steps() -> nn.Module:
    node = IFNode()
    node.step_mode = "m"
    return node


def without(name: str) -> nn.Module:
    """As spikingjelly wrote its ``clock_driven`` neurons, whose inputs always decay."""
    node = LIFNode()
    delattr(node, name)
    return node


ONE_STEP, KNOWN = "functional.set_step_mode(model, 's')", "known are IFNode, LIFNode, ParametricLIFNode"


@pytest.mark.parametrize(
    ("model", "code", "words", "hint"),
    [
        (many_steps(), "SNN007", "many time steps at once (step_mode='m')", ONE_STEP),
        (QIFNode(), "SNN001", "QIFNode is not known", KNOWN),
        (Handed(), "SNN001", "QIFNode is not known", KNOWN),
        (Twice(), "SNN007", "called more than once, and has but one state", ONE_STEP),
        (IFNode(0.5, 0.5), "SNN007", "threshold does not lie above its reset potential", ""),
        (IFNode(float("nan")), "SNN007", "threshold does not lie above its reset potential", ""),
        (IFNode(torch.ones(3)), "SNN005", "one value per channel for (4,)", ""),
        (LIFNode(tau=0.5), "SNN007", "tau is 0.5, which is not above 1", ""),
        (LIFNode(tau=1.0), "SNN007", "tau is 1, which is not above 1", ""),
        (without("decay_input"), "SNN007", "has no `decay_input`", "inputs decay (True)"),
    ],
)
def test_refusals(model: nn.Module, code: str, words: str, hint: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), model) if isinstance(model, IFNode) else model
    graph, found = trace(model.eval(), torch.zeros(2, 4))
    assert graph is None
    assert [d.code for d in found] == [code]
    assert words in found[0].message
    assert hint in found[0].hint
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
    ):
        with pytest.raises(snncc.InputError, match=word):
            snncc.compile(own, "lynxi", calibration=x, **options)
    mixed = nn.Sequential(nn.Linear(4, 4), IFNode(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    (error,) = [d for d in snncc.check(mixed, "lynxi", calibration=x) if d.code == "SNN035"]
    assert "is an activation (relu) in a network that has spiking neurons itself" in error.message
