"""check-bias: what each policy says and does; numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.build import Net, Numpy, apply, codes, rng, same
from strategies import graphs, inputs

from snncc.engine import TorchEngine
from snncc.ir import Graph, Severity, Stage, ops
from snncc.ir.interp import simulate
from snncc.passes.base import Context, Engine
from snncc.passes.check_bias import PER_LAYER, POLICIES, CheckBias
from snncc.passes.lower_pooling import LowerPooling


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


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "fold"])
def test_without_biases_nothing_is_said(policy: str) -> None:
    n = Net(4, stage=Stage.FOLDED)
    n.linear(np.eye(4))
    n(ops.Relu())
    graph = n.graph()
    after, context = run(policy, graph, sample=[(np.ones((1, 4)),)], engine=Numpy())
    assert after is graph
    assert not context.diagnostics


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_has_its_stage(policy: str) -> None:
    stage = Stage.SNN if policy == "fold" else Stage.FOLDED
    assert CheckBias(policy).requires == (stage,)
    n = Net(4, stage=Stage.FOLDED if stage is Stage.SNN else Stage.SNN)
    n.linear(np.eye(4))
    with pytest.raises(ValueError, match=f"takes stage {stage.value}"):
        CheckBias(policy)(n.graph())


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


# --- fold ------------------------------------------------------------------------------------------------------------

T = 10


def fold(n: Net, *out: str) -> tuple[Graph, dict[str, str]]:
    """The result, and the code for each layer."""
    after, context = run("fold", n.graph(*out), timesteps=T)
    severity = {"SNN022": Severity.NOTE, "SNN020": Severity.WARNING}
    assert all(d.severity is severity[d.code] for d in context.diagnostics)
    return after, {d.loc.sources[0].module: d.code for d in context.diagnostics}


def test_a_bias_becomes_the_neurons_initial_potential() -> None:
    n, expected = Net(2, 3, 3, stage=Stage.SNN), Net(2, 3, 3, stage=Stage.SNN)
    w = rng().standard_normal((2, 2, 1, 1))
    n.conv(w, [0.25, -1.0], name="conv")
    n(ops.If(1.0, 0.5), name="if")
    expected.conv(w)
    expected(ops.If(1.0, expected.store.put("v0", np.array([0.5 + 2.5, 0.5 - 10.0]))))
    after, said = fold(n)
    same(after, expected.graph())
    assert said == {"conv": "SNN022"}


def test_a_bias_folds_into_starts_per_channel() -> None:
    n = Net(2, 3, 3, stage=Stage.SNN)
    n.affine([1.0, 2.0], [0.25, -1.0])
    n(ops.If(1.0, n.store.put("v0", np.array([0.5, 0.25]))), name="if")
    after, _ = fold(n)
    np.testing.assert_array_equal(after.value(after["if"].op.v0), [3.0, -9.75])  # type: ignore[attr-defined]


def test_the_biases_of_a_sum_add_up() -> None:
    n = Net(2, 3, 3, stage=Stage.SNN)
    w = rng().standard_normal((2, 2, 1, 1))
    n.conv(w, [0.25, -1.0], name="a")
    n.conv(w, [1.0, 1.0], "x.encode", name="b")
    n.conv(w, None, "x.encode", name="c")
    n(ops.Add(), "a", "b", name="ab")
    n(ops.Add(), "ab", "c", name="abc")
    n(ops.If(1.0), name="if")
    after, said = fold(n)
    np.testing.assert_array_equal(after.value(after["if"].op.v0), [12.5, 0.0])  # type: ignore[attr-defined]
    assert said == {"a": "SNN022", "b": "SNN022"}
    assert all(after[name].op.bias is None for name in "abc")  # type: ignore[attr-defined]


def test_a_value_added_to_itself_folds_twice() -> None:
    n = Net(2, 3, 3, stage=Stage.SNN)
    n.conv(rng().standard_normal((2, 2, 1, 1)), [0.25, -1.0], name="a")
    n(ops.Add(), "a", "a")
    n(ops.If(1.0), name="if")
    after, said = fold(n)
    np.testing.assert_array_equal(after.value(after["if"].op.v0), [5.0, -20.0])  # type: ignore[attr-defined]
    assert said == {"a": "SNN022"}


def read_elsewhere(n: Net) -> tuple[str, ...]:
    n.conv(rng().standard_normal((2, 2, 1, 1)), [0.25, -1.0], name="a")
    n(ops.If(1.0), "a", name="if")
    n(ops.If(2.0), "a", name="other")
    return "if", "other"


def output_too(n: Net) -> tuple[str, ...]:
    n.conv(rng().standard_normal((2, 2, 1, 1)), [0.25, -1.0], name="a")
    n(ops.If(1.0), "a", name="if")
    return "if", "a"


def sum_read_elsewhere(n: Net) -> tuple[str, ...]:
    n.conv(rng().standard_normal((2, 2, 1, 1)), [0.25, -1.0], name="a")
    n.conv(rng(1).standard_normal((2, 2, 1, 1)), None, "x.encode", name="b")
    n(ops.Add(), "a", "b", name="sum")
    n(ops.If(1.0), "sum", name="if")
    n(ops.If(2.0), "sum", name="other")
    return "if", "other"


def sum_is_output(n: Net) -> tuple[str, ...]:
    sum_read_elsewhere(n)
    return "if", "sum"


def no_neuron(n: Net) -> tuple[str, ...]:
    n.conv(rng().standard_normal((2, 2, 1, 1)), [0.25, -1.0], name="a")
    return ("a",)


def pooled(n: Net) -> tuple[str, ...]:
    n.conv(rng().standard_normal((2, 2, 1, 1)), [0.25, -1.0], name="a")
    n(ops.AvgPool((2, 2), (1, 1)), name="pool")
    n(ops.If(1.0), name="if")
    return ("if",)


@pytest.mark.parametrize("build", [read_elsewhere, output_too, sum_read_elsewhere, sum_is_output, no_neuron, pooled])
def test_biases_that_something_else_reads_stay(build: object) -> None:
    n = Net(2, 3, 3, stage=Stage.SNN)
    out = build(n)  # type: ignore[operator]
    graph = n.graph(*out)
    after, said = fold(n, *out)
    same(after, graph.live())
    assert said == {"a": "SNN020"}
    x = rng(5).uniform(0, 1, (2, 2, 3, 3))
    a, b = simulate(graph, x, timesteps=T), simulate(after, x, timesteps=T)
    for name in out:
        np.testing.assert_array_equal(a.values[name], b.values[name])


def test_a_linear_layer_on_several_axes_keeps_its_bias() -> None:
    """Its biases belong to features, a neuron's initial potentials to channels."""
    for features in (3, 4):
        n = Net(4, 3, stage=Stage.SNN)
        n.linear(np.ones((features, 3)), np.arange(features), name="tokens")
        n(ops.If(1.0))
        after, said = fold(n)
        same(after, n.graph())
        assert said == {"tokens": "SNN020"}


