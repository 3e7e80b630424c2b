"""Many cases: `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from fuzz.checks import Finding, examine
from fuzz.generate import TARGETS, generate
from fuzz.shrink import shrink
from rich.console import Console
from rich.progress import Progress
from rich.syntax import Syntax
from rich.table import Table

from snncc.ir.diagnostics import CODES

BLOCK = 50  # seeds of a line of the record
RENEWED = 8  # blocks, after which a process is replaced: torch keeps every TorchScript for good, and gets slower
Work = tuple[str, tuple[int, ...]]  # a target, "drawn" or "all", and seeds
Tried = tuple[int, str]  # a seed and a target
WRONG = ("foreign", "internal", "hang", "crash")  # kinds of findings that are no wrong numbers


def main(arguments: list[str] | None = None) -> int:
    """0: nothing was found."""
    options = _options().parse_args(arguments)
    console = Console()
    if options.show is not None:
        case = generate(options.show, None if options.target in ("drawn", "all") else options.target)
        console.print(Syntax(case.program(), "python"), f"# {examine(case).finding or 'nothing found'}", sep="")
        return 0
    first, _, last = options.seeds.partition("..")
    lines = _read(options.out)
    done = {(line["target"], seed) for line in lines if "seeds" in line for seed in line["seeds"]}
    if options.again:
        blocks = [(f["target"], (f["seed"],)) for line in lines for f in line.get("found", ())]
    else:
        left = [seed for seed in range(int(first), int(last)) if (options.target, seed) not in done]
        blocks = [(options.target, tuple(left[i : i + BLOCK])) for i in range(0, len(left), BLOCK)]
    begin, commit, new = time.monotonic(), _commit(), list[dict[str, Any]]()
    total = sum(len(seeds) for _, seeds in blocks)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{total} seeds", total=total)
        for line in _work(blocks, options.jobs, options.time and begin + options.time):
            new.append({"commit": commit, **line})
            if not options.again:
                _append(options.out, new[-1])
            progress.advance(bar, len(line["seeds"]))
            wrong = sum(len(each["found"]) for each in new)
            progress.update(bar, description=f"{total} seeds, {wrong} findings")
    _report(console, new, time.monotonic() - begin)
    found = _kinds(new)
    for (kind, where), at in found.items():
        line = _smallest(kind, where, at, options.shrink)
        console.print(f"\n[bold red]{kind}[/]: {where} ({len(at)} times)\n{line['text']}", highlight=False)
        console.print(Syntax(line["program"], "python"))
        _append(options.out, {"commit": commit, **line})
    return 1 if found else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description="Compile generated networks and hold the results."
    )
    parser.add_argument("--seeds", default="0..1000", help="A..B: seeds from A to B - 1 (default %(default)s)")
    parser.add_argument(
        "--target", default="drawn", choices=("drawn", "all", *TARGETS), help="default: one that each seed draws"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (default %(default)s)")
    parser.add_argument("--time", type=float, default=0.0, help="begin no more blocks of seeds after so many seconds")
    parser.add_argument(
        "--out", type=Path, help="a file of JSON lines to go on with: seeds that it has are not run again"
    )
    parser.add_argument("--again", action="store_true", help="only what failed in --out")
    parser.add_argument(
        "--shrink", type=float, default=30.0, help="seconds for each kind of failure (default %(default)s)"
    )
    parser.add_argument("--show", type=int, metavar="SEED", help="print one program, and what is found")
    return parser


# --- the work ---------------------------------------------------------------------------------------------------------


def _work(blocks: Iterable[Work], jobs: int, until: float) -> Iterator[dict[str, Any]]:
    """A line for each block. Of blocks that end a process, each seed is tried alone."""
    queue = deque(blocks)
    while queue:
        flying: dict[Future[dict[str, Any]], Work] = {}
        fresh = RENEWED * jobs
        with ProcessPoolExecutor(jobs) as pool:
            try:
                while (queue and fresh) or flying:
                    while queue and fresh and len(flying) < jobs:
                        block, fresh = queue.popleft(), fresh - 1
                        flying[pool.submit(_block, block)] = block
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        line = future.result()
                        del flying[future]
                        yield line
                    if until and time.monotonic() > until:
                        queue.clear()
            except BrokenProcessPool:
                lost = list(flying.values())
                if len(lost) == 1 and len(lost[0][1]) == 1:
                    target, (seed,) = lost[0]
                    chosen = generate(seed).target if target in ("drawn", "all") else target
                    found = {"seed": seed, "target": chosen, "kind": "crash", "where": "", "text": "the process ended"}
                    yield {
                        "target": target,
                        "seeds": [seed],
                        "seconds": 0.0,
                        "counts": {chosen: {"crash": 1}},
                        "found": [found],
                    }
                else:
                    queue.extendleft((target, (seed,)) for target, seeds in lost for seed in seeds)
                    jobs = 1


def _block(work: Work) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target, seeds = work
    begin, counts, found, phases = (
        time.perf_counter(),
        dict[str, Counter[str]](),
        list[dict[str, Any]](),
        Counter[str](),
    )
    for seed in seeds:
        for chosen in TARGETS if target == "all" else (None if target == "drawn" else target,):
            case = generate(seed, chosen)
            outcome = examine(case)
            finding = outcome.finding
            what = finding.kind if finding else outcome.refused[0] if outcome.refused else "compiled"
            counts.setdefault(case.target, Counter())[what] += 1
            phases.update(outcome.seconds)
            if finding:
                at = {"seed": seed, "target": case.target}
                found.append({**at, "kind": finding.kind, "where": finding.where, "text": finding.text})
    seconds = {name: round(value, 2) for name, value in phases.items()}
    line = {"target": target, "seeds": list(seeds), "seconds": round(time.perf_counter() - begin, 1), "phases": seconds}
    return {**line, "counts": counts, "found": found}


def _kinds(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[Tried]]:
    """Where each kind of failure was found."""
    kinds: dict[tuple[str, str], list[Tried]] = {}
    for line in lines:
        for each in line["found"]:
            kinds.setdefault((each["kind"], each["where"]), []).append((each["seed"], each["target"]))
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _smallest(kind: str, where: str, at: list[Tried], seconds: float) -> dict[str, Any]:
    """The first case of its kind as a small program."""
    seed, target = at[0]
    case, text = generate(seed, target), ""
    if kind != "crash":
        case = shrink(case, lambda c: (found := examine(c).finding) is not None and found.key == (kind, where), seconds)
        finding = examine(case).finding or Finding(kind, where, "not found again")
        text = finding.text
    return {"kind": kind, "where": where, "text": text, "at": at[:20], "program": case.program()}


# --- what is said -----------------------------------------------------------------------------------------------------


def _report(console: Console, lines: list[dict[str, Any]], seconds: float) -> None:
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        for target, each in line["counts"].items():
            counts.setdefault(target, Counter()).update(each)
    table = Table("target", *("networks", "compiled", "refused", "foreign", "wrong"), title="generated networks")
    for target in [t for t in TARGETS if t in counts]:
        n = counts[target]
        refused = sum(n[code] for code in n if code in CODES)
        foreign = sum(n[kind] for kind in WRONG)
        rest = n.total() - refused - foreign - n["compiled"]
        table.add_row(target, *map(str, (n.total(), n["compiled"], refused, foreign, rest)))
    whole = sum(counts.values(), Counter[str]())
    console.print(table)
    why = Table("first reason", "", "networks", title="refused")
    for code, n in whole.most_common():
        if code in CODES:
            why.add_row(code, CODES[code], str(n))
    console.print(why)
    console.print(f"{whole.total()} networks in {seconds:.0f} s")


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _read(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.exists() else []


def _append(path: Path | None, line: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
