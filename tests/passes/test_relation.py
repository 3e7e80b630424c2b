"""The semantic test: every pass keeps the relation to its input that it states, over the zoo and generated networks,
through the reference interpreter."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lynxinets import spiking_network
from passes.build import Net
from torch import nn
from zoo import ZOO, build, example_input, random_model

from snncc.engine import TorchEngine
from snncc.frontend import trace
from snncc.ir import Graph, Node, Stage, ops
from snncc.ir.diagnostics import errors
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.calibrate import Calibrate
from snncc.passes.calibrate_reset import CalibrateReset
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.check_bias import CheckBias
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.fuse_linear import FuseLinear
from snncc.passes.lower_activations import LowerActivations, SpikingOutput
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.lower_sigma_delta import LowerSigmaDelta
from snncc.passes.quantize import Quantize, QuantizeWeights
from snncc.passes.quantize_sigma_delta import QuantizeSigmaDelta
from snncc.passes.relation import compare
from snncc.passes.rewrite import Builder, rebuild
from snncc.targets.base import Options
from snncc.targets.lynxi.target import Lynxi


@dataclass(frozen=True)
class OnlyRelu(Pass):
    """What sigma-delta neurons have: any activation as ReLU, maxima as averages."""

    name: ClassVar[str] = "only-relu"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.ANN,)
    relation: ClassVar[Relation] = Relation.LOSSY

    def run(self, graph: Graph, context: Context) -> Graph:
        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            op = node.op
            if isinstance(op, ops.MaxPool):
                return builder.copy(node, args, ops.AvgPool(op.kernel, op.stride, op.padding, op.ceil_mode))
            return builder.copy(node, args, ops.Relu()) if isinstance(op, ops.Clamp) else None

        return rebuild(graph, visit)


@dataclass(frozen=True)
class Unbounded(LowerActivations):
    """What lower-activations is on networks of spiking neurons."""

    name: ClassVar[str] = "unbounded"
    relation: ClassVar[Relation] = Relation.LOSSY  # type: ignore[misc]


T = 8
HEAD: list[Pass] = [Canonicalize(), FoldBatchNorm()]
PIPELINES: dict[str, list[Pass]] = {
    "default": [*HEAD, CheckBias("warn"), Calibrate(), LowerActivations(), LowerPooling(), Quantize()],
    "rate, per layer": [
        *HEAD,
        Calibrate("percentile", per="layer"),
        LowerActivations("rate"),
        LowerPooling(),
        Quantize(weight_bits=4, threshold_bits=12),
    ],
    "chip-like": [
        *HEAD,
        SpikingOutput(),
        CheckBias("strip"),
        Calibrate("max"),
        LowerActivations("rate", v_min=-4.0),
        LowerPooling(),
        Quantize(v_min=-(2**15)),
    ],
    "one kernel": [
        *HEAD,
        SpikingOutput(),
        CheckBias("keep"),
        FuseLinear((1, 2, 4)),
        Calibrate("max"),
        LowerActivations("rate"),
        LowerPooling(),
        Quantize(potentials=(-(2**15), 2**15 - 1)),
    ],
    "zero reset": [
        *HEAD,
        Calibrate(),
        LowerActivations(reset="zero"),
        LowerPooling(),
        CalibrateReset(),
        Quantize(weight_bits=16),
    ],
    "sigma-delta": [
        OnlyRelu(),
        Canonicalize(),
        FoldBatchNorm(ones=False),
        CheckBias("keep"),
        Calibrate("max"),
        LowerSigmaDelta(),
        LowerPooling(),
        QuantizeSigmaDelta(),
    ],
    "fp16": Lynxi().passes(Options(timesteps=T)),
    "k-bit": [*HEAD, QuantizeWeights("k-bit", 4), QuantizeWeights("affine", 6), QuantizeWeights("step", step=0.05)],
}


def hold(model: nn.Module, x: torch.Tensor, passes: list[Pass]) -> list[str]:
    """Run ``passes`` one by one and hold each to its word. The codes of what one refuses: there it ends."""
    graph, found = trace(model, (x,))
    assert graph is not None and not errors(found), found
    xs = (x.numpy().astype(np.float64),)
    context = Context(calibration=[xs], sample=[xs], engine=TorchEngine(), timesteps=T)
    for p in passes:
        context.calibration = [xs]
        after = p(graph, context)
        if refused := errors(context.diagnostics):
            return [d.code for d in refused]
        if p.relation is not Relation.LOSSY:
            check(p, graph, after, xs)
        graph = after
    return []


def check(p: Pass, before: Graph, after: Graph, xs: tuple[Array, ...]) -> None:
    for difference in compare(before, after, p.relation, *xs, timesteps=T):
        assert difference.holds, f"{p}: {difference}"
        assert np.isfinite(difference.bound).all()


@lru_cache
def network(name: str) -> nn.Module:
    return build(name)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", ZOO)
def test_every_pass_keeps_its_word(name: str, pipeline: str) -> None:
    x = example_input(ZOO[name].input_shape, batch=1)
    if "rate" in pipeline or "chip" in pipeline:
        x = x.clamp(min=0)
    assert hold(network(name), x, PIPELINES[pipeline]) == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pipeline=st.sampled_from(sorted(PIPELINES)))
def test_every_pass_keeps_its_word_on_generated_networks(seed: int, pipeline: str) -> None:
    model, shape = random_model(np.random.default_rng(seed))
    assert hold(model, example_input(shape, batch=2, seed=seed % 1000), PIPELINES[pipeline]) == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_every_pass_keeps_its_word_on_networks_of_spiking_neurons(seed: int) -> None:
    """But for lowering, which leaves the neurons as they are: of their leaks no bound is claimed."""
    model, shape = spiking_network(np.random.default_rng(seed))
    passes = [Unbounded() if isinstance(p, LowerActivations) else p for p in PIPELINES["fp16"]]
    assert hold(model, example_input(shape, batch=2, seed=seed % 1000), passes) == []


def test_a_wrong_pass_is_caught() -> None:
    """The test can fail: a weight that is off by a little more than rounding breaks every relation."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
    x = torch.rand(2, 1, 8, 8)
    graph, _ = trace(model, (x,))
    other = deepcopy(model)
    with torch.no_grad():
        other[0].weight += 0.01
    wrong, _ = trace(other, (x,))
    assert graph is not None and wrong is not None
    (difference,) = compare(graph, wrong, Relation.EXACT, x.numpy())
    assert not difference.holds


def test_a_gain_scales_what_a_neuron_may_be_off_by() -> None:
    """Three steps of 0.7 reach the threshold 1 twice, not 2.1 times; each spike stands for 2."""
    n = Net(1, stage=Stage.SNN)
    n.linear([[1.0]], name="fc")
    n(ops.If(1.0, 0.0, gain=2.0))
    graph, x = n.graph(), np.array([[0.7]])
    (difference,) = compare(graph, graph, Relation.RATE, x, timesteps=3)
    assert difference.holds
    np.testing.assert_allclose(difference.error, 2 * 0.1 / 3)
    np.testing.assert_allclose(difference.bound, 2 * 0.1 / 3, atol=3e-4)