def test_the_charge_over_all_steps_stays() -> None:
    """What folding promises: after T steps neurons got as much as before."""
    n = Net(3, stage=Stage.SNN)
    n.linear(rng().standard_normal((5, 3)), rng(1).standard_normal(5), name="fc")
    n(ops.If(0.8, 0.4), name="if")
    before = n.graph()
    after, _ = fold(n)
    x = rng(2).uniform(0, 1, (20, 3))
    a, b = simulate(before, x, timesteps=T), simulate(after, x, timesteps=T)
    charge = [t.final["if"] + t.values["if"].sum(axis=0) for t in (a, b)]
    np.testing.assert_allclose(charge[0], charge[1], atol=1e-5)


def test_folding_then_pooling() -> None:
    n = Net(2, 4, 4, stage=Stage.SNN)
    n.conv(rng().standard_normal((2, 2, 1, 1)), [0.25, -1.0])
    n(ops.If(1.0))
    n(ops.AvgPool((2, 2), (2, 2)))
    after, _ = fold(n)
    assert [x.op.mnemonic for x in LowerPooling()(after).nodes][-2:] == ["if", "sum_pool"]


@settings(max_examples=100, deadline=None)
@given(graph=graphs(Stage.SNN, 12), seed=st.integers(0, 99))
def test_any_graph_keeps_what_is_not_a_neuron_s(graph: Graph, seed: int) -> None:
    """Folding changes starts of neurons and nothing that reads no neuron."""
    after, _ = run("fold", graph, timesteps=4)
    xs = inputs(graph, 1, 4, seed)
    a, b = simulate(graph, *xs, timesteps=4), simulate(after, *xs, timesteps=4)
    spiked: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, ops.If) or any(arg in spiked for arg in node.args):
            spiked.add(node.name)
        elif node.name in graph.outputs and not isinstance(node.op, ops.Input):
            np.testing.assert_array_equal(a.values[node.name], b.values[node.name])
