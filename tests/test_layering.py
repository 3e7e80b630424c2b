"""Layers import downwards only: shown by what ruff says to each import that a layer could write."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "snncc"

# What each layer may import of the rest of the package; ir and passes also do without torch.
LAYERS: dict[str, set[str]] = {
    "ir": set(),
    "passes": {"ir"},
    "engine": {"ir"},
    "frontend": {"ir"},
    "explore": {"ir"},
    "targets": {"ir", "passes", "frontend", "sdk"},
}
TORCH_FREE = {"ir", "passes"}
SDKS = ["lava", "lyngor", "lynpy", "onnxruntime", "pylynchipsdk", "samna", "sinabs"]
SDK_PARTS = {"h5py", "scipy"}  # what comes with every Lava
FACE = {"compile", "check", "load"}


def siblings() -> set[str]:
    """Names directly under ``snncc`` that code could import: its modules, its packages, its public functions."""
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    return FACE | files | folders | set(LAYERS)


def ruff(path: str, code: str) -> set[tuple[int, str]]:
    """(line, rule) for each finding on ``code`` as if it stood in ``path``."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID", "--output-format", "json"]
    done = subprocess.run(
        [*command, "--stdin-filename", path, "-"], input=code, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 1}, done.stderr
    return {(finding["location"]["row"], finding["code"]) for finding in json.loads(done.stdout)}


def imports(path: Path) -> Iterator[str]:
    """The dotted name of everything that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


FORMS = {
    "import": "import snncc.{}.x",
    "from package": "from snncc import {}",
    "from module": "from snncc.{} import x",
    "late": "def f(): from snncc.{} import x",
    "for types": "if TYPE_CHECKING: from snncc.{} import x",
    "attribute": "snncc.{}.x()",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", ["new.py", "deeper/new.py"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below_it(layer: str, file: str, form: str) -> None:
    names = sorted(siblings() - {layer})
    header = ["import snncc", "from typing import TYPE_CHECKING"]
    code = "\n".join([*header, *(FORMS[form].format(name) for name in names)])
    expected = {line for line, name in enumerate(names, len(header) + 1) if name not in LAYERS[layer]}
    refused = {line for line, rule in ruff(f"snncc/{layer}/{file}", code) if rule == "TID251"}
    forgotten = [names[line - len(header) - 1] for line in expected - refused]
    assert not forgotten, f"add to banned-api of snncc/{layer}/ruff.toml: {forgotten}"
    assert refused == expected


@pytest.mark.parametrize("layer", sorted(TORCH_FREE))
@pytest.mark.parametrize("line", ["import torch", "from torch import nn", "import torch.fx", "def f(): import torch"])
def test_torch_free_layers_refuse_torch(layer: str, line: str) -> None:
    assert (1, "TID251") in ruff(f"snncc/{layer}/new.py", line)


@pytest.mark.parametrize("layer", ["explore", "targets", ""])
def test_elsewhere_torch_is_imported_late(layer: str) -> None:
    assert ruff(f"snncc/{layer}/new.py", "import torch\ndef f(): import torch") == {(1, "TID253")}


@pytest.mark.parametrize("layer", ["engine", "frontend"])
def test_torch_is_at_home_in_the_engine_and_the_front_end(layer: str) -> None:
    assert not ruff(f"snncc/{layer}/new.py", "import torch\ndef f(): import torch")


@pytest.mark.parametrize("layer", [*LAYERS, ""])
def test_no_layer_imports_a_vendor_sdk(layer: str) -> None:
    code = "\n".join(f"def f(): import {sdk}" for sdk in SDKS)
    assert {(line, "TID251") for line in range(1, len(SDKS) + 1)} <= ruff(f"snncc/{layer}/new.py", code)


@pytest.mark.parametrize("layer", [*LAYERS, ""])
def test_relative_imports_are_refused(layer: str) -> None:
    """They would go past the rule: ``from ..passes import x`` names no package."""
    assert (1, "TID252") in ruff(f"snncc/{layer}/new.py", "from . import x")


def test_nothing_imports_the_command_line() -> None:
    assert ruff("snncc/new.py", "from snncc.cli import main") == {(1, "TID251")}
    assert not ruff("snncc/__main__.py", "from snncc.cli import main")


def test_every_package_is_a_layer() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert packages <= set(LAYERS), "a new package needs a ruff.toml and a row in LAYERS"


def test_the_code_that_is_here_keeps_the_rule() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID", "--ignore-noqa", "snncc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_emitted_runners_stand_alone() -> None:
    """A runner is copied to the machine with the board: the standard library, numpy and its SDK are all it has."""
    folder = {"model", "torch"}  # Lynxi's compiler comes with a torch, and is given the module that lies beside it
    for pattern in ("run.py", "processes/*.py", "lynxi/compile_lynxi.py", "lynxi/model.py"):
        emitted = sorted(PACKAGE.glob(f"targets/**/{pattern}"))
        assert emitted, f"no target has a {pattern}: has it moved?"
        for path in emitted:
            roots = {name.split(".")[0] for name in imports(path)}
            more = folder if path.name != "run.py" else set()
            assert roots <= sys.stdlib_module_names | {"numpy", *SDK_PARTS, *SDKS} | more, path


def test_the_file_that_imports_lava_keeps_the_rest_of_the_rule() -> None:
    """It runs where lava-dl is, and its exemption in snncc/targets/ruff.toml is from all of TID251."""
    names = set(imports(PACKAGE / "targets/lava/slayer.py"))
    assert {name.split(".")[1] for name in names if name.startswith("snncc.")} <= LAYERS["targets"] | {"targets"}
    assert {name for name in names if name.split(".")[0] in SDKS} == {"lava.lib.dl.slayer"}


def test_sdk_stands_below_the_targets() -> None:
    assert {name for name in imports(PACKAGE / "sdk.py") if name.startswith("snncc") and ".ir" not in name} == set()


@pytest.mark.parametrize("layer", sorted(TORCH_FREE))
def test_torch_free_layers_import_where_there_is_no_torch(layer: str) -> None:
    """Also what they import in turn: the lint rule sees one file at a time."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (PACKAGE / layer).rglob("*.py")]
    code = f"import importlib, sys; sys.modules['torch'] = None\nfor n in {names}: importlib.import_module(n)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
