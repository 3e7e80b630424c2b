"""How long does a compile for a Speck take? snncc and sinabs in turn, on the same networks.

    python benchmarks/dynapcnn_compile.py [--repeat 9] [--samples 64] [--threads 2] [--json out.json]

Ours is `snncc.compile` for `speck2`, biases kept: tracing, calibration on `--samples` samples, integers, placement, and
the configuration as samna's JSON. sinabs' is `DynapcnnNetwork(...)` and `make_config(...)`, which holds samna's
validator, in a process of its own that stays (sinabs_peer.py, which says what stands in for samna's newer modules).
`from_model`, before that, is shown beside it and not in its sum. sinabs has no calibration: what ours takes is shown.
Ours calls the validator when asked to: `validate()` starts another Python, which imports samna. Both are warm: imports
and the first compile do not count. Medians, and the best of all runs, as a busy machine makes nothing faster. One
thread by default: the networks are small, and two that wait for each other on a busy machine take up to 60 ms.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from dynapcnn_networks import CHAINS, build, digest, inputs
from peers import interpreter
from rich import box
from rich.table import Table
from torch import Tensor, nn

import snncc
from snncc import sdk
from snncc.console import console

OPTIONS: dict[str, Any] = {"bias": "keep", "timesteps": 32}


def compile_once(net: nn.Module, samples: Tensor) -> tuple[snncc.CompiledModel, dict[str, float]]:
    """One of our compiles, and its seconds."""
    gc.collect()
    begin = time.perf_counter()
    compiled = snncc.compile(net, "speck2", calibration=samples, **OPTIONS)
    seconds = time.perf_counter() - begin
    calibration = sum(r.seconds for r in compiled.records if r.label.startswith("calibrate"))
    return compiled, {"seconds": seconds, "calibration_seconds": calibration}


class Sinabs:
    """The process that compiles with sinabs when a network is named."""

    def __init__(self, threads: int) -> None:
        line = [interpreter("sinabs"), Path(__file__).with_name("sinabs_peer.py"), "time"]
        pipe, env = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env, text=True)

    def compile_once(self, name: str) -> dict[str, Any]:
        """One of its compiles: seconds by step, and the validator's message."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise SystemExit(f"sinabs' process ended at {name}: echo {name} | PEER benchmarks/sinabs_peer.py time")
        return json.loads(answer)

    def close(self) -> None:
        """No more networks: the process ends."""
        self.process.communicate()


def main() -> None:
    """Compile in turn, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--samples", type=int, default=64, help="of calibration, ours")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on either side")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer, rows = Sinabs(options.threads), {}
    for name, case in CHAINS.items():
        net, shape = build(name)
        samples = inputs(shape, options.samples)
        compiled, _ = compile_once(net, samples)
        answer = peer.compile_once(name)
        if answer["digest"] != digest(net):
            raise SystemExit(f"{name}: the two sides have built different networks")
        ours, theirs = [], []
        for _ in range(options.repeat):  # in turn, so that a slow spell of the machine hits both
            ours.append(compile_once(net, samples)[1])
            theirs.append(peer.compile_once(name))
        for one in theirs:
            one["seconds"] = one["network_seconds"] + one["config_seconds"]
        row = {f"our_{key}": statistics.median(one[key] for one in ours) for key in ours[0]}
        for key in ("convert_seconds", "network_seconds", "config_seconds", "seconds"):
            row[f"sinabs_{key}"] = statistics.median(one[key] for one in theirs)
        row["our_best"], row["sinabs_best"] = (min(one["seconds"] for one in side) for side in (ours, theirs))
        row["ratio"] = row["our_seconds"] / row["sinabs_seconds"]
        row["best_ratio"] = row["our_best"] / row["sinabs_best"]
        said = {"sinabs": answer["message"] or "valid", "ours": "not asked: no environment (make sdk)"}
        if sdk.find("samna"):
            begin = time.perf_counter()
            validation = compiled.validate()
            row["our_validate_seconds"] = time.perf_counter() - begin
            said["ours"] = "valid" if validation.valid else validation.message
        rows[name] = {"about": case.about, **row, "samna": said, "ours": ours, "sinabs": theirs}
    peer.close()
    show(rows, options)
    if options.json:
        machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
        options.json.write_text(json.dumps({"machine": machine, "networks": rows}, indent=1) + "\n")


def show(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """The table, and what the validators said."""
    title = f"compile for a Speck, {options.repeat} runs, {options.samples} samples of calibration: ms"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("network")
    columns = {
        "sinabs: from_model": "sinabs_convert_seconds",
        "network": "sinabs_network_seconds",
        "config": "sinabs_config_seconds",
        "sum": "sinabs_seconds",
        "best": "sinabs_best",
        "ours: calibration": "our_calibration_seconds",
        "all": "our_seconds",
        "best ": "our_best",
        "validate()": "our_validate_seconds",
    }
    for column in (*columns, "all / sum", "best / best"):
        table.add_column(column, justify="right")
    for row in rows.values():
        times = (f"{1e3 * row[key]:.1f}" if key in row else "-" for key in columns.values())
        table.add_row(row["about"], *times, f"{row['ratio']:.2f}", f"{row['best_ratio']:.2f}")
    out = console()
    out.print(table)
    for row in rows.values():
        out.print(f"samna 0.7.1.0 on {row['about']}: sinabs {row['samna']['sinabs']}, ours {row['samna']['ours']}")


if __name__ == "__main__":
    main()
