"""What the documentation says of the code is so."""

from __future__ import annotations

import re
from pathlib import Path

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
