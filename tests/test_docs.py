"""What the documentation says of the code is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from snncc.ir.diagnostics import CODES
from snncc.targets import all_targets

ROOT = Path(__file__).parents[1]


def test_every_diagnostic_code_is_documented() -> None:
    text = (ROOT / "docs/diagnostics.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| (SNN\d{3}) \| (.*) \|$", text, re.MULTILINE)) == CODES


def test_every_diagnostic_code_is_used() -> None:
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "snncc").rglob("*.py"))
    assert [c for c in CODES if code.count(f'"{c}"') < 2] == []  # once in the table


def test_a_code_means_one_thing() -> None:
    """What is wrong with an option's value, or with a name, is said by one function each, in the same words."""
    said: dict[str, set[str]] = {}
    for path in (ROOT / "snncc").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                said.setdefault(str(call.args[0].value), set()).add(f"{path.stem}.{function}")
    assert said["SNN070"] == {"diagnostics.input_error"}
    names = ("SNN078", "SNN079", "SNN084", "SNN087")
    assert {where.partition(".")[2] for code in names for where in said[code]} == {"unknown"}


def test_every_target_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in all_targets() if f"`{name}`" not in text] == []


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 (our own text)
    assert names["scores"].shape == (100, 10)  # type: ignore[attr-defined]
    assert (tmp_path / "build/my-cnn/config.json").is_file()
