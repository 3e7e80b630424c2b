"""check-bias: what each policy says and does; numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from passes.build import Net, Numpy, apply, codes, rng

from snncc.engine import TorchEngine
from snncc.ir import Graph, Severity, Stage, ops
from snncc.passes.base import Context, Engine
from snncc.passes.check_bias import PER_LAYER, POLICIES, CheckBias


def net() -> Net:
    """A convolution with 2 of 3 biases, on 4 x 4 outputs; a linear layer without; one with 1 of 2."""
    n = Net(1, 6, 6, stage=Stage.FOLDED)
    n.conv(rng().standard_normal((3, 1, 3, 3)), [0.5, 0.0, -1.0], name="conv")
    n(ops.Relu(), name="relu")
    n(ops.Flatten(), name="flat")
    n.linear(rng(1).standard_normal((4, 48)), name="hidden")
    n(ops.Relu(), name="relu2")
    n.linear(rng(2).standard_normal((2, 4)), [0.0, 2.0], name="out")
    return n


CONV = "`conv` has 2 of 3 biases that are not zero: 32 additions per time step"  # 2 channels of 4 x 4
OUT = "`out` has 1 of 2 biases that are not zero: 1 additions per time step"


def run(policy: str, graph: Graph, **options: object) -> tuple[Graph, Context]:
    context = Context(**options)  # type: ignore[arg-type]
    return apply(CheckBias(policy), graph, context), context


@pytest.mark.parametrize(
    ("policy", "severity", "code"),
    [
        ("error", Severity.ERROR, "SNN020"),
        ("warn", Severity.WARNING, "SNN020"),
        ("strip", Severity.WARNING, "SNN021"),
    ],
)
def test_every_layer_with_a_bias_is_named(policy: str, severity: Severity, code: str) -> None:
    n = net()
    after, context = run(policy, n.graph())
    assert codes(context) == [code, code]
    end = ". They are removed" if policy == "strip" else ""
    assert [d.message for d in context.diagnostics] == [CONV + end, OUT + end]
    assert [d.loc.sources[0].module for d in context.diagnostics] == ["conv", "out"]
    assert all(d.severity is severity for d in context.diagnostics)
    if policy == "strip":
        for name in ("conv", "out"):
            assert after[name].op.bias is None  # type: ignore[attr-defined]
            assert after[name].op.weight == n.nodes[name].op.weight  # type: ignore[attr-defined]
        for name in ("x", "relu", "flat", "hidden", "relu2"):
            assert after[name] is n.nodes[name]
    else:
        assert all(d.hint for d in context.diagnostics)
        assert after == n.graph()


def test_keep_is_silent() -> None:
    after, context = run("keep", net().graph(), sample=[(np.ones((1, 1, 6, 6)),)], engine=Numpy())
    assert not context.diagnostics
    assert after == net().graph()


@pytest.mark.parametrize("policy", POLICIES)
def test_without_biases_nothing_is_said(policy: str) -> None:
    n = Net(4, stage=Stage.FOLDED)
    n.linear(np.eye(4))
    n(ops.Relu())
    graph = n.graph()
    after, context = run(policy, graph, sample=[(np.ones((1, 4)),)], engine=Numpy())
    assert after is graph
    assert not context.diagnostics


@pytest.mark.parametrize("engine", [Numpy(), TorchEngine()])
@pytest.mark.parametrize("policy", ["error", "warn", "strip"])
def test_what_biases_decide_on_the_data(policy: str, engine: Engine) -> None:
    """Y = relu(x + [1, 0]) + [0, 1]. By hand, the classes of the four samples are 0, 1, 1, 0; without the first bias
    0, 1, 1, 1; without the second 0, 1, 0, 0; without both 0, 1, 1, 0."""
    n = Net(2, stage=Stage.FOLDED)
    n.linear(np.eye(2), [1.0, 0.0], name="one")
    n(ops.Relu())
    n.linear(np.eye(2), [0.0, 1.0], name="two")
    x = np.array([[2.0, 0.0], [0.0, 1.5], [0.0, 0.5], [0.2, 0.0]])
    _, context = run(policy, n.graph(), sample=[(x[:3],), (x[3:],)], engine=engine)
    words = "without them 75.0 % of the calibration samples keep their class"
    assert [words in d.message for d in context.diagnostics] == [True, True, False]
    last = context.diagnostics[-1]
    assert last.message == "without any bias, 100.0 % of 4 calibration samples keep their class"
    assert last.severity is Severity.NOTE


def test_with_many_layers_only_the_whole_is_measured() -> None:
    n = Net(2, stage=Stage.FOLDED)
    for _ in range(PER_LAYER + 1):
        n.linear(np.eye(2), [0.0, 1.0])
    runs = 0

    class Counting(Numpy):
        def values(self, *args: object) -> None:
            nonlocal runs
            runs += 1
            super().values(*args)  # type: ignore[arg-type]

    _, context = run("warn", n.graph(), sample=[(np.array([[3.0, 0.0], [99.0, 0.0]]),)], engine=Counting())
    assert runs == 2
    assert codes(context) == ["SNN020"] * (PER_LAYER + 2)
    assert context.diagnostics[-1].message.startswith("without any bias, 50.0 % of 2")


def test_additions_of_layers_on_several_axes() -> None:
    n = Net(5, 3, stage=Stage.FOLDED)
    n.linear(np.ones((4, 3)), [1.0, 0.0, 2.0, 0.0], name="tokens")
    n.affine(np.ones(5), [1.0, 0.0, 0.0, 0.0, 1.0], name="map")
    _, context = run("warn", n.graph())
    assert "2 of 4 biases that are not zero: 10 additions" in context.diagnostics[0].message  # 5 tokens
    assert "2 of 5 biases that are not zero: 8 additions" in context.diagnostics[1].message  # 4 features
