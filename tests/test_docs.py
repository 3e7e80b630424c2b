"""What the documentation says of the code is so."""

from __future__ import annotations

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
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "snncc").rglob("*.py") if p.name != "diagnostics.py")
    assert [c for c in CODES if f'"{c}"' not in code] == []


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
