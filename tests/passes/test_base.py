"""What every pass inherits, and the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from passes.build import Net, apply, rng

from snncc.ir import (
    CompileError,
    Diagnostic,
    Graph,
    InputError,
    Loc,
    Node,
    Severity,
    Source,
    Stage,
    VerifyError,
    ops,
)
from snncc.passes.base import Context, Pass, Relation, StageRecord, run_pipeline
from snncc.passes.calibrate import Calibrate
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.check_bias import CheckBias
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.fuse_linear import FuseLinear
from snncc.passes.lower_activations import LowerActivations, SpikingOutput
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.quantize import Quantize, QuantizeWeights
from snncc.passes.rewrite import Builder, rebuild

PASSES = [
    Canonicalize, FoldBatchNorm, CheckBias, FuseLinear, Calibrate, SpikingOutput, LowerActivations, LowerPooling,
    Quantize, QuantizeWeights,
]  # fmt: skip


def net() -> Graph:
    n = Net(2, 6, 6)
    n.conv(rng().standard_normal((3, 2, 3, 3)), [0.1, 0.2, 0.3], name="conv")
    n.norm([0, 0, 0], [1, 2, 3], name="norm")
    n(ops.Relu(), name="relu")
    n(ops.Flatten(), name="flat")
    n.linear(rng(1).standard_normal((2, 48)), name="fc")
    return n.graph()


@dataclass(frozen=True)
class Report(Pass):
    """Says what it is told and changes nothing."""

    code: str = "SNN020"
    severity: Severity = Severity.ERROR
    name: ClassVar[str] = "report"
    requires: ClassVar[tuple[Stage, ...]] = tuple(Stage)

    def run(self, graph: Graph, context: Context) -> Graph:
        context.report(Diagnostic(self.code, f"from {self.code}", graph.nodes[1].loc, self.severity))
        return graph


@dataclass(frozen=True)
class Breaks(Pass):
    name: ClassVar[str] = "breaks"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.ANN,)

    def run(self, graph: Graph, context: Context) -> Graph:
        return replace(graph, outputs=("nobody",))


@dataclass(frozen=True)
class Raises(Pass):
    loc: Loc = Loc()  # noqa: RUF009 (frozen)
    name: ClassVar[str] = "raises"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.ANN,)

    def run(self, graph: Graph, context: Context) -> Graph:
        raise InputError([Diagnostic("SNN064", "not this", self.loc)])


# --- one pass --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "-dash", "dash-", "two--dashes", "1st"])
def test_names_are_kebab_case(name: str) -> None:
    with pytest.raises(TypeError, match="kebab-case"):
        type("Bad", (Pass,), {"name": name})


def test_names_are_unique_and_told_by_the_class() -> None:
    names = [p.name for p in PASSES]
    assert len(set(names)) == len(names)
    assert all(p.__doc__ for p in PASSES)


def test_text_of_a_pass_has_the_options_that_are_not_the_default() -> None:
    assert str(Calibrate()) == "calibrate"
    assert str(Calibrate("max")) == "calibrate{method=max}"
    assert str(Quantize(weight_bits=4, v_min=-8)) == "quantize{weight_bits=4 v_min=-8}"
    assert str(CheckBias("strip")) == "check-bias{policy=strip}"
    assert str(FuseLinear((1, 2, 4))) == "fuse-linear{poolings=(1, 2, 4)}"


def test_options_are_checked_when_the_pass_is_made() -> None:
    with pytest.raises(ValueError, match="method"):
        Calibrate("median")
    with pytest.raises(ValueError, match="per channel or per layer"):
        Calibrate(per="neuron")
    for percentile in (0, -1, 100.5, float("nan")):
        with pytest.raises(ValueError, match="percentile"):
            Calibrate("percentile", percentile)
    with pytest.raises(ValueError, match="policy"):
        CheckBias("drop")
    for bits in (1, 33):
        with pytest.raises(ValueError, match="threshold_bits must be 2 to 32"):
            Quantize(threshold_bits=bits)


def test_every_pass_says_its_stages_and_its_relation() -> None:
    for cls in PASSES:
        p = cls()
        assert p.requires
        assert isinstance(p.relation, Relation)
    assert LowerActivations().relation is Relation.RATE
    assert LowerActivations(reset="zero").relation is Relation.LOSSY
    assert LowerActivations(v_min=-1.0).relation is Relation.LOSSY
    assert CheckBias("strip").relation is Relation.BOUNDED


def test_a_graph_of_another_stage_is_refused() -> None:
    graph = net()
    with pytest.raises(ValueError, match="pass quantize takes stage snn, not ann"):
        Quantize()(graph)
    with pytest.raises(ValueError, match="takes stage folded, not ann"):
        CheckBias("strip")(graph)
    with pytest.raises(ValueError, match="takes stage folded or snn, not ann"):
        QuantizeWeights()(graph)


def test_the_graph_is_verified_before_and_after() -> None:
    graph = net()
    with pytest.raises(VerifyError, match="not defined"):
        Breaks()(graph)
    with pytest.raises(VerifyError, match=r"not defined before its use \(before canonicalize\)"):
        Canonicalize()(replace(graph, nodes=graph.nodes[1:]))


def test_unchanged_nodes_are_the_same_objects_and_changed_ones_are_marked() -> None:
    graph = net()
    after = apply(FoldBatchNorm(), graph)
    assert after.stage is Stage.FOLDED
    for name in ("x", "relu", "flat", "fc"):
        if after[name].args == graph[name].args:
            assert after[name] is graph[name]
    assert after["x"] is graph["x"]
    assert after["flat"] is graph["flat"]
    assert after["fc"] is graph["fc"]
    assert "fold-batch-norm" in after["conv"].loc.passes
    assert [s.module for s in after["conv"].loc] == ["conv", "norm"]  # two sources in one node
    assert after["fc"].loc.passes == ()


def test_a_pass_that_changes_nothing_gives_equal_nodes() -> None:
    graph = apply(FoldBatchNorm(), apply(Canonicalize(), net()))
    for p in (FoldBatchNorm, Canonicalize):
        n = Net(4)
        n.linear(np.eye(4))
        n(ops.Relu())
        plain = n.graph()
        after = p()(plain)
        assert all(a is b for a, b in zip(after.nodes, plain.nodes, strict=True))
    for same in CheckBias("keep"), FuseLinear():
        assert same(graph) is graph


def test_a_name_is_noted_once() -> None:
    n = Net(4)
    for _ in range(3):
        n(ops.Clamp(0.0, None))
        n(ops.Flatten())
    after = apply(Canonicalize(), n.graph())
    assert {node.loc.passes for node in after.nodes} <= {(), ("canonicalize",)}


def test_a_context_reports_a_diagnostic_once() -> None:
    context = Context()
    for _ in range(2):
        context.report(Diagnostic("SNN020", "a"))
    context.report(Diagnostic("SNN020", "b"))
    assert len(context.diagnostics) == 2


# --- the pipeline ----------------------------------------------------------------------------------------------------


def test_the_pipeline_records_every_stage() -> None:
    seen: list[StageRecord] = []
    context = Context()
    records = run_pipeline(
        [Report(severity=Severity.WARNING), Canonicalize(), FoldBatchNorm(), CheckBias("keep")],
        net(),
        context,
        seen.append,
    )
    assert records == seen
    assert [r.label for r in records] == [
        "trace", "report{severity=Severity.WARNING}", "canonicalize", "fold-batch-norm", "check-bias{policy=keep}",
    ]  # fmt: skip
    assert [r.changed for r in records[1:]] == [False, False, True, False]
    assert [[d.code for d in r.diagnostics] for r in records] == [[], ["SNN020"], [], [], []]
    assert all(r.seconds >= 0 for r in records)
    assert records[-1].graph is records[-2].graph


def test_the_pipeline_collects_errors_of_all_passes() -> None:
    n = Net(4)
    n.linear(np.eye(4), [1, 1, 1, 1], name="fc")
    n(ops.Clamp(-1.0, 1.0), name="tanh")
    n.linear(np.eye(4), [1, 1, 1, 1], name="fc2")
    n(ops.Relu(), name="relu")
    records: list[StageRecord] = []
    passes = [Canonicalize(), FoldBatchNorm(), CheckBias("error"), LowerActivations(), LowerPooling()]
    with pytest.raises(CompileError) as caught:
        run_pipeline(passes, n.graph(), Context(), records.append)
    found = [(d.code, d.loc.sources[0].module) for d in caught.value.diagnostics]
    assert found == [("SNN020", "fc"), ("SNN020", "fc2"), ("SNN030", "tanh"), ("SNN010", "relu")]
    assert [r.label for r in records] == ["trace", "canonicalize", "fold-batch-norm", "check-bias{policy=error}"]


def test_passes_behind_an_activation_that_cannot_spike_are_heard_too() -> None:
    n = Net(1, 4, 4, low=-1.0, high=1.0)
    n.conv(np.ones((2, 1, 1, 1)))
    n(ops.Clamp(-1.0, 1.0, threshold=1.0), name="tanh")
    n(ops.MaxPool((2, 2), (2, 2)), name="pool")
    passes = [Canonicalize(), FoldBatchNorm(), LowerActivations(), LowerPooling("error"), Quantize()]
    with pytest.raises(CompileError) as caught:
        run_pipeline(passes, n.graph(), Context())
    errors = [d.code for d in caught.value.diagnostics if d.severity is Severity.ERROR]
    assert errors == ["SNN030", "SNN031"]


def test_warnings_do_not_stop_the_pipeline() -> None:
    context = Context()
    records = run_pipeline([Report(severity=Severity.WARNING), Report("SNN021", Severity.NOTE)], net(), context)
    assert len(records) == 3
    assert len(context.diagnostics) == 2


def test_a_fault_of_a_pass_is_not_taken_for_the_users() -> None:
    with pytest.raises(VerifyError):
        run_pipeline([Breaks()], net(), Context())
    with pytest.raises(CompileError):  # but behind an error there may be no going on
        run_pipeline([Report(), Breaks()], net(), Context())


def test_what_fails_behind_an_error_does_not_hide_it() -> None:
    """Nor is it said again, if it is about what was refused."""
    refused = net().nodes[1].loc
    for loc, more in ((refused, []), (Loc((Source("elsewhere"),)), ["SNN064"]), (Loc(), ["SNN064"])):
        with pytest.raises(CompileError) as caught:
            run_pipeline([Report("SNN031"), Raises(loc)], net(), Context())
        assert [d.code for d in caught.value.diagnostics] == ["SNN031", *more]
    with pytest.raises(InputError):
        run_pipeline([Raises(refused)], net(), Context())


# --- rebuilding ------------------------------------------------------------------------------------------------------


def test_rebuild_drops_dead_code_and_keeps_inputs() -> None:
    n = Net(4)
    n(ops.Relu(), name="dead")
    n(ops.Relu(), "dead", name="dead2")
    n(ops.Identity(), "x", name="kept")
    after = rebuild(n.graph(), lambda builder, node, args: None)
    assert [node.name for node in after.nodes] == ["x", "kept"]
    n = Net(4)
    n.nodes["y"] = replace(n.nodes["x"], name="y")
    n(ops.Relu(), "x")
    after = rebuild(n.graph(), lambda builder, node, args: None)
    assert [node.name for node in after.inputs] == ["x", "y"]  # the user's signature


def test_rebuild_renames_outputs_and_readers() -> None:
    n = Net(4)
    n(ops.Identity(), name="a")
    n(ops.Relu(), name="b")
    n(ops.Identity(), name="c")
    graph = n.graph("c", "a", "b", "c")

    def drop(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        return args[0] if isinstance(node.op, ops.Identity) else None

    after = rebuild(graph, drop)
    assert after.outputs == ("b", "x", "b", "b")
    assert after["b"].args == ("x",)


def test_new_names_never_take_one_that_comes_later() -> None:
    n = Net(4)
    n(ops.Relu(), name="a")
    n(ops.Relu(), name="a_1")
    n(ops.Relu(), name="a_2")

    def twice(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        if node.name != "a":
            return None
        first = builder.copy(node, args)
        return builder.add(builder.unique("a"), ops.Relu(), (first,), node.loc)

    after = rebuild(n.graph(), twice)
    assert [node.name for node in after.nodes] == ["x", "a", "a_3", "a_1", "a_2"]
    assert after["a_1"].args == ("a_3",)
