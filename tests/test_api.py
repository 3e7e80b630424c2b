"""compile, check, load, targets and CompiledModel, from the outside."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import build, example_input

import snncc
from snncc import CompiledModel, CompileError, InputError, SnnccError
from snncc.ir import Severity, print_graph
from snncc.ir.diagnostics import errors
from snncc.passes.base import Pass, StageRecord
from snncc.passes.calibrate import Calibrate
from snncc.passes.quantize import Quantize
from snncc.targets import Options, Target, base
from snncc.targets.reference import Reference

SHAPE = (1, 8, 8)
X = example_input(SHAPE, 8, seed=1)


def codes(caught: pytest.ExceptionInfo[snncc.SnnccError]) -> list[str]:
    return [d.code for d in caught.value.diagnostics]


def small(**options: Any) -> CompiledModel:
    return snncc.compile(build("chip_small"), options.pop("target", "reference"), calibration=X, **options)


@cache
def on_chip() -> CompiledModel:
    """Not to be changed."""
    return small(target="speck2b")


def thresholds(model: CompiledModel) -> list[Any]:
    snn = model.stages["snn"]
    found = [getattr(n.op, "threshold", None) for n in snn.nodes]
    return [snn.value(t).tolist() if hasattr(t, "digest") else t for t in found if t is not None]


# --- what goes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "example",
    [X, X.numpy(), X.numpy().astype(np.float64), X.numpy().astype(">f4"), X.double(), X.bfloat16(), (X,), [X.numpy()]],
    ids=["tensor", "ndarray", "doubles", "big-endian", "double tensor", "bfloat16", "tuple", "list"],
)
def test_example_input(example: Any) -> None:
    model = snncc.compile(build("chip_small"), example_input=example, calibration=X)
    assert [d for d in model.diagnostics if d.severity is Severity.ERROR] == []
    assert model.graph.inputs[0].type.shape == SHAPE


def test_a_model_in_double_precision() -> None:
    model = snncc.compile(build("chip_small").double(), calibration=X)
    assert thresholds(model) == thresholds(small())


@pytest.mark.parametrize(
    "example",
    ["images", {"x": X}, [[[1.0], [2.0, 3.0]]], object(), X.to_sparse(), np.array(["a"])],
    ids=["text", "dict", "ragged", "object", "sparse", "array of text"],
)
def test_an_example_that_is_none(example: Any) -> None:
    with pytest.raises(InputError, match="the example input") as caught:
        snncc.compile(build("chip_small"), example_input=example)
    assert codes(caught) == ["SNN005"]


def test_an_example_of_the_wrong_shape() -> None:
    for example, words in (
        (torch.rand(2, 3, 8, 8), "channels"),
        (torch.rand(8), "no common batch axis"),
        ((X, X), "does not take 2 inputs"),
    ):
        with pytest.raises(CompileError, match=words) as caught:
            snncc.compile(build("chip_small"), example_input=example)
        assert {d.code for d in caught.value.diagnostics} == {"SNN005"}


def batches() -> list[Tensor]:
    return [X[:3], X[3:5], X[5:]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: X,
        lambda: X.numpy(),
        batches,
        lambda: tuple(batches()),
        lambda: iter(batches()),
        lambda: (b.numpy() for b in batches()),
        lambda: [(b, torch.zeros(len(b))) for b in batches()],
        lambda: [[b, torch.zeros(len(b))] for b in batches()],
        lambda: DataLoader(TensorDataset(X, torch.arange(8)), batch_size=3),
    ],
    ids=["tensor", "ndarray", "list", "tuple", "iterator", "generator", "(x, y)", "[x, y]", "DataLoader"],
)
def test_calibration_forms(make: Callable[[], Any]) -> None:
    model = snncc.compile(build("chip_small"), calibration=make(), threshold="max", per="layer")
    np.testing.assert_allclose(np.hstack(thresholds(model)), np.hstack(thresholds(small(threshold="max", per="layer"))))


def test_a_stream_is_read_once() -> None:
    read: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for i, batch in enumerate(batches()):
            read.append(i)
            yield batch, torch.zeros(len(batch))

    snncc.compile(build("chip_small"), "speck2b", calibration=stream())
    assert read == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ([], "SNN011", "empty"),
        (X[:0], "SNN011", "empty"),
        (iter(()), "SNN011", "empty"),
        ("calibration.npy", "SNN011", "of type str"),
        (Path("x.npy"), "SNN011", "Path"),
        (3, "SNN011", "of type int"),
        (np.float32(3), "SNN011", "of type float32"),
        ({"x": X}, "SNN011", "of type dict"),
        ([{"image": X}], "SNN011", "is a dict"),
        (["images"], "SNN011", "not numbers"),
        ([[[[1.0], [2.0, 3.0]]]], "SNN011", "cannot be made an array"),
        ([X, X[:, :, :4]], "SNN005", r"must have shape \(N, 1, 8, 8\), got \(8, 1, 4, 8\)"),
        ([X, torch.tensor(3.0)], "SNN005", r"got \(\)"),
        (X * float("nan"), "SNN011", "not finite"),
    ],
)
def test_calibration_that_is_none(data: Any, code: str, words: str) -> None:
    with pytest.raises(snncc.SnnccError, match=words) as caught:
        snncc.compile(build("chip_small"), example_input=X, calibration=data)
    assert errors(caught.value.diagnostics)[0].code == code


def test_check_keeps_what_was_found_before_the_data_failed() -> None:
    found = snncc.check(build("chip_bias"), calibration=iter([example_input((1, 28, 28)), X]))
    assert [d.code for d in found] == ["SNN020", "SNN020", "SNN020", "SNN005"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return torch.relu(self.a(left) + self.b(right))


def test_two_inputs() -> None:
    left, right = torch.rand(6, 4), torch.rand(6, 2)
    data = [(left, right, torch.zeros(6))]
    model = snncc.compile(Two().eval(), calibration=data)
    assert model.simulate((left, right)).output.shape == (6, 3)
    with pytest.raises(InputError, match="has 2 inputs, got 1"):
        model.simulate(left)
    with pytest.raises(InputError, match="has 2 inputs, a calibration batch 1"):
        snncc.compile(Two().eval(), example_input=(left, right), calibration=left)


def test_neither_example_nor_calibration() -> None:
    with pytest.raises(InputError, match="neither example_input nor calibration") as caught:
        snncc.compile(build("chip_small"))
    assert codes(caught) == ["SNN100"]
    assert [d.code for d in snncc.check(build("chip_small"))] == ["SNN100"]


def test_no_calibration() -> None:
    with pytest.raises(CompileError) as caught:
        snncc.compile(build("chip_small"), "speck2b", example_input=X)
    assert {d.code for d in errors(caught.value.diagnostics)} == {"SNN010"}
    assert all("calibration=" in d.hint for d in errors(caught.value.diagnostics))
    assert errors(snncc.check(build("chip_small"), "speck2b", example_input=X)) == []


@pytest.mark.parametrize("model", [lambda x: x, "model.py:make", nn.Module, {"weight": 1}, None])
def test_a_model_that_is_none(model: Any) -> None:
    with pytest.raises(InputError, match="not a torch") as caught:
        snncc.compile(model, example_input=X)
    assert codes(caught) == ["SNN089"]


def test_the_model_is_left_as_it_was() -> None:
    model = build("chip_bn").train()
    before = copy.deepcopy(model.state_dict())
    snncc.compile(model, "speck2b", calibration=example_input((1, 28, 28), 4))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_progress_and_after() -> None:
    seen: list[tuple[str, int]] = []
    stages: list[StageRecord] = []

    def progress(items: Iterable[Any], what: str) -> Iterator[Any]:
        kept = list(items)
        seen.append((what, len(kept)))
        yield from kept

    model = snncc.compile(build("chip_small"), "speck2b", calibration=batches(), progress=progress, after=stages.append)
    assert ("calibrate", 3) in seen
    assert tuple(stages) == model.records
    assert [r.label.partition("{")[0] for r in stages] == [
        "trace", "canonicalize", "fold-batch-norm", "spiking-output", "check-bias", "fuse-linear", "check-limits",
        "calibrate", "lower-activations", "lower-pooling", "quantize", "insert-relays", "place",
    ]  # fmt: skip
    assert list(model.stages) == ["ann", "folded", "snn", "int", "mapped"]
    seen.clear()
    model.simulate(X, progress=progress)
    assert seen == [("simulate", 1)]


def test_a_progress_bar_only_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    small()
    small(progress=False)
    assert capfd.readouterr() == ("", "")
    small(progress=True)
    out, err = capfd.readouterr()
    assert out == "" and err  # a terminal would see the bar; here its line is only ended


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"timesteps": 0}, {"timesteps": 2.5}, {"timesteps": "32"}, {"timesteps": True}, {"timesteps": None},
        {"timesteps": 10**9},
        {"bias": "drop"}, {"bias": None}, {"bias": ["warn"]}, {"bias": np.array(["warn", "keep"])},
        {"encoding": "poisson"}, {"reset": "none"}, {"threshold": "entropy"}, {"per": "neuron"},
        {"percentile": 0}, {"percentile": 101}, {"percentile": float("nan")},
        {"v0": "half"}, {"v0": float("inf")},
        {"weight_bits": 1}, {"weight_bits": 33}, {"weight_bits": 7.5},
        {"seed": -1}, {"seed": 0.5}, {"seed": None},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}=") as caught:
        small(**options)
    assert codes(caught) == ["SNN070"]


@pytest.mark.parametrize(
    ("wrong", "code", "meant"),
    [
        ({"target": "specck2b"}, "SNN078", "speck2b"),
        ({"target": "Lava"}, "SNN078", "lava"),
        ({"timestep": 3}, "SNN079", "timesteps"),
        ({"bias": "kep"}, "SNN070", "keep"),
        ({"target": "speck2b", "monitor": ("relu1",)}, "SNN084", "relu_1"),
        ({"target": "lynxi", "monitor": ("relu",)}, "SNN084", "relu_1"),
    ],
)
def test_what_was_meant(wrong: dict[str, Any], code: str, meant: str) -> None:
    with pytest.raises(SnnccError) as caught:
        small(**wrong)
    assert codes(caught)[-1] == code
    assert f"did you mean '{meant}'?" in caught.value.diagnostics[-1].hint


def test_numpy_numbers_are_options() -> None:
    model = small(timesteps=np.int64(8), v0=np.float32(0.5), seed=np.uint8(3))
    assert json.dumps(model._manifest()["options"])
    assert model.options.timesteps == 8


def test_unknown_target() -> None:
    with pytest.raises(InputError, match="no target 'loihi9'") as caught:
        small(target="loihi9")
    assert codes(caught) == ["SNN078"]
    assert "speck2b" in caught.value.diagnostics[0].hint


def biased() -> tuple[nn.Module, Tensor]:
    return build("chip_bias"), example_input((1, 28, 28), 8, seed=1)


def test_bias_error() -> None:
    model, x = biased()
    with pytest.raises(CompileError) as caught:
        snncc.compile(model, calibration=x, bias="error")
    found = errors(caught.value.diagnostics)
    assert [d.code for d in found] == ["SNN020"] * 3
    assert [d.loc.sources[0].module for d in found] == ["0", "2", "5"]
    assert "8 of 8 biases" in found[0].message and "1,568 additions per time step" in found[0].message


@pytest.mark.parametrize(
    ("policy", "code", "severity", "biases"),
    [
        ("warn", "SNN020", Severity.WARNING, True),
        ("keep", None, None, True),
        ("strip", "SNN021", Severity.WARNING, False),
    ],
)
def test_bias_policies(policy: str, code: str | None, severity: Severity | None, biases: bool) -> None:
    model, x = biased()
    done = snncc.compile(model, "speck2b", calibration=x, bias=policy)
    said = [d for d in done.diagnostics if d.code.startswith("SNN02") and d.loc.sources]
    assert [(d.code, d.severity) for d in said] == [(code, severity)] * (3 if code else 0)
    assert [bool(row["biases"]) for row in done.report] == [biases] * 3
    if policy == "strip":
        assert all("keep their class" in d.message for d in said)


@pytest.mark.parametrize("target", ["reference", "lava", "lynxi", "speck2b"])
def test_biases_in_initial_potentials_were_withdrawn(target: str) -> None:
    """The output's error did not fall with the time steps: 0.42, 0.49 and 0.54 of it at T = 8, 32 and 128."""
    model, x = biased()
    with pytest.raises(InputError, match=r"SNN070.*bias='fold' is unknown") as caught:
        snncc.compile(model, target, calibration=x, bias="fold")
    (said,) = caught.value.diagnostics
    assert "keep" in said.hint and "fold" not in said.hint


