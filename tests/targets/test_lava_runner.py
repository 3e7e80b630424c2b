"""The emitted Lava runner where there is no Lava: what it says to wrong arguments, files and inputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snncc.targets.lava import run

NETWORK: dict[str, Any] = {
    "format": 1,
    "snncc": "0",
    "form": "process",
    "timesteps": 8,
    "longest": 100,
    "inputs": [{"name": "x", "shape": [2, 3], "message_bits": 0}, {"name": "z", "shape": [4], "message_bits": 8}],
    "populations": [],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(run.__file__, tmp_path)
    (tmp_path / "network.json").write_text(json.dumps(NETWORK))
    np.savez(tmp_path / "network.npz")
    return tmp_path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "run.py", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--validate", "--input", "x", "--output", "y"], "--validate runs nothing: leave out --input"),
        (["--input", "x"], "--input and --output go together"),
        (["--output", "x"], "--input and --output go together"),
        (["--input", "x", "--output", "y", "--timesteps", "0"], "--timesteps must be above 0"),
        (["--timesteps", "two"], "invalid int value: 'two'"),
        (["--record", "all"], "--record, --timesteps and --hardware need --input"),
        (["--timesteps", "3"], "--record, --timesteps and --hardware need --input"),
        (["--hardware"], "--record, --timesteps and --hardware need --input"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("form", ["process", "netx"])
def test_without_lava(folder: Path, form: str) -> None:
    (folder / "network.json").write_text(json.dumps({**NETWORK, "form": form}))
    done = call(folder, "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 2 and answer["valid"] is None and not done.stderr
    version = ".".join(map(str, sys.version_info[:3]))
    assert answer["message"].startswith(
        f"lava-nc is not installed for {sys.executable} (Python {version}); needed are "
    )
    assert ("lava-dl==0.6.0" in answer["message"]) == (form == "netx") and "lava-nc==0.10.0" in answer["message"]
    assert call(folder).stdout == f"error: {answer['message']}\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("network.json", None, "cannot read the network: "),
        ("network.json", "{", "cannot read the network: "),
        ("network.json", "[]", "was not written by snncc"),
        (
            "network.json",
            '{"snncc": "0", "form": "process", "populations": [], "format": 2}',
            "has format 2; this run.py",
        ),
        ("network.npz", None, "cannot read network.npz as .npz: FileNotFoundError"),
        ("network.npz", "", "cannot read network.npz as .npz: EOFError"),
        ("network.npz", "pickle", "cannot read network.npz as .npz: ValueError"),
        ("network.npz", "PK\3\4", "cannot read network.npz as .npz: BadZipFile"),
    ],
)
def test_broken_folders(folder: Path, name: str, text: str | None, said: str) -> None:
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    done = call(folder)
    assert done.returncode == 2 and not done.stderr and done.stdout.count("\n") == 1
    assert done.stdout.startswith("error: ") and said in done.stdout


X, Z = np.zeros((5, 2, 3), np.uint8), np.zeros((5, 4), np.int64)


def read(folder: Path, timesteps: int | None = None, **arrays: Any) -> tuple[list[Any], int, int]:
    np.savez(folder / "in.npz", **arrays)
    return run.read_input(folder / "in.npz", NETWORK, timesteps)


def test_inputs(tmp_path: Path) -> None:
    still = read(tmp_path, x0=X, x1=Z)
    assert still[1:] == (5, 8) and [x.shape for x in still[0]] == [X.shape, Z.shape]
    assert read(tmp_path, 3, x0=X, x1=Z)[1:] == (5, 3)
    assert read(tmp_path, x0=X, x1=np.stack([Z] * 6))[1:] == (5, 6)
    assert read(tmp_path, 6, x0=X > 0, x1=np.stack([Z] * 6))[1:] == (5, 6)
    assert read(tmp_path, x0=X, x1=Z - 256)[1:] == read(tmp_path, x0=X + 1, x1=Z + 255)[1:] == (5, 8)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x0": X}, "in.npz has x0; wanted: x0, x1"),
        ({}, "in.npz has nothing; wanted: x0, x1"),
        ({"x0": X, "x1": Z, "x2": Z}, "in.npz has x0, x1, x2; wanted"),
        ({"x0": X.astype(float), "x1": Z}, "x0 is float64 (5, 2, 3), not integers (N, 2, 3) or (T, N, 2, 3)"),
        ({"x0": X, "x1": Z[0]}, "x1 is int64 (4,), not integers (N, 4) or (T, N, 4)"),
        ({"x0": X.swapaxes(1, 2), "x1": Z}, "x0 is uint8 (5, 3, 2), not"),
        ({"x0": X[:0], "x1": Z[:0]}, "x0 is uint8 (0, 2, 3), not"),
        ({"x0": X[None, None], "x1": Z}, "x0 is uint8 (1, 1, 5, 2, 3), not"),
        ({"x0": X + 2, "x1": Z}, "x0 has values from 2 to 2; input `x` takes 0 to 1"),
        ({"x0": X, "x1": Z + 256}, "x1 has values from 256 to 256; input `z` takes -256 to 255"),
        ({"x0": X, "x1": Z[1:]}, "the inputs differ in their numbers of samples: [4, 5]"),
        ({"x0": np.stack([X] * 6), "x1": np.stack([Z] * 7)}, "the inputs differ in their time steps: [6, 7]"),
        ({"x0": np.stack([X] * 6), "x1": Z, "timesteps": 5}, "the inputs have 6 time steps, --timesteps is 5"),
        ({"x0": X, "x1": Z, "timesteps": 101}, "101 time steps: potentials are proved to fit their 24 bits for 100"),
    ],
)
def test_wrong_inputs(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(run.RunError) as caught:
        read(tmp_path, **arrays)
    assert said in str(caught.value)


def test_biases_as_mantissa_and_exponent() -> None:
    small = np.arange(-4096, 4096)
    every = np.concatenate([small << exponent for exponent in range(8)])
    mantissa, exponent = run.split(every, "n")
    np.testing.assert_array_equal(mantissa << exponent, every)
    assert (mantissa.min(), mantissa.max(), exponent.min(), exponent.max()) == (-4096, 4095, 0, 7)
    for wrong in (4097, -4097, 8191, 4096 << 7, (-4096 << 7) - 128, (4095 << 7) + 64):
        with pytest.raises(run.RunError, match=f"`n` has the bias {wrong}, which has no form"):
            run.split(np.array([0, wrong]), "n")
