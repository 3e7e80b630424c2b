"""calibrate-reset: gains by hand, on a residual network, and what it is worth."""

from __future__ import annotations

import numpy as np
import pytest
from passes.build import Net
from zoo import ZOO, build, example_input

import snncc
from snncc.engine import TorchEngine
from snncc.ir import Param, Stage, ops, verify
from snncc.ir.types import Array, per_channel
from snncc.passes.base import Context
from snncc.passes.calibrate_reset import CalibrateReset


def context(x: Array, timesteps: int) -> Context:
    return Context(sample=[(x,)], engine=TorchEngine(), timesteps=timesteps)


def neuron(reset: str) -> Net:
    net = Net(2, 1, 1, stage=Stage.SNN)
    net(ops.Affine(net.param([1.0, 1.0])), "x.encode", name="layer")
    net(ops.If(1.0, 0.0, reset), name="neuron")
    return net


def test_the_gain_makes_up_for_what_a_reset_forgets() -> None:
    """A constant 0.4 reaches the threshold 1 in 3 steps, so 4 spikes in 12; each must stand for 1.2 to give 0.4. A
    constant 0.5 loses nothing."""
    x = np.array([[0.4, 0.5]]).reshape(1, 2, 1, 1)
    before = neuron("zero").graph()
    after = CalibrateReset()(before, context(x, 12))
    verify(after)
    op = after["neuron"].op
    assert isinstance(op, ops.If) and isinstance(op.gain, Param) and op.threshold == 1.0
    np.testing.assert_allclose(after.value(op.gain), [1.2, 1.0], rtol=1e-6)
    done = TorchEngine().simulate(after, x, timesteps=12)
    np.testing.assert_allclose(done.output, x, rtol=1e-6)


def test_silent_channels_and_neurons_that_subtract_stay() -> None:
    x = np.array([[-1.0, 0.5]]).reshape(1, 2, 1, 1)
    op = CalibrateReset()(neuron("zero").graph(), context(x, 12))["neuron"].op
    assert isinstance(op, ops.If) and isinstance(op.gain, Param)
    graph = neuron("subtract").graph()
    assert CalibrateReset()(graph, context(x, 12)) == graph
    graph = neuron("zero").graph()
    assert CalibrateReset()(graph, Context()) == graph


def test_ready_made_spikes_are_not_measured() -> None:
    net = Net(2, 1, 1, stage=Stage.SNN, encoding="spikes")
    net(ops.Affine(net.param([1.0, 1.0])), "x.encode", name="layer")
    net(ops.If(1.0, 0.0, "zero"), name="neuron")
    found = context(np.ones((1, 2, 1, 1)), 4)
    assert CalibrateReset()(net.graph(), found) == net.graph()
    assert [(d.code, d.severity.value) for d in found.diagnostics] == [("SNN011", "note")]


@pytest.mark.parametrize("name", ["resnet_a", "inception", "mobilenet"])
def test_the_integers_keep_it_and_the_error_shrinks(name: str) -> None:
    """Through quantization, on graphs with shortcuts, branches and pooling: the mean output of every layer is nearer to
    the network's activation than without."""
    x = np.asarray(example_input(ZOO[name].input_shape, 16, seed=1))
    model = snncc.compile(build(name), "lava", calibration=x, timesteps=8, reset="zero", bias="keep")
    labels = [r.label for r in model.records]
    at = next(i for i, label in enumerate(labels) if label.startswith("calibrate-reset"))
    before, after = model.records[at - 1].graph, model.records[at].graph
    engine = TorchEngine()
    wanted = engine.run(before, x)[before.outputs[0]]
    errors = [float(((engine.simulate(graph, x, timesteps=8).output - wanted) ** 2).sum()) for graph in (before, after)]
    assert errors[1] < errors[0]
    for node in after.nodes:
        if isinstance(node.op, ops.If):  # what a spike stands for, with the threshold perhaps rounded to the grid
            store, rank = model.graph.store, len(node.type.shape)
            units = (per_channel(graph[node.name].type.unit, store, rank) for graph in (model.graph, after))
            np.testing.assert_allclose(*units, rtol=1e-6)
