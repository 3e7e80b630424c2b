"""What people read in the terminal: diagnostics and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from shutil import get_terminal_size
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from snncc.compiled import CompiledModel, Report
from snncc.ir import Diagnostic, Severity
from snncc.ir.diagnostics import render_all
from snncc.selfcheck import CAUSES
from snncc.targets.base import Target

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
BAR = 8  # characters of a memory bar
ROWS = 30  # of a table of layers


def plain(made: Callable[[int], Any]) -> str:
    """The text of a table, as wide as the terminal, of what makes one for a width."""
    width = max(80, get_terminal_size((100, 24)).columns)
    out = Console(file=StringIO(), width=width, highlight=False, no_color=True, force_terminal=False)
    with out.capture() as captured:
        out.print(made(width))
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())


def console(stderr: bool = False) -> Console:
    """A terminal. In a pipe it is plain, and as wide as its lines: tables must not be cut for a program."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=200, no_color=True)


def diagnostic_text(rendered: str) -> Text:
    """What diagnostics say, in the colours of their severity. User text is never read as markup."""
    text = Text(rendered)
    head = text.plain.partition("\n")[0]
    text.stylize("bold", 0, len(head))
    text.stylize(STYLES[Severity(head.partition("[")[0])], 0, head.index(":"))
    text.highlight_regex(r"(?m)^ *\d* +(\||-->|=)", "blue")
    return text


def mlir_text(text: str) -> Text:
    """A stage's text, or a diff of two, in colours: banners, values, operations, places, lines that came and went."""
    shown = Text(text)
    shown.highlight_regex(r"%[\w.$]+", "cyan")
    shown.highlight_regex(r'"snn\.\w+"', "bold")
    shown.highlight_regex(r"(?<= )loc\(.*\)$|dense_resource<[^>]*>", "dim")
    shown.highlight_regex(r"(?m)^//.*$", "bold green")
    shown.highlight_regex(r"(?m)^@@.*$", "magenta")
    shown.highlight_regex(r"(?m)^\+.*$", "green")
    shown.highlight_regex(r"(?m)^-.*$", "red")
    return shown


def print_diagnostics(diagnostics: Iterable[Diagnostic], out: Console) -> None:
    """All diagnostics, one message of a kind, the worst last, where a reader's eye is; and how many of each."""
    found = list(diagnostics)
    for text in render_all(found):
        out.print(diagnostic_text(text), soft_wrap=True)
        out.print()
    counts = [(s, sum(d.severity is s for d in found)) for s in Severity]
    words = [f"{n} {s.value}{'s' if n > 1 else ''}" for s, n in counts if n]
    if words:
        out.print(Text(", ".join(words), style="bold"))


def _bar(used: int, free: int, size: int = BAR) -> Text:
    return _filled(used / (used + free) if used + free else 0.0, f"{used:,} + {free:,}", size)


def _filled(part: float, words: str, size: int = BAR) -> Text:
    full = round(min(part, 1.0) * size)
    colour = "red" if part > 0.9 else "yellow" if part > 0.6 else "green"
    return Text.assemble(("█" * full, colour), ("░" * (size - full), "dim"), " " if size else "", words)


