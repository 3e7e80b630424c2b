"""The fuzzing itself, and a few of its networks; `make fuzz` does many."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.checks import Finding, examine
from fuzz.generate import TARGETS, generate
from fuzz.network import Case, Step
from fuzz.run import main
from fuzz.shrink import shrink

from snncc.engine import TorchEngine
from snncc.ir import Graph, ops
from snncc.passes.base import Context
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.quantize import Quantize

SEEDS = range(1, 13)


def test_the_first_networks() -> None:
    assert {seed: f"{found}" for seed in SEEDS if (found := examine(generate(seed)).finding)} == {}


def test_equal_seeds_give_equal_cases() -> None:
    assert [generate(seed) for seed in range(6)] == [generate(seed) for seed in range(6)]
    assert {generate(seed).target for seed in range(30)} == set(TARGETS)
    assert generate(3, "lava").steps == generate(3, "speck2f").steps


def test_a_program_is_the_case() -> None:
    """What is printed gives the same numbers as what was tried."""
    for seed in range(6):
        case, space = generate(seed), dict[str, Any]()
        text = case.program().replace("compiled = snncc.compile", "arguments = dict(x=x, options=options)\n#")
        exec(compile(text, "<program>", "exec"), space)  # noqa: S102 (our own text)
        for mine, theirs in zip(case.batch(case.samples, case.seed), space["x"], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert space["arguments"]["options"] == dict(case.options)
        ours, theirs = case.model().state_dict(), space["model"].state_dict()
        assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours) and len(ours) == len(
            theirs
        )


# --- what it must find ------------------------------------------------------------------------------------------------

PLAIN = Case(
    inputs=((3, 6, 5), (4,)),
    steps=(
        Step("{m}({0})", (0,), "nn.Conv2d({s[1]}, 4, 3, padding=1)", "conv"),
        Step("{m}({0})", (2,), "nn.BatchNorm2d({s[1]})", "bn"),
        Step("torch.relu({0})", (3,)),
        Step("{m}({0})", (4,), "nn.AvgPool2d(2)", "pool"),
        Step("{0}.flatten(1)", (5,)),
        Step("{m}({0})", (6,), "nn.Linear({s[1]}, 5)", "fc"),
        Step("torch.relu({0})", (1,)),
        Step("{m}({0})", (8,), "nn.Linear({s[1]}, 5)", "other"),
        Step("{0} + {1}", (7, 9)),
    ),
    outputs=(10, 4),
    edits=("model.fc.weight.mul_(2)",),
    options=(("timesteps", 8), ("bias", "keep")),
)


def test_a_plain_case_is_right_on_every_target() -> None:
    for target in TARGETS:
        assert examine(replace(PLAIN, target=target)).finding is None


def found(break_it: Callable[[pytest.MonkeyPatch], None], case: Case = PLAIN) -> Finding:
    with pytest.MonkeyPatch.context() as patch:
        break_it(patch)
        finding = examine(case).finding
    assert finding is not None
    return finding


def broken(cls: type, method: str, change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """``method``'s result changed."""
    honest = getattr(cls, method)
    return lambda patch: patch.setattr(cls, method, lambda *args, **kwargs: change(honest(*args, **kwargs)))


def raising(*_: Any) -> None:
    raise KeyError("nothing of ours")


def other_weights(graph: Graph) -> Graph:
    """With the weights of the first convolution in another order."""
    at = next(i for i, node in enumerate(graph.nodes) if isinstance(node.op, ops.Conv2d))
    node = graph.nodes[at]
    weight = graph.value(node.op.weight).copy()  # type: ignore[attr-defined]
    weight[:] = np.roll(weight, 1)
    node = replace(node, op=replace(node.op, weight=graph.store.put("other", weight)))  # type: ignore[call-arg]
    return replace(graph, nodes=(*graph.nodes[:at], node, *graph.nodes[at + 1 :]))


def one_spike_more(simulation: Any) -> Any:
    for spikes in simulation.spikes.values():
        spikes[0] += 1
    return simulation


BREAKS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = {
    "an exception": (broken(FoldBatchNorm, "run", raising), "internal", "KeyError in base.__call__"),
    "a pass": (broken(FoldBatchNorm, "run", other_weights), "pass", "fold-batch-norm"),
    "a quantizer": (broken(Quantize, "run", other_weights), "pass", "quantize"),
    "the engine": (broken(TorchEngine, "simulate", one_spike_more), "engine", "if"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_found(what: str) -> None:
    break_it, kind, where = BREAKS[what]
    finding = found(break_it)
    assert finding.kind == kind and where in finding.where, f"{finding}"


def test_a_network_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(self: Any, graph: Graph, context: Context) -> Graph:
        while True:
            pass

    monkeypatch.setattr(FoldBatchNorm, "run", forever)
    finding = examine(PLAIN, seconds=0.5).finding
    assert finding is not None and finding.kind == "hang"


def test_what_fails_is_made_smaller() -> None:
    """A defect of average pooling leaves the pooling."""

    def fails(case: Case) -> bool:
        case.model()  # every case that is tried can be built
        return any("AvgPool2d" in step.own for step in case.steps)

    small = shrink(PLAIN, fails)
    assert small.inputs == ((1, 1, 1),)
    assert [step.own for step in small.steps] == ["nn.AvgPool2d(1)"]
    assert (small.outputs, small.edits) == ((1,), ())


def test_the_runner_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.jsonl"
    monkeypatch.setattr("fuzz.run.BLOCK", 1)
    main(["--seeds", "1..3", "--out", str(out)])
    main(["--seeds", "2..4", "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["seeds"] for line in lines if "seeds" in line] == [[1], [2], [3]]
    counts = [sum(each.values()) for line in lines for each in line.get("counts", {}).values()]
    assert sum(counts) == 3
    assert "1 networks" in capsys.readouterr().out.replace("\n", " ")
