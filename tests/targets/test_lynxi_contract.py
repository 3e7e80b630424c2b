"""A contract test: with fakes of Lynxi's SDK that know only the calls that its users publish (tests/lynxi_fakes), the
written compile_lynxi.py and run.py make exactly those. It says nothing about hardware, and is never counted as such."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lynxinets import IFNode, LIFNode, TwoInputs
from torch import nn

import snncc
from snncc.ir.types import Array, per_channel
from snncc.targets.lynxi import compile_lynxi

FAKES = Path(__file__).parents[1] / "lynxi_fakes"
X = np.random.default_rng(0).random((5, 1, 6, 6), dtype=np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)
    ).eval()


def compiled(**options: Any) -> snncc.CompiledModel:
    return snncc.compile(
        network(), "lynxi", calibration=X, **{"timesteps": 5, "bias": "keep", "selfcheck": False, **options}
    )


class Folder:
    """A written folder, with the fakes in reach of what runs in it."""

    def __init__(self, path: Path, model: snncc.CompiledModel) -> None:
        self.path, self.model = model.save(path / "net"), model
        self.log = path / "log"
        (self.path / "Net_0").mkdir()  # what compile_lynxi.py makes

    def run(self, *line: str, fakes: bool = True, fails: int = 0) -> subprocess.CompletedProcess[str]:
        self.log.unlink(missing_ok=True)
        own = {"FAKE_LYNXI_LOG": str(self.log), "FAKE_LYNXI_FAILS": str(fails)}
        environment = {**os.environ, **own, "PYTHONPATH": str(FAKES) if fakes else ""}
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

CUSTOM = ("resetwithdecay", "cmpandfire", "load", "save")


@pytest.mark.parametrize(("batch", "build"), [(1, {"version": 0}), (4, {"version": 1, "run_batch": 4})])
def test_one_time_step_is_compiled_as_bidl_does(tmp_path: Path, batch: int, build: dict[str, int]) -> None:
    """LynxiTech/BIDL, lynadapter/model_operate.py, run_custom_op_in_model_by_lyn: it builds `mod`, at opt_level 3; the
    shape stays that of one sample. tools/test.py: float16. custom_op_my_lif.py: what is converted."""
    folder = Folder(tmp_path, compiled(reset="zero", batch=batch))
    done = folder.run("compile_lynxi.py")
    assert done.returncode == 0, done.stderr
    assert f"--model {folder.path / 'lynxi_out' / 'Net_0'} " in done.stdout
    *calls, _, builder, built = folder.calls
    assert calls == [
        ["op_graph_batch_limit", 25],
        *[["convert", f"custom::{name}"] for name in CUSTOM],
        ["load", "Pytorch", {"input": [1, 1, 6, 6]}, "float16", None],
        [
            "traced",
            *[
                ["custom::load", "relu_1"],
                ["custom::cmpandfire"],
                ["custom::resetwithdecay"],
                ["custom::save", "relu_1"],
            ],
            *[
                ["custom::load", "relu_5"],
                ["custom::cmpandfire"],
                ["custom::resetwithdecay"],
                ["custom::save", "relu_5"],
            ],
        ],
    ]
    assert builder == ["Builder", "apu", True]
    assert built == ["build", "mod", "params", 3, "lynxi_out", {"profiler": False, **build}]


def leaky() -> snncc.CompiledModel:
    """A network of spiking neurons of its own."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 4), LIFNode(tau=4.0, v_reset=0.0), nn.Linear(4, 3), IFNode(v_reset=0.0), nn.Linear(3, 2)
    x = np.random.default_rng(0).random((5, 6), dtype=np.float32)
    return snncc.compile(nn.Sequential(*layers).eval(), "lynxi", calibration=x, timesteps=5)