@pytest.mark.parametrize("encoding", ["constant", "rate", "bernoulli"])
def test_encodings(encoding: str) -> None:
    model = small(encoding=encoding, timesteps=64)
    scores = model.network(X)
    output = model.simulate(X).output
    assert np.corrcoef(scores.ravel(), output.ravel())[0, 1] > 0.8
    np.testing.assert_array_equal(output, small(encoding=encoding, timesteps=64).simulate(X).output)
    if encoding == "bernoulli":
        assert (output != small(encoding=encoding, timesteps=64, seed=1).simulate(X).output).any()


def test_ready_made_spikes() -> None:
    model = small(encoding="spikes", timesteps=5)
    spikes = (torch.rand(5, 3, *SHAPE) < 0.3).float()
    done = model.simulate(spikes)
    assert done.output.shape == (3, 5) and done.timesteps == 5
    assert model.report[0]["rate"] > 0  # the calibration sample, as evenly spaced spikes
    for bad, code, words in (
        (spikes[:4], "SNN074", "spikes for 4 time steps, but 5"),
        (spikes[0], "SNN005", r"\(T, N, 1, 8, 8\)"),
        (spikes * 0.5, "SNN012", "whole numbers"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            model.simulate(bad)
        assert codes(caught) == [code]


def test_negative_input_has_no_rate() -> None:
    with pytest.raises(CompileError, match="goes down to -1") as caught:
        snncc.compile(build("chip_small"), calibration=X - 1, encoding="rate")
    assert [d.code for d in errors(caught.value.diagnostics)] == ["SNN012"]
    with pytest.raises(InputError, match="negative input -1") as again:
        small(encoding="rate").simulate(X - 1)
    assert codes(again) == ["SNN012"]
    small(encoding="constant").simulate(X - 1)


# --- what comes out -------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """Two layers whose every number can be worked out by hand: 4 -> 2 -> 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]))
            self.first.bias.copy_(torch.tensor([0.5, 0.0]))
            self.second.weight.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))  # both layers


