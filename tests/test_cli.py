"""The command line, in this process: what it prints, writes and answers, and what it says to everything wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from zoo import build, example_input

import snncc
from snncc.cli import USAGE, _parser, main
from snncc.console import console, core_table, limits_view, report_table
from snncc.ir import parse

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.AvgPool2d(2), nn.Linear(64, 5)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))


class Large(Net):
    def forward(self, x):
        x = torch.relu(self.conv(x))
        return torch.nn.functional.max_pool2d(x, 8).flatten(1)  # not on the chip


def make_model():
    torch.manual_seed(0)
    return Net()


def make_large():
    return Large()


def broken():
    sizes = {}
    return nn.Linear(sizes["hidden"], 3)  # raises


def leaves():
    raise SystemExit("usage: model.py")


instance, number, zero = make_model(), 3, lambda: 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.py, its weights, and data; and what compiling them for two targets wrote."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "model.py").write_text(MODEL)
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").touch()
    (folder / "pkg" / "models.py").write_text(MODEL)
    x = example_input((1, 8, 8), 12, seed=1).numpy()
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", x=x, y=np.arange(12))
    np.save(folder / "labels.npy", np.arange(12) % 5)
    np.save(folder / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    net = build("chip_small").state_dict()
    save_file(
        {"conv.weight": net["0.weight"], "fc.weight": net["4.weight"], "fc.bias": torch.zeros(5)},
        folder / "w.safetensors",
    )
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the folder; modules and import paths as before afterwards."""
    monkeypatch.chdir(place)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("model", "pkg") or name.endswith(" of snncc"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def built(place: Path) -> Path:
    """What `snncc compile` writes for a chip."""
    model = ["compile", f"{place / 'model.py'}:make_model", "--calibration", str(place / "x.npy")]
    assert main([*model, "--target", "speck2b", "-o", str(place / "built"), "--timesteps", "8"]) == 0
    return place / "built"


Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def ask(capsys: Captured, *arguments: object) -> tuple[int, Any]:
    """The answer as JSON, and nothing beside it."""
    status, out, err = run(capsys, *arguments, "--json")
    assert err == ""
    return status, json.loads(out)


def fails(capsys: Captured, *arguments: object) -> str:
    """What is said of wrong arguments: in words and, with --json, as data of the same codes."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) in ((1, ""), (2, ""))
    assert "Traceback" not in err and err.rstrip().endswith("error")
    again, answer = ask(capsys, *arguments)
    assert again == status and answer["ok"] is False
    (found,) = answer["diagnostics"]
    assert status == (2 if found["code"] in USAGE else 1)
    assert err.startswith(f"error[{found['code']}]: {found['message'].splitlines()[0]}")
    return f"{found['code']} {err}"


COMPILE = ("compile", "model.py:make_model", "--calibration", "x.npy", "-o", "unwritten")


# --- compile and check ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["model.py:make_model", "pkg.models:make_model", "model.py:instance", "model.py:Net"])
def test_compile(capsys: Captured, tmp_path: Path, model: str) -> None:
    status, out, err = run(
        capsys, "compile", model, "--calibration", "x.npy", "--target", "speck2b", "-o", tmp_path / "b"
    )
    assert status == 0
    assert f"written: {tmp_path / 'b'}" in out
    assert "Net on speck2b" in out and "cores of speck2b" in out and "0 + 16,384" in out
    assert "warning[SNN020]: `fc`" in err and err.endswith(" notes\n")
    loaded = snncc.load(tmp_path / "b")
    assert [row["layer"] for row in loaded.report] == ["conv", "fc"]


def test_compile_says_json(capsys: Captured, tmp_path: Path) -> None:
    status, answer = ask(capsys, *COMPILE[:-1], tmp_path / "b", "--target", "dynapcnn", "--bias", "strip", "--seed", 3)
    assert (status, answer["ok"], answer["folder"]) == (0, True, str(tmp_path / "b"))
    assert {d["code"] for d in answer["diagnostics"]} >= {"SNN021", "SNN033"}
    assert answer["report"] == snncc.load(tmp_path / "b").report


def test_weights_and_options(capsys: Captured, tmp_path: Path) -> None:
    options = [
        "--encoding",
        "rate",
        "--reset",
        "zero",
        "--threshold",
        "percentile",
        "--percentile",
        "99",
        "--per",
        "layer",
    ]
    options += ["--v0", "0", "--weight-bits", "4", "--timesteps", "5", "--bias", "keep", "--seed", "9"]
    weights = ["--weights", "w.safetensors", "--input-shape", "1,8,8"]
    status, _, err = run(capsys, *COMPILE[:-1], tmp_path / "b", *weights, *options)
    assert (status, err) == (0, "")
    loaded = snncc.load(tmp_path / "b")
    asked = dict(zip(options[::2], options[1::2], strict=True))
    for name, value in asked.items():
        assert str(getattr(loaded.options, name[2:].replace("-", "_"))) in (value, f"{value}.0")
    conv = next(n for n in loaded.graph.nodes if n.name == "conv")
    weight = loaded.graph.value(conv.op.weight)  # type: ignore[attr-defined]
    wanted = build("chip_small").state_dict()["0.weight"].numpy()
    assert np.corrcoef(weight.ravel(), wanted.ravel())[0, 1] > 0.99


def test_check(capsys: Captured) -> None:
    status, out, err = run(capsys, "check", "model.py:make_model", "--input-shape", "1,8,8", "--target", "speck2b")
    table, _, said = out.removesuffix("\n").rpartition("\n")
    assert status == 0
    assert said == "nothing stands in the way of speck2b (as far as that can be told without calibration data)"
    assert "layers on speck2b" in table and "5-6" in table and "fits" in table
    assert "SNN020" in err
    status, out, _ = run(capsys, "check", "model.py:make_model", "--calibration", "x.npz", "--target", "speck2b")
    assert status == 0 and out.endswith("\nnothing stands in the way of speck2b\n")
    status, answer = ask(capsys, "check", "model.py:instance", "--calibration", "x.npy", "--bias", "keep")
    assert (status, answer) == (0, {"ok": True, "diagnostics": [], "layers": []})
    status, answer = ask(capsys, "check", "model.py:make_model", "--calibration", "x.npy", "--target", "speck2b")
    assert status == 0 and len(answer["layers"][0]["holds"]) == 9 and answer["layers"][0]["cores"] == [0]


def test_check_fails(capsys: Captured) -> None:
    (line,) = (i for i, text in enumerate(MODEL.splitlines()) if "# not on the chip" in text)
    arguments = ["check", "model.py:make_large", "--input-shape", "1,8,8", "--target", "speck2b"]
    status, out, err = run(capsys, *arguments)
    assert status == 1 and "nothing stands in the way" not in out
    assert "error[SNN031]" in err and f"model.py:{line + 1}" in err and "# not on the chip" in err
    status, answer = ask(capsys, *arguments)
    assert (status, answer["ok"]) == (1, False)
    found = next(d for d in answer["diagnostics"] if d["code"] == "SNN031")
    assert found["locations"][0]["line"] == line + 1 and found["severity"] == "error"
    status, answer = ask(capsys, "compile", *arguments[1:2], *COMPILE[2:], "--target", "speck2b")
    assert (status, answer["ok"]) == (1, False)
    assert not Path("unwritten").exists()


# --- targets --------------------------------------------------------------------------------------------------------


def test_targets(capsys: Captured) -> None:
    status, out, _ = run(capsys, "targets")
    assert status == 0 and all(name in out for name in snncc.targets())
    status, answer = ask(capsys, "targets")
    assert status == 0 and [t["name"] for t in answer] == list(snncc.targets())


def test_one_target(capsys: Captured) -> None:
    status, out, _ = run(capsys, "targets", "speck2f")
    assert status == 0
    assert "65,536" in out and "1 to 16" in out and "1, 2, 4, 8" in out and "layer 12, classes 15, step 4" in out
    status, (answer,) = ask(capsys, "targets", "speck2f")
    assert answer["limits"]["kernel_sizes"] == {"min": 1, "max": 16}
    assert answer["limits"]["cores"][0]["neuron_words"] == 65536
    assert run(capsys, "targets", "reference")[:2] == (0, "reference  no hardware limits; simulated\n")
    assert "SNN078" in fails(capsys, "targets", "loihi9")


# --- simulate and run -----------------------------------------------------------------------------------------------


def test_simulate(capsys: Captured, built: Path, tmp_path: Path) -> None:
    output = snncc.load(built).simulate(np.load("x.npy")).output
    accuracy = (output.argmax(1) == np.load("labels.npy")).mean()
    status, out, _ = run(capsys, "simulate", built, "--input", "x.npy", "--labels", "labels.npy")
    assert status == 0 and "samples: 12" in out and "timesteps: 8" in out and f"accuracy: {accuracy:.4g}" in out
    status, answer = ask(
        capsys, "simulate", built, "--input", "x.npz", "--labels", "labels.npy", "-o", tmp_path / "o.npz"
    )
    assert status == 0 and answer["accuracy"] == accuracy
    assert answer["classes"] == output.argmax(1).tolist()
    with np.load(tmp_path / "o.npz") as file:
        np.testing.assert_array_equal(file["output"], output)
    status, answer = ask(capsys, "simulate", built, "--input", "x.npy", "--timesteps", 3)
    assert answer["timesteps"] == 3 and "accuracy" not in answer


def test_simulate_fails(capsys: Captured, built: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:  # labels are looked at before anything runs
        patch.setattr(snncc.CompiledModel, "simulate", None)
        assert "SNN074 error" in fails(capsys, "simulate", built, "--input", "x.npy", "--labels", "x.npy")
    assert "SNN071 error" in fails(capsys, "simulate", "nowhere", "--input", "x.npy")
    assert "SNN005 error" in fails(capsys, "simulate", built, "--input", "labels.npy")
    assert "SNN070 error" in fails(capsys, "simulate", built, "--input", "x.npy", "--timesteps", "0")
    assert "SNN075 error" in fails(capsys, "simulate", built, "--input", "x.npy", "-o", tmp_path / "no" / "o.npz")


@pytest.fixture
def no_sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SNNCC_SAMNA_PYTHON", raising=False)
    monkeypatch.setenv("SNNCC_CACHE", str(tmp_path / "empty"))


@pytest.mark.usefixtures("no_sdk")
def test_run_without_sdk(capsys: Captured, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ([], ["--input", "x.npy"]):
        said = fails(capsys, "run", built, *more)
        assert "SNN080" in said and "no environment with samna" in said and "make sdk" in said
    monkeypatch.setenv("SNNCC_SAMNA_PYTHON", "/nowhere/python")
    assert "no Python for samna at /nowhere/python (SNNCC_SAMNA_PYTHON)" in fails(capsys, "run", built)
    assert "no Python for samna at" in fails(capsys, "run", built, "--python", "also/nowhere")


@pytest.mark.parametrize("valid", [True, False])
def test_run(capsys: Captured, built: Path, monkeypatch: pytest.MonkeyPatch, valid: bool) -> None:
    """With a stand-in for the vendor's answer: the real one is in tests/vendor."""
    answer = snncc.Validation(valid, "" if valid else "Layer 3: no", "samna 0.7.1.0")
    monkeypatch.setattr(snncc.CompiledModel, "validate", lambda self, python: answer)
    said = "valid" if valid else "NOT VALID: Layer 3: no"
    assert run(capsys, "run", built)[:2] == (int(not valid), f"{built}: {said} (samna 0.7.1.0)\n")
    assert ask(capsys, "run", built) == (
        int(not valid), {"ok": valid, "message": answer.message, "version": "samna 0.7.1.0"},
    )  # fmt: skip


def test_run_on_a_board(capsys: Captured, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def on_board(self: snncc.CompiledModel, x: Any, timesteps: int | None, **options: Any) -> Any:
        asked.update(options)
        return self.simulate(x, timesteps)

    monkeypatch.setattr(snncc.CompiledModel, "run", on_board)
    more = ["--device", "board:1", "--timestep-us", 500, "--timesteps", 4, "-o", tmp_path / "o.npz"]
    status, out, _ = run(capsys, "run", built, "--input", "x.npy", *more)
    assert status == 0 and "timesteps: 4" in out and f"written: {tmp_path / 'o.npz'}" in out
    assert asked == {"python": None, "device": "board:1", "timestep_us": 500}


# --- dump -----------------------------------------------------------------------------------------------------------

DUMP = ("dump", "model.py:make_model", "--calibration", "x.npy", "--target", "speck2b")


def test_dump(capsys: Captured) -> None:
    status, out, err = run(capsys, *DUMP)
    assert (status, err) == (0, "")
    assert parse(out).stage == "mapped" and 'place = "core' in out and "model.py" in out
    assert "model.py" not in run(capsys, *DUMP, "--no-loc")[1]


def test_dump_after(capsys: Captured) -> None:
    assert parse(run(capsys, *DUMP, "--after", "fold-batch-norm")[1]).stage == "folded"
    assert parse(run(capsys, *DUMP, "--after", "trace")[1]).stage == "ann"
    status, everything = ask(capsys, *DUMP, "--print-after-all")
    labels = [each["label"].partition("{")[0] for each in everything]
    assert status == 0 and labels[0] == "trace" and labels[-1] == "place" and len(labels) == 13
    for each in everything:
        parse(each["text"])
    _, changed = ask(capsys, *DUMP, "--print-after-all", "--only-changed")
    assert {"canonicalize", "check-limits", "check-bias", "fuse-linear", "insert-relays"} == {
        each["label"].partition("{")[0] for each in everything
    } - {each["label"].partition("{")[0] for each in changed}
    banners = run(capsys, *DUMP, "--print-after-all")[1].count("// -----")
    assert banners == 13
    said = fails(capsys, *DUMP, "--after", "optimise")
    assert "SNN085" in said and "there is no pass 'optimise'" in said and "lower-activations" in said


def test_dump_differences(capsys: Captured, built: Path) -> None:
    """What each pass changed; the first stage is whole, and what changed nothing says so."""
    status, everything = ask(capsys, *DUMP, "--diff")
    assert status == 0 and len(everything) == 13
    assert everything[0]["diff"] == [] and all(each["diff"][0].startswith("@@") for each in everything if each["diff"])
    _, out, _ = run(capsys, *DUMP, "--diff")
    assert out.count("// -----// IR Dump After") == 13 and "// (no change)" in out
    assert "\x1b[" not in out and "+    %conv1.encode" not in out.partition("lower-activations")[0]
    _, out, _ = run(capsys, *DUMP, "--diff", "--only-changed", "--no-loc")
    assert "// (no change)" not in out and "loc(" not in out
    _, out, _ = run(capsys, "dump", built, "--diff", "--after", "quantize")
    assert out.startswith("// -----// IR Dump After quantize") and "+module attributes" in out


def test_dump_a_folder(capsys: Captured, built: Path) -> None:
    status, out, _ = run(capsys, "dump", built)
    assert status == 0 and parse(out) == snncc.load(built).graph
    assert parse(run(capsys, "dump", built, "--after", "quantize")[1]).stage == "int"


def test_dump_for_other_viewers(capsys: Captured, built: Path) -> None:
    status, out, _ = run(capsys, "dump", built, "--format", "model-explorer")
    assert status == 0 and [graph["id"] for graph in json.loads(out)["graphs"]][-1] == "012 place"
    status, out, _ = run(capsys, "dump", built, "--format", "dot", "--after", "trace")
    assert status == 0 and out.startswith("digraph") and out.count("digraph") == 1 and '"conv" ->' in out
    for more in ("--json", "--diff", "--no-loc"):
        status, out, err = run(capsys, "dump", built, "--format", "dot", more)
        assert status == 2 and "--format dot takes no" in out + err
    status, _, err = run(capsys, "dump", built, "--format", "model-explorer", "--after", "trace")
    assert status == 2 and "error[SNN083]" in err and "leave out --after" in err


def test_a_folder_has_its_page(capsys: Captured, built: Path, tmp_path: Path) -> None:
    text = (built / "explorer.html").read_text(encoding="utf-8")
    assert "def make_model" in text and "explorer.html" in json.loads((built / "manifest.json").read_text())["files"]
    status, _, _ = run(capsys, "compile", *DUMP[1:], "-o", tmp_path / "plain", "--no-explorer")
    assert status == 0 and not (tmp_path / "plain" / "explorer.html").exists()
    assert len(snncc.load(tmp_path / "plain").records) == 13


def test_a_reader_that_has_enough(built: Path) -> None:
    """`snncc dump ... | head -1` ends quietly."""
    code = f"import sys; from snncc.cli import main; sys.exit(main(['dump', {str(built)!r}, '--print-after-all']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.safetensors", None, "cannot be read"),
        ("garbage.safetensors", b"garbage", "cannot be read"),
        ("empty.safetensors", b"", "cannot be read"),
        ("cut.safetensors", b"\x40\0\0\0\0\0\0\0{", "cannot be read"),
        ("weights.pt", b"PK\x03\x04", "only .safetensors are read"),
        ("weights", b"", "only .safetensors are read"),
    ],
)
def test_weights_that_cannot_be_read(
    capsys: Captured, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = fails(capsys, *COMPILE, "--weights", tmp_path / name)
    assert said.startswith("SNN071") and words in said and str(tmp_path / name) in said


def test_weights_that_do_not_fit(capsys: Captured, tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(4, 1, 5, 5), "head.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    said = fails(capsys, *COMPILE, "--weights", tmp_path / "w.safetensors")
    assert "SNN071" in said and "do not fit the model" in said
    for words in ("fc.weight", "head.weight", "size mismatch for conv.weight"):
        assert words in said
    assert "\\t" not in said


@pytest.mark.parametrize("shape", ["1x8x8", "1,8,", "0,8,8", "a", ""])
def test_input_shapes_that_are_none(capsys: Captured, shape: str) -> None:
    assert "SNN070" in fails(capsys, "check", "model.py:make_model", "--input-shape", shape)


def test_wrong_input_shape(capsys: Captured) -> None:
    assert "SNN005" in fails(capsys, "check", "model.py:make_model", "--input-shape", "1,10,8")
    assert "SNN005" in fails(
        capsys, "check", "model.py:make_model", "--input-shape", "1,16,16", "--calibration", "x.npy"
    )
    assert "neither --input-shape nor --calibration" in fails(capsys, "check", "model.py:make_model")


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("model.py", "SNN070", "write it as package.module:name or file.py:name"),
        ("model.py:", "SNN070", "write it as"),
        ("nowhere.py:make", "SNN071", "there is no file nowhere.py"),
        ("no_such_package.models:make", "SNN071", "No module named 'no_such_package'"),
        ("pkg.no_such_module:make", "SNN071", "No module named 'pkg.no_such_module'"),
        ("model.py:no_such_name", "SNN087", "there is no model 'no_such_name' in model.py"),
        ("model.py:number", "SNN089", "is a int, not a torch.nn.Module"),
        ("model.py:zero", "SNN089", "is a int, not a torch.nn.Module"),
        ("model.py:broken", "SNN071", "KeyError: 'hidden'"),
        ("model.py:leaves", "SNN071", "SystemExit: usage: model.py"),
        ("model.py:Larg", "SNN087", "did you mean 'Large'?"),
        ("model.py:torch", "SNN089", "is a module, not"),
        ("json:dumps", "SNN071", "missing 1 required positional argument"),
    ],
)
def test_models_that_are_none(capsys: Captured, model: str, code: str, words: str) -> None:
    said = fails(capsys, "check", model, "--input-shape", "1,8,8")
    assert said.startswith(code) and words in said