@pytest.mark.parametrize("kind", ["decay", "start"])
def test_custom_operations_become_what_bidl_makes_of_them(tmp_path: Path, kind: str) -> None:
    """LynxiTech/BIDL, lynadapter/custom_op_in_lyn/custom_op_my_lif.py, word for word: resetwithdecay with th1 theta,
    const0 beta, const1 alpha, else0 v_0 * alpha + beta; cmpandfire from th0 theta to th1 0x7C00."""
    folder = Folder(tmp_path, leaky() if kind == "decay" else compiled(reset="zero", v0=0.25))
    assert folder.run("compile_lynxi.py", "--profiler").returncode == 0
    assert folder.calls[-1][-1] == {"profiler": True, "version": 0}
    layers = [e for e in json.loads((folder.path / "network.json").read_text())["layers"] if e["kind"] == "neuron"]
    assert [e["decay"] for e in layers] == ([0.75, 1.0] if kind == "decay" else [1.0, 1.0])
    assert all((e["rest"] < 0) == (kind == "start") for e in layers)  # potentials count from where they start
    wanted: list[Any] = ["converted"]
    for layer in layers:
        theta = float(np.nextafter(np.float16(layer["threshold"]), np.float16(0)))  # these fire above, not at, it
        flag, v_0, alpha, beta = layer["name"], layer["rest"], layer["decay"], 0.0
        wanted += [
            {"load": ["x", flag, True, [], "float32", 0, 0, False, 0, 0]},
            {"pfit": ["x", theta, 0x7C00, 12, 1, 0, 0, 0, 0, 0]},
            {"pfit": ["x", -100.0, theta, 12, beta, alpha, 0, 0, v_0 * alpha + beta, 0]},
            {"save": ["x", flag, 0, 0, False, False, 0, 0]},
        ]
    assert folder.calls[-3] == wanted


def test_conversions_with_operands_that_all_differ() -> None:
    """The same file, with numbers that no network of ours has together."""
    lyngor = SimpleNamespace(
        apu=SimpleNamespace(pfit=dict, load=dict, save=lambda *operands: operands), pytorch_convert_map={}
    )
    compile_lynxi.register(lyngor)
    convert = lyngor.pytorch_convert_map
    assert convert["custom::resetwithdecay"](["x", 0.5, 0.25, 0.75, 0.125], None) == {
        "data": "x", "th0": -100.0, "th1": 0.5, "cfg": 12, "const0": 0.125, "const1": 0.75, "const2": 0, "const3": 0,
        "else0": 0.25 * 0.75 + 0.125, "else1": 0,
    }  # fmt: skip
    assert convert["custom::cmpandfire"](["x", 0.5], None) == {
        "data": "x", "th0": 0.5, "th1": 0x7C00, "cfg": 12, "const0": 1, "const1": 0, "const2": 0, "const3": 0,
        "else0": 0, "else1": 0,
    }  # fmt: skip
    assert convert["custom::load"](["x", "flag", True, [3], "float16", 4, 5, True, 6, 7], None) == {
        "data": "x", "flag": "flag", "is_initial": True, "shape": [3], "dtype": "float16", "offset": 4, "step": 5,
        "uselookup": True, "mode": 6, "group_id": 7,
    }  # fmt: skip
    saved = ("x", "flag", 1, 2, True, False, 3, 4)
    assert convert["custom::save"](list(saved), None) == saved


def test_the_unrolled_network_is_compiled_as_spikingjelly_does(tmp_path: Path) -> None:
    """fangwei123456/spikingjelly, activation_based/lynxi_exchange.py, compile_lynxi_model: it builds `graph`, apu_only,
    and says what goes out; examples/lynxi_fmnist_inference.py: float16, the batch is in the shape."""
    folder = Folder(tmp_path, compiled(form="unrolled", batch=3, encoding="rate"))
    done = folder.run("compile_lynxi.py", "--out", "elsewhere")
    assert done.returncode == 0, done.stderr
    assert f"--model {Path('elsewhere') / 'Net_0'} " in done.stdout
    assert folder.calls == [
        ["load", "Pytorch", {"input": [15, 1, 6, 6]}, "float16", "float16"],
        ["traced"],
        ["converted"],
        ["Builder", "apu", True],
        ["build", "graph", "params", "elsewhere", {"apu_only": True}],
    ]