def test_report() -> None:
    """Inputs of 1 spike in every step (the unit is the largest, 1) or never."""
    x = torch.tensor([[1.0, 0, 0, 1], [1.0, 1, 0, 0]])
    model = snncc.compile(
        Counted(), calibration=x, encoding="rate", threshold="max", per="layer", timesteps=16, bias="keep", v0=0.5
    )
    first, second = model.report
    line = Counted.forward.__code__.co_firstlineno + 1
    assert first["layer"] == "first" and first["op"] == "linear"
    assert first["source"] == f"test_api.py:{line} (first)"
    assert (first["shape"], first["weights"], first["biases"], first["neurons"]) == ([2], 8, 1, 2)
    # The largest activation is 2.5, so that is the threshold; its 8-bit grid is that of the weight 1 = 127 steps.
    assert first["largest_weight"] == 127
    assert first["threshold"] == int(127 * 2.5)
    assert first["scale"] == pytest.approx(2.5 / first["threshold"])
    # Per sample 2 input spikes a step, each to 2 outputs, over 16 steps.
    assert first["synops"] == 2 * 2 * 16
    # The activations are (1.5, 1) and (2.5, 0): in thresholds 0.6, 0.4, 1 and 0.
    assert first["rate"] == pytest.approx(2.0 / 4, abs=1 / 16)
    assert 0 <= first["error"] < 0.05
    assert (second["shape"], second["weights"], second["biases"], second["neurons"]) == ([2], 4, 0, 0)
    assert "threshold" not in second and "rate" not in second and "core" not in second
    spikes = model.simulate(x, record="spikes").spikes[first["neuron"]]
    assert second["synops"] == spikes.sum() * 2 / 2  # each to 2 outputs; the mean of 2 samples
    json.dumps(model.report)