def test_a_model_that_raises_is_shown_where(capsys: Captured) -> None:
    said = fails(capsys, "check", "model.py:broken", "--input-shape", "1,8,8")
    line = MODEL.splitlines().index('    return nn.Linear(sizes["hidden"], 3)  # raises') + 1
    assert f"model.py:{line}" in said and "# raises" in said
    assert "cli.py" not in said and "importlib" not in said


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import torch\n\nx = 1 +\n", ["SyntaxError: invalid syntax", "wrong.py:3", "x = 1 +"]),
        ("import torch\n\nx = 1 / 0  # here\n", ["ZeroDivisionError: division by zero", "wrong.py:3", "# here"]),
        ("import no_such_package\n", ["No module named 'no_such_package'", "wrong.py:1"]),
        ("import sys\nsys.exit(3)\n", ["SystemExit: 3", "wrong.py:2"]),
        ("def f():\n    raise ValueError\n\nf()\n", ["ValueError", "wrong.py:2", "wrong.py:4"]),
        ("x = '\udce9'\n", ["SyntaxError"]),
    ],
)
def test_a_model_file_that_raises(capsys: Captured, tmp_path: Path, code: str, words: list[str]) -> None:
    (tmp_path / "wrong.py").write_bytes(code.encode("utf-8", "surrogateescape"))
    said = fails(capsys, "check", f"{tmp_path / 'wrong.py'}:make", "--input-shape", "1,8,8")
    assert said.startswith("SNN071")
    for word in words:
        assert word in said


