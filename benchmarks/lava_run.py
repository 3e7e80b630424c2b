"""How fast is our simulation beside Lava's own, on the same folder? A LeNet over 64 time steps, spike for spike.

    python benchmarks/lava_run.py [--samples 4] [--repeat 3] [--json out.json]

For each form: the network is compiled, its folder written, Lava runs it through the folder's run.py (in Lava's Python),
and our engine simulates it, recording the spikes of every layer, as Lava does. Lava's time is that of the time steps
alone, without starting Python, building and compiling, which are shown beside it. Medians. Every spike is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mnist import lenet
from rich import box
from rich.console import Console
from rich.table import Table

import snncc
from snncc import sdk

TIMESTEPS = 64
RATIO = 50  # what we want to be, at least


def lava(python: Path, folder: Path, inputs: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray], float]:
    """What the folder's run.py says, every layer's spikes, and the seconds that all of it took."""
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name) / "input.npz", x0=inputs)
        files = ["--input", Path(name) / "input.npz", "--output", Path(name) / "output.npz"]
        begin = time.perf_counter()
        line = [python, folder / "run.py", *files, "--record", "all", "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begin
        with np.load(Path(name) / "output.npz") as file:
            spikes = {key.partition("/")[2]: file[key] for key in file.files if key.startswith("spikes/")}
    return json.loads(done.stdout.splitlines()[-1]), spikes, seconds


def main() -> None:
    """Compile, run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    python = sdk.find("lava")
    if python is None:
        raise SystemExit("no environment with lava: python -m snncc.sdk build lava")
    net, (x, _, x_test, _) = lenet()
    images = x_test[: options.samples]
    out, rows = Console(), []
    title = f"LeNet, {TIMESTEPS} time steps, {options.samples} samples: seconds"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("form", "neurons", "Lava: all", "build", "steps", "ours", "ratio", "values", "different"):
        table.add_column(name, justify="left" if name in ("form", "neurons") else "right")
    for reset in ("subtract", "zero"):
        model = snncc.compile(net, "lava", calibration=x[:256], timesteps=TIMESTEPS, reset=reset, bias="keep")
        unit = next(n.op.unit for n in model.graph.nodes if n.op.mnemonic == "encode")
        inputs = np.rint(images.astype(np.float64) / unit).astype(np.int32)
        with tempfile.TemporaryDirectory() as name:
            folder = model.save(Path(name) / "lenet")
            runs = [lava(python, folder, inputs) for _ in range(options.repeat)]
        model.simulate(images, record="spikes")  # torch's first run is slower
        ours = []
        for _ in range(max(5, options.repeat)):
            begin = time.perf_counter()
            done = model.simulate(images, record="spikes")
            ours.append(time.perf_counter() - begin)
        spikes = runs[0][1]
        different = sum(int((done.spikes[name] != value).sum()) for name, value in spikes.items())
        row = {
            "form": model.mapping["form"],
            "neurons": "ATRLIF" if reset == "subtract" else "LIF",
            "lava_seconds": statistics.median(run[2] for run in runs),
            "build_seconds": statistics.median(run[0]["build_seconds"] for run in runs),
            "steps_seconds": statistics.median(run[0]["seconds"] for run in runs),
            "our_seconds": statistics.median(ours),
            "values": sum(value.size for value in spikes.values()),
            "different": different,
        }
        row["ratio"] = row["steps_seconds"] / row["our_seconds"]
        rows.append(row)
        numbers = (f"{row[k]:.2f}" for k in ("lava_seconds", "build_seconds", "steps_seconds"))
        counted = (f"{row['our_seconds']:.3f}", f"{row['ratio']:.0f} x", f"{row['values']:,}", f"{different:,}")
        table.add_row(row["form"], row["neurons"], *numbers, *counted)
    out.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    slow = [row["form"] for row in rows if row["ratio"] < RATIO]
    wrong = [row["form"] for row in rows if row["different"]]
    if slow or wrong:
        raise SystemExit(f"less than {RATIO} times as fast: {slow}; different spikes: {wrong}")


if __name__ == "__main__":
    main()
