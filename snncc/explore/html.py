"""A compile as one page: a file that a browser shows without any network.

The page's program is written in TypeScript in ``web/``; ``make web`` builds it into ``page.js`` and ``page.css`` beside
this file, which the wheel has.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# The page may reach nothing but, where a server shows it, that server.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src {};"
    " base-uri 'none'; form-action 'none'"
)


def page(record: Mapping[str, Any], live: Mapping[str, Any] | None = None) -> str:
    """The whole page as HTML.

    Args:
        record: of a compile, see docs/record.md.
        live: of a page that a server keeps up to date (:mod:`snncc.live`): what it may ask of it.
    """
    style, program = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = POLICY.format("'none'" if live is None else "'self'")
    title = html.escape(f"{record['network'] or 'network'} on {record.get('target', '?')}")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{title} · snncc</title>\n<style>{style}</style>\n'
        f'<body>\n<div id="app"><noscript>This page needs JavaScript.</noscript></div>\n'
        f'<script type="application/json" id="record">{embedded(drawn(record))}</script>\n'
        f'<script type="application/json" id="live">{embedded(live)}</script>\n'
        f"<script>{program}</script>\n</body>\n</html>\n"
    )


def drawn(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as the page has it: of a stage's text only what stands around its nodes, which have their own."""
    return {**record, "stages": [_stage(stage) for stage in record["stages"]]}


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    lines = stage["text"].splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("    ")), len(lines))
    last = first + len(stage["nodes"])
    rest = {name: value for name, value in stage.items() if name not in ("text", "diff")}
    return {**rest, "head": lines[1:first], "tail": lines[last:]}  # without the banner


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