def test_without_lyngor(tmp_path: Path) -> None:
    done = Folder(tmp_path, compiled()).run("compile_lynxi.py", fakes=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "lyngor, torch and numpy must be in this Python" in done.stdout


def test_without_the_custom_operations(tmp_path: Path) -> None:
    folder = Folder(tmp_path, compiled(reset="zero"))
    done = folder.run("compile_lynxi.py", "--custom-ops", "absent.so")
    assert (done.returncode, done.stderr) == (2, "")
    assert "the custom operations are not to be had, see --custom-ops: " in done.stdout
    assert "absent.so" in done.stdout
    code = "import torch; del torch.library; import compile_lynxi; raise SystemExit(compile_lynxi.main([]))"
    done = folder.run("-c", code)  # an old torch, which cannot be taught operations in Python
    assert (done.returncode, done.stderr) == (2, "")
    assert "see --custom-ops: " in done.stdout


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


def infer(*given: Any, outputs: int) -> list[Any]:
    """One call: what goes in, and how many arrays come out."""
    return [["from_numpy", *given], ["apu"], ["infer"], *[["cpu"]] * outputs]


@pytest.mark.parametrize("encoding", ["constant", "rate"])
@pytest.mark.parametrize("batch", [1, 4])
def test_one_time_step_runs_with_states_reset_before_each_sample(tmp_path: Path, batch: int, encoding: str) -> None:
    """LynxiTechnology/Lynxi-model-zoo, common/libs/lynpy.py for the calls, a batch sample by sample; LynxiTech/BIDL,
    lynadapter/lyn_sdk_model.py for the reset. The last of five samples fills its batch up."""
    folder = Folder(tmp_path, compiled(batch=batch, encoding=encoding, monitor=("relu_1",), reset="zero"))
    folder.write("x.npz", X)
    done = folder.run(*LYNPY)
    assert done.returncode == 0, done.stdout + done.stderr
    one = ["float16", 1, 1, 6, 6]
    step = infer(*(one if batch == 1 else [one] * batch), outputs=2 * batch)
    reset = [["lyn_set_current_context", "context"], ["lyn_model_reset_async", "stream", "model"]]
    assert folder.calls == [["Model", 0, "Net_0"], *[*reset, *step * 5] * {1: 5, 4: 2}[batch]]
    expect(folder, folder.read("y.npz"), X)


def test_another_number_of_time_steps(tmp_path: Path) -> None:
    folder = Folder(tmp_path, leaky())
    x = np.random.default_rng(1).random((2, 6), dtype=np.float32)
    folder.write("x.npz", x)
    done = folder.run(*LYNPY, "--timesteps", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder.calls.count(["infer"]) == 2 * 7
    np.testing.assert_allclose(folder.read("y.npz")["scores0"], folder.model.simulate(x, 7).output, rtol=1e-6)


@pytest.mark.parametrize(("batch", "encoding", "rows"), [(1, "constant", 1), (2, "constant", 2), (2, "rate", 10)])
def test_the_unrolled_network_runs_in_one_call(tmp_path: Path, batch: int, encoding: str, rows: int) -> None:
    """fangwei123456/spikingjelly, activation_based/lynxi_exchange.py: the batch is in the shapes."""
    monitor = ("relu_1", "relu_5")
    folder = Folder(tmp_path, compiled(batch=batch, form="unrolled", encoding=encoding, monitor=monitor))
    folder.write("x.npz", X)
    done = folder.run(*LYNPY, "--device", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    step = infer("float16", rows, 1, 6, 6, outputs=3)
    assert folder.calls == [["Model", 3, "Net_0"], *step * {1: 5, 2: 3}[batch]]
    expect(folder, folder.read("y.npz"), X)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 4}, {"form": "unrolled", "batch": 2}])
def test_several_inputs_and_outputs(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    xs = [np.random.default_rng(i).random((5, n), dtype=np.float32) for i, n in enumerate((6, 4))]
    model = snncc.compile(TwoInputs(), "lynxi", calibration=[tuple(xs)], timesteps=5, bias="keep", **options)
    folder = Folder(tmp_path, model)
    folder.write("x.npz", *xs)
    done = folder.run(*LYNPY)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = options["batch"] == 2
    one = [["float16", 2, 6], ["float16", 2, 4]] if whole else [["float16", 1, 6], ["float16", 1, 4]] * options["batch"]
    assert next(call for call in folder.calls if call[0] == "from_numpy") == ["from_numpy", *one]
    expect(folder, folder.read("y.npz"), *xs)
    done = folder.run("run.py", "--input", "x.npz", "--output", "z.npz", "--json", fakes=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"executor": "onnxruntime"})
    expect(folder, folder.read("z.npz"), *xs)


@pytest.mark.parametrize("options", [{"encoding": "rate", "reset": "zero"}, {"form": "unrolled", "batch": 2}])
def test_onnxruntime(tmp_path: Path, options: dict[str, Any]) -> None:
    """It runs the step, whatever the form; `auto` takes it, unless --model is there."""
    folder = Folder(tmp_path, compiled(monitor=("relu_1", "relu_5"), **options))
    folder.write("x.npz", X)
    done = folder.run("run.py", "--executor", "onnxruntime", "--input", "x.npz", "--output", "y.npz", fakes=False)
    assert (done.returncode, done.stdout) == (0, "done by onnxruntime: y.npz\n")
    expect(folder, folder.read("y.npz"), X)
    done = folder.run("run.py", "--model", "Net_0", "--input", "x.npz", "--output", "z.npz", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"executor": "lynpy"})
    for name, array in folder.read("y.npz").items():
        np.testing.assert_array_equal(folder.read("z.npz")[name], array)