def test_a_model_file_with_a_name_that_is_taken(capsys: Captured, tmp_path: Path) -> None:
    """The user's json.py is not everyone's `json`."""
    (tmp_path / "json.py").write_text(MODEL)
    status, answer = ask(capsys, "check", f"{tmp_path / 'json.py'}:make_model", "--input-shape", "1,8,8")
    assert status == 0 and answer["ok"]
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.npy", None, "cannot be read"),
        ("garbage.npy", b"garbage", "no .npy or .npz file of numbers"),
        ("empty.npy", b"", "no .npy or .npz file of numbers"),
        ("cut.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4", "no .npy"),
        ("cut.npz", b"PK\x03\x04garbage", "no .npy or .npz file of numbers"),
    ],
)
def test_calibration_that_cannot_be_read(
    capsys: Captured, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = fails(capsys, *COMPILE[:3], tmp_path / name, *COMPILE[4:])
    assert said.startswith("SNN071") and words in said


def test_arrays_that_cannot_be_used(capsys: Captured, tmp_path: Path) -> None:
    said = fails(capsys, *COMPILE[:3], "objects.npy", *COMPILE[4:])
    assert said.startswith("SNN071") and "pickled objects are not read" in said
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    said = fails(capsys, *COMPILE[:3], tmp_path / "two.npz", *COMPILE[4:])
    assert "has the arrays a, b" in said and "call the one to read `x`" in said
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object), allow_pickle=True)
    assert "SNN071" in fails(capsys, *COMPILE[:3], tmp_path / "pickled.npz", *COMPILE[4:])
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    assert "not numbers" in fails(capsys, *COMPILE[:3], tmp_path / "text.npy", *COMPILE[4:])