def _number(value: Any, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def report_table(report: Report, width: int | None = None) -> Table:
    """A row per layer, of many layers those that lose or take most. Columns that the target has nothing to say in are
    left out; so are memories that core_table shows, and of a table that is wider than ``width`` the columns that matter
    least."""
    rows = _largest(
        report,
        lambda r: sum(r.get(cause, 0.0) ** 2 for cause in CAUSES), lambda r: r.get("synops", 0), lambda r: r["weights"],
    )  # fmt: skip
    memories = () if report.cores else ("kernel", "neuron", "bias")
    columns: list[tuple[str, str, Any]] = [
        ("layer", "left", lambda r: Text(r["layer"])),
        ("core", "right", lambda r: _number(r.get("core"))),
        ("output", "left", lambda r: "x".join(map(str, r["shape"]))),
        ("weights", "right", lambda r: _number(r["weights"])),
        ("biases", "right", lambda r: _number(r["biases"])),
        ("neurons", "right", lambda r: _number(r["neurons"])),
        ("threshold", "right", lambda r: _number(r.get("threshold"))),
        *(
            (f"{m} memory", "left", lambda r, m=m: _bar(r[f"{m}_used"], r[f"{m}_free"]) if f"{m}_used" in r else "")
            for m in memories
        ),
        ("rate", "right", lambda r: f"{r['rate']:.3f}" if "rate" in r else ""),
        ("synops", "right", lambda r: _short(r["synops"]) if "synops" in r else ""),
        ("fp16", "right", lambda r: f"{100 * r['fp16_differs']:.2g} %" if "fp16_differs" in r else ""),
        *((cause, "right", lambda r, c=cause: _percent(r.get(c, 0.0))) for cause in CAUSES),
        ("error", "right", lambda r: _percent(r.get("error", 0.0))),
    ]
    cells = [(name, justify, [cell(row) for row in rows]) for name, justify, cell in columns]
    kept = [c for c in cells if any(str(cell) for cell in c[2])]
    for least in ("biases", "threshold", "neurons", "output", "rate", "weights", *CAUSES):
        need = sum(3 + max(len(name), *(len(str(cell)) for cell in column)) for name, _, column in kept)
        if width is None or need + 2 <= width:
            break
        kept = [c for c in kept if c[0] != least]
    table = Table(
        title=Text(report.title + _of(rows, report, "lose or take")), box=box.SIMPLE_HEAD, title_justify="left"
    )
    for name, justify, _ in kept:
        table.add_column(name, justify=justify, no_wrap=name != "layer", overflow="fold")  # type: ignore[arg-type]
    for i in range(len(rows)):
        table.add_row(*(values[i] for _, _, values in kept))
    total = sum(r.get("synops", 0) for r in report)
    lines = [f"{sum(r['weights'] for r in report):,} weights, {sum(r['neurons'] for r in report):,} neurons"]
    lines[0] += f", {round(total):,} synaptic operations per sample" if total else ""
    if any("error" in r for r in report):
        lines.append("lost on calibration samples: by each layer alone, and (error) with all that comes before it")
    table.caption, table.caption_justify = "\n".join(lines), "left"
    return table


def _largest(rows: Sequence[dict[str, Any]], *keys: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """Of many rows, in order, those that stand first by one of the keys."""
    ranks = [sorted(range(len(rows)), key=lambda i, key=key: -key(rows[i])) for key in keys]  # type: ignore[misc]
    chosen = dict.fromkeys(i for place in zip(*ranks, strict=True) for i in place)
    return [rows[i] for i in sorted(list(chosen)[:ROWS])]


def _of(shown: Sequence[Any], all_: Sequence[Any], which: str) -> str:
    """What the title of a table says of rows that it leaves out."""
    return f": {len(shown)} of {len(all_)} layers, those that {which} most" if len(shown) < len(all_) else ""


def _percent(part: float) -> str:
    """Empty for what would read 0.0."""
    return f"{100 * part:.1f} %" if part >= 0.0005 else ""


def _short(value: float) -> str:
    """A large number in three digits."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} P"


def _bytes(value: float) -> str:
    text = _short(value)
    return f"{text}B" if text[-1:].isalpha() else f"{text} B"


def core_table(compiled: CompiledModel, width: int | None = None) -> Table | None:
    """Every core of the chip with what lies on it and what is free, or of a chip with many small ones every layer with
    its cores; None for a target without cores. Where ``width`` is small, without bars."""
    cores = compiled.target.limits().get("cores")
    if not cores:
        mapping = compiled.mapping
        if "tensors" in mapping:
            return size_table(mapping, compiled.target)
        return partition_table(mapping, width) if "populations" in mapping else None
    rows = {row["core"]: row for row in compiled.report if "core" in row}
    full = BAR if width is None or width >= 100 else 0
    table = Table(title=f"cores of {compiled.target.name}", box=box.SIMPLE_HEAD, title_justify="left")
    table.caption, table.caption_justify = "memories in words: used + free", "left"
    for name in ("core", "layer", "kernel memory", "neuron memory", "bias memory"):
        right = name == "core" or (name != "layer" and not full)
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "layer", overflow="fold")
    for i, core in enumerate(cores):
        used = rows.get(i, {})
        bars = [
            _bar(used.get(f"{m}_used", 0), core[f"{m}_words"] - used.get(f"{m}_used", 0), full)
            for m in ("kernel", "neuron", "bias")
        ]
        table.add_row(str(i), Text(used.get("layer", "-"), style="" if used else "dim"), *bars)
    return table


def size_table(mapping: dict[str, Any], target: Target) -> Table:
    """A whole network against one chip that is not divided into cores."""
    limits = target.limits()
    table = Table(title=f"one chip of {target.name}", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("", "needed", "of a dense network's"):
        table.add_column(name, justify="right" if name == "needed" else "left")
    for what in ("neurons", "synapses"):
        part = mapping[f"{what}_used"]
        table.add_row(what, f"{mapping[what]:,}", _filled(part, f"{limits[what]:,} ({part:.1%})"))
    largest = max(mapping["tensors"], key=lambda t: int(t["bytes"]))
    table.add_row("weights", _bytes(mapping["weight_bytes"]), "")
    table.add_row("states", _bytes(mapping["state_bytes"]), "")
    table.add_row("largest tensor", _bytes(largest["bytes"]), Text(f"{largest['name']} {largest['shape']}"))
    table.add_row("per step", _short(mapping["operations_per_step"]), "multiplications")
    table.caption = f"{mapping['form']}, T = {mapping['timesteps']}, batch {mapping['batch']}: {mapping['claim']}"
    table.caption_justify = "left"
    return table


def fits_table(rows: list[dict[str, Any]], target: Target, width: int | None = None) -> Table:
    """What each layer needs against what each kind of core has (``Checked.layers``). Where ``width`` is small, without
    what to change and what is needed, which the errors say."""
    sized = width is None or width >= 100
    wide = (width is None or width >= 140) and any(row["change"] for row in rows)
    kinds: dict[tuple[int, ...], list[int]] = {}
    for i, core in enumerate(target.limits()["cores"]):
        kinds.setdefault(tuple(core.values()), []).append(i)
    # Those that do not fit first, then by memory.
    shown = _largest(rows, lambda r: 1e12 * (not r["cores"]) + max(r["kernel"], r["neuron"]))
    title = f"layers on {target.name}{_of(shown, rows, 'need')}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("layer", overflow="fold")
    for name in ("kernel", "neuron", "bias") if sized else ():
        table.add_column(name, justify="right", no_wrap=True)
    for members in kinds.values():
        few = f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0])
        table.add_column(f"core{'s' * (len(members) > 1)}\n{few}", justify="right", no_wrap=True)
    table.add_column("placed\non", no_wrap=True)
    if wide:
        table.add_column("to fit one core", overflow="fold")
    for row in shown:
        cells = []
        for members in kinds.values():
            held = row["holds"][members[0]]
            whole, none = held == row["channels"], not held
            words = "fits" if whole else "-" if none else f"{held:,} of {row['channels']:,}"
            cells.append(Text(words, style="green" if whole else "red" if none else "yellow"))
        needs = (f"{row[name]:,}" for name in ("kernel", "neuron", "bias") if sized)
        placed = ", ".join(map(str, row["cores"])) or Text("-", style="red")
        table.add_row(Text(row["layer"]), *needs, *cells, placed, *([row["change"]] if wide else []))
    has = "; ".join(f"{'/'.join(map(str, m))}: {k[0]:,}, {k[1]:,}, {k[2]:,}" for k, m in kinds.items())
    table.caption = f"memories in words; cores have (kernel, neuron, bias) {has}; numbers: output channels that fit"
    return table


def partition_table(mapping: dict[str, Any], width: int | None = None) -> Table:
    """A network over many cores: by layer, how full the fullest of its cores is. Where ``width`` is small, without
    places and bars."""
    chips, cores = mapping["chips"], mapping["cores"]
    wide, bar = width is None or width >= 120, BAR if width is None or width >= 100 else 0
    title = f"{cores:,} core{'s' * (cores > 1)} of {mapping['chip']}, {chips:,} chip{'s' * (chips > 1)}"
    shown = _largest(mapping["populations"], lambda r: r["cores"])
    title += _of(shown, mapping["populations"], "take")
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("cores", justify="right", no_wrap=True)
    if wide:
        table.add_column("place", overflow="fold")
    for name in ("neurons", "synapses", "memory", "axons est."):
        table.add_column(name, justify="left" if bar else "right", no_wrap=True)
    for row in shown:
        fill = row["fill"]
        parts = (
            max(fill["neurons"], fill["state_words"]),
            fill["synapse_words"],
            fill["core_words"],
            row["estimates"]["axons_fill"],
        )
        table.add_row(
            Text(_layers(row)),
            f"{row['cores']:,}",
            *([Text(row["place"])] if wide else []),
            *(_filled(part / 100, f"{part:5.1f} %", bar) for part in parts),
        )
    top = mapping["dominant"]
    lines = [
        f"most cores: {_layers(top)}, {top['cores']:,} of {cores:,}, for {top['resource']} ({top['fill']} % full)",
        f"in percent of each layer's fullest core; {mapping['basis']}",
    ]
    if "form" in mapping:
        lines.append(f"form: {mapping['form']} ({mapping['why']})")
    table.caption = Text("\n".join(lines))
    return table


def _layers(row: dict[str, Any]) -> str:
    return " + ".join(row["layers"]) or row["population"]


def simulation_table(rates: dict[str, float], synops: dict[str, float]) -> Table:
    """What a simulation did, by neurons and by layers of weights: of many, those that do most."""
    rows = [{"layer": name, "rate": rates.get(name, 0), "synops": synops.get(name, 0)} for name in {**rates, **synops}]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "spikes per neuron and step", "synaptic operations per sample"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for row in _largest(rows, lambda r: r["synops"], lambda r: r["rate"]):
        name = row["layer"]
        rate, ops = (f"{rates[name]:.3f}" if name in rates else ""), (_short(synops[name]) if name in synops else "")
        table.add_row(Text(name), rate, ops)
    return table


def apart_table(apart: dict[str, Any]) -> Table:
    """How far the simulation event by event is from the step-wise one (``CompiledModel.compare_events``)."""
    title = (
        f"{apart['order']} and step by step: {100 * apart['same_class']:.1f} % of {apart['samples']:,} classes agree"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for name in ("neurons", "step by step", "event by event", "off by", "of", "correlation"):
        table.add_column(name, justify="left" if name == "neurons" else "right")
    for row in apart["layers"]:
        correlation = "" if row["correlation"] is None else f"{row['correlation']:.3f}"
        table.add_row(
            Text(row["layer"]), f"{row['step']:,}", f"{row['events']:,}", f"{row['difference']:.3f}",
            f"{row['mean']:.3f}", correlation,
        )  # fmt: skip
    table.caption = f"spikes in {apart['timesteps']} time steps; off by: of a neuron in a sample"
    return table


def _plain(value: float) -> str:
    """Three digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def power_table(rows: list[dict[str, Any]]) -> Table:
    """What a sample may cost (``CompiledModel.compare_events``, ``power``)."""
    table = Table(title="power, an estimate", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for name in ("layer", "synops", "share", "energy", "power"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for row in rows:
        low, high = ({key: row[f"{key}_{end}"] for key in ("energy", "power")} for end in ("low", "high"))
        energy, power = (f"{_plain(low[key])} to {_plain(high[key])}" for key in ("energy", "power"))
        share = f"{100 * row['share']:.1f} %" if row["synops"] else ""
        table.add_row(Text(row["layer"]), _short(row["synops"]), share, f"{energy} µJ", f"{power} mW")
    table.caption = Text("\n".join(dict.fromkeys(row["source"] for row in rows if row["layer"] != "all")))
    return table


def targets_table(targets: Iterable[Target]) -> Table:
    """The known targets."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("target", style="bold")
    table.add_column("")
    for target in targets:
        table.add_row(target.name, target.summary)
    return table


def limits_view(target: Target) -> Group:
    """One target's limits."""
    limits = target.limits()
    head = Text.assemble((target.name, "bold"), f"  {target.summary}")
    if not limits:
        return Group(head)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("limit", "values"):
        table.add_column(name)
    estimates = {f"{name} (est.)": value for name, value in limits.get("estimates", {}).items()}
    for name, value in (limits | estimates).items():
        if name not in ("cores", "estimates") and value is not None:
            table.add_row(name.replace("_", " "), _words(value))
    if "cores" not in limits:
        return Group(head, table)
    cores = Table(box=box.SIMPLE_HEAD)
    for name in ("core", "kernel words", "neuron words", "bias words"):
        cores.add_column(name, justify="right")
    for i, core in enumerate(limits["cores"]):
        cores.add_row(str(i), *(f"{core[f'{m}_words']:,}" for m in ("kernel", "neuron", "bias")))
    return Group(head, cores, table)


def _words(value: Any) -> str:
    """A limit's legal values as a person writes them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        if value.keys() == {"min", "max"}:
            return f"{value['min']:,} to {value['max']:,}"
        return ", ".join(f"{name} {_words(v)}" for name, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