# --- what can go wrong ----------------------------------------------------------------------------------------------


def test_errors_are_said_and_nothing_is_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path, compiled(encoding="rate"))
    folder.write("x.npz", X)
    np.savez(folder.path / "shape.npz", x0=np.zeros((5, 2, 1, 6, 5)))
    np.savez(folder.path / "steps.npz", x0=np.zeros((4, 2, 1, 6, 6)))
    np.savez(folder.path / "none.npz", x0=np.zeros((5, 0, 1, 6, 6)))
    np.savez(folder.path / "other.npz", y=np.zeros(1))
    np.save(folder.path / "one.npy", np.zeros((5, 2, 1, 6, 6)))
    (folder.path / "text.npz").write_text("no npz")
    (folder.path / "empty.npz").touch()

    def refused(*line: str, **how: Any) -> str:
        done = folder.run("run.py", "--json", "--output", "y.npz", *line, **{"fakes": False, **how})
        assert (done.returncode, done.stderr) == (2, ""), done.stdout + done.stderr
        assert not (folder.path / "y.npz").exists()
        message: str = json.loads(done.stdout)["message"]
        return message

    for line, words in (
        ((), "--input and --output are needed"),
        (("--input", "absent.npz"), "the input cannot be read"),
        (("--input", "text.npz"), "the input cannot be read"),
        (("--input", "empty.npz"), "the input cannot be read"),
        (("--input", "one.npy"), "one.npy holds one array, it is no npz"),
        (("--input", "other.npz"), "the input cannot be read: it has no x0"),
        (("--input", "shape.npz"), "x0 must have shape (5, N, 1, 6, 6), it has (5, 2, 1, 6, 5)"),
        (("--input", "steps.npz"), "x0 must have shape (5, N, 1, 6, 6), it has (4, 2, 1, 6, 6)"),
        (("--input", "none.npz"), "the inputs do not hold the same number of samples"),
        (("--input", "x.npz", "--timesteps", "0"), "--timesteps must be at least 1"),
        (("--input", "x.npz", "--executor", "lynpy"), "lynpy is not in this Python"),
        (("--input", "x.npz", "--output", "absent/y.npz"), "the output cannot be written"),
        (("--validate",), "Lynxi publishes no validator"),
    ):
        assert words in refused(*line)
    lynpy = ("--executor", "lynpy", "--input", "x.npz")
    assert "--model is needed" in refused(*lynpy, fakes=True)
    assert "lynpy failed" in refused(*lynpy, "--model", "absent", fakes=True)
    assert "could not reset the states" in refused(*lynpy, "--model", "Net_0", fakes=True, fails=1)
    (folder.path / "step.onnx").unlink()
    assert "step.onnx cannot be read" in refused("--input", "x.npz")
    for damaged in ("{", "{}"):
        (folder.path / "network.json").write_text(damaged)
        assert "the network cannot be read" in refused("--input", "x.npz")


def test_samples_and_time_steps_that_do_not_fit(tmp_path: Path) -> None:
    xs = [np.zeros((5, 6), np.float32), np.zeros((5, 4), np.float32)]
    model = snncc.compile(TwoInputs(), "lynxi", calibration=[tuple(xs)], timesteps=5, form="unrolled")
    folder = Folder(tmp_path, model)
    np.savez(folder.path / "x.npz", x0=xs[0], x1=xs[1][:3])
    done = folder.run(*LYNPY)
    assert (done.returncode, done.stdout) == (2, "error: the inputs do not hold the same number of samples\n")
    np.savez(folder.path / "x.npz", x0=xs[0], x1=xs[1])
    done = folder.run(*LYNPY, "--timesteps", "7")
    assert done.returncode == 2
    assert "unrolled to 5 time steps, and takes no others" in done.stdout


@pytest.mark.parametrize("name", ["model.py", "run.py", "compile_lynxi.py"])
def test_written_files_are_python_3_6(name: str) -> None:
    """What lyngor's wheels are for."""
    path = Path(snncc.__file__).parent / "targets" / "lynxi" / name
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