def test_options_that_are_none(capsys: Captured) -> None:
    assert "SNN070" in fails(capsys, *COMPILE, "--bias", "drop")
    assert "there is no target 'loihi9'" in fails(capsys, *COMPILE, "--target", "loihi9")
    assert "does not take encoding" in fails(capsys, *COMPILE, "--target", "speck2b", "--encoding", "constant")


def test_places_that_cannot_be_written(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "was not written by snncc" in fails(capsys, *COMPILE[:-1], tmp_path / "file")
    assert "SNN075" in fails(capsys, *COMPILE[:-1], tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "x"


def test_usage(capsys: Captured) -> None:
    assert run(capsys)[0] == 2
    for wrong in (["optimise"], ["compile"], ["compile", "m:f"], ["simulate", "x"], ["compile", "--timesteps", "many"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
    assert "usage: snncc" in capsys.readouterr().err


def test_help_imports_nothing_slow() -> None:
    for arguments in (["--help"], ["compile", "--help"]):
        code = f"""
import sys
from snncc.cli import main
try:
    main({arguments})
except SystemExit as done:
    assert done.code == 0
print("IMPORTED", [m for m in ("torch", "numpy", "rich", "networkx", "safetensors") if m in sys.modules])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "IMPORTED []" in done.stdout and "usage: snncc" in done.stdout


def test_the_installed_command(place: Path) -> None:
    line = [str(Path(sys.executable).with_name("snncc")), "check", "pkg.models:make_model", "--input-shape", "1,8,8"]
    done = subprocess.run(line, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing stands in the way of reference")
    same = subprocess.run(
        [sys.executable, "-m", "snncc", "targets", "reference"], capture_output=True, text=True, check=True
    )
    assert same.stdout == "reference  no hardware limits; simulated\n"


# --- how it looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 110, 200])
def test_tables_are_not_cut(built: Path, width: int) -> None:
    compiled = snncc.load(built)
    for row in compiled.report:
        row["layer"] = f"features.{row['layer']}.1"
    out = console()
    out.width = width
    with out.capture() as capture:
        out.print(report_table(compiled.report, width), core_table(compiled, width), limits_view(compiled.target))
    text = capture.get()
    assert "…" not in text
    for words in ("features.conv.1", "synops", "error", "kernel memory", "0 + 16,384"):
        assert words in text
    assert ("threshold" in text.split("cores of")[0]) == (width > 110)


def test_user_text_is_no_markup(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "names.py").write_text(MODEL + "\nNet.__name__ = '[red]Net[/red]'\n")
    model = f"{tmp_path / 'names.py'}:make_model"
    status, out, _ = run(capsys, "compile", model, *COMPILE[2:4], "-o", tmp_path / "[bold]")
    assert status == 0 and "[red]Net[/red] on reference" in out and "[bold]" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chek"], "there is no command 'chek'; did you mean 'check'?"),
        (
            ["check", "model.py:make_model", "--calibratoin=x"],
            "'--calibratoin=x'; did you mean '--calibration'?",
        ),
        (["explore", "model.py:make_model", "--wacth"], "there is no option '--wacth'; did you mean '--watch'?"),
        (["check", "model.py:make_model", "--cores", "a"], "'a' is no list of numbers"),
    ],
)
def test_what_was_meant(capsys: Captured, words: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert said in capsys.readouterr().err


def test_every_option_has_words() -> None:
    parser, commands = _parser()
    actions = [(name, action) for name, sub in {"": parser, **commands}.items() for action in sub._actions]
    assert [(name, a.dest) for name, a in actions if not a.help and a.option_strings] == []
    assert [(name, a.dest) for name, a in actions if not a.help and name] == []
    assert len(actions) > 100


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"snncc {snncc.__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["compile", "--help"], ["--version"], ["chek"]])
def test_what_needs_no_network_answers_at_once(words: list[str]) -> None:
    code = (
        "import atexit, sys, time\n"
        "heavy = ('torch', 'numpy', 'rich', 'networkx')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], time.process_time() < 0.3))\n"
        f"from snncc.cli import main\nmain({words})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[] True", done.stderr


@pytest.mark.usefixtures("no_sdk")
def test_a_chip_that_samna_does_not_know(capsys: Captured, tmp_path: Path) -> None:
    """That is said first: not that samna is missing, and not after the input was read."""
    assert run(capsys, *COMPILE[:-1], tmp_path / "b", "--target", "speck2f")[0] == 0
    for more in ([], ["--input", "x.npy"]):
        said = fails(capsys, "run", tmp_path / "b", *more)
        assert "samna 0.7.1.0, which `make sdk` builds, does not know speck2f" in said
    assert "no Python for samna at" in fails(capsys, "run", tmp_path / "b", "--python", "nowhere")
    assert "samna is not installed" in fails(capsys, "run", tmp_path / "b", "--python", sys.executable)


def test_weights_that_nobody_gave(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "loads.py").write_text(
        "from safetensors.torch import load_file\nfrom model import Net\n"
        "def make():\n    net = Net()\n    net.load_state_dict(load_file('w.safetensors'))\n    return net\n"
    )
    words = ("--input-shape", "1,8,8", "--bias", "keep")
    assert "note[SNN102]: the weights are those that model.py:make_model was made with" in run(
        capsys, "check", "model.py:make_model", *words
    )[2]  # fmt: skip
    given = ("model.py:make_model", "--weights", "w.safetensors")
    for model in (given, ("model.py:instance",), (f"{tmp_path}/loads.py:make",)):
        assert run(capsys, "check", *model, *words)[2] == ""