def test_report_of_a_chip() -> None:
    keys = {"core", *(f"{m}_{part}" for m in ("kernel", "neuron", "bias") for part in ("used", "free"))}
    for row in on_chip().report:
        assert keys <= row.keys()


def test_stages_run() -> None:
    model = small(timesteps=32)
    scores = build("chip_small")(X).detach().numpy()
    for stage in ("ann", "folded"):
        np.testing.assert_allclose(model.network(X, stage), scores, atol=1e-5)
    assert model.network(X, "int").shape == scores.shape
    for stage, close in (("snn", 0.9), ("int", 0.9)):
        assert np.corrcoef(model.simulate(X, stage=stage).output.ravel(), scores.ravel())[0, 1] > close
    assert model.simulate(X, 4).timesteps == 4


def test_stages_that_do_not_run() -> None:
    model = small()
    with pytest.raises(InputError, match="no stage 'mapped'") as caught:
        model.simulate(X, stage="mapped")
    assert "ann, folded, snn, int" in caught.value.diagnostics[0].hint
    with pytest.raises(InputError, match="no stage 'float'"):
        model.network(X, "float")
    with pytest.raises(InputError, match="stage 'folded' has no time steps") as again:
        model.simulate(X, stage="folded")
    assert (codes(caught), codes(again)) == (["SNN085"], ["SNN086"])


@pytest.mark.parametrize(
    ("x", "code"),
    [(X[:, :, :4], "SNN005"), (X[0], "SNN005"), ((X, X), "SNN005"), (X * float("nan"), "SNN074"), ("x", "SNN005"),
     (np.full((2, *SHAPE), "a"), "SNN074"), (X[:0], "SNN005")],
)  # fmt: skip
def test_wrong_input(x: Any, code: str) -> None:
    model = small()
    for run in (model.simulate, model.network):
        if run == model.network and code == "SNN074" and isinstance(x, Tensor):
            continue  # a network takes what it gets
        with pytest.raises(InputError) as caught:
            run(x)
        assert codes(caught) == [code]


