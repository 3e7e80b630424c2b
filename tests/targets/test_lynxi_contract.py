"""A contract test: with fakes of Lynxi's SDK that know only the calls that its users publish (tests/lynxi_fakes), the
written compile_lynxi.py and run.py make exactly those. It says nothing about hardware, and is never counted as such."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import snncc
from snncc.ir.types import Array, per_channel

FAKES = Path(__file__).parents[1] / "lynxi_fakes"
X = np.random.default_rng(0).random((5, 1, 6, 6), dtype=np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)
    ).eval()


def compiled(**options: Any) -> snncc.CompiledModel:
    return snncc.compile(network(), "lynxi", calibration=X, **{"timesteps": 5, "bias": "keep", **options})


class Folder:
    """A written folder, with the fakes in reach of what runs in it."""

    def __init__(self, path: Path, model: snncc.CompiledModel) -> None:
        self.path, self.model = model.save(path / "net"), model
        self.log = path / "log"

    def run(self, *line: str, fakes: bool = True) -> subprocess.CompletedProcess[str]:
        self.log.unlink(missing_ok=True)
        environment = {**os.environ, "FAKE_LYNXI_LOG": str(self.log), "PYTHONPATH": str(FAKES) if fakes else ""}
        command = [sys.executable, *line]
        return subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    @property
    def calls(self) -> list[Any]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def write(self, name: str, *xs: Array, timesteps: int = 5) -> None:
        coded = self.model._encoded(xs, timesteps)
        np.savez(self.path / name, **{f"x{i}": x for i, x in enumerate(coded)})  # type: ignore[arg-type]

    def read(self, name: str) -> dict[str, Array]:
        with np.load(self.path / name) as file:
            return {key: file[key] for key in file.files}


# --- compile_lynxi.py -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "build"), [(1, {"version": 0}), (4, {"version": 1, "run_batch": 4})])
def test_one_time_step_is_compiled_as_bidl_does(tmp_path: Path, batch: int, build: dict[str, int]) -> None:
    """lynadapter/model_operate.py, run_custom_op_in_model_by_lyn; the shape stays that of one sample."""
    folder = Folder(tmp_path, compiled(reset="zero", batch=batch))
    done = folder.run("compile_lynxi.py")
    assert done.returncode == 0, done.stderr
    assert str(folder.path / "lynxi_out" / "Net_0") in done.stdout
    load, traced, *rest = folder.calls
    assert load == ["load", "Pytorch", {"input": [1, 1, 6, 6]}, "float16", None, 25]
    assert rest == [
        ["Builder", "apu", True],
        ["build", "graph", "params", [3], "lynxi_out", {"profiler": False, **build}],
    ]
    _, kinds, flags, _ = traced
    assert kinds == {f"custom::{name}": 2 for name in ("load", "save", "cmpandfire", "resetwithdecay")}
    assert len(set(flags)) == 2


def test_custom_operations_become_what_bidl_makes_of_them(tmp_path: Path) -> None:
    """lynadapter/custom_op_in_lyn/custom_op_my_lif.py, word for word."""
    folder = Folder(tmp_path, compiled(reset="zero", v0=0.25))
    assert folder.run("compile_lynxi.py").returncode == 0
    converted = folder.calls[1][3]
    load, fire, reset, save = converted[:4]
    flag = load["load"][1]
    assert load == {"load": ["x", flag, True, [], "float32", 0, 0, False, 0, 0]}
    assert save == {"save": ["x", flag, 0, 0, False, False, 0, 0]}
    (layer, _) = [e for e in json.loads((folder.path / "network.json").read_text())["layers"] if e["kind"] == "neuron"]
    theta = fire["pfit"][1]
    assert layer["threshold"] * (1 - 2**-10) < theta < layer["threshold"]  # the fp16 number below: they fire above
    assert np.float16(theta) == theta
    assert fire == {"pfit": ["x", theta, 0x7C00, 12, 1, 0, 0, 0, 0, 0]}
    v_0, alpha, beta = layer["rest"], 1.0, 0.0
    assert v_0 < 0  # potentials count from where they start
    assert reset == {"pfit": ["x", -100.0, theta, 12, beta, alpha, 0, 0, v_0 * alpha + beta, 0]}


def test_the_unrolled_network_is_compiled_as_spikingjelly_does(tmp_path: Path) -> None:
    """activation_based/lynxi_exchange.py, compile_lynxi_model."""
    folder = Folder(tmp_path, compiled(form="unrolled", batch=3, encoding="rate"))
    done = folder.run("compile_lynxi.py", "--out", "elsewhere")
    assert done.returncode == 0, done.stderr
    assert folder.calls == [
        ["load", "Pytorch", {"input": [15, 1, 6, 6]}, "float16", "float16", None],
        ["traced", {}, [], []],
        ["Builder", "apu", True],
        ["build", "graph", "params", [], "elsewhere", {"apu_only": True}],
    ]


def test_without_lyngor(tmp_path: Path) -> None:
    done = Folder(tmp_path, compiled()).run("compile_lynxi.py", fakes=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "lyngor, torch and numpy must be in this Python" in done.stdout


# --- run.py ---------------------------------------------------------------------------------------------------------

LYNPY = ("run.py", "--executor", "lynpy", "--model", "Net_0", "--input", "x.npz", "--output", "y.npz")


def expect(folder: Folder, found: dict[str, Array], *xs: Array) -> None:
    """Counts, real scores and monitored spikes are those of the simulation."""
    names = folder.model.options.monitor
    done = folder.model.simulate(xs if len(xs) > 1 else xs[0], 5, record=names)
    for i, output in enumerate(done.outputs):
        np.testing.assert_allclose(found[f"scores{i}"], output, rtol=1e-6, atol=1e-9)
        unit = per_channel(folder.model.graph[folder.model.graph.outputs[i]].type.unit, folder.model.graph.store, 1)
        np.testing.assert_array_equal(found[f"counts{i}"], np.rint(output * 5 / unit))
    for name in names:
        np.testing.assert_array_equal(found[f"spikes/{name}"], done.spikes[name])
    spikes = {f"spikes/{name}" for name in names}
    assert found.keys() == {f"{what}{i}" for what in ("counts", "scores") for i in range(len(done.outputs))} | spikes


@pytest.mark.parametrize("encoding", ["constant", "rate"])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_time_step_runs_with_states_reset_before_each_sample(tmp_path: Path, batch: int, encoding: str) -> None:
    """Lynpy for the calls, lynadapter/lyn_sdk_model.py for the reset; the last of five samples fills its batch up."""
    folder = Folder(tmp_path, compiled(batch=batch, encoding=encoding, monitor=("relu_1",), reset="zero"))
    folder.write("x.npz", X)
    done = folder.run(*LYNPY)
    assert done.returncode == 0, done.stdout + done.stderr
    batches = -(-5 // batch)
    reset = [["lyn_set_current_context", "context"], ["lyn_model_reset_async", "stream", "model"]]
    one = [*reset, *[["infer", 36 * batch]] * 5]
    assert folder.calls == [["Model", 0, "Net_0"], *one * batches]
    expect(folder, folder.read("y.npz"), X)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_unrolled_network_runs_in_one_call(tmp_path: Path, batch: int) -> None:
    folder = Folder(tmp_path, compiled(batch=batch, form="unrolled", monitor=("relu_1", "relu_5")))
    folder.write("x.npz", X)
    done = folder.run(*LYNPY, "--device", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder.calls == [["Model", 3, "Net_0"], *[["infer", 36 * batch]] * -(-5 // batch)]
    expect(folder, folder.read("y.npz"), X)
    done = folder.run(*LYNPY, "--timesteps", "7")
    assert done.returncode == 2
    assert "unrolled to 5 time steps" in done.stdout


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.relu(self.a(x) + self.b(y))
        return self.c(z), z


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 4}, {"form": "unrolled", "batch": 2}])
def test_several_inputs_and_outputs(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    xs = [np.random.default_rng(i).random((5, n), dtype=np.float32) for i, n in enumerate((6, 4))]
    model = snncc.compile(Two(), "lynxi", calibration=[tuple(xs)], timesteps=5, bias="keep", **options)
    folder = Folder(tmp_path, model)
    folder.write("x.npz", *xs)
    done = folder.run(*LYNPY)
    assert done.returncode == 0, done.stdout + done.stderr
    expect(folder, folder.read("y.npz"), *xs)
    done = folder.run("run.py", "--input", "x.npz", "--output", "z.npz", "--json", fakes=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"executor": "onnxruntime"})
    expect(folder, folder.read("z.npz"), *xs)


# --- what can go wrong ----------------------------------------------------------------------------------------------


def test_errors_are_said_and_nothing_is_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path, compiled(encoding="rate"))
    folder.write("x.npz", X)
    np.savez(folder.path / "shape.npz", x0=np.zeros((5, 2, 1, 6, 5)))
    np.savez(folder.path / "steps.npz", x0=np.zeros((4, 2, 1, 6, 6)))
    np.savez(folder.path / "other.npz", y=np.zeros(1))
    (folder.path / "text.npz").write_text("no npz")
    for line, words in (
        ((), "--input and --output are needed"),
        (("--input", "none.npz"), "the input cannot be read"),
        (("--input", "text.npz"), "the input cannot be read"),
        (("--input", "other.npz"), "the input cannot be read"),
        (("--input", "shape.npz"), "x0 must have shape (5, N, 1, 6, 6), it has (5, 2, 1, 6, 5)"),
        (("--input", "steps.npz"), "x0 must have shape (5, N, 1, 6, 6), it has (4, 2, 1, 6, 6)"),
        (("--input", "x.npz", "--timesteps", "0"), "--timesteps must be at least 1"),
        (("--input", "x.npz", "--executor", "lynpy"), "lynpy is not in this Python"),
        (("--validate",), "Lynxi publishes no validator"),
    ):
        done = folder.run("run.py", "--json", "--output", "y.npz", *line, fakes=False)
        assert (done.returncode, done.stderr) == (2, ""), done.stderr
        assert words in json.loads(done.stdout)["message"]
        assert not (folder.path / "y.npz").exists()
    done = folder.run("run.py", "--executor", "lynpy", "--input", "x.npz", "--output", "y.npz")
    assert done.returncode == 2
    assert "--model is needed" in done.stdout
    (folder.path / "network.json").write_text("{")
    done = folder.run("run.py", "--input", "x.npz", "--output", "y.npz", fakes=False)
    assert done.returncode == 2
    assert "the network cannot be read" in done.stdout


@pytest.mark.parametrize("name", ["model.py", "run.py", "compile_lynxi.py"])
def test_written_files_are_python_3_6(name: str) -> None:
    """What lyngor's wheels are for."""
    path = Path(snncc.__file__).parent / "targets" / "lynxi" / name
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