def test_bfloat16_input() -> None:
    assert small().simulate(X.bfloat16()).output.shape == (8, 5)


def test_a_model_that_is_trained_on() -> None:
    """The first stages share the model's memory: they say so instead of running what was never compiled."""
    net = build("chip_small")
    model = snncc.compile(net, calibration=X)
    before = model.simulate(X).output
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(model.simulate(X).output, before)
    for run in (lambda: model.network(X, "folded"), lambda: model.simulate(X, stage="snn")):
        with pytest.raises(InputError, match="changed since the compile") as caught:
            run()
        assert codes(caught) == ["SNN073"]


def test_no_vendor_runtime() -> None:
    model = small()
    for run in (model.validate, lambda: model.run(X), lambda: model.run("not even input")):
        with pytest.raises(InputError, match="has no vendor runtime") as caught:
            run()
        assert codes(caught) == ["SNN080"]


@pytest.mark.parametrize("target", ["speck2b", "lava"])
def test_saved_files_have_one_mode(tmp_path: Path, target: str) -> None:
    model, before = small(target=target, timesteps=2, selfcheck=False), os.umask(0o027)
    try:
        folder = model.save(tmp_path / "net")
    finally:
        os.umask(before)
    assert {(p.is_dir(), p.stat().st_mode & 0o777) for p in folder.rglob("*")} == {(True, 0o750), (False, 0o640)}


def test_no_vendor_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SNNCC_SAMNA_PYTHON", raising=False)
    monkeypatch.setenv("SNNCC_CACHE", str(tmp_path))
    (tmp_path / "python").write_text("not a program")
    for python, words in (
        (None, "no environment with samna was found"),
        (tmp_path / "nowhere", "no Python for samna at"),
        (tmp_path / "python", "cannot be run as the Python of samna"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            on_chip().validate(python)
        assert codes(caught) == ["SNN080"]


def test_a_vendor_environment_without_the_vendor() -> None:
    """This very Python: the runner starts, and says what it lacks."""
    for run in (lambda: on_chip().validate(sys.executable), lambda: on_chip().run(X, python=sys.executable)):
        with pytest.raises(InputError, match="samna: samna is not installed") as caught:
            run()
        assert codes(caught) == ["SNN081"]


def test_run_checks_its_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must have shape \(N, 1, 8, 8\)") as caught:
        on_chip().run(X[:, :, :4], python=sys.executable)
    assert codes(caught) == ["SNN005"]


FAKE = """
import json, sys
import numpy as np
given = dict(zip(sys.argv[1:], sys.argv[2:]))
spikes = np.load(given["--input"])["x0"]
assert spikes.shape == (4, 8, 1, 8, 8) and spikes.dtype == np.int32, spikes.shape
np.savez(given["--output"], counts0=np.tile(spikes.sum((0, 2, 3, 4))[:, None], 5))
print("written")
"""


def test_run_reads_the_boards_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_chip()
    files = {**model.target.files(model.graph, model.options), "run.py": FAKE}
    monkeypatch.setattr(type(model.target), "files", lambda self, graph, options: files)
    done = model.run(X, 4, python=sys.executable, device="a board")
    unit = model.graph[model.graph.outputs[0]].type.unit
    unit = unit if isinstance(unit, float) else model.graph.value(unit)  # type: ignore[arg-type]
    counts = model.simulate(X, 4, record="spikes").spikes["input.encode"].sum((0, 2, 3, 4))
    np.testing.assert_allclose(done.output, counts[:, None] * np.broadcast_to(unit, 5) / 4)
    assert done.timesteps == 4


# --- the folder -----------------------------------------------------------------------------------------------------


def text(model: CompiledModel) -> list[str]:
    return [print_graph(r.graph) for r in model.records]


@pytest.mark.parametrize(
    ("name", "target"), [("chip_small", "reference"), ("chip_bn", "speck2b"), ("chip_bias", "dynapcnn")]
)
def test_round_trip(name: str, target: str, tmp_path: Path) -> None:
    x = example_input((1, 8, 8) if name == "chip_small" else (1, 28, 28), 4, seed=2)
    model = snncc.compile(build(name), target, calibration=x, timesteps=8, encoding="bernoulli", seed=3)
    folder = model.save(tmp_path / "deep" / "built")
    assert folder == tmp_path / "deep" / "built"
    loaded = snncc.load(folder)
    assert text(loaded) == text(model)
    assert [(r.label, r.changed) for r in loaded.records] == [(r.label, r.changed) for r in model.records]
    assert loaded.report == model.report
    assert loaded.options == model.options and loaded.target == model.target
    assert [d.to_json() for d in loaded.diagnostics] == [d.to_json() for d in model.diagnostics]
    ours, theirs = (m.simulate(x, record="all", final=True) for m in (model, loaded))
    np.testing.assert_array_equal(ours.output, theirs.output)
    for field in ("spikes", "values", "final", "synops"):
        for value, other in zip(getattr(ours, field).values(), getattr(theirs, field).values(), strict=True):
            np.testing.assert_array_equal(value, other)
    again = loaded.save(tmp_path / "again")
    assert (again / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()
    assert snncc.load(again).report == model.report


def test_the_manifest(tmp_path: Path) -> None:
    folder = on_chip().save(tmp_path / "built")
    manifest = json.loads((folder / "manifest.json").read_text())
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert there == {*manifest["files"], "manifest.json"}
    assert {"weights.safetensors", "config.json", "run.py", "stages/000_trace.mlir", "stages/012_place.mlir"} <= there
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert (manifest["target"], manifest["stage"], manifest["format"]) == ("speck2b", "mapped", 1)
    (given,) = manifest["inputs"]
    assert (given["shape"], given["encoding"]) == ([1, 8, 8], "rate")
    assert manifest["outputs"][0]["shape"] == [5]
    assert str(tmp_path) not in (folder / "manifest.json").read_text()


def test_all_weights(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "last")
    model.save(tmp_path / "all", all_weights=True)
    whole, last = snncc.load(tmp_path / "all"), snncc.load(tmp_path / "last")
    np.testing.assert_array_equal(whole.network(X, "folded"), model.network(X, "folded"))
    np.testing.assert_array_equal(whole.simulate(X, stage="snn").output, model.simulate(X, stage="snn").output)
    for run in (
        lambda: last.network(X),
        lambda: last.simulate(X, stage="snn"),
        lambda: last.save(tmp_path / "more", all_weights=True),
    ):
        with pytest.raises(InputError, match="are not here") as caught:
            run()
        assert codes(caught) == ["SNN072"]
        assert "all_weights=True" in caught.value.diagnostics[0].hint
    assert not (tmp_path / "more").exists()
    last.simulate(X)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_save_is_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small().save(tmp_path / "built")
    before = snapshot(folder)
    other = small(timesteps=7)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError("no space left")

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    renames: list[Path] = []
    rename = Path.rename

    def second_fails(self: Path, to: Path) -> Path:
        renames.append(self)
        if len(renames) == 2:
            raise OSError("no such device")
        return rename(self, to)

    for place, name, broken in (
        (Reference, "files", fail),
        (Reference, "files", stop),
        (Path, "write_text", fail),
        (Path, "rename", fail),
        (Path, "rename", second_fails),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken)
            with pytest.raises((InputError, KeyboardInterrupt)):
                other.save(folder)
            renames[:] = [folder]
            with pytest.raises((InputError, KeyboardInterrupt)):
                other.save(tmp_path / "fresh")
        assert snapshot(folder) == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["built"]
    snncc.load(folder)
    other.save(folder)
    assert snncc.load(folder).options.timesteps == 7
    assert [p.name for p in tmp_path.iterdir()] == ["built"]


def test_save_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    model = small()
    model.save(tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    (tmp_path / "file").write_text("x")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "a web app"}')
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("photos", "file", "app", "dangling"):
        with pytest.raises(InputError, match="was not written by snncc") as caught:
            model.save(tmp_path / name)
        assert codes(caught) == ["SNN075"]
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"
    (tmp_path / "empty" / "results.npz").write_text("days of work")
    with pytest.raises(InputError, match=r"holds what snncc did not write, .*: results.npz"):
        model.save(tmp_path / "empty")
    assert (tmp_path / "empty" / "results.npz").is_file()


def test_save_after_training_on(tmp_path: Path) -> None:
    net = build("chip_small")
    model = snncc.compile(net, calibration=X)
    model.report  # noqa: B018 (measured now)
    with torch.no_grad():
        net[0].weight.add_(1)  # type: ignore[index, operator, union-attr]
    model.save(tmp_path / "last")  # the integers are its own
    page = (tmp_path / "last/explorer.html").read_text(encoding="utf-8")
    record = json.loads(page.partition('id="record">')[2].partition("</script>")[0])
    nodes = [node for stage in record["stages"] for node in stage["nodes"]]
    assert nodes and not any("numbers" in node for node in nodes)  # it would be another network that is measured now
    with pytest.raises(InputError, match="changed since the compile"):
        model.save(tmp_path / "all", all_weights=True)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_chip().save(tmp_path_factory.mktemp("built") / "built")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(built, tmp_path / "built"))


def refusal(folder: Path) -> tuple[list[str], str]:
    with pytest.raises(InputError) as caught:
        snncc.load(folder)
    return codes(caught), str(caught.value)


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sign(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit_manifest(folder, lambda m: m["files"].update({name: digest}))


def test_load_refuses_no_folder(tmp_path: Path, folder: Path) -> None:
    assert refusal(tmp_path / "nowhere")[0] == ["SNN071"]
    assert refusal(folder / "manifest.json")[0] == ["SNN071"]


def test_load_refuses_half_a_folder(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    for half in ("", text[: len(text) // 2], "null", "[]", "{}", '{"files": 3, "format": 1}', "\ud800"):
        (folder / "manifest.json").write_bytes(half.encode("utf-8", "surrogatepass"))
        found, said = refusal(folder)
        assert found == ["SNN071"] and "manifest.json cannot be read" in said
    (folder / "manifest.json").unlink()
    found, said = refusal(folder)
    assert found == ["SNN072"] and "cut short" in said


FILES = ["weights.safetensors", "config.json", "run.py", "stages/000_trace.mlir", "stages/012_place.mlir"]


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_changed_file(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    found, said = refusal(folder)
    assert found == ["SNN073"] and name in said


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    found, said = refusal(folder)
    assert found == ["SNN072"] and name in said


def test_load_lists_all_that_is_wrong(folder: Path) -> None:
    (folder / "run.py").unlink()
    (folder / "config.json").write_text("{}")
    assert sorted(refusal(folder)[0]) == ["SNN072", "SNN073"]


def test_load_refuses_another_format(folder: Path) -> None:
    for version in (2, 0, "1", None):
        edit_manifest(folder, lambda m, version=version: m.update(format=version))  # type: ignore[misc]
        found, said = refusal(folder)
        assert found == ["SNN071"] and "this snncc reads 1" in said


@pytest.mark.parametrize("name", ["../x", "stages/../../x", "/etc/hostname", "..\\x", "C:\\x", "a:b"])
def test_load_refuses_files_outside_of_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "x").write_text("x")
    edit_manifest(folder, lambda m: m["files"].update({name: hashlib.sha256(b"x").hexdigest()}))
    found, said = refusal(folder)
    assert found == ["SNN071"] and "not in the folder" in said


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("passes"),
        lambda m: m.update(passes=[]),
        lambda m: m["passes"].pop(),
        lambda m: m["passes"][0].pop("label"),
        lambda m: m.update(diagnostics=[{"code": "SNN999"}]),
        lambda m: m.update(diagnostics=3),
        lambda m: m.update(options=None),
        lambda m: m.pop("report"),
        lambda m: m["files"].pop("stages/000_trace.mlir"),
        lambda m: (m.update(passes=[]), [m["files"].pop(n) for n in list(m["files"]) if n.startswith("stages")]),
    ],
)
def test_load_refuses_a_manifest_of_another_make(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    edit_manifest(folder, edit)
    assert refusal(folder)[0] == ["SNN071"]


def test_load_refuses_unknown_targets_and_options(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["options"].update(colour="red"))
    assert refusal(folder)[0] == ["SNN079"]
    edit_manifest(folder, lambda m: (m["options"].pop("colour"), m.update(target="a plug-in that is gone")))
    found, said = refusal(folder)
    assert found == ["SNN078"] and "a plug-in that is gone" in said


def test_load_refuses_garbage_that_is_signed(folder: Path) -> None:
    path = folder / "weights.safetensors"
    good = load_file(path)
    for garbage in (b"", b"garbage", b"\xff" * 64, path.read_bytes()[:-4]):
        path.write_bytes(garbage)
        sign(folder, "weights.safetensors")
        assert refusal(folder)[0] == ["SNN071"]
    name = next(iter(good))
    for tensors, code in (
        ({**good, name: good[name] + 1}, "SNN073"),
        ({**good, name: good[name].astype(np.uint8)}, "SNN071"),
        ({key: good[key] for key in good if key != name}, "SNN072"),
    ):
        save_file(tensors, path)
        sign(folder, "weights.safetensors")
        assert refusal(folder)[0] == [code]
    save_file(good, path)
    sign(folder, "weights.safetensors")
    snncc.load(folder)
    (folder / "stages/012_place.mlir").write_text("module {")
    sign(folder, "stages/012_place.mlir")
    with pytest.raises(InputError):
        snncc.load(folder)


# --- targets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plugin(Target):
    """A target of another package."""

    name: str = "mychip"
    summary: str = "a chip of mine"

    def passes(self, options: Options) -> list[Pass]:
        return Reference().passes(options)

    def files(self, graph: Any, options: Any) -> dict[str, str | bytes]:
        return {"chip/program.txt": graph.name}


def plug_in(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any]) -> None:
    entry = SimpleNamespace(name="mychip", value="my_package:TARGET", load=load)
    targets = importlib.import_module("snncc.targets")
    monkeypatch.setattr(targets, "entry_points", lambda *, group: [entry] if group == "snncc.targets" else [])


def test_a_plug_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch, Plugin)
    assert snncc.targets()["mychip"] == Plugin()
    model = small(target="mychip")
    folder = model.save(tmp_path / "built")
    assert (folder / "chip/program.txt").read_text() == "Sequential"
    np.testing.assert_array_equal(snncc.load(folder).simulate(X).output, model.simulate(X).output)
    model.save(folder)


def test_plug_ins_that_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for load, words in (
        (lambda: Plugin("speck2b"), "'speck2b' of my_package:TARGET has a name that is taken"),
        (lambda: importlib.import_module("no_such_package"), "ModuleNotFoundError: No module named 'no_such_package'"),
        (lambda: 3, "my_package:TARGET, named as a target, is a int"),
    ):
        plug_in(monkeypatch, load)
        with pytest.raises(InputError, match=words) as caught:
            snncc.targets()
        assert codes(caught) == ["SNN088"]


def test_targets_is_a_function_and_a_package() -> None:
    assert {"reference", "dynapcnn", "speck", "speck2", "speck2b", "speck2e", "speck2f"} <= snncc.targets().keys()
    assert snncc.targets.base is base
    code = (
        "import snncc.targets.dynapcnn.chips; import snncc; print(len(snncc.targets()), snncc.targets.Options.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(snncc.targets())), "Options"]
    for target in snncc.targets().values():
        json.dumps(target.limits())


def test_the_package_has_what_it_says() -> None:
    for name in dir(snncc):
        assert getattr(snncc, name) is not None
    assert re.match(r"\d+\.\d+", snncc.__version__)
    with pytest.raises(AttributeError, match="nonsense"):
        snncc.nonsense  # noqa: B018


def test_no_pickle_anywhere() -> None:
    """To read a pickle is to run it."""
    for path in Path(snncc.__file__).parent.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert not re.search(
            r"import (pickle|dill|joblib|shelve|marshal)|torch\.(load|save)\b|allow_pickle=True", code
        ), path
        for call in re.findall(r"np\.load\(.*", code):
            assert "allow_pickle=False" in call or path.name == "run.py", (path, call)


def broken(*_: object, **__: object) -> object:
    raise KeyError("inner")


def test_errors_of_the_compiler_itself_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of many Python exceptions, but a diagnostic; KeyError and all that was known stay its cause."""
    monkeypatch.setattr(Quantize, "run", broken)
    with pytest.raises(CompileError, match=r"SNN091.*quantize.*KeyError: 'inner'") as caught:
        small()
    assert isinstance(caught.value.__cause__, KeyError)
    (said,) = errors(list(snncc.check(build("chip_small"), calibration=X)))
    assert said.code == "SNN091" and "report it" in said.hint


def test_what_was_reported_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception behind an error is its consequence."""
    monkeypatch.setattr(Quantize, "run", broken)
    with pytest.raises(CompileError) as caught:
        small(bias="error")
    assert {d.code for d in errors(caught.value.diagnostics)} == {"SNN020"}
    assert {d.code for d in errors(list(snncc.check(build("chip_small"), calibration=X, bias="error")))} == {"SNN020"}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("snncc.engine.TorchEngine.simulate", lambda model: model.simulate(X)),
        ("snncc.engine.TorchEngine.run", lambda model: model.network(X)),
        ("snncc.readback.check_written", lambda model: model.verify(X)),
        ("snncc.compiled._write_files", lambda model: model.save("nowhere")),
        ("snncc.compilation.Compilation.record", lambda model: model.explore("nowhere.html")),
    ],
)
def test_only_our_errors_leave_a_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, call: Callable[[snncc.CompiledModel], object]
) -> None:
    model = small()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(name, broken)
    with pytest.raises(CompileError, match=r"SNN091.*KeyError"):
        call(model)


@pytest.mark.parametrize("target", ["lava", "speck2f"])
def test_what_cannot_be_built_is_said_before_anything_is_measured(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MobileNetV2 took Lava 83 s to say what check says in 1.8."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(50, 2), nn.ReLU())
    monkeypatch.setattr(Calibrate, "run", broken)
    with pytest.raises(CompileError) as caught:
        snncc.compile(net, target, calibration=X)
    wanted = {(d.code, d.message) for d in errors(list(snncc.check(net, target, example_input=X)))}
    assert wanted and {(d.code, d.message) for d in errors(caught.value.diagnostics)} == wanted
